"""Experiments: comparisons, ablations, what attention costs and where it looks."""
