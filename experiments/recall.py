"""
Answers about what has left the picture, with and without a longer memory.

`python -m experiments.recall --first-seed N --count M --json FILE` plays M scenes of the shapes
world live, in each of which there is one shape of its kind. That leaves; one, five and thirty
minutes later its colour is asked for, which then no stream has seen.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
import json
from pathlib import Path

import numpy as np

from sww_ros.library import play_steps, settle
from sww_ros.shapes.grammar import COLORS, SHAPES
from sww_ros.shapes.render import Film, Renderer
from sww_ros.shapes.scene import TICK_S, Scene, ShapeTrack, generate
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import TextDelta
from sww_ros.streaming.session import Session

LEAVES_S = (45.0, 110.0)
"""When the shape has to leave [s]."""


def scene_of(seed: int, seconds: float) -> tuple[Scene, ShapeTrack, int] | None:
    """
    Return a scene, the shape in it that is the only one of its kind, and its last tick in view.

    None where no shape leaves at a time that fits.
    """
    scene = generate(seed, seconds, max_objects=2)
    for kept in scene.tracks:
        seen = np.flatnonzero(kept.color >= 0)
        leaves = any(fact.object_id == kept.object_id and fact.claim.kind == 'leaves'
                     for fact in scene.facts)
        if leaves and len(seen) > 12 and LEAVES_S[0] <= seen[-1] * TICK_S <= LEAVES_S[1]:
            others = [shape for shape in range(len(SHAPES)) if shape != kept.shape]
            tracks = tuple(
                replace(track, shape=others[track.object_id % len(others)])
                if track.shape == kept.shape and track is not kept else track
                for track in scene.tracks)
            return replace(scene, tracks=tracks), kept, int(seen[-1])
    return None


def play(session: Session, seed: int, minutes: list[float]) -> dict:
    """Play a scene; return the truth, and the answer so many minutes after the shape has left."""
    found = scene_of(seed, 60 * minutes[-1] + LEAVES_S[1] + 4)
    if found is None:
        return {}
    scene, kept, last = found
    due = {round(last + 60 * minute / TICK_S) // 2: minute for minute in minutes}
    frames = Film(scene, Renderer(scene), phase_s=0.0).steps(0, max(due) + 1)
    session.reset()
    list(settle(session, lossless=False))
    answers = {}
    for step, events in enumerate(play_steps(session, frames, ends=False)):
        list(events)
        if step in due:
            asked = session.ask(f'What colour is the {SHAPES[kept.shape]}?')
            answers[due[step]] = ''.join(
                event.delta for event in settle(session)
                if isinstance(event, TextDelta) and event.stream_id == asked).strip()
    return dict(seed=seed, truth=f'{COLORS[kept.color[last]].capitalize()}.', answers=answers)


def run(model: str, seeds: range, minutes: list[float], recall_steps: int) -> dict:
    """Play the scenes of some seeds; return the shares of right answers, and all of them."""
    config = SessionConfig(overlap='serial', recall_steps=recall_steps)
    with Session.open(model, config) as session:
        scenes = [found for seed in seeds if (found := play(session, seed, minutes))]
        relay = session.info['relay']
    right = {minute: sum(scene['answers'][minute] == scene['truth'] for scene in scenes)
             for minute in minutes}
    return dict(relay=relay, asked=len(scenes), right=right, scenes=scenes)


def main() -> None:
    """Play, print how many answers are right, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[1])
    parser.add_argument('--model', default='builtin', help='checkpoint (default: %(default)s)')
    parser.add_argument('--first-seed', type=int, default=90000)
    parser.add_argument('--count', type=int, default=20, help='scenes (default: %(default)s)')
    parser.add_argument('--minutes', type=float, nargs='+', default=[1.0, 5.0, 30.0])
    parser.add_argument('--recall-steps', type=int, nargs='+', default=[0, 2400])
    parser.add_argument('--json', type=Path, help='file for the figures')
    arguments = parser.parse_args()
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.count)
    result = dict(model=arguments.model, first_seed=arguments.first_seed, count=arguments.count,
                  minutes=arguments.minutes, recall_steps={})
    for steps in arguments.recall_steps:
        found = run(arguments.model, seeds, sorted(arguments.minutes), steps)
        result['recall_steps'][steps] = found
        print(f'recall_steps {steps}: of {found["asked"]} answers right {found["right"]}')
        if arguments.json:
            arguments.json.write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
    main()
