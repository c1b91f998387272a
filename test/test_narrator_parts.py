"""The narrator's parts that need no process: latencies, subtitles, diagnostics, answers."""

from collections import Counter
from dataclasses import replace
import threading
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
from waiting import PATIENCE_S

from sww_interfaces.msg import TextChunk
from sww_ros.images import draw_subtitle
from sww_ros.nodes import diagnostics
from sww_ros.nodes.camera import Subtitle
from sww_ros.nodes.diagnostics import (
    ERROR,
    OK,
    WARN,
    Alarm,
    Health,
    Rate,
    Window,
    judge_camera,
    statuses,
)
from sww_ros.nodes.questions import AnswerBook
from sww_ros.nodes.reporting import UNSEEN_STEPS, StepBook
from sww_ros.streaming.events import NARRATION, FirstSight, StepPerceived, TextDelta


def step(index: int) -> StepPerceived:
    return StepPerceived(index, stamp_ns=7, frames=2, received_ns=10, fed_ns=15, started_ns=20,
                         preprocessed_ns=30, vision_ns=50, perceived_ns=60, overlap_ns=10)


def text(delta: str, sentence: str = '', first: bool = False) -> TextDelta:
    return TextDelta(NARRATION, 0, delta, sentence, False, '', 0, 1, 2, 7, 0, 80, first)


def test_a_spoken_step_knows_its_first_token_and_its_publication():
    book = StepBook()
    assert book.perceived(step(0)) == []
    book.seen(FirstSight(0, 7, 65, 75))
    times, = book.published(text('a', first=True), 95)
    assert (times.has_first_token, times.first_token_ns, times.publish_ns) == (True, 15, 15)
    assert times.perceived_ns == 50
    assert times.overlap_ratio == 0.25
    assert book.published(text('b'), 99) == []


def test_a_silent_step_is_settled_by_the_next_event():
    book = StepBook()
    book.perceived(step(0))
    book.seen(FirstSight(0, 7, 65, 75))
    times, = book.perceived(step(1))
    assert (times.step.index, times.first_token_ns, times.publish_ns) == (0, 15, 0)
    times, = book.clear()
    assert (times.step.index, times.has_first_token) == (1, False)


def test_a_sight_of_the_video_before_is_none_of_this_one():
    book = StepBook()
    book.perceived(replace(step(0), video=1))
    book.seen(FirstSight(0, 7, 65, 75, video=0))
    assert book.settle() == []
    book.seen(FirstSight(0, 7, 65, 75, video=1))
    assert [times.has_first_token for times in book.settle()] == [True]


def test_steps_that_nobody_looks_at_do_not_pile_up():
    book = StepBook()
    told = [times for i in range(UNSEEN_STEPS + 3) for times in book.perceived(step(i))]
    assert [times.step.index for times in told] == [0, 1, 2]
    assert not any(times.has_first_token for times in told)
    book.seen(FirstSight(1, 7, 65, 75))
    assert book.settle() == []


