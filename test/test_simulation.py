"""
The core under simulation: whatever happens to it in whichever order, its invariants hold.

And the simulation itself is proved able to fail: it finds every fault put into the core.
"""

from itertools import product
from pathlib import Path
import subprocess
import sys
import time

import pytest

from sww_ros.evaluation import simulate
from sww_ros.evaluation.simulate import MOST_INPUTS, random_script, shrink
from sww_ros.evaluation.simulation import world
from sww_ros.evaluation.simulation.faults import FAULTS, seeded
from sww_ros.evaluation.simulation.invariants import INVARIANTS, OF_STREAMS, violations
from sww_ros.evaluation.simulation.reading import Reading
from sww_ros.evaluation.simulation.world import (
    Ask,
    Feed,
    Finish,
    Forget,
    Pause,
    Script,
    Settings,
    World,
)

# Two minutes of computing on two quiet cores, in a fixture; on busy ones several times that.
pytestmark = pytest.mark.timeout(3600)

SCHEDULES = 20_000
# The races that threads once had and the faults found by reading, as far as a core can have them.
KNOWN = {
    'a_reset_spares_an_answer', 'a_step_clears_all_failures', 'a_failure_is_not_counted',
    'the_end_of_a_text_wakes_nobody', 'a_video_cuts_the_one_before',
    'a_failure_halts_the_next_video', 'a_pause_joins_two_videos',
    'a_frame_slips_in_behind_a_pause', 'the_end_forgets_questions', 'one_id_is_let_in_twice',
    'the_end_forgets_the_newest_question', 'a_resume_is_overtaken', 'a_prompt_is_lost',
    'a_cancel_misses_the_start', 'the_end_of_a_turn_gives_up_all'}


@pytest.fixture(scope='module')
def result() -> dict:
    return simulate.simulate(SCHEDULES, processes=2)


def test_all_invariants_hold_of_random_schedules(result):
    assert result['random']['violations'] == 0, simulate.report(result)
    assert result['summary']['schedules'] == SCHEDULES


def test_all_invariants_hold_of_every_order_of_a_few_inputs(result):
    found = result['exhaustive']
    assert found['violations'] == 0, simulate.report(result)
    assert max(scope['most_inputs'] for scope in found['scopes']) == MOST_INPUTS == 6
    assert all(scope['states'] > 50 for scope in found['scopes'])


@pytest.mark.parametrize('number', range(len(FAULTS)), ids=[fault.name for fault in FAULTS])
def test_a_fault_put_into_the_core_is_found(result, number):
    fault = result['faults'][number]
    assert fault['name'] == FAULTS[number].name
    assert fault['found'], fault['words']
    # What is printed is a script that can be pasted, and breaks the core with the fault alone.
    small = eval(fault['script'], vars(world))
    assert violations(small) == []
    with seeded(FAULTS[number]):
        assert violations(small) == fault['breaks'] != []


def test_the_faults_of_the_past_are_among_those_seeded(result):
    assert KNOWN <= {fault.name for fault in FAULTS}
    assert result['summary']['faults_seeded'] == result['summary']['faults_found'] == len(FAULTS)


def test_each_invariant_has_a_name_of_its_own():
    every = [*INVARIANTS, *OF_STREAMS]
    assert len({invariant.__name__ for invariant in every}) == len(every) > 50


def test_states_that_count_as_alike_go_on_alike():
    """So that only one of them has to be gone on from; a reset more or less makes no difference."""
    settings = Settings(max_steps=2, wait_k=1, max_answers=1)
    states: dict[tuple, int] = {}
    follows: dict[tuple, int] = {}
    for count in range(6):
        for moves in product((Feed(), Ask(), Forget(), Finish(), Finish(1)), repeat=count):
            run = World(Script(settings, moves))
            run.make_moves()
            states[moves] = state = simulate._state(run, Reading(run.script, run.log))
            if moves:
                assert follows.setdefault((states[moves[:-1]], moves[-1]), state) == state
    assert states[Forget(), Feed(), Finish()] == states[Forget(), Forget(), Feed(), Finish()]
    assert len({*states.values()}) > 50


def test_no_step_waits_for_a_piece_that_has_to_wait_itself():
    """A successor's words were being written: nobody took its piece, nor the step behind that."""
    assert simulate.gather(4443).violations == []


def test_a_seed_is_a_schedule():
    assert random_script(7) == random_script(7) != random_script(8)
    assert eval(repr(random_script(7)), vars(world)) == random_script(7)


def test_what_fails_is_shrunk_to_what_it_takes():
    """Of thirty moves those stay without which it does not fail; settings become plain."""
    moves = (Feed(), Finish()) * 10 + (Pause(), Feed(last=True), Finish(says='SS')) * 3

    def finds(candidate: Script) -> list[str]:
        kinds = [type(move) for move in candidate.moves]
        return ['it: happens'] if kinds.count(Pause) >= 2 and Finish in kinds else []

    small = shrink(Script(Settings(wait_k=3, serial=True), moves, tail='s'), finds)
    assert sorted(map(repr, small.moves)) == ['Finish()', 'Pause()', 'Pause()']
    assert small.settings == Settings() and small.tail == 't'


def test_a_script_that_breaks_nothing_stays_as_it_is():
    assert shrink(random_script(1)) == random_script(1)


def test_what_fails_is_reported_with_its_seed_and_as_a_script():
    fault = next(fault for fault in FAULTS if fault.name == 'numbers_begin_anew')
    with seeded(fault):
        seeds = simulate._play(range(3))
        failing = [dict(seed=seed, broken=words, **simulate._smallest(random_script(seed)))
                   for seed, words in seeds]
    assert failing
    text = simulate.report(dict(summary={}, faults=[], exhaustive=dict(failing=[]),
                                random=dict(failing=failing)))
    assert f'seed {failing[0]["seed"]}\n' in text
    assert f'assert violations({failing[0]["script"]}) == []' in text


def test_the_simulation_needs_neither_torch_nor_threads():
    code = ('import sys, sww_ros.evaluation.simulate; '
            'from sww_ros.evaluation.simulation.invariants import violations; '
            'from sww_ros.evaluation.simulate import random_script; '
            'violations(random_script(0)); import threading; '
            'assert "torch" not in sys.modules and threading.active_count() == 1')
    subprocess.run([sys.executable, '-c', code], check=True, timeout=300)


def test_workers_end_when_who_started_them_is_killed():
    run = subprocess.Popen([sys.executable, '-m', 'sww_ros.evaluation.simulate', '--schedules',
                            '100000000', '--processes', '1'], stderr=subprocess.DEVNULL)
    try:
        workers = []
        deadline = time.monotonic() + 120.0
        while not workers and time.monotonic() < deadline:
            time.sleep(0.05)
            workers = [int(pid) for pid in Path(
                f'/proc/{run.pid}/task/{run.pid}/children').read_text().split()
                if b'spawn_main' in Path(f'/proc/{pid}/cmdline').read_bytes()]
    finally:
        run.kill()
        run.wait()
    assert workers
    while time.monotonic() < deadline and any(Path(f'/proc/{pid}').exists() for pid in workers):
        time.sleep(0.05)
    assert not any(Path(f'/proc/{pid}').exists() for pid in workers)
