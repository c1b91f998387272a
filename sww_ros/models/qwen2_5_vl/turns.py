"""The chat turns of Qwen2.5-VL: all of a video in one, or one for every few steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sww_ros.streaming.family import StepPlace


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
