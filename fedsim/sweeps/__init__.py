"""Many runs from one file: variants, grids of values and seeds, queued over the machine's cores."""
