"""What the demo heard in one run, the figures that it comes to, and how they are shown."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
import io
import itertools
from itertools import pairwise
import json
from pathlib import Path
from statistics import fmean
import subprocess
import sys
import tempfile
from typing import Any, TextIO

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sww_ros.frames import NANOSECONDS
from sww_ros.shapes.render import Renderer
from sww_ros.shapes.scene import Fact, generate
from sww_ros.shapes.truth import Witness
from sww_ros.terminal import NARRATION, Line, nanoseconds
from sww_ros.web import TIMES

SIDE = 336
"""Of the frames of a run that is seen again [pixels], as the shapes camera publishes them."""


@dataclass
class NarratedSentence:
    """A narrated sentence, and the fact that makes it true, where the truth is known."""

    line: Line
    fact: Fact | None = None


@dataclass
class Exchange:
    """A question, and what came of it; `truths` are the answers that were true while it came."""

    text: str
    kind: str = ''
    asked_ns: int = 0
    question_id: str = ''
    refused: str = ''
    line: Line | None = None
    truths: list[str] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return self.line is not None or bool(self.refused)

    @property
    def right(self) -> bool | None:
        """Whether the answer is true; None where the truth is not known."""
        if self.line is None:
            # A question of the demo's own had an answer when it was asked.
            return False if self.kind else None
        return self.line.text in self.truths if self.truths else None


@dataclass(frozen=True)
class Step:
    """The latencies of one perceived step [ns], and the counters of frames by then."""

    video: int
    stamp_ns: int
    capture_to_callback_ns: int
    perceived_ns: int
    first_token_ns: int | None
    overlap_ratio: float
    frames: dict[str, int]

    @classmethod
    def from_message(cls, message: Any) -> Step:
        """Return what counts of a StepLatency."""
        return cls(
            message.video, nanoseconds(message.header.stamp),
            nanoseconds(message.capture_to_callback), nanoseconds(message.perceived),
            nanoseconds(message.first_token) if message.has_first_token else None,
            message.overlap_ratio,
            {name: getattr(message, f'frames_{name}')
             for name in ('received', 'perceived', 'dropped')})

    @property
    def seen_ns(self) -> int | None:
        """When the first token that could see this step was decoded, on the stamps' clock."""
        if self.first_token_ns is None:
            return None
        return (self.stamp_ns + self.capture_to_callback_ns + self.perceived_ns
                + self.first_token_ns)


@dataclass
class DemoRecord:
    """
    All of a run; `start_ns` is the time 0 of the scene or video on the stamps' clock.

    `heard` are the messages of a live page (`sww_ros.web`), of text and steps.
    """

    model: str
    source: str
    start_ns: int = 0
    ready_s: float = 0.0
    first_word_s: float | None = None
    witness: Witness | None = None
    scene: dict | None = None
    sentences: list[NarratedSentence] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    heard: list[dict[str, Any]] = field(default_factory=list)

    @property
    def pieces(self) -> dict[str, list[dict[str, Any]]]:
        """The messages that have text, by stream."""
        found: dict[str, list[dict[str, Any]]] = {}
        for message in self.heard:
            if message['kind'] == 'text' and message['delta']:
                found.setdefault(message['stream'], []).append(message)
        return found


def percentiles(values_ns: Iterable[float]) -> dict[str, float] | None:
    """Return p50 and p95 [ms] and the count of durations [ns], None where there are none."""
    values = [value / 1e6 for value in values_ns]
    if not values:
        return None
    p50, p95 = np.percentile(values, [50, 95])
    return dict(p50_ms=round(float(p50), 2), p95_ms=round(float(p95), 2), count=len(values))


def summarize(record: DemoRecord) -> dict:
    """Return the summary, ready for JSON; times are seconds since the scene or video began."""
    return dict(
        model=record.model, source=record.source, scene=record.scene,
        first_word_s=_rounded(record.first_word_s), ready_s=_rounded(record.ready_s),
        narration=[_sentence(record, sentence) for sentence in record.sentences],
        answers=[_exchange(record, exchange) for exchange in record.exchanges],
        latency=_latencies(record), frames=record.steps[-1].frames if record.steps else None,
        steps=len(record.steps),
        overlap_ratio=(_rounded(fmean(step.overlap_ratio for step in record.steps))
                       if record.steps else None),
        tokens=_tokens(record), truth=_truth(record), run=_run(record))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _since(record: DemoRecord, stamp_ns: int) -> float:
    return round((stamp_ns - record.start_ns) / NANOSECONDS, 3)


