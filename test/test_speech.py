"""Whether what is said aloud is one thing at a time, answers first, and never old."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import threading
import wave

import numpy as np
import pytest

pytest.importorskip('rclpy')

from narrator_harness import probing
from rclpy.duration import Duration
from rclpy.qos import QoSProfile
from waiting import PATIENCE_S, wait_until

from sww_interfaces.msg import TextChunk
from sww_ros.terminal.speech import Agenda, Voice, program, speakable


def test_answers_are_said_first_and_of_the_narration_the_newest():
    agenda = Agenda(max_age_s=5.0)
    agenda.add('One.', False, 0.0)
    agenda.add('Two.', False, 1.0)
    agenda.add('Yes.', True, 2.0)
    agenda.add('No.', True, 3.0)
    assert [agenda.next(4.0) for _ in range(4)] == ['Yes.', 'No.', 'Two.', '']
    assert agenda.dropped == 1


def test_old_narration_is_dropped_and_an_old_answer_is_said():
    agenda = Agenda(max_age_s=5.0)
    agenda.add('One.', False, 0.0)
    agenda.add('Yes.', True, 0.0)
    assert [agenda.next(9.0), agenda.next(9.0)] == ['Yes.', '']
    assert agenda.dropped == 1


def test_answers_that_nobody_has_time_for_give_way():
    agenda = Agenda(5.0, max_answers=2)
    for number in range(4):
        agenda.add(str(number), True, 0.0)
    assert [agenda.next(0.0) for _ in range(3)] == ['2', '3', ''] and agenda.dropped == 2


def test_no_program_is_sent_what_is_no_text():
    assert speakable(' A\x1b[2J\n square\x00 comes. ') == 'A [2J square comes.'


@pytest.mark.parametrize('command, words', [
    ('no-such-program -x', "there is no program 'no-such-program' to speak with: install espeak"),
    ("say 'open", 'cannot be read')])
def test_a_command_that_cannot_be_is_told(command: str, words: str):
    with pytest.raises(ValueError, match=words):
        program(command)


def test_a_program_that_fails_or_hangs_is_told_and_ended(tmp_path: Path):
    def voice(code: str, patience_s: float = PATIENCE_S) -> Voice:
        return Voice([sys.executable, '-c', code], patience_s)

    assert voice('input()').say('Yes.') == ''
    assert 'ended with exit code 3: no device' in voice(
        'import sys; print("no device", file=sys.stderr); sys.exit(3)').say('Yes.')
    pid = tmp_path / 'pid'
    # What the program has started, such as the player behind a pipe, ends with it.
    for patience_s in (3.0, 30.0):  # A machine that is slow may need longer to start them.
        trouble = voice(
            'import subprocess, sys\n'
            'child = subprocess.Popen(["sleep", "1000"])\n'
            f'open({str(pid)!r}, "w").write(str(child.pid))\n'
            'child.wait()', patience_s).say('Yes.')
        assert f'has not ended after {patience_s:g} s, and was killed' in trouble
        if pid.exists() and pid.read_text():
            break
    wait_until(lambda: not Path(f'/proc/{pid.read_text()}').exists()
                      or ') Z' in Path(f'/proc/{pid.read_text()}/stat').read_text())


def test_a_voice_that_is_closed_falls_silent_at_once():
    voice = Voice(['sleep', '1000'], PATIENCE_S)
    said: list[str] = []
    speaking = threading.Thread(target=lambda: said.append(voice.say('Yes.')))
    speaking.start()
    wait_until(lambda: voice._process is not None)
    voice.close()
    speaking.join(PATIENCE_S)
    assert said == [''] and voice.say('No.') == ''


@contextmanager
def speech(*parameters: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, '-m', 'sww_ros.terminal.speech', '--ros-args',
         *[word for each in parameters for word in ('-p', each)]],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        if process.wait(PATIENCE_S) is None:
            process.kill()


@contextmanager
def teller() -> Iterator[Callable[[str, str], None]]:
    """Yield what publishes a sentence on caption or answer, and returns once it was heard."""
    with probing('/speech') as probe:
        publishers = {topic: probe.node.create_publisher(
            TextChunk, f'narrator/{topic}', QoSProfile(depth=256))
            for topic in ('caption', 'answer')}
        wait_until(lambda: all(each.get_subscription_count() for each in publishers.values()))
        probe.meet()

        def tell(topic: str, sentence: str) -> None:
            stream = TextChunk.NARRATION if topic == 'caption' else 'q'
            publishers[topic].publish(
                TextChunk(stream_id=stream, delta=sentence, sentence=sentence))
            # It is at the node, whose one thread takes what is there before it serves others.
            assert publishers[topic].wait_for_all_acked(Duration(seconds=PATIENCE_S))
            probe.meet()
        yield tell


def test_the_node_says_one_thing_at_a_time_answers_first(ros_domain: int, tmp_path: Path):
    """The program writes down when it begins and ends, and ends when it is let go."""
    log, go, program = tmp_path / 'log', tmp_path / 'go', tmp_path / 'say.py'
    code = (f'import os, sys, time\nlog = open({str(log)!r}, "a")\n'
            'text = sys.stdin.read().strip()\nprint("+", text, file=log, flush=True)\n'
            f'while not os.path.exists({str(go)!r}): time.sleep(0.01)\n'
            'print("-", text, file=log, flush=True)')
    program.write_text(code)

    def lines() -> list[str]:
        return log.read_text().splitlines() if log.exists() else []

    with speech(f'command:={sys.executable} {program}', 'max_age:=600.0') as node, teller() as tell:
        tell('caption', 'A square comes.')
        wait_until(lambda: lines() == ['+ A square comes.'])
        for text in ('It stops.', 'It goes.'):
            tell('caption', text)
        for text in ('It is red.', 'There are two.'):
            tell('answer', text)
        go.touch()
        wait_until(lambda: len(lines()) == 8, explain=lines)
    assert lines() == [f'{sign} {text}' for text in (
        'A square comes.', 'It is red.', 'There are two.', 'It goes.') for sign in '+-']
    assert node.returncode == 0


def test_the_node_says_in_one_line_that_it_has_no_voice(ros_domain: int):
    with speech('command:=no-such-program') as node:
        output, _ = node.communicate(timeout=PATIENCE_S)
    assert node.returncode == 1
    assert len(output.splitlines()) == 1 and 'install espeak-ng (apt install' in output


@pytest.mark.skipif(shutil.which('espeak-ng') is None, reason='espeak-ng is not installed')
def test_espeak_says_a_sentence(ros_domain: int, tmp_path: Path):
    file = tmp_path / 'said.wav'
    with speech(f'command:=espeak-ng --stdin -w {file}') as node, teller() as tell:
        tell('answer', 'The red square comes from the left.')
        wait_until(lambda: file.exists() and os.path.getsize(file) > 10_000)
        # It is written to its end before the program ends.
        wait_until(lambda: not list(children(node.pid)))
    with wave.open(str(file)) as sound:
        samples = np.frombuffer(sound.readframes(sound.getnframes()), np.int16)
        seconds = len(samples) / sound.getframerate()
    assert 1.0 < seconds < 6.0 and np.abs(samples).max() > 1000


def children(pid: int) -> list[str]:
    return Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
