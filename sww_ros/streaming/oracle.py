"""
The oracle: one masked full forward pass of transformers' own model over a recorded run.

It shares no code with the live pass but the position and visibility rules, and has to give the
same tokens. Any race, any off-by-one in a mask, any stale row shows as a difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from sww_ros.streaming.trace import VIDEO, Trace


@dataclass(frozen=True)
class Verdict:
    """How a replay went: for each compared row whether its token differs, and its logits."""

    wrong: torch.Tensor
    logits: torch.Tensor

    @property
    def compared(self) -> int:
        return len(self.wrong)

    @property
    def differing(self) -> int:
        return int(self.wrong.sum())


@torch.inference_mode()
def replay(trace: Trace, model: Qwen2_5_VLForConditionalGeneration) -> Verdict:
    """Run a trace through the stock model and compare every token that was predicted."""
    model.eval()
    device = model.device
    rows, columns = trace.grid
    grid = torch.tensor([[trace.steps, 2 * rows, 2 * columns]], device=device)
    seen = model.model.visual(trace.patches.to(device, model.dtype), grid_thw=grid).pooler_output
    table = model.get_input_embeddings()
    ids = torch.from_numpy(trace.ids).to(device)
    embeds = table(ids.clamp(min=0))
    embeds[ids == VIDEO] = seen.to(model.dtype)
    embeds = embeds[None]
    mask = torch.from_numpy(trace.rows().mask())[None, None].to(device)
    positions = torch.from_numpy(trace.positions)[:, None].to(device)
    hidden = model.model.language_model(
        inputs_embeds=embeds, position_ids=positions, attention_mask=mask,
        use_cache=False).last_hidden_state[0]
    predicted = trace.predicted
    at = np.flatnonzero(predicted >= 0)
    logits = model.lm_head(hidden[torch.from_numpy(at).to(device)])
    return Verdict(logits.argmax(-1).cpu() != torch.from_numpy(predicted[at]), logits)
