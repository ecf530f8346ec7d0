"""Data sets that fedsim generates, and the sources they are made of."""
