"""A few cases of each target of fuzz.py, the same in every run."""

import fuzz
import pytest

CASES = dict(images=300, wire=100, questions=60, checkpoints=25, settings=100, fleet=60, door=60)


@pytest.mark.parametrize('target', fuzz.TARGETS)
def test_what_nobody_means_to_send_is_refused_in_words(target: str):
    fuzz.fuzz(target, CASES[target], number=0)
