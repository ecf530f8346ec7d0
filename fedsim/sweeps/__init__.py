"""Sweeps: variants, grids of values and seeds in one file, run on all cores."""
