"""What robots meet at a gateway: who is let in, what is refused in words, and who goes on."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
import itertools
from pathlib import Path
import resource
import socket
import ssl
import threading
import urllib.error
import urllib.request

from engine_harness import START_S, speak
from fleet_kit import (
    CERTIFICATE,
    OPENING,
    TOKENS,
    UPGRADE,
    Served,
    narrated_to,
    opening,
    said_to,
    serving,
)
import numpy as np
import pytest
from waiting import PATIENCE_S, wait_until

from sww_ros.engine.client import EngineError
from sww_ros.engine.fallback import OF_HERE
from sww_ros.engine.link import Link, tls_to
from sww_ros.fleet.gateway import (
    CROWDED,
    POOLS,
    TOO_FAST,
    TOO_LARGE,
    WRONG,
    WRONG_TOKEN,
    Bounds,
    bounded_config,
)
from sww_ros.fleet.robots import Robots
from sww_ros.fleet.server import AT_ONCE, GatewayServer
from sww_ros.fleet.strangers import LEAVING, REFUSED, STRANGERS
from sww_ros.images import jpeg_of
from sww_ros.library import OF_ENGINE
from sww_ros.streaming.config import BY_NAME
from sww_ros.streaming.events import FramesDropped, QuestionState, TextDelta
from sww_ros.wire import packed

MANY = 1000


@pytest.fixture(scope='module')
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Give one that has a robot of its own all the time, so that its engine need not start anew."""
    bounds = Bounds(frame_bytes=100_000, messages=50, of_one=2)
    with serving(tmp_path_factory.mktemp('kept'), bounds) as served:
        with narrated_to(served, 'third'):
            yield served


