"""Readers of common file formats, each serving several data sets."""
