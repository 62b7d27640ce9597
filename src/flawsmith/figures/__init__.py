"""The figures of the papers, each from what finished runs left behind: histograms, grids, clouds and curves."""
