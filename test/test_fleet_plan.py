"""`python -m sww_ros.fleet plan`: engines in virtual time, against closed forms and reality."""

from __future__ import annotations

from dataclasses import asdict, replace
import json
from pathlib import Path
from statistics import mean
import subprocess
import sys

import pytest

from sww_ros.benchmark.passes import TimedPass, costs_of
from sww_ros.fleet.__main__ import main
from sww_ros.fleet.plan import Measured, percentiles
from sww_ros.fleet.simulated import FULL, Costs, Load, simulate_engine, steps_a_second
from sww_ros.streaming.relay import Relay

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / 'docs/benchmarks'
STEP_S, TOKEN_S = 0.01, 0.002
COSTS = Costs(STEP_S, ((1, TOKEN_S), (2, 1.5 * TOKEN_S)))


@pytest.mark.parametrize('load', [0.3, 0.6, 0.85])
def test_waiting_for_perception_is_that_of_the_closed_form(load):
    """M/D/1: Poisson arrivals, steps of one length, one engine (Pollaczek and Khinchine)."""
    cameras = 10
    found = simulate_engine(Costs(STEP_S), Load(cameras * STEP_S / load, 0, 'random'), cameras,
                            2000, seed=1, waiting=2000)
    assert found.dropped == 0 and len(found.waits_s) == 20_000
    assert mean(found.waits_s) == pytest.approx(
        STEP_S * (1 + load / (2 * (1 - load))), rel=0.06)
    assert found.busy_s / found.lasted_s == pytest.approx(load, rel=0.03)


def test_cameras_that_come_together_are_perceived_one_after_the_other():
    found = simulate_engine(Costs(STEP_S), Load(1.0, 0, 'together'), 5, 10)
    assert sorted(found.waits_s) == pytest.approx(
        [number * STEP_S for number in range(1, 6) for _ in range(10)])


def test_small_steps_of_cameras_that_come_together_share_a_pass():
    """Of 50 visual tokens each, two of them fit."""
    costs = Costs(STEP_S, ((1, TOKEN_S), (2, 1.5 * TOKEN_S)), more_s=0.003, step_tokens=50)
    found = simulate_engine(costs, Load(1.0, 0, 'together'), 3, 1)
    assert found.waits_s == pytest.approx([STEP_S + 0.003] * 2 + [2 * STEP_S + 0.003])
    late = simulate_engine(replace(costs, feed_s=0.001), Load(1.0, 0, 'together'), 3, 1)
    # The first has begun by the time that the others are there.
    assert late.waits_s == pytest.approx([STEP_S] + [2 * STEP_S + 0.003] * 2)
    both = simulate_engine(costs, Load(1.0, 1, 'together'), 2, 1)
    assert both.latencies_s == pytest.approx([STEP_S + 0.003 + 1.5 * TOKEN_S] * 2)


def test_a_step_that_comes_while_others_are_looked_at_goes_into_their_pass():
    """Of 40 tokens three fit: looked at for 6 of 10 ms, more of them for a third of that each."""
    costs = Costs(STEP_S, more_s=STEP_S / 2, step_tokens=40, feed_s=0.004, look_s=0.006)
    both = simulate_engine(costs, Load(1.0, 0, 'together'), 2, 1)
    assert both.waits_s == pytest.approx([2 * 0.006 + 1.5 * (STEP_S - 0.006)] * 2)
    late = simulate_engine(replace(costs, feed_s=0.007), Load(1.0, 0, 'together'), 2, 1)
    assert late.waits_s == pytest.approx([STEP_S, 2 * STEP_S])
    alone = simulate_engine(costs, Load(1.0, 0, 'together'), 1, 1)
    assert alone.waits_s == pytest.approx([STEP_S]), 'there is nobody to go along'


def test_a_stream_is_relieved_by_one_that_is_prepared_piece_by_piece_between_steps():
    """After 5 steps, by one that begins with the last 2 of them: 3 pieces, and 2 steps on it."""
    costs, relay = Costs(STEP_S, piece_s=0.002), Relay(5, 2, 7)
    found = simulate_engine(costs, Load(1.0, 0), 1, 11, relay=relay)
    assert found.busy_s == pytest.approx(11 * STEP_S + 3 * 3 * 0.002), 'after 5, 8 and 11 steps'
    assert found.waits_s == pytest.approx([STEP_S] * 11), 'no step waited for a piece'
    full = simulate_engine(costs, Load(1.0, 0, FULL), 1, 11, relay=relay)
    assert full.dropped == 0 and len(full.waits_s) == 11
    assert full.lasted_s == pytest.approx(full.busy_s), 'nothing lay between'
    assert full.waits_s[-1] > 2 * STEP_S, 'where steps wait, pieces go before them'


