"""The benchmark of the decode step measures what it says, on a model that takes no time."""

from argparse import Namespace

from sww_ros.benchmark.step import ANSWERS, ROWS, report
from sww_ros.evaluation.random_model import SMALL, random_checkpoint


def test_all_cases_are_measured():
    found = report(random_checkpoint(SMALL, 0)[1], Namespace(context=20, own=3, repeats=1))
    assert list(found['beside']) == list(ANSWERS)
    steps = found['steps']
    assert set(steps) == {'one lane alone', 'narration', 'framework', *(
        f'narration and {n} answers' for n in ANSWERS), *(f'{n} rows' for n in ROWS)}
    assert all(0 < entry['min_ms'] <= entry['median_ms'] for entry in steps.values())
    assert steps['one lane alone']['operators'] < steps['narration']['operators']
    assert steps['framework']['operators'] == steps['narration']['operators']
