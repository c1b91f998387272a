"""The clips of a training in their order, read ahead by threads of their own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
import threading

import numpy as np

from sww_ros.training.clips import Clip, ClipMaker
from sww_ros.training.data.dataset import Dataset
from sww_ros.training.data.samples import Sample


class Feed:
    """
    Clips by their place in the training, from 0, through as many epochs as there are.

    A video that cannot be read is reported once; another stands in its place.
    """

    def __init__(self, samples: list[Sample], maker: ClipMaker, seed: int, readers: int,
                 warn: Callable[[str], None]) -> None:
        """Take the samples; `readers` threads decode their videos, once there is a call for it."""
        self._told: set[str] = set()
        self._lock, self._warn = threading.Lock(), warn
        self._dataset = Dataset(samples, seed, read=maker.read, warn=self._tell)
        self._maker, self._seed, self._readers = maker, seed, readers

    def clip(self, place: int) -> Clip:
        """
        Return the clip at a place.

        :raises VideoError: where not a single video can be read
        """
        epoch, within = divmod(place, len(self._dataset))
        sample, frames = self._dataset.at(epoch, within)
        drawn = np.random.SeedSequence([self._seed, place]).generate_state(1)
        return self._maker.make(sample, frames, int(drawn[0]))

    def clips(self, places: Iterable[int]) -> Iterator[Clip]:
        """Yield the clips at these places; twice as many as there are readers wait at most."""
        waiting: deque[Future[Clip]] = deque()
        pool = ThreadPoolExecutor(self._readers, thread_name_prefix='read')
        try:
            for place in places:
                waiting.append(pool.submit(self.clip, place))
                if len(waiting) > 2 * self._readers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _tell(self, message: str) -> None:
        """Two threads may come upon the same broken video at once."""
        with self._lock:
            if message in self._told:
                return
            self._told.add(message)
            self._warn(message)