def test_at_full_load_engines_do_what_their_passes_and_the_cores_beside_them_allow():
    costs = Costs(STEP_S, ((1, TOKEN_S), (8, TOKEN_S)))
    alone = steps_a_second(costs, 2, 1)
    assert alone == pytest.approx(1 / (STEP_S + 2 * TOKEN_S), rel=0.02), (
        'the first token rides, and those of a step that waits come before the next')
    assert steps_a_second(costs, 2, 2, 2) == pytest.approx(2 * alone, rel=0.02)
    # Beside engines as much again as they take: two engines want four cores.
    assert steps_a_second(costs, 2, 2, 2, outside_s=1 / alone, cores=2) == pytest.approx(
        alone, rel=0.02)
    assert steps_a_second(costs, 2, 1, 1, outside_s=1 / alone, cores=2) == pytest.approx(alone)


def test_costs_are_read_off_passes_that_were_timed():
    passes, now_ns = [], 0
    for steps, speakers in ((1, 1), (2, 2), (3, 8), (0, 1), (0, 5), (1, 0)) * 3:
        took_ns = round(1e6 * ((3 + 2 * steps if steps else 0)
                               + (0.5 + 0.25 * speakers if speakers else 0)))
        # What lies between it and the next is a part of it, where it is no more than that.
        passes.append(TimedPass(steps, 0, speakers, now_ns, now_ns + took_ns - 100_000,
                                200_000 * (3 + 2 * steps) * (0 < steps != speakers)))
        now_ns += took_ns
        for pieces in (1, 4):
            took_ns = 500_000 * (2 + pieces)
            passes.append(TimedPass(0, pieces, 0, now_ns, now_ns + took_ns))
            now_ns += took_ns + 5_000_000 * (pieces > 1)
    found = costs_of(passes, 9)
    assert (found.piece_s, found.more_piece_s) == (pytest.approx(0.0015), pytest.approx(0.0005))
    assert found.look_s == pytest.approx(0.001), (
        'a fifth of what steps take; where a camera is alone, they are not looked at')
    assert (found.step_s, found.more_s, found.step_tokens) == (
        pytest.approx(0.005), pytest.approx(0.002), 9)
    assert found.pass_s(3, 8) == pytest.approx(0.009 + 0.0025)
    assert Costs.read(json.loads(json.dumps(asdict(found)))) == found


def test_a_token_rides_on_the_pass_of_its_step_and_those_of_others_beside_it():
    """Two cameras, two tokens a step: two passes with a step, then what is left to say."""
    found = simulate_engine(COSTS, Load(1.0, 2, 'together'), 2, 1)
    first = STEP_S + TOKEN_S
    second = first + STEP_S + 1.5 * TOKEN_S
    assert found.latencies_s == pytest.approx([first, second])
    assert found.lasted_s == pytest.approx(second + TOKEN_S) == pytest.approx(found.busy_s)
    serial = simulate_engine(COSTS, Load(1.0, 2, 'together'), 2, 1, overlap='serial')
    assert serial.latencies_s == pytest.approx([2 * STEP_S + 1.5 * TOKEN_S] * 2)


def test_steps_give_way_where_an_engine_is_too_slow():
    found = simulate_engine(Costs(STEP_S), Load(STEP_S, 0, 'together'), 2, 100)
    assert found.dropped + len(found.waits_s) == 200 and found.dropped > 80
    assert max(found.waits_s) < 12 * STEP_S


def test_the_same_seed_gives_the_same_and_another_something_else():
    spread = Costs(STEP_S, ((1, TOKEN_S),), ((0.5, 1.0), (0.99, 2.0)))
    first, again, other = (simulate_engine(spread, Load(0.2, 3, 'apart'), 4, 50, seed=seed)
                           for seed in (1, 1, 2))
    assert first == again != other


def test_costs_go_on_in_straight_lines():
    assert COSTS.pass_s(0, 4) == pytest.approx(2.5 * TOKEN_S)
    assert Costs(1.0, ((1, 0.5),)).pass_s(2, 9) == pytest.approx(2.5)
    spread = Costs(1.0, (), ((0.5, 1.0), (0.9, 2.0)))
    assert [spread.pass_s(1, 0, share) for share in (0.1, 0.7, 0.99)] == pytest.approx([1, 1.5, 2])


def plan(*arguments: object) -> int:
    return main(['plan', *map(str, arguments)])


