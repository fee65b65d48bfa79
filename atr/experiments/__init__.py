"""Profiles, grids of runs, what they cost, and the notebooks that show them."""
