"""The order in which samples are trained on: by seed and epoch, the same in a resumed run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import logging

import numpy as np

from sww_ros.training.data.errors import VideoError
from sww_ros.training.data.frames import read_frames
from sww_ros.training.data.samples import Sample

_LOG = logging.getLogger(__name__)


class Dataset:
    """
    Samples with their frames; what is at a place of an epoch depends on nothing before it.

    A video that cannot be read is reported once; in its place stands the next one of that epoch
    that can, which is then seen twice.
    """

    def __init__(self, samples: Sequence[Sample], seed: int = 0, *,
                 read: Callable[[Sample], np.ndarray] = read_frames,
                 warn: Callable[[str], None] = _LOG.warning) -> None:
        """
        Take the samples; none of their videos is opened yet.

        :param read: returns a sample's frames or raises a VideoError; `functools.partial` of
            `read_frames` sets the rate and the size
        :param warn: told of each video that cannot be read
        :raises ValueError: for no samples
        """
        if not samples:
            raise ValueError('there are no samples to train on')
        self.samples = tuple(samples)
        self._seed, self._read, self._warn = seed, read, warn
        self._broken: set[int] = set()

    def __len__(self) -> int:
        return len(self.samples)

    def order(self, epoch: int) -> list[int]:
        """Return the indices of all samples in the order of an epoch."""
        return np.random.default_rng([self._seed, epoch]).permutation(len(self)).tolist()

    def epoch(self, epoch: int, begin: int = 0) -> Iterator[tuple[Sample, np.ndarray]]:
        """
        Yield each sample and its frames, (n, H, W, 3) uint8 RGB, from place `begin` on.

        :raises VideoError: where not a single video can be read
        """
        for place in range(begin, len(self)):
            yield self.at(epoch, place)

    def at(self, epoch: int, place: int) -> tuple[Sample, np.ndarray]:
        """
        Return the sample at a place of an epoch, 0 to len - 1, and its frames.

        :raises VideoError: where not a single video can be read
        """
        order = self.order(epoch)
        for index in order[place:] + order[:place]:
            if index in self._broken:
                continue
            sample = self.samples[index]
            try:
                return sample, self._read(sample)
            except VideoError as error:
                self._broken.add(index)
                self._warn(f'{sample.source}: {error}; the next sample takes its place')
        raise VideoError(f'not one of {len(self)} videos can be read; see the warnings above')
