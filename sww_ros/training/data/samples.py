"""One training sample, and the report on which records became samples and why others did not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from sww_ros.training.data.errors import Rejected
from sww_ros.training.data.records import Record

_EXAMPLES = 3


@dataclass(frozen=True)
class Sample:
    """
    A stretch of video, what is asked about it, and what is to be said.

    `prompt` is the standing question; `answer` the caption, or the answer to the question.
    `start_s`, `end_s` [s] are counted from the first picture; None: to the end of the video.
    `source` is where it was annotated, for messages: `file:line`.
    `duration_s` [s] is the length of the whole video, where the annotation says.
    `topic` is the image topic of a bag; '': `video` is a video file.
    """

    video: Path
    prompt: str
    answer: str
    start_s: float = 0.0
    end_s: float | None = None
    source: str = ''
    duration_s: float | None = None
    topic: str = ''

    @property
    def length_s(self) -> float | None:
        """Seconds from start to end; None where the annotation does not say."""
        end_s = self.duration_s if self.end_s is None else self.end_s
        return None if end_s is None else end_s - self.start_s


class Report:
    """How many records were kept, how many left out for which reason, and examples of these."""

    def __init__(self) -> None:
        self.kept = 0
        self.left_out: Counter[str] = Counter()
        self.examples: list[str] = []

    def reject(self, error: Rejected) -> None:
        """Count a record that is no sample; the first few of a reason are told in full."""
        self.left_out[error.reason] += 1
        if self.left_out[error.reason] <= _EXAMPLES:
            self.examples.append(str(error))

    def __str__(self) -> str:
        total = self.kept + sum(self.left_out.values())
        reasons = ', '.join(f'{n} {reason}' for reason, n in self.left_out.most_common())
        lines = [f'kept {self.kept} of {total} samples' + (f'; {reasons}' if reasons else '')]
        return '\n  '.join(lines + self.examples)


def collect(records: Iterable[Record], to_sample: Callable[[Record], Sample],
            report: Report | None, name: Path) -> list[Sample]:
    """
    Turn records into samples; a record that cannot be one is reported, not fatal.

    :param report: takes the counts, those of several files if it is passed on
    :param name: the file of annotations, for the message
    :raises ValueError: where no record is usable; the message ends in the reasons
    """
    here, samples = Report(), []
    for record in records:
        try:
            samples.append(to_sample(record))
        except Rejected as error:
            here.reject(error)
            if report:
                report.reject(error)
    here.kept = len(samples)
    if report:
        report.kept += here.kept
    if not samples:
        raise ValueError(f'no usable sample in {name}: {here}')
    return samples
