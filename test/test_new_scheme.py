"""
A position scheme is one class in positions.py: everything else takes it from the registry.

The scheme of this test has its text far from the video; it stands in no table of the package.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from sww_ros.evaluation.random_model import SMALL, random_checkpoint
from sww_ros.streaming import positions
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.layout import ClipShape, lay_out, main
from sww_ros.streaming.positions import SCHEMES, Start, make_scheme, position_scheme
from sww_ros.streaming.schedule import WaitK
from sww_ros.streaming.session import Session
from sww_ros.streaming.trace import replay

DOCS = Path(__file__).resolve().parents[1] / 'docs'


@pytest.fixture
def far():
    """A scheme whose texts each count from 70 on."""
    @position_scheme('far', 'from 70 on', 'each from 70 on', timed=True)
    class Far(positions._VisualGroup):
        def __init__(self, start: Start) -> None:
            super().__init__(start, 70)

    yield 'far'
    del SCHEMES['far']


def test_it_streams_and_equals_the_oracle(far):
    oracle, checkpoint = random_checkpoint(SMALL, 6, position_encoding=far)
    assert checkpoint.defaults.position_encoding == far
    frames = np.random.default_rng(0).integers(0, 256, (6, 56, 56, 3), np.uint8)
    config = SessionConfig(schedule='wait_k', record_trace=True, overlap='threads')
    with Session(checkpoint, config) as session:
        assert (session.info['position_encoding'], session.info['mismatch']) == (far, '')
        for frame in frames:
            session.feed(frame)
        assert session.wait_idle()
        trace = session.trace()
    narrated = trace.positions[:, trace.lane == 0]
    assert narrated.shape[1] >= 9
    assert (narrated == 70 + np.arange(narrated.shape[1])).all()
    assert replay(trace, oracle).differing == 0
    with Session(checkpoint, SessionConfig(position_encoding='gdpe')) as session:
        assert "position_encoding 'gdpe' but was trained with 'far'" in session.info['mismatch']


def test_it_is_laid_out(far, tmp_path, capsys):
    layout = lay_out(make_scheme(far), WaitK(3), ClipShape(4, [(2, 3)] * 2, 3, 6))
    assert layout.positions[0, -9:].tolist() == list(range(70, 79))
    file = tmp_path / 'cases.json'
    file.write_text(json.dumps([dict(prefix_tokens=6, frames=1, grid_h=2, grid_w=2, wait_k=3,
                                     assistant_prefix_start=13, answer_start=16, length=20)]))
    assert main([str(file)]) == 0
    case, = json.loads(capsys.readouterr().out)
    assert case['positions_far'][0][-7:] == list(range(70, 77))


def test_it_is_documented(far):
    assert positions.described().endswith('\n| `far` | from 70 on | no | each from 70 on |')


def test_the_schemes_of_the_docs_are_those_of_the_code():
    assert positions.described() in (DOCS / 'schemes.md').read_text()
