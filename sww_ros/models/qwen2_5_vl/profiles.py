"""
How published streaming checkpoints of Qwen2.5-VL were trained to be asked: data, and no code.

Read in the public code that comes with them: `streaming_vlm/inference` of mit-han-lab/streaming-vlm
(StreamingVLM, arXiv 2510.09608), `demo/api_server.py` and `demo/inference.py` of
yellow-binary-tree/MMDuet2 (arXiv 2512.06810). docs/models.md says what is different here.
"""

from __future__ import annotations

from sww_ros.models.qwen2_5_vl.turns import TurnByTurn
from sww_ros.streaming.family import Profile

_TOKEN = 28 * 28
"""Pixels of one merged visual token."""

PROFILES = {
    # A turn a second, of two frames; ' ...' ends each reply and is all of a silent one. Streams are
    # as long as the clips that it was trained on; in its own code a window of 16 s slides. top_k is
    # what transformers' `generate` has where nobody says otherwise.
    'streaming_vlm': Profile(
        turns=TurnByTurn(
            previous='previous text', opening='Time={start:.1f}-{stop:.1f}s'),
        known_as=('streamingvlm', 'streaming-vlm', 'streaming_vlm'),
        pixels=(100 * _TOKEN, 768 * _TOKEN), silence=' ...', goes_on=True,
        carries_text=True, repetition_penalty=1.05, temperature=0.9, top_k=50,
        defaults=dict(
            position_encoding='interleaved', schedule='live', wait_k=20, seconds_per_step=1.0,
            max_steps=24, system='You are a helpful assistant.',
            prompt='Please describe the video.')),
    # A turn of two pictures, two seconds from each other.
    'mmduet2': Profile(
        turns=TurnByTurn(steps_per_turn=2), known_as=('mmduet2',),
        pixels=(4 * _TOKEN, 128 * _TOKEN), silence='NO REPLY', frames_per_step=1,
        defaults=dict(
            position_encoding='interleaved', schedule='live', wait_k=512, seconds_per_step=2.0,
            max_steps=90,
            system='You are a helpful assistant. Your task is to answer questions based on '
                   'continuously incoming video frames. Your responses should include information '
                   'from the video since your last reply (if any). If the information in this '
                   'segment of the video cannot answer the question, output "NO REPLY".',
            prompt='What is happening in the video?')),
}
