"""
The record of a run, and the oracle: transformers' own model run over it, in one masked full pass.

A record says what every row was fed, saw and predicted. Its replay shares no code with the live
pass but the position and visibility rules, and has to give the same tokens. Any race, any
off-by-one in a mask, any stale row shows as a difference.

That holds in fp32 and fp64. In bf16 and fp16 the two round at different places, as their matrices
are cut differently: a token may differ where the best two are as good as equal, and only there.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
import torch

from sww_ros.streaming.family import family_of
from sww_ros.streaming.generation import LaneRecord
from sww_ros.streaming.positions import text_positions
from sww_ros.streaming.sampling import GREEDY, Sampling
from sww_ros.streaming.stream import Stream
from sww_ros.streaming.visibility import PREFIX_STEP, VISUAL_LANE, Visibility

VIDEO = -1
"""The token id of rows that hold a visual token."""


@dataclass
class Trace:
    """
    One stream and its speakers, as one sequence of n rows: the visual lane, then lane after lane.

    `patches` (steps * 4 * tokens, pixels) are what the vision tower was given; `grid` is in
    merged tokens, and `places` (v,) says which of those of all steps the v visual rows hold;
    `ids`, `lane`, `step`, `sees`, `predicted` are int64 (n,), `positions` (3, n);
    `speakers` names the text lanes in the order they were opened. Where video and narration run
    through one lane, the narration's rows stand in it as they came, and `step` counts rows.
    `dtype` is what the run was computed in, and `quantize` the form of its matrices, which a replay
    has to honour; as it has how tokens were chosen: `sampling`, by `draws` (n,), with `silence` not
    counted as a repetition.
    """

    grid: tuple[int, int]
    patches: torch.Tensor
    steps: int
    speakers: list[str]
    ids: np.ndarray
    positions: np.ndarray
    lane: np.ndarray
    step: np.ndarray
    sees: np.ndarray
    predicted: np.ndarray
    draws: np.ndarray
    places: np.ndarray
    logits: torch.Tensor | None = None
    dtype: str = 'float32'
    quantize: str = 'none'
    sampling: Sampling = GREEDY
    silence: int = -1

    @staticmethod
    def of(stream: Stream, records: list[LaneRecord], sampling: Sampling,
           silence: int) -> Trace:
        """Put together what a stream and its speakers have recorded, the narration first."""
        used = [record for record in records if record.fed]
        running = used[:1] if stream.scheme.serial and stream.narration.begun else []
        lanes = [_visual_lane(stream, running)]
        lanes += [_text_lane(index, record)
                  for index, record in enumerate(used[len(running):])]
        columns = {name: np.concatenate([lane[name] for lane in lanes], axis=-1)
                   for name in lanes[0]}
        logits = [row for record in used for row in record.logits]
        tokens = stream.grid[0] * stream.grid[1]
        places = [step * tokens + placed.places for step, placed in enumerate(stream.placed)]
        return Trace(stream.grid, torch.cat(stream.patches), len(stream.patches),
                     [record.stream_id for record in used], places=np.concatenate(places),
                     logits=torch.stack(logits) if logits else None,
                     dtype=str(stream.decoder.dtype).removeprefix('torch.'),
                     quantize=stream.decoder.quantize, sampling=sampling, silence=silence,
                     **columns)

    def save(self, file: Path) -> None:
        """
        Write the trace as safetensors; what is not a tensor goes into the metadata as JSON.

        :raises OSError: where it cannot be written
        """
        about = dict(grid=self.grid, steps=self.steps, speakers=self.speakers, dtype=self.dtype,
                     quantize=self.quantize, sampling=asdict(self.sampling),
                     silence=self.silence)
        rows = {name: torch.from_numpy(getattr(self, name)) for name in _COLUMNS}
        try:
            # safetensors makes files that their owner alone may read.
            file.touch()
            mode = file.stat().st_mode
            save_file({'patches': self.patches, **rows}, file,
                      metadata={'trace': json.dumps(about)})
            file.chmod(mode)
        except (OSError, SafetensorError) as error:
            raise OSError(f'cannot write the trace {file}: {error}') from error

    @staticmethod
    def load(file: Path) -> Trace:
        """
        Read a trace written by `save`.

        :raises ValueError: for a file that is no trace
        """
        try:
            with safe_open(file, 'pt') as content:
                about = json.loads((content.metadata() or {})['trace'])
                patches = content.get_tensor('patches')
                rows = {name: content.get_tensor(name).numpy() for name in _COLUMNS
                        if name not in ('places', 'draws') or name in content.keys()}
        except (OSError, KeyError, SafetensorError) as error:
            raise ValueError(f'{file} is not a trace: {error}') from error
        # Older ones say none of these: they have all tokens, were all compared in fp32, and always
        # said what was likeliest.
        rows.setdefault('places', np.arange(about['steps'] * math.prod(about['grid'])))
        rows.setdefault('draws', np.full(len(rows['ids']), -1.0))
        return Trace(tuple(about['grid']), patches, about['steps'], about['speakers'],
                     dtype=about.get('dtype', 'float32'),
                     quantize=about.get('quantize', 'none'),
                     sampling=Sampling(**about.get('sampling', {})),
                     silence=about.get('silence', -1), **rows)

    def rows(self) -> Visibility:
        """What the rule of visibility needs to know of each row."""
        return Visibility(self.lane, self.step, self.sees)

    def used(self, row: int) -> set[int]:
        """The tokens on which a penalty is when one is predicted from a row: those before it."""
        before = (self.lane == self.lane[row]) & (np.arange(len(self.lane)) <= row)
        prefix = (self.lane == VISUAL_LANE) & (self.step == PREFIX_STEP)
        return {*self.ids[before | prefix].tolist()} - {VIDEO, self.silence}


_COLUMNS = ('ids', 'positions', 'lane', 'step', 'sees', 'predicted', 'draws', 'places')


def _visual_lane(stream: Stream, running: list[LaneRecord]) -> dict[str, np.ndarray]:
    """The rows of the visual lane, and of the narration where it runs through the same lane."""
    prefix, ends = len(stream.prefix), stream.ends
    length = max([ends[-1], *(record.rows[-1] + 1 for record in running)])
    ids = np.full(length, VIDEO)
    positions = np.zeros((3, length), np.int64)
    step, predicted = np.zeros(length, np.int64), np.full(length, -1)
    draws = np.full(length, -1.0)
    ids[:prefix], step[:prefix] = stream.prefix, PREFIX_STEP
    positions[:, :prefix] = text_positions(0, prefix)
    for index, (end, placed) in enumerate(zip(ends, stream.placed)):
        where = placed.positions[:, len(placed.spoken):]
        first, before, after = end - where.shape[1], placed.before, placed.after
        positions[:, first:end], step[first:end] = where, index
        ids[first:first + len(before)], ids[end - len(after):end] = before, after
    for record in running:
        fed = np.array(record.fed) >= 0
        rows = np.array(record.rows)
        ids[rows[fed]] = np.array(record.fed)[fed]
        positions[:, rows] = np.array(record.positions).T
        predicted[rows], draws[rows] = record.predicted, record.draws
    if stream.scheme.serial:
        step[prefix:] = np.arange(prefix, length)
    return dict(ids=ids, positions=positions, lane=np.full(length, VISUAL_LANE), step=step,
                sees=np.zeros(length, np.int64), predicted=predicted, draws=draws)


def _text_lane(index: int, record: LaneRecord) -> dict[str, np.ndarray]:
    count = len(record.fed)
    return dict(ids=np.array(record.fed), positions=np.array(record.positions).T,
                lane=np.full(count, index), step=np.zeros(count, np.int64),
                sees=np.array(record.sees), predicted=np.array(record.predicted),
                draws=np.array(record.draws))


_ROUNDING = 4.0
"""In narrow types, logits differ by about one step of the largest; their gap by twice that."""


@dataclass(frozen=True)
class Verdict:
    """
    How a replay went: for each compared row whether its token differs, and its logits.

    `rounded` are those among the wrong that rounding explains.
    """

    wrong: torch.Tensor
    rounded: torch.Tensor
    logits: torch.Tensor

    @staticmethod
    def of(spoken: torch.Tensor, logits: torch.Tensor, dtype: torch.dtype) -> Verdict:
        """
        Compare the tokens that were spoken (n,) with the oracle's logits (n, vocabulary).

        :param dtype: the narrower of the types that both were computed in
        """
        wrong = logits.argmax(-1) != spoken
        wide = logits.float()
        gap = wide.max(-1).values - wide.gather(1, spoken[:, None])[:, 0]
        close = gap <= _ROUNDING * torch.finfo(dtype).eps * wide.abs().max(-1).values
        narrow = torch.finfo(dtype).bits < 32
        return Verdict(wrong, wrong & close & narrow, logits)

    @staticmethod
    def of_draws(spoken: torch.Tensor, logits: torch.Tensor, dtype: torch.dtype,
                 draws: np.ndarray, sampling: Sampling) -> Verdict:
        """
        Compare tokens that were drawn (n,) with the shares of probability that the draws fall into.

        A draw that is as good as on the edge of a share falls to either side by rounding, in every
        type: it is off by less than the logits are.
        """
        wrong, rounded = torch.zeros(2, len(spoken), dtype=torch.bool)
        for row, (token, draw) in enumerate(zip(spoken.tolist(), draws.tolist(), strict=True)):
            if sampling.choose(logits[row], draw) == token:
                continue
            shares = sampling.shares(logits[row])
            end = float(shares.cumsum(0)[token])
            off = max(end - float(shares[token]) - draw, draw - end)
            error = _ROUNDING * torch.finfo(dtype).eps * float(logits[row].abs().max())
            wrong[row], rounded[row] = True, off <= error / sampling.temperature
        return Verdict(wrong, rounded, logits)

    @property
    def compared(self) -> int:
        return len(self.wrong)

    @property
    def differing(self) -> int:
        return int(self.wrong.sum())

    @property
    def rounding(self) -> int:
        """How many differing tokens rounding explains; 0 in fp32 and fp64 where none are drawn."""
        return int(self.rounded.sum())


@torch.inference_mode()
def replay(trace: Trace, model: Any) -> Verdict:
    """
    Run a trace through the stock model and compare every token that was predicted.

    :param model: transformers' own, in the type of the recorded run (`trace.dtype`), or all is
        rounded differently; with the matrices of the run (`trace.quantize`)
    """
    model.eval()
    at = torch.from_numpy(np.flatnonzero(trace.predicted >= 0))
    logits = family_of(model.config.model_type).stock_logits(model, trace, at)
    sampling = trace.sampling
    weighed = (logits if sampling.repetition_penalty == 1.0 else torch.stack([
        sampling.penalized(each, trace.used(int(row))) for row, each in zip(at, logits)]))
    spoken = torch.from_numpy(trace.predicted)[at].to(logits.device)
    types = getattr(torch, trace.dtype), model.dtype
    dtype = max(types, key=lambda dtype: torch.finfo(dtype).eps)
    verdict = (Verdict.of_draws(spoken, weighed, dtype, trace.draws[at.numpy()], sampling)
               if sampling.temperature else Verdict.of(spoken, weighed, dtype))
    return replace(verdict, logits=logits)
