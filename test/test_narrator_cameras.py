"""A narrator with several cameras: a part for each, one engine for all."""

from collections.abc import Iterator
import os
from pathlib import Path
import signal
import sys

from diagnostic_msgs.msg import DiagnosticArray
from fake_session import ENGINE
from narrator_harness import (
    PATIENCE_S,
    NarratorProcess,
    Probe,
    picture,
    probing,
    wait_until,
)
import pytest
from std_srvs.srv import SetBool, Trigger

from sww_ros.nodes import camera_names

FAKE = [sys.executable, '-c',
        f'from sww_ros.nodes.narrator import main; main(session={ENGINE!r})']


@pytest.fixture
def narrator(ros_domain: int, tmp_path: Path) -> Iterator[NarratorProcess]:
    with NarratorProcess(tmp_path / 'log.txt', 'cameras:=[front, rear]', 'model:=fake',
                         command=FAKE) as narrator:
        yield narrator


@pytest.fixture
def probes(narrator: NarratorProcess) -> Iterator[tuple[Probe, Probe]]:
    with probing('/narrator/front') as front, probing('/narrator/rear') as rear:
        narrator.wait_log('watching /rear/image')
        yield front, rear


def film(probe: Probe, captions: int) -> None:
    """Publish frames of a probe's own camera until so many more captions have come."""
    name, due = probe.narrator.rpartition('/')[2], len(probe.captions) + captions
    probe.film(picture, lambda: len(probe.captions) >= due, f'{name}/image')


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
    heard = len(front.captions)
    film(rear, 6)
    front.publish(picture(), 'front/image')
    film(rear, 3)
    assert len(front.captions) == heard
    assert any(chunk.finish_reason == 'reset' for chunk in rear.captions)
    assert not any(chunk.is_final for chunk in front.captions)
    assert front.call(SetBool, 'pause', data=False).message == 'watching'
    film(front, 3)


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
