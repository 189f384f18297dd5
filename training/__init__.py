"""Training of the weights that come with the package. Not installed with it."""
