"""Training of Qwen2.5-VL checkpoints to speak while watching, as in arXiv 2601.06843."""
