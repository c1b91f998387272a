"""The session in a process of its own: frames in, events out, supervised."""
