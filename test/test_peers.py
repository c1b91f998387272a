"""Whether the stock contenders compute what they say, and the peers' benchmark counts right."""

from __future__ import annotations

import copy
from functools import partial
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sww_ros.benchmark.__main__ import main
from sww_ros.benchmark.contenders import (
    WAIT_K,
    CarriedCache,
    Contest,
    Generate,
    StockContender,
    WindowedCache,
    contenders,
    contest_of,
    dynamic_cache,
    static_cache,
)
from sww_ros.benchmark.peers import best, summarize
from sww_ros.evaluation.random_model import SMALL, random_model
from sww_ros.models.loading import take_apart
from sww_ros.streaming.config import OVERLAPS, SessionConfig
from sww_ros.streaming.session import Session

STEPS = 7
SIDE = 84


@pytest.fixture(scope='module')
def contest() -> Contest:
    """A random model with varied greedy output, and frames of a grid that is not square."""
    net, tokenizer = random_model(SMALL, 6, torch.float64)
    rng = np.random.default_rng(3)
    frames = list(rng.integers(0, 256, (2 * STEPS, SIDE, SIDE + 28, 3), np.uint8))
    return contest_of(net, take_apart(copy.deepcopy(net), tokenizer), frames)


def said(contest: Contest, narrator: CarriedCache) -> tuple[list[int], torch.Tensor]:
    """Return all tokens, and the logits they were chosen from."""
    honest, logits = narrator._run, []

    def run(parts, predict):
        result = honest(parts, predict)
        logits.extend([result] if predict else [])
        return result

    narrator._run = run
    tokens = StockContender(contest, None).play(narrator, STEPS)
    return tokens, torch.stack(logits)


def engine_said(contest: Contest, position_encoding: str, schedule: str = 'wait_k',
                steps: int = STEPS) -> tuple[list[int], torch.Tensor]:
    config = SessionConfig(
        position_encoding=position_encoding, overlap='serial', schedule=schedule, wait_k=WAIT_K,
        record_trace=True, max_steps=STEPS, memory=0, max_pending_frames=2 * STEPS,
        max_rest_tokens=WAIT_K)
    with Session(contest.checkpoint, config) as session:
        for index in range(2 * steps):
            session.feed(contest.frames[index],
                         last=schedule == 'offline' and index == 2 * steps - 1)
        assert session.wait_idle()
        trace = session.trace()
    return trace.predicted[trace.predicted >= 0].tolist(), trace.logits


@pytest.mark.parametrize('cache', ['dynamic', 'static'])
def test_a_carried_cache_says_what_the_interleaved_engine_says(contest: Contest, cache: str):
    make = dynamic_cache if cache == 'dynamic' else partial(static_cache, rows=400)
    tokens, logits = said(contest, CarriedCache(contest.stock, make))
    wanted, theirs = engine_said(contest, 'interleaved')
    assert len(tokens) == STEPS * WAIT_K and len(set(tokens)) > 4
    assert tokens == wanted
    torch.testing.assert_close(logits, theirs, rtol=0, atol=1e-6)


def test_a_step_of_a_carried_cache_costs_as_many_passes_as_tokens(contest: Contest):
    narrator, passes = CarriedCache(contest.stock), []
    hook = contest.stock.model.model.language_model.register_forward_hook(
        lambda *_: passes.append(1))
    try:
        with torch.inference_mode():
            StockContender(contest, None).play(narrator, STEPS)
    finally:
        hook.remove()
    # The very first step has nothing to ride on.
    assert len(passes) == STEPS * WAIT_K + 1


def test_windows_that_hold_all_change_nothing(contest: Contest):
    tokens, logits = said(contest, WindowedCache(contest.stock, STEPS))
    wanted, theirs = said(contest, CarriedCache(contest.stock))
    assert tokens == wanted
    torch.testing.assert_close(logits, theirs, rtol=0, atol=0)


def test_windows_keep_the_newest_at_contiguous_positions(contest: Contest):
    """Keys of the first layer depend on the row and its position alone."""
    narrator = WindowedCache(contest.stock, steps=2, text_tokens=2 * WAIT_K)
    fed = []
    honest = narrator._run
    narrator._run = lambda parts, predict: (fed.extend(parts), honest(parts, predict))[1]
    with torch.inference_mode():
        StockContender(contest, None).play(narrator, STEPS)
        again = CarriedCache(contest.stock)
        rows = narrator._cache.get_seq_length() - again._cache.get_seq_length()
        videos = [part for part in fed if part.is_video][-2:]
        rows -= sum(len(part.embeds) for part in videos)
        # What was said since the last step was seen comes on top, a token a part.
        assert 2 * WAIT_K <= rows <= 3 * WAIT_K
        words = [part for part in fed if not part.is_video][-rows:]
        kept = [part for part in fed if any(part is other for other in (*videos, *words))]
        for part in kept:
            again._run([part._replace(positions=part.positions - part.positions.min()
                                      + again._next)], False)
            again._next += part.extent
    found, wanted = (narrator._cache.layers[0].keys for narrator in (narrator, again))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert narrator._next == again._next


