"""
Those who narrate in the peers' benchmark, each played and timed alike.

All have the same weights, frames and tokens a step, and nothing stops one early: no token is
silence or the end of a turn. Those made of stock modules are as good as stock modules can be:
greedy, no token and no row computed twice where the way does not ask for it, and the engine's own
preprocessing of pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
import time
from types import SimpleNamespace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.cache_utils import Cache, DynamicCache, StaticCache
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import rotate_half

from sww_ros.benchmark.full_load import run_once
from sww_ros.benchmark.harness import (
    PATIENCE_S,
    SHAPES,
    Side,
    feed,
    first_sight,
    noise,
    possible,
    random_of,
    wait_for,
)
from sww_ros.models.loading import CheckpointError, load, load_stock
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.events import QuestionState
from sww_ros.streaming.generation import Vocabulary
from sww_ros.streaming.perception import fit_size
from sww_ros.streaming.positions import step_positions, text_positions
from sww_ros.streaming.session import Session


class TimedTokens(NamedTuple):
    """Tokens, and when each was there, on `time.monotonic_ns`."""

    tokens: list[int]
    times_ns: list[int]


@dataclass(frozen=True)
class Stock:
    """
    Transformers' model, and the token ids around a stream: before the video, after it, the turn.

    `grid` is in merged tokens; `seconds_per_step` is what `generate` wants to know.
    """

    model: Qwen2_5_VLForConditionalGeneration
    prefix: list[int]
    tail: list[int]
    head: list[int]
    grid: tuple[int, int]
    seconds_per_step: float = 1.0

    def grid_thw(self, steps: int) -> torch.Tensor:
        """Return the grid of so many steps as the stock model wants it, in patches."""
        return self.there(torch.tensor([[steps, 2 * self.grid[0], 2 * self.grid[1]]]))

    def there(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor where the model is."""
        return tensor.to(self.model.device)


class StockNarrator(Protocol):
    """One stream: `see` a step's patches, then `say` some tokens about all that was seen."""

    def see(self, patches: torch.Tensor) -> None: ...

    def say(self, count: int) -> TimedTokens: ...


class Generate:
    """
    `model.generate()` on a prompt that is made anew for each step, as most nodes do it.

    :param newest: how many steps the prompt shows; 0: all, with all that was said
    """

    def __init__(self, stock: Stock, newest: int = 0) -> None:
        self._stock, self._newest = stock, newest
        self._steps: list[torch.Tensor] = []
        self._said: list[int] = []

    def see(self, patches: torch.Tensor) -> None:
        """Keep a step's patches."""
        self._steps = [*self._steps, patches][-self._newest:]

    @torch.inference_mode()
    def say(self, count: int) -> TimedTokens:
        """Encode the prompt and generate."""
        stock, model, steps = self._stock, self._stock.model, len(self._steps)
        video = [model.config.video_token_id] * (steps * stock.grid[0] * stock.grid[1])
        said = [] if self._newest else self._said
        ids = stock.there(torch.tensor([[
            *stock.prefix, *video, *stock.tail, *stock.head, *said]]))
        times: list[int] = []
        # What a streamer is given first is the prompt.
        streamer = SimpleNamespace(put=lambda _: times.append(time.monotonic_ns()),
                                   end=lambda: None)
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids),
            mm_token_type_ids=2 * (ids == model.config.video_token_id).int(),
            pixel_values_videos=torch.cat(self._steps), video_grid_thw=stock.grid_thw(steps),
            second_per_grid_ts=stock.there(torch.tensor([stock.seconds_per_step])), do_sample=False,
            max_new_tokens=count, eos_token_id=[], streamer=streamer)
        tokens = out[0, ids.shape[1]:].tolist()
        self._said += tokens
        return TimedTokens(tokens, times[1:])


def dynamic_cache(stock: Stock) -> Cache:
    """Return a cache that grows with every row, copied each time."""
    return DynamicCache(config=stock.model.config.text_config)


def static_cache(stock: Stock, rows: int) -> Cache:
    """Return a cache of so many rows, all of which are attended to under a mask."""
    return StaticCache(config=stock.model.config.text_config, max_cache_len=rows)


