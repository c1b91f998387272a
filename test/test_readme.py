"""The README says what was measured: every figure comes from a committed JSON."""

from pathlib import Path
import re

from experiments.figures import OTHER_CLOCK, differences, ours, pool_rows, rows, theirs

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / 'README.md').read_text()


def test_the_table_is_that_of_the_measurements():
    for row in rows():
        assert row in README, 'run python -m experiments.figures and paste the table'


def test_the_commands_it_names_are_there():
    for command in re.findall(r'scripts/\w+', README):
        assert (ROOT / command).exists(), command


def test_the_tables_of_pools_are_those_of_the_measurements():
    page = (ROOT / 'docs/scale.md').read_text()
    for row in pool_rows():
        assert row in page, 'run python -m experiments.figures and paste the tables'


def test_the_papers_tables_are_those_of_the_measurements():
    page = (ROOT / 'docs/paper.md').read_text()
    for table in (1, 2):
        for line in (*ours(table), *differences(table), *theirs(table)):
            assert line in page, 'run python -m experiments.figures and paste the tables'
    for line in (*ours(OTHER_CLOCK), *differences(OTHER_CLOCK)):
        assert line in page, 'run python -m experiments.figures and paste the tables'
