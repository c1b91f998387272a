"""
The proof: live runs equal one masked full forward of transformers' own model.

Random streams on real threads, some with disturbed timing; and the proof itself is
proved able to fail.
"""

import json
from pathlib import Path

import pytest
import torch

from sww_ros.evaluation.proof import (
    TOLERANCE,
    Subject,
    can_relay,
    kind_of,
    main,
    run_case,
    subject_of,
)
from sww_ros.models.qwen2_5_vl.language import QwenLanguage
from sww_ros.streaming.generation import TextLane
from sww_ros.streaming.rules import RULES
from sww_ros.streaming.runner import ModelRunner
from sww_ros.streaming.stream import Stream

CASES = 120


@pytest.fixture(scope='module')
def subjects() -> list[Subject]:
    return [Subject(seed, dtype) for seed in range(2) for dtype in (torch.float32, torch.float64)]


@pytest.mark.parametrize('part', range(4))
def test_live_runs_equal_the_oracle(subjects, part):
    lanes, tokens, overtaken = 0, 0, 0
    for seed in range(part * CASES // 4, (part + 1) * CASES // 4):
        subject = subject_of(subjects, seed)
        outcome = run_case(subject, seed)
        assert outcome.error <= TOLERANCE[subject.dtype], f'case {seed}: {outcome}'
        assert outcome.differing == 0, f'case {seed}: {outcome}'
        lanes = max(lanes, outcome.lanes)
        tokens += outcome.tokens
        overtaken += outcome.late_sights
    # The cases must be worth something: several speakers, new steps in the middle of a text.
    assert lanes >= 2
    assert tokens > 40
    assert overtaken > 4


@pytest.mark.parametrize('part', range(2))
def test_streams_that_relieve_one_another_equal_the_oracle(subjects, part):
    hand_overs = 0
    for seed in range(5000 + 20 * part, 5020 + 20 * part):
        subject = subject_of(subjects, seed)
        outcome = run_case(subject, seed, hand_overs=True)
        assert outcome.error <= TOLERANCE[subject.dtype], f'case {seed}: {outcome}'
        assert outcome.differing == 0, f'case {seed}: {outcome}'
        hand_overs += outcome.hand_overs
    assert hand_overs > 20


def test_with_hand_overs_only_such_cases_are_played(tmp_path, monkeypatch):
    seeds = [seed for seed in range(30) if can_relay(seed)][:3]
    monkeypatch.setattr('sys.argv', [
        'proof', '--hand-overs', '--cases', '2', '--first-seed', '0',
        '--json', str(tmp_path / 'proof.json')])
    main()
    monkeypatch.setattr('sys.argv', [
        'proof', '--hand-overs', '--cases', '1', '--go-on', '--json', str(tmp_path / 'proof.json')])
    main()
    found = json.loads((tmp_path / 'proof.json').read_text())
    assert found['next_seed'] == seeds[-1] + 1
    by_dtype = [found[name] for name in ('float32', 'float64') if name in found]
    assert sum(entry['cases'] for entry in by_dtype) == len(seeds)
    assert sum(entry['with_hand_overs'] for entry in by_dtype) == len(seeds)
    assert all('interleaved' not in kind and '× offline' not in kind for kind in found['by_kind'])


def test_the_committed_proof_over_hand_overs_is_whole():
    file = Path(__file__).resolve().parents[1] / 'docs/benchmarks/proof_hand_overs.json'
    found = json.loads(file.read_text())
    by_dtype = [found['float32'], found['float64']]
    assert sum(entry['cases'] for entry in by_dtype) >= 3000
    for entry in by_dtype:
        assert entry['with_hand_overs'] == entry['cases'] and entry['answers_across']
        assert (entry['differing'], entry['over']) == (0, 0)
    kinds = {(scheme, overlap) for scheme, _, overlap in (
        kind.split(' × ') for kind in found['by_kind'])}
    assert kinds == {(scheme, overlap) for scheme in ('gdpe', 'gipe', 'ospe', 'offline')
                     for overlap in RULES}


def test_the_proof_fails_when_another_word_is_carried_over(subjects, monkeypatch):
    honest = TextLane.repeat
    monkeypatch.setattr(TextLane, 'repeat', lambda self, words, vocabulary: honest(
        self, [word._replace(token=word.token ^ 1) for word in words], vocabulary))
    with pytest.raises(AssertionError, match='does not go on where the one before ended'):
        for seed in range(5000, 5040):
            run_case(subject_of(subjects, seed), seed, hand_overs=True)


def test_the_proof_fails_when_a_lane_is_used_again_while_it_is_read(subjects, monkeypatch):
    monkeypatch.setattr(ModelRunner, '_take_back',
                        lambda self, video, lane: self._free.append(lane))
    seeds = [seed for seed in range(60) if can_relay(seed) and kind_of(seed)[2] == 'serial']
    with pytest.raises(AssertionError):  # Two streams write one lane, or read what is another's.
        for seed in seeds:
            outcome = run_case(subjects[1], seed, hand_overs=True)
            assert outcome.error <= TOLERANCE[subjects[1].dtype]


def test_the_proof_fails_when_a_row_sees_one_step_less_than_it_says(subjects, monkeypatch):
    honest = Stream.first
    monkeypatch.setattr(Stream, 'first', lambda self, view, steps: honest(
        self, view, steps - (steps > 1)))
    subject = subjects[1]
    outcomes = [run_case(subject, seed) for seed in range(8)]
    assert max(outcome.error for outcome in outcomes) > TOLERANCE[subject.dtype]


def test_the_proof_fails_when_a_position_is_off_by_one(subjects, monkeypatch):
    rotary = QwenLanguage.rotary
    monkeypatch.setattr(QwenLanguage, 'rotary', lambda self, p: rotary(self, p + (p > 20)))
    subject = subjects[1]
    outcomes = [run_case(subject, seed) for seed in range(4)]
    assert max(outcome.error for outcome in outcomes) > TOLERANCE[subject.dtype]
