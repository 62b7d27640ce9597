"""Methods on categories and seeds, beside what the papers print."""
