"""Weights of others, read from files."""
