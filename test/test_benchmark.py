"""Whether the benchmarks compute what they say, and each runs end to end on tiny settings."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
from pathlib import Path
from statistics import median

import pytest

from sww_ros.benchmark import cameras, full_load, harness, latency, overlap, pool, step
from sww_ros.benchmark.__main__ import FULL, MEASUREMENTS, QUICK, main
from sww_ros.benchmark.harness import Span, TimedSession, frame_side, mean_seconds, noise, tireless
from sww_ros.benchmark.passes import TIMED, timing
from sww_ros.benchmark.watched import Phase
from sww_ros.demo.record import full_load_in_words
from sww_ros.engine.worker import open_request
from sww_ros.evaluation.random_model import SMALL, random_checkpoint, save_random
from sww_ros.fleet.simulated import Costs
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.jobs import Carry, Decode, Open, Perceive, Video


@pytest.fixture(scope='module')
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a model that takes no time, without a silence token of its own."""
    folder = tmp_path_factory.mktemp('model')
    save_random(folder, SMALL, 0)
    return str(folder)


def measured(name: str, folder: Path, *options: str) -> dict:
    """Run a measurement; return what it wrote, the machine and the plot checked."""
    figures, picture = folder / 'figures.json', folder / 'picture.png'
    assert main([name, *options, '--json', str(figures), '--picture', str(picture)]) == 0
    assert picture.read_bytes().startswith(b'\x89PNG')
    result = json.loads(figures.read_text())
    assert {'processor', 'cores', 'torch', 'sww_ros'} <= set(result['machine'])
    return result


# Full load.

def test_interleaved_saves_a_pass_a_step():
    assert full_load.limit(3.0, 1.0, 3) == pytest.approx(5 / 3)
    assert full_load.limit(1.0, 1.0, 16) == 1.0
    assert full_load.limit(6.0, 1.0, 3) == pytest.approx(8 / 6)
    assert full_load.limit(2.0, 1.0, 1) == 1.0


def a_load(**seconds: list[float]) -> dict:
    names = {name.replace('_', '@'): each for name, each in seconds.items()}
    return dict(wait_k=3, steps=10, choice=dict(overlap='processes'), seconds=names,
                perceive_s=[0.3, 0.1, 0.3], decode_s=[0.1, 0.1, 0.2])


def test_the_chosen_executor_is_compared_with_the_best_interleaved_run():
    said = full_load.summarize(a_load(
        interleaved_1=[5.0, 5.2, 9.0], interleaved_2=[6.0, 6.0, 6.0], serial_1=[6.0] * 3,
        fused_2=[3.0] * 3, processes_1=[4.0, 3.9, 8.0]))
    assert (said['chosen'], said['baseline'], said['best']) == (
        'processes', 'interleaved@1', 'fused@2')
    assert said['speedup'] == 1.3 and said['best_speedup'] == pytest.approx(5.2 / 3, abs=1e-4)
    assert said['limit'] == pytest.approx(5 / 3, abs=1e-4)
    assert said['share_of_limit'] == pytest.approx(1.3 * 3 / 5, abs=1e-4)
    assert said['limit_measured'] == pytest.approx(0.52 / 0.3, abs=1e-4)
    # Ten steps of 0.3 s, and what the first perception or the last words take.
    assert said['limit_of_this_length'] == pytest.approx(5 / 3 * 3.0 / 3.3, abs=1e-4)
    assert said['steps_per_s'] == 2.5 and said['one_core_a_side']['speedup'] == 1.3


def test_one_core_a_side_is_compared_with_one_core():
    said = full_load.summarize(a_load(
        interleaved_1=[6.0] * 3, interleaved_2=[5.0] * 3, serial_1=[7.0] * 3,
        processes_1=[4.0] * 3))
    assert said['baseline'] == 'interleaved@2' and said['speedup'] == 1.25
    assert said['one_core_a_side']['speedup'] == 1.5
    assert said['one_core_a_side']['share_of_limit'] == 0.9


