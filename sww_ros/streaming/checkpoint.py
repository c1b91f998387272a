"""What a session needs of a loaded checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
import math
import threading
from typing import Any

from sww_ros.streaming.config import BY_NAME, check_prompt
from sww_ros.streaming.decoder import Decoder
from sww_ros.streaming.family import Family, Turns
from sww_ros.streaming.generation import Vocabulary
from sww_ros.streaming.perception import Perception
from sww_ros.streaming.positions import DEFAULT_SCHEME, GIPE_GAP, SCHEMES, VideoClock
from sww_ros.streaming.relay import Relay
from sww_ros.streaming.schedule import SCHEDULES

_LEAST = {'wait_k': 1, 'max_steps': 1, 'position_gap': 0, 'capacity': 0, 'memory': -1,
          'previous_sentences': 0}
"""A session's 0 is what is said here, so most must be more."""
_LONGEST_STEP_S = 3600.0
_FASTEST_CLOCK = 1000.0


@dataclass(frozen=True)
class StreamDefaults:
    """
    How a checkpoint was trained to stream: `speak_while_watching` in its config.

    A value that makes no sense is a ValueError, in words.
    """

    position_encoding: str = DEFAULT_SCHEME
    position_gap: int = GIPE_GAP
    schedule: str = 'wait_k'
    wait_k: int = 3
    seconds_per_step: float = 1.0
    tokens_per_second: float = 2.0
    system: str = 'You are a helpful assistant.'
    prompt: str = 'Describe what is happening in the video as it happens.'
    max_steps: int = 64
    capacity: int = 0
    memory: int = -1
    previous_sentences: int = 0

    def __post_init__(self) -> None:
        for name, choices in (('position_encoding', SCHEMES), ('schedule', SCHEDULES)):
            if getattr(self, name) not in choices:
                raise ValueError(f'{name} must be one of {", ".join(choices)}, '
                                 f'not {getattr(self, name)!r}')
        for name, least in _LEAST.items():
            replace(BY_NAME[name], low=least).check(getattr(self, name))
        for name, most in (('seconds_per_step', _LONGEST_STEP_S),
                           ('tokens_per_second', _FASTEST_CLOCK)):
            value = getattr(self, name)
            if (not isinstance(value, int | float) or isinstance(value, bool)
                    or not math.isfinite(value) or not 0 < value <= most):
                raise ValueError(f'{name} must be above 0 and at most {most:g}, not {value!r}')
        for name in ('system', 'prompt'):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f'{name} must be a text, not {getattr(self, name)!r}')
        check_prompt(self.prompt)
        Relay.plan(self.max_steps, self.capacity, self.memory)

    @property
    def clock(self) -> VideoClock:
        """The time axis of its positions."""
        return VideoClock(self.tokens_per_second, self.seconds_per_step)


@dataclass(frozen=True)
class Checkpoint:
    """
    A checkpoint, taken apart for streaming by its family; `tokenizer` is transformers' own.

    `trained` says that its defaults are how it was trained to stream, not only ours;
    `repetition_penalty` is what its generation_config.json asks for, 1.0 for none.
    """

    name: str
    family: Family
    parameters: int
    decoder: Decoder
    perception: Perception
    tokenizer: Any
    vocabulary: Vocabulary
    defaults: StreamDefaults
    trained: bool = False
    repetition_penalty: float = 1.0

    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def turns(self) -> Turns:
        """The text around a stream."""
        return self.family.turns

    @property
    def frame_rate(self) -> float:
        """Frames perceived a second [Hz]."""
        return self.perception.settings.temporal_patch_size / self.defaults.seconds_per_step

    def at(self, frame_rate: float) -> Checkpoint:
        """
        Return the same checkpoint with steps of another time, which its positions follow.

        :param frame_rate: frames perceived a second [Hz]; 0 for its own
        :raises ValueError: for steps that are too long
        """
        if frame_rate in (0.0, self.frame_rate):
            return self
        seconds = self.perception.settings.temporal_patch_size / frame_rate
        return replace(self, defaults=replace(self.defaults, seconds_per_step=seconds))

    def encode(self, *parts: str) -> list[int]:
        """
        Token ids of alternating parts: ours, in which special tokens are written out, the
        user's, in which they are only text, ours, and so on.
        """
        ids: list[int] = []
        # The tokenizer keeps how to treat special tokens as state, so one thread at a time.
        with self._lock:
            for index, part in enumerate(parts):
                ids += self.tokenizer(part, add_special_tokens=False,
                                      split_special_tokens=bool(index % 2))['input_ids']
        return ids

    def text_of_step(self, index: int) -> tuple[list[int], list[int]]:
        """Token ids before and after the visual rows of step `index`, from 0, of a video."""
        before, after = self.turns.around_step(index, self.defaults.seconds_per_step)
        return (self.encode(before) if before else [], self.encode(after) if after else [])

    def check_tokens(self, name: str, text: str, limit: int) -> str:
        """
        Return the user's text.

        :param name: what it is, for the error
        :raises ValueError: for one of more than `limit` tokens
        """
        count = len(self.encode('', text))
        if count > limit:
            raise ValueError(f'the {name} has {count} tokens, at most {limit} are taken: '
                             'shorten it')
        return text
