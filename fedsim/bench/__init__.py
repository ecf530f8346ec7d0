"""`fedsim bench`: fedsim timed against a hand-written PyTorch loop."""
