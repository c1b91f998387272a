"""What is wrong with a record or a video; both leave out one sample, never a training."""

from __future__ import annotations


class Rejected(ValueError):
    """A record that is no sample; `reason` is a word or two to count by."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class VideoError(ValueError):
    """A video or bag that cannot be read; the message names it and says why."""
