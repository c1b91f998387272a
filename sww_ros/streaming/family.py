"""
The seam to a kind of model: all that streaming asks of it, and where it is found.

A family is one folder in `sww_ros/models`, called what config.json calls its `model_type`, whose
`FAMILY` is a `Family`. Whatever only that kind of model has (loading and checks, the arithmetic of
its vision tower and its decoder layers, rotary angles, chat turns, clock, stock forward) is there.
"""

from __future__ import annotations

from dataclasses import dataclass
import importlib
import pkgutil
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from sww_ros.models.files import Files
    from sww_ros.streaming.decoder import Decoder
    from sww_ros.streaming.perception import PixelSettings
    from sww_ros.streaming.trace import Trace


@dataclass(frozen=True)
class Seen:
    """
    What a vision tower makes of one step.

    `rows` (tokens, hidden of the language model) go into the visual lane; where the scene is still,
    those at `places` alone, int64 (n,), rising. A family whose decoder layers take more than that
    from the tower returns a subclass with it.
    """

    rows: torch.Tensor
    places: torch.Tensor | None = None


class VisionTower(Protocol):
    """The vision tower of a family, for one step of video at a time."""

    dtype: torch.dtype
    device: torch.device

    def __call__(self, patches: torch.Tensor, rows: int, columns: int) -> Seen:
        """See the patches of one step, whose merged tokens are laid out as rows x columns."""


class Turns(Protocol):
    """
    The text around a stream, as a model was trained to be asked.

    Parts alternate: ours, in which special tokens are written out, the user's, in which they are
    only text, ours. `special` tokens must be known to the tokenizer; `end` ends a turn. `tail`
    follows a video that has ended, `assistant` opens the narration, and `next_turn` closes a
    narration turn that has ended and opens the next one.
    """

    @property
    def special(self) -> tuple[str, ...]: ...

    @property
    def end(self) -> str: ...

    @property
    def tail(self) -> str: ...

    @property
    def assistant(self) -> str: ...

    @property
    def next_turn(self) -> str: ...

    def prefix(self, system: str, prompt: str) -> tuple[str, ...]:
        """System turn, standing question and the start of the video."""

    def question(self, question: str) -> tuple[str, ...]:
        """The head of the text group of a question asked at run time."""

    def around_step(self, index: int, seconds: float) -> tuple[str, str]:
        """
        Ours, before and after the visual rows of a step; '' for none.

        :param index: of the step in its video, from 0
        :param seconds: how long a step is
        """


class Family(Protocol):
    """
    A kind of model: how it is loaded, taken apart for streaming, and run as the oracle.

    `net` is transformers' own model, `config` its config. What cannot be streamed is a
    ValueError, in words.
    """

    @property
    def name(self) -> str: ...

    @property
    def turns(self) -> Turns: ...

    def config(self, source: str, files: Files, **options: Any) -> Any:
        """
        Return the config of a checkpoint, once nothing in it can hang or mislead what is built.

        :param options: for transformers' `from_pretrained`
        """

    def stock(self, source: str, **options: Any) -> Any:
        """Return what transformers' `from_pretrained` does, from safetensors, with `sdpa`."""

    def outline(self, config: Any) -> Any:
        """Return the stock model without weights, on the device 'meta'."""

    def tokens_per_second(self, config: Any) -> float:
        """Positions a second on the model's clock."""

    def pixels(self, name: str, data: dict, config: Any, trained: bool) -> PixelSettings:
        """
        Return how it wants its frames; only one trained to stream sets its own size.

        :param name: the processor's file, for messages
        :param data: its content
        """

    def vision(self, net: Any) -> VisionTower:
        """Return the vision tower, which shares the weights of the stock one."""

    def decoder(self, net: Any) -> Decoder:
        """Return the language model; the stock one is used up by it."""

    def stock_logits(self, net: Any, trace: Trace, at: torch.Tensor) -> torch.Tensor:
        """
        Run one masked full forward pass of the stock model over a recorded run.

        :param at: int64 (n,), the rows whose logits (n, vocabulary) are returned
        """


def family_of(model_type: object) -> Family:
    """
    Return the family of models whose config.json has this `model_type`.

    :raises ValueError: for one that there is no folder for
    """
    from sww_ros import models
    folders = {found.name for found in pkgutil.iter_modules(models.__path__) if found.ispkg}
    known = {name: importlib.import_module(f'{models.__name__}.{name}').FAMILY
             for name in sorted(folders)}
    if model_type not in [*known]:  # A file may say anything, a list too, which has no hash.
        names = ', '.join(f'{family.name} ({name})' for name, family in known.items())
        raise ValueError(f'it is a {model_type!r} model; only {names} can be streamed')
    return known[model_type]
