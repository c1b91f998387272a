"""Whether chunks become readable lines, in a terminal and in a pipe."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from waiting import PATIENCE_S, wait_until

from sww_ros.terminal import Line, PlainDisplay, Transcript, make_display, seconds_since, wall_clock


def when(seconds: float) -> SimpleNamespace:
    whole = int(seconds)
    return SimpleNamespace(sec=whole, nanosec=round((seconds - whole) * 1e9))


def chunk(delta: str, seq: int, stream: str = 'narration', sentence: str = '', final: str = '',
          stamp: float = 1.0) -> SimpleNamespace:
    return SimpleNamespace(
        stream_id=stream, seq=seq, delta=delta, sentence=sentence, is_final=bool(final),
        finish_reason=final, header=SimpleNamespace(stamp=when(stamp)), emitted=when(stamp + 0.5),
        latency=when(0.5))


def feed(transcript: Transcript, *chunks: SimpleNamespace) -> list[Line]:
    return [line for line in map(transcript.feed, chunks) if line is not None]


def test_sentences_end_lines_and_keep_the_time_of_their_first_token():
    transcript = Transcript()
    lines = feed(
        transcript, chunk(' The', 0, stamp=2.0), chunk(' square', 1, stamp=3.0),
        chunk(' stops.', 2, sentence='The square stops.', stamp=4.0), chunk(' A', 3, stamp=5.0))
    assert lines == [Line('narration', 'The square stops.', 2_000_000_000, 4_000_000_000,
                          2_500_000_000, 0.5, 3)]
    assert [line.text for line in transcript.open_lines] == ['A']


def test_answers_grow_beside_the_narration_and_end_once():
    transcript = Transcript()
    lines = feed(
        transcript, chunk('It', 0, 'q1'), chunk(' The', 0), chunk(' stops', 1, 'q1'),
        chunk('.', 2, 'q1', sentence='It stops.'), chunk(' Yes', 0, 'q2'))
    assert lines == []
    assert [line.stream_id for line in transcript.open_lines] == ['narration', 'q1', 'q2']
    line, = feed(transcript, chunk('', 3, 'q1', final='stop'))
    assert (line.text, line.finish_reason, line.tokens) == ('It stops.', 'stop', 3)
    assert [line.stream_id for line in transcript.open_lines] == ['narration', 'q2']


def test_lost_text_is_marked_and_a_late_listener_is_no_loss():
    transcript = Transcript()
    line, = feed(transcript, chunk('one', 7), chunk(' three.', 9, sentence='one two three.'))
    assert line.text == 'one… three.'


def test_empty_answer_still_ends_and_empty_narration_says_nothing():
    transcript = Transcript()
    line, = feed(transcript, chunk('', 0, 'q1', final='error'))
    assert (line.text, line.finish_reason) == ('', 'error')
    assert feed(transcript, chunk('', 0, final='reset')) == []


def test_newlines_do_not_break_a_line():
    line, = feed(Transcript(), chunk('one\ntwo\n', 0, sentence='one\ntwo'))
    assert line.text == 'one two'


def test_plain_lines_are_whole():
    stream = io.StringIO()
    display = PlainDisplay(stream)
    display.clock = seconds_since(1_000_000_000)
    display.grow([Line('narration', 'The')])
    display.line(Line('narration', 'The square stops.', emitted_ns=3_000_000_000,
                      latency_s=0.5, tokens=3))
    display.question('Did it stop?', 4_000_000_000)
    display.line(Line('q1', 'Yes.', emitted_ns=5_000_000_000, latency_s=0.25, tokens=1),
                 'true: Yes.')
    display.line(Line('q2', finish_reason='error', emitted_ns=6_000_000_000))
    assert stream.getvalue().splitlines() == [
        '   2.0 s  The square stops.  (0.50 s)', '   3.0 s  question: Did it stop?',
        '   4.0 s  answer: Yes.  (0.25 s)  true: Yes.', '   5.0 s  answer:   [error]']


def talk(display) -> None:
    """A sentence begins, a question is asked and answered meanwhile, the sentence ends."""
    display.clock = seconds_since(0)
    sentence = Line('narration', 'The square', emitted_ns=10 ** 9, tokens=1)
    display.grow([sentence])
    display.question('Did it stop?', 2 * 10 ** 9)
    display.line(Line('q1', 'Yes.', emitted_ns=3 * 10 ** 9, tokens=1))
    display.grow([sentence])


IN_ORDER = ['The square stops.', 'Did it stop?', 'Yes.']


def test_lines_stand_in_the_order_of_their_times():
    stream = io.StringIO()
    display = PlainDisplay(stream, ordered=True)
    talk(display)
    display.line(Line('narration', 'The square stops.', emitted_ns=10 ** 9, tokens=3))
    display.grow([])
    lines = stream.getvalue().splitlines()
    assert [line[:8].strip() for line in lines] == ['1.0 s', '2.0 s', '3.0 s']
    assert all(words in line for words, line in zip(IN_ORDER, lines, strict=True))


def test_a_sentence_that_never_ends_holds_nothing_back_unless_order_is_asked_for():
    stream = io.StringIO()
    talk(PlainDisplay(stream))
    assert 'Did it stop?' in stream.getvalue() and 'answer: Yes.' in stream.getvalue()


def test_what_waits_for_a_sentence_is_not_lost_at_the_end():
    stream = io.StringIO()
    display = PlainDisplay(stream, ordered=True)
    talk(display)
    display.close()
    assert 'Did it stop?' in stream.getvalue() and 'answer: Yes.' in stream.getvalue()


def test_a_terminal_shows_at_once_what_waits_for_a_sentence_and_keeps_the_order():
    stream = io.StringIO()
    display = make_display('rich', stream, ordered=True)
    talk(display)
    display.draw()
    assert 'Did it stop?' in stream.getvalue() and 'Yes.' in stream.getvalue()
    mark = len(stream.getvalue())
    display.line(Line('narration', 'The square stops.', emitted_ns=10 ** 9, tokens=3))
    display.grow([])
    display.close()
    shown = stream.getvalue()[mark:]
    places = [shown.rindex(words) for words in IN_ORDER]
    assert places == sorted(places), shown


def test_terminal_shows_growing_lines_and_keeps_whole_ones():
    stream = io.StringIO()
    display = make_display('rich', stream)
    display.clock = seconds_since(0)
    display.line(Line('narration', 'The [red] square stops.', 10 ** 9, latency_s=0.5, tokens=3))
    display.grow([Line('narration', 'A circle', 2 * 10 ** 9)])
    wait_until(lambda: 'A circle' in stream.getvalue())
    display.close()
    shown = stream.getvalue()
    assert 'The [red] square stops.' in shown and 'A circle' in shown
    assert shown.rstrip().endswith('\x1b[?25h') or '\x1b[?25h' in shown  # The cursor is back.


@pytest.mark.parametrize('style', ['plain', 'rich'])
def test_warnings_are_called_so(style: str):
    stream = io.StringIO()
    display = make_display(style, stream)
    display.warn('the [red] one')
    display.close()
    assert 'warning: the [red] one' in stream.getvalue()


def test_style_is_checked_and_pipes_are_plain():
    with pytest.raises(ValueError, match="one of auto, rich, plain, not 'loud'"):
        make_display('loud')
    assert isinstance(make_display('auto', io.StringIO()), PlainDisplay)


def test_wall_clock_shows_tenths():
    assert wall_clock(1_760_000_000_960_000_000).endswith('.9')


def test_console_prints_what_a_narrator_says(ros_domain: int):
    pytest.importorskip('rclpy')
    from narrator_harness import probing

    from sww_interfaces.msg import TextChunk
    process = subprocess.Popen(
        [sys.executable, '-m', 'sww_ros.terminal.console'], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=os.environ)
    with process, probing('/console') as probe:
        try:
            caption = probe.node.create_publisher(TextChunk, 'narrator/caption', 10)
            answer = probe.node.create_publisher(TextChunk, 'narrator/answer', 10)
            wait_until(lambda: caption.get_subscription_count() and answer.get_subscription_count())
            probe.meet()
            caption.publish(TextChunk(stream_id='narration', seq=0, delta='A red'))
            answer.publish(TextChunk(stream_id='q1', seq=0, delta='Yes.'))
            answer.publish(TextChunk(stream_id='q1', seq=1, is_final=True, finish_reason='stop'))
            caption.publish(TextChunk(stream_id='narration', seq=1, delta=' dot.',
                                      sentence='A red dot.'))
            lines = [process.stdout.readline() for _ in range(3)]
            assert lines[0] == '# listening to /narrator/caption and /narrator/answer\n'
            assert any(line.endswith('answer: Yes.  (0.00 s)\n') for line in lines)
            assert any(line.endswith('  A red dot.  (0.00 s)\n') for line in lines)
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_S) == 0
            assert 'Traceback' not in process.stderr.read()
        finally:
            process.kill()
