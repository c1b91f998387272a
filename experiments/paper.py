"""
The paper's tables, measured again on the shapes world.

`python -m experiments.paper --table 1 --out FOLDER --json docs/paper/table1.json` trains every
row with every seed, scores them through the live engine, and writes means and intervals. It can
be stopped: what is trained or scored already is not done again. `--table 2` uses the same
checkpoints and tests the streaming ones at random wait-K. `--rows` and `--tokens-per-second` train
some rows on another clock, in a folder of their own.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
import json
import math
import os
from pathlib import Path
from statistics import mean, stdev
import subprocess
import sys

import numpy as np
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from sww_ros.evaluation.metrics import score as caption_scores
from sww_ros.library import play_steps, settle
from sww_ros.models.loading import load
from sww_ros.shapes.checkpoint import WAIT_K
from sww_ros.shapes.grammar import ShapesQuestion, make_question
from sww_ros.shapes.render import Film
from sww_ros.shapes.scene import Fact, generate
from sww_ros.shapes.truth import (
    NARRATE,
    Answers,
    Judgement,
    Utterance,
    facts_by_step,
    judge,
    narration_ids,
    utterances,
)
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import Event
from sww_ros.streaming.schedule import make_schedule
from sww_ros.streaming.session import Session

STEPS = 8
OWED_STEPS = 6
"""Facts of the first so many steps have to be told: the later ones leave no time for it."""
QUESTIONS = 3
MAX_OBJECTS = 2
RANDOM_K = 4
"""Random wait-K draws 2, 3 or 4 tokens a step: as many as wait-3 on average."""


@dataclass
class ClipScores:
    """Counts and texts over clips."""

    verdict: Judgement = field(default_factory=Judgement)
    answers: Answers = field(default_factory=Answers)
    spoken: list[str] = field(default_factory=list)
    wanted: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, float | None]:
        """Shares of true facts, told facts and right answers, caption scores x100."""
        pairs = [(said, [want]) for said, want in zip(self.spoken, self.wanted) if want]
        texts = caption_scores([said for said, _ in pairs], [want for _, want in pairs])
        return dict(self.verdict.summary(), answers_right=self.answers.share(),
                    **{name: round(value, 2) for name, value in texts.items()})


@dataclass(frozen=True)
class ShapesClip:
    """One clip of STEPS steps: a scene as frames, and when which question is asked."""

    film: Film
    asked: list[tuple[int, ShapesQuestion]]

    @property
    def frames(self) -> list[np.ndarray]:
        """All of them."""
        return [frame for frame, _ in self.film.steps(0, STEPS)]

    @staticmethod
    def of(seed: int) -> ShapesClip:
        scene = generate(seed, STEPS + 1.0, max_objects=MAX_OBJECTS)
        rng = np.random.default_rng([seed, 3])
        film = Film.of(scene, rng)
        asked = [(int(step), make_question(scene, film.seen_s(step), rng))
                 for step in rng.choice(np.arange(1, STEPS + 1), QUESTIONS, replace=False)]
        return ShapesClip(film, sorted(asked, key=lambda pair: pair[0]))

    def judged(self, spoken: list[Utterance], max_lateness: int = OWED_STEPS) -> Judgement:
        """Compare a narration with the facts."""
        return judge(self.film.scene, spoken, STEPS, OWED_STEPS, self.film.phase_s,
                     max_lateness=max_lateness)

    def facts(self) -> list[list[Fact]]:
        """For each step, the facts that it is the first to show."""
        return facts_by_step(self.film.scene, STEPS, self.film.phase_s)


def score_clips(model: str | Path, schedule: str, seeds: Iterable[int]) -> dict:
    """
    Score a checkpoint on clips of the given scene seeds.

    Offline, each question is asked of a video that ends where it is asked; streaming, in the
    middle of the narration. The text wanted is what the schedule leaves time to say: streaming
    the sentences of a perfect narrator, offline all of them.

    :param schedule: one of SCHEDULES
    """
    checkpoint, tally = load(str(model)), ClipScores()
    for seed in tqdm(list(seeds), desc=schedule, unit='clip', disable=None):
        clip = ShapesClip.of(seed)
        config = SessionConfig(
            schedule=schedule, schedule_seed=seed % 1_000_000,
            wait_k=RANDOM_K if schedule == 'random_wait_k' else WAIT_K,
            max_pending_frames=64, max_rest_tokens=80)
        if schedule == 'offline':
            _score_offline(checkpoint, config, clip, tally)
        else:
            _score_streaming(checkpoint, config, clip, tally)
    return tally.summary()


def play_streaming(checkpoint: Checkpoint, config: SessionConfig,
                   clip: ShapesClip) -> tuple[list[Event], dict[str, ShapesQuestion]]:
    """Have a clip watched, and ask as it goes on; return what came, and questions by id."""
    asked, events = {}, []
    with Session(checkpoint, config) as session:
        for step, new in enumerate(play_steps(session, clip.film.steps(0, STEPS), ends=False), 1):
            events += new
            for at, question in clip.asked:
                if at == step:
                    asked[session.ask(question.text)] = question
            events += settle(session)
    return events, asked


def _score_streaming(checkpoint: Checkpoint, config: SessionConfig, clip: ShapesClip,
                     tally: ClipScores) -> None:
    events, asked = play_streaming(checkpoint, config, clip)
    schedule = make_schedule(config.schedule, config.wait_k, config.schedule_seed)
    counts = [schedule.granted(step + 1) - schedule.granted(step) for step in range(STEPS)]
    silence = checkpoint.vocabulary.silence
    ids = narration_ids(clip.film.scene, STEPS, clip.film.phase_s, NARRATE, silence,
                        checkpoint.encode, counts)
    said = checkpoint.tokenizer.decode([token for token in ids if token != silence])
    _note(tally, clip, events, said[:said.rfind('.') + 1].strip())
    for question_id, question in asked.items():
        tally.answers.mark(question, events, question_id)


def _score_offline(checkpoint: Checkpoint, config: SessionConfig, clip: ShapesClip,
                   tally: ClipScores) -> None:
    with Session(checkpoint, config) as session:
        for end in {STEPS, *(at for at, _ in clip.asked)}:
            events = [*chain.from_iterable(play_steps(session, clip.film.steps(0, end)))]
            if end == STEPS:
                _note(tally, clip, events, ' '.join(
                    fact.claim.sentence for facts in clip.facts() for fact in facts), STEPS)
            for at, question in clip.asked:
                if at == end:
                    question_id = session.ask(question.text)
                    tally.answers.mark(question, settle(session), question_id)


def _note(tally: ClipScores, clip: ShapesClip, events: list[Event], wanted: str,
          max_lateness: int = OWED_STEPS) -> None:
    """Judge a narration; its last sentence, if it was cut off, is not held against it."""
    spoken = utterances(events)
    tally.verdict.add(clip.judged(spoken, max_lateness))
    tally.spoken.append(' '.join(utterance.text for utterance in spoken))
    tally.wanted.append(wanted)


TRAINING_STEPS, CLIPS, HIDDEN, LAYERS = 400, 48, 128, 4
FIRST_SCENE, SCENES = 1000, 100
METRICS = ('facts_true', 'facts_narrated', 'answers_right', 'grammatical', 'CIDEr', 'BLEU-1',
           'BLEU-4', 'METEOR', 'ROUGE-L')
SHARES = ('facts_true', 'facts_narrated', 'answers_right', 'grammatical', 'repeated', 'words_right')
_PAPER = ('CIDEr', 'BLEU-1', 'BLEU-4', 'METEOR', 'ROUGE-L', 'BLEURT', 'fluency')
_T975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Student's t for a 95 % interval, by degrees of freedom."""


