"""Algebra shared by strategies, clients and the engine."""
