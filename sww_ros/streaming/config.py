"""The settings of a session, with their one set of defaults and their checks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sww_ros.settings import LIBRARY, LIVE, setting, settings_of
from sww_ros.streaming import positions
from sww_ros.streaming.relay import Relay, room_for
from sww_ros.streaming.schedule import MAX_WAIT_K, SCHEDULES

if TYPE_CHECKING:  # It checks its prompt here.
    from sww_ros.streaming.checkpoint import Checkpoint, StreamDefaults

OVERLAPS = ('auto', 'threads', 'processes', 'serial', 'fused')
QUESTION_POLICIES = ('queue', 'interrupt', 'reject')
MAX_QUESTION_CHARACTERS = 2000
MAX_QUESTION_TOKENS = 512
MAX_PROMPT_CHARACTERS = 4000
MAX_PROMPT_TOKENS = 2048
"""Tokens are limited too: one emoji may be four of them, and each one has to be computed."""


MAX_STEPS = 100_000
MAX_TOKENS = 100_000
MAX_FRAMES = 1_000_000
"""Far beyond what fits into memory: what is refused is a slip of the pen."""


@dataclass(frozen=True)
class SessionConfig:
    """
    How a session perceives and speaks: the one table of its settings.

    An empty or zero value means "as the checkpoint says", where the words say so; `resolved` fills
    it in. A line added here is a parameter of the narrator, an argument of its launch file, a line
    of config/narrator.yaml and of docs/node.md (`python -m sww_ros.settings --write`).

    :raises ValueError: for a value that no session can have
    """

    prompt: str = setting(
        '', 'What the narrator is told to do; empty: as the checkpoint says.', changes=LIVE)
    position_encoding: str = setting(
        '', 'How positions are given to video and text: in groups of their own (gdpe, with a gap '
        'gipe), overlapped (ospe), interleaved (perceives and speaks in turn), or text after the '
        'video (offline); empty: as the checkpoint was trained.',
        choices=lambda: ('', *positions.SCHEMES))
    position_gap: int = setting(
        0, "Where the text's positions start in gipe; 0: as the checkpoint was trained.",
        high=1_000_000)
    schedule: str = setting(
        'live', 'How much may be said, and when: as fast as both sides can, exactly wait_k tokens '
        'behind the video, or a random number of tokens a step (half of wait_k to wait_k).',
        # A camera has no end at which an offline narrator could begin to speak.
        choices=SCHEDULES, recorded_only=('offline',))
    schedule_seed: int = setting(0, 'Seed of the random schedule.', high=2 ** 31 - 1)
    overlap: str = setting(
        'auto', 'How perception and generation share the hardware: in two threads, in two '
        'processes, one piece of work after the other, or fused into one pass; auto: what proves '
        'best here when the model is loaded.', choices=OVERLAPS)
    wait_k: int = setting(
        0, 'Tokens of narration per step of video; 0: as the checkpoint was trained.',
        high=MAX_WAIT_K)
    max_answers: int = setting(4, 'Questions answered at once.', low=1, high=16)
    max_queued: int = setting(
        8, "Questions that may wait for their turn (policy 'queue').", high=1000)
    question_policy: str = setting(
        'queue', 'What happens to a question when max_answers are being answered: it waits, it '
        'takes the place of the oldest, or it is refused.', choices=QUESTION_POLICIES)
    max_answer_tokens: int = setting(128, 'Longest answer [tokens].', low=1, high=MAX_TOKENS)
    question_timeout_s: float = setting(
        10.0, 'A question that has found nothing to see for so long ends [s]; 0: it waits.',
        high=86400.0)
    max_rest_tokens: int = setting(
        128, 'Tokens that may follow the end of a video.', low=1, high=MAX_TOKENS,
        changes=LIBRARY)
    single_turn: bool = setting(
        False, 'Whether narration is over with its first turn; if not, a checkpoint that ends its '
        'turn opens another with the next step.', changes=LIBRARY)
    max_steps: int = setting(
        0, 'The most steps of video in one stream; 0: as the checkpoint allows.', high=MAX_STEPS)
    capacity: int = setting(
        0, 'Steps of video with which a stream is relieved by the next one, as soon as a sentence '
        'ends; 0: as the checkpoint says, or what leaves a sixth of max_steps for that.',
        high=MAX_STEPS)
    memory: int = setting(
        -1, 'How many of the last steps, and the words about them, the next stream begins with; 0: '
        'none, the video begins anew after max_steps; -1: as the checkpoint says, or two fifths '
        'of capacity.', low=-1, high=MAX_STEPS)
    previous_sentences: int = setting(
        -1, 'How many of the last sentences before those steps the next stream is told in its '
        'prefix; -1: as the checkpoint was trained, which is none if it does not say.', low=-1,
        high=1000)
    recall_steps: int = setting(
        0, 'How many of the last steps are remembered for questions about the past: one whose '
        'words were last said of a step that has left the stream is answered from the steps '
        'before that; 0: none.', high=MAX_STEPS)
    reserved_steps: int = setting(
        0, 'Steps of video before the positions of text in offline positions, where text is spoken '
        'before the video has ended; 0: as the checkpoint was trained, or max_steps if that is '
        'more.', high=MAX_STEPS)
    max_pending_frames: int = setting(
        8, 'Frames that may wait for perception; the oldest are dropped.', low=1, high=MAX_FRAMES)
    frame_rate: float = setting(
        0.0, 'Frames perceived a second [Hz]: with more, steps of video are shorter, and what '
        'happens comes to words sooner; positions follow the time; 0: as the checkpoint was '
        'trained.',
        high=240.0)
    frame_width: int = setting(
        0, 'Width to which frames are resized [pixels]; 0: as the checkpoint says.', high=4096)
    frame_height: int = setting(
        0, 'Height to which frames are resized [pixels]; 0: as the checkpoint says.', high=4096)
    still: float = setting(
        0.0, 'Where a scene stands still, visual tokens are left out of a step: those whose cosine '
        'to what was last seen at their place is at least this, such as 0.99; 0: none.', high=1.0)
    narrate: bool = setting(True, 'Whether to narrate; if not, questions alone are answered.')
    device: str = setting('cpu', "Where the model runs: 'cpu', 'cuda', 'cuda:1', ...")
    dtype: str = setting(
        '', "Type of the weights, such as 'float32' or 'bfloat16'; empty: as the device likes it.")
    threads: int = setting(
        0, 'Threads of one computation on the CPU; 0: what proves best here with overlap auto, '
        'else one.', high=256)
    repetition_penalty: float = setting(
        0.0, 'Above 1.0, tokens already said become less likely; 0: as the checkpoint says (its '
        'generation_config.json), else 1.0, none.', high=10.0)
    record_trace: bool = setting(
        False, 'Whether to record the run, to be replayed.', changes=LIBRARY)
    allow_download: bool = setting(
        False, 'Whether a checkpoint that is not on this machine may be downloaded from the hub.')

    def __post_init__(self) -> None:
        if self.prompt != '':
            check_prompt(self.prompt)
        for declared in SETTINGS:
            declared.check_range(getattr(self, declared.name))
        penalty = self.repetition_penalty
        if self.record_trace and penalty not in (0.0, 1.0):
            raise ValueError('a run with a repetition_penalty cannot be replayed: leave out '
                             'record_trace, or the penalty')
        if 0.0 < penalty < 1.0:
            raise ValueError(f'repetition_penalty must be at least 1.0, not {penalty}; 0 '
                             'means that of the checkpoint')

    def resolved(self, checkpoint: Checkpoint) -> SessionConfig:
        """
        Return the settings with all that is left to the checkpoint filled in.

        :raises ValueError: for settings that do not go together
        """
        defaults = checkpoint.defaults
        max_steps = self.max_steps or max(defaults.max_steps, room_for(self.capacity))
        # Text that began before the video has ended must not meet its positions.
        reserved = self.reserved_steps or max(defaults.max_steps, max_steps)
        penalty = self.repetition_penalty or checkpoint.repetition_penalty
        if self.record_trace and penalty != 1.0:
            raise ValueError(f'the checkpoint asks for a repetition penalty of {penalty:g}, and a '
                             'run with one cannot be replayed: set repetition_penalty to 1.0')
        found = replace(
            self, repetition_penalty=penalty, prompt=self.prompt or defaults.prompt,
            position_encoding=self.position_encoding or defaults.position_encoding,
            position_gap=self.position_gap or defaults.position_gap,
            wait_k=self.wait_k or defaults.wait_k, max_steps=max_steps, reserved_steps=reserved,
            frame_rate=self.frame_rate or checkpoint.frame_rate)
        scheme = positions.SCHEMES[found.position_encoding]
        # With interleaved positions text and video are one lane, and offline nothing is said yet.
        relay = (None if scheme.serial or self.schedule == 'offline'
                 else Relay.plan(max_steps, *self._relay_of(defaults)))
        sentences = self.previous_sentences
        found = replace(found, capacity=relay.capacity if relay else max_steps,
                        memory=relay.memory if relay else 0,
                        previous_sentences=defaults.previous_sentences if sentences < 0
                        else sentences)
        if self.recall_steps and not relay:
            raise ValueError('recall_steps needs streams that relieve one another: a parallel '
                             'position_encoding, another schedule than offline, and memory')
        if reserved < max_steps and scheme.after_video:
            raise ValueError(f'reserved_steps must be at least max_steps, {max_steps}, not '
                             f'{reserved}: the text would be where later video is')
        return found


    def _relay_of(self, defaults: StreamDefaults) -> tuple[int, int]:
        """Return capacity and memory; a checkpoint's own go with its own max_steps alone."""
        if self.max_steps or self.capacity:
            return self.capacity, self.memory
        return defaults.capacity, defaults.memory if self.memory < 0 else self.memory


SETTINGS = settings_of(SessionConfig)
BY_NAME = {declared.name: declared for declared in SETTINGS}


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
