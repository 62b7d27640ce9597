"""Models of other packages, run in environments of their own on the same images and measured by the same rules."""
