"""
Where each token sits: three-dimensional M-RoPE positions (t, h, w) of every position scheme.

Source: "Speak While Watching", arXiv 2601.06843, section 3; Qwen2.5-VL's rule for video time.
All positions are int64 arrays of shape (3, n).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TAIL_TOKENS = 3
"""`<|vision_end|><|im_end|>\\n`, which follow a video that has ended."""


def text_positions(first: int, count: int) -> np.ndarray:
    """Positions of `count` text tokens from `first` on: t = h = w."""
    return np.tile(np.arange(first, first + count, dtype=np.int64), (3, 1))


@dataclass(frozen=True)
class VideoClock:
    """
    Qwen2.5-VL's time axis: tau(f) = floor(f * seconds_per_step * tokens_per_second).

    One step is one temporal patch (2 frames); the default 1 s step at 2 positions a second.
    """

    tokens_per_second: float = 2.0
    seconds_per_step: float = 1.0

    def tau(self, step: int | np.ndarray) -> np.ndarray:
        return np.floor(np.asarray(step) * self.seconds_per_step
                        * self.tokens_per_second).astype(np.int64)


def step_positions(first: int, tau: int, height: int, width: int) -> np.ndarray:
    """Positions of height x width merged tokens: (first + tau, first + r, first + c)."""
    row, column = np.divmod(np.arange(height * width, dtype=np.int64), width)
    return np.stack([np.full_like(row, tau), row, column]) + first


@dataclass(frozen=True)
class GroupScheme:
    """
    The schemes whose visual positions never depend on text, so that both sides run in parallel.

    The visual group is prefix 0..p-1, then the steps from p on; every text group counts from
    `text_start` on its own: 0 is group-decoupled (GDPE), a gap is gap-isolated (GIPE).
    """

    name: str
    text_start: int
    clock: VideoClock = VideoClock()

    def prefix(self, tokens: int) -> np.ndarray:
        return text_positions(0, tokens)

    def visual(self, prefix_tokens: int, step: int, height: int, width: int) -> np.ndarray:
        return step_positions(prefix_tokens, int(self.clock.tau(step)), height, width)

    def text(self, index: int, count: int) -> np.ndarray:
        """Positions of the text group's own tokens `index` to `index + count - 1`."""
        return text_positions(self.text_start + index, count)


GIPE_GAP = 10_000
"""Delta of the authors' code: an absolute position, not an offset from the video's last."""


def make_scheme(name: str, clock: VideoClock | None = None, gap: int = GIPE_GAP) -> GroupScheme:
    """
    Return the position scheme called `name`: 'gdpe' or 'gipe'.

    :raises ValueError: for a name that no scheme has
    """
    starts = {'gdpe': 0, 'gipe': gap}
    if name not in starts:
        raise ValueError(f'unknown position scheme {name!r}; one of {", ".join(sorted(starts))}')
    return GroupScheme(name, starts[name], clock or VideoClock())


def video_layout(scheme: GroupScheme, prefix_tokens: int, steps: int, height: int, width: int,
                 text_tokens: int) -> np.ndarray:
    """
    Positions of a whole sequence `prefix V_1..V_n tail text`, shape (3, length).

    The tail sits at max + 1, + 2, + 3 of the visual group.
    """
    parts = [scheme.prefix(prefix_tokens)]
    parts += [scheme.visual(prefix_tokens, step, height, width) for step in range(steps)]
    tail = int(max(part.max() for part in parts if part.size)) + 1
    parts += [text_positions(tail, TAIL_TOKENS), scheme.text(0, text_tokens)]
    return np.concatenate(parts, axis=1)
