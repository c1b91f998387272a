"""
When a checkpoint speaks that was never taught silence: each gate, measured on the shapes world.

`python -m experiments.gates --runs FOLDER --json docs/models/gates.json` trains the offline rows of
the paper's table that are not in FOLDER yet (experiments/paper.py), has each narrate live by every
setting `speak`, and writes means and intervals over seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain
import json
from pathlib import Path
import sys

import numpy as np
from tqdm import tqdm

from experiments.paper import (
    FIRST_SCENE,
    MAX_OBJECTS,
    ROWS,
    STEPS,
    ShapesClip,
    interval,
    run_one,
    settings,
    words,
)
from sww_ros.library import play_steps, settle
from sww_ros.models.loading import load
from sww_ros.shapes.checkpoint import WAIT_K
from sww_ros.shapes.truth import Judgement, Utterance, utterances
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import Event
from sww_ros.streaming.gate import GATES
from sww_ros.streaming.session import Session

CURRICULUM = 'lengths'
"""
Clips of one to eight steps: a checkpoint that has described clips of eight alone takes a shorter
one for a question, and answers it.
"""
OTHER_SCHEMES = ('gipe', 'ospe', 'interleaved')
STILL_STEPS, STILL_SCENES = 68, 5
"""A scene that stands still, and how many; what is said after its first `STEPS` is needless."""


@dataclass
class GateScore:
    """Counts over clips, and over scenes that stand still."""

    verdict: Judgement = field(default_factory=Judgement)
    again: int = 0
    needless: int = 0
    still_s: float = 0.0

    def add(self, clip: ShapesClip, spoken: list[Utterance]) -> None:
        verdict = clip.judged(spoken)
        self.verdict.add(verdict)
        said: set[str] = set()
        for each, is_true in zip(spoken, verdict.marks, strict=True):
            self.again += each.text in said and not is_true
            said.add(each.text)

    def summary(self) -> dict[str, float | None]:
        """Shares of true sentences, of facts told, of repetitions; needless sentences a minute."""
        sentences = self.verdict.sentences
        return dict(
            {name: share for name, share in self.verdict.summary().items()
             if name != 'median_lateness_steps'},
            repeated=round(self.again / sentences, 4) if sentences else 0.0,
            needless_a_minute=round(60 * self.needless / self.still_s, 2))


def score(model: Path, speak: str, scene_seeds: Iterable[int], scheme: str = '') -> dict:
    """
    Have a checkpoint narrate clips of unseen scenes live, and scenes that stand still.

    :param scheme: a position scheme, if not that which it was trained in
    """
    checkpoint, tally = load(str(model)), GateScore()
    config = SessionConfig(speak=speak, position_encoding=scheme, wait_k=WAIT_K, overlap='serial',
                           max_pending_frames=64)
    for number, seed in enumerate(tqdm(list(scene_seeds), desc=f'{speak} {scheme}', unit='clip',
                                       disable=None)):
        clip = ShapesClip.of(seed)
        with Session(checkpoint, config) as session:
            events = chain.from_iterable(
                play_steps(session, clip.film.steps(0, STEPS), ends=False))
            tally.add(clip, utterances(events))
        if number < STILL_SCENES:
            said = utterances(_watch_still(checkpoint, config, clip.frames[-1]))
            tally.needless += sum(each.first_step >= STEPS for each in said)
            tally.still_s += (STILL_STEPS - STEPS) * checkpoint.defaults.seconds_per_step
    return dict(scenes=number + 1, **tally.summary())


def kept_score(model: Path, speak: str, scheme: str, scenes: int) -> dict:
    """Return the `score` that was written beside a checkpoint, or score it and write it there."""
    name = '-'.join(filter(None, ('gate', speak, scheme)))
    return kept(model / f'{name}.json', scenes, lambda: score(
        model, speak, range(FIRST_SCENE, FIRST_SCENE + scenes), scheme))


def kept(file: Path, scenes: int, measure: Callable[[], dict]) -> dict:
    """Return what a file has of so many scenes; where it has not, measure it and write it there."""
    known = json.loads(file.read_text()) if file.exists() else {}
    if known.get('scenes') != scenes:
        known = dict(measure(), scenes=scenes)
        file.write_text(json.dumps(known) + '\n')
    return known


def _watch_still(checkpoint: Checkpoint, config: SessionConfig, frame: np.ndarray) -> list[Event]:
    frames = ((frame, index) for index in range(2 * STILL_STEPS))
    with Session(checkpoint, config) as session:
        return [*chain.from_iterable(play_steps(session, frames, ends=False)), *settle(session)]


def described(summary: dict[str, dict], what: str = 'speak') -> str:
    """Return what all seeds came to as a table in Markdown, as docs/models.md has it."""
    rows = [f'| `{what}` | facts true % | facts told % | repeated % | needless a minute |',
            '|---|---|---|---|---|']
    for name, found in summary.items():
        cells = [words(found[metric], metric) for metric in (
            'facts_true', 'facts_narrated', 'repeated', 'needless_a_minute')]
        rows.append(f'| `{name}` | {" | ".join(cells)} |')
    return '\n'.join(rows)


def main() -> int:
    """Train and score what is not there yet; print and write what all seeds come to."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[1])
    parser.add_argument('--runs', type=Path, required=True, help='folder of trained rows')
    parser.add_argument('--row', choices=[n for n, row in ROWS.items() if row.offline],
                        default='offline_gdpe', help='(default: %(default)s)')
    parser.add_argument('--seeds', type=int, default=5, help='(default: %(default)s)')
    parser.add_argument('--scenes', type=int, default=100, help='(default: %(default)s)')
    parser.add_argument('--json', type=Path, help='file for the figures')
    arguments = parser.parse_args()
    ways = [(speak, '') for speak in GATES] + [('changed', scheme) for scheme in OTHER_SCHEMES]
    found: dict[tuple[str, str], list[dict]] = {way: [] for way in ways}
    for seed in range(1, arguments.seeds + 1):
        folder = arguments.runs / f'{arguments.row}-{seed}'
        run_one(folder, ROWS[arguments.row], seed, (), arguments.scenes, WAIT_K, CURRICULUM)
        for way, runs in found.items():
            runs.append(kept_score(folder, *way, arguments.scenes))
    summaries = {way: {name: interval([run[name] for run in runs])
                       for name in runs[0] if name != 'scenes'} for way, runs in found.items()}
    summary = {speak: summaries[speak, ''] for speak in GATES}
    result = dict(
        summary=summary, schemes={scheme: summaries['changed', scheme] for scheme in OTHER_SCHEMES},
        row=arguments.row, seeds=arguments.seeds, scenes=arguments.scenes,
        first_scene=FIRST_SCENE, max_objects=MAX_OBJECTS,
        settings=dict(settings(WAIT_K), curriculum=CURRICULUM))
    print(described(summary), described(result['schemes'], 'position_encoding'), sep='\n\n')
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
