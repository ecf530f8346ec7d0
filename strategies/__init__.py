"""Server sides of the methods, one module a paper."""
