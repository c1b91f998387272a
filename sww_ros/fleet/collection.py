"""
A collection worked off by a Ray cluster: one model for each core or GPU, one item after the other.

Ray places the workers, and starts one again that dies; an item is tried twice. Nothing of Ray is
imported before it is asked for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
import os
from typing import Any, TypeVar

Item, Result = TypeVar('Item'), TypeVar('Result')
_STORE_BYTES = 100_000_000
"""What workers of this machine alone exchange are paths and words."""


@dataclass(frozen=True)
class Lost:
    """What came of an item whose worker died, or broke with something unforeseen; in words."""

    reason: str


def work_off(make: Callable[[], Callable[[Item], Result]], items: Sequence[Item], *, cpus: int = 1,
             gpu: bool = False, ready: Callable[[], object] = lambda: None,
             ) -> Iterator[tuple[Item, Result | Lost]]:
    """
    Work off items on all of a cluster, and yield each with what came of it, as they come.

    Workers have the folder that this process works in, so paths lead there alike.

    :param make: makes what works, once in each worker; both travel there, and so do results
    :param cpus: cores of a worker
    :param gpu: whether it needs a GPU of its own
    :param ready: called once the first worker has been made, before it is given anything
    :raises ValueError: where there is no Ray, no place for a worker, or one cannot be made
    """
    if not items:
        return
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError as error:
        raise ValueError('--ray needs Ray: pip install -r requirements/fleet.txt '
                         f'({error})') from None
    with _cluster(ray):
        there = ray.cluster_resources()
        places = int(there.get('GPU', 0) if gpu else there.get('CPU', 0) // cpus)
        if not places:
            raise ValueError(f'the Ray cluster has no {"GPU" if gpu else f"{cpus} cores"} for a '
                             'worker')
        worker = ray.remote(num_cpus=cpus, num_gpus=int(gpu), max_restarts=-1,
                            max_task_retries=1)(_Worker)
        actors = [worker.remote(make, os.getcwd()) for _ in range(min(places, len(items)))]
        waiting = deque(items)
        # Only one that has been made is given work: it may have to wait for its place.
        beginning = {actor.complaint.remote(): actor for actor in actors}
        running: dict[Any, tuple[Any, Item]] = {}
        is_ready = False
        while waiting or running:
            (done,), _ = ray.wait([*beginning, *running], num_returns=1)
            if done in beginning:
                actor = beginning.pop(done)
                if complaint := ray.get(done):
                    raise ValueError(complaint)
                if not is_ready:
                    is_ready = True
                    ready()
            else:
                actor, item = running.pop(done)
                try:
                    yield item, ray.get(done)
                except RayTaskError as error:  # What the worker itself raised.
                    yield item, Lost(f'{type(error.cause).__name__}: {error.cause}')
                except RayError as error:
                    yield item, Lost(f'its worker died, twice: {error}')
            if waiting:
                item = waiting.popleft()
                running[actor.work.remote(item)] = actor, item


class _Worker:
    """In a process of its own."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]], folder: str) -> None:
        self._complaint, self._works = '', None
        try:
            os.chdir(folder)
            self._works = make()
        except (ValueError, OSError) as error:  # What is said in words, not shown as a traceback.
            self._complaint = str(error)

    def complaint(self) -> str:
        return self._complaint

    def work(self, item: Any) -> Any:
        assert self._works is not None
        return self._works(item)


@contextmanager
def _cluster(ray: Any) -> Iterator[None]:
    """Join the cluster that RAY_ADDRESS names, or that runs here, or begin one and end it."""
    if ray.is_initialized():
        yield
        return
    address = os.environ.get('RAY_ADDRESS', 'auto')
    quiet = dict(log_to_driver=False, logging_level='error')
    try:
        if address == 'local':
            raise ConnectionError
        ray.init(address=address, **quiet)
    except ConnectionError:
        if address not in ('auto', 'local'):
            raise ValueError(f'there is no Ray cluster at {address} (RAY_ADDRESS)') from None
        ray.init(address='local', include_dashboard=False, object_store_memory=_STORE_BYTES,
                 **quiet)
    try:
        yield
    finally:
        ray.shutdown()
