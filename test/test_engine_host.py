"""Several sessions in one engine's process, of one node or several: all that becomes of them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
import itertools
import os
from pathlib import Path
import signal
import time

from engine_harness import DOMAIN, NAMES, START_S, Listener, numbers, speak
from fake_session import ENGINE
import pytest
from waiting import PATIENCE_S, wait_until

from sww_ros.demo.processes import is_gone
from sww_ros.engine.client import EngineClient, EngineError
from sww_ros.engine.process import EngineHost, Launcher
from sww_ros.engine.shared import SharedHost
from sww_ros.engine.supervision import Limits
from sww_ros.frames import CameraFrame
from sww_ros.shapes.render import Renderer
from sww_ros.shapes.scene import TICK_S, generate
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import StepPerceived

MIB = 1 << 20
SILENT_S = 4.0
"""A busy machine may keep an engine from its sign of life for a second or two."""


@pytest.fixture(params=['in one node', 'by name'])
def hosts(request: pytest.FixtureRequest) -> Iterator[Launcher]:
    """Give what each further session shares a process by."""
    if request.param == 'in one node':
        return itertools.repeat(EngineHost())
    name = next(NAMES)
    return (SharedHost(name, DOMAIN) for _ in itertools.count())


@contextmanager
def sharing(count: int, hosts: Iterator[Launcher], **options) -> Iterator[list[Listener]]:
    """Start sessions that share a process, and end them."""
    with ExitStack() as stack:
        listeners = []
        for _ in range(count):
            listeners.append(Listener('fake', session=ENGINE, host=next(hosts), **options))
            stack.callback(listeners[-1].client.close)
            listeners[-1].client.start(START_S)
        yield listeners


def test_sessions_share_a_process_that_ends_with_the_last_one(hosts: Iterator[Launcher]):
    with sharing(3, hosts) as listeners:
        pids = {listener.client.pid for listener in listeners}
        assert len(pids) == 1
        for count, listener in enumerate(listeners, 1):
            speak(listener, count)
        assert [len(listener.of(StepPerceived)) for listener in listeners] == [1, 2, 3]
        # Lines come by another way, and go to whoever has come last by then.
        wait_until(lambda: any(listener.lines for listener in listeners))
        assert [line for listener in listeners for line in listener.lines] == ['loading fake']
    wait_until(lambda: all(map(is_gone, pids)))


def test_the_last_one_may_be_any_of_them(hosts: Iterator[Launcher]):
    with sharing(2, hosts) as (first, last):
        pid = first.client.pid
        first.client.close()
        speak(last)
        assert last.client.pid == pid and not is_gone(pid)
        last.client.close()
        wait_until(lambda: is_gone(pid))


def test_closing_one_leaves_no_gap_in_the_others(hosts: Iterator[Launcher]):
    with sharing(3, hosts) as (stays, goes, also):
        for listener in (stays, goes, also):
            speak(listener)
        goes.client.ask('long')
        goes.client.close()
        for listener in (stays, also):
            speak(listener, 2)
            assert numbers(listener) == list(range(9))
            assert not listener.lost and listener.client.restarts == 0


def test_one_that_is_killed_comes_back_for_all(hosts: Iterator[Launcher]):
    with sharing(3, hosts) as listeners:
        for listener in listeners:
            speak(listener)
        questions = [listener.client.ask('long') for listener in listeners]
        for listener, question in zip(listeners, questions):
            listener.wait(lambda listener=listener, question=question: listener.text(question))
        pid = listeners[0].client.pid
        os.kill(pid, signal.SIGKILL)
        for listener, question in zip(listeners, questions):
            assert listener.wait_final(question).finish_reason == 'error'
            listener.wait(lambda listener=listener: len(listener.ready) == 2)
            assert f'process {pid}) was killed by SIGKILL' in listener.lost[0]
        assert len({listener.client.pid for listener in listeners} - {pid}) == 1
        for listener in listeners:
            speak(listener)
            assert numbers(listener) == list(range(7)), 'the end that was cut is one of them'
            assert listener.client.restarts == 1


def test_one_that_dies_by_what_another_asks_comes_back_for_both(hosts: Iterator[Launcher]):
    with sharing(2, hosts) as (asks, other):
        asks.client.ask('die')
        for listener in (asks, other):
            listener.wait(lambda listener=listener: len(listener.ready) == 2)
            speak(listener)
        assert asks.client.pid == other.client.pid


def test_a_session_that_gives_up_is_opened_again_beside_the_others(hosts: Iterator[Launcher]):
    with sharing(2, hosts) as (stays, fails):
        for listener in (stays, fails):
            speak(listener)
        question = fails.client.ask('give up')
        assert fails.wait_final(question).finish_reason == 'error'
        speak(stays, 2)
        fails.wait(lambda: len(fails.ready) == 2)
        assert 'has ended the session, and goes on with others' in fails.lost[0]
        speak(fails)
        speak(stays)
        assert not stays.lost and numbers(stays) == list(range(12))
        assert stays.client.pid == fails.client.pid


def test_one_that_hangs_is_killed_and_comes_back_for_all(hosts: Iterator[Launcher]):
    with sharing(2, hosts, limits=Limits(silence=SILENT_S)) as listeners:
        for listener in listeners:
            speak(listener)
        pid = listeners[0].client.pid
        os.kill(pid, signal.SIGSTOP)
        for listener in listeners:
            listener.wait(lambda listener=listener: len(listener.ready) == 2)
            speak(listener)
        assert any(f'gave no sign of life for {SILENT_S:g} s' in each.lost[0] for each in listeners)
        wait_until(lambda: is_gone(pid))
        assert len({each.client.pid for each in listeners}) == 1


def test_a_session_that_cannot_be_opened_leaves_the_others_alone(hosts: Iterator[Launcher]):
    with sharing(1, hosts) as (first,):
        for options, words in (
                (dict(model='fake', config=SessionConfig(prompt='bad')), 'such a prompt'),
                (dict(model='other'), "runs the model 'fake', not 'other'")):
            refused = Listener(**options, session=ENGINE, host=next(hosts))
            with pytest.raises(EngineError, match=words):
                refused.client.start(START_S)
        speak(first)
        assert not first.lost
        pid = first.client.pid
    wait_until(lambda: is_gone(pid))


def test_a_model_that_cannot_be_loaded_is_refused_and_its_process_ends():
    listener = Listener('bad', session=ENGINE, host=(host := EngineHost()))
    with pytest.raises(EngineError, match='has no config'):
        listener.client.start(START_S)
    assert host._process.wait(PATIENCE_S)


def test_a_model_that_takes_too_long_is_given_up():
    slow = Listener('until /never', session=ENGINE, host=EngineHost())
    with pytest.raises(EngineError, match='was not loaded within 1 s'):
        slow.client.start(1.0)


def scene(seed: int, steps: int) -> Iterator[CameraFrame]:
    renderer = Renderer(generate(seed, steps + 1.0, max_objects=2))
    for number in range(2 * steps):
        pixels = renderer.frame(number * TICK_S)
        yield CameraFrame(lambda pixels=pixels: pixels, 1 + number, time.monotonic_ns())


def watch(listener: Listener, seed: int, steps: int) -> None:
    """Have a session see a scene, step by step."""
    for number, each in enumerate(scene(seed, steps)):
        listener.client.feed(each)
        if number % 2:
            done = number // 2 + 1
            listener.wait(lambda done=done: len(listener.of(StepPerceived)) == done)
        else:
            time.sleep(0.01)


def own_bytes(pid: int) -> int:
    """Return the memory of a process, libraries apart, of which others may have a share."""
    lines = Path(f'/proc/{pid}/status').read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines
               if line.startswith(('RssAnon:', 'RssShmem:')))


def test_a_camera_more_takes_little():
    """And all tell their scenes: the built-in model, in a process as of the node."""
    most, steps = 8, 12
    host, taken = EngineHost(), []
    with ExitStack() as stack:
        for number in range(most):
            listener = Listener('builtin', session='', host=host,
                                config=SessionConfig(overlap='fused'))
            client: EngineClient = listener.client
            stack.callback(client.close)
            client.start(START_S)
            watch(listener, 50_000 + number, steps)
            listener.wait(lambda listener=listener: any(
                delta.sentence for delta in listener.text('narration')))
            taken.append(own_bytes(client.pid))
    # With the first come the weights; the lanes are counted here too.
    assert (taken[-1] - taken[0]) / (most - 1) <= 15 * MIB, taken
