"""The demo: a scene or a video, narrated and asked about, in one command."""
