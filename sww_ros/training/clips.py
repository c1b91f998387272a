"""
The clips of a training: which sample comes when, its pixels and its rows, and batches of them.

A clip is one sample as the model trains on it: the engine's own pixels, rows of text and video.
In a batch clips stand side by side, padded, or several in one row, packed; they never see each
other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
import functools
from itertools import chain
import threading

import numpy as np
import torch

from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.layout import IGNORE, ClipShape, lay_out
from sww_ros.streaming.perception import Perception, fit_size, shrunk
from sww_ros.streaming.positions import Scheme, make_scheme
from sww_ros.streaming.schedule import Schedule, make_schedule, spread
from sww_ros.streaming.trace import VIDEO
from sww_ros.streaming.visibility import VISUAL_LANE, Visibility
from sww_ros.training.conversations import heard_in
from sww_ros.training.frames import READ_FACTOR, Sample, VideoError, read_frames
from sww_ros.training.recipe import Recipe, StreamSettings


@dataclass(frozen=True)
class ClipWords:
    """
    Token ids of one clip's text.

    `answer` ends in the token that ends the turn, or, with silence in it, with the video.
    """

    prefix: Sequence[int]
    tail: Sequence[int]
    head: Sequence[int]
    answer: Sequence[int]


@dataclass(frozen=True)
class ClipRows:
    """
    n rows: `ids` (VIDEO where a merged visual token stands), `labels` (n,), `positions` (3, n).

    `labels[i]` is the token that row i has to predict, or IGNORE. Rows of video stand in the
    order of time, rows and columns.
    """

    ids: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    rows: Visibility

    def __len__(self) -> int:
        return len(self.ids)


StepText = tuple[list[int], list[int]]
"""Token ids before and after the visual rows of a step."""


def lay_clip(scheme: Scheme, schedule: Schedule, words: ClipWords, steps: Sequence[StepText],
             grid: tuple[int, int], max_steps: int) -> ClipRows:
    """
    Lay out a clip whose video ends with the last step; each has `grid` merged tokens.

    They are the rows of a live run of the same clip whose tokens are forced to be these.

    :param steps: of each step its text
    :param max_steps: the engine's own bound, for which `offline` positions leave room
    """
    layout = lay_out(scheme, schedule, ClipShape(
        len(words.prefix), [grid] * len(steps), len(words.head), len(words.answer),
        max_steps=max_steps, around=[(len(before), len(after)) for before, after in steps]))
    ids, labels = np.full(len(layout), VIDEO), np.full(len(layout), IGNORE)
    for name, tokens in vars(words).items():
        ids[getattr(layout, 'narration' if name == 'answer' else name)] = tokens
    visual = [VIDEO] * (grid[0] * grid[1])
    ids[layout.visual] = np.concatenate([[*before, *visual, *after] for before, after in steps])
    labels[layout.predicting] = words.answer
    return ClipRows(ids, labels, layout.positions, layout.rows)


@dataclass(frozen=True)
class Clip:
    """`patches` (steps * 4 * tokens, pixels); `grid` (steps, rows, columns) of merged tokens."""

    patches: torch.Tensor
    grid: tuple[int, int, int]
    rows: ClipRows


class ClipMaker:
    """Makes clips for one checkpoint and recipe; may be used by several threads."""

    def __init__(self, about: Checkpoint, net: torch.nn.Module, recipe: Recipe) -> None:
        """
        Take what the clips depend on.

        :param about: the checkpoint, for its tokenizer
        :param net: transformers' model on a CPU; only its tower's type and shapes are used
        :raises ValueError: for a checkpoint that is asked turn by turn, which is not laid out here,
            pixels that it cannot take, or silence that is no token of its own
        """
        if about.turns.steps_per_turn:
            raise ValueError(f'{about.name} is asked turn by turn, which cannot be trained yet')
        self._recipe, self.settings = recipe, StreamSettings.of(about, recipe)
        # The time that is written before a step is that of the recipe's frame rate.
        self._about = replace(about, defaults=self.settings.defaults)
        self._perception = Perception(about.family.vision(net), self.settings.pixels)
        self.scheme: Scheme = make_scheme(
            recipe.position_encoding, self.settings.defaults.clock, recipe.position_gap)
        turns = about.turns
        self._tail, self._head = about.encode(turns.tail), about.encode(turns.assistant)
        self._end = about.encode(turns.end)
        self._silence = about.encode(recipe.silence)
        if recipe.silence and len(self._silence) != 1:
            raise ValueError(f'silence must be one token of the checkpoint, and {recipe.silence!r} '
                             f'is {len(self._silence)}')

    def read(self, sample: Sample) -> np.ndarray:
        """
        Return a sample's frames, (n, H, W, 3) uint8 RGB.

        :raises VideoError: for what cannot be read, perceived, or is too long
        """
        per_step = self.settings.pixels.temporal_patch_size
        most = self.settings.defaults.max_steps
        frames = read_frames(sample, self._recipe.fps, frames_per_step=per_step,
                             max_pixels=READ_FACTOR * self.settings.pixels.max_pixels,
                             shrink=functools.partial(shrunk, settings=self.settings.pixels),
                             max_frames=(most + 1) * per_step)
        steps = len(frames) // per_step
        if steps > most:
            raise VideoError(f'{sample.video} has more than {most} steps of {per_step} frames, '
                             'the most that the engine keeps: raise --max-steps, or cut it')
        try:
            size = fit_size(*frames.shape[1:3], self.settings.pixels)
        except ValueError as error:
            raise VideoError(f'{sample.video}: {error}') from None
        schedule = make_schedule('wait_k', self._recipe.wait_k)  # Others grant no more.
        rows = steps * int(np.prod(self._perception.grid(*size))) + sum(
            len(part) for part in (*vars(self.words(sample, schedule, steps)).values(),
                                   *chain.from_iterable(self._around(steps))))
        most = self._recipe.max_rows
        if self._recipe.pack and rows > most:
            raise VideoError(f'{sample.video} makes {rows} rows, more than {most}: raise '
                             '--max-rows, or lower --max-pixels')
        return frames

    def words(self, sample: Sample, schedule: Schedule, steps: int) -> ClipWords:
        """Return the tokens of a sample's text; what users wrote is only text."""
        encode, turns = self._about.encode, self._about.turns
        answer = (self._timed(sample, schedule, steps) if self._silence and sample.timed
                  else encode('', sample.answer) + self._end)
        return ClipWords(encode(*turns.prefix(self.settings.defaults.system, sample.prompt)),
                         self._tail, self._head, answer)

    def _timed(self, sample: Sample, schedule: Schedule, steps: int) -> list[int]:
        """Return the tokens of timed words, each said from the step on in which it was heard."""
        due: list[list[int]] = [[] for _ in range(steps)]
        for at_s, word in sample.timed:
            step = heard_in(at_s, self.settings.defaults.seconds_per_step)
            due[min(max(step, 0), steps - 1)] += self._about.encode('', f' {word}')
        counts = [schedule.granted(step + 1) - schedule.granted(step) for step in range(steps)]
        return spread(due, counts, *self._silence)

    def _around(self, steps: int) -> list[StepText]:
        return [self._about.text_of_step(index) for index in range(steps)]

    def make(self, sample: Sample, frames: np.ndarray, schedule_seed: int = 0) -> Clip:
        """
        Return the clip of a sample's frames, (n, H, W, 3) uint8 RGB.

        :param schedule_seed: what `random_wait_k` draws from
        """
        recipe, per_step = self._recipe, self.settings.pixels.temporal_patch_size
        size = fit_size(*frames.shape[1:3], self.settings.pixels)
        cut = functools.partial(self._perception.patches, height=size[0], width=size[1])
        patches = [cut(frames[at:at + per_step]) for at in range(0, len(frames), per_step)]
        grid = self._perception.grid(*size)
        schedule = make_schedule(recipe.schedule, recipe.wait_k, schedule_seed)
        words = self.words(sample, schedule, len(patches))
        rows = lay_clip(self.scheme, schedule, words, self._around(len(patches)), grid,
                        self.settings.defaults.max_steps)
        return Clip(torch.cat(patches), (len(patches), *grid), rows)


