"""
Renders the clips that the tests train on: the shapes world in the forms of PE-Video and FunQA.

`python test/render_clips.py --out test/data/clips`
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from fractions import Fraction
import json
from pathlib import Path

import av
import numpy as np

from sww_ros.shapes.checkpoint import build_tokenizer
from sww_ros.shapes.grammar import make_question
from sww_ros.shapes.render import Renderer
from sww_ros.shapes.scene import Difficulty, Scene, generate
from sww_ros.shapes.truth import NARRATE, wanted
from sww_ros.training.annotations import PAPER

CLIPS = 10
"""In each of the two forms."""
RATE = 8
_LOOKS_S = 0.5
"""A viewer at 2 Hz sees the last frame this long before the end."""
_LENGTHS_S = (5.0, 6.0, 7.0, 8.0)
# Busier than the built-in checkpoint's own scenes: captions must reach 3 tokens a second.
_BUSY = Difficulty(max_objects=3, gaps=(2, 3), texture=0.5, noise=0.25)
_SPARSE = Difficulty(max_objects=1, texture=0.5, noise=0.25)
_ANYTIME = ('color', 'count', 'exists', 'where')
"""Kinds of questions that need nothing of what happened before a part of a clip."""


def write_clip(path: Path, scene: Scene) -> None:
    """Write a scene as H.264, 84x84 pixels at 8 Hz; the same on every run of one build of x264."""
    renderer = Renderer(scene)
    with av.open(str(path), 'w', options={'movflags': 'faststart', 'fflags': '+bitexact'}) as out:
        stream = out.add_stream('libx264', rate=RATE, options={
            'crf': '22', 'preset': 'slow', 'threads': '1', 'g': str(2 * RATE),
            'flags': '+bitexact'})
        stream.width, stream.height, stream.pix_fmt = renderer.width, renderer.height, 'yuv420p'
        stream.codec_context.time_base = Fraction(1, RATE)
        for index in range(round(scene.seconds * RATE)):
            frame = av.VideoFrame.from_ndarray(renderer.frame(index / RATE), format='rgb24')
            # Left to the encoder, the conversion gives other bytes on every run.
            frame = frame.reformat(format='yuv420p')
            frame.pts, frame.time_base = index, Fraction(1, RATE)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def caption(scene: Scene) -> str:
    """Return all that a viewer at 2 Hz can tell of a scene, in the order in which it shows."""
    facts = wanted(scene.facts_visible(scene.seconds - _LOOKS_S), NARRATE)
    return ' '.join(fact.claim.sentence for fact in facts)


def captioned() -> Iterator[tuple[dict, Scene]]:
    """Yield records of PE-Video's form; the last one says too little for the paper's filter."""
    tokenizer, seed = build_tokenizer(), 0
    low, high = PAPER.tokens_per_second
    for index in range(CLIPS):
        seconds, sparse = _LENGTHS_S[index % 4], index == CLIPS - 1
        while True:
            seed += 1
            scene = generate(seed, seconds, _SPARSE if sparse else _BUSY)
            rate = len(tokenizer(caption(scene))['input_ids']) / seconds
            if 0 < rate < low if sparse else low <= rate <= high:
                break
        yield dict(video=f'pe_{index}.mp4', caption=caption(scene), duration=seconds), scene


def asked() -> Iterator[tuple[dict, Scene]]:
    """Yield records of FunQA's form; every other one asks about a part of its clip."""
    for index in range(CLIPS):
        seed, seconds = 1000 + index, _LENGTHS_S[index % 4]
        scene, rng = generate(seed, seconds, _BUSY), np.random.default_rng(seed)
        start_s = 1.0 if index % 2 else 0.0
        end_s = seconds - start_s
        kind = _ANYTIME[index // 2 % len(_ANYTIME)] if start_s else None
        question = (make_question(scene, end_s - _LOOKS_S, rng, kind)
                    or make_question(scene, end_s - _LOOKS_S, rng, 'count'))
        yield dict(visual_input=f'funqa_{index}.mp4', instruction=question.text,
                   output=question.answer, task=f'shapes_{question.kind}', ID=f'shapes_{index}',
                   start=start_s, end=end_s), scene


def write_all(folder: Path) -> None:
    """Write the clips, `pe_video.jsonl` and `funqa.json` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    records: dict[str, list[dict]] = {}
    for key, clips in (('video', captioned()), ('visual_input', asked())):
        for record, scene in clips:
            write_clip(folder / record[key], scene)
            records.setdefault(key, []).append(record)
    lines = [json.dumps(record) for record in records['video']]
    (folder / 'pe_video.jsonl').write_text('\n'.join(lines) + '\n')
    (folder / 'funqa.json').write_text(json.dumps(records['visual_input'], indent=2) + '\n')


def main() -> None:
    parser = argparse.ArgumentParser(description='Render the clips that the tests train on.')
    parser.add_argument('--out', type=Path, required=True, help='folder, made if need be')
    write_all(parser.parse_args().out)


if __name__ == '__main__':
    main()
