"""What measurements share: the command, rounds, plots, models, ways to share cores, timed jobs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
import json
import os
from pathlib import Path
import platform
from statistics import mean
import time
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from tqdm import tqdm
import transformers

import sww_ros
from sww_ros.evaluation.random_model import QWEN2_5_VL_3B, random_checkpoint, shape
from sww_ros.models.loading import load
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.choosing import Choice, choose_overlap
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import Event, FirstSight
from sww_ros.streaming.generation import Vocabulary
from sww_ros.streaming.jobs import Decode, Input, Job
from sww_ros.streaming.pace import measure
from sww_ros.streaming.positions import DEFAULT_SCHEME
from sww_ros.streaming.processes import ForkingRunner
from sww_ros.streaming.runner import ModelRunner
from sww_ros.streaming.session import Session

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Case, Result = TypeVar('Case', bound=Hashable), TypeVar('Result')

MODELS = {'--models': dict(nargs='+', default=['builtin', 'medium'], metavar='MODEL')}
SIDE = {'--side': dict(type=int, default=0, help='width of a frame in pixels; by default 112 for '
                                                 'medium, else 84')}
DEVICE = {'--device': dict(default='cpu', help="where models run: 'cpu', 'cuda', ..."),
          '--dtype': dict(default='', help='type of the weights; fp32 if not given')}
WARM = {'--warm': dict(type=int, default=0, metavar='STEPS',
                       help='of each stream before the clock starts; on a GPU, where passes are '
                            'recorded when they come again, 4')}
PATIENCE_S = 600.0


@dataclass(frozen=True)
class Measurement:
    """
    A command, `python -m sww_ros.benchmark NAME`.

    `run` measures what the options ask for, and returns figures ready for JSON, a `summary` among
    them; `draw` draws them into a file. `options` are its own, with argparse's keywords; `check`
    says what is wrong with what was given, if anything is.
    """

    name: str
    words: str
    run: Callable[[argparse.Namespace], dict]
    options: dict[str, dict]
    draw: Callable[[dict, Path], None] | None = None
    check: Callable[[argparse.Namespace], str] = field(default=lambda given: '')

    def main(self, arguments: list[str] | None = None) -> None:
        """Measure, print the summary, write all with the machine, and the plot where wanted."""
        given = self._parse(arguments)
        result = self.run(given)
        print(json.dumps(result['summary'], indent=1), flush=True)
        if given.json:
            given.json.write_text(json.dumps(dict(machine=machine(), **result), indent=1) + '\n')
        if self.draw and given.picture:
            self.draw(result, given.picture)

    def _parse(self, arguments: list[str] | None) -> argparse.Namespace:
        parser = argparse.ArgumentParser(prog=f'python -m sww_ros.benchmark {self.name}',
                                         description=self.words)
        files = {'--json': 'where all figures go'}
        if self.draw:
            files['--picture'] = 'where a plot of them goes'
        for name, words in files.items():
            parser.add_argument(name, type=Path, metavar='FILE', help=words)
        for name, options in self.options.items():
            parser.add_argument(name, **options)
        given = parser.parse_args(arguments)
        # What could not be written in the end is refused before anything is measured.
        for name in files:
            file = getattr(given, name.strip('-'))
            if file and not file.absolute().parent.is_dir():
                parser.error(f'there is no folder {file.absolute().parent}')
        if complaint := self.check(given):
            parser.error(complaint)
        return given


def repeats(count: int) -> dict[str, dict]:
    """Return the option of how often each case is measured, for `Measurement.options`."""
    return {'--repeats': dict(type=int, default=count)}


def alternate(what: str, cases: Iterable[Case], count: int, run: Callable[[int, Case], Result],
              warm_up: int = 0) -> dict[Case, list[Result]]:
    """
    Return `count` results of each case, measured in turn: what disturbs the machine meets all.

    :param run: is given the number of the round, negative in those that warm up and do not count
    """
    found: dict[Case, list[Result]] = {case: [] for case in cases}
    rounds = [(index, case) for index in range(-warm_up, count) for case in found]
    progress = tqdm(rounds, desc=what, unit='run', disable=None)
    for index, case in progress:
        progress.set_postfix_str(str(case))
        result = run(index, case)
        if index >= 0:
            found[case].append(result)
    return found


@contextmanager
def panels(file: Path, count: int, width: float = 5.5, **shared: bool) -> Iterator[list[Axes]]:
    """Give so many axes to be drawn on, side by side, and write them into a file."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    figure, axes = plt.subplots(1, count, squeeze=False, figsize=(width * count, 3.8), **shared)
    yield list(axes[0])
    for axis in axes[0]:
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def milliseconds(seconds: float) -> float:
    """Return seconds in milliseconds, to be read."""
    return round(seconds * 1e3, 4)


