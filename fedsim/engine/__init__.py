"""What executes clients: a Flower `Grid` over an executor, serial or Ray."""
