"""
How a token is chosen of logits: the likeliest one, or one that is drawn.

As transformers defines it: repetition penalty, then temperature, top-k and top-p. A draw depends on
nothing but the seed, who speaks, and which token it is: not on threads, nor on what is decoded in
the same pass. So a run with draws is the same whatever the executor, and can be replayed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
import math
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def check_finite(value: float) -> None:
    """
    Check what a model has computed.

    :raises ArithmeticError: in words, for what is no finite number
    """
    if not math.isfinite(value):
        raise ArithmeticError(f'the model computes no finite numbers ({value}): its weights are '
                              'broken, or float16 is too narrow for it')


@dataclass(frozen=True)
class Sampling:
    """
    What is done to logits before a token is chosen.

    `temperature` 0 takes the likeliest; `top_k` 0 and `top_p` 1.0 leave none out.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def draw(self, speaker: str, first: int, index: int) -> float:
        """
        Return the draw in [0, 1) for a token.

        :param first: steps of the video before the stream that is spoken about
        :param index: how many tokens have been chosen in it before
        """
        return random.Random(f'{self.seed} {speaker} {first} {index}').random()

    def penalized(self, logits: torch.Tensor, used: Collection[int]) -> torch.Tensor:
        """Return logits (vocabulary,) with those of tokens that were `used` made smaller."""
        if self.repetition_penalty == 1.0 or not used:
            return logits
        import torch  # Here: settings of a session are read where there is no torch, as in a node.
        ids = torch.tensor(sorted(used), device=logits.device)
        logits = logits.clone()
        liked = logits[ids]
        logits[ids] = torch.where(liked > 0, liked / self.repetition_penalty,
                                  liked * self.repetition_penalty)
        return logits

    def shares(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the probabilities, fp64 (vocabulary,), with which tokens are drawn."""
        scores = logits.double() / self.temperature
        if 0 < self.top_k < len(scores):
            scores[scores < scores.topk(self.top_k).values[-1]] = -math.inf
        if self.top_p < 1:
            rising, ids = scores.sort()
            too_rare = rising.softmax(0).cumsum(0) <= 1 - self.top_p
            too_rare[-1] = False
            scores[ids[too_rare]] = -math.inf
        return scores.softmax(0)

    def choose(self, logits: torch.Tensor, draw: float) -> int:
        """
        Return a token by penalized logits (vocabulary,); a draw falls into a share, in id order.

        :raises ArithmeticError: for logits that are no finite numbers
        """
        token = int(logits.argmax())
        # A NaN counts as the largest, so that logit tells of one anywhere.
        check_finite(float(logits[token]))
        if not self.temperature:
            return token
        import torch
        ends = self.shares(logits).cumsum(0)
        return int(torch.searchsorted(ends, draw * ends[-1], right=True))


GREEDY = Sampling()
