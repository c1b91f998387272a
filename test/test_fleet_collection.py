"""Collections on a Ray cluster: the same as from one process; what fails is told at the end."""

from __future__ import annotations

from collections.abc import Iterator
import json
import os
from pathlib import Path
import sys

from narrate_kit import QUESTION, camera, checkpoint, narrate, pictures, write_bag
import pytest

from sww_ros.evaluation.__main__ import main as evaluate
from sww_ros.fleet.collection import Lost, work_off

__all__ = ['checkpoint', 'narrate', 'pictures']
CLIPS = Path(__file__).parent / 'data/clips'


@pytest.fixture(scope='module')
def cluster() -> Iterator[None]:
    """A cluster of this machine alone, of two cores whatever it has."""
    ray = pytest.importorskip('ray', reason='Ray is not installed: requirements/fleet.txt')
    # Workers are processes that import all anew: they may take as many threads as tests do.
    ray.init(address='local', num_cpus=2, include_dashboard=False, object_store_memory=100_000_000,
             log_to_driver=False, logging_level='error')
    yield
    ray.shutdown()


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_what_fails_or_dies_is_told_and_the_others_go_on(cluster, tmp_path, monkeypatch):
    """Workers come to where this process is; one that dies is made anew, for one more try."""
    monkeypatch.chdir(tmp_path)

    def make():
        def work(item: int) -> int:
            with open(f'tried-{item}', 'a') as file:
                file.write('x')
            if item == 3:
                os._exit(1)
            if item == 5:
                raise RuntimeError('five is not wanted')
            return item * item

        return work

    made: list[bool] = []
    found = dict(work_off(make, range(8), ready=lambda: made.append(not Path('tried-0').exists())))
    assert made == [True]
    died, broke = found.pop(3), found.pop(5)
    assert found == {item: item * item for item in (0, 1, 2, 4, 6, 7)}
    assert isinstance(died, Lost) and isinstance(broke, Lost)
    assert broke.reason == 'RuntimeError: five is not wanted'
    assert died.reason.startswith('its worker died, twice: ')
    assert {path.name: len(path.read_text()) for path in tmp_path.iterdir()} == {
        f'tried-{item}': 2 if item == 3 else 1 for item in range(8)}


def test_workers_that_cannot_be_made_are_told_in_words(cluster):
    def make():
        raise ValueError('there is no such model')

    with pytest.raises(ValueError, match='there is no such model'):
        list(work_off(make, [1, 2], ready=lambda: pytest.fail('nothing is ready')))
    with pytest.raises(ValueError, match='has no GPU for a worker'):
        list(work_off(make, [1], gpu=True))


def test_without_ray_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(ValueError, match='--ray needs Ray: pip install -r requirements/fleet.txt'):
        list(work_off(lambda: str, [1]))


def test_a_folder_is_narrated_as_by_one_process(cluster, narrate, pictures, tmp_path, capsys):
    folder, alone, spread_out = (tmp_path / name for name in ('in', 'alone', 'ray'))
    folder.mkdir()
    write_bag(folder / 'a', camera(pictures))
    write_bag(folder / 'b', camera(pictures[20:]))
    write_bag(folder / 'c', camera(pictures[40:]))
    (folder / 'd.mkv').write_text('no video')
    (tmp_path / 'questions.txt').write_text(f'1: {QUESTION}\n')
    options = ['--as', 'jsonl', '--questions', tmp_path / 'questions.txt']
    assert narrate(folder, alone, *options) == 1
    told_alone = capsys.readouterr().err
    assert narrate(folder, spread_out, *options, '--ray') == 1
    told = capsys.readouterr()
    assert content(spread_out) == content(alone)
    assert sorted(content(alone)) == ['a.jsonl', 'b.jsonl', 'c.jsonl', 'narrate.json']
    for err in (told_alone, told.err):
        *_, summary, last = err.strip().splitlines()
        assert summary == 'error: 1 of 4 recordings could not be narrated:'
        assert last.startswith(f'  {folder / "d.mkv"}: ') and 'Invalid data' in last
    # Given again, what is there is left as it is, and no worker begun for it.
    (spread_out / 'a.jsonl').write_text('kept')
    (folder / 'd.mkv').unlink()
    assert narrate(folder, spread_out, *options, '--ray') == 0
    assert f'{spread_out / "a.jsonl"}: is there already' in capsys.readouterr().out
    assert (spread_out / 'a.jsonl').read_text() == 'kept'
    assert narrate(folder / 'a', tmp_path / 'a.vtt', '--ray') == 1
    assert '--ray is for a folder of recordings' in capsys.readouterr().err


def test_an_evaluation_has_the_figures_of_one_process(cluster, tmp_path, monkeypatch):
    lines = (CLIPS / 'pe_video.jsonl').read_text().splitlines()[:3]
    data = tmp_path / 'clips.jsonl'
    data.write_text('\n'.join([*lines, json.dumps(dict(
        json.loads(lines[0]), video='missing.mp4'))]))
    (tmp_path / 'broken.mp4').write_text('no video')
    data.write_text(data.read_text().replace('missing.mp4', str(tmp_path / 'broken.mp4')))
    for name, options in (('alone', []), ('ray', ['--ray'])):
        (tmp_path / name).mkdir()
        assert evaluate(['--data', str(data), '--video-root', str(CLIPS), '--mode', 'wait_k',
                         'random_wait_k', '--json', str(tmp_path / name / 'out.json'),
                         *options]) == 0
    assert ((tmp_path / 'ray/out.json').read_bytes() == (tmp_path / 'alone/out.json').read_bytes())
    found = json.loads((tmp_path / 'ray/out.json').read_text())['modes']['random_wait_k']
    assert found['scored'] == 3 and 'broken.mp4' in found['skipped'][0]['reason']
    assert evaluate(['--data', str(data), '--live', '--ray']) == 2
