"""Built-in data sets: in each module the function with the module's name."""