def _spoken(record: DemoRecord, line: Line) -> dict:
    return dict(text=line.text, time=_since(record, line.seen_ns),
                last_time=_since(record, line.last_seen_ns),
                spoken=_since(record, line.emitted_ns), latency_s=_rounded(line.latency_s))


def _run(record: DemoRecord) -> list[dict]:
    """Return what a live page is told, in order, with questions and times since the beginning."""
    begun_s = record.start_ns / NANOSECONDS
    asked = [dict(kind='question', stream=exchange.question_id, text=exchange.text,
                  at=exchange.asked_ns / NANOSECONDS)
             for exchange in record.exchanges if exchange.question_id]
    return sorted(({name: round(value - begun_s, 4) if name in TIMES and value is not None
                    else value for name, value in message.items()}
                   for message in [*record.heard, *asked]), key=told_s)


def told_s(message: dict) -> float:
    """Return when a live page is told a message."""
    return message['at'] if 'at' in message else message['first'] or message['perceived']


def _sentence(record: DemoRecord, sentence: NarratedSentence) -> dict:
    entry = _spoken(record, sentence.line)
    if record.witness is not None:
        entry['true'] = sentence.fact is not None
    return entry


def _exchange(record: DemoRecord, exchange: Exchange) -> dict:
    entry = dict(question=exchange.text, kind=exchange.kind,
                 asked=_since(record, exchange.asked_ns), refused=exchange.refused,
                 truth=exchange.truths[0] if exchange.truths else None, right=exchange.right,
                 answer=None)
    if (line := exchange.line) is not None:
        entry.update(_spoken(record, line), answer=line.text, finish_reason=line.finish_reason)
        entry.pop('text')
    return entry


def _latencies(record: DemoRecord) -> dict:
    """Each stage, and how long what happens in the scene stays unseen and unsaid."""
    steps, sentences = record.steps, record.sentences
    stages = dict(
        capture_to_callback=percentiles(step.capture_to_callback_ns for step in steps),
        callback_to_perceived=percentiles(step.perceived_ns for step in steps),
        perceived_to_first_token=percentiles(
            step.first_token_ns for step in steps if step.first_token_ns is not None),
        capture_to_first_token=percentiles(
            step.seen_ns - step.stamp_ns for step in steps if step.seen_ns is not None),
        question_to_first_word=percentiles(
            exchange.line.emitted_ns - exchange.asked_ns for exchange in record.exchanges
            if exchange.line is not None and exchange.line.tokens),
        token_gap=percentiles(
            NANOSECONDS * (later['at'] - sooner['at']) for pieces in record.pieces.values()
            for sooner, later in pairwise(pieces) if sooner['seen'] == later['seen']))
    if record.witness is not None:
        stages['hazard'] = percentiles(_hazards(record))
        stages['event_to_first_word'] = percentiles(
            sentence.line.emitted_ns - record.start_ns - sentence.fact.visible_s * NANOSECONDS
            for sentence in sentences if sentence.fact is not None)
    return stages


def _hazards(record: DemoRecord) -> Iterable[float]:
    """From each event's first visible moment to the first token that could see it [ns]."""
    steps = sorted(record.steps, key=lambda step: step.stamp_ns)
    for fact in record.witness.scene.facts:
        visible_ns = record.start_ns + round(fact.visible_s * NANOSECONDS)
        step = next((s for s in steps if s.stamp_ns >= visible_ns - 1000), None)
        if step is not None and step.seen_ns is not None:
            yield step.seen_ns - visible_ns


def _tokens(record: DemoRecord) -> dict:
    narrated = len(record.pieces.get(NARRATION, []))
    spoken = sum(map(len, record.pieces.values()))
    watched_s = 0.0
    if record.steps:
        watched_s = (record.steps[-1].stamp_ns - record.start_ns) / NANOSECONDS
    return dict(narration=narrated, answers=spoken - narrated, watched_s=_rounded(watched_s),
                per_s=round(spoken / watched_s, 2) if watched_s > 0 else None)


def _truth(record: DemoRecord) -> dict | None:
    """How much of what was said is true, and how much of what was true was said."""
    if record.witness is None:
        return None
    judged = [exchange.right for exchange in record.exchanges if exchange.right is not None]
    last_ns = record.steps[-1].stamp_ns if record.steps else record.start_ns
    shown = record.witness.scene.facts_visible(record.witness.seconds(last_ns))
    return dict(
        sentences=len(record.sentences),
        sentences_true=sum(sentence.fact is not None for sentence in record.sentences),
        facts_shown=len(shown),
        facts_told=len({id(s.fact) for s in record.sentences}
                       & {id(fact) for fact in record.witness.scene.facts}),
        answers=len(judged), answers_right=sum(judged))


