"""
How published streaming checkpoints of Qwen2-VL were trained to be asked: data, and no code.

Read in the public code that comes with LiveCC (arXiv 2504.16030), `demo/infer.py` and
`data/lmm_dataset.py` of showlab/livecc. docs/models.md says what is different here.
"""

from __future__ import annotations

from sww_ros.models.qwen2_5_vl.turns import TurnByTurn
from sww_ros.streaming.family import Profile

_TOKEN = 28 * 28
"""Pixels of one merged visual token."""

PROFILES = {
    # Three seconds in one video, then a turn a second; ' ...' ends each reply and is all of a
    # silent one. Streams have as many visual tokens as the clips that it was trained on, 24 k.
    'livecc': Profile(
        turns=TurnByTurn(first_turn=3, inside='<|vision_end|>', drops_cut=True,
                         opening='Time={start:.1f}-{stop:.1f}s'),
        known_as=('livecc',), pixels=(100 * _TOKEN, 384 * _TOKEN), silence=' ...', goes_on=True,
        repetition_penalty=1.05,
        defaults=dict(
            position_encoding='interleaved', schedule='live', wait_k=16, seconds_per_step=1.0,
            max_steps=64, system='You are a helpful assistant.',
            prompt='Please describe the video.')),
}
