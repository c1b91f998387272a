"""
The oracle: one masked full forward pass of transformers' own model over a recorded run.

It shares no code with the live pass but the position and visibility rules, and has to give the
same tokens. Any race, any off-by-one in a mask, any stale row shows as a difference.

That holds in fp32 and fp64. In bf16 and fp16 the two round at different places, as their matrices
are cut differently: a token may differ where the best two are as good as equal, and only there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sww_ros.streaming.family import family_of
from sww_ros.streaming.trace import Trace

_ROUNDING = 4.0
"""In narrow types, logits differ by about one step of the largest; their gap by twice that."""


@dataclass(frozen=True)
class Verdict:
    """
    How a replay went: for each compared row whether its token differs, and its logits.

    `rounded` are those among the wrong that the rounding of a narrow type explains.
    """

    wrong: torch.Tensor
    rounded: torch.Tensor
    logits: torch.Tensor

    @staticmethod
    def of(spoken: torch.Tensor, logits: torch.Tensor, dtype: torch.dtype) -> Verdict:
        """
        Compare the tokens that were spoken (n,) with the oracle's logits (n, vocabulary).

        :param dtype: the narrower of the types that both were computed in
        """
        wrong = logits.argmax(-1) != spoken
        wide = logits.float()
        gap = wide.max(-1).values - wide.gather(1, spoken[:, None])[:, 0]
        close = gap <= _ROUNDING * torch.finfo(dtype).eps * wide.abs().max(-1).values
        narrow = torch.finfo(dtype).bits < 32
        return Verdict(wrong, wrong & close & narrow, logits)

    @property
    def compared(self) -> int:
        return len(self.wrong)

    @property
    def differing(self) -> int:
        return int(self.wrong.sum())

    @property
    def rounding(self) -> int:
        """How many of the differing tokens are explained by rounding; 0 in fp32 and fp64."""
        return int(self.rounded.sum())


@torch.inference_mode()
def replay(trace: Trace, model: Any) -> Verdict:
    """
    Run a trace through the stock model and compare every token that was predicted.

    :param model: transformers' own, in the type of the recorded run (`trace.dtype`), or all is
        rounded differently
    """
    model.eval()
    at = torch.from_numpy(np.flatnonzero(trace.predicted >= 0))
    logits = family_of(model.config.model_type).stock_logits(model, trace, at)
    spoken = torch.from_numpy(trace.predicted)[at].to(logits.device)
    types = getattr(torch, trace.dtype), model.dtype
    return Verdict.of(spoken, logits, max(types, key=lambda dtype: torch.finfo(dtype).eps))