class Recording:
    """A run as `summarize` wrote it, to be seen again; times are seconds since it began."""

    def __init__(self, summary: dict) -> None:
        self.name = str(summary['source'])
        self._messages = sorted((message for message in summary.get('run') or _sentences(summary)
                                 if message['kind'] in ('text', 'step', 'question')), key=told_s)
        self._times_s = [told_s(message) for message in self._messages]
        self.seconds = max(self._times_s, default=0.0)
        frames = summary['frames'] or dict(received=0, perceived=0, dropped=0)
        self.counts = {'frames received': str(frames['received']),
                       'frames perceived': str(frames['perceived']),
                       'frames dropped (for any reason)': str(frames['dropped'])}
        self._renderer = None
        if scene := summary['scene']:
            self._renderer = Renderer(
                generate(scene['seed'], scene['seconds'], scene['difficulty'],
                         scene['max_objects']), SIDE, SIDE)

    @classmethod
    def read(cls, path: Path) -> Recording:
        """
        Return the run in a file.

        :raises ValueError: for a file that holds none
        """
        try:
            return cls(json.loads(path.read_text()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f'{path} is no run that `scripts/demo --json` has recorded: '
                             f'{error!r}') from None

    def between(self, after_s: float, until_s: float) -> list[dict]:
        """Return what was told of a live page's messages in a time, without its beginning."""
        first, end = (bisect_right(self._times_s, at_s) for at_s in (after_s, until_s))
        return self._messages[first:end]

    def frame(self, at_s: float) -> np.ndarray | None:
        """Return what the camera saw, (height, width, 3) uint8 RGB; None where that was a video."""
        return None if self._renderer is None else self._renderer.frame(min(at_s, self.seconds))


def _sentences(summary: dict) -> list[dict]:
    """Return the messages of a run of which only whole sentences and answers are known."""
    said = [dict(kind='text', stream=NARRATION, seq=number, delta=line['text'],
                 sentence=line['text'], end='', seen=line['time'], at=line['spoken'])
            for number, line in enumerate(summary['narration'])]
    for number, one in enumerate(summary['answers']):
        stream = f'question {number}'
        said.append(dict(kind='question', stream=stream, text=one['question'], at=one['asked']))
        if one['answer'] is not None:
            said.append(dict(kind='text', stream=stream, seq=0, delta=one['answer'], sentence='',
                             end=one['finish_reason'], seen=one['time'], at=one['spoken']))
    return said


STAGES = {
    'capture_to_callback': 'capture → callback',
    'callback_to_perceived': 'callback → perceived',
    'perceived_to_first_token': 'perceived → first token',
    'capture_to_first_token': 'capture → first token that saw it',
    'hazard': 'event visible → first token that saw it',
    'event_to_first_word': 'event visible → first word of it',
    'question_to_first_word': 'question → first word of its answer',
    'token_gap': 'token → token, within a step',
}
LEVEL = 1.02
"""From which speed-up on more is more, and not noise."""


def report(summary: dict, stream: TextIO) -> None:
    """Print the summary."""
    tables = [_answer_table] * bool(summary['answers']) + [_latency_table, _fact_table]
    _print([table(summary, stream.isatty()) for table in tables], stream)


def report_full_load(load: dict | None, stream: TextIO) -> None:
    """Print what sww_ros.benchmark.full_load has measured, None if that failed."""
    table = _grid(stream.isatty())
    table.add_row('at full load', 'could not be measured' if load is None
                  else full_load_in_words(load['summary'][0]))
    _print([table], stream)


def full_load_in_words(said: dict) -> str:
    """Return what a summary of sww_ros.benchmark.full_load means to a user, in one sentence."""
    speedup, at_most = said['speedup'], max(said['limit'], said['speedup'])
    pace = f'this machine watches and narrates {said["steps_per_s"]:.0f} steps of video a second'
    if speedup >= LEVEL:
        return (f'{pace}, {speedup:.2f} times as many as an engine that stops watching while it '
                f'speaks (at most {at_most:.2f} times can be had), with overlap: {said["chosen"]}')
    return (f'{pace} with overlap: {said["chosen"]}, {speedup:.2f} times as many as an engine that '
            'stops watching while it speaks, which sees nothing new before its sentence is over')


def _print(tables: list[Table], stream: TextIO) -> None:
    terminal = stream.isatty()
    # Text first: a pipe needs neither colors nor the blanks that fill a line.
    text = io.StringIO()
    console = Console(file=text, highlight=False, force_terminal=terminal, no_color=not terminal,
                      width=Console(file=stream).width if terminal else 100)
    for table in tables:
        console.print(table)
        console.print()
    print(file=stream)
    # No two empty lines in a row.
    for line, _ in itertools.groupby(map(str.rstrip, text.getvalue().rstrip().splitlines())):
        print(line, file=stream)


def _table(title: str, terminal: bool) -> Table:
    return Table(title=title, title_justify='left', title_style='bold' if terminal else '',
                 box=box.SIMPLE_HEAD if terminal else None, header_style='dim', pad_edge=False,
                 padding=(0, 2, 0, 0))


def _answer_table(summary: dict, terminal: bool) -> Table:
    table = _table('Questions', terminal)
    known = summary['truth'] is not None
    for name in ('asked', 'question', 'answer', *(['truth', ''] if known else [])):
        table.add_column(name, justify='right' if name == 'asked' else 'left')
    for exchange in summary['answers']:
        answer = exchange['answer']
        if answer is None:
            answer = f'(refused: {exchange["refused"]})' if exchange['refused'] else '(none came)'
        # What was written by others is no markup.
        row = [f'{exchange["asked"]:.1f} s', escape(exchange['question']),
               escape(answer or '(empty)')]
        if known:
            row += [exchange['truth'] or '-', {True: '[green]right[/]', False: '[red]wrong[/]',
                                               None: ''}[exchange['right']]]
        table.add_row(*row)
    return table


def _latency_table(summary: dict, terminal: bool) -> Table:
    table = _table('Latency', terminal)
    table.add_column('')
    for name in ('p50', 'p95', 'count'):
        table.add_column(name, justify='right')
    for stage, words in STAGES.items():
        if figures := summary['latency'].get(stage):
            table.add_row(words, *(f'{figures[p]:.1f} ms' for p in ('p50_ms', 'p95_ms')),
                          str(figures['count']))
    return table


def _grid(terminal: bool) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style='dim' if terminal else '')
    table.add_column()
    return table


