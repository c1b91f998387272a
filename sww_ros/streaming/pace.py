"""How fast a checkpoint runs on this machine, and what a user should be told of it at load."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
import math
import statistics
import time

import numpy as np
import torch

from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.decoder import Chunk
from sww_ros.streaming.perception import fit_size
from sww_ros.streaming.positions import SCHEMES, text_positions

_CAMERA = (480, 640)
"""Height and width of the frames that are assumed where none has come yet."""
QUICK_S = 0.3
"""What takes less is measured again, as the first time is rarely the usual one."""
_REPEATS = 3
CARRIED_TOKENS = 1024
"""Room for what was said before, where that is carried."""
SENTENCE_TOKENS = 32
"""Room for a sentence that was said before; longer ones are rare."""


@dataclass(frozen=True)
class Pace:
    """Seconds to perceive one step of `visual_tokens`, and to decode one token, one at a time."""

    step_seconds: float
    token_seconds: float
    visual_tokens: int


def working_size(checkpoint: Checkpoint, config: SessionConfig,
                 frame: tuple[int, int] = _CAMERA) -> tuple[int, int]:
    """
    Return the (height, width) at which a session perceives frames: configured, or fitted.

    :param frame: height and width of the frames that come
    :raises ValueError: for a frame that is too narrow
    """
    settings = checkpoint.perception.settings
    if config.frame_width and config.frame_height:
        height, width = (max(1, side // settings.unit) * settings.unit
                         for side in (config.frame_height, config.frame_width))
        return height, width
    return fit_size(*frame, settings)


def step_rows(checkpoint: Checkpoint, config: SessionConfig) -> int:
    """Return how many rows a step takes at most: visual tokens, and the text around them."""
    height, width = checkpoint.perception.grid(*working_size(checkpoint, config))
    around = checkpoint.text_of_step(config.max_steps - 1, begun=True)
    return height * width + sum(map(len, around))


def video_rows(checkpoint: Checkpoint, config: SessionConfig) -> int:
    """
    Return how many rows a stream takes at most, narration included where it runs through them.

    That is with frames of `working_size`, and with a prompt like the one of the settings.

    :param config: as `SessionConfig.resolved` returns it
    """
    turns, steps, encode = checkpoint.turns, config.max_steps, checkpoint.encode
    around = turns.prefix(checkpoint.defaults.system, config.prompt)
    rows = len(encode(*around)) + len(encode(turns.tail)) + steps * step_rows(checkpoint, config)
    rows += SENTENCE_TOKENS * config.previous_sentences
    if turns.steps_per_turn:
        rows += len(encode('', config.prompt)) + len(encode(turns.next_turn)) * steps
    if checkpoint.carries_text:
        rows += CARRIED_TOKENS
    if SCHEMES[config.position_encoding].serial:
        spoken = config.wait_k * (steps // (turns.steps_per_turn or 1))
        rows += len(encode(turns.assistant)) + spoken
    return rows


def measure(checkpoint: Checkpoint, config: SessionConfig) -> Pace:
    """
    Perceive a step and decode a token, alone on this machine, as a session would.

    It takes as long as that does: a minute with a large model on a CPU.
    """
    def run() -> Pace:
        if checkpoint.decoder.device.type == 'cpu':
            torch.set_num_threads(max(1, config.threads))
        return _measure(checkpoint, working_size(checkpoint, config))

    # In a thread of its own, which leaves the caller's number of threads as it is.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


def _measure(checkpoint: Checkpoint, size: tuple[int, int]) -> Pace:
    decoder, perception = checkpoint.decoder, checkpoint.perception
    frames = [np.full((*_CAMERA, 3), 100, np.uint8)] * perception.settings.temporal_patch_size
    prefix = checkpoint.encode(*checkpoint.turns.prefix(checkpoint.defaults.system,
                                                        checkpoint.defaults.prompt))
    video = decoder.new_lane(len(prefix) + math.prod(perception.grid(*size)))

    def perceive() -> None:
        seen = perception.embed(perception.patches(frames, *size), *size)
        rows, deep = decoder.rows_of(prefix, seen)
        video.clear()
        decoder.step([Chunk(video, rows, torch.from_numpy(text_positions(0, len(rows))),
                            deep=deep)])

    step_s = _seconds(perceive, decoder.device)
    lane, position = decoder.new_lane(16), torch.from_numpy(text_positions(0, 1))

    def decode() -> None:
        decoder.step([Chunk(lane, decoder.embed(prefix[:1]), position, video.view(),
                            predict=True)])

    height, width = perception.grid(*size)
    return Pace(step_s, _seconds(decode, decoder.device), height * width)


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    """
    Return how long the work takes: the first time if that is long on a CPU, else the usual time.

    On a GPU the first time is that of loading kernels, and the second that of recording them.
    """
    found: list[float] = []
    while len(found) <= _REPEATS:
        begin = time.perf_counter()
        work()
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - begin)
        if found[0] > QUICK_S and device.type == 'cpu':
            return found[0]
    return statistics.median(found[1:])


def advice(checkpoint: Checkpoint, wait_k: int, pace: Pace | None) -> str:
    """
    Return, in words, what to expect of a checkpoint that will disappoint; '' for any other.

    :param wait_k: tokens of narration a step
    :param pace: how fast it runs here, where that is known
    """
    found = []
    if not checkpoint.trained:
        found.append(
            f'{checkpoint.name!r} was not trained to stream: it was never taught when to be '
            'silent, nor to speak in pieces of a few tokens, so expect it to talk at every step, '
            'to break off and to repeat itself; fine-tune it first (docs/training.md)')
    length_s, profile = checkpoint.defaults.seconds_per_step, checkpoint.profile
    if profile:  # Its wait_k is the most that is ever said; it has to keep up with being silent.
        wait_k = len(checkpoint.encode(profile.silence)) + 1
    if pace and max(pace.step_seconds, wait_k * pace.token_seconds) > length_s:
        found.append(
            f'this machine is too slow for it: {length_s:g} s of video takes about '
            f'{pace.step_seconds:.2g} s to perceive ({pace.visual_tokens} visual tokens) and '
            f'{wait_k * pace.token_seconds:.2g} s to speak about ({wait_k} tokens), so most '
            'frames will be dropped; use smaller frames (frame_width, frame_height), a smaller '
            'model, or a GPU')
    return '. '.join(text[0].upper() + text[1:] if index else text
                     for index, text in enumerate(found))


def mismatch(checkpoint: Checkpoint, config: SessionConfig) -> str:
    """Return, in words, how a session (`SessionConfig.resolved`) differs from its training."""
    trained, found = checkpoint.defaults, []
    if not checkpoint.trained:
        return ''
    scheme, gap, schedule = config.position_encoding, config.position_gap, config.schedule
    if scheme != trained.position_encoding:
        found.append(f'position_encoding {scheme!r} but was trained with '
                     f'{trained.position_encoding!r}')
    if SCHEMES[scheme].uses_gap and gap != trained.position_gap:
        found.append(f'position_gap {gap} but was trained with {trained.position_gap}')
    if (schedule == 'offline') != (trained.schedule == 'offline'):
        found.append(f'schedule {schedule!r} but was trained with {trained.schedule!r}')
    if config.frame_rate != checkpoint.frame_rate:
        found.append(f'frame_rate {config.frame_rate:g} but was trained with '
                     f'{checkpoint.frame_rate:g}')
    streams = SCHEMES[scheme].after_video and schedule != 'offline'
    if streams and config.reserved_steps != trained.max_steps:
        found.append(f'reserved_steps {config.reserved_steps}, after which {scheme} positions '
                     f'begin their text, but was trained with {trained.max_steps}')
    if not found:
        return ''
    return (f'{checkpoint.name!r} runs with {" and with ".join(found)}: expect worse text, or set '
            'what it was trained with')
