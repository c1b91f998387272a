"""What a session needs of a loaded checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
import threading

from sww_ros.streaming.decoder import Decoder
from sww_ros.streaming.generation import Vocabulary
from sww_ros.streaming.perception import Perception
from sww_ros.streaming.positions import GIPE_GAP


@dataclass(frozen=True)
class StreamDefaults:
    """How a checkpoint was trained to stream: `speak_while_watching` in its config."""

    position_encoding: str = 'gdpe'
    position_gap: int = GIPE_GAP
    schedule: str = 'wait_k'
    wait_k: int = 3
    seconds_per_step: float = 1.0
    tokens_per_second: float = 2.0
    system: str = 'You are a helpful assistant.'
    prompt: str = 'Describe what is happening in the video as it happens.'
    max_steps: int = 64


@dataclass(frozen=True)
class Checkpoint:
    """
    A Qwen2.5-VL checkpoint, taken apart for streaming; `tokenizer` is transformers' own.

    `trained` says that its defaults are how it was trained to stream, not only ours.
    """

    name: str
    parameters: int
    decoder: Decoder
    perception: Perception
    tokenizer: object
    vocabulary: Vocabulary
    defaults: StreamDefaults
    trained: bool = False

    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

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
