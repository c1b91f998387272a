"""
Tells what a checkpoint takes of memory without loading it, `python -m sww_ros.models MODEL --plan`.

MODEL is 'builtin', a folder or its config.json, or a hub id of which the local cache has the
config; weights and a tokenizer may be missing. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
import json
from pathlib import Path
import sys

from rich.console import Console
from rich.table import Table
import torch

from sww_ros.models.loading import Described, resolve
from sww_ros.models.plan import megabytes, plan_of, process_bytes
from sww_ros.settings import add_option
from sww_ros.streaming.config import BY_NAME, QUANTIZATIONS, SessionConfig
from sww_ros.streaming.pace import step_rows, working_size

OPTIONS = ('device', 'profile', 'position_encoding', 'wait_k', 'max_steps', 'capacity', 'memory',
           'previous_sentences', 'frame_rate', 'frame_width', 'frame_height')
"""The settings of a session that change what it takes."""
PRECISIONS = tuple((dtype, quantize) for dtype in (torch.float32, torch.bfloat16)
                   for quantize in QUANTIZATIONS)
COLUMNS = dict(weights='language model', vision='vision tower', minute='a minute of video',
               lanes='all lanes', total='in all', peak='at most')


def planned(model: str, config: SessionConfig) -> dict:
    """
    Return what a checkpoint takes of memory in each precision, ready for JSON [bytes].

    :raises ValueError: in words, for one that cannot be streamed, or settings that do not suit it
    """
    # A config.json by itself stands for the folder that it is in.
    source = resolve(str(Path(model).parent) if Path(model).name == 'config.json' else model)
    described = Described(model, source, profile=config.profile, stand_in=True)
    plans = [plan_of(described.outline(dtype, quantize), config.device, config,
                     bool(described.files.packing)) for dtype, quantize in PRECISIONS]
    outline = described.outline(torch.float32)
    found = config.resolved(outline)
    height, width = working_size(outline, found)
    return dict(
        model=model, parameters=outline.parameters,
        saved=dict(bytes=described.files.weight_bytes,
                   types=sorted(set(described.files.weights().values()))),
        device=config.device, frame_rate=found.frame_rate, frame_width=width, frame_height=height,
        rows_per_step=step_rows(outline, found), max_steps=found.max_steps,
        capacity=found.capacity, memory=found.memory, program=process_bytes(),
        precisions=[dict(asdict(plan), total=plan.total, peak=plan.peak) for plan in plans])


def table_of(plan: dict) -> Table:
    """Return what `planned` has returned as a table."""
    saved = plan['saved']
    there = (f'saved as {", ".join(saved["types"])} in {megabytes(saved["bytes"])}'
             if saved['bytes'] else 'of whose weights no file is here')
    streams = 'two streams of' if plan['memory'] else 'one stream of'
    program = '' if plan['program'] is None else (
        f' The program itself takes {megabytes(plan["program"])} beside it.')
    table = Table(
        title=f'{plan["model"]}: {plan["parameters"] / 1e6:,.1f} M weights, {there}',
        caption=f'{plan["frame_rate"]:g} frames a second of {plan["frame_width"]}x'
                f'{plan["frame_height"]} pixels, {plan["rows_per_step"]} tokens a step; lanes are '
                f'those of {streams} {plan["max_steps"]} steps at most.{program}')
    table.add_column('precision')
    for words in COLUMNS.values():
        table.add_column(words, justify='right')
    for each in plan['precisions']:
        table.add_row(each['precision'], *(_readable(each[name]) for name in COLUMNS))
    return table


def _readable(count: int) -> str:
    return megabytes(count) if count >= 1e8 else f'{count / 1e6:.1f} MB'


def main(arguments: list[str] | None = None) -> int:
    """Print the plan of a checkpoint; return the exit code."""
    parser = argparse.ArgumentParser(prog='python -m sww_ros.models', description=__doc__)
    parser.add_argument('model', help="'builtin', a folder, a config.json, or a hub id")
    parser.add_argument('--plan', action='store_true', required=True,
                        help='print what it takes of memory')
    parser.add_argument('--json', type=Path, metavar='FILE', help='where all figures go, in bytes')
    for name in OPTIONS:
        add_option(parser, BY_NAME[name])
    given = vars(parser.parse_args(arguments))
    try:
        plan = planned(given['model'], SessionConfig(
            **{name: value for name, value in given.items() if name in OPTIONS}))
        if given['json']:
            given['json'].write_text(json.dumps(plan, indent=1) + '\n')
    except (ValueError, OSError) as error:
        print(f'error: cannot plan with {given["model"]}: {error}', file=sys.stderr)
        return 1
    Console().print(table_of(plan))
    return 0


if __name__ == '__main__':
    sys.exit(main())
