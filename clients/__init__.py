"""Client sides of the methods, one module a paper; no file where plain local SGD serves."""
