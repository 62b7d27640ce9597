"""Methods side by side: methods × categories × seeds, resumable, with the papers' columns beside ours."""
