"""The settings of a session, with their one set of defaults and their checks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sww_ros.settings import LIBRARY, LIVE, setting, settings_of
from sww_ros.streaming import positions
from sww_ros.streaming.gate import GATES
from sww_ros.streaming.relay import Relay, room_for
from sww_ros.streaming.sampling import Sampling
from sww_ros.streaming.schedule import MAX_WAIT_K, SCHEDULES

if TYPE_CHECKING:  # It checks its prompt here.
    from sww_ros.streaming.checkpoint import Checkpoint, StreamDefaults

QUANTIZATIONS = ('none', 'int8', 'int4')
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
    profile: str = setting(
        '', 'How the checkpoint was trained to be asked (docs/models.md): streaming_vlm, mmduet2, '
        'livecc, or none, which is as others of its kind; empty: as its files and its name say.')
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
    speak: str = setting(
        'trained', 'When narration speaks: as it was trained to, without a silence token at each '
        'step (trained); a sentence of each step (always); or where the checkpoint would rather go '
        'on than end what it has said (surprised), or where the picture has changed (changed).',
        choices=tuple(GATES))
    overlap: str = setting(
        'auto', 'How perception and generation share the hardware: in two threads (on a GPU, with '
        'a stream each), in two processes, one piece of work after the other, or fused into one '
        'pass; auto: what proves best here when the model is loaded.', choices=OVERLAPS)
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
    quantize: str = setting(
        'none', "Whether the matrices of the language model's layers are kept as whole numbers of "
        '8 or 4 bits, which takes a half or a quarter of the memory of bfloat16; embeddings and '
        'vision tower are not.', choices=QUANTIZATIONS)
    threads: int = setting(
        0, 'Threads of one computation on the CPU; 0: what proves best here with overlap auto, '
        'else one.', high=256)
    repetition_penalty: float = setting(
        0.0, 'Above 1.0, tokens already said become less likely; 0: as the checkpoint says (its '
        'generation_config.json), else 1.0, none.', high=10.0)
    temperature: float = setting(
        -1.0, 'With 0 the likeliest token is always said; above, tokens are drawn, the more evenly '
        'the higher; -1: as the profile of the checkpoint says, else 0.', low=-1, high=10.0)
    top_k: int = setting(
        -1, 'Tokens are drawn from so many of the likeliest; 0: from all; -1: as the profile of '
        'the checkpoint says, else 0.', low=-1, high=MAX_TOKENS)
    top_p: float = setting(
        1.0, 'Tokens are drawn from the likeliest that together are as likely as this.', high=1.0)
    sampling_seed: int = setting(0, 'Seed of what is drawn.', high=2 ** 31 - 1)
    record_trace: bool = setting(
        False, 'Whether to record the run, to be replayed.', changes=LIBRARY)
    allow_download: bool = setting(
        False, 'Whether a checkpoint that is not on this machine may be downloaded from the hub.')

    def __post_init__(self) -> None:
        if self.prompt != '':
            check_prompt(self.prompt)
        for declared in SETTINGS:
            declared.check_range(getattr(self, declared.name))
        if self.speak != 'trained' and self.schedule != 'live':
            raise ValueError(f'speak {self.speak!r} says itself when to speak: it needs the '
                             f'schedule live, not {self.schedule}')
        penalty = self.repetition_penalty
        if 0.0 < penalty < 1.0:
            raise ValueError(f'repetition_penalty must be at least 1.0, not {penalty}; 0 '
                             'means that of the checkpoint')
        if -1.0 < self.temperature < 0.0:
            raise ValueError(f'temperature must be at least 0.0, not {self.temperature}; -1 means '
                             'that of the profile')

    def resolved(self, checkpoint: Checkpoint) -> SessionConfig:
        """
        Return the settings with all that is left to the checkpoint filled in.

        :raises ValueError: for settings that do not go together
        """
        if self.profile not in ('', checkpoint.asked or 'none'):
            raise ValueError(f'profile {self.profile!r} is to be chosen when the checkpoint is '
                             f'loaded, which was with {checkpoint.asked or "none"!r}')
        if bool(self.frame_width) != bool(self.frame_height):
            raise ValueError('frame_width and frame_height must be given together, not '
                             f'{self.frame_width} and {self.frame_height}')
        defaults = checkpoint.defaults
        max_steps = self.max_steps or max(defaults.max_steps, room_for(self.capacity))
        # Text that began before the video has ended must not meet its positions.
        reserved = self.reserved_steps or max(defaults.max_steps, max_steps)
        found = replace(
            self, prompt=self.prompt or defaults.prompt,
            repetition_penalty=self.repetition_penalty or checkpoint.repetition_penalty,
            temperature=checkpoint.temperature if self.temperature < 0 else self.temperature,
            top_k=checkpoint.top_k if self.top_k < 0 else self.top_k,
            position_encoding=self.position_encoding or defaults.position_encoding,
            position_gap=self.position_gap or defaults.position_gap,
            wait_k=self.wait_k or defaults.wait_k, max_steps=max_steps, reserved_steps=reserved,
            frame_rate=self.frame_rate or checkpoint.frame_rate)
        scheme = positions.SCHEMES[found.position_encoding]
        if checkpoint.profile and not (scheme.serial and self.schedule in ('live', 'wait_k')):
            raise ValueError(f'{checkpoint.asked} is asked turn by turn, which needs interleaved '
                             'position_encoding and the schedule live or wait_k; or set profile to '
                             'none')
        if checkpoint.profile and self.speak != 'trained':
            raise ValueError(f'{checkpoint.asked} was trained to say when it is silent: set speak '
                             'to trained, or profile to none')
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

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen; of settings as `resolved` returns them."""
        return Sampling(self.temperature, self.top_k, self.top_p, self.repetition_penalty,
                        self.sampling_seed)

    def _relay_of(self, defaults: StreamDefaults) -> tuple[int, int]:
        """Return capacity and memory; a checkpoint's own go with its own max_steps alone."""
        if self.max_steps or self.capacity:
            return self.capacity, self.memory
        return defaults.capacity, defaults.memory if self.memory < 0 else self.memory


SETTINGS = settings_of(SessionConfig)
BY_NAME = {declared.name: declared for declared in SETTINGS}
OF_ENGINE = ('overlap', 'device', 'dtype', 'quantize', 'threads', 'allow_download')
"""The settings that are the same for all sessions on one engine."""


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
