"""What a session needs of a loaded checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
import math
import threading
from typing import Any

from sww_ros.streaming.config import BY_NAME, check_prompt
from sww_ros.streaming.decoder import Decoder
from sww_ros.streaming.family import Family, Profile, StepPlace, Turns
from sww_ros.streaming.generation import TextAssembler, Vocabulary
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
        for name, most, may_be_0 in (('seconds_per_step', _LONGEST_STEP_S, False),
                                     ('tokens_per_second', _FASTEST_CLOCK, True)):
            value = getattr(self, name)
            if (not isinstance(value, int | float) or isinstance(value, bool)
                    or not math.isfinite(value) or not 0 <= value <= most
                    or not (value or may_be_0)):
                raise ValueError(f'{name} must be {"at least" if may_be_0 else "above"} 0 and at '
                                 f'most {most:g}, not {value!r}')
        for name in ('system', 'prompt'):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f'{name} must be a text, not {getattr(self, name)!r}')
        check_prompt(self.prompt)
        Relay.plan(self.max_steps, self.capacity, self.memory)

    @property
    def clock(self) -> VideoClock:
        """The time axis of its positions; without tokens a second, each step is the next one."""
        if not self.tokens_per_second:
            return VideoClock(1.0, 1.0)
        return VideoClock(self.tokens_per_second, self.seconds_per_step)


@dataclass(frozen=True)
class Checkpoint:
    """
    A checkpoint, taken apart for streaming by its family; `tokenizer` is transformers' own.

    `trained` says that its defaults are how it was trained to stream, not only ours;
    `repetition_penalty` is what its generation_config.json asks for, 1.0 for none. `profile` is
    how it was trained to be asked, None where that is how its family is, and `asked` its name.
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
    profile: Profile | None = None
    asked: str = ''

    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def turns(self) -> Turns:
        """The text around a stream."""
        return self.profile.turns if self.profile else self.family.turns

    @property
    def frames_per_step(self) -> int:
        """Frames of a step of video; where a temporal patch has more, the last one is repeated."""
        own = self.profile.frames_per_step if self.profile else 0
        return own or self.perception.settings.temporal_patch_size

    @property
    def carries_text(self) -> bool:
        """Whether a stream that begins anew as it was full is told what was said before."""
        return self.profile is not None and self.profile.carries_text

    @property
    def temperature(self) -> float:
        """With which its tokens are drawn; 0 where the likeliest is always said."""
        return self.profile.temperature if self.profile else 0.0

    @property
    def top_k(self) -> int:
        """From how many of the likeliest they are drawn; 0 for all."""
        return self.profile.top_k if self.profile else 0

    @property
    def frame_rate(self) -> float:
        """Frames perceived a second [Hz]."""
        return self.frames_per_step / self.defaults.seconds_per_step

    def assembler(self) -> TextAssembler:
        """Return what makes text of the tokens of one speaker."""
        profile = self.profile
        return (TextAssembler(self.tokenizer, profile.silence, profile.goes_on) if profile
                else TextAssembler(self.tokenizer))

    def at(self, frame_rate: float) -> Checkpoint:
        """
        Return the same checkpoint with steps of another time, which its positions follow.

        :param frame_rate: frames perceived a second [Hz]; 0 for its own
        :raises ValueError: for steps that are too long
        """
        if frame_rate in (0.0, self.frame_rate):
            return self
        seconds = self.frames_per_step / frame_rate
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

    def text_of_step(self, index: int, last: bool = False, begun: bool = False,
                     elapsed: int = 0, prompt: str = '') -> tuple[list[int], list[int]]:
        """Token ids before and after the visual rows of a step, placed as in `StepPlace`."""
        place = StepPlace(index, self.defaults.seconds_per_step, elapsed, prompt, last, begun)
        before, after = self.turns.around_step(place)
        return self.encode(*before), self.encode(*after)

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
