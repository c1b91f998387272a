"""
What a checkpoint takes of memory, known before its weights are read.

There is one computation of it: `python -m sww_ros.models MODEL --plan` prints it, and what does not
fit is refused by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
import re

import torch

from sww_ros.models.files import CheckpointError
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.runner import lane_bytes, minute_bytes

MEMINFO = Path('/proc/meminfo')
CGROUP = Path('/sys/fs/cgroup')
_ROLLUP = Path('/proc/self/smaps_rollup')


@dataclass(frozen=True)
class MemoryPlan:
    """
    What a session takes of memory with a checkpoint in one precision [bytes].

    `weights` are those of the language model in the forms in which they are multiplied, `vision`
    those of its tower. `lanes` are keys and values of the video at most, two streams' with a relay,
    and `minute` those of a minute of it. `loading` is what is needed beside the weights while they
    are read, when there are no lanes yet.
    """

    precision: str
    weights: int
    vision: int
    lanes: int
    minute: int
    loading: int

    @property
    def total(self) -> int:
        """What it takes once its streams are full."""
        return self.weights + self.vision + self.lanes

    @property
    def peak(self) -> int:
        """The most that it ever takes."""
        return self.weights + self.vision + max(self.lanes, self.loading)


def plan_of(outline: Checkpoint, device: str, session: SessionConfig | None = None,
            packed: bool = False) -> MemoryPlan:
    """
    Return what a checkpoint takes on a device, and what a session with it does.

    :param outline: the checkpoint, its weights on the device 'meta'
    :param session: its settings; without, there are no lanes
    :param packed: whether its files are packed, which are unpacked all at once
    :raises ValueError: for settings that do not go with the checkpoint
    """
    decoder, perception = outline.decoder, outline.perception
    matrices = decoder.model.matrices()
    one, layers = decoder.dtype.itemsize, sum(matrix.numel for matrix in matrices)
    others = outline.parameters - perception.parameters - layers
    found = session.resolved(outline) if session else None
    held = sum(matrix.bytes_on(torch.device(device)) for matrix in matrices)
    return MemoryPlan(
        precision=decoder.precision, weights=others * one + held,
        vision=perception.parameters * one,
        lanes=lane_bytes(outline, found) if found else 0,
        minute=minute_bytes(outline, found) if found else 0,
        loading=_loading_bytes(outline, device) + (max(0, one * layers - held) if packed else 0))


def _loading_bytes(outline: Checkpoint, device: str) -> int:
    """
    Return what there is beside all weights when the last layer is made [bytes].

    Layers are taken from their files one by one. When all matrices of one are in the forms in which
    they are multiplied, its weights are still there as they were read, and those that were put
    together once more. The whole numbers of a matrix are there twice as their parts are joined.
    """
    decoder = outline.decoder
    matrices = decoder.model.matrices()
    layer = matrices[:len(matrices) // decoder.layer_count]
    largest = max(layer, key=lambda matrix: matrix.numel)
    whole = 0 if decoder.quantize == 'none' else (
        2 * largest.numel - largest.bytes_on(torch.device(device)))
    twice = sum(matrix.numel for matrix in layer) + decoder.model.fused
    return twice * decoder.dtype.itemsize + whole


def check_memory(plan: MemoryPlan, available: int | None) -> None:
    """
    Refuse a checkpoint that cannot fit, before it makes the machine hang.

    :param available: free memory [bytes], None if unknown
    :raises CheckpointError: when the most that it takes is more than that
    """
    if available is None or plan.peak <= available:
        return
    what, beside = (('lanes of its streams', plan.lanes) if plan.lanes > plan.loading else
                    ('while they are read', plan.loading))
    ways = [] if '16' in plan.precision else ['dtype to bfloat16']
    ways += [] if 'int4' in plan.precision else ['quantize to int4']
    narrower = f'set {" or ".join(ways)}, ' if ways else ''
    raise CheckpointError(
        f'it needs {megabytes(plan.peak)} of memory (weights in {plan.precision} '
        f'{megabytes(plan.weights)}, its vision tower {megabytes(plan.vision)}, {what} '
        f'{megabytes(beside)}), and {megabytes(available)} are available: {narrower}close other '
        'programs, or take a smaller checkpoint, a smaller max_steps with its capacity, or smaller '
        'frames (frame_width, frame_height)')


class Characters:
    """Stands for a tokenizer that is not there: more tokens of a text than any would make."""

    unk_token_id = eos_token_id = None

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return dict(input_ids=[0 for _ in re.findall(r'<\|\w+\|>|.', text, re.DOTALL)])

    def __len__(self) -> int:
        return 0

    def convert_tokens_to_ids(self, token: str) -> int:
        return 0


def megabytes(count: int) -> str:
    """Return a number of bytes to be read."""
    return f'{count / 1e6:,.0f} MB'


def available_bytes(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int | None:
    """Return the memory that a new process can have [bytes]; None where Linux does not say."""
    try:
        fields = dict(line.split(':', 1) for line in meminfo.read_text().splitlines())
        available = int(fields['MemAvailable'].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:  # A container may be allowed less than the machine has.
        limit = int((cgroup / 'memory.max').read_text())
        used = int((cgroup / 'memory.current').read_text())
        stat = dict(line.split() for line in (cgroup / 'memory.stat').read_text().splitlines())
        available = min(available, limit - used + int(stat['inactive_file']))
    except (OSError, KeyError, ValueError):
        pass  # No limit ('max'), or no such control group.
    return max(available, 0)


def process_bytes() -> int | None:
    """Return what this process takes of memory now [bytes], its share of what others have too."""
    try:
        fields = dict(line.split(':', 1) for line in _ROLLUP.read_text().splitlines()[1:])
        return int(fields['Pss'].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
