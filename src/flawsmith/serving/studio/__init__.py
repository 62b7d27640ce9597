"""The studio: pages in a browser for whoever answers for a line."""
