"""
What positions cost a checkpoint that was not trained in them, and what LoRA gives back.

`python -m experiments.lora --runs FOLDER --json docs/models/lora.json` takes the stand-ins for a
stock checkpoint that `experiments.gates` trains, has each narrate in every position scheme as it
is, tunes it for a few hundred updates of LoRA by `python -m sww_ros.training` on timed narrations
with silence, and has it narrate again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from fractions import Fraction
from functools import partial
import json
from pathlib import Path
import sys

import av
import numpy as np
import torch
from tqdm import tqdm

from experiments.gates import kept, kept_score
from experiments.paper import (
    FIRST_SCENE,
    ROWS,
    STEPS,
    ShapesClip,
    interval,
    play_streaming,
    run_command,
    words,
)
from sww_ros.models.loading import load
from sww_ros.shapes.checkpoint import SILENCE, WAIT_K
from sww_ros.shapes.truth import Answers
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.layout import IGNORE
from sww_ros.training.annotations import read_annotations
from sww_ros.training.clips import ClipMaker, pad
from sww_ros.training.model import Loss, load_model
from sww_ros.training.recipe import Recipe

STAND_IN = 'offline_gdpe'
SCHEMES = ('gdpe', 'gipe', 'ospe', 'interleaved')
UPDATES, BATCH, RATE, RANK = 300, 8, 1e-3, 16
FIRST_CLIP = 2_000_000
"""The first scene that is trained on; each comes once."""
METRICS = ('facts_true', 'facts_narrated', 'repeated', 'needless_a_minute', 'answers_right',
           'words_right')


def write_clips(folder: Path, name: str, seeds: Iterable[int]) -> Path:
    """
    Write clips without loss, and what a perfect narrator says of them, with times.

    :return: the annotations, in the form of LiveCC's
    """
    annotations = folder / f'{name}.jsonl'
    if annotations.exists():
        return annotations
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for seed in tqdm(list(seeds), desc=f'clips {name}', unit='clip', disable=None):
        clip, video = ShapesClip.of(seed), folder / f'{seed}.mkv'
        _write_video(video, clip.frames)
        said = [[step, step + 1, fact.claim.sentence]
                for step, facts in enumerate(clip.facts()) for fact in facts]
        lines.append(json.dumps([
            dict(role='user', content=[dict(type='video', video=video.name, video_start=0,
                                            video_end=STEPS)]),
            dict(role='assistant', content=[dict(type='text_stream', text_stream=said)])]))
    annotations.write_text('\n'.join(lines) + '\n')
    return annotations


def _write_video(path: Path, frames: list[np.ndarray]) -> None:
    with av.open(str(path), 'w') as out:
        stream = out.add_stream('ffv1', rate=Fraction(2))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = 'bgr0'
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
        out.mux(stream.encode())


def tune(model: Path, scheme: str, seed: int, data: Path, out: Path) -> None:
    """Train a checkpoint in a scheme by the command that everyone uses, if that is not done yet."""
    if not (out / 'model.safetensors').exists():
        run_command([
            sys.executable, '-m', 'sww_ros.training', '--model', str(model), '--data', str(data),
            '--out', str(out), '--position-encoding', scheme, '--silence', SILENCE,
            '--steps', str(UPDATES), '--batch', str(BATCH), '--micro-batch', str(BATCH),
            '--learning-rate', str(RATE), '--lora', str(RANK), '--seed', str(seed),
            '--readers', '1', '--log-every', '25'], out.with_suffix('.log'))


def answers_right(model: Path, scheme: str, seeds: Iterable[int]) -> float | None:
    """Ask in the middle of unseen scenes, as the tables of the paper do; nothing is narrated."""
    checkpoint, tally = load(str(model)), Answers()
    config = SessionConfig(position_encoding=scheme, wait_k=WAIT_K, narrate=False,
                           max_pending_frames=64)
    for seed in tqdm(list(seeds), desc=f'answers {scheme}', unit='clip', disable=None):
        events, asked = play_streaming(checkpoint, config, ShapesClip.of(seed))
        for question_id, question in asked.items():
            tally.mark(question, events, question_id)
    return tally.share()


@torch.no_grad()
def words_right(model: Path, scheme: str, data: Path) -> float:
    """Return the share of words, silence apart, foretold right by one who was told all before."""
    recipe = Recipe(model=str(model), data=(data,), out=Path(), position_encoding=scheme,
                    silence=SILENCE)
    trained = load_model(recipe)
    maker = ClipMaker(trained.about, trained.stock, recipe)
    samples = read_annotations(recipe.data, prompt=maker.settings.defaults.prompt)
    batch = pad([maker.make(sample, maker.read(sample), 0) for sample in samples])
    silence = trained.about.encode(SILENCE)[0]
    at = (batch.labels != IGNORE) & (batch.labels != silence)
    found = Loss(trained, 'sdpa').logits(batch, at).argmax(-1)
    return round(float((found == batch.labels[at]).float().mean()), 4)


def measured(model: Path, speak: str, scheme: str, own: bool, scenes: int, test: Path) -> dict:
    """
    Return the figures of one checkpoint in one scheme.

    :param own: whether that is the one it was trained in
    """
    seeds = range(FIRST_SCENE, FIRST_SCENE + scenes)
    found = kept_score(model, speak, '' if own else scheme, scenes)
    return dict({name: found[name] for name in METRICS if name in found},
                answers_right=answers_right(model, scheme, seeds),
                words_right=words_right(model, scheme, test))


def both(stand_in: Path, seed: int, scheme: str, clips: tuple[Path, Path],
         scenes: int) -> tuple[dict, dict]:
    """
    Return the figures of a stand-in in a scheme as it is, and tuned; once measured, from a file.

    :param clips: annotations to train on and to test with
    """
    data, test = clips
    own = scheme == ROWS[STAND_IN].position_encoding
    before = kept(stand_in / f'positions-{scheme}.json', scenes, partial(
        measured, stand_in, 'changed', scheme, own, scenes, test))
    tuned = stand_in.with_name(f'{stand_in.name}-lora-{scheme}')
    tune(stand_in, scheme, seed, data, tuned)
    return before, kept(tuned / f'positions-{scheme}.json', scenes, partial(
        measured, tuned, 'trained', scheme, True, scenes, test))


def described(summary: dict[str, dict[str, dict]]) -> str:
    """Return what all seeds came to as a table in Markdown, as docs/models.md has it."""
    rows = ['| `position_encoding` | | facts true % | facts told % | repeated % | needless a '
            'minute | answers right % | words right % |', '|---|---|---|---|---|---|---|---|']
    for scheme, ways in summary.items():
        for way, found in ways.items():
            cells = ' | '.join(words(found[metric], metric) for metric in METRICS)
            rows.append(f'| `{scheme}` | {way} | {cells} |')
    return '\n'.join(rows)


def main() -> int:
    """Tune and score what is not there yet; print and write what all seeds come to."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[1])
    parser.add_argument('--runs', type=Path, required=True,
                        help='folder of the stand-ins, trained by experiments.gates')
    parser.add_argument('--seeds', type=int, nargs='+', default=[1, 2, 3, 4, 5])
    parser.add_argument('--schemes', nargs='+', choices=SCHEMES, default=list(SCHEMES))
    parser.add_argument('--scenes', type=int, default=100, help='(default: %(default)s)')
    parser.add_argument('--json', type=Path, help='file for the figures')
    arguments = parser.parse_args()
    scenes, folder = arguments.scenes, arguments.runs / 'clips'
    clips = (write_clips(folder, 'train', range(FIRST_CLIP, FIRST_CLIP + UPDATES * BATCH)),
             write_clips(folder, 'test', range(FIRST_SCENE, FIRST_SCENE + scenes)))
    found = {scheme: {way: [] for way in ('as it is', 'LoRA')} for scheme in arguments.schemes}
    for seed in arguments.seeds:
        for scheme, ways in found.items():
            stand_in = arguments.runs / f'{STAND_IN}-{seed}'
            for runs, figures in zip(ways.values(), both(stand_in, seed, scheme, clips, scenes)):
                runs.append(figures)
    summary = {scheme: {way: {name: interval([run[name] for run in each]) for name in METRICS}
                        for way, each in ways.items()} for scheme, ways in found.items()}
    print(described(summary))
    if arguments.json:
        arguments.json.write_text(json.dumps(dict(
            summary=summary, row=STAND_IN, seeds=arguments.seeds, scenes=arguments.scenes,
            first_scene=FIRST_SCENE, settings=dict(
                updates=UPDATES, clips_an_update=BATCH, first_clip=FIRST_CLIP,
                learning_rate=RATE, lora_rank=RANK, wait_k=WAIT_K)), indent=1) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
