"""Pictures and tables, from data and run folders alone."""