@contextmanager
def torch_threads(count: int | None = None) -> Iterator[None]:
    """Have torch compute on so many threads; afterwards on as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def machine() -> dict:
    """Return processors, cores, operating system and versions, ready for JSON."""
    gpu = dict(gpu=torch.cuda.get_device_name()) if torch.cuda.is_available() else {}
    return gpu | dict(
        processor=_processor(), cores=len(os.sched_getaffinity(0)), system=platform.platform(),
        python=platform.python_version(), sww_ros=sww_ros.__version__, torch=torch.__version__,
        transformers=transformers.__version__, numpy=np.__version__)


def _processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.machine()


# Models, and what they are shown.

SHAPES = dict(
    small=shape(512, 2048, 8, 8, 2, depth=4, hidden_size=256, intermediate_size=768,
                 window_size=112, fullatt_block_indexes=[3]),
    medium=shape(1024, 4096, 8, 16, 4, depth=4, hidden_size=512, intermediate_size=1536,
                  window_size=112, fullatt_block_indexes=[3]),
    large=QWEN2_5_VL_3B)
"""Random models: 35 M parameters, 142 M, and those of Qwen2.5-VL-3B, for a GPU."""
TOKENS = dict(large=151936)
"""Rows of the embedding, where it is not the tokenizer's own: all of them are read for a token."""


def hollow(layers: int) -> Checkpoint:
    """Return a checkpoint so narrow that a step is what its layers cost in Python and dispatch."""
    return random_checkpoint(
        shape(16, 16, layers, 4, 1, depth=1, hidden_size=32, intermediate_size=48,
               window_size=56, fullatt_block_indexes=[0]), 0, max_steps=1000)[1]


def random_of(name: str, seed: int = 0, device: str = 'cpu', dtype: str = '',
              **streaming: object) -> tuple[Any, Checkpoint]:
    """
    Return a model of `SHAPES` as transformers has it, and a checkpoint of the same weights.

    :param dtype: the name of a type; empty: fp32
    :param streaming: entries for the config's `speak_while_watching`
    """
    return random_checkpoint(SHAPES[name], seed, getattr(torch, dtype or 'float32'), device,
                             TOKENS.get(name), **streaming)


def tireless(name: str, device: str = 'cpu', dtype: str = '') -> Checkpoint:
    """
    Return a model by its name: one of `SHAPES`, 'builtin', a folder or a hub id.

    No token of its is silence or the end of a turn, so that all that may be said is said.

    :param dtype: as `load` takes it; empty: fp32
    :raises CheckpointError: for a model that cannot be used
    """
    if name in SHAPES:
        checkpoint = random_of(name, 0, device, dtype, max_steps=1000)[1]
    else:
        checkpoint = load(name, device=device, dtype=dtype)
    return replace(checkpoint, name=name, vocabulary=Vocabulary(frozenset()))


def of_models(given: argparse.Namespace, play: Callable[[Checkpoint, argparse.Namespace], dict],
              summarize: Callable[[dict], dict], *settings: str) -> dict:
    """Return what `play` measures of each model asked for, summaries first, and some options."""
    of = vars(given)
    models = [play(tireless(name, of.get('device', 'cpu'), of.get('dtype', '')), given)
              for name in given.models]
    return dict({name: getattr(given, name) for name in settings},
                summary=[summarize(model) for model in models], models=models)


def frame_side(name: str, side: int = 0) -> int:
    """Return the width and height [pixels] of frames for a model; `side` where it is given."""
    return side or (112 if name == 'medium' else 84)


def noise(steps: int, side: int, seed: int = 0) -> list[np.ndarray]:
    """Return random frames for so many steps, two a step."""
    rng = np.random.default_rng(seed)
    return list(rng.integers(0, 256, (2 * steps, side, side, 3), np.uint8))


# Ways to share the cores.

