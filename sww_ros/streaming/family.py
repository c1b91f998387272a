"""
The seam to a kind of model: all that streaming asks of it, and where it is found.

A family is one folder in `sww_ros/models`, called what config.json calls its `model_type`, whose
`FAMILY` is a `Family`. Whatever only that kind of model has (loading and checks, the arithmetic of
its vision tower and its decoder layers, rotary angles, chat turns, clock, stock forward) is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    those at `places` alone, int64 (n,), rising. `deep` (layers, tokens, hidden) is what is added to
    them after each of the first decoder layers (DeepStack, arXiv 2406.04334); None for nothing.
    """

    rows: torch.Tensor
    places: torch.Tensor | None = None
    deep: torch.Tensor | None = None


@dataclass(frozen=True)
class Wanted:
    """How weights are wanted; `quantize` is the form of the matrices of the decoder's layers."""

    dtype: torch.dtype
    device: torch.device
    quantize: str = 'none'


class VisionTower(Protocol):
    """
    The vision tower of a family, for steps of video of one size; of so many `parameters`.

    `deep_layers` is for how many decoder layers its `Seen.deep` is, 0 for none.
    """

    dtype: torch.dtype
    device: torch.device
    parameters: int
    deep_layers: int

    def __call__(self, patches: torch.Tensor, rows: int, columns: int) -> Seen:
        """
        See the patches of a step, whose merged tokens are laid out as rows x columns.

        Or of several such steps, one behind the other, as are their tokens; none sees another.
        """


@dataclass(frozen=True)
class StepPlace:
    """
    Where a step stands in its stream, which the text around it may depend on.

    `index` counts from 0, after `elapsed` steps of streams before, and a step is `seconds` long;
    `prompt` is what the narrator is told to do, `last` says that the video ends here, `begun` that
    its narration has begun.
    """

    index: int
    seconds: float
    elapsed: int = 0
    prompt: str = ''
    last: bool = False
    begun: bool = False


class Turns(Protocol):
    """
    The text around a stream, as a model was trained to be asked.

    Parts alternate: ours, in which special tokens are written out, the user's, in which they are
    only text, ours. `special` tokens must be known to the tokenizer; `end` ends a turn. `tail`
    follows a video that has ended, `assistant` opens the narration, and `next_turn` stands in
    place of the token that ends one of its turns.

    Where `steps_per_turn` is 0, all steps are in one turn of the user, and `next_turn` opens the
    narration's next one. Otherwise so many are in a turn (in the first one `first_turn`, if that is
    not 0), each such turn is replied to, `next_turn` only closes a reply, and the next step's text
    goes on: which works with positions alone that run on through video and text. `drops_cut` says
    that a reply which was too long loses its last token by that. `inside` is not empty where the
    steps of a turn are one video, which it closes before what is asked within that.
    """

    @property
    def steps_per_turn(self) -> int: ...

    @property
    def first_turn(self) -> int: ...

    @property
    def drops_cut(self) -> bool: ...

    @property
    def inside(self) -> str: ...

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

    def prefix(self, system: str, prompt: str, said: str = '') -> tuple[str, ...]:
        """
        System turn, standing question and the start of the video.

        :param said: what was said before it, of a profile that carries text
        """

    def question(self, question: str) -> tuple[str, ...]:
        """The head of the text group of a question asked at run time; ours opens a user's turn."""

    def joined(self, index: int) -> int:
        """How many steps before a step, from 0, are in the same video of a turn."""

    def around_step(self, step: StepPlace) -> tuple[Sequence[str], Sequence[str]]:
        """Parts before and parts after the visual rows of a step, ours first; () for none."""


