"""Outputs: what tells others of each record. None of them can hold up judging."""
