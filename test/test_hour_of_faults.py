"""The short form of `python -m experiments.faults`: each kind of fault once, without a pause."""

import json
from pathlib import Path
import subprocess
import sys

import pytest

from experiments.faults import broken, first_after, kinds

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.timeout(600)
def test_the_narrator_outlives_every_kind_of_fault(ros_domain: int, tmp_path: Path):
    file = tmp_path / 'faults.json'
    run = subprocess.run(
        [sys.executable, '-m', 'experiments.faults', '--every', '0', '--outage', '4', '--json',
         str(file)], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert file.exists(), run.stdout
    result = json.loads(file.read_text())
    assert sorted(entry['fault'] for entry in result['faults']) == sorted(kinds())
    # Memory and threads grow with the first faults of each kind, and then no more: an hour shows.
    assert set(broken(result['summary'])) <= {'leaked_rss_mib', 'leaked_threads'}, run.stdout
    assert result['summary']['leaked_rss_mib'] < 64 and result['summary']['leaked_threads'] < 32
    assert len(file.with_suffix('.log').read_text().splitlines()) == len(kinds())


def test_what_was_said_of_a_stamp_before_it_came_again_is_no_recovery():
    # Stamp 7 was sent at 10 s; the clock went back, and it came again at 50 s.
    sent_s = {7: 50.0, 8: 51.0}
    assert first_after([(7, 20.0)], sent_s, since_s=40.0) is None
    assert first_after([(7, 20.0), (8, 51.5), (7, 52.0)], sent_s, since_s=40.0) == 11.5


def test_after_the_hour_that_is_told_of_nothing_was_left_or_lost():
    result = json.loads((ROOT / 'docs/results/faults.json').read_text())
    summary = result['summary']
    assert broken(summary) == [] and summary['minutes'] >= 60 and summary['faults'] >= 60
    assert {entry['fault'] for entry in result['faults']} == set(kinds())
    # docs/reliability.md says how long it took.
    quick = sum(entry['recovery_s'] < 10 for entry in result['faults'])
    page = (ROOT / 'docs/reliability.md').read_text()
    assert f'{quick} of {summary["faults"]} faults within 10 s' in page
    assert f'the slowest in {summary["slowest_recovery_s"]:g} s' in page
