"""A narrator with several cameras: a part for each, one engine for all."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
import os
from pathlib import Path
import signal
import sys
import time

from diagnostic_msgs.msg import DiagnosticArray
from fake_session import ENGINE
from narrator_harness import NarratorProcess, Probe, picture, probing, stamp_of
import pytest
from sensor_msgs.msg import Image
from std_srvs.srv import SetBool, Trigger
from waiting import PATIENCE_S, wait_until

from sww_interfaces.msg import TextChunk
from sww_ros.nodes import camera_names
from sww_ros.shapes.render import Renderer
from sww_ros.shapes.scene import generate

FAKE = [sys.executable, '-c',
        f'from sww_ros.nodes.narrator import main; main(session={ENGINE!r})']


def watching(camera: str) -> AbstractContextManager[Probe]:
    return probing(f'/narrator/{camera}', named='/narrator')


@pytest.fixture
def narrator(ros_domain: int, tmp_path: Path) -> Iterator[NarratorProcess]:
    with NarratorProcess(tmp_path / 'log.txt', 'cameras:=[front, rear]', 'model:=fake',
                         command=FAKE) as narrator:
        yield narrator


@pytest.fixture
def probes(narrator: NarratorProcess) -> Iterator[tuple[Probe, Probe]]:
    with watching('front') as front, watching('rear') as rear:
        narrator.wait_log('watching /rear/image')
        yield front, rear


def film(probe: Probe, captions: int, make: Callable[[], Image] = picture,
         counts: Callable[[TextChunk], object] = lambda chunk: True) -> None:
    """Publish frames of a probe's own camera until so many more captions that count have come."""
    name, before = probe.narrator.rpartition('/')[2], len(probe.captions)
    probe.film(make, lambda: sum(map(bool, map(counts, probe.captions[before:]))) >= captions,
               f'{name}/image')


def numbers(probe: Probe) -> list[int]:
    return [chunk.seq for chunk in list(probe.captions)]


def test_each_camera_has_its_own_words_and_all_share_one_engine(
        narrator: NarratorProcess, probes: tuple[Probe, Probe]):
    front, rear = probes
    film(front, 6)
    assert not rear.captions
    assert rear.ask('what?').reason.startswith('nothing has been seen yet')
    assert front.ask('what is it?', wait=True).answer == 'what is it?'
    film(rear, 3)
    assert numbers(rear) == list(range(len(rear.captions)))
    assert numbers(front) == list(range(len(front.captions)))
    assert len(narrator.children()) == 1
    assert narrator.log.count('[narrator.front]: watching /front/image') == 1


def test_one_may_be_paused_or_reset_while_the_others_go_on(probes: tuple[Probe, Probe]):
    front, rear = probes
    film(front, 3)
    film(rear, 3)
    assert front.call(SetBool, 'pause', data=True).message == 'paused'
    assert rear.call(Trigger, 'reset').success
    film(rear, 6)
    unseen = front.publish(picture(), 'front/image')
    film(rear, 3)
    assert any(chunk.finish_reason == 'reset' for chunk in rear.captions)
    assert not any(chunk.is_final for chunk in front.captions)
    assert front.call(SetBool, 'pause', data=False).message == 'watching'
    film(front, 3)
    assert unseen not in [stamp_of(chunk) for chunk in front.captions]


def test_an_engine_that_is_killed_comes_back_for_all(
        narrator: NarratorProcess, probes: tuple[Probe, Probe]):
    for probe in probes:
        film(probe, 3)
    before = narrator.children()
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: narrator.log.count('the model fake runs on') == 4, PATIENCE_S,
               lambda: narrator.log)
    for probe in probes:
        film(probe, 3)
        assert numbers(probe) == list(range(len(probe.captions)))
    after = narrator.children()
    assert len(after) == 1 and after != before
    assert narrator.stop() == 0


def test_diagnostics_tell_of_each_camera(probes: tuple[Probe, Probe]):
    front, _ = probes
    told = front.listen(DiagnosticArray, '/diagnostics', [])
    film(front, 3)
    wait_until(lambda: told and any(
        status.name == 'narrator/front: camera' and status.message == 'frames come'
        or status.message.startswith('slower') for status in told[-1].status))
    assert [status.name for status in told[-1].status] == [
        f'narrator/{camera}: {part}' for camera in ('front', 'rear')
        for part in ('engine', 'camera', 'speech')]


def test_the_built_in_watches_two_cameras(ros_domain: int, tmp_path: Path):
    """The engine that a robot runs, not a fake one."""
    with NarratorProcess(tmp_path / 'log.txt', 'cameras:=front, rear', 'overlap:=fused',
                         command=[sys.executable, '-m', 'sww_ros.nodes.narrator']) as narrator, \
            watching('front') as front, watching('rear') as rear:
        narrator.wait_log('watching /rear/image')
        scene, began_s = Renderer(generate(7), 336, 336), time.monotonic()

        def seen() -> Image:
            pixels = scene.frame(time.monotonic() - began_s)
            return Image(height=336, width=336, encoding='rgb8', step=3 * 336,
                         data=pixels.tobytes())

        for probe in (front, rear):
            film(probe, 1, seen, lambda chunk: chunk.sentence)
        assert front.ask('How many shapes are there?', wait=True).complete
        assert len(narrator.children()) == 1
        assert narrator.stop() == 0 and 'Traceback' not in narrator.log


@pytest.mark.parametrize('cameras, words', [
    ('[front, 2nd]', "cameras: '2nd' cannot be a part of a topic"),
    ('[front, front]', "cameras: 'front' comes twice"),
    ('7', 'cameras must be a string, not 7')])
def test_names_that_cannot_be_are_refused(
        ros_domain: int, tmp_path: Path, cameras: str, words: str):
    with NarratorProcess(tmp_path / 'log.txt', f'cameras:={cameras}', command=FAKE) as narrator:
        assert narrator.process.wait(PATIENCE_S) == 1
        assert words in narrator.log


def test_names_are_read_as_a_list_is_written():
    assert camera_names('') == camera_names('[]') == []
    assert camera_names('front') == ['front']
    assert camera_names('[front, rear_2]') == camera_names('front,rear_2') == ['front', 'rear_2']
