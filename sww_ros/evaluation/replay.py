"""
Replays a recorded run through transformers' own model: the same tokens must come out.

`python -m sww_ros.evaluation.replay TRACE --model PATH`
"""

from __future__ import annotations

import argparse
from pathlib import Path
import sys

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from sww_ros.models.loading import builtin_path
from sww_ros.streaming.oracle import replay
from sww_ros.streaming.trace import Trace


def main(arguments: list[str] | None = None) -> int:
    """Replay one trace; return 0 if every token is the same."""
    parser = argparse.ArgumentParser(prog='python -m sww_ros.evaluation.replay',
                                     description=__doc__)
    parser.add_argument('trace', type=Path)
    parser.add_argument('--model', default='builtin', help='the checkpoint of the run')
    options = parser.parse_args(arguments)
    source = str(builtin_path()) if options.model == 'builtin' else options.model
    try:
        trace = Trace.load(options.trace)
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            source, dtype=torch.float32, attn_implementation='sdpa', local_files_only=True)
    except (OSError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    verdict = replay(trace, model)
    print(f'{verdict.compared} tokens compared, {verdict.differing} differ '
          f'({trace.steps} steps, {len(trace.speakers)} speakers)')
    return 1 if verdict.differing else 0


if __name__ == '__main__':
    sys.exit(main())
