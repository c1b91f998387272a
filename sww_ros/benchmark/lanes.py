"""
What answers beside the narration cost: a decode step with 0, 1, 2, 4 and 8 of them.

`python -m sww_ros.benchmark lanes --json FILE --picture FILE` narrates in the engine, about one
large picture, whose tokens are as many as a stream of small ones has, and asks so many questions at
once. What each says is compared with what it says when it is answered alone. Beside it, as what
can be had, the pass of so many rows as speak if they were one lane's. Rounds alternate.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median
import time

import numpy as np
import torch
from tqdm import tqdm

from sww_ros.benchmark.command import finish, make_parser, milliseconds, parse
from sww_ros.benchmark.models import Span, TimedSession, noise, tireless
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.decoder import Chunk
from sww_ros.streaming.events import NARRATION, FirstSight, TextDelta
from sww_ros.streaming.schedule import MAX_WAIT_K

ANSWERS = (0, 1, 2, 4, 8)
QUESTIONS = tuple(f'What of number {number}?' for number in range(max(ANSWERS)))
PATIENCE_S = 600.0


def speak(checkpoint: Checkpoint, frames: Sequence[np.ndarray], questions: Sequence[str],
          tokens: int, record: bool = False) -> tuple[list[Span], dict[str, list[int]]]:
    """
    Narrate, and answer all questions at once; return the passes and, if recorded, all tokens.

    :param tokens: of each answer; of the narration, where nothing is asked
    """
    config = SessionConfig(
        overlap='serial', position_encoding='gdpe', wait_k=MAX_WAIT_K if questions else tokens,
        max_answers=max(1, len(questions)), max_answer_tokens=tokens, record_trace=record,
        frame_width=frames[0].shape[1], frame_height=frames[0].shape[0])
    with TimedSession(checkpoint, config) as session:
        for frame in frames[:2]:
            session.feed(frame)
        while not isinstance(session.poll(PATIENCE_S), FirstSight):
            pass
        ids = [session.ask(question) for question in questions]
        if ids:
            _await_ends(session, set(ids))
            session.pause(True)  # The narration would go on.
        if not session.wait_idle(PATIENCE_S):
            raise RuntimeError('the text did not end')
        return session.spans, _tokens(session, ids) if record else {}


def _await_ends(session: TimedSession, ids: set[str]) -> None:
    while ids:
        event = session.poll(PATIENCE_S)
        if event is None:
            raise RuntimeError('the engine fell silent')
        if isinstance(event, TextDelta) and event.final:
            ids.discard(event.stream_id)


def _tokens(session: TimedSession, ids: Sequence[str]) -> dict[str, list[int]]:
    """Return what each said, the answers by their place."""
    trace = session.trace()
    names = {NARRATION: NARRATION} | {name: str(place) for place, name in enumerate(ids)}
    return {names[name]: trace.predicted[
        (trace.lane == lane) & (trace.predicted >= 0)].tolist()
        for lane, name in enumerate(trace.speakers)}


def steps_s(spans: Sequence[Span], speakers: int) -> list[float]:
    """Return the times of decode steps in which so many spoke, and no question was prefilled."""
    found = [span.seconds for span in spans if span.speakers == speakers]
    # Eight heads take a few steps, the first of a lane moves it beside the others.
    return found[speakers + 2:]


def plain_s(checkpoint: Checkpoint, rows: int, before: int, steps: int) -> float:
    """Return the median time of a pass of `rows` rows of one lane that holds `before` others."""
    torch.set_num_threads(1)  # As the session's own threads compute.
    decoder = checkpoint.decoder
    lane, found = decoder.new_lane(before + rows * (steps + 1)), []
    for count in [before, *[rows] * steps]:
        embeds = decoder.embed([1] * count)
        positions = torch.arange(len(lane), len(lane) + count).expand(3, count)
        start = time.monotonic()
        decoder.step([Chunk(lane, embeds, positions, predict=True)])
        found.append(time.monotonic() - start)
    return median(found[1:])


def compare(checkpoint: Checkpoint, frames: Sequence[np.ndarray], tokens: int) -> dict:
    """Return how many tokens of all speakers at once differ from each one's beside narration."""
    _, together = speak(checkpoint, frames, QUESTIONS, tokens, record=True)
    count = differing = 0
    for place, question in enumerate(QUESTIONS):
        _, alone = speak(checkpoint, frames, [question], tokens, record=True)
        pairs = [*zip(together[str(place)], alone['0'], strict=True),
                 *zip(together[NARRATION], alone[NARRATION])]
        count += len(pairs)
        differing += sum(ours != theirs for ours, theirs in pairs)
    return dict(tokens=count, differing=differing)


