"""Data sets, partitions and the views clients get of them."""
