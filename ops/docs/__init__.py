"""Documents that are generated from the code, so that they cannot say something else than it."""