def play(checkpoint: Checkpoint, frames: Sequence[np.ndarray], tokens: int, repeats: int) -> dict:
    """Return one model's times of a decode step [ms], each repetition's median, by answers."""
    perception = checkpoint.perception
    height, width = perception.grid(*frames[0].shape[:2])
    found = {str(answers): [] for answers in ANSWERS}
    plain = {answers: list[float]() for answers in found}
    rounds = [answers for _ in range(repeats + 1) for answers in ANSWERS]
    for answers in tqdm(rounds, desc=f'lanes, {checkpoint.name}', unit='run', disable=None):
        spans, _ = speak(checkpoint, frames, QUESTIONS[:answers], tokens)
        found[str(answers)].append(milliseconds(median(steps_s(spans, answers + 1))))
        plain[str(answers)].append(milliseconds(
            plain_s(checkpoint, answers + 1, height * width, tokens)))
    return dict(
        model=checkpoint.name, parameters=checkpoint.parameters, visual_tokens=height * width,
        identity=compare(checkpoint, frames, tokens),
        # The first round warms up.
        step_ms={answers: each[1:] for answers, each in found.items()},
        plain_ms={answers: each[1:] for answers, each in plain.items()})


def summarize(model: dict) -> dict:
    """
    Return, by answers: a step over one of narration alone, and tokens a second of all.

    `plain` are the rows of one lane over one of them: what a batch of rows costs at least.
    """
    times = {answers: median(each) for answers, each in model['step_ms'].items()}
    plain = {answers: median(each) for answers, each in model['plain_ms'].items()}
    return dict(
        model=model['model'], **model['identity'],
        beside={answers: round(each / times['0'], 3) for answers, each in times.items()},
        plain={answers: round(each / plain['0'], 3) for answers, each in plain.items()},
        tokens_per_s={answers: round((int(answers) + 1) / each * 1e3, 1)
                      for answers, each in times.items()},
        step_ms={answers: round(each, 4) for answers, each in times.items()})


def draw(result: dict, file: Path) -> None:
    """Draw a step's time over that of narration alone, by answers."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    figure, axis = plt.subplots(figsize=(5.5, 3.8))
    axis.plot([0, max(ANSWERS)], [1, max(ANSWERS) + 1], color='0.6', label='one at a time')
    for model in result['summary']:
        axis.plot([int(answers) for answers in model['beside']], model['beside'].values(), 'o-',
                  label=model['model'])
    axis.set(xlabel='answers beside the narration', ylabel='a decode step, times narration alone')
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = make_parser('lanes', __doc__)
    parser.add_argument('--models', nargs='+', default=['builtin', 'medium'])
    parser.add_argument('--side', type=int, default=560,
                        help='width of the picture in pixels: 560 are 400 visual tokens')
    parser.add_argument('--tokens', type=int, default=60, help='of each answer')
    parser.add_argument('--repeats', type=int, default=9)
    given = parse(parser, arguments)
    if given.tokens < 2 * len(QUESTIONS):
        parser.error(f'--tokens must be at least {2 * len(QUESTIONS)}')
    finish(given, run(given), draw)


def run(given: argparse.Namespace) -> dict:
    """Measure what the options ask for; return it, ready for JSON."""
    models = [play(tireless(name), noise(1, given.side), given.tokens, given.repeats)
              for name in given.models]
    return dict(repeats=given.repeats, tokens=given.tokens,
                summary=[summarize(model) for model in models], models=models)


if __name__ == '__main__':
    main()
