"""The round loop and what it orders."""
