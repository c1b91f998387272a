"""A small rendered world of coloured shapes; the training on it and the scores know the world."""
