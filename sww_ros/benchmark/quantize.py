"""
What whole numbers for weights cost in time, and what they save.

`python -m sww_ros.benchmark quantize --json FILE` measures a token of narration over a context and
the prefill of a step of video in each precision, of the built-in checkpoint and of two layers of
Qwen2.5-VL-3B's shapes with random weights, on one thread, in its processor time, all in turn.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch

from sww_ros.benchmark import harness
from sww_ros.benchmark.step import Case, Lanes, appending, filled, measure
from sww_ros.evaluation.random_model import QWEN2_5_VL_3B, random_model
from sww_ros.models.loading import load, take_apart
from sww_ros.models.plan import plan_of
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.config import QUANTIZATIONS
from sww_ros.streaming.family import Wanted

CUT = '3B-cut'
PRECISIONS = tuple((dtype, quantize) for dtype in ('float32', 'bfloat16')
                   for quantize in QUANTIZATIONS)
_THIN = dict(depth=1, hidden_size=160, intermediate_size=424, num_heads=2, window_size=112,
             fullatt_block_indexes=[0])


def checkpoint_of(name: str, dtype: str, quantize: str) -> Checkpoint:
    """Return a model by its name in a precision: the cut, 'builtin', a folder or a hub id."""
    if name != CUT:
        return load(name, dtype=dtype, quantize=quantize)
    shape = dict(text=dict(QWEN2_5_VL_3B['text'], num_hidden_layers=2), vision=_THIN)
    net, tokenizer = random_model(shape, 0, getattr(torch, dtype))
    return take_apart(net, tokenizer, name=name, wanted=Wanted(net.dtype, net.device, quantize))


def report(name: str, given: argparse.Namespace) -> dict:
    """Measure one model in all precisions."""
    cases: dict[str, Case] = {}
    held, parameters = {}, 0
    for dtype, quantize in PRECISIONS:
        checkpoint = checkpoint_of(name, dtype, quantize)
        decoder, parameters = checkpoint.decoder, checkpoint.parameters
        view = filled(decoder, given.context, given.step)
        cases[f'{decoder.precision}: token'] = Case(
            decoder, Lanes(decoder, view, 1, given.own).chunks)
        cases[f'{decoder.precision}: step'] = Case(
            decoder, partial(appending, decoder, view, given.step))
        held[decoder.precision] = plan_of(checkpoint, 'cpu').weights
    with harness.torch_threads(1):
        found = measure(cases, given.repeats)
    precisions = {
        name: dict(token_ms=found[f'{name}: token']['median_ms'],
                   tokens_per_s=round(1e3 / found[f'{name}: token']['median_ms'], 1),
                   step_ms=found[f'{name}: step']['median_ms'],
                   weights_mb=round(size / 1e6, 1))
        for name, size in held.items()}
    return dict(model=name, parameters=parameters, precisions=precisions)


def run_quantize(given: argparse.Namespace) -> dict:
    """Measure what the options ask for; return it, ready for JSON."""
    models = [report(name, given) for name in given.models]
    return dict(
        threads=1, context_rows=given.context, own_rows=given.own, step_rows=given.step,
        repeats=given.repeats,
        summary=[dict(model=model['model'], tokens_per_s={
            name: each['tokens_per_s'] for name, each in model['precisions'].items()})
            for model in models],
        models=models)


QUANTIZE = harness.Measurement('quantize', 'precisions of the weights', run_quantize, {
    '--models': dict(harness.MODELS['--models'], default=['builtin', CUT]),
    '--context': dict(type=int, default=420, help='rows of video that are seen'),
    '--own': dict(type=int, default=30, help='rows of text before'),
    '--step': dict(type=int, default=64, help='rows of a step of video'),
    **harness.repeats(20)})
