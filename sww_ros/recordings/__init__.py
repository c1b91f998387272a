"""
Recordings, one after the other: narrated without a running ROS, and what was said of each written.

Its command, `python -m sww_ros.narrate`, is beside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import math
from pathlib import Path
import time

from tqdm import tqdm

from sww_ros.bags import STORAGES, write_bag
from sww_ros.library import ClipError
from sww_ros.models.loading import load
from sww_ros.recordings.viewing import Recorded, Viewing
from sww_ros.recordings.writing import passages, whole, write_jsonl, write_subtitles, write_video
from sww_ros.streaming.config import MAX_QUESTION_TOKENS, SessionConfig
from sww_ros.streaming.pace import advice, mismatch
from sww_ros.streaming.session import Session

ENDINGS = ('vtt', 'srt', 'jsonl', 'mp4')
"""What is written, by the ending of OUT; without one it is a bag."""


@dataclass(frozen=True)
class Captions:
    """
    What is written of each recording, and what is asked on the way.

    `kind` is one of ENDINGS or 'bag', `topic` the image topic of a bag ('': its only one); `carry`
    takes its other topics along; `latency` tells of each step how long it took; `questions` are
    seconds from the start, and what to ask.
    """

    kind: str
    topic: str = ''
    carry: bool = False
    latency: bool = True
    questions: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class Narrated:
    """What came of one recording, in words: what was written, or why nothing was; and remarks."""

    written: str = ''
    failed: str = ''
    notes: tuple[str, ...] = ()


class Captioner:
    """A model that narrates recordings, one after the other, each in a session of its own."""

    def __init__(self, model: str, config: SessionConfig, wanted: Captions) -> None:
        """
        Load the model; `notes` are warnings about it, in words.

        :raises ValueError: for a model or questions that cannot be used
        """
        self._checkpoint = checkpoint = load(
            model, device=config.device, dtype=config.dtype,
            allow_download=config.allow_download, quantize=config.quantize,
            profile=config.profile)
        self._config, self._wanted = config, wanted
        settings = config.resolved(checkpoint)
        self.notes = [f'warning: {words}' for words in (
            mismatch(checkpoint, settings), advice(checkpoint, settings.wait_k, None)) if words]
        for _, question in wanted.questions:
            checkpoint.check_tokens('question', question, MAX_QUESTION_TOKENS)

    def __call__(self, job: tuple[Path, Path]) -> Narrated:
        """Narrate the recording at one path, to another; what goes wrong with it is returned."""
        path, out = job
        notes = [*self.notes]
        try:
            written = self.narrate(Recorded(path, self._wanted.topic), out, notes.append)
        except (ValueError, OSError, ClipError) as error:
            return Narrated(failed=str(error), notes=tuple(notes))
        return Narrated(written, notes=tuple(notes))

    def narrate(self, recording: Recorded, out: Path, note: Callable[[str], None]) -> str:
        """
        Narrate one recording, and write what was said.

        :param note: is told, in words, what was left out
        :return: what was written, in words
        :raises ValueError: for a recording that breaks off, or of which nothing can be seen
        :raises OSError: for what cannot be written
        :raises ClipError: for trouble in the engine
        """
        began_s, bag, wanted = time.monotonic(), recording.bag, self._wanted
        with whole(out) as path:
            with Session(self._checkpoint, self._config) as session:
                info = session.info
                steps = math.ceil(recording.duration_s / info['seconds_per_step'])
                with tqdm(total=steps or None, unit='step', disable=None, leave=False,
                          desc=recording.path.name) as bar:
                    account = Viewing(session, recording, wanted.questions, note).run(bar.update)
            if wanted.kind == 'bag':
                write_bag(path, account.told, storage=bag.storage if bag else STORAGES[0],
                          carried=bag if wanted.carry else None, latency=wanted.latency)
            elif wanted.kind == 'mp4':
                write_video(path, account, recording, info['frame_rate'])
            elif wanted.kind == 'jsonl':
                write_jsonl(path, account)
            else:
                write_subtitles(path, account)
        said = passages(account)
        answers = sum(bool(each.question) for each in said)
        return (f'{out}: {len(said) - answers} sentences, {answers} answers; '
                f'{recording.duration_s:.0f} s in {time.monotonic() - began_s:.0f} s')
