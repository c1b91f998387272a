"""The settings of a session, with their one set of defaults and their checks."""

from __future__ import annotations

from dataclasses import dataclass
import math

from sww_ros.streaming.schedule import MAX_WAIT_K, SCHEDULES

OVERLAPS = ('auto', 'threads', 'processes', 'serial', 'fused')
QUESTION_POLICIES = ('queue', 'interrupt', 'reject')
MAX_QUESTION_CHARACTERS = 2000
MAX_QUESTION_TOKENS = 512
MAX_PROMPT_CHARACTERS = 4000
MAX_PROMPT_TOKENS = 2048
"""Tokens are limited too: one emoji may be four of them, and each one has to be computed."""


@dataclass(frozen=True)
class SessionConfig:
    """
    How a session perceives and speaks; an empty or zero value means "as the checkpoint says".

    `wait_k` tokens of narration a perceived step; at most `max_answers` questions are answered
    at once, and up to `max_queued` wait (policy queue); `max_steps` bounds the memory: the
    stream begins anew when it is reached. `max_pending_frames` bounds the frames that wait for
    perception, the oldest are dropped. `position_gap` is where GIPE's text starts; once a video
    has ended, narration may go on for `max_rest_tokens`. With `single_turn` narration is over with
    its first turn; otherwise a checkpoint that ends its turn opens another with the next step. A
    question that finds nothing to see for `question_timeout_s` [s] ends; 0: it waits. `threads` is
    what one computation on the CPU takes; 0: what `overlap` auto finds best, else one.
    """

    prompt: str = ''
    position_encoding: str = ''
    position_gap: int = 0
    schedule: str = 'live'
    schedule_seed: int = 0
    overlap: str = 'auto'
    wait_k: int = 0
    max_answers: int = 4
    max_queued: int = 8
    question_policy: str = 'queue'
    max_answer_tokens: int = 128
    question_timeout_s: float = 10.0
    max_rest_tokens: int = 128
    single_turn: bool = False
    max_steps: int = 0
    max_pending_frames: int = 8
    frame_width: int = 0
    frame_height: int = 0
    narrate: bool = True
    device: str = 'cpu'
    dtype: str = ''
    threads: int = 0
    repetition_penalty: float = 0.0
    record_trace: bool = False
    allow_download: bool = False

    def __post_init__(self) -> None:
        if self.prompt != '':
            check_prompt(self.prompt)
        _choice('schedule', self.schedule, SCHEDULES)
        _choice('overlap', self.overlap, OVERLAPS)
        _choice('question_policy', self.question_policy, QUESTION_POLICIES)
        for name in ('max_answers', 'max_answer_tokens', 'max_rest_tokens',
                     'max_pending_frames'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be at least 1, not {getattr(self, name)}')
        for name in ('position_gap', 'schedule_seed', 'wait_k', 'max_queued', 'max_steps',
                     'frame_width', 'frame_height', 'threads'):
            if getattr(self, name) < 0:
                raise ValueError(f'{name} must not be negative, not {getattr(self, name)}')
        if self.wait_k > MAX_WAIT_K:
            raise ValueError(f'wait_k must be at most {MAX_WAIT_K}, not {self.wait_k}')
        if not 0 <= self.question_timeout_s < math.inf:
            raise ValueError('question_timeout_s must be a time in seconds, or 0 for none, '
                             f'not {self.question_timeout_s}')
        penalty = self.repetition_penalty
        if self.record_trace and penalty not in (0.0, 1.0):
            raise ValueError('a run with a repetition_penalty cannot be replayed: leave out '
                             'record_trace, or the penalty')
        if penalty and not 1.0 <= penalty < math.inf:
            raise ValueError(f'repetition_penalty must be at least 1.0, not {penalty}; 0 '
                             'means that of the checkpoint')


def _choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f'{name} must be one of {", ".join(choices)}, not {value!r}')


def check_question(text: str) -> str:
    """
    Return the question, stripped.

    :raises ValueError: for what is no text, empty, or longer than MAX_QUESTION_CHARACTERS
    """
    return _check_text('question', text, MAX_QUESTION_CHARACTERS, 'ask something')


def check_prompt(text: str) -> str:
    """
    Return the prompt, stripped.

    :raises ValueError: for what is no text, empty, or longer than MAX_PROMPT_CHARACTERS
    """
    return _check_text('prompt', text, MAX_PROMPT_CHARACTERS, 'say what to narrate')


def _check_text(name: str, text: str, limit: int, advice: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f'the {name} must be a string, not {type(text).__name__}')
    text = text.strip()
    if not text:
        raise ValueError(f'the {name} is empty: {advice}')
    if len(text) > limit:
        raise ValueError(f'the {name} has {len(text)} characters, at most {limit} are taken: '
                         'shorten it')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # In ascii(), or whoever prints or logs these words would fail in turn.
        shown = ascii(text[max(0, error.start - 20):error.end + 20])
        raise ValueError(f'the {name} is no Unicode text at character {error.start} ({shown}): '
                         'give it as UTF-8') from None
    return text
