"""On the line: triggers, records, the queue that judges, watched folders; no HTTP, which is `flawsmith.serving`."""
