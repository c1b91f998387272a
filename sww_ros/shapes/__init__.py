"""A small rendered world of coloured shapes: scenes, narration, questions, scoring."""