def test_windows_and_rates(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(diagnostics, 'time', SimpleNamespace(monotonic=lambda: now_s))
    now_s = 100.0
    window, rate = Window(), Rate()
    assert np.isnan(window.percentile(50)) and np.isnan(window.mean())
    for value in range(101):
        window.add(value)
        rate.add()
    assert (window.percentile(50), window.percentile(95), window.mean()) == (50, 95, 50)
    now_s += 0.5
    assert rate.value() == 202
    now_s += 19.5
    assert rate.value() == 0


def test_subtitle_shows_the_running_sentence():
    subtitle = Subtitle()
    shown = []
    for delta in (text('A'), text(' dog.', 'A dog.'), text(' '), text('It'), text(' runs')):
        subtitle.add(delta)
        shown.append(subtitle.text.strip())
    assert shown == ['A', 'A dog.', 'A dog.', 'It', 'It runs']


@pytest.mark.parametrize('size', [(48, 64), (480, 640), (84, 84)])
def test_subtitle_is_drawn_at_the_foot_of_a_copy(size: tuple[int, int]):
    pixels = np.full((*size, 3), 90, np.uint8)
    drawn = draw_subtitle(pixels, 'The red square moves to the left, quickly. ' * 5)
    assert (pixels == 90).all()
    assert drawn.shape == pixels.shape
    assert drawn[size[0] // 2:].max() > 150
    assert (draw_subtitle(pixels, '') == 90).all()


def speaking(**changes) -> Health:
    health = Health(
        state='active', info={'model': 'm', 'frame_rate': 2.0}, topic='/image', watching=True,
        silent_s=0.1, camera_timeout=5.0, camera_rate=2.0, received=9,
        dropped=Counter(rate=3, bad=1), tokens_rate=4.0)
    for name, value in changes.items():
        setattr(health, name, value)
    return health


@pytest.mark.parametrize('changes, part, level, words', [
    ({}, 'camera', OK, 'frames come'),
    ({}, 'engine', OK, 'active'),
    ({}, 'speech', OK, 'speaking'),
    ({'silent_s': 6.0}, 'camera', ERROR, 'no frame for 6 s'),
    ({'camera_rate': 1.0}, 'camera', WARN, 'slower than the 2 Hz'),
    ({'camera_rate': 0.0}, 'camera', OK, 'waiting'),
    ({'paused': True}, 'camera', OK, 'paused'),
    ({'watching': False}, 'camera', OK, 'not subscribed'),
    ({'silent_s': 6.0, 'why_silent': 'nobody publishes'}, 'camera', ERROR, '6 s: nobody publishes'),
    ({'stuck_s': 5.5}, 'camera', ERROR, 'the stamps stand still: none newer for 6 s'),
    ({'stuck_s': 4.5}, 'camera', OK, 'frames come'),
    ({'lately': Counter(bad=20)}, 'camera', ERROR, '20 of 20 frames could not be read'),
    ({'lately': Counter(bad=3, perceived=17)}, 'camera', WARN, '3 of 20 frames could not'),
    ({'lately': Counter(bad=2, perceived=8)}, 'camera', OK, 'frames come'),
    ({'lately': Counter(bad=3, perceived=97)}, 'camera', OK, 'frames come'),
    ({'lately': Counter(overrun=20)}, 'camera', ERROR, 'nothing is perceived: all 20'),
    ({'lately': Counter(overrun=10, perceived=10), 'perceived_ms': (5000.0, 6000.0)}, 'camera',
     WARN, '10 of 20 frames were dropped in the last 10 s, and the rest is seen 5000 ms late'),
    ({'age_s': -3600.0}, 'camera', WARN, '3600 s ahead of the clock'),
    ({'age_s': 3600.0}, 'camera', WARN, '3600 s behind the clock'),
    ({'age_s': -1.0}, 'camera', OK, 'frames come'),
    ({'age_s': 5.0}, 'camera', OK, 'frames come'),
    ({'paused': True, 'stuck_s': 9.0, 'age_s': 3600.0}, 'camera', OK, 'paused'),
    ({'trouble': 'it died'}, 'engine', ERROR, 'it died'),
    ({'trouble': 'it hung', 'doing': 'starts again in 2 s'}, 'engine', ERROR,
     'it hung: starts again in 2 s'),
    ({'doing': 'no sign of life for 4 s'}, 'engine', WARN, 'active: no sign of life for 4 s'),
    ({'tokens_rate': 0.0}, 'speech', OK, 'silent'),
])
def test_diagnostics_name_what_is_wrong(changes: dict, part: str, level: bytes, words: str):
    found = {status.name: status for status in statuses('left/narrator', speaking(**changes))}
    status = found[f'left/narrator: {part}']
    assert status.level == level
    assert words in status.message
    assert status.hardware_id == 'm'
    values = {value.key: value.value for value in found['left/narrator: camera'].values}
    assert (values['frames dropped (bad)'], values['frames dropped (rate)']) == ('1', '3')


def test_loading_is_told_and_is_nothing_wrong():
    engine, *_ = statuses('narrator', Health(state='configuring', doing='loading for 9 s'))
    assert (engine.level, engine.message) == (OK, 'configuring: loading for 9 s')


def test_what_is_wrong_is_logged_when_it_begins_and_then_seldom():
    log, now = MagicMock(), [0.0]
    alarm = Alarm(log, lambda: now[0])
    stuck, clock = speaking(stuck_s=9.0), speaking(age_s=99.0)
    for seconds, health in ((0, stuck), (1, stuck), (2, clock), (3, stuck), (29, clock),
                            (31, stuck), (31, clock), (32, clock), (33, speaking()),
                            (34, speaking(camera_rate=1.0)), (35, speaking(silent_s=9.0))):
        now[0] = float(seconds)
        alarm.take(judge_camera(health))
    assert [call.args[0][:16] for call in log.error.call_args_list] == ['the stamps stand'] * 2
    assert ['99 s behind' in call.args[0] for call in log.warning.call_args_list] == [True] * 2


def chunk(question_id: str, delta: str, reason: str = '') -> TextChunk:
    return TextChunk(stream_id=question_id, delta=delta, finish_reason=reason,
                     is_final=bool(reason))


def test_answers_end_once_for_whoever_waits():
    book, heard = AnswerBook(), []
    answer = book.begin(heard.append)
    ender = threading.Timer(0.05, lambda: [
        book.add(chunk(answer.question_id, 'It is')), book.explain(answer.question_id, 'why'),
        book.add(chunk(answer.question_id, ' red. ')),
        book.add(chunk(answer.question_id, '', 'stop'))])
    ender.start()
    assert answer.done.wait(PATIENCE_S)
    assert (answer.text, answer.tokens, answer.finish_reason) == ('It is red.', 2, 'stop')
    assert answer.trouble == 'why'
    assert len(heard) == 3
    assert book.wait_empty(0.0)
    book.add(chunk(answer.question_id, 'late'))
    assert answer.text == 'It is red.'
    refused = book.begin()
    assert len(book) == 1 and not book.wait_empty(0.01)
    book.forget(refused)
    assert book.wait_empty(0.0)