class ClipFeed:
    """
    Clips by their place in the training, from 0, through as many epochs as there are.

    What is at a place depends on nothing before it. A video that cannot be read is reported once;
    in its place stands the next one of that epoch that can, which is then seen twice.
    """

    def __init__(self, samples: Sequence[Sample], maker: ClipMaker, seed: int, readers: int,
                 warn: Callable[[str], None]) -> None:
        """
        Take the samples; `readers` threads decode their videos, once there is a call for it.

        :param warn: told of each video that cannot be read
        :raises ValueError: for no samples
        """
        if not samples:
            raise ValueError('there are no samples to train on')
        self._samples, self._maker, self._seed = samples, maker, seed
        self._readers, self._warn = readers, warn
        self._broken: set[int] = set()
        self._lock = threading.Lock()

    def clip(self, place: int) -> Clip:
        """
        Return the clip at a place.

        :raises VideoError: where not a single video can be read
        """
        epoch, within = divmod(place, len(self._samples))
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._samples)).tolist()
        drawn = np.random.SeedSequence([self._seed, place]).generate_state(1)
        for index in order[within:] + order[:within]:
            if index in self._broken:
                continue
            sample = self._samples[index]
            try:
                return self._maker.make(sample, self._maker.read(sample), int(drawn[0]))
            except VideoError as error:
                self._pass_over(index, error)
        raise VideoError(f'not one of {len(self._samples)} videos can be read; see the warnings '
                         'above')

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

    def _pass_over(self, index: int, error: VideoError) -> None:
        """Two threads may come upon the same broken video at once."""
        with self._lock:
            if index not in self._broken:
                self._broken.add(index)
                self._warn(f'{self._samples[index].source}: {error}; the next sample takes its '
                           'place')


