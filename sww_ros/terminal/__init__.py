"""What is said, in a terminal: a transcript, how it is shown, and the node console."""
