"""
How Qwen2.5-VL is asked: a video in one chat turn, or in one for every few steps.

How published streaming checkpoints of it were trained to be asked is data, `PROFILES`, read in the
public code that comes with them: `streaming_vlm/inference` of mit-han-lab/streaming-vlm
(StreamingVLM, arXiv 2510.09608), `demo/api_server.py` and `demo/inference.py` of
yellow-binary-tree/MMDuet2 (arXiv 2512.06810). docs/models.md says what is different here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sww_ros.streaming.family import Profile, StepPlace


@dataclass(frozen=True)
class ChatTurns:
    """`streaming.family.Turns` of Qwen2.5-VL: one user turn holds the prompt and the video."""

    special: tuple[str, ...] = ('<|im_start|>', '<|im_end|>', '<|vision_start|>',
                                '<|vision_end|>')
    end: str = '<|im_end|>'
    tail: str = '<|vision_end|><|im_end|>\n'
    assistant: str = '<|im_start|>assistant\n'
    next_turn: str = '<|im_end|>\n<|im_start|>assistant\n'
    steps_per_turn: int = 0
    first_turn: int = 0
    drops_cut: bool = False
    inside: str = ''

    def prefix(self, system: str, prompt: str, said: str = '') -> tuple[str, ...]:
        """System turn, standing question and the start of the video: ours, the user's, ours."""
        return (f'<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n', prompt,
                '<|vision_start|>')

    def question(self, question: str) -> tuple[str, ...]:
        """The head of the text group of a question asked at run time: ours, the user's, ours."""
        return '<|im_start|>user\n', question, '<|im_end|>\n<|im_start|>assistant\n'

    def joined(self, index: int) -> int:
        """No other step: turns have no videos of their own."""
        return 0

    def around_step(self, step: StepPlace) -> tuple[Sequence[str], Sequence[str]]:
        """Nothing: the steps of a video stand side by side."""
        return (), ()


TURNS = ChatTurns()


@dataclass(frozen=True)
class TurnByTurn(ChatTurns):
    """
    A turn of the user for every `steps_per_turn` steps, and one of the assistant after each.

    `opening` begins a turn of the user, with `{start}` and `{stop}` for its time [s]. The prompt
    follows the pictures of the first one. Before that comes a turn of the role `previous`, if
    there is one, with what was said before. A turn is complete with the last step of a video too.
    With `inside`, the steps of a turn are one video.
    """

    tail: str = ''
    next_turn: str = '<|im_end|>\n'
    steps_per_turn: int = 1
    previous: str = ''
    opening: str = ''

    def prefix(self, system: str, prompt: str, said: str = '') -> tuple[str, ...]:
        """The system turn, and what is between that and the first turn with video."""
        before = f'<|im_start|>system\n{system}<|im_end|>\n'
        if not self.previous:
            return (before,)
        return f'{before}<|im_start|>{self.previous}\n', said, '<|im_end|>\n'

    def _turn_of(self, index: int) -> tuple[int, int]:
        """The turn of a step, and its place there, from 0."""
        first = self.first_turn or self.steps_per_turn
        if index < first:
            return 0, index
        turn, place = divmod(index - first, self.steps_per_turn)
        return turn + 1, place

    def joined(self, index: int) -> int:
        """How many steps before a step are in the same video."""
        return self._turn_of(index)[1] if self.inside else 0

    def around_step(self, step: StepPlace) -> tuple[Sequence[str], Sequence[str]]:
        """What opens and what completes a turn, and its pictures or its video."""
        turn, place = self._turn_of(step.index)
        length = self.steps_per_turn if turn else self.first_turn or self.steps_per_turn
        ends = place + 1 == length or step.last
        before = '' if self.joined(step.index) else '<|vision_start|>'
        after = '<|vision_end|>' if ends or not self.inside else ''
        if not place:
            start = (step.elapsed + step.index) * step.seconds
            stop = start + length * step.seconds
            before = f'<|im_start|>user\n{self.opening.format(start=start, stop=stop)}{before}'
        if not ends:
            return (before,), (after,)
        # The first reply is opened by the narration itself, once there is one.
        return (before,), (after, '' if turn else step.prompt,
                           f'{self.end}\n{self.assistant if step.begun else ""}')


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
