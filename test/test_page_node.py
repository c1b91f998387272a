"""Whether the page shows what narrators say, does what is asked of it, and delays nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
import json
import os
from pathlib import Path
import re
import signal
import struct
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import cv2
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from fake_session import ENGINE
from narrator_harness import NarratorProcess, picture, probing
import numpy as np
import pytest
from sensor_msgs.msg import CompressedImage
from waiting import PATIENCE_S, wait_until

from sww_interfaces.msg import TextChunk
from sww_ros.demo.record import DemoRecord, Exchange, Recording, summarize
from sww_ros.images import jpeg_of
from sww_ros.nodes.diagnostics import resident_bytes
from sww_ros.web import seconds

aiohttp = pytest.importorskip('aiohttp')

from sww_ros.web import page as page_module  # noqa: E402 - aiohttp may be absent.

PAGE = [sys.executable, '-m', 'sww_ros.nodes.page']
SHARED = [sys.executable, '-c',
          f'from sww_ros.nodes.narrator import main; main(session={ENGINE!r})']


@contextmanager
def page(folder: Path, *parameters: str) -> Iterator[tuple[NarratorProcess, str]]:
    """Run the node on a free port; yield its process and its address."""
    with NarratorProcess(folder / 'page.txt', 'port:=0', *parameters, command=PAGE) as process:
        process.wait_log('the page is at ')
        yield process, re.search(r'the page is at (\S+)/', process.log)[1]


class Browser:
    """What a browser has been told, by kind, and the frames that it was sent."""

    def __init__(self, stream: aiohttp.ClientWebSocketResponse) -> None:
        self._stream = stream
        self.told: list[dict] = []
        self.frames: list[tuple[int, float, bytes]] = []

    async def ask(self, do: str, text: str = '', tab: int = 0) -> dict:
        """Ask for something, again where a busy machine was late, and return the reply."""
        end = time.monotonic() + PATIENCE_S
        while (reply := await self.ask_once(do, text, tab))['words'].endswith(
                ('is not there', 'does not respond')):
            assert time.monotonic() < end, reply
            await asyncio.sleep(0.5)
        return reply

    async def ask_once(self, do: str, text: str = '', tab: int = 0) -> dict:
        """Ask for something, and return the reply."""
        before = len(self.of('reply'))
        await self._stream.send_json(dict(do=do, text=text, tab=tab))
        await self.until(lambda: len(self.of('reply')) > before)
        return self.of('reply')[-1]

    async def watch(self, tab: int) -> None:
        await self._stream.send_json(dict(do='watch', tab=tab))

    def of(self, kind: str, tab: int | None = None) -> list[dict]:
        return [message for message in self.told
                if message['kind'] == kind and tab in (None, message.get('tab'))]

    @property
    def camera(self) -> dict:
        """What the diagnostics say of the camera."""
        return self.of('health')[-1]['parts']['camera']

    def words(self, stream: str, tab: int = 0) -> str:
        return ''.join(m['delta'] for m in self.of('text', tab) if m['stream'] == stream)

    async def until(self, condition: Callable[[], object]) -> None:
        """Listen until something has been told."""
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end, self.told[-5:]
            message = await self._stream.receive(PATIENCE_S)
            if message.type == aiohttp.WSMsgType.BINARY:
                self.frames.append((*struct.unpack('>Bd', message.data[:9]), message.data[9:]))
                await self._stream.send_json(dict(do='shown'))
            else:
                self.told += json.loads(message.data)


def visit(url: str, *visitors: Callable[[Browser], Awaitable[None]], at_once: int = 1) -> None:
    """Have visitors come, one after another, or several at once."""
    async def come(session: aiohttp.ClientSession, visitor: Callable) -> None:
        async with session.ws_connect(
                f'{url}/feed', headers={'Origin': url}, max_msg_size=0) as stream:
            await visitor(Browser(stream))

    async def all_come() -> None:
        async with aiohttp.ClientSession() as session:
            for first in range(0, len(visitors), at_once):
                await asyncio.gather(*(
                    come(session, visitor) for visitor in visitors[first:first + at_once]))
    asyncio.run(all_come())


def compressed_picture() -> CompressedImage:
    return CompressedImage(format='jpeg', data=jpeg_of(np.full((48, 64, 3), 90, np.uint8), 90))


@contextmanager
def filming(topic: str = 'image', make: Callable[[], Any] = picture) -> Iterator[list[float]]:
    """Publish pictures at 20 Hz; yield their stamps [s], as they come."""
    stopping, stamps = threading.Event(), list[float]()
    with probing() as probe:
        publisher = probe.node.create_publisher(type(make()), topic, 1)

        def film() -> None:
            while not stopping.wait(0.05):
                message = make()
                message.header.stamp = probe.node.get_clock().now().to_msg()
                stamps.append(seconds(message.header.stamp))
                publisher.publish(message)
        thread = threading.Thread(target=film)
        thread.start()
        try:
            yield stamps
        finally:
            stopping.set()
            thread.join()


def test_a_narrator_is_shown_asked_paused_and_told_what_to_say(ros_domain: int, tmp_path: Path):
    async def visitor(browser: Browser) -> None:
        await browser.until(lambda: browser.words('narration').count('step') > 3)
        seqs = [message['seq'] for message in browser.of('text')]
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
        steps = browser.of('step')
        assert all(s['captured'] <= s['started'] <= s['perceived'] for s in steps)

        await browser.until(lambda: browser.frames)
        tab, stamp, jpeg = browser.frames[0]
        shown = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert tab == 0 and stamp in stamps and shown.shape == (48, 64, 3)
        assert abs(int(shown.mean()) - 90) < 3

        assert (await browser.ask('ask', 'Is it <b>red</b>?'))['done'] is True
        question = browser.of('question')[0]
        await browser.until(lambda: any(
            m['end'] == 'stop' for m in browser.of('text') if m['stream'] == question['stream']))
        assert browser.words(question['stream']) == 'Is it <b>red</b>? '
        refused = await browser.ask('ask', ' ')
        assert refused['done'] is False and 'empty' in refused['words']

        assert (await browser.ask('prompt', 'Sing.'))['words'].endswith('Sing.')
        await browser.ask('ask', 'prompt')
        await browser.until(lambda: 'Sing.' in browser.words(browser.of('question')[-1]['stream']))
        assert (await browser.ask('reset'))['done'] is True
        await browser.until(lambda: 'reset' in [m['end'] for m in browser.of('text')])
        assert (await browser.ask('pause', 'on'))['words'] == 'paused'
        await browser.until(lambda: browser.camera['words'] == 'paused')
        assert 'frames dropped (paused)' in browser.camera['values']
        assert (await browser.ask('pause', 'off'))['words'] == 'watching'

    async def one_who_comes_later(browser: Browser) -> None:
        await browser.until(lambda: browser.of('pulse'))
        assert browser.words('narration').count('step') > 3
        assert browser.of('question')[0]['text'] == 'Is it <b>red</b>?'

    with NarratorProcess(tmp_path / 'narrator.txt'), page(tmp_path) as (node, url), \
            filming() as stamps:
        visit(url, visitor, one_who_comes_later)
        assert node.stop() == 0 and 'Traceback' not in node.log, node.log


def test_a_tab_for_each_narrator_and_frames_only_of_the_one_that_is_watched(
        ros_domain: int, tmp_path: Path):
    async def visitor(browser: Browser) -> None:
        await browser.until(lambda: browser.words('narration', 1) and browser.words('narration', 0))
        assert browser.of('hello')[0]['tabs'] == ['/left/narrator', '/right/eye']
        await browser.until(lambda: len(browser.frames) > 8)
        assert {frame[0] for frame in browser.frames} == {0}
        shown = [stamp for _, stamp, _ in browser.frames]
        filmed = sum(shown[0] <= stamp <= shown[-1] for stamp in stamps)
        assert len(shown) <= filmed / 2, 'the camera is faster than frame_rate'
        assert probe.node.count_subscribers('/elsewhere/compressed') == 1
        await browser.watch(1)
        await browser.until(lambda: browser.frames[-1][0] == 1)
        shown = cv2.imdecode(np.frombuffer(browser.frames[-1][2], np.uint8), cv2.IMREAD_COLOR)
        assert shown.shape == (24, 32, 3), 'wider than frame_width'
        await browser.ask('ask', 'left only', tab=0)
        assert browser.of('question')[0]['tab'] == 0
        await browser.watch(-1)
        await browser.until(lambda: probe.node.count_subscribers('/left/image') == 1)
    left = NarratorProcess(tmp_path / 'left.txt', arguments=('-r', '__ns:=/left'))
    right = NarratorProcess(tmp_path / 'right.txt', arguments=(
        '-r', '__ns:=/right', '-r', '__node:=eye', '-r', 'image:=/elsewhere',
        '-p', 'image_transport:=compressed'))
    with left, right, filming('/left/image') as stamps, probing() as probe, \
            filming('/elsewhere/compressed', compressed_picture):
        with page(tmp_path, "narrators:='left/narrator /right/eye'", 'frame_rate:=5.0',
                  'frame_width:=32') as (_, url):
            visit(url, visitor)


def test_the_cameras_of_one_narrator_have_a_tab_each(ros_domain: int, tmp_path: Path):
    async def visitor(browser: Browser) -> None:
        await browser.until(lambda: browser.words('narration', 0) and browser.words('narration', 1))
        await browser.watch(1)
        await browser.until(lambda: browser.frames and browser.frames[-1][0] == 1)
        assert (await browser.ask('ask', 'Is it there?', tab=1))['done'] is True
        await browser.until(lambda: browser.of('question', 1))
        stream = browser.of('question', 1)[0]['stream']
        await browser.until(lambda: browser.words(stream, 1) == 'Is it there? ')
        assert not browser.words(stream, 0)
    cameras = NarratorProcess(tmp_path / 'narrator.txt', 'cameras:=[front, rear]', 'model:=fake',
                              command=SHARED)
    with cameras, filming('front/image'), filming('rear/image'):
        with page(tmp_path, "narrators:='narrator/front narrator/rear'") as (_, url):
            visit(url, visitor)


def test_a_narrator_that_is_killed_is_lost_and_one_that_comes_back_goes_on(
        ros_domain: int, tmp_path: Path):
    with page(tmp_path) as (_, url), filming():
        async def early(browser: Browser) -> None:
            await browser.until(lambda: browser.of('pulse'))
            assert browser.of('pulse')[-1]['here'] is False
            reply = await browser.ask_once('ask', 'Anyone?')
            assert reply['done'] is False and reply['words'] == '/narrator is not there'
        visit(url, early)

        async def visitor(browser: Browser) -> None:
            with NarratorProcess(tmp_path / 'first.txt') as first:
                await browser.until(lambda: browser.words('narration'))
                await browser.until(lambda: browser.of('pulse')[-1]['here'])
                await browser.until(lambda: browser.of('health'))
                first.process.send_signal(signal.SIGKILL)
                first.process.wait()
            await browser.until(lambda: not browser.of('pulse')[-1]['here'])
            before = len(browser.told)
            with NarratorProcess(tmp_path / 'second.txt'):
                await browser.until(lambda: 'text' in [m['kind'] for m in browser.told[before:]])
                await browser.until(lambda: browser.of('pulse')[-1]['here'])
        visit(url, visitor)


def test_one_that_is_silent_is_lost_though_it_is_still_in_the_graph_of_ros(
        monkeypatch: pytest.MonkeyPatch):
    """As one that was killed is for 20 s."""
    now_s = 0.0
    monkeypatch.setattr(page_module, 'time', SimpleNamespace(
        monotonic=lambda: now_s, monotonic_ns=lambda: 0))
    told: list[bool] = []
    node = MagicMock(values=dict(frame_rate=10.0))
    node.resolve_topic_name.side_effect = lambda name: f'/{name}'
    node.count_publishers.return_value = 1
    node.feed.publish.side_effect = lambda tab, kind, here=None, **_: (
        told.append(here) if kind == 'pulse' else None)
    tab = page_module.LiveTab(node, 'narrator', '')
    tab.look()
    for _ in range(3):
        now_s += 4.0
        tab.judge(DiagnosticArray(status=[DiagnosticStatus(name='narrator: camera', level=b'\0')]))
        tab.look()
    for pause_s in (11.0, 2.0):
        now_s += pause_s
        tab.look()
    assert told == [True] * 5 + [False], 'three times as long as between what it says'


def test_a_thousand_messages_a_second_delay_no_publisher(ros_domain: int, tmp_path: Path):
    """With a page that is read, with a browser that reads nothing, and with a page that hangs."""
    def talk(seconds: float) -> list[float]:
        """Publish 1,000 texts a second, as a narrator would; return how long each took [s]."""
        took = []
        begun = time.perf_counter()
        for number in range(round(1000 * seconds)):
            time.sleep(max(0.0, begun + number / 1000 - time.perf_counter()))
            before = time.perf_counter()
            publisher.publish(TextChunk(stream_id='narration', seq=number, delta=f' word {number}'))
            took.append(time.perf_counter() - before)
        return took

    async def visitor(browser: Browser) -> None:
        talking = threading.Thread(target=lambda: took.extend(talk(2.0)))
        talking.start()
        await browser.until(lambda: browser.words('narration').endswith(' word 1999'))
        talking.join()

    took: list[float] = []
    with page(tmp_path) as (node, url), probing('/page') as probe:
        publisher = probe.node.create_publisher(TextChunk, 'narrator/caption', 256)
        wait_until(publisher.get_subscription_count)
        probe.meet()
        visit(url, visitor)
        before = memory(node)
        node.process.send_signal(signal.SIGSTOP)
        try:
            hanging = talk(1.0)
        finally:
            node.process.send_signal(signal.SIGCONT)
        talk(1.0)
        assert memory(node) < before + 30e6
    for durations in (took, hanging):
        typical, most, worst = (1e3 * d for d in np.percentile(durations, [50, 95, 100]))
        print(f'one of 1,000 messages a second is published in {typical:.2f} ms, 95 % in less than '
              f'{most:.2f} ms, all in {worst:.1f} ms')
        # Those that had to wait for the page, all but the first 256, would take 100 ms each.
        assert typical < 50


def memory(node: NarratorProcess) -> int:
    return resident_bytes(node.process.pid)


def test_an_hour_of_browsers_that_reload_each_minute_leaks_nothing(ros_domain: int, tmp_path: Path):
    """Without waiting for the minutes, unless PAGE_MINUTE says how long one is [s]."""
    minute_s = float(os.environ.get('PAGE_MINUTE', '0'))
    at_once = 1 if minute_s else 5

    async def visitor(browser: Browser) -> None:
        end_s = time.monotonic() + minute_s
        await browser.until(lambda: len(browser.frames) > 1)
        while time.monotonic() < end_s:
            browser.frames.clear()
            await browser.until(lambda: browser.frames)
    with NarratorProcess(tmp_path / 'narrator.txt'), page(tmp_path) as (node, url), filming():
        def held() -> list[int]:
            own = Path(f'/proc/{node.process.pid}')
            return [len(list((own / what).iterdir())) for what in ('fd', 'task')]

        visit(url, *[visitor] * 10, at_once=at_once)
        before, held_before = memory(node), held()
        visit(url, *[visitor] * 50, at_once=at_once)
        wait_until(lambda: held() <= held_before)
        after = memory(node)
        print(f'after 10 and after 60 browsers: {before / 1e6:.1f} and {after / 1e6:.1f} MB, '
              f'descriptors and threads {held_before} and {held()}')
        assert after < before + 8e6


# Recorded runs.

def recorded(folder: Path, **instead: object) -> Path:
    """Write a run of two words, a step and an answer."""
    record = DemoRecord('builtin', 'scene 7', start_ns=10 ** 18, scene=dict(
        seed=7, seconds=30.0, difficulty='normal', max_objects=2))
    begun_s = record.start_ns / 1e9
    text = dict(kind='text', stream='narration', sentence='', end=False)
    record.heard = [
        dict(text, seq=0, delta='A red', seen=begun_s, at=begun_s + 0.3),
        dict(kind='step', video=0, step=0, captured=begun_s + 0.1, started=begun_s + 0.12,
             perceived=begun_s + 0.2, first=begun_s + 0.25, overlap=0.5),
        dict(text, seq=1, delta=' one.', sentence='A red one.', seen=begun_s, at=begun_s + 0.6),
        dict(text, stream='q1', seq=0, delta='One.', end='stop', seen=begun_s, at=begun_s + 0.8)]
    record.exchanges = [Exchange('How many?', question_id='q1', asked_ns=10 ** 18 + 10 ** 8)]
    path = folder / 'run.json'
    path.write_text(json.dumps(summarize(record) | instead))
    return path


def test_a_run_is_recorded_in_order_with_times_since_its_beginning(tmp_path: Path):
    run = Recording.read(recorded(tmp_path))
    assert [m['kind'] for m in run.between(-1, 9)] == ['question', 'step', 'text', 'text', 'text']
    assert [m['delta'] for m in run.between(0.3, 0.6)] == [' one.']
    assert run.seconds == pytest.approx(0.8, abs=1e-3) and run.frame(0.5).shape == (336, 336, 3)
    assert run.between(-1, 9)[1]['first'] == pytest.approx(0.25, abs=1e-3)


def test_a_run_from_before_the_page_was_there_has_its_sentences_and_answers():
    path = Path(__file__).parents[1] / 'docs/benchmarks/demo.json'
    summary = json.loads(path.read_text())
    run = Recording(summary | dict(run=None))
    texts = [m for m in run.between(-1, 99) if m['kind'] == 'text']
    assert [m['delta'] for m in texts if m['stream'] == 'narration'] == [
        line['text'] for line in summary['narration']]
    assert [m['text'] for m in run.between(-1, 99) if m['kind'] == 'question'] == [
        one['question'] for one in summary['answers']]


def test_a_recorded_run_is_replayed_without_a_robot(ros_domain: int, tmp_path: Path):
    async def visitor(browser: Browser) -> None:
        await browser.until(lambda: browser.words('q1') == 'One.' and browser.frames)
        assert browser.of('hello')[0]['tabs'] == ['scene 7']
        assert browser.words('narration') == 'A red one.'
        assert (await browser.ask('ask', 'Why?'))['words'].startswith('this run is recorded')
        assert (await browser.ask('pause', 'on'))['done'] is True
        assert browser.camera['words'] == 'paused'
        await browser.ask('reset'), await browser.ask('pause', 'off')
        await browser.until(lambda: browser.words('narration') == 'A red one.' * 2)
    with page(tmp_path, f'run:={recorded(tmp_path)}') as (_, url):
        visit(url, visitor)


@pytest.mark.parametrize('content', [
    None, 'no json', '[]', '{}', '{"source": "x", "run": [{"kind": "text"}], "frames": null}'])
def test_what_is_no_recorded_run_ends_the_node_in_one_line(
        ros_domain: int, tmp_path: Path, content: str | None):
    path = tmp_path / 'run.json'
    if content is not None:
        path.write_text(content)
    with NarratorProcess(tmp_path / 'page.txt', f'run:={path}', command=PAGE) as node:
        assert node.process.wait(PATIENCE_S) == 1
        assert 'run.json is no run that `scripts/demo --json` has recorded' in node.log
        assert 'Traceback' not in node.log


def test_topics_that_do_not_match_the_narrators_end_the_node_in_one_line(
        ros_domain: int, tmp_path: Path):
    with NarratorProcess(tmp_path / 'page.txt', "images:='/a /b'", command=PAGE) as node:
        assert node.process.wait(PATIENCE_S) == 1
        assert 'images must be 1 topics, one for each narrator, not 2' in node.log
