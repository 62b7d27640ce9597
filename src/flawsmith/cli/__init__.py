"""The command line: thin shells around the pipeline, by what they are about. `main` has their names."""