_PADDED = -1
"""The clip of rows that only fill; they see each other, as a softmax needs something."""


@dataclass(frozen=True)
class Batch:
    """
    B rows of L columns, made of clips.

    `ids`, `labels`, `clip`, `lane`, `step`, `sees` (B, L) int64, `positions` (3, B, L);
    `patches` (all, pixels) and `grids` (clips, 3), in patches, in the order in which the clips
    stand. `ids` is VIDEO, -1, where a merged visual token goes.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    clip: torch.Tensor
    lane: torch.Tensor
    step: torch.Tensor
    sees: torch.Tensor
    patches: torch.Tensor
    grids: torch.Tensor

    @property
    def answer_tokens(self) -> int:
        return int((self.labels != IGNORE).sum())

    @property
    def rows(self) -> int:
        """Rows that are not padding."""
        return int((self.clip != _PADDED).sum())

    def to(self, device: torch.device) -> Batch:
        return Batch(**{name: value.to(device, non_blocking=True)
                        for name, value in vars(self).items()})

    def mask(self) -> torch.Tensor:
        """The dense mask, (B, 1, L, L) bool: True where row i attends to row j."""
        found = []
        for clip, *rows in zip(*(part.cpu().numpy()
                                 for part in (self.clip, self.lane, self.step, self.sees))):
            found.append(Visibility(*rows).mask() & (clip[:, None] == clip))
        return torch.from_numpy(np.stack(found))[:, None].to(self.ids.device)


def pad(clips: Sequence[Clip], whole: int = 1) -> Batch:
    """Put each clip into a row of its own, filled up to a multiple of `whole` columns."""
    return _batch([[clip] for clip in clips], whole)


def pack(clips: Sequence[Clip], whole: int = 1) -> Batch:
    """Put all clips into one row, one after the other, filled up likewise."""
    return _batch([clips], whole)


def gathered(clips: Iterable[Clip], most: int, size: Callable[[Clip], int]) -> Iterator[list[Clip]]:
    """Yield the clips in lists whose sizes add up to at most `most`; a clip is never cut."""
    waiting: list[Clip] = []
    for clip in clips:
        if waiting and sum(map(size, waiting)) + size(clip) > most:
            yield waiting
            waiting = []
        waiting.append(clip)
    if waiting:
        yield waiting


def _batch(lines: Sequence[Sequence[Clip]], whole: int) -> Batch:
    """Put each list of clips into one row."""
    length = max(sum(len(clip.rows) for clip in line) for line in lines)
    length += -length % whole
    shape = len(lines), length
    columns = dict(ids=np.zeros(shape, np.int64), labels=np.full(shape, IGNORE),
                   clip=np.full(shape, _PADDED), lane=np.full(shape, VISUAL_LANE),
                   step=np.zeros(shape, np.int64), sees=np.zeros(shape, np.int64))
    positions = np.zeros((3, *shape), np.int64)
    for row, line in enumerate(lines):
        at = 0
        for number, clip in enumerate(line):
            laid = clip.rows
            here = slice(at, at + len(laid))
            for name, value in (('ids', laid.ids), ('labels', laid.labels), ('clip', number),
                                ('lane', laid.rows.lane), ('step', laid.rows.step),
                                ('sees', laid.rows.sees)):
                columns[name][row, here] = value
            positions[:, row, here] = laid.positions
            at += len(laid)
    clips = [clip for line in lines for clip in line]
    # The tower counts patches, 2 x 2 of them in a merged token.
    grids = [(steps, 2 * height, 2 * width) for steps, height, width in
             (clip.grid for clip in clips)]
    return Batch(**{name: torch.from_numpy(value) for name, value in columns.items()},
                 positions=torch.from_numpy(positions),
                 patches=torch.cat([clip.patches for clip in clips]), grids=torch.tensor(grids))
