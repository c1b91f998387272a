"""Training of checkpoints to speak while watching, as in arXiv 2601.06843."""
