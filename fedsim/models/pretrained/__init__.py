"""Readers of pretrained weights."""
