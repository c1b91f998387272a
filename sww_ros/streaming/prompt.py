"""The chat turns around a stream, as text: prefix, narration and question heads."""

from __future__ import annotations

TURN_END = '<|im_end|>'
VIDEO_TAIL = f'<|vision_end|>{TURN_END}\n'
ASSISTANT_HEAD = '<|im_start|>assistant\n'
NEXT_TURN = f'{TURN_END}\n{ASSISTANT_HEAD}'
"""What closes a narration turn that has ended and opens the next one."""


def prefix_parts(system: str, prompt: str) -> tuple[str, ...]:
    """System turn, standing question and the start of the video: ours, the user's, ours."""
    return (f'<|im_start|>system\n{system}{TURN_END}\n<|im_start|>user\n', prompt,
            '<|vision_start|>')


def question_parts(question: str) -> tuple[str, ...]:
    """The head of the text group of a question asked at run time: ours, the user's, ours."""
    return '<|im_start|>user\n', question, f'{TURN_END}\n{ASSISTANT_HEAD}'
