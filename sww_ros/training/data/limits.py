"""The paper's filter of captioned videos: their length, and how much is said a second."""

from __future__ import annotations

from dataclasses import dataclass

from sww_ros.training.data.errors import Rejected
from sww_ros.training.data.samples import Sample


@dataclass(frozen=True)
class Limits:
    """Which samples to keep, both ranges with their ends; the paper's own by default."""

    seconds: tuple[float, float] = (5.0, 30.0)
    tokens_per_second: tuple[float, float] = (3.0, 5.0)

    def check(self, sample: Sample, tokenizer) -> None:
        """
        Check one sample against both ranges.

        :param tokenizer: transformers' own, which counts the tokens of the answer
        :raises Rejected: for a sample outside, or one whose length is not known
        """
        length_s = sample.length_s
        if length_s is None:
            raise Rejected('of unknown length', f'{sample.source}: the length of the video is not '
                                                'known; add "duration": seconds')
        tokens = len(tokenizer(sample.answer, add_special_tokens=False)['input_ids'])
        for value, (low, high), few, many, unit in (
                (length_s, self.seconds, 'too short', 'too long', 's'),
                (tokens / length_s, self.tokens_per_second, 'said too little', 'said too much',
                 'tokens a second')):
            if not low <= value <= high:
                raise Rejected(few if value < low else many,
                               f'{sample.source}: {value:.4g} {unit}, outside {low:g} to {high:g}')


PAPER = Limits()
"""5 to 30 s, 3 to 5 tokens a second."""
