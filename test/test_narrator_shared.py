"""Narrators in processes of their own that share an engine by its name."""

from collections.abc import Iterator
import os
from pathlib import Path
import signal
import sys

from narrator_harness import NarratorProcess, Probe, children, is_gone, picture, probing
import pytest
from test_narrator_cameras import FAKE, numbers
from waiting import PATIENCE_S, wait_until

from sww_ros.engine.shared import KEEPER
from sww_ros.models.loading import builtin_path

NAME = 'shared'
SIDES = ('left', 'right')


def narrator_of(side: str, folder: Path, *parameters: str, model: str = 'fake',
                command: list[str] | None = None) -> NarratorProcess:
    return NarratorProcess(
        folder / f'{side}.txt', f'engine:={NAME}', f'model:={model}', *parameters,
        command=command or FAKE, arguments=('-r', f'__ns:=/{side}'))


@pytest.fixture
def narrators(ros_domain: int, tmp_path: Path) -> Iterator[tuple[NarratorProcess, NarratorProcess]]:
    with narrator_of('left', tmp_path) as left, narrator_of('right', tmp_path) as right:
        for side, narrator in zip(SIDES, (left, right)):
            narrator.wait_log(f'watching /{side}/image')
        yield left, right


@pytest.fixture
def probes(narrators: tuple[NarratorProcess, NarratorProcess]) -> Iterator[tuple[Probe, Probe]]:
    with probing('/left/narrator') as left, probing('/right/narrator') as right:
        yield left, right


def film(probe: Probe, captions: int) -> None:
    """Publish frames of a narrator's own camera until so many more captions have come."""
    side, due = probe.narrator.split('/')[1], len(probe.captions) + captions
    probe.film(picture, lambda: len(probe.captions) >= due, f'/{side}/image')


def keepers(domain: int) -> list[int]:
    """Return the processes that keep an engine of this name in the domain."""
    found = []
    for folder in Path('/proc').glob('[0-9]*'):
        try:
            words = (folder / 'cmdline').read_bytes().split(b'\0')
        except OSError:  # It has just ended.
            continue
        if KEEPER.encode() in words and any(
                word.endswith(f'/{domain}-{NAME}'.encode()) for word in words):
            found.append(int(folder.name))
    return [pid for pid in found if not is_gone(pid)]


def engine_of(domain: int) -> int:
    keeper, = keepers(domain)
    engine, = (pid for pid in children(keeper) if not is_gone(pid))
    return engine


def test_two_narrators_share_an_engine_that_ends_with_the_last(
        ros_domain: int, narrators: tuple[NarratorProcess, NarratorProcess],
        probes: tuple[Probe, Probe]):
    engine = engine_of(ros_domain)
    for probe in probes:
        film(probe, 3)
    assert not any(narrator.children() for narrator in narrators)
    narrators[0].process.kill()  # However it ends.
    narrators[0].process.wait()
    right = probes[1]
    film(right, 6)
    assert right.ask('what is it?', wait=True).answer == 'what is it?'
    assert numbers(right) == list(range(len(right.captions)))
    assert engine_of(ros_domain) == engine
    assert 'SIGKILL' not in narrators[1].log
    assert narrators[1].stop() == 0
    assert is_gone(engine)
    wait_until(lambda: not keepers(ros_domain))


def test_it_ends_with_narrators_that_are_killed(
        ros_domain: int, narrators: tuple[NarratorProcess, NarratorProcess]):
    engine = engine_of(ros_domain)
    for narrator in narrators:
        narrator.process.kill()
    wait_until(lambda: is_gone(engine) and not keepers(ros_domain))


def test_an_engine_that_is_killed_comes_back_for_both(
        ros_domain: int, narrators: tuple[NarratorProcess, NarratorProcess],
        probes: tuple[Probe, Probe]):
    for probe in probes:
        film(probe, 3)
    engine = engine_of(ros_domain)
    os.kill(engine, signal.SIGKILL)
    for narrator in narrators:
        wait_until(lambda narrator=narrator: narrator.log.count('the model fake runs on') == 2,
                   PATIENCE_S, lambda narrator=narrator: narrator.log)
        assert f'the engine (process {engine}) was killed by SIGKILL' in narrator.log
    for probe in probes:
        film(probe, 3)
        assert numbers(probe) == list(range(len(probe.captions)))
    assert engine_of(ros_domain) != engine
    assert [narrator.stop() for narrator in narrators] == [0, 0]


def test_another_model_is_refused_in_words(
        ros_domain: int, tmp_path: Path, narrators: tuple[NarratorProcess, NarratorProcess]):
    engine = engine_of(ros_domain)
    with narrator_of('third', tmp_path, model='other') as third:
        assert third.process.wait(PATIENCE_S) == 1
        assert "this engine runs the model 'fake', not 'other'" in third.log
    assert engine_of(ros_domain) == engine


def test_several_cameras_may_share_it_too(ros_domain: int, tmp_path: Path):
    with narrator_of('left', tmp_path, 'cameras:=[front, rear]') as left, \
            narrator_of('right', tmp_path) as right:
        left.wait_log('watching /left/rear/image')
        right.wait_log('watching /right/image')
        engine_of(ros_domain)
        assert [narrator.stop() for narrator in (left, right)] == [0, 0]


def test_a_name_that_cannot_be_is_refused(ros_domain: int, tmp_path: Path):
    with NarratorProcess(tmp_path / 'log.txt', 'engine:=2nd', command=FAKE) as narrator:
        assert narrator.process.wait(PATIENCE_S) == 1
        assert "engine: '2nd' cannot be the name of an engine" in narrator.log


def test_the_built_in_watches_by_an_engine_that_is_shared(ros_domain: int, tmp_path: Path):
    """The engine that a robot runs; each names the model in its own way."""
    folder = builtin_path()
    command = [sys.executable, '-m', 'sww_ros.nodes.narrator']
    with narrator_of('left', tmp_path, 'overlap:=fused', model=str(folder), command=command) as \
            left, narrator_of('right', tmp_path, 'overlap:=fused', command=command,
                              model=f'{folder.parent}/../models/{folder.name}') as right:
        for side, narrator in zip(SIDES, (left, right)):
            narrator.wait_log(f'watching /{side}/image')
        engine_of(ros_domain)
        assert [narrator.stop() for narrator in (left, right)] == [0, 0]