def _fact_table(summary: dict, terminal: bool) -> Table:
    table = _grid(terminal)
    tokens, truth = summary['tokens'], summary['truth']
    if summary['frames']:
        frames = summary['frames']
        table.add_row('frames', f'{frames["received"]} received, {frames["perceived"]} perceived '
                      f'in {summary["steps"]} steps, {frames["dropped"]} left out')
        table.add_row('overlap', f'{summary["overlap_ratio"]:.0%} of the time of perception, '
                      'decoding ran too')
    if tokens['per_s'] is not None:
        table.add_row('tokens', f'{tokens["narration"]} narrated, {tokens["answers"]} answered, '
                      f'in {tokens["watched_s"]:.1f} s: {tokens["per_s"]:.1f} a second')
    if not summary['narration']:
        table.add_row('narration', 'not a sentence was completed')
    elif truth is not None:
        table.add_row('narration', f'{truth["sentences_true"]} of {truth["sentences"]} sentences '
                      f'true; {truth["facts_told"]} of {truth["facts_shown"]} facts told')
    if truth is not None and truth['answers']:
        table.add_row('answers', f'{truth["answers_right"]} of {truth["answers"]} right')
    if summary['first_word_s'] is not None:
        table.add_row('first word', f'{summary["first_word_s"]:.1f} s after the start, of which '
                      f'{summary["ready_s"]:.1f} s until the narrator watched')
    return table


LIMIT_S = 300.0
"""How long the measurement may take; on a quiet machine it takes some seconds."""


def measure_full_load(model: str) -> dict | None:
    """Return the figures of sww_ros.benchmark.full_load, None if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'full_load.json')
        try:
            subprocess.run(
                [sys.executable, '-m', 'sww_ros.benchmark.full_load', '--model', model,
                 '--wait-k', '3', '--steps', '24', '--repeats', '5', '--chosen-only',
                 '--json', str(file)],
                check=True, timeout=LIMIT_S, capture_output=True)
        except (subprocess.SubprocessError, OSError):
            return None
        return json.loads(file.read_text())