@dataclass(frozen=True)
class Row:
    """One way to train: a position scheme, streaming or offline, with the paper's figures."""

    title: str
    position_encoding: str
    offline: bool
    description: tuple[float, ...]
    answers: tuple[float, float]
    random: tuple[float, float] | None = None

    @property
    def schedule(self) -> str:
        return 'offline' if self.offline else 'wait_k'

    def paper(self) -> dict:
        """The paper's figures: description on PE-Video, question answering on FunQA."""
        return dict(description=dict(zip(_PAPER, self.description)),
                    answers=dict(zip(('BLEURT', 'fluency'), self.answers)))


ROWS = {
    'offline_origin': Row('offline, stock positions', 'offline', True,
                          (35.44, 42.36, 14.45, 29.18, 30.47, 53.21, 4.84), (41.34, 4.70)),
    'offline_gdpe': Row('offline, group-decoupled', 'gdpe', True,
                        (30.86, 40.26, 13.64, 28.49, 34.12, 53.19, 4.93), (42.04, 4.52)),
    'interleaved': Row('interleaved', 'interleaved', False,
                       (20.08, 44.40, 14.41, 27.17, 34.95, 44.11, 2.84), (31.22, 3.72),
                       (44.11, 40.56)),
    'ospe': Row('overlapped (OSPE)', 'ospe', False,
                (26.32, 42.14, 12.78, 27.92, 32.29, 50.62, 4.48), (37.38, 3.98),
                (50.62, 50.71)),
    'gdpe': Row('group-decoupled (GDPE)', 'gdpe', False,
                (12.52, 26.32, 7.42, 30.03, 27.37, 51.53, 4.56), (41.16, 4.13),
                (51.53, 51.76)),
    'gipe': Row('gap-isolated (GIPE)', 'gipe', False,
                (28.11, 40.42, 11.52, 29.13, 30.69, 51.20, 4.85), (37.25, 4.61),
                (51.20, 51.56)),
}
"""The rows of the paper's tables 1 and 2, Qwen2.5-VL-3B; `random` is BLEURT at wait-3, random."""


