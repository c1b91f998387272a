"""The short form of `python -m experiments.faults`: each kind of fault once, without a pause."""

import json
from pathlib import Path
import subprocess
import sys

from experiments import outages
from experiments.faults import broken, first_after, kinds

ROOT = Path(__file__).resolve().parents[1]


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
    # Memory moves up and down by some MiB with what comes at once.
    assert set(broken(summary)) <= {'leaked_rss_mib'} and summary['leaked_rss_mib'] < 16
    assert summary['minutes'] >= 60 and summary['faults'] >= 60
    assert {entry['fault'] for entry in result['faults']} == set(kinds())
    # docs/reliability.md says how long it took.
    assert all(entry['recovery_s'] < 10 for entry in result['faults'])
    page = (ROOT / 'docs/reliability.md').read_text()
    assert f'{summary["faults"]} of {summary["faults"]} faults within 10 s' in page
    before, after = (summary[f'held_{when}']['rss_mib'] for when in ('before', 'after'))
    assert f'{before} MiB after the first round and {after} MiB' in page
    assert f'the slowest in {summary["slowest_recovery_s"]:g} s' in page


def test_what_the_docs_say_of_a_pool_whose_parts_fail_was_measured():
    result = json.loads((ROOT / 'docs/results/outages.json').read_text())
    summary, ends = result['summary'], result['summary']['ends']
    assert outages.broken(result) == [] and {*summary['slowest_s']} == {*outages.kinds()}
    assert next(entry['lost'] for entry in result['faults']
                if entry['fault'] == 'replica_killed') == 4
    assert ends['stop'] + ends['error'] + ends['refused'] == summary['questions']
    page = ' '.join((ROOT / 'docs/scale.md').read_text().split())
    for said in (*(f'| {seconds:g} s' for seconds in summary['slowest_s'].values()),
                 f'Each of {summary["questions"]} questions ended: {ends["stop"]} were answered, '
                 f'{summary["answers_right"]} of them right, {ends["error"]} broken off (`error`), '
                 f'{ends["refused"]} refused',
                 f'{summary["sentences_true"]} of {summary["sentences"]} sentences were true'):
        assert said in page, said
