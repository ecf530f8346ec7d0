"""The edge to Flower: records, messages, and what is private in it."""