def schedules(table: int, row: Row) -> tuple[str, ...]:
    """The schedules at which a table tests a row."""
    if table == 1:
        return (row.schedule,)
    return () if row.offline else ('wait_k', 'random_wait_k')


def interval(values: Sequence[float | None]) -> dict:
    """
    Mean and half the width of the 95 % interval (Student's t) of one figure over seeds.

    A seed without the figure, as nothing was said, counts as 0.
    """
    found = [value or 0.0 for value in values]
    half = None
    if len(found) > 1:
        half = round(_T975[len(found) - 1] * stdev(found) / math.sqrt(len(found)), 4)
    return dict(mean=round(mean(found), 4), half=half, values=found)


def settings(clock: int) -> dict:
    """What every run of an experiment has in common; `clock`, positions a second, if unusual."""
    return dict(training_steps=TRAINING_STEPS, clips_a_step=CLIPS, hidden=HIDDEN, layers=LAYERS,
                video_steps=STEPS, wait_k=3,
                **dict(tokens_per_second=clock) if clock != WAIT_K else {})


def run_one(folder: Path, row: Row, seed: int, wanted: tuple[str, ...], scenes: int,
            clock: int, curriculum: str = 'short') -> None:
    """
    Train one row with one seed and score it, as far as that is not done yet.

    :param curriculum: which clips, one of those of sww_ros.shapes.train
    :raises ValueError: for a folder of another experiment
    """
    folder.mkdir(parents=True, exist_ok=True)
    noted = folder / 'settings.json'
    mine = dict(settings(clock), seed=seed, title=row.title,
                **dict(curriculum=curriculum) if curriculum != 'short' else {})
    if not noted.exists():
        noted.write_text(json.dumps(mine) + '\n')
    elif (theirs := json.loads(noted.read_text())) != mine:
        raise ValueError(f'{folder} holds a run of other settings, {theirs}: give another --out')
    if not (folder / 'model.safetensors').exists():
        command = [sys.executable, '-m', 'sww_ros.shapes.train', '--out', str(folder), '--steps',
                   str(TRAINING_STEPS), '--clips', str(CLIPS), '--seed', str(seed), '--workers',
                   '1', '--hidden', str(HIDDEN), '--layers', str(LAYERS), '--log-every', '25',
                   '--save-every', '100', '--position-encoding', row.position_encoding,
                   '--curriculum', curriculum, '--tokens-per-second', str(clock),
                   *(['--offline'] if row.offline else [])]
        run_command(command, folder.with_suffix('.log'))
    for schedule in wanted:
        if not _scores(folder, schedule, scenes):
            run_command([sys.executable, '-m', 'experiments.paper', '--score', str(folder),
                         '--schedule', schedule, '--scenes', str(scenes)],
                        folder.with_suffix('.log'))