@dataclass(frozen=True)
class Profile:
    """
    How a published checkpoint of a family was trained to be asked, as data.

    It is told from the names in `known_as`. `defaults` are those of `StreamDefaults`;
    `frames_per_step` are 0 for as many as a temporal patch has; `pixels` are the fewest and the
    most of a frame. `silence` is what a turn says in place of nothing; with `goes_on` it is also
    what ends every turn, and what is said goes on in the next one. With `carries_text` a stream
    that begins anew, as it was full, is told what was said before, and its time goes on.
    `repetition_penalty` is 0 for that of its generation_config.json. Tokens are drawn with its
    `temperature` and `top_k`, where that is not 0.
    """

    turns: Turns
    known_as: tuple[str, ...]
    pixels: tuple[int, int]
    silence: str
    goes_on: bool = False
    carries_text: bool = False
    frames_per_step: int = 0
    repetition_penalty: float = 0.0
    temperature: float = 0.0
    top_k: int = 0
    defaults: Mapping[str, Any] = field(default_factory=dict)


class Family(Protocol):
    """
    A kind of model: how it is loaded, taken apart for streaming, and run as the oracle.

    `net` is transformers' own model, `config` its config; weights that are `wanted` in no way stay
    as they are. What cannot be streamed is a ValueError, in words.
    """

    @property
    def name(self) -> str: ...

    @property
    def turns(self) -> Turns: ...

    @property
    def profiles(self) -> Mapping[str, Profile]:
        """Those of its checkpoints that are asked in another way, by the names of the parameter."""

    def config(self, source: str, files: Files, **options: Any) -> Any:
        """
        Return the config of a checkpoint, once nothing in it can hang or mislead what is built.

        :param options: for transformers' `from_pretrained`
        """

    def stock(self, source: str | None, **options: Any) -> Any:
        """
        Return what transformers' `from_pretrained` does, from safetensors, with `sdpa`.

        :param source: None: of `config` and `state_dict` among the options
        """

    def outline(self, config: Any) -> Any:
        """Return the stock model without weights, on the device 'meta'."""

    def tokens_per_second(self, config: Any) -> float:
        """Positions a second on the model's clock; 0 where each step is the next position."""

    def pixels(self, name: str, data: dict, config: Any, trained: bool) -> PixelSettings:
        """
        Return how it wants its frames; only one trained to stream sets its own size.

        :param name: the processor's file, for messages
        :param data: its content
        """

    def vision(self, net: Any, wanted: Wanted | None = None) -> VisionTower:
        """Return the vision tower, which shares the weights of the stock one, made as wanted."""

    def decoder(self, net: Any, wanted: Wanted | None = None) -> Decoder:
        """
        Return the language model, as wanted; the stock one is used up by it, layer by layer.

        So there is never more than one layer in the type of its file and in another.
        """

    def quantize(self, net: Any, quantize: str) -> None:
        """Make the stock model the oracle of a quantized one: its matrices are dequantized."""

    def stock_logits(self, net: Any, trace: Trace, at: torch.Tensor) -> torch.Tensor:
        """
        Run one masked full forward pass of the stock model over a recorded run.

        :param at: int64 (n,), the rows whose logits (n, vocabulary) are returned
        """

    def stock_extras(self, seen: Any, visual: torch.Tensor,
                     places: torch.Tensor | None = None) -> dict[str, Any]:
        """
        Return what the stock text model takes of the stock tower's output beside rows, by name.

        :param visual: bool (clips, n), which of the rows hold visual tokens
        :param places: int64 (v,), which tokens of the output those are; None: all, in order
        """


def family_of(model_type: object) -> Family:
    """
    Return the family of models whose config.json has this `model_type`.

    :raises ValueError: for one that there is no folder for
    """
    from sww_ros import models
    folders = sorted(found.name for found in pkgutil.iter_modules(models.__path__) if found.ispkg)
    # A file may say anything, a list too. Only what is asked for is imported: that takes its time.
    named = [model_type] if model_type in folders else folders
    families = [importlib.import_module(f'{models.__name__}.{name}').FAMILY for name in named]
    if model_type in folders:
        return families[0]
    names = ', '.join(f'{family.name} ({name})' for name, family in zip(folders, families))
    raise ValueError(f'it is a {model_type!r} model; only {names} can be streamed')