class _Part(NamedTuple):
    """Neighbouring rows for the cache; `extent` is how many positions they take up."""

    embeds: torch.Tensor
    positions: np.ndarray
    extent: int
    is_video: bool = False


class CarriedCache:
    """
    A key-value cache carried from step to step, video and text interleaved in it.

    The last token said goes into the cache with the next step, in one forward pass, whose last
    row gives the next token: a step costs `count` passes, not one more. What is computed is what
    the engine computes with interleaved positions.
    """

    def __init__(self, stock: Stock, make_cache: Callable[[Stock], Cache] = dynamic_cache) -> None:
        self._stock, self._cache = stock, make_cache(stock)
        self._text, self._head = stock.model.model.language_model, stock.model.lm_head
        self._table, self._tower = stock.model.get_input_embeddings(), stock.model.model.visual
        self._pending, self._begun, self._next = list(stock.head), False, 0
        self._logits: torch.Tensor | None = None
        self._run([self._words(stock.prefix)], False)

    @torch.inference_mode()
    def see(self, patches: torch.Tensor) -> None:
        """Encode one step into the cache, after the last token said."""
        parts = [self._words(self._pending)] if self._begun else []
        seen = self._tower(patches, grid_thw=self._stock.grid_thw(1)).pooler_output
        extent = max(self._stock.grid)
        parts.append(_Part(seen, step_positions(self._next, 0, *self._stock.grid), extent, True))
        self._next += extent
        self._logits = self._run(parts, self._begun)

    @torch.inference_mode()
    def say(self, count: int) -> TimedTokens:
        """Generate, one pass a token; the first comes out of the step's own pass."""
        spoken = TimedTokens([], [])
        for _ in range(count):
            if self._logits is None:
                self._logits = self._run([self._words(self._pending)], True)
            token = int(self._logits.argmax())
            self._pending, self._logits, self._begun = [token], None, True
            spoken.tokens.append(token)
            spoken.times_ns.append(time.monotonic_ns())
        return spoken

    def _words(self, ids: Sequence[int]) -> _Part:
        first, self._next = self._next, self._next + len(ids)
        return _Part(self._table(self._stock.there(torch.tensor(ids))),
                     text_positions(first, len(ids)), len(ids))

    @torch.inference_mode()
    def _run(self, parts: list[_Part], predict: bool) -> torch.Tensor | None:
        """Append rows to the cache; return the logits of the last one if asked for."""
        positions = np.concatenate([part.positions for part in parts], axis=1)
        hidden = self._text(
            inputs_embeds=torch.cat([part.embeds for part in parts])[None],
            position_ids=self._stock.there(torch.from_numpy(positions)[:, None]),
            past_key_values=self._cache, use_cache=True).last_hidden_state
        return self._head(hidden[0, -1]) if predict else None


class WindowedCache(CarriedCache):
    """
    A carried cache that keeps the prefix, the newest steps and the newest text (StreamingVLM).

    Positions stay contiguous: where rows leave, what comes after them moves up. That is a turn of
    the kept keys by one angle on all three axes, once a step instead of in every pass.

    :param steps: how many steps are kept, the one being seen among them
    :param text_tokens: how many tokens of text are kept
    """

    def __init__(self, stock: Stock, steps: int = 16, text_tokens: int = 512) -> None:
        self._steps, self._text_tokens = steps, text_tokens
        self._parts: list[tuple[bool, int, int]] = []
        super().__init__(stock)

    @torch.inference_mode()
    def see(self, patches: torch.Tensor) -> None:
        """Let the oldest go, then encode the step."""
        videos = [i for i, (is_video, _, _) in enumerate(self._parts) if is_video]
        gone = set(videos[:max(0, len(videos) - self._steps + 1)])
        texts = [i for i, (is_video, _, _) in enumerate(self._parts) if not is_video]
        surplus = sum(self._parts[i][1] for i in texts) - self._text_tokens
        for index in texts:
            if surplus > 0:
                gone.add(index)
                surplus -= self._parts[index][1]
        if gone:
            self._drop(gone)
        super().see(patches)

    def _drop(self, gone: set[int]) -> None:
        row = len(self._stock.prefix)
        kept, moved, up = list(range(row)), [0] * row, 0
        for index, (_, rows, extent) in enumerate(self._parts):
            if index in gone:
                up += extent
            else:
                kept += range(row, row + rows)
                moved += [up] * rows
            row += rows
        by = self._stock.there(torch.tensor(moved))[:, None]
        angles = by * self._text.rotary_emb.inv_freq.float()
        cos, sin = (torch.cat([part, part], dim=-1) for part in (angles.cos(), angles.sin()))
        for layer in self._cache.layers:
            keys = layer.keys[:, :, kept]
            layer.keys = (keys * cos - rotate_half(keys) * sin).to(keys.dtype)
            layer.values = layer.values[:, :, kept]
        self._next -= up
        self._parts = [part for i, part in enumerate(self._parts) if i not in gone]

    def _run(self, parts: list[_Part], predict: bool) -> torch.Tensor | None:
        if self._cache.get_seq_length():  # What comes first is the prefix, which always stays.
            self._parts += [(part.is_video, len(part.embeds), part.extent) for part in parts]
        return super()._run(parts, predict)


