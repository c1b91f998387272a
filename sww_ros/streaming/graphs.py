"""
CUDA graphs: what a GPU does in a pass, recorded once for each form and then launched as one.

A decode step of a 3B model is some 800 kernels of a few microseconds each. To launch them one by
one takes Python several times as long as they take themselves.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
import logging
import threading
from typing import NamedTuple, Protocol

import torch

MOST = 64
"""Forms that a thread keeps; of more, those that have not come for longest are forgotten."""

Tensors = Sequence[torch.Tensor]
Work = Callable[..., Tensors]


class Runs(Protocol):
    """What does work on tensors; `Graphs` is one."""

    def run(self, form: Hashable, work: Work, inputs: Tensors) -> Tensors:
        """
        Return what `work` makes of the inputs.

        :param form: what tells this work from others. The same is launched for the same form,
            whatever the inputs hold, so nothing but their contents may differ: no shape, no address
            of what is read or written beside them, no branch
        :param work: is given the inputs one by one; done twice it does what it does once
        """


class _Recorded(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: Tensors
    outputs: Tensors

    def replay(self, inputs: Tensors) -> Tensors:
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.graph.replay()
        # The next replay writes to the same place.
        return [output.clone() for output in self.outputs]


class _Thread:
    """The graphs of a thread, which share their memory, as it replays one after the other."""

    def __init__(self, device: torch.device) -> None:
        self.device, self._pool = device, torch.cuda.graph_pool_handle()
        self._side, self._is_set_up = torch.cuda.Stream(device), False
        self.found: OrderedDict[Hashable, _Recorded | None] = OrderedDict()

    def record(self, work: Work, inputs: Tensors) -> _Recorded:
        """Record work; what other threads do meanwhile is left out of it, and goes on."""
        own, current = [each.clone() for each in inputs], torch.cuda.current_stream(self.device)
        graph = torch.cuda.CUDAGraph()
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            if not self._is_set_up:  # What libraries set up on a stream cannot be recorded.
                work(*own)
                self._is_set_up = True
            graph.capture_begin(pool=self._pool, capture_error_mode='thread_local')
            try:
                outputs = work(*own)
            finally:
                graph.capture_end()
        current.wait_stream(self._side)
        return _Recorded(graph, own, outputs)


class Graphs:
    """
    Work by its form: done as it is the first time, recorded when it comes again, then replayed.

    So what comes once, as a prefix does, is not recorded. What cannot be recorded goes on as it is.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._mine = device, threading.local()
        self._gave_up = False

    @torch.inference_mode()
    def run(self, form: Hashable, work: Work, inputs: Tensors) -> Tensors:
        """Do work, as `Runs` says."""
        if self._gave_up:
            return work(*inputs)
        mine = self._thread()
        key = form, *(each.shape for each in inputs)
        comes_again, recorded = key in mine.found, mine.found.pop(key, None)
        if comes_again and recorded is None:
            try:
                recorded = mine.record(work, inputs)
            except RuntimeError as error:
                self._gave_up = True
                logging.getLogger(__name__).warning(
                    'passes are launched kernel by kernel, which is slower: %s', error)
                return work(*inputs)
        mine.found[key] = recorded
        if len(mine.found) > MOST:
            mine.found.popitem(last=False)
        return recorded.replay(inputs) if recorded else work(*inputs)

    def _thread(self) -> _Thread:
        if not hasattr(self._mine, 'graphs'):
            self._mine.graphs = _Thread(self._device)
        return self._mine.graphs


def graphs_for(device: torch.device) -> Runs | None:
    """Return what records passes for a device; None where Python launches fast enough."""
    return Graphs(device) if device.type == 'cuda' else None
