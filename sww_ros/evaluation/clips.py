"""Captioned clips to evaluate a checkpoint on: read, played to a live session, kept on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
import json
from operator import itemgetter
import os
from pathlib import Path
from statistics import fmean, median
import time

import numpy as np

from sww_ros.evaluation.metrics import words
from sww_ros.frames import with_last
from sww_ros.library import ClipError, play_steps, settle
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.config import SessionConfig, check_prompt
from sww_ros.streaming.events import NARRATION, Event, Restarted, StepPerceived, TextDelta
from sww_ros.streaming.session import Session
from sww_ros.training.annotations import PAPER, Rejected, Report, read_annotations
from sww_ros.training.frames import Sample


def read_clips(paths: Sequence[Path], *, prompt: str, form: str = '', tokenizer=None,
               video_root: Path | None = None, localization: bool = False,
               report: Report | None = None) -> list[Sample]:
    """
    Read annotation files of any form; clips without words are left out.

    :param prompt: the standing question of captioned clips; a question about a clip is its own
    :param form: that of all files; '': each file's is guessed by its keys
    :param tokenizer: if given, PE-Video goes through the paper's filter of lengths
    :param video_root: what relative paths start from; None: the folder of each file
    :param localization: keep FunQA's tasks whose answer is a stretch of time
    :param report: takes what was kept, what not and why
    :raises ValueError: for a file that cannot be read, is of no known form, or has no usable clip
    """
    clips = read_annotations(paths, form=form, prompt=prompt, tokenizer=tokenizer,
                             limits=PAPER if tokenizer else None, video_root=video_root,
                             localization=localization, report=report)
    return [clip for clip in clips if _has_words(clip, report)]


def _has_words(clip: Sample, report: Report | None) -> bool:
    """Whether there is something to compare with; a reference without words fits no metric."""
    if words(clip.answer):
        return True
    if report:
        report.kept -= 1
        report.reject(Rejected('without words', f'{clip.source}: the reference {clip.answer!r} '
                                                'has no words'))
    return False


class ClipLog:
    """
    Results by schedule and clip, appended as they come; without a path, kept in memory.

    The first line of the file holds the settings of the run; only the same ones may add to it.
    """

    def __init__(self, path: Path | None, settings: dict) -> None:
        """
        Open the file and read what is in it, or begin it.

        :raises ValueError: for a file that cannot be written, is none of ours, or was begun with
            other settings; the message names them
        """
        self.path = path
        self._results: dict[tuple[str, int], dict] = {}
        if path is None:
            return
        # As JSON gives them back: a tuple is a list.
        settings = json.loads(json.dumps(settings))
        try:
            if path.exists() and path.stat().st_size:
                self._read(path, settings)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._append(settings)
        except OSError as error:
            raise ValueError(f'cannot keep the results in {path}: {error.strerror}') from None

    def __len__(self) -> int:
        return len(self._results)

    def get(self, mode: str, clip: int) -> dict | None:
        """The result of a clip, None where there is none yet."""
        return self._results.get((mode, clip))

    def add(self, mode: str, clip: int, result: dict) -> None:
        """Keep a result."""
        self._results[mode, clip] = result
        if self.path is not None:
            self._append(dict(mode=mode, clip=clip, result=result))

    def _append(self, line: dict) -> None:
        with self.path.open('a', encoding='utf-8') as file:
            file.write(json.dumps(line) + '\n')

    def _read(self, path: Path, settings: dict) -> None:
        text = path.read_bytes()
        whole = text.rfind(b'\n') + 1
        if whole < len(text):
            # A line that was being written when the run was killed; that clip is played again.
            os.truncate(path, whole)
        try:
            first, *lines = map(json.loads, text[:whole].splitlines())
            results = {(line['mode'], line['clip']): line['result'] for line in lines}
            others = sorted(name for name in {*first, *settings}
                            if first.get(name) != settings.get(name))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f'{path} holds no results of an evaluation: remove it, or give '
                             'another --json') from None
        if others:
            differences = '; '.join(f'{name} was {first.get(name)!r}, is {settings.get(name)!r}'
                                    for name in others)
            raise ValueError(f'{path} was begun with other settings ({differences}): remove it '
                             'to begin anew, or give another --json')
        self._results = results


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
        self.frames_per_step = checkpoint.frames_per_step
        self.frame_rate = checkpoint.at(config.frame_rate).frame_rate
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
        steps = [(step, [text for _, text in parts])
                 for step, parts in groupby(self._parts, key=itemgetter(0))]
        return tuple(Said(step, len(texts), ''.join(texts)) for step, texts in steps)

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
