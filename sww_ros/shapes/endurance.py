"""
Scores a checkpoint on one scene that goes on and on, through the live engine.

`python -m sww_ros.shapes.endurance --steps N --json FILE` plays one continuous stream, which begins
anew each time the engine's `max_steps` are full, and tells the sentences soon after such a restart
from the others.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
import json
from pathlib import Path

from tqdm import tqdm

from sww_ros.shapes.checkpoint import FRAME_SIZE
from sww_ros.shapes.render import Renderer
from sww_ros.shapes.scene import TICK_S, Scene, generate
from sww_ros.shapes.truth import Utterance, in_view, judge, newest_frame_s, utterances
from sww_ros.streaming.clip_loop import play_steps, settle
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import NARRATION, Event, TextDelta
from sww_ros.streaming.session import Session

SOON_STEPS = 6
"""So many steps after a restart are counted apart."""

UNOWED_STEPS = 4
"""The last steps, whose facts need not have been told."""


def measure(session: Session, seed: int, steps: int, max_objects: int = 2) -> dict:
    """
    Play a scene of so many steps; return the shares of true sentences and of facts told.

    What is in view when a stream begins anew may be told again.

    :raises ClipError: for a run in which frames were lost or an error occurred
    """
    scene = generate(seed, steps + 1.0, max_objects=max_objects)
    renderer = Renderer(scene, FRAME_SIZE, FRAME_SIZE)
    session.reset()
    list(settle(session, lossless=False))
    events: list[Event] = []
    frames = ((renderer.frame(frame * TICK_S), frame) for frame in range(2 * steps))
    for new in tqdm(play_steps(session, frames, ends=False), desc='one stream', total=steps,
                    unit='step', disable=None):
        events += new
    return _figures(scene, events, steps, session.info['max_steps'])


def _figures(scene: Scene, events: Iterable[Event], steps: int, max_steps: int) -> dict:
    texts = [event for event in events if isinstance(event, TextDelta)
             and event.stream_id == NARRATION and not event.final]
    first_video = min(text.video for text in texts)
    spoken: list[Utterance] = []
    for video in sorted({text.video for text in texts}):
        begun = (video - first_video) * max_steps
        # A sentence that a restart has cut is not judged: no other stream goes on with it.
        spoken += utterances([(text.delta, text.sentence, begun + text.step)
                              for text in texts if text.video == video])
    begins = range(max_steps, steps, max_steps)
    # Who is there when a stream begins anew, as far as the steps before show it.
    again = [(fact.claim, step) for step in begins
             for fact in in_view(scene, newest_frame_s(step - 1, 0.0))]
    verdict = judge(scene, spoken, steps, steps - UNOWED_STEPS, again=again)
    summary = verdict.summary()
    only_news = judge(scene, spoken, steps, steps - UNOWED_STEPS).summary()
    return dict(
        seed=scene.seed, steps=steps, max_steps=max_steps, restarts=len(begins),
        sentences=verdict.sentences, facts_true=summary['facts_true'],
        facts_true_and_new=only_news['facts_true'], facts_narrated=summary['facts_narrated'],
        soon_steps=SOON_STEPS,
        true=_soon([(said.first_step, [mark]) for said, mark
                    in zip(spoken, verdict.marks, strict=True)], max_steps),
        narrated=_soon(verdict.narrated_at.items(), max_steps),
        facts_by_kind=verdict.by_kind())


def _soon(marks: Iterable[tuple[int, list[bool]]], max_steps: int) -> dict:
    """Return the share of what is marked at each step: soon after a restart, and otherwise."""
    found: dict[str, list[bool]] = dict(soon_after_a_restart=[], otherwise=[])
    for step, some in marks:
        is_soon = step >= max_steps and step % max_steps < SOON_STEPS
        found['soon_after_a_restart' if is_soon else 'otherwise'] += some
    return {name: dict(share=round(sum(some) / len(some), 4) if some else None, count=len(some))
            for name, some in found.items()}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[1])
    parser.add_argument('--model', default='builtin', help='checkpoint (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=3000)
    parser.add_argument('--steps', type=int, default=5000, help='length (default: %(default)s)')
    parser.add_argument('--json', type=Path, help='file for the figures')
    arguments = parser.parse_args()
    with Session.open(arguments.model, SessionConfig(memory=0)) as session:
        result = dict(model=arguments.model, **measure(session, arguments.seed, arguments.steps))
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
    main()
