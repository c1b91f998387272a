"""Plays clips to a live session and keeps what is said of each, and when."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
import time

import numpy as np

from sww_ros.frames import with_last
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.clip_loop import ClipError, play_steps, settle
from sww_ros.streaming.config import SessionConfig, check_prompt
from sww_ros.streaming.events import NARRATION, Event, Restarted, StepPerceived, TextDelta
from sww_ros.streaming.session import Session

_HARMLESS = ('ended', 'prompt')
"""Restarts that belong to going from one clip to the next."""


@dataclass(frozen=True)
class Said:
    """
    What was said when `step` steps had been perceived (from 1), in `tokens` pieces.

    A piece is one token, but for characters that a tokenizer spreads over several. Silence and
    the ends of turns are no pieces.
    """

    step: int
    tokens: int
    text: str


@dataclass(frozen=True)
class Played:
    """A clip of `steps` steps; `live_tail_s` [s] from its last frame to its last token, if live."""

    steps: int
    said: tuple[Said, ...]
    live_tail_s: float | None = None

    @property
    def text(self) -> str:
        """The whole narration."""
        return ''.join(part.text for part in self.said).strip()


class Player:
    """
    Plays clips one after the other, each as one video that ends.

    All clips go through one session; only random wait-K begins another one for every clip, as
    clip n draws with the seed `schedule_seed` + n: a session's streams all draw alike. After an
    error too the next clip begins another session.
    """

    def __init__(self, checkpoint: Checkpoint, config: SessionConfig, live: bool = False) -> None:
        """
        Prepare to play; the first clip opens the session.

        :param config: the settings of all clips, but for the prompt; `max_steps` must be given
        :param live: feed frames in real time; else step by step, each with all that is said of
            it, so that the text does not depend on how fast the machine is
        """
        settings = checkpoint.perception.settings
        self.frames_per_step = settings.temporal_patch_size
        self.frame_rate = self.frames_per_step / checkpoint.defaults.seconds_per_step
        self._live, self._checkpoint = live, checkpoint
        # Whoever is slower than the video shall hear of it late, not miss a part of it. A clip is
        # one stream to its end, as in training.
        self._config = replace(config, memory=0, max_pending_frames=max(
            config.max_pending_frames, config.max_steps * self.frames_per_step))
        self._session: Session | None = None

    def __enter__(self) -> Player:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session, if there is one."""
        if self._session is not None:
            self._session.close()
            self._session = None

    @property
    def info(self) -> dict:
        """What is running, as `Session.info` says."""
        return self._open(self._config).info

    def play(self, frames: Sequence[np.ndarray], prompt: str, number: int = 0,
             wanted: str = '') -> Played:
        """
        Play one clip.

        :param frames: (H, W, 3) uint8 RGB each, at `frame_rate`, in whole steps
        :param prompt: the standing question
        :param number: which clip it is, for the draws of random wait-K
        :param wanted: the text that is hoped for: random wait-K draws by its tokens per step,
            as the paper's robustness test does; by the configured K if not given
        :raises ClipError: for a clip that is too long, or trouble on the way
        """
        steps = -(-len(frames) // self.frames_per_step)
        if not 0 < steps <= self._config.max_steps:
            raise ClipError(f'the clip has {steps} steps, 1 to {self._config.max_steps} are '
                            'taken: raise --max-steps')
        try:
            config = replace(self._config, prompt=check_prompt(prompt))
            if config.schedule == 'random_wait_k':
                tokens = len(self._checkpoint.encode('', wanted))
                config = replace(config, schedule_seed=config.schedule_seed + number,
                                 wait_k=max(1, tokens // steps) if tokens else config.wait_k)
            session, spoken = self._open(config), _Spoken()
            fed_ns = self._feed_live(session, frames) if self._live else 0
            for events in ([settle(session)] if self._live
                           else play_steps(session, self._stamped(frames))):
                spoken.take(events)
            if spoken.steps != steps:
                raise ClipError(f'{spoken.steps} of {steps} steps were perceived')
        except (ClipError, ValueError) as error:
            self.close()
            raise ClipError(str(error)) from error
        tail = (spoken.last_ns - fed_ns) / 1e9 if self._live and spoken.last_ns else None
        return Played(steps, spoken.said, tail)

    def _open(self, config: SessionConfig) -> Session:
        session = self._session
        if session is not None and replace(session.config, prompt=config.prompt) != config:
            self.close()
        if self._session is None:
            self._session = Session(self._checkpoint, config)
        elif config.prompt and config.prompt != self._session.info['prompt']:
            self._session.set_prompt(config.prompt)
            # What is cut by the new prompt belongs to the clip before.
            list(settle(self._session, lossless=False))
        return self._session

    def _stamped(self, frames: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, int]]:
        return ((frame, round(index / self.frame_rate * 1e9))
                for index, frame in enumerate(frames))

    def _feed_live(self, session: Session, frames: Sequence[np.ndarray]) -> int:
        """Feed frames in real time; return when the last one was."""
        begin = time.monotonic()
        for index, ((frame, stamp_ns), last) in enumerate(with_last(self._stamped(frames))):
            time.sleep(max(0.0, begin + index / self.frame_rate - time.monotonic()))
            session.feed(frame, stamp_ns=stamp_ns, last=last)
        return time.monotonic_ns()


class _Spoken:
    """What the events of one clip say."""

    def __init__(self) -> None:
        self.steps, self.last_ns = 0, 0
        self._parts: list[tuple[int, str]] = []

    @property
    def said(self) -> tuple[Said, ...]:
        """The pieces of each step together."""
        found: list[Said] = []
        for step, text in self._parts:
            if found and found[-1].step == step:
                found[-1] = Said(step, found[-1].tokens + 1, found[-1].text + text)
            else:
                found.append(Said(step, 1, text))
        return tuple(found)

    def take(self, events: Iterable[Event]) -> None:
        """
        Take the next events of a clip.

        :raises ClipError: for what makes the run an unfair one
        """
        for event in events:
            if isinstance(event, Restarted) and (event.reason not in _HARMLESS or self.steps):
                raise ClipError(f'the stream began anew ({event.reason})')
            if isinstance(event, StepPerceived):
                self.steps = event.index + 1
            elif isinstance(event, TextDelta) and event.stream_id == NARRATION and event.delta:
                self._parts.append((max(self.steps, event.steps_seen), event.delta))
                self.last_ns = event.emitted_ns


def lateness(clips: Sequence[Played], wait_k: int, seconds_per_step: float) -> dict[str, float]:
    """
    Say when the tokens were spoken, in the time of the videos.

    All is counted in steps perceived when a token was spoken, so that it says the same on every
    machine; one step stands for `seconds_per_step`. Tokens spoken at a clip's last step, those
    that the schedule grants that step among them, come after its end: nothing was left to watch.

    - `first_step`, `first_s`: how much of the clip had been watched when the first token was
      spoken, in steps (1 is the least) and in seconds; offline, all of it.
    - `before_end`: the share of all tokens that was spoken before the end, 0 offline.
    - `tail_s`: how long a listener who hears `wait_k` tokens a step, the pace of the stream, goes
      on listening once the clip has ended: tokens after the end / wait_k * seconds_per_step.
    - `tokens`: per clip. `silent`: clips of which nothing was said; they count in `tokens` only.
    - `live_tail_s`: measured seconds from the last frame to the last token, if fed in real time.

    Each but `before_end` and `silent` is a mean and, as `median_...`, a median over clips.
    """
    spoken = [clip for clip in clips if clip.said]
    after = [sum(part.tokens for part in clip.said if part.step >= clip.steps) for clip in spoken]
    total = [sum(part.tokens for part in clip.said) for clip in clips]
    values = dict(
        first_step=[clip.said[0].step for clip in spoken],
        first_s=[clip.said[0].step * seconds_per_step for clip in spoken],
        tail_s=[count / wait_k * seconds_per_step for count in after],
        tokens=total,
        live_tail_s=[clip.live_tail_s for clip in spoken if clip.live_tail_s is not None])
    found: dict[str, float] = dict(silent=len(clips) - len(spoken))
    if spoken:
        found['before_end'] = 1 - sum(after) / sum(total)
    for name, each in values.items():
        if each:
            found |= {name: fmean(each), f'median_{name}': median(each)}
    return found
