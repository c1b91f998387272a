"""The short form of `python -m sww_ros.shapes.endurance`: nothing grows over hand-overs."""

import json
from pathlib import Path
import subprocess
import sys

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
    # How fast it is says nothing while other tests run.
    assert abs(summary['rss_drift']) <= 0.05
    # Six streams are a tenth; which of all has the most words is chance.
    assert summary['largest_position'] <= 1.1 * summary['largest_position_of_first_tenth']
    assert {len(values) for name, values in result['series'].items() if name != 'every'} == {
        1500 // result['series']['every']}
