"""An engine far away: sessions over a WebSocket, and what becomes of them when the link drops."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
import json
import os
from pathlib import Path
import signal
import socket
import time
from types import SimpleNamespace

from engine_harness import HERE, START_S, Listener, frame, numbers, speak
from fake_session import ENGINE
from fleet_kit import KEY, TOKENS, Served, narrated_to, serving
import numpy as np
import pytest
from waiting import PATIENCE_S

from experiments import jpeg
from experiments.outages import Proxy
from sww_ros.benchmark.cameras import pictures
from sww_ros.engine import link
from sww_ros.engine.address import check_address, check_engine, token_of
from sww_ros.engine.client import EngineError
from sww_ros.engine.fallback import Fallback
from sww_ros.engine.link import Clocks, Link, sent_as
from sww_ros.fleet.robots import Robots
from sww_ros.fleet.server import GatewayServer
from sww_ros.fleet.strangers import MANY, told_to_leave
from sww_ros.images import compressed_to_rgb
from sww_ros.library import Engine
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import FramesDropped, SessionClosed, StepPerceived, TextDelta


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path) as served:
        yield served


@pytest.fixture
def proxy(served: Served) -> Iterator[Proxy]:
    proxy = Proxy(served.server.port)
    yield proxy
    proxy.close()


def over(proxy: Proxy, **options) -> Listener:
    return Listener('any', host=Link(f'ws://localhost:{proxy.port}', TOKENS['front']), **options)


def test_a_session_goes_over_tls_as_over_a_socket(tmp_path: Path):
    with serving(tmp_path, tls=True) as served:
        assert served.url.startswith('wss://')
        with narrated_to(served) as robot:
            assert robot.client.info['model'] == 'fake', 'the model is that of the engine'
            speak(robot, steps=2)
            assert numbers(robot) == list(range(6))
            assert robot.client.ask('what is there', 'q') == 'q'
            assert robot.wait_final('q').sentence == 'what is there'
        with pytest.raises(EngineError, match='certificate'):
            Listener('any', host=Link(served.url, TOKENS['front'])).client.start(START_S)


def test_times_are_told_in_the_robots_own_clock(served: Served):
    with narrated_to(served) as robot:
        begun_ns = time.monotonic_ns()
        speak(robot)
        step = robot.of(StepPerceived)[0]
        assert begun_ns <= step.received_ns <= step.perceived_ns <= time.monotonic_ns()


def test_clocks_are_compared_by_the_answer_that_came_soonest():
    clocks = Clocks()
    clocks.compare(sent_ns=100, there_ns=5_150, now_ns=200)
    assert clocks.ahead_ns == 5_000
    clocks.compare(sent_ns=300, there_ns=6_000, now_ns=900)
    assert clocks.ahead_ns == 5_000, 'which tells less'
    event = dict(type='step', stamp_ns=7, received_ns=0, perceived_ns=5_210, overlap_ns=3)
    assert clocks.here(event) == event | dict(perceived_ns=210)
    assert clocks.here(dict(type='alive', work=['step', 5_300]))['work'] == ['step', 300]


def test_what_the_docs_say_of_quality_was_measured_and_is_so_here():
    """What is said was measured; how many bits it takes is measured again on other scenes."""
    found = json.loads((HERE.parent / 'docs/benchmarks/jpeg.json').read_text())
    page = (HERE.parent / 'docs/scale.md').read_text()
    assert '\n'.join(jpeg.rows(found)) in page
    seen = [picture for seed in (1, 2, 3) for picture in pictures(seed, 20)]
    for kind, value, code in (('jpeg', 80, jpeg.as_jpeg(80, [])),
                              ('h264', 28, jpeg.as_h264(28, 2))):
        coded = [code(picture) for picture in seen]
        assert {picture.shape for _, picture in coded} == {(84, 84, 3)}
        assert np.mean([size for size, _ in coded]) == pytest.approx(
            found[kind][str(value)]['bytes_a_frame'], rel=0.2)


@pytest.mark.parametrize('wanted, large, size', [
    ([28, 28 * 28, 10 ** 4], (480, 640), (84, 112)), ([56, 56], (480, 640), (56, 56)),
    ([], (48, 64), (48, 64)), ([56, 56], (28, 28), (28, 28))])
def test_frames_are_made_as_small_as_the_model_sees_them(
        wanted: list[int], large: tuple[int, int], size: tuple[int, int]):
    jpeg = sent_as(np.full((*large, 3), 99, np.uint8), wanted, 90)
    assert compressed_to_rgb(SimpleNamespace(format='jpeg', data=jpeg)).shape == (*size, 3)


def test_after_a_cut_the_stream_goes_on_and_questions_end(proxy: Proxy):
    robot = over(proxy)
    try:
        robot.client.start(START_S)
        speak(robot)
        robot.client.ask('long', 'long')
        proxy.sever()
        assert robot.wait_final('long').finish_reason == 'error'
        robot.client.feed(frame())
        robot.wait(lambda: any(each.reason == 'link' for each in robot.of(FramesDropped)))
        proxy.mend()
        robot.wait(lambda: len(robot.ready) == 2)
        robot.events[:] = [each for each in robot.events if not isinstance(each, FramesDropped)]
        speak(robot)
        assert numbers(robot) == list(range(len(numbers(robot)))), 'no gap'
        assert 'the link to ws://localhost' in robot.lost[0]
    finally:
        robot.client.close()


def test_a_question_of_which_nothing_was_said_is_asked_again(proxy: Proxy, tmp_path: Path):
    go = tmp_path / 'go'
    robot = over(proxy, ask_again=True)
    try:
        robot.client.start(START_S)
        robot.client.ask(f'until {go}', 'late')
        robot.client.ask('long', 'long')
        robot.client.ask(f'until {go}', 'back')
        robot.wait(lambda: robot.text('long'))
        robot.client.cancel('back')
        proxy.sever()
        assert robot.wait_final('long').finish_reason == 'error', 'half of it was heard'
        assert robot.wait_final('back').finish_reason == 'error', 'it was taken back'
        proxy.mend()
        go.touch()
        assert robot.wait_final('late').sentence == f'until {go}'
    finally:
        robot.client.close()


def test_an_engine_that_is_killed_comes_back_for_its_robots(served: Served):
    with narrated_to(served) as front, narrated_to(served, 'rear') as rear:
        os.kill(served.host._process.pid, signal.SIGKILL)
        for robot in (front, rear):
            robot.wait(lambda robot=robot: len(robot.ready) == 2)
            assert 'was killed by SIGKILL' in robot.lost[0]
            speak(robot)


def test_robots_come_back_to_a_gateway_that_is_started_again(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr('sww_ros.fleet.server.END_S', 0.2)
    with serving(tmp_path) as served, narrated_to(served) as robot:
        speak(robot)
        robot.client.ask('long', 'long')
        served.server.close()
        assert robot.wait_final('long').finish_reason == 'error'
        served.server = GatewayServer(served.gateway, served.meter, port=served.server.port)
        served.server.start()
        robot.wait(lambda: len(robot.ready) == 2)
        robot.events[:] = [each for each in robot.events if not isinstance(each, FramesDropped)]
        speak(robot)
        assert numbers(robot) == list(range(len(numbers(robot)))), 'no gap'


def test_a_robot_hears_that_too_many_are_connected_and_comes_back_once_they_are_not(
        served: Served, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    robot = over(proxy)
    others = tmp_path / 'others'
    others.write_text('nobody 0123456789abcdef\n')
    try:
        robot.client.start(START_S)
        with monkeypatch.context() as crowded:
            crowded.setattr('sww_ros.fleet.strangers.REFUSED', 0)
            crowded.setattr(served.gateway, '_robots', Robots(others))
            proxy.sever()
            proxy.mend()
            robot.wait(lambda: any('too many are connected there' in each for each in robot.lost))
        robot.wait(lambda: len(robot.ready) == 2)
        speak(robot)
    finally:
        robot.client.close()


def test_what_is_said_before_it_is_asked_is_heard():
    """As by a gateway that has sent a robot away before the robot has said a word."""
    with socket.create_server(('localhost', 0)) as crowded:
        address = f'ws://localhost:{crowded.getsockname()[1]}'
        with ThreadPoolExecutor(1) as pool:
            robot = pool.submit(Link(address, TOKENS['front']).session, print)
            connection, _ = crowded.accept()
            with connection:
                connection.sendall(told_to_leave(MANY))
                with pytest.raises(ConnectionError, match='too many are connected there'):
                    robot.result(PATIENCE_S)


def test_what_the_engine_refuses_is_said_in_its_words(tmp_path: Path):
    with serving(tmp_path, model='bad') as served:
        with pytest.raises(EngineError, match='the checkpoint bad has no config.json'):
            served.listener().client.start(START_S)


def test_a_program_has_sessions_far_away_as_it_has_them_here(served: Served):
    with Engine.open(engine=served.url, token=TOKENS['front']) as engine:
        first, second = engine.session(), engine.session()
        assert first.info['model'] == 'fake'
        for _ in range(2):
            first.feed(np.zeros((48, 64, 3), np.uint8), stamp_ns=7)
        second.ask('who is there')
        words = []
        while not (event := second.poll(30.0)) or not getattr(event, 'final', False):
            words += [event.delta] if isinstance(event, TextDelta) else []
        assert words == ['who ', 'is ', 'there ']
        sentence = next(event for event in first.events()
                        if isinstance(event, TextDelta) and event.sentence)
        assert sentence.stamp_ns == 7 and sentence.sentence == 'step 0.'
    assert all(event is not None for event in first.events()), 'which end'
    with pytest.raises(SessionClosed):
        first.feed(np.zeros((48, 64, 3), np.uint8))
    with pytest.raises(ValueError, match='not known here'):
        Engine.open(engine=served.url, token='wrong').session()


def test_a_model_here_speaks_while_the_link_is_down_and_says_so(
        proxy: Proxy, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr('sww_ros.engine.fallback.PROBE_S', 0.2)
    link = Link(f'ws://localhost:{proxy.port}', TOKENS['front'])
    fallback = Fallback(link, 'small', SessionConfig(device='cpu'), ENGINE)
    robot = Listener('far', host=fallback)
    try:
        robot.client.start(START_S)
        assert robot.client.info['model'] == 'fake' and not robot.client.info.get('fallback')
        speak(robot)
        proxy.sever()
        robot.wait(lambda: len(robot.ready) == 2)
        assert robot.client.info['model'] == 'small'
        assert 'meanwhile small speaks here' in robot.client.info['fallback']
        robot.events[:] = [each for each in robot.events if not isinstance(each, FramesDropped)]
        speak(robot)
        proxy.mend()
        robot.wait(lambda: len(robot.ready) == 3)
        assert robot.lost[-1] == 'the link is back'
        assert robot.client.info['model'] == 'fake' and not robot.client.info.get('fallback')
        speak(robot)
        assert numbers(robot) == list(range(len(numbers(robot)))), 'no gap'
    finally:
        robot.client.close()
        fallback.close()


def test_nobody_there_is_said_in_words(proxy: Proxy):
    proxy.close()
    with pytest.raises(EngineError, match=f'ws://localhost:{proxy.port}: Connect call failed'):
        over(proxy).client.start(START_S)


def test_a_server_that_says_nothing_is_said_in_words(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(link, 'CONNECT_S', 2.0)
    with socket.create_server(('localhost', 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(ConnectionError, match=f'ws://localhost:{port}: no answer in time'):
            Link(f'ws://localhost:{port}', TOKENS['front']).session(print)


@pytest.mark.parametrize('bad, words', [
    ('wss://', 'no address'), ('wss://host:port', 'no address'), ('ws://far.example:1', 'wss://'),
    ('wss://me:secret@host', 'no address')])
def test_addresses_that_cannot_be_are_refused(bad: str, words: str):
    with pytest.raises(ValueError, match=words):
        check_address(bad)
    with pytest.raises(ValueError, match=words):
        check_engine(bad)
    assert check_address('wss://host:8443') and check_address('ws://127.0.0.1:80')
    assert check_engine('shared') == 'shared' and check_engine('') == ''
    with pytest.raises(ValueError, match='holds no certificate'):
        Link('wss://host:1', 'x', authority=str(KEY))


def test_a_token_is_the_first_word_of_its_file(tmp_path: Path):
    file = tmp_path / 'token'
    assert token_of('') == ''
    with pytest.raises(ValueError, match='cannot be read'):
        token_of(str(file))
    file.write_text(' \n')
    with pytest.raises(ValueError, match='holds no token'):
        token_of(str(file))
    file.write_text('secret # of the front robot\n')
    assert token_of(str(file)) == 'secret'
