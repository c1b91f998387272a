"""The short form of `python -m sww_ros.shapes.endurance`: nothing grows over hand-overs."""

import json
from pathlib import Path
import subprocess
import sys

from sww_ros.shapes.endurance import TURNS

ROOT = Path(__file__).resolve().parents[1]


def test_a_video_of_many_streams_costs_no_more_than_one_of_few(tmp_path: Path):
    file = tmp_path / 'endurance.json'
    subprocess.run([sys.executable, '-m', 'sww_ros.shapes.endurance', '--steps', '1500', '--json',
                    str(file)], cwd=ROOT, check=True)
    result = json.loads(file.read_text())
    summary = result['summary']
    assert summary['steps'] == 1500 and summary['overlap'] == 'processes'
    assert summary['hand_overs'] >= 1400 // (summary['capacity'] - summary['memory'])
    assert summary['sentences'] > 150
    # How fast it is says nothing while other tests run; of the libraries that it shares with them
    # more is its own as they end. One lane kept at each hand-over would be a quarter.
    assert abs(summary['rss_drift']) <= 0.15
    # Six streams are a tenth; which of all has the most words is chance.
    assert summary['largest_position'] <= 1.1 * summary['largest_position_of_first_tenth']
    assert {len(values) for name, values in result['series'].items() if name != 'every'} == {
        1500 // result['series']['every']}
    beside = result['beside_fresh']
    assert {len(values) for values in beside['p99_ms'].values()} == {TURNS}
    assert beside['steps_a_turn'] == 15


def test_the_100000_steps_that_are_told_of_cost_the_last_as_the_first():
    result = json.loads((ROOT / 'docs/results/endurance.json').read_text())
    summary = result['summary']
    assert summary['steps'] == 100_000 and summary['hand_overs'] > 3000
    assert abs(summary['rss_drift']) <= 0.01 and summary['p99_drift_beside_fresh'] <= 0.05
    assert summary['largest_position'] <= 1.1 * summary['largest_position_of_first_tenth']
    # docs/reliability.md says what was measured.
    page = (ROOT / 'docs/reliability.md').read_text()
    p99 = result['series']['p99_ms']
    for told in (f'memory is {summary["rss_drift"]:.1%}', f'{summary["p99_first_tenth_ms"]:g} ms',
                 f'{summary["p99_last_tenth_ms"]:g} ms', f'position {summary["largest_position"]}',
                 f'is {summary["p99_drift_beside_fresh"]:.1%}',
                 f'between {min(p99):.0f} and {max(p99):.0f} ms'):
        assert told.replace('%', ' %') in ' '.join(page.split()), told
