"""Qwen2.5-VL's chat turns around a stream, as text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ChatTurns:
    """`streaming.family.Turns` of Qwen2.5-VL: one user turn holds the prompt and the video."""

    special: tuple[str, ...] = ('<|im_start|>', '<|im_end|>', '<|vision_start|>',
                                '<|vision_end|>')
    end: str = '<|im_end|>'
    tail: str = '<|vision_end|><|im_end|>\n'
    assistant: str = '<|im_start|>assistant\n'
    next_turn: str = '<|im_end|>\n<|im_start|>assistant\n'

    def prefix(self, system: str, prompt: str) -> tuple[str, ...]:
        """System turn, standing question and the start of the video: ours, the user's, ours."""
        return (f'<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n', prompt,
                '<|vision_start|>')

    def question(self, question: str) -> tuple[str, ...]:
        """The head of the text group of a question asked at run time: ours, the user's, ours."""
        return '<|im_start|>user\n', question, self.next_turn

    def around_step(self, index: int, seconds: float) -> tuple[str, str]:
        """Nothing: the steps of a video stand side by side."""
        return '', ''


TURNS = ChatTurns()
