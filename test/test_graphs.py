"""Whether a step that is recorded once computes every step of its form, as a GPU replays it."""

from __future__ import annotations

from collections import Counter
import logging
from types import SimpleNamespace
import warnings

import pytest
import torch

from sww_ros.evaluation.proof import FAMILIES, TOLERANCE, Subject, can_relay, kind_of, run_case
from sww_ros.streaming import attention, fixed, graphs, kv
from sww_ros.streaming.decoder import Chunk
from sww_ros.streaming.positions import text_positions


class Replayed:
    """
    Does what a recorded graph does: for a form that came before, the work that came first.

    That has the buffers, the windows and the rows of then; of now it is given the inputs alone.
    """

    def __init__(self) -> None:
        self.works, self.runs = {}, Counter()

    def run(self, form, work, inputs):
        key = form, *(each.shape for each in inputs)
        self.runs[key] += 1
        return self.works.setdefault(key, work)(*(each.clone() for each in inputs))


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Have buffers made as a GPU has them, though of smaller parts, and steps replayed."""
    made: list[Replayed] = []

    def runs(device):
        made.append(Replayed())
        return made[-1]

    monkeypatch.setattr(kv, '_made', lambda shape, dtype, device: torch.zeros(*shape, dtype=dtype))
    monkeypatch.setattr(kv, '_room', lambda rows, device: -(-rows // 32) * 32)
    monkeypatch.setattr(fixed, 'PART', 32)
    monkeypatch.setattr(fixed, 'LEAST', 64)
    for where in ('decoder', 'perception'):
        monkeypatch.setattr(f'sww_ros.streaming.{where}.graphs_for', runs)
    return made


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('family', FAMILIES)
def test_steps_by_their_form_give_the_tokens_of_the_stock_model(as_on_a_gpu, family, dtype):
    subject = Subject(5, dtype, FAMILIES[family])
    tokens = 0
    for seed in [seed for seed in range(80) if kind_of(seed)[2] != 'processes'][::5]:
        found = run_case(subject, seed, hand_overs=can_relay(seed))
        assert found.differing == 0 and found.error <= TOLERANCE[dtype], seed
        tokens += found.tokens
    assert tokens > 300
    for made in as_on_a_gpu:
        runs = made.runs.values()
        assert sum(runs) - len(runs) > len(runs), 'most are of a form that came before'


def text(count, first=0):
    return torch.from_numpy(text_positions(first, count))


@pytest.fixture
def decoder(as_on_a_gpu):
    return Subject(3, torch.float64).checkpoint.decoder


def test_what_only_moves_is_of_one_form_until_its_window_is_full(decoder):
    video, lane = decoder.new_lane(300, margin=64), decoder.new_side_lane(8)
    decoder.step([Chunk(video, decoder.embed([7] * 20), text(20))])

    def speak():
        return decoder.step([Chunk(lane, decoder.embed([9]), text(1, 30), video.view(), True)])

    def see():
        decoder.step([Chunk(video, decoder.embed([8] * 8), text(8))])

    before = set(decoder.graphs.works)
    for _ in range(5):
        speak()
        see()
    assert len(set(decoder.graphs.works) - before) == 2, 'one of speaking and one of seeing'
    see()
    speak()
    assert len(set(decoder.graphs.works) - before) == 4, 'both read more than 64 columns now'


def test_what_has_no_form_is_computed_as_it_is(decoder):
    video, lane = decoder.new_lane(64), decoder.new_lane(8)
    decoder.step([Chunk(video, decoder.embed([7] * 20), text(20))])
    runs = decoder.graphs.runs.total()
    decoder.step([Chunk(lane, decoder.embed([9, 8]), text(2, 30), video.view(), True)])
    assert decoder.graphs.runs.total() == runs and len(lane) == 2


@pytest.mark.parametrize('answers', [1, 3])
def test_answers_read_a_buffer_in_parts_of_which_some_hold_nothing_for_them(decoder, answers):
    """Each says what it says by itself, on an engine that knows no forms."""
    video = decoder.new_lane(200, margin=64)
    decoder.step([Chunk(video, decoder.embed([7, 5] * 40), text(80))])
    sees = [video.view()._replace(length=length) for length in (3, 40, 80)][:answers]

    def said(lanes):
        found = []
        for token in (9, 4, 6):
            found.append(torch.stack(decoder.step([
                Chunk(lane, decoder.embed([token]), text(1, 90 + token), view, True)
                for lane, view in zip(lanes, sees)])))
        return torch.stack(found)

    replayed = said([decoder.new_lane(8) for _ in sees])
    decoder.graphs = None
    assert torch.allclose(replayed, said([decoder.new_lane(8) for _ in sees]), atol=1e-12, rtol=0)


class Recorder:
    """Stands in for what records on a GPU."""

    failing = False

    def __init__(self, device) -> None:
        self.found = graphs.OrderedDict()

    def record(self, work, inputs):
        if Recorder.failing:
            raise RuntimeError('operation not permitted when stream is capturing')
        return SimpleNamespace(replay=lambda inputs: ['replayed', *inputs])


@pytest.fixture
def recording(monkeypatch):
    monkeypatch.setattr(graphs, '_Thread', Recorder)
    monkeypatch.setattr(Recorder, 'failing', False)
    return graphs.Graphs(torch.device('cpu'))


def work(x):
    return ['done', x]


def test_work_is_recorded_when_it_comes_again(recording):
    x = torch.ones(2)
    told = [recording.run('form', work, [x])[0] for _ in range(3)]
    assert told == ['done', 'replayed', 'replayed']
    assert recording.run('form', work, [torch.ones(3)])[0] == 'done', 'of another shape'
    assert recording.run('other', work, [x])[0] == 'done'


def test_forms_that_have_not_come_for_long_are_forgotten(recording):
    x = torch.ones(1)
    for form in range(graphs.MOST):
        recording.run(form, work, [x])
    assert recording.run(0, work, [x])[0] == 'replayed'
    recording.run('one more', work, [x])
    assert recording.run(0, work, [x])[0] == 'replayed', 'it came a moment ago'
    assert recording.run(1, work, [x])[0] == 'done', 'it was the oldest'


def test_what_cannot_be_recorded_goes_on_as_it_is_and_is_told_once(recording, caplog):
    Recorder.failing = True
    x = torch.ones(1)
    with caplog.at_level(logging.WARNING):
        told = [recording.run('form', work, [x])[0] for _ in range(4)]
    assert told == ['done'] * 4
    assert [record.message for record in caplog.records] == [
        'passes are launched kernel by kernel, which is slower: operation not permitted when '
        'stream is capturing']


def test_rows_of_a_mask_begin_where_a_kernel_can_read_them_from():
    mask = torch.randn(3, 1, 5, 23)
    aligned = attention._aligned(mask)
    assert torch.equal(aligned, mask) and aligned.stride(2) % 8 == 0
    whole = torch.randn(2, 16)
    assert attention._aligned(whole) is whole


def test_buffers_of_a_gpu_are_zeros_with_room_for_whole_parts():
    gpu = torch.device('cuda')
    assert [kv._room(rows, gpu) for rows in (0, 1, 256, 257)] == [0, 256, 256, 512]
    assert kv._room(257, torch.device('cpu')) == 257
    with warnings.catch_warnings():
        assert kv._made((2, 3), torch.float32, torch.device('meta')).shape == (2, 3)
