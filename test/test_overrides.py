"""Whether what was set from outside, and what no node reads, is told apart."""

from pathlib import Path

import pytest

from sww_ros.node import check_qos, files_of_others, unknown


@pytest.mark.parametrize('text, others', [
    ('/narrator: {ros__parameters: {a: 1}}', []),
    ('narrator: {ros__parameters: {a: 1}}', ['/narrator']),
    ('/left/narrator: {ros__parameters: {a: 1}}', []),
    ('left: {narrator: {ros__parameters: {a: 1}}}', []),
    ('/**: {ros__parameters: {a: 1}}', []),
    ('/**/narrator: {ros__parameters: {a: 1}}', []),
    ('/*: {ros__parameters: {a: 1}}', ['/*']),
    ('/*/narrator: {ros__parameters: {a: 1}}', []),
    ('/left/eye: {ros__parameters: {a: 1}}\n/nar.ator: {ros__parameters: {a: 1}}',
     ['/left/eye', '/nar.ator']),
    ('', []),
    ('just words', []),
    ('/eye: {ros__parameters: {a: !mine 1}}', []),
])
def test_a_file_for_other_nodes_is_known(tmp_path: Path, text: str, others: list[str]):
    file = tmp_path / 'mine.yaml'
    file.write_text(text)
    node = '/narrator' if text.startswith('/narrator') else '/left/narrator'
    told = files_of_others(['run', '--ros-args', '--params-file', str(file)], node)
    assert told == ({str(file): others} if others else {})


def test_unknown_names_come_with_the_nearest_known_one():
    assert unknown(['wait_K', 'wait_k', 'zzz'], ['wait_k', 'prompt']) == {
        'wait_K': 'wait_k', 'zzz': ''}


@pytest.mark.parametrize('policy, value', [
    ('reliability', 'RELIABLE'), ('history', 'keep_all'), ('depth', 7), ('deadline', -1)])
def test_qos_that_a_topic_can_have_is_taken(policy: str, value: object):
    check_qos({f'qos_overrides./image.subscription.{policy}': value, 'depth': 'any'})


@pytest.mark.parametrize('policy, value', [
    ('reliability', 'sure'), ('reliability', 1), ('history', ''), ('depth', -1), ('depth', True)])
def test_qos_that_no_topic_can_have_is_named(policy: str, value: object):
    with pytest.raises(ValueError, match=f'qos_overrides./image.subscription.{policy} must be'):
        check_qos({f'qos_overrides./image.subscription.{policy}': value})