WAIT_K = 3
"""Tokens of narration a step."""
SIDE_BY_SIDE = ('threads', 'processes')
"""Overlaps in which each side has cores of its own: they get the fewest torch threads a side."""


@dataclass(frozen=True)
class Contest:
    """One model for all: as transformers has it, and taken apart for the engine; the frames."""

    stock: Stock
    checkpoint: Checkpoint
    frames: Sequence[np.ndarray]

    def patches(self, step: int) -> torch.Tensor:
        """Return what the vision tower is given of a step; made anew, as live frames are."""
        unit = self.checkpoint.perception.settings.unit
        frames = self.frames[2 * step:2 * step + 2]
        return self.checkpoint.perception.patches(
            frames, *(side * unit for side in self.stock.grid))


class Contender(Protocol):
    """One way to narrate, on a number of torch threads; of a stream `warm` steps come before."""

    threads: int
    warm: int

    def seconds(self, steps: int) -> float:
        """Play a stream whose frames are all there; return how long it took until all is said."""

    def hazard_seconds(self, steps: int, sentence: int) -> float:
        """
        After so many steps a sentence of `sentence` tokens begins, and the next frames come.

        Return the time from their coming to the first token that saw them.
        """


@dataclass(frozen=True)
class StockContender:
    """A narrator made of stock modules, which sees and speaks in turn."""

    contest: Contest
    make: Callable[[Contest, int], StockNarrator]
    threads: int = 1
    warm: int = 0

    def seconds(self, steps: int) -> float:
        """Play a stream."""
        narrator = self._begin(self.warm + steps)
        self.play(narrator, self.warm)
        start = time.monotonic()
        self.play(narrator, steps, self.warm)
        return time.monotonic() - start

    def hazard_seconds(self, steps: int, sentence: int) -> float:
        """Play, then time the first token about a step that comes during a sentence."""
        narrator = self._begin(steps + sentence // WAIT_K + 2)
        self.play(narrator, steps)
        narrator.see(self.contest.patches(steps))
        came_ns = narrator.say(sentence).times_ns[0]
        narrator.see(self.contest.patches(steps + 1))
        return (narrator.say(1).times_ns[0] - came_ns) / 1e9

    def play(self, narrator: StockNarrator, steps: int, first: int = 0) -> list[int]:
        """Show and say so many steps from the `first` on; return all tokens."""
        tokens = []
        for step in range(first, first + steps):
            narrator.see(self.contest.patches(step))
            tokens += narrator.say(WAIT_K).tokens
        return tokens

    def _begin(self, steps: int) -> StockNarrator:
        torch.set_num_threads(self.threads)
        return self.make(self.contest, steps)


@dataclass(frozen=True)
class EngineContender:
    """This package's engine, in one scheme and one way to share the cores."""

    contest: Contest
    side: Side
    warm: int = 0

    def seconds(self, steps: int) -> float:
        """Play a stream."""
        frames = self.contest.frames[:2 * (self.warm + steps)]
        return run_once(self.contest.checkpoint, frames, self.side, WAIT_K, self.warm).seconds

    def hazard_seconds(self, steps: int, sentence: int) -> float:
        """Play, then time the first token about a step that comes during an answer."""
        frames = self.contest.frames
        config = self.side.config(
            schedule='wait_k', wait_k=WAIT_K, max_steps=steps + 1, max_answer_tokens=sentence,
            max_pending_frames=2 * steps)
        with Session(self.contest.checkpoint, config) as session:
            feed(session, frames[:2 * steps])
            session.wait_idle(PATIENCE_S)
            session.drain()
            session.ask('?')
            wait_for(session, lambda event: isinstance(event, QuestionState)
                     and event.state == 'answering')
            came_ns = feed(session, frames[2 * steps:2 * steps + 2])
            return (first_sight(session, steps).decoded_ns - came_ns) / 1e9


def make_contest(model: str, steps: int, side: int, seed: int = 0, device: str = 'cpu',
                 dtype: str = '') -> Contest:
    """
    Return a model for all contenders, and random frames for so many steps.

    :param model: one of `SHAPES` (random weights), 'builtin', or the folder of a checkpoint
    :param side: width and height of a frame in pixels
    :raises CheckpointError: for a model that cannot be used
    """
    if model in SHAPES:
        net, checkpoint = random_of(model, seed, device, dtype)
    else:
        checkpoint = load(model, device=device, dtype=dtype)
        if any(checkpoint.text_of_step(0)):
            raise CheckpointError(f'{checkpoint.family.name} has text in every step of video, '
                                  'which the other contenders cannot be given yet')
        net = load_stock(model, checkpoint.decoder.dtype).to(device)
    return contest_of(net, checkpoint, noise(steps, side, seed))


def contest_of(net: Qwen2_5_VLForConditionalGeneration, checkpoint: Checkpoint,
               frames: Sequence[np.ndarray]) -> Contest:
    """Return the contest of a stock model and a checkpoint of the same weights."""
    perception, defaults = checkpoint.perception, checkpoint.defaults
    size, turns = fit_size(*frames[0].shape[:2], perception.settings), checkpoint.turns
    stock = Stock(
        net, checkpoint.encode(*turns.prefix(defaults.system, defaults.prompt)),
        checkpoint.encode(turns.tail), checkpoint.encode(turns.assistant), perception.grid(*size),
        defaults.seconds_per_step)
    return Contest(stock, replace(checkpoint, vocabulary=Vocabulary(frozenset())), frames)


def contenders(contest: Contest, overlaps: Sequence[str], threads: Sequence[int],
               window_steps: int, newest_steps: int, warm: int = 0) -> dict[str, Contender]:
    """
    Return all contenders by name.

    :param warm: how many steps of a stream come before the clock starts

    :param overlaps: the engine's, each with group-decoupled positions
    :param threads: torch threads of those that do one thing at a time, each a contender
    """
    rows = len(contest.stock.prefix) + len(contest.stock.head) + 1
    a_step = contest.stock.grid[0] * contest.stock.grid[1] + WAIT_K
    stock: dict[str, Callable[[Contest, int], StockNarrator]] = {
        'generate_whole': lambda contest, steps: Generate(contest.stock),
        'generate_newest': lambda contest, steps: Generate(contest.stock, newest_steps),
        'carried': lambda contest, steps: CarriedCache(contest.stock),
        'carried_static': lambda contest, steps: CarriedCache(
            contest.stock, partial(static_cache, rows=rows + steps * a_step)),
        'windows': lambda contest, steps: WindowedCache(contest.stock, window_steps)}
    found: dict[str, Contender] = {}
    for count in threads if contest.stock.model.device.type == 'cpu' else (1,):
        found |= {f'{name}@{count}': StockContender(contest, make, count, warm)
                  for name, make in stock.items()}
        found[f'interleaved@{count}'] = EngineContender(
            contest, Side('serial', 'interleaved', count), warm)
        sides = possible({overlap: Side(overlap, threads=count) for overlap in overlaps
                          if overlap not in SIDE_BY_SIDE or count == min(threads)},
                         contest.checkpoint)
        found |= {f'gdpe_{overlap}@{count}': EngineContender(contest, side, warm)
                  for overlap, side in sides.items()}
    return found
