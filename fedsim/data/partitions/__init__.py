"""Built-in partitions: in each module the function with the module's name."""