def test_a_pool_has_as_many_engines_as_the_limit_asks_for(tmp_path, capsys):
    """A step takes 100 ms and a token nothing: five cameras an engine are seen within 500 ms."""
    file = tmp_path / 'plan.json'
    assert plan('--cameras', 12, '--step-ms', 100, '--arrivals', 'together', '--p99-ms', 500.001,
                '--tokens', 1, '--frame-kb', 10, '--busy', 1, '--engines-a-gpu', 2, '--curve',
                '--json', file) == 0
    said, found = capsys.readouterr().out, json.loads(file.read_text())
    assert 'one engine bears 5 cameras' in said and '3 engines on 2 GPUs' in said
    needed = found['needed']
    assert (needed['engines'], needed['gpus'], needed['cameras_an_engine']) == (3, 2, 4.0)
    assert (needed['p50_ms'], needed['p99_ms']) == (200.0, 400.0)
    assert needed['mbit_s'] == pytest.approx(12 * 2 * 10 * 8 / 1000)
    assert [(each['cameras'], each['engines']) for each in found['curve']] == [
        (1, 1), (2, 1), (3, 1), (6, 2), (10, 2), (12, 3)]


MEASURED = {1: (5.0053, 7.071, 7.9975), 2: (7.93, 12.1081, 14.5243),
            4: (15.4199, 30.039, 35.5963), 8: (29.208, 58.8702, 68.4604)}
"""p50, p95, p99 [ms] by cameras, of an engine that had a pass for each step (docs/scale.md)."""


def test_what_was_measured_is_predicted(tmp_path):
    """The steps and tokens of one camera alone say how late several are."""
    cameras, (p50, p95, p99) = tmp_path / 'cameras.json', MEASURED[1]
    token_ms = (0.6725, 1.1081, 1.3819, 1.6412, 2.1453)
    cameras.write_text(json.dumps(dict(
        summary=dict(model='builtin', overlap='fused', step_every_s=0.25, steps=300), relay=None,
        costs=asdict(Costs(
            (p50 - token_ms[0]) / 1e3,
            tuple((count, ms / 1e3) for count, ms in zip((1, 2, 3, 5, 9), token_ms)),
            ((0.5, 1.0), (0.95, p95 / p50), (0.99, p99 / p50)))),
        cameras={count: dict(latency=dict(zip(('p50_ms', 'p95_ms', 'p99_ms'), each)))
                 for count, each in MEASURED.items()})))
    lines = Measured(cameras).checked(Load(1.0, 3))
    assert [line['cameras'] for line in lines] == [*MEASURED]
    for line in lines:
        for name, within in (('p50_ms', 0.1), ('p99_ms', 0.25)):
            assert line['predicted'][name] == pytest.approx(
                line['measured'][name], rel=within), line


def test_ten_thousand_cameras_are_planned_and_drawn(tmp_path):
    pytest.importorskip('matplotlib')
    file, picture = tmp_path / 'plan.json', tmp_path / 'plan.png'
    assert plan('--cameras', 10_000, '--steps', 20, '--step-every-s', 0.2, '--curve',
                '--json', file, '--picture', picture,
                '--measured', BENCHMARKS / 'cameras.json') == 0
    found = json.loads(file.read_text())
    assert found['needed']['engines'] * found['cameras_on_one_engine'] >= 10_000
    needed = found['needed']
    assert needed['p99_ms'] <= 500 and needed['busy'] <= 0.81 and needed['dropped'] == 0
    assert picture.read_bytes().startswith(b'\x89PNG')


def test_percentiles_are_values_that_occurred():
    assert percentiles([0.001 * number for number in range(100, 0, -1)]) == dict(
        p50_ms=50.0, p95_ms=95.0, p99_ms=99.0)


@pytest.mark.parametrize('options, said', [
    (['--measured', 'none.json'], 'cannot read the measurements none.json'),
    (['--measured', 'lanes.json'], 'lanes.json is not what the benchmark cameras writes'),
    (['--step-ms', '900', '--busy', '1'], 'one camera within the limits: p99 900 ms (allowed 500'),
    (['--step-ms', '9', '--step-every-s', '0'], 'every so many seconds, more than 0')])
def test_what_cannot_be_planned_is_said_in_words(monkeypatch, capsys, options, said):
    monkeypatch.chdir(BENCHMARKS)
    assert plan('--cameras', 5, *options) == 2
    assert said in capsys.readouterr().err


def test_planning_needs_neither_ray_nor_torch():
    code = ('import sys, sww_ros.fleet.plan\n'
            'print(sorted({"ray", "torch", "matplotlib"} & set(sys.modules)))')
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert said.stdout == '[]\n', said.stderr