@dataclass(frozen=True)
class Side:
    """One way to share the cores; `threads` are torch's, of each side."""

    overlap: str = 'serial'
    position_encoding: str = DEFAULT_SCHEME
    threads: int = 1

    def config(self, **settings: object) -> SessionConfig:
        """Return the settings of a session that runs so, on one stream."""
        return SessionConfig(overlap=self.overlap, position_encoding=self.position_encoding,
                             threads=self.threads, memory=0, **settings)


INTERLEAVED = {f'interleaved@{threads}': Side('serial', 'interleaved', threads)
               for threads in (1, 2)}
ALONE = 'serial@1'
"""One side after the other on one thread: each alone."""
ENGINES = {ALONE: Side(), 'serial@2': Side(threads=2), 'fused@1': Side('fused'),
           'fused@2': Side('fused', threads=2), 'threads@1': Side('threads'),
           'processes@1': Side('processes')}
"""Group-decoupled, by executor and torch threads of each side."""


def choose(checkpoint: Checkpoint, wait_k: int, side: int) -> Choice:
    """Return what `overlap: auto` takes for frames of `side` pixels."""
    config = SessionConfig(wait_k=wait_k, frame_width=side, frame_height=side)
    return choose_overlap(checkpoint, config, measure(checkpoint, config))


def possible(sides: dict[str, Side], checkpoint: Checkpoint) -> dict[str, Side]:
    """Return the sides that a model's device can have: a GPU no threads, and no second process."""
    if checkpoint.decoder.device.type == 'cpu':
        return sides
    return {name: side for name, side in sides.items()
            if side.threads == 1 and side.overlap != 'processes'}


def with_choice(sides: dict[str, Side], choice: Choice) -> dict[str, Side]:
    """Return the sides and, if it is not among them, what auto has chosen."""
    name = f'{choice.overlap}@{choice.threads}'
    return sides | {name: Side(choice.overlap, threads=choice.threads)}


def chosen_of(result: dict) -> str:
    """Return the name, `overlap@threads`, of what auto has chosen."""
    return f'{result["choice"]["overlap"]}@{result["choice"].get("threads", 1)}'


# Sessions that are timed.

class Span(NamedTuple):
    """The jobs of one pass, and from when to when they ran, on `time.monotonic_ns`."""

    jobs: Sequence[Job]
    start_ns: int
    stop_ns: int

    @property
    def seconds(self) -> float:
        return (self.stop_ns - self.start_ns) / 1e9

    @property
    def speakers(self) -> int:
        """How many turns were taken in it; 0 for perception alone."""
        return sum(len(job.turns) for job in self.jobs if isinstance(job, Decode))


class _Timed(ModelRunner):
    def __init__(self, *arguments: object) -> None:
        self.spans: list[Span] = []
        super().__init__(*arguments)

    def begin(self, jobs: Sequence[Job]) -> Callable[[], list[Input]]:
        start, finish = time.monotonic_ns(), super().begin(jobs)

        def finished() -> list[Input]:
            results = finish()
            # From either thread: appending is atomic.
            self.spans.append(Span(jobs, start, time.monotonic_ns()))
            return results
        return finished


class _TimedFork(_Timed, ForkingRunner):
    pass


class TimedSession(Session):
    """A session with `spans`, in the order in which they ended."""

    def _make_runner(self, *arguments: object) -> ModelRunner:
        return (_TimedFork if self._overlap == 'processes' else _Timed)(*arguments)

    @property
    def spans(self) -> list[Span]:
        return [*self._runner.spans]


def mean_seconds(spans: Sequence[Span], kind: type[Job]) -> float:
    """Return the mean time of the passes that did one job of a kind; 0.0 if none did."""
    return mean([span.seconds for span in spans
                 if len(span.jobs) == 1 and isinstance(span.jobs[0], kind)] or [0.0])


def feed(session: Session, frames: Iterable[np.ndarray]) -> int:
    """Feed frames at once; return when they began to come, on `time.monotonic_ns`."""
    came_ns = time.monotonic_ns()
    for frame in frames:
        session.feed(frame)
    return came_ns


def wait_for(session: Session, wanted: Callable[[Event], bool]) -> Event:
    """
    Return the next event that is wanted.

    :raises RuntimeError: when the engine falls silent before
    """
    while (event := session.poll(PATIENCE_S)) is not None:
        if wanted(event):
            return event
    raise RuntimeError('the engine fell silent')


def first_sight(session: Session, index: int) -> FirstSight:
    """Wait until a token has seen a step, and return when; errors as of `wait_for`."""
    return wait_for(session, lambda event: isinstance(event, FirstSight) and event.index == index)