def test_generate_on_the_whole_prefix_says_what_the_offline_engine_says(contest: Contest):
    narrator = Generate(contest.stock)
    for step in range(3):
        narrator.see(contest.patches(step))
    spoken = narrator.say(WAIT_K)
    assert spoken.tokens == engine_said(contest, 'offline', 'offline', steps=3)[0]
    assert len(spoken.times_ns) == WAIT_K and spoken.times_ns == sorted(spoken.times_ns)


def test_generate_on_the_whole_prefix_reads_again_what_it_said(contest: Contest):
    narrator, asked = Generate(contest.stock), []
    honest = contest.stock.model.generate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contest.stock.model, 'generate', lambda **given: (
            asked.append(given['input_ids'][0].tolist()), honest(**given))[1])
        narrator.see(contest.patches(0))
        said_first = narrator.say(2).tokens
        narrator.see(contest.patches(1))
        narrator.say(2)
    video = contest.stock.grid[0] * contest.stock.grid[1]
    assert len(asked[1]) == len(asked[0]) + video + len(said_first)
    assert asked[1][-2:] == said_first


def test_generate_on_the_newest_frames_forgets(contest: Contest):
    narrator, fresh = Generate(contest.stock, newest=2), Generate(contest.stock, newest=2)
    for step in range(4):
        narrator.see(contest.patches(step))
        narrator.say(2)
    for step in (2, 3):
        fresh.see(contest.patches(step))
    assert narrator.say(WAIT_K).tokens == fresh.say(WAIT_K).tokens


def test_all_contenders_play_and_meet_a_hazard(contest: Contest):
    field = contenders(contest, OVERLAPS, threads=[1], window_steps=3, newest_steps=2)
    assert {'generate_whole@1', 'generate_newest@1', 'carried@1', 'carried_static@1', 'windows@1',
            'interleaved@1', *(f'gdpe_{overlap}@1' for overlap in OVERLAPS)} == set(field)
    for name, contender in field.items():
        assert contender.seconds(3) > 0, name
        assert contender.hazard_seconds(3, 5) > 0, name


def test_the_best_number_of_threads_counts_and_the_others_are_measured_by_ours():
    rows = [dict(name=name, steps=10, seconds=seconds, hazard_s=hazard) for name, seconds, hazard
            in (('carried@1', 3.0, 0.2), ('carried@2', 2.0, 0.3), ('interleaved@1', 1.6, 0.2),
                ('gdpe_threads@1', 1.0, 0.1))]
    assert best(rows, 10)['carried']['name'] == 'carried@2'
    assert summarize(rows) == [dict(
        steps=10, ours='gdpe_threads@1', seconds=1.0, times_as_long=dict(carried=2.0),
        hazard_s=dict(carried=0.2, interleaved=0.2, gdpe_threads=0.1))]


def test_the_command_writes_figures_the_machine_and_a_plot(tmp_path: Path, capsys):
    pytest.importorskip('matplotlib')
    figures, picture = tmp_path / 'peers.json', tmp_path / 'peers.png'
    assert main(['peers', '--lengths', '2', '4', '--repeats', '2', '--threads', '1', '--only',
                 'carried', 'interleaved', '--json', str(figures), '--picture',
                 str(picture)]) == 0
    result = json.loads(figures.read_text())
    assert {'processor', 'cores', 'torch', 'transformers'} <= set(result['machine'])
    assert [(row['name'], row['steps'], len(row['all_seconds'])) for row in result['rows']] == [
        ('carried@1', 2, 2), ('interleaved@1', 2, 2), ('carried@1', 4, 2),
        ('interleaved@1', 4, 2)]
    assert len(result['memory']) == 4
    assert [entry['steps'] for entry in result['summary']] == [2, 4]
    assert picture.read_bytes().startswith(b'\x89PNG')


def test_an_unknown_measurement_is_named_and_all_are_listed(capsys):
    assert main(['speed']) == 2
    said = capsys.readouterr().err
    assert "no measurement 'speed'" in said and 'full-load' in said and 'peers' in said
    assert main(['--help']) == 0
    assert 'overlap' in capsys.readouterr().out


def test_an_unknown_contender_is_named():
    with pytest.raises(SystemExit, match='none of these is a contender: gpu; there are .*carried'):
        main(['peers', '--only', 'gpu', '--lengths', '2'])


def test_a_folder_that_is_not_there_is_named_before_measuring(capsys):
    with pytest.raises(SystemExit):
        main(['peers', '--json', '/no/such/folder/peers.json'])
    assert 'there is no folder /no/such/folder' in capsys.readouterr().err
