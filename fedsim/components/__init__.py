"""Components by name: looked up, their options checked, built."""
