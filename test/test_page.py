"""What browsers are told, by a server that no browser can hold up, and who is let in at all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
import json
from pathlib import Path
import re
import socket
import struct
import threading
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from waiting import PATIENCE_S

aiohttp = pytest.importorskip('aiohttp')

from sww_ros import web  # noqa: E402 - aiohttp may be absent.
from sww_ros.engine.address import is_local  # noqa: E402
from sww_ros.images import jpeg_of  # noqa: E402
from sww_ros.web import Broadcast, Outbox, step_of, text_of  # noqa: E402
from sww_ros.web.server import FILES, PageServer  # noqa: E402


def told(outbox: Outbox) -> list[dict]:
    """Return the messages that a browser would be sent now."""
    return json.loads(outbox.take()[0] or '[]')


@pytest.fixture
def feed() -> Broadcast:
    """Two tabs; what is published is delivered at once."""
    made = Broadcast()
    made.add_tab('/front/narrator'), made.add_tab('/rear/narrator')
    made.on_news = made.deliver
    return made


# What is told.

def test_who_comes_later_is_told_what_was_said_and_only_the_newest_state(feed: Broadcast):
    for number in range(3):
        feed.publish(1, 'text', seq=number)
        feed.publish(1, 'health', parts=number)
    assert told(feed.join()) == [
        dict(kind='hello', tabs=['/front/narrator', '/rear/narrator']),
        *(dict(kind='text', tab=1, seq=number) for number in range(3)),
        dict(kind='health', tab=1, parts=2)]


def test_a_replay_that_begins_anew_has_no_past(feed: Broadcast):
    feed.publish(0, 'text', seq=1)
    feed.publish(0, 'anew')
    assert [message['kind'] for message in told(feed.join())] == ['hello', 'anew']


def test_the_past_is_bounded(feed: Broadcast):
    for number in range(web.HISTORY + 10):
        feed.publish(0, 'text', seq=number)
    past = told(feed.join())[1:]
    assert [past[0]['seq'], past[-1]['seq']] == [10, web.HISTORY + 9]


def test_a_slow_browser_loses_the_oldest_messages_and_is_told_how_many(feed: Broadcast):
    outbox = feed.join()
    outbox.take()
    for number in range(web.OUTBOX + 7):
        feed.publish(0, 'text', seq=number)
    *texts, skipped = told(outbox)
    assert (texts[0]['seq'], len(texts)) == (7, web.OUTBOX)
    assert skipped == dict(kind='skipped', count=7)
    assert told(outbox) == []


def test_frames_go_to_those_who_watch_the_tab_and_only_the_newest(feed: Broadcast):
    near, far = feed.join(), feed.join()
    feed.watch(far, 1)
    assert feed.watched == {0, 1}
    for stamp in range(10):
        feed.show(0, float(stamp), b'jpeg')
    _, frame = near.take()
    assert (struct.unpack('>Bd', frame[:9]), frame[9:]) == ((0, 9.0), b'jpeg')
    assert far.take()[1] == b''
    feed.leave(near), feed.leave(far)
    assert feed.watched == set()


def test_a_browser_is_sent_no_frame_before_it_has_shown_others(feed: Broadcast):
    outbox = feed.join()
    sent = []
    for stamp in range(10):
        feed.show(0, float(stamp), b'')
        sent.append(outbox.take()[1])
    assert [bool(frame) for frame in sent] == [True] * web.FRAMES_AHEAD + [False] * 8
    outbox.shown()
    assert outbox.news.is_set()
    assert struct.unpack('>Bd', outbox.take()[1]) == (0, 9.0)


def test_messages_of_several_threads_all_arrive_and_each_threads_in_order(feed: Broadcast):
    feed.on_news = lambda: None
    threads = [threading.Thread(target=lambda by=by: [
        feed.publish(0, 'text', by=by, seq=seq) for seq in range(200)]) for by in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    feed.deliver()
    messages = told(feed.join())[1:]
    for by in range(4):
        assert [m['seq'] for m in messages if m['by'] == by] == list(range(200))


def test_a_step_is_told_by_when_it_was_captured_perceived_and_first_told_of():
    def span(seconds: float) -> SimpleNamespace:
        return SimpleNamespace(sec=int(seconds), nanosec=round(seconds % 1 * 1e9))
    message = SimpleNamespace(
        header=SimpleNamespace(stamp=span(100.5)), video=1, step=7, capture_to_callback=span(0.1),
        callback_to_engine=span(0.2), perceived=span(0.75), has_first_token=True,
        first_token=span(0.25), overlap_ratio=float('nan'))
    assert step_of(message) == pytest.approx(dict(
        video=1, step=7, captured=100.5, started=100.8, perceived=101.35, first=101.6, overlap=0.0))
    message.has_first_token = False
    assert step_of(message)['first'] is None


def test_a_text_of_a_broken_publisher_is_cut():
    chunk = SimpleNamespace(
        stream_id='narration', seq=3, delta='a' * 10 ** 6, sentence='', is_final=False,
        finish_reason='', header=SimpleNamespace(stamp=SimpleNamespace(sec=1, nanosec=0)),
        emitted=SimpleNamespace(sec=2, nanosec=0))
    assert len(text_of(chunk)['delta']) == web.MAX_TEXT and text_of(chunk)['end'] is False


def test_a_jpeg_is_the_picture():
    pixels = np.full((20, 30, 3), (200, 40, 90), np.uint8)
    shown = cv2.imdecode(np.frombuffer(jpeg_of(pixels, 95), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.abs(shown.astype(int) - pixels).max() < 8


# The page itself.

def test_the_page_loads_nothing_from_elsewhere_and_writes_no_markup():
    folder = Path(web.__file__).parent
    for name, _ in FILES.values():
        text = (folder / name).read_text()
        assert not re.search('https?://|@import', text), name
    script = (folder / 'page.js').read_text()
    assert not re.search(r'innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(', script)


# The server.

Visit = Callable[[PageServer, Broadcast, 'aiohttp.ClientSession'], Awaitable[None]]


@contextmanager
def serving(feed: Broadcast, act: Callable = lambda *_: None, **options) -> Iterator[PageServer]:
    server = PageServer(feed, act, **options)
    server.start()
    try:
        yield server
    finally:
        server.close()


def visit(server: PageServer, visitor: Callable[[Browser], Awaitable[None]]) -> None:
    """Have a visitor do something with a browser, within a time."""
    async def come() -> None:
        async with aiohttp.ClientSession() as session:
            await asyncio.wait_for(visitor(Browser(server, session)), PATIENCE_S)
    asyncio.run(come())


class Browser:
    """What a browser does, as far as a server sees it."""

    def __init__(self, server: PageServer, session: aiohttp.ClientSession) -> None:
        self.session, self.port = session, int(re.search(r':(\d+)/', server.url)[1])
        self.site = f'http://127.0.0.1:{self.port}'

    def open(self, query: str = '', origin: str = '', **options):
        """Open the WebSocket, as the page of the same origin if no other is given."""
        return self.session.ws_connect(
            f'{self.site}/feed{query}', headers={'Origin': origin or self.site}, **options)


async def messages(stream) -> list[dict]:
    """Return the next batch of messages."""
    return json.loads((await stream.receive(PATIENCE_S)).data)


async def close_code(stream) -> int:
    """Return the code with which the server closes."""
    while not stream.closed:
        await stream.receive(PATIENCE_S)
    return stream.close_code


async def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, 'it did not come true'
        await asyncio.sleep(0.01)


def test_the_files_may_load_the_page_alone(feed: Broadcast):
    async def visitor(browser: Browser) -> None:
        for path, (_, kind) in FILES.items():
            async with browser.session.get(browser.site + path) as response:
                assert (response.status, response.content_type) == (200, kind)
                policy = response.headers['Content-Security-Policy']
                assert "default-src 'none'" in policy and 'unsafe' not in policy
        async with browser.session.get(f'{browser.site}/../page.py') as response:
            assert response.status == 404
    with serving(feed) as server:
        visit(server, visitor)


def test_what_is_published_arrives(feed: Broadcast):
    async def visitor(browser: Browser) -> None:
        async with browser.open() as stream:
            assert [m['kind'] for m in await messages(stream)] == ['hello']
            feed.publish(0, 'text', delta='</script>')
            assert await messages(stream) == [dict(kind='text', tab=0, delta='</script>')]
            feed.show(0, 1.5, b'jpeg')
            assert (await stream.receive(PATIENCE_S)).data[9:] == b'jpeg'
    with serving(feed) as server:
        visit(server, visitor)


@pytest.mark.parametrize('headers', [
    {'Origin': 'http://evil.example'}, {'Origin': 'null'}, {},
    # A name of elsewhere that was made to point here.
    {'Origin': 'http://evil.example:{port}', 'Host': 'evil.example:{port}'}])
def test_a_page_of_elsewhere_is_refused(feed: Broadcast, headers: dict[str, str]):
    async def visitor(browser: Browser) -> None:
        given = {name: value.format(port=browser.port) for name, value in headers.items()}
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await browser.session.ws_connect(f'{browser.site}/feed', headers=given)
        assert refused.value.status == 403
    with serving(feed) as server:
        visit(server, visitor)
        assert not feed.outboxes


def test_another_name_gets_not_even_the_page(feed: Broadcast):
    async def visitor(browser: Browser) -> None:
        async with browser.session.get(browser.site, headers={'Host': 'evil.example'}) as response:
            assert response.status == 403
    with serving(feed) as server:
        visit(server, visitor)


def test_on_a_public_address_a_token_is_needed(feed: Broadcast):
    async def visitor(browser: Browser) -> None:
        for wrong in ('', '?token=', '?token=guess', f'?token={server.token}x'):
            async with browser.open(wrong) as stream:
                assert await close_code(stream) == 4401
        async with browser.open(f'?token={server.token}') as stream:
            assert (await messages(stream))[0]['kind'] == 'hello'
    with serving(feed, host='0.0.0.0') as server:
        assert len(server.token) > 20 and server.url.endswith(f'/#{server.token}')
        visit(server, visitor)


@pytest.mark.parametrize('host, local', [
    ('127.0.0.1', True), ('127.1.2.3', True), ('::1', True), ('localhost', True),
    ('0.0.0.0', False), ('::', False), ('192.168.1.2', False), ('robot', False), ('', False)])
def test_only_loopback_is_local(host: str, local: bool):
    assert is_local(host) is local
    assert bool(PageServer(Broadcast(), print, host=host).token) is not local


def test_a_token_of_ones_own_holds_on_a_local_address_too(feed: Broadcast):
    async def visitor(browser: Browser) -> None:
        async with browser.open() as stream:
            assert await close_code(stream) == 4401
        async with browser.open('?token=secret') as stream:
            assert (await messages(stream))[0]['kind'] == 'hello'
    with serving(feed, token='secret') as server:
        visit(server, visitor)


def test_a_port_that_is_taken_is_named(feed: Broadcast):
    with socket.create_server(('127.0.0.1', 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=f'served at 127.0.0.1, port {port}: .*in use'):
            PageServer(feed, print, port=port).start()


def test_too_many_browsers_are_sent_away_until_one_leaves(feed: Broadcast):
    async def visitor(browser: Browser) -> None:
        async with browser.open():
            async with browser.open() as second:
                assert await close_code(second) == 4429
        await until(lambda: not feed.outboxes)
        async with browser.open() as third:
            assert (await messages(third))[0]['kind'] == 'hello'
    with serving(feed, max_browsers=1) as server:
        visit(server, visitor)


def test_what_a_browser_asks_for_is_done_and_it_alone_is_told(feed: Broadcast):
    asked = []

    def act(tab, do, text, reply):
        asked.append((tab, do, text))
        reply(False, f'no {do}')

    async def visitor(browser: Browser) -> None:
        async with browser.open() as stream, browser.open() as other:
            await messages(stream), await messages(other)
            await stream.send_json(dict(do='ask', tab=1, text='Is it 5 < 6?', number=3))
            assert await messages(stream) == [
                dict(kind='reply', number=3, done=False, words='no ask')]
            with pytest.raises(asyncio.TimeoutError):
                await other.receive(0.1)
    with serving(feed, act) as server:
        visit(server, visitor)
    assert asked == [(1, 'ask', 'Is it 5 < 6?')]


@pytest.mark.parametrize('said, code', [
    ('no json', 1007), ('[]', 1007), ('7', 1007), ('{"do": "dance"}', 1007), ('{"tab": 0}', 1007),
    ('{"do": "ask", "tab": 2}', 1007), ('{"do": "ask", "tab": -1}', 1007),
    ('{"do": "ask", "tab": [0]}', 1007), ('{"do": "ask", "tab": 1e999}', 1007),
    ('{"do": "ask", "text": "\\ud800"}', 1007), ('[' * 20_000, 1007),
    ('{"do": "ask", "text": "%s"}' % ('a' * 40_000), 1009), (b'\x00', 1008)])
def test_what_cannot_be_understood_ends_the_connection_and_nothing_else(
        feed: Broadcast, said: str | bytes, code: int):
    acted = []

    async def visitor(browser: Browser) -> None:
        async with browser.open() as good, browser.open() as bad:
            await messages(good)
            await (bad.send_bytes if isinstance(said, bytes) else bad.send_str)(said)
            assert await close_code(bad) == code
            feed.publish(0, 'text', seq=1)
            assert (await messages(good))[0]['seq'] == 1
    with serving(feed, lambda *what: acted.append(what)) as server:
        visit(server, visitor)
    assert not acted


def test_a_browser_that_asks_too_fast_is_refused_in_words_and_one_that_floods_is_sent_away(
        feed: Broadcast, monkeypatch: pytest.MonkeyPatch):
    acted = []
    monkeypatch.setattr('sww_ros.web.time', SimpleNamespace(monotonic=lambda: 0.0))

    async def visitor(browser: Browser) -> None:
        async with browser.open() as stream:
            await messages(stream)
            for number in range(13):
                await stream.send_json(dict(do='reset', number=number))
            refused = []
            while len(refused) < 3:
                refused += await messages(stream)
            assert {message['words'] for message in refused} == {
                'too much at once: wait a moment'}
            for _ in range(400):
                await stream.send_json(dict(do='shown'))
            assert await close_code(stream) == 1008
    with serving(feed, lambda *what: acted.append(what)) as server:
        visit(server, visitor)
    assert len(acted) == 10


def test_a_browser_that_does_not_read_holds_nobody_up(feed: Broadcast):
    """It is there, and reads nothing, while 30,000 messages and 300 frames of 100 KB come."""
    frame = bytes(100_000)

    async def visitor(browser: Browser) -> None:
        async with browser.open() as reader:
            deaf_reader, deaf = await asyncio.open_connection('127.0.0.1', browser.port, limit=1)
            deaf.write((f'GET /feed HTTP/1.1\r\nHost: 127.0.0.1:{browser.port}\r\n'
                        f'Origin: {browser.site}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n'
                        'Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: '
                        'AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n').encode())
            await until(lambda: len(feed.outboxes) == 2)
            assert (await messages(reader))[0]['kind'] == 'hello'
            heard: list[int] = []
            for number in range(30_000):
                feed.publish(0, 'text', seq=number, delta='x' * 200)
                if not number % 100:
                    feed.show(0, 0.0, frame)
                if not number % 1000:
                    await hear_all(reader, heard, number)
            await hear_all(reader, heard, 29_999)
            assert heard == list(range(30_000))
            deaf.transport.abort()
    with serving(feed) as server:
        visit(server, visitor)
        asyncio.run(until(lambda: not feed.outboxes))


async def hear_all(stream, heard: list[int], last: int) -> None:
    """Read messages up to one of this number, and show the frames between them."""
    while not heard or heard[-1] < last:
        message = await stream.receive(PATIENCE_S)
        if message.type == aiohttp.WSMsgType.BINARY:
            await stream.send_json(dict(do='shown'))
        else:
            heard += [m['seq'] for m in json.loads(message.data) if m['kind'] == 'text']


def test_a_browser_that_comes_again_and_again_leaves_nothing_behind(feed: Broadcast):
    async def visitor(browser: Browser) -> None:
        async def come() -> None:
            async with browser.open() as stream:
                await messages(stream)
                feed.show(0, 0.0, b'jpeg')
        await come()
        await until(lambda: not feed.outboxes)
        tasks, files = len(asyncio.all_tasks(server._loop)), open_files()
        for _ in range(100):
            await come()
        await until(lambda: not feed.outboxes)
        await until(lambda: len(asyncio.all_tasks(server._loop)) <= tasks)
        await until(lambda: open_files() <= files + 1)
        assert feed.watched == set() and not server._sockets
    with serving(feed) as server:
        visit(server, visitor)


def open_files() -> int:
    return len(list(Path('/proc/self/fd').iterdir()))


def test_browsers_are_told_that_the_server_ends(feed: Broadcast):
    async def visitor(browser: Browser) -> None:
        async with browser.open() as stream:
            await messages(stream)
            ending = asyncio.get_running_loop().run_in_executor(None, server.close)
            assert await close_code(stream) == 1001
            await ending
    server = PageServer(feed, print)
    server.start()
    visit(server, visitor)
    feed.publish(0, 'text', seq=1)  # Nobody is there to be woken.
