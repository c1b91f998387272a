"""
Replays a recorded run through transformers' own model: the same tokens must come out.

`python -m sww_ros.evaluation.replay TRACE --model PATH`

It computes in the type of the recorded run. In float32 and float64 every token is the same; in
bfloat16 and float16, which round at other places, a token may differ where the best two are as
good as equal, and the exit code is 0 if that explains every difference.
"""

from __future__ import annotations

import argparse
from pathlib import Path
import sys

from safetensors import SafetensorError
import torch

from sww_ros.models.loading import BUILTIN, load_stock
from sww_ros.streaming.trace import Trace, Verdict, replay

DTYPES = ('float32', 'float64', 'bfloat16', 'float16')


def main(arguments: list[str] | None = None) -> int:
    """Replay one trace; return 0 if the run is confirmed, 1 if not, 2 if it cannot be told."""
    parser = argparse.ArgumentParser(prog='python -m sww_ros.evaluation.replay',
                                     description=__doc__)
    parser.add_argument('trace', type=Path)
    parser.add_argument('--model', default=BUILTIN, help='the checkpoint of the run')
    parser.add_argument('--dtype', default='', help='compute in another type than the run has')
    options = parser.parse_args(arguments)
    try:
        trace = Trace.load(options.trace)
        dtype = options.dtype or trace.dtype
        verdict = _replay(trace, options.model, dtype)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(_in_words(trace, dtype, verdict))
    return 1 if verdict.differing > verdict.rounding else 0


def _replay(trace: Trace, model: str, dtype: str) -> Verdict:
    for name in (trace.dtype, dtype):
        if name not in DTYPES:
            raise ValueError(f'unknown dtype {name!r}; one of {", ".join(DTYPES)}')
    net = load_stock(model, getattr(torch, dtype), trace.quantize)
    try:
        return replay(trace, net)
    except (IndexError, RuntimeError) as error:
        raise ValueError(f'the trace is of another checkpoint than {model!r}: {error}') from error


def _in_words(trace: Trace, dtype: str, verdict: Verdict) -> str:
    how = (f'compared in {dtype}' if dtype == trace.dtype else
           f'recorded in {trace.dtype}, compared in {dtype}')
    words = f'{verdict.compared} tokens {how}, {verdict.differing} differ'
    if 'float16' in (trace.dtype + dtype):
        words += (f', {verdict.rounding} of them only as that type rounds: the best two tokens '
                  'were as good as equal')
    return f'{words} ({trace.steps} steps, {len(trace.speakers)} speakers)'


if __name__ == '__main__':
    sys.exit(main())