def run_command(command: list[str], log: Path) -> None:
    """Run a command, what it prints added to a log; raises RuntimeError, which names it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, 'a') as out:
        done = subprocess.run(command, stdout=out, stderr=out,
                              env=dict(os.environ, OMP_NUM_THREADS='1'))
    if done.returncode:
        raise RuntimeError(f'{" ".join(command[1:4])} failed: see {log}')


def _scores(folder: Path, schedule: str, scenes: int) -> dict | None:
    file = folder / f'{schedule}.json'
    found = json.loads(file.read_text()) if file.exists() else None
    return found if found and found['scenes'] == scenes else None


def collect(out: Path, table: int, seeds: int, scenes: int, clock: int) -> dict:
    """Put together what has been scored: for every row and schedule, figures over seeds."""
    rows = {}
    for name, row in ROWS.items():
        for schedule in schedules(table, row):
            runs = {seed: _scores(out / f'{name}-{seed}', schedule, scenes)
                    for seed in range(1, seeds + 1)}
            runs = {seed: run for seed, run in runs.items() if run}
            if not runs:
                continue
            entry = rows.setdefault(name, dict(title=row.title, paper=row.paper(), measured={}))
            if row.random:
                entry['paper']['random'] = dict(zip(('wait_k', 'random_wait_k'), row.random))
            entry['measured'][schedule] = dict(
                seeds=list(runs), **{metric: interval([run[metric] for run in runs.values()])
                                     for metric in METRICS})
    return dict(
        table=table, settings=dict(
            settings(clock), scenes=scenes, first_scene=FIRST_SCENE, questions=QUESTIONS,
            max_objects=MAX_OBJECTS, random_wait_k=RANDOM_K), rows=rows)


def show(result: dict) -> Table:
    """The result as a table for the screen."""
    table = Table(title=f'table {result["table"]}, measured on the shapes world')
    table.add_column('row')
    table.add_column('tested at')
    for metric in METRICS:
        table.add_column(metric.replace('_', ' '), justify='right')
    for entry in result['rows'].values():
        for schedule, figures in entry['measured'].items():
            table.add_row(entry['title'], schedule,
                          *(words(figures[metric], metric) for metric in METRICS))
    return table


def words(figure: dict, metric: str) -> str:
    """'97.5 ± 0.4' of a figure; shares become percentages."""
    scale = 100 if metric in SHARES else 1
    half = '' if figure['half'] is None else f' ± {scale * figure["half"]:.1f}'
    return f'{scale * figure["mean"]:.1f}{half}'


def main(arguments: list[str] | None = None) -> None:
    """Train, score and write one table."""
    parser = argparse.ArgumentParser(prog='python -m experiments.paper',
                                     description=__doc__.split('\n')[1])
    parser.add_argument('--table', type=int, choices=(1, 2), default=1)
    parser.add_argument('--out', type=Path, default=Path('paper-runs'),
                        help='folder of checkpoints and scores (default: %(default)s)')
    parser.add_argument('--seeds', type=int, default=3, choices=range(1, len(_T975) + 2))
    parser.add_argument('--workers', type=int, default=2, help='runs at a time, one core each')
    parser.add_argument('--scenes', type=int, default=SCENES)
    parser.add_argument('--rows', nargs='+', choices=ROWS, default=list(ROWS))
    parser.add_argument('--tokens-per-second', type=int, default=WAIT_K,
                        help='positions of a second of video (default: %(default)s)')
    parser.add_argument('--json', type=Path, help='file for the figures')
    parser.add_argument('--score', type=Path, help=argparse.SUPPRESS)
    parser.add_argument('--schedule', default='wait_k', help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.score:
        scored = score_clips(options.score, options.schedule,
                             range(FIRST_SCENE, FIRST_SCENE + options.scenes))
        file = options.score / f'{options.schedule}.json'
        file.write_text(json.dumps(dict(scored, scenes=options.scenes), indent=1) + '\n')
        return
    jobs = [(name, seed) for seed in range(1, options.seeds + 1) for name in options.rows]
    console = Console(width=None if sys.stdout.isatty() else 160)

    def work(job: tuple[str, int]) -> None:
        name, seed = job
        row = ROWS[name]
        if schedules(options.table, row):
            run_one(options.out / f'{name}-{seed}', row, seed, schedules(options.table, row),
                    options.scenes, options.tokens_per_second)
            console.print(f'{name}, seed {seed}: done')

    with ThreadPoolExecutor(options.workers) as pool:
        for _ in pool.map(work, jobs):
            pass
    result = collect(options.out, options.table, options.seeds, options.scenes,
                     options.tokens_per_second)
    console.print(show(result))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
    main()
