"""A narrator that sees nothing, or not what it should, says so in /diagnostics and in the log."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import itertools
import os
from pathlib import Path
import signal

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from narrator_harness import NarratorProcess, Probe, picture, probing
import pytest
from sensor_msgs.msg import CompressedImage, Image
from waiting import wait_until

from sww_ros.nodes.diagnostics import ERROR, WARN

SELDOM = 3
"""Lines about one trouble: one in 30 s, while it is found five times a second."""


@contextmanager
def watched(tmp_path: Path, *parameters: str) -> Iterator[tuple[NarratorProcess, Probe, list]]:
    """Start a narrator; yield it, a probe, and a list of what it says of its camera."""
    with NarratorProcess(tmp_path / 'log.txt', 'diagnostics_period:=0.2', 'camera_timeout:=1.0',
                         *(parameters or ['model:=fake'])) as narrator, probing() as probe:
        narrator.wait_log('watching /image')
        yield narrator, probe, probe.listen(DiagnosticArray, '/diagnostics', [])
        assert 'Traceback' not in narrator.log


def camera(diagnostics: list) -> DiagnosticStatus:
    return next((status for message in diagnostics[-1:] for status in message.status
                 if status.name == 'narrator: camera'), DiagnosticStatus())


def film_until(probe: Probe, diagnostics: list, make: Callable[[], Image], level: bytes,
               words: str, topic: str = 'image') -> None:
    probe.film(make, lambda: camera(diagnostics).level == level
               and words in camera(diagnostics).message, topic)


def truncated() -> Image:
    image = picture()
    image.data = image.data[:-1]
    return image


def stamped(make_ns: Callable[[int], int], probe: Probe) -> Callable[[], Image]:
    """Return what makes pictures whose stamp is made of the time [ns]."""
    def make() -> Image:
        image = picture()
        image.header.frame_id = 'eye'
        stamp_ns = make_ns(probe.node.get_clock().now().nanoseconds)
        image.header.stamp.sec, image.header.stamp.nanosec = divmod(stamp_ns, 1_000_000_000)
        return image
    return make


def test_frames_that_cannot_be_read(ros_domain: int, tmp_path: Path):
    with watched(tmp_path) as (narrator, probe, diagnostics):
        film_until(probe, diagnostics, truncated, ERROR, 'could not be read')
        narrator.wait_log('could not be read in the last')
        # Some are good: it sees, though not all.
        kinds = itertools.cycle([truncated, picture, picture])
        film_until(probe, diagnostics, lambda: next(kinds)(), WARN, 'could not be read')


def test_stamps_that_stand_still(ros_domain: int, tmp_path: Path):
    with watched(tmp_path) as (narrator, probe, diagnostics):
        film_until(probe, diagnostics, stamped(lambda now: 1_700_000_000_000_000_000, probe),
                   ERROR, 'the stamps stand still')
        narrator.wait_log('must stamp each frame')
        values = {value.key: int(value.value) for value in camera(diagnostics).values
                  if value.key.startswith('frames')}
        assert values['frames dropped (stamp)'] >= 1
        assert 'frames dropped (rate)' not in values
        assert narrator.log.count('the stamps stand still') <= SELDOM


def test_a_model_that_is_slower_than_the_camera(ros_domain: int, tmp_path: Path):
    with watched(tmp_path, 'model:=lagging') as (narrator, probe, diagnostics):
        film_until(probe, diagnostics, picture, WARN, 'the model is too slow')
        narrator.wait_log('smaller model')
        assert narrator.log.count('the model is too slow') <= SELDOM


@pytest.mark.parametrize('hours, words', [(1, 'ahead of'), (-1, 'behind')])
def test_stamps_of_another_clock(ros_domain: int, tmp_path: Path, hours: int, words: str):
    with watched(tmp_path) as (narrator, probe, diagnostics):
        shift = hours * 3600 * 1_000_000_000
        film_until(probe, diagnostics, stamped(lambda now: now + shift, probe), WARN,
                   f'3600 s {words} the clock')
        narrator.wait_log('use_sim_time')
        assert narrator.log.count(f'{words} the clock') <= SELDOM


@pytest.mark.parametrize('awaited, published, topic', [
    ('raw', CompressedImage, 'image/compressed'), ('compressed', Image, 'image')])
def test_the_other_transport_is_published(
        ros_domain: int, tmp_path: Path, awaited: str, published: type, topic: str):
    with watched(tmp_path, 'model:=fake',
                 f'image_transport:={awaited}') as (narrator, probe, diagnostics):
        probe.node.create_publisher(published, topic, 1)
        other = 'compressed' if awaited == 'raw' else 'raw'
        hint = f"/{topic} is published: set image_transport to '{other}'"
        narrator.wait_log(hint)
        wait_until(lambda: hint in camera(diagnostics).message)
        assert camera(diagnostics).level == ERROR


def test_without_diagnostics_the_log_still_tells(ros_domain: int, tmp_path: Path):
    with watched(tmp_path, 'model:=lagging', 'diagnostics_period:=0.0') as (narrator, probe, _):
        probe.film(picture, lambda: 'the model is too slow' in narrator.log)


def test_an_engine_that_hangs(ros_domain: int, tmp_path: Path):
    with watched(tmp_path) as (narrator, probe, diagnostics):
        engine, = narrator.children()
        os.kill(engine, signal.SIGSTOP)
        try:
            film_until(probe, diagnostics, lambda: picture(480, 640), ERROR,
                       'nothing is perceived')
            narrator.wait_log('the engine hangs')
        finally:
            os.kill(engine, signal.SIGCONT)
