"""Caption metrics, computed as pycocoevalcap computes them; `captions.score` is the way in."""