def test_full_load_holds_all_repetitions_and_a_roofline(
        model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(full_load, 'READ_BYTES', 1 << 16)
    result = measured('full-load', tmp_path, '--model', model, '--steps', '3', '--repeats', '2',
                      '--wait-k', '2', '5', '--side', '56', '--roofline')
    assert [said['wait_k'] for said in result['summary']] == [2, 5]
    for load, said in zip(result['loads'], result['summary']):
        assert {*harness.INTERLEAVED, *harness.ENGINES} <= set(load['seconds'])
        assert all(len(each) == 2 for each in load['seconds'].values())
        assert len(load['perceive_s']) == len(load['decode_s']) == 2
        assert said['chosen'] == load['choice']['overlap'] and load['choice']['why']
        perceive_s, decode_s = median(load['perceive_s']), median(load['decode_s'])
        assert said['limit'] == pytest.approx(
            full_load.limit(perceive_s, decode_s, said['wait_k']), abs=1e-4)
        assert said['speedup'] > 0 and said['roofline'] >= 1
    found = result['roofline']
    # 56x56 pixels are 4 tokens; with K = 2 and 5 a piece is 3 and 2 rows.
    assert {'perceive', 'decode', 'vision', 'read', '1 rows', '10 rows', '4 rows', '5 rows',
            '6 rows', '9 rows', '3 rows', '2 rows'} == set(found['median_ms'])
    assert all(set(each) == set(full_load.CONDITIONS) for each in found['all_ms'].values())


def test_the_old_command_still_works_and_may_play_the_chosen_alone(model: str, tmp_path: Path):
    file = tmp_path / 'load.json'
    full_load.main(['--model', model, '--steps', '2', '--repeats', '1', '--wait-k', '2', '--side',
                    '56', '--chosen-only', '--json', str(file)])
    result = json.loads(file.read_text())
    chosen = harness.chosen_of(result['loads'][0])
    assert set(result['loads'][0]['seconds']) == {
        *harness.INTERLEAVED, harness.ALONE, chosen}


def test_a_run_speaks_as_many_tokens_as_are_due():
    checkpoint = random_checkpoint(SMALL, 0)[1]
    # This one may end its turn: nothing would be compared.
    run = full_load.run_once
    side = harness.ENGINES[harness.ALONE]
    checkpoint.decoder.step = _always(checkpoint, checkpoint.tokenizer.eos_token_id)
    with pytest.raises(RuntimeError, match='decode steps, 20 were due'):
        run(checkpoint, noise(4, 56), side, 5)


def _always(checkpoint, token: int):
    honest = checkpoint.decoder.step

    def step(chunks):
        rows = honest(chunks)
        for row in rows:
            if row is not None:
                row.fill_(0.0)[token] = 1.0
        return rows
    return step


def test_both_sides_take_as_long_as_the_slower_beside_and_then_alone():
    # Neither slows the other down: the longer one counts.
    assert full_load.two_sides(3.0, 3.0, 2.0, 2.0) == pytest.approx(3.0)
    # Speaking takes 3 beside; by then half of perceiving's 6 is done, the rest takes 2 of its 4.
    assert full_load.two_sides(4.0, 6.0, 2.0, 3.0) == pytest.approx(5.0)
    assert full_load.two_sides(2.0, 3.0, 4.0, 6.0) == pytest.approx(5.0)


def test_what_can_be_had_is_the_best_of_all_ways():
    def alike(one: float, two: float, beside: float = 0.0) -> dict[str, float]:
        return dict(one_core=one, two_cores=two, beside_perceiving=beside or one,
                    beside_decoding=beside or one)

    times = {'vision': alike(2.0, 1.0), '10 rows': alike(4.0, 3.0), '4 rows': alike(2.5, 2.0),
             'decode': alike(2.0, 2.0), 'perceive': alike(6.0, 4.0)}
    found = full_load.to_be_had(times, tokens=9, wait_k=3)
    assert found['step_ms'] == dict(one_pass=8000.0, pieces=7000.0, two_sides=6000.0)
    assert (found['way'], found['speedup']) == ('two_sides', round(8 / 6, 4))


# Hazard, gap, lanes.

def test_a_hazard_is_measured_with_every_executor(model: str, tmp_path: Path):
    result = measured('hazard', tmp_path, '--models', model, '--side', '56', '--lengths', '2', '9',
                      '--repeats', '2')
    [found], [said] = result['models'], result['summary']
    assert set(found['latency_ms']) == set(latency.WAYS) and 'interleaved@2' in latency.WAYS
    assert all(len(all_ms) == 2 and min(all_ms) > 0 for each in found['latency_ms'].values()
               for all_ms in each.values())
    assert set(said['flatness']) == set(latency.WAYS) and said['interleaved_times_as_long'] > 0


def test_flatness_is_the_largest_over_the_smallest():
    model = dict(model='m', choice=dict(overlap='fused'), latency_ms={
        'fused@1': {'2': [4.0, 4.0, 9.0], '1000': [5.0, 5.0, 5.0]},
        'interleaved@1': {'2': [4.0] * 3, '1000': [50.0] * 3},
        'interleaved@2': {'2': [4.0] * 3, '1000': [40.0] * 3}})
    said = latency.summarize_hazards(model)
    assert said['chosen_flatness'] == 1.25 and said['flatness']['interleaved@2'] == 10.0
    assert said['interleaved_times_as_long'] == 8.0


def test_a_sentence_that_cannot_be_spoken_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(['hazard', '--lengths', '1001'])
    assert 'must be from 2 to 1000' in capsys.readouterr().err


def test_gaps_are_measured_at_every_rate(model: str, tmp_path: Path):
    result = measured('gap', tmp_path, '--models', model, '--side', '56', '--tokens', '30',
                      '--before', '2', '--repeats', '2')
    [found], [said] = result['models'], result['summary']
    assert set(found['repetitions']) == set(harness.ENGINES)
    for each in found['repetitions'].values():
        assert set(each) == {latency.IDLE, 'own', 'half'}
        assert all(len(runs) == 2 for runs in each.values())
        assert all(run['steps'] == 0 for run in each[latency.IDLE])
        assert sum(run['steps'] for run in each['half']) > 0
    assert set(said['p99_ratio']) >= set(harness.ENGINES) and said['chosen_p99_ratio']['half'] > 0


def test_a_gap_is_between_two_tokens(model: str):
    side = harness.ENGINES['serial@1']
    gaps, steps = latency.gaps_s(tireless(model), noise(1, 56), side, tokens=12, step_s=0.0,
                                 before=1)
    assert len(gaps) == 11 and steps == 0 and min(gaps) > 0


def test_the_ratio_of_gaps_is_that_of_their_p99():
    def run(p99: float) -> dict:
        return dict(p99_ms=p99)

    model = dict(model='m', choice=dict(overlap='fused'),
                 all_gaps={'fused@1': {'none': run(2.0), 'own': run(2.0), 'half': run(3.0)}},
                 repetitions={'fused@1': {'none': [run(1.0), run(2.0), run(9.0)],
                                          'own': [run(2.0)] * 3, 'half': [run(5.0)] * 3}})
    said = latency.summarize_gaps(model)
    assert said['chosen_p99_ratio'] == dict(own=1.0, half=1.5)
    assert said['p99_ratio_median']['fused@1'] == dict(own=1.0, half=2.5)


def test_a_hand_over_is_measured_with_every_executor(model: str, tmp_path: Path):
    file = tmp_path / 'figures.json'
    assert main(['hand-over', '--model', model, '--side', '56', '--steps', '150', '--step-s',
                 '0.02', '--json', str(file)]) == 0
    result = json.loads(file.read_text())
    said, found = result['summary'], result['executors']
    assert set(found) == set(latency.RELAYED) == set(said['p99_ratio'])
    assert said['memory'] < said['capacity'] < said['max_steps']
    for each in found.values():
        assert each['hand_overs'] and 0 < each['steps_around'] < each['steps'] == 150
        assert each['pieces'] >= each['hand_overs'] * (1 + said['memory'])
        assert 0 < each['share'] < 1


def test_a_step_is_around_a_hand_over_until_the_successor_alone_has_been_given_one():
    old, new = Video(0, '', None, 1), Video(0, '', None, 2)
    spans = [Span([job], begin, begin + 5) for job, begin in (
        (Perceive(old, (), False), 0), (Open(new, old), 10), (Carry(new, old, 0), 20),
        (Perceive(old, (), False, new), 30), (Perceive(new, (), False), 40),
        (Perceive(new, (), False), 50))]
    assert latency.windows(spans) == [(10, 45)]


def test_cameras_are_measured_beside_one_another(model: str, tmp_path: Path):
    file = tmp_path / 'cameras.json'
    assert main(['cameras', '--model', model, '--cameras', '1', '2', '--steps', '5', '--step-s',
                 '0.2', '--json', str(file)]) == 0
    result = json.loads(file.read_text())
    said, found = result['summary'], result['cameras']
    assert said['overlap'] == 'fused'
    for cameras_shown, each in ((1, found['1']), (2, found['2'])):
        # A busy machine may drop some; of each camera half a step may be left.
        left = 10 * cameras_shown - 2 * sum(each['steps']) - each['dropped']
        assert len(each['steps']) == cameras_shown and 0 <= left <= cameras_shown
    assert all(0 < each['latency']['p50_ms'] <= each['latency']['p99_ms']
               for each in found.values())
    assert 0 < found['1']['pss_mb'] and 0 < said['reserved_mb_a_camera']
    costs = result['costs']
    assert costs['step_tokens'] == 9 and costs['step_s'] > 0 and costs['piece_s'] > 0
    assert result['relay']['capacity'] < result['relay']['max_steps']


def test_a_camera_may_be_as_late_as_one_alone_and_the_perception_of_the_others():
    def of(p99_ms: float, pss_mb: float) -> dict:
        return dict(latency=dict(p99_ms=p99_ms), perception_ms=4.0, dropped=0, pss_mb=pss_mb,
                    lanes_mb=3.0)

    said = cameras.summarize({'8': of(38.1, 370.0), '1': of(10.0, 300.0), '2': of(13.9, 310.0)})
    assert said['allowed_ms'] == {1: 10.0, 2: 14.0, 8: 38.0}
    assert said['holds'] == {1: True, 2: True, 8: False}
    assert (said['mb_a_camera'], said['reserved_mb_a_camera']) == (10.0, 3.0)


def test_cameras_on_two_engines_are_measured_at_full_load_and_paced(model: str):
    """The benchmark `pool` without one: that is in test_fleet.py."""
    scenes = [[(dict(shape=[84, 84, 3]), pixels.tobytes()) for pixels in noise(5, 84, seed)]
              for seed in (1, 2)]
    request = open_request(TIMED, model, SessionConfig(overlap='fused', threads=1))
    with timing() as passes, pool.engines(2) as connect:
        found = asyncio.run(pool.watched(connect, request, scenes, dict(
            full=Phase(0.2, 3.0, in_flight=2), paced=Phase(0.2, 3.0, step_s=0.75))))
    assert min(found['full']['steps']) > 0
    assert sum(found['paced']['steps']) <= 2 * 6
    assert found['step_tokens'] == 9 and found['info']['capacity'] > 0
    for each in (found['full'], found['paced']):
        assert 0 < each['first_token']['p50_ms'] <= each['heard']['p99_ms'] < 60_000
        assert each['cores']['engines'] > 0 and 'gateway' not in each['cores']
    seen = sum(sum(found[name]['steps']) for name in ('full', 'paced'))
    assert sum(each.steps for each in passes) >= seen, 'each step was in a pass that was timed'


def test_what_two_engines_give_is_the_median_of_what_they_give_in_each_round(
        monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: {0, 1})

    def of(steps_per_s: float, cores: float, p50_ms: float) -> dict:
        times = dict(p50_ms=p50_ms, p95_ms=p50_ms, p99_ms=2 * p50_ms)
        return dict(full=dict(steps_per_s=steps_per_s, cores=dict(engines=cores)),
                    paced=dict(fed=times, first_token=times, heard=times))

    rounds = {
        '1 engine': [of(100, 0.5, 7), of(50, 0.5, 8)], '2 engines': [of(200, 1, 7), of(90, 1, 9)],
        'pool of 1': [of(80, 0.5, 9), of(40, 0.5, 9)], 'pool of 2': [of(120, 1, 9), of(72, 1, 9)]}
    said = pool.summarize(rounds)
    assert said['gain'] == dict(median=1.65, each=[1.5, 1.8])
    assert said['gain_without_ray'] == dict(median=1.9, each=[2.0, 1.8])
    assert said['core_ms_a_step']['1 engine'] == dict(engines=7.5)
    assert said['first_token']['1 engine'] == dict(p50_ms=7.5, p95_ms=7.5, p99_ms=15.0)
    # A step takes 10 ms and a token nothing, on two cameras half a second apart.
    costs = Costs(0.01, ((1, 0.0),))
    told = pool.simulated(dict(full=costs, paced=costs), None, 1, said, argparse.Namespace(
        cameras=2, in_flight=2, step_s=1.0))
    found = pool.compared([told, told], rounds)
    # Two are as slow beside one another as the one was: 7.5 ms a step.
    assert found['2 engines']['steps_per_s']['predicted'] == pytest.approx(2 / 0.0075, rel=0.01)
    found = found['1 engine']
    assert found['steps_per_s'] == dict(predicted=100.0, measured=75, ratio=1.333, each=[1.0, 2.0])
    assert found['first_token_p50_ms'] == dict(
        predicted=17.5, measured=7.5, ratio=2.333, each=[2.5, 2.188]), (
        'frames are on the way for 7.5 ms')


def test_that_a_pool_needs_ray_is_said_before_anything_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(SystemExit):
        main(['pool'])
    assert 'a pool needs Ray: pip install -r requirements/fleet.txt' in capsys.readouterr().err


def test_answers_beside_the_narration_are_compared_with_each_alone(model: str, tmp_path: Path):
    result = measured('lanes', tmp_path, '--models', model, '--side', '84', '--tokens', '20',
                      '--repeats', '2')
    [found], [said] = result['models'], result['summary']
    assert found['visual_tokens'] == 9 and found['identity']['tokens'] >= 8 * 20
    assert all(len(each) == 2 for of in ('step_ms', 'plain_ms') for each in found[of].values())
    assert said['beside']['0'] == 1.0 and set(said['beside']) == {'0', '1', '2', '4', '8'}


def test_a_step_of_many_is_measured_once_all_heads_are_read(model: str):
    questions = step.QUESTIONS[:3]
    spans, said = step.speak(tireless(model), noise(1, 56), questions, tokens=20, record=True)
    assert len(said['0']) == len(said['2']) == 20 and len(said['narration']) >= 20
    assert 10 <= len(step.steps_s(spans, 4)) < 20


def test_tokens_per_second_are_those_of_all_speakers():
    said = step.summarize(dict(
        model='m', identity=dict(tokens=9, differing=0),
        step_ms={'0': [1.0, 1.0, 4.0], '8': [2.0, 2.0, 2.0]},
        plain_ms={'0': [0.5, 0.5, 0.5], '8': [0.9, 0.8, 0.7]}))
    assert said['beside'] == {'0': 1.0, '8': 2.0} and said['plain'] == {'0': 1.0, '8': 1.6}
    assert said['tokens_per_s'] == {'0': 1000.0, '8': 4500.0}


# What they share.

def test_the_spans_of_a_session_are_its_jobs(model: str):
    config = SessionConfig(overlap='serial', schedule='wait_k', wait_k=2)
    with TimedSession(tireless(model), config) as session:
        for frame in noise(2, 56):
            session.feed(frame)
        assert session.wait_idle()
        kinds = [type(job) for span in session.spans for job in span.jobs]
    assert (kinds.count(Open), kinds.count(Perceive), kinds.count(Decode)) == (1, 2, 4)
    assert mean_seconds(session.spans, Decode) > 0 == mean_seconds([], Decode)


def test_frames_suit_the_model():
    assert (frame_side('medium'), frame_side('builtin'), frame_side('medium', 56)) == (112, 84, 56)


def test_overlap_sums_up():
    speedup = [dict(r=1.0, speedup=1.9, limit=2.0), dict(r=2.0, speedup=1.35, limit=1.5)]
    found = [dict(threads_s=0.02), dict(threads_s=0.025)]
    assert overlap.summarize(speedup, found) == dict(
        speedup=1.9, limit=2.0, worst_share_of_limit=0.9, hazard_flatness=1.25)


def test_all_runs_every_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd):
    assert {options[0] for options in FULL.values()} == {*MEASUREMENTS}
    assert {options[0] for options in QUICK.values()} == {*MEASUREMENTS}
    monkeypatch.setitem(QUICK, 'hazard', ['hazard', '--lengths', '1'])
    monkeypatch.setitem(QUICK, 'step', ['step', '--models', 'builtin', '--repeats', '1',
                                        '--context', '20'])
    assert main(['all', '--quick', '--out', str(tmp_path / 'new'), '--only', 'step',
                 'hazard']) == 1
    out, err = capfd.readouterr()
    assert '# step: done' in out and '# hazard: failed' in out and 'failed: hazard' in err
    assert [file.name for file in (tmp_path / 'new').iterdir()] == ['step.json']
    with pytest.raises(SystemExit):
        main(['all', '--out', str(tmp_path), '--only', 'speed'])


def test_the_demo_says_what_it_means_in_one_sentence():
    said = dict(steps_per_s=118.6, speedup=1.213, limit=1.451, chosen='processes')
    words = full_load_in_words(said)
    assert words == ('this machine watches and narrates 119 steps of video a second, 1.21 times as '
                     'many as an engine that stops watching while it speaks (at most 1.45 times '
                     'can be had), with overlap: processes')
    words = full_load_in_words(said | dict(speedup=1.0))
    assert '1.00 times as many' in words and 'at most' not in words