@pytest.fixture
def many_files() -> Iterator[None]:
    """Let this process have both ends of a crowd open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, before[1]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def served(kept: Served) -> Served:
    """Give it once whoever was there before has gone."""
    wait_until(lambda: kept.gateway._here.total() == 1)
    return kept


def come(served: Served) -> socket.socket:
    return socket.create_connection(('localhost', served.server.port), timeout=PATIENCE_S)


def told(stranger: socket.socket) -> str:
    """Return what one is told: to the end of some words, or else of its connection."""
    said = b''
    with suppress(ConnectionError, ssl.SSLError):  # What was said before that counts.
        while not any(end in said for end in (b'again\n', b'who you are\n', b'not known here')):
            if not (more := stranger.recv(1 << 16)):
                break
            said += more
    return said.decode(errors='replace')


def kind_of(said: str) -> str:
    """Return how one was refused; what it was told, where that is no refusal."""
    if said.startswith('HTTP/1.1 503 ') and 'too many are connected' in said:
        return '503'
    return 'failed' if 'failed' in said and 'this token is not known here' in said else said


def get(served: Served, path: str, token: str = '') -> tuple[int, str]:
    request = urllib.request.Request(
        served.url.replace('ws', 'http', 1) + path, headers={'Authorization': f'Bearer {token}'})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def feeding(jpeg: bytes, **header: object) -> bytes:
    return packed(dict(command='feed', stamp_ns=1, **header), jpeg)


@pytest.mark.parametrize('token, words', [
    (None, 'a token is needed'), ('', 'a token is needed'), ('wrong', 'not known here'),
    (TOKENS['front'][:-1], 'not known here'), ('é' * 9, 'not known here')])
def test_who_has_no_token_is_told_so(served: Served, token: str | None, words: str):
    answers, code = said_to(served.url, token, opening())
    assert code == WRONG_TOKEN and len(answers) == 1
    assert answers[0]['type'] == 'failed' and words in answers[0]['message']


@pytest.mark.parametrize('said, code, words', [
    ('{"command": "open"}', WRONG, 'binary'), (b'', WRONG, 'no message'),
    (b'\xff' * 99, WRONG, 'no message'), (packed({})[:-1] + b'x', WRONG, 'not JSON'),
    (packed(dict(command='ask', question='?')), WRONG, 'the first command must be open'),
    (opening(max_steps=10 ** 5), WRONG, 'max_steps may be at most 1000 here'),
    (opening(wait_k='x'), WRONG, 'wait_k'), (opening(nothing=1), WRONG, 'there is no setting'),
    (packed(dict(command='open', config=[])), WRONG, 'no object'),
    (opening() + b'x' * 200_000, TOO_LARGE, 'too large'),
    (packed(dict(command='open', prompt='x' * 99_000)), TOO_LARGE, 'header')],
    ids=itertools.count())
def test_garbage_is_refused_in_words_and_others_go_on(
        served: Served, said: bytes | str, code: int, words: str):
    with narrated_to(served) as robot:
        answers, found = said_to(served.url, TOKENS['rear'], said)
        assert found == code and words in answers[-1]['message']
        speak(robot)
        assert robot.lost == []


def test_a_handshake_whose_key_is_no_text_is_refused_in_words(served: Served):
    """Found by test/fuzz.py: it was an error within, and filled the log."""
    with come(served) as robot:
        robot.sendall(UPGRADE.replace(b'AAAA', b'\xc4AAA'))
        assert robot.recv(1 << 16).startswith(b'HTTP/1.1 400 ')


def test_who_says_too_much_in_a_second_is_sent_away(served: Served):
    flood = [packed(dict(command='clock'))] * MANY
    answers, code = said_to(served.url, TOKENS['rear'], opening(), *flood)
    assert code == TOO_FAST and 'more than 50 messages' in answers[-1]['message']


def test_what_cannot_be_a_frame_costs_that_frame_alone(served: Served):
    with narrated_to(served) as robot:
        robot.client._handle(lambda machine: [machine._command('feed', stamp_ns=1) for _ in 'ab'])
        robot.wait(lambda: len(robot.of(FramesDropped)) == 2)
        assert {each.reason for each in robot.of(FramesDropped)} == {'bad'}
        robot.events.clear()
        speak(robot)
    big = jpeg_of(np.zeros((3000, 3000, 3), np.uint8), 10)
    answers, _ = said_to(served.url, TOKENS['rear'], OPENING, feeding(big), feeding(b'\xff\xd8'),
                         feeding(b'x'), *[packed(dict(command='ask', question_id='q',
                                                      question='die'))])
    told = [each['message'] for each in answers if each['type'] == 'trouble']
    assert len(told) == 3 and all(any(words in each for each in told) for words in (
        'too large', 'cannot decode', 'must be a JPEG'))


def test_robots_do_not_see_one_another(served: Served):
    with narrated_to(served) as front, narrated_to(served, 'rear') as rear:
        front.client.ask('long', 'q')
        rear.client.ask('mine alone', 'q')
        rear.client.cancel('q')
        assert rear.wait_final('q').finish_reason in ('cancelled', 'stop')
        front.wait(lambda: len(front.text('q')) > 5)
        speak(rear)
        front.client.cancel('q')
        assert front.wait_final('q').finish_reason == 'cancelled'
        assert {each.delta for each in front.text('q')} <= {'on ', ''}
        assert {each.delta for each in rear.text('q')} <= {'mine ', 'alone ', ''}
        assert not front.text('narration'), 'nothing was shown to it'
        assert {type(each) for each in front.events} <= {TextDelta, QuestionState}


def test_the_pool_alone_says_what_runs_and_where(served: Served):
    given = dict(device='cuda', overlap='processes', threads=99, allow_download=True, wait_k=2)
    config = bounded_config(given, Bounds())
    assert config.wait_k == 2
    assert all(getattr(config, name) == BY_NAME[name].default for name in POOLS)
    assert set(OF_ENGINE) <= set(POOLS) & set(OF_HERE)
    bye = packed(dict(command='ask', question_id='q', question='give up'))
    answers, _ = said_to(served.url, TOKENS['rear'], OPENING, bye)
    assert [each['info']['model'] for each in answers if each['type'] == 'ready'] == ['fake']


def test_of_one_robot_and_of_all_only_so_many_are_let_in(served: Served):
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(narrated_to(served))
        with pytest.raises(EngineError, match='this robot has 2 sessions already'):
            served.listener().client.start(START_S)
        rear = stack.enter_context(narrated_to(served, 'rear'))
        speak(rear)
        assert served.meter._counters['refused', str(CROWDED)] == 1
    wait_until(lambda: served.gateway._here['front'] == 0)
    with narrated_to(served) as again:
        speak(again)


@pytest.mark.parametrize('said, more', [(b'', STRANGERS), (UPGRADE, 0)], ids=['silent', 'wrong'])
def test_a_thousand_connections_are_refused_in_words_and_keep_no_robot_out(
        served: Served, said: bytes, more: int, many_files: None,
        monkeypatch: pytest.MonkeyPatch):
    """Those that say nothing are told as soon as others come: the last of them are not counted."""
    monkeypatch.setattr('sww_ros.fleet.strangers.STRANGER_S', PATIENCE_S)
    with ExitStack() as stack, narrated_to(served) as robot:
        crowd = []
        for _ in range(MANY + more):
            crowd.append(stack.enter_context(come(served)))
            crowd[-1].sendall(said)
        assert all(len(those) <= most for those, most in zip(
            served.server._strangers._all(), (STRANGERS, REFUSED, LEAVING), strict=True))
        speak(robot)
        with narrated_to(served, 'rear') as rear:
            speak(rear)
        kinds = Counter(kind_of(told(each)) for each in crowd[:MANY])
        assert kinds.total() == MANY and set(kinds) <= {'503', 'failed'}
        assert bool(said) == bool(kinds['failed'])
        assert robot.lost == [] and robot.of(FramesDropped) == []


def test_over_tls_each_is_told_once_it_has_agreed_on_it(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in dict(STRANGERS=8, REFUSED=4, LEAVING=32, STRANGER_S=PATIENCE_S,
                            LINGER_S=PATIENCE_S).items():
        monkeypatch.setattr(f'sww_ros.fleet.strangers.{name}', value)
    context = tls_to(str(CERTIFICATE))
    with serving(tmp_path, tls=True) as served, ExitStack() as stack, narrated_to(served) as robot:
        def agreed(stranger: socket.socket) -> socket.socket:
            return stack.enter_context(
                context.wrap_socket(stranger, server_hostname='localhost'))

        mute = [stack.enter_context(come(served)) for _ in range(8)]
        silent = [agreed(come(served)) for _ in range(8)]
        assert [kind_of(told(agreed(each))) for each in mute[:4]] == ['503'] * 4
        silent += [agreed(come(served)) for _ in range(40)]
        assert [told(each) for each in mute[4:]] == [''] * 4, 'they could not be told'
        wrong = [agreed(come(served)) for _ in range(16)]
        for each in wrong:
            each.sendall(UPGRADE)
        assert {kind_of(told(each)) for each in silent[:40]} == {'503'}
        assert {kind_of(told(each)) for each in wrong} == {'503', 'failed'}
        speak(robot)
        with narrated_to(served, 'rear') as rear:
            speak(rear)
        assert robot.lost == []


def test_a_stranger_who_says_nothing_is_told_to_leave(
        served: Served, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr('sww_ros.fleet.strangers.STRANGER_S', 0.2)
    with come(served) as stranger:
        assert 'you did not say in time who you are' in told(stranger)
        assert stranger.recv(1) == b'', 'it has not stayed'


def test_who_is_sent_away_while_it_speaks_is_told_and_is_not_listened_to_for_long(
        served: Served, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr('sww_ros.fleet.strangers.STRANGERS', 2)
    monkeypatch.setattr('sww_ros.fleet.strangers.LINGER_S', PATIENCE_S)
    with ExitStack() as stack:
        first, *_ = [stack.enter_context(come(served)) for _ in range(3)]
        first.sendall(UPGRADE[:20])
        assert kind_of(told(first)) == '503'
        with pytest.raises(OSError):
            while True:
                first.sendall(bytes(1 << 16))


def test_each_of_many_who_leave_in_the_same_moment_is_told(
        served: Served, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr('sww_ros.fleet.strangers.REFUSED', 0)
    monkeypatch.setattr('sww_ros.fleet.strangers.LEAVING', 1)
    here = threading.Event()
    served.server._later(here.wait, PATIENCE_S)
    with ExitStack() as stack:
        crowd = [stack.enter_context(come(served)) for _ in range(AT_ONCE)]
        for each in crowd:
            each.sendall(UPGRADE)
        here.set()
        assert [kind_of(told(each)) for each in crowd] == ['503'] * AT_ONCE


def test_who_opens_nothing_is_sent_away(served: Served, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr('sww_ros.fleet.gateway.OPEN_S', 0.2)
    answers, code = said_to(served.url, TOKENS['rear'])
    assert code == WRONG and 'no session was opened' in answers[0]['message']


def test_health_and_metrics_are_told(served: Served):
    assert get(served, '/health') == (200, 'the engine runs\n')
    assert get(served, '/metrics')[0] == 401
    assert get(served, '/')[0] == 426

    def told() -> dict[str, float]:
        status, text = get(served, '/metrics', TOKENS['rear'])
        assert status == 200
        lines = [line.rsplit(' ', 1) for line in text.splitlines() if not line.startswith('#')]
        return {name: float(value) for name, value in lines}

    before = told()
    with narrated_to(served) as robot:
        speak(robot)
        now = told()
        assert (now['sww_ready'], now['sww_sessions']) == (1, 2)
        for name in ('steps_total', 'first_token_seconds_count', 'perceived_seconds_count',
                     'perceived_seconds_bucket{le="+Inf"}'):
            assert now[f'sww_{name}'] - before.get(f'sww_{name}', 0) == 1, name
        assert now['sww_tokens_total'] - before.get('sww_tokens_total', 0) == 3
    wait_until(lambda: told()['sww_sessions'] == 1)


def test_it_does_not_listen_to_others_without_tls(served: Served):
    with pytest.raises(ValueError, match='give a certificate and its key'):
        GatewayServer(served.gateway, served.meter, host='0.0.0.0')
    with pytest.raises(ValueError, match='cannot be served at 127.0.0.1'):
        GatewayServer(served.gateway, served.meter, port=served.server.port).start()


@pytest.mark.parametrize('text, words', [
    ('', 'names no robot'), ('front short\n', 'line 1'), ('front\n', 'line 1'),
    ('a 0123456789abcdef\na 0123456789abcdeg\n', 'line 2'), (None, 'cannot be read')])
def test_a_file_of_robots_that_is_none_is_refused(tmp_path: Path, text: str | None, words: str):
    file = tmp_path / 'robots'
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=words) as refused:
        Robots(file)
    assert '0123456789' not in str(refused.value), 'a token is no word for a log'


def test_a_token_that_is_taken_from_a_robot_is_not_that_of_another(tmp_path: Path):
    file = tmp_path / 'robots'
    file.write_text('# who may come\nfront 0123456789abcdef\n\nrear fedcba9876543210\n')
    robots = Robots(file)
    assert robots.known('fedcba9876543210') == 'rear'
    assert robots.known('') == robots.known('rear') == robots.known('0123456789abcde') == ''
    assert Link.loss == 'link'
