"""
The node speech: says sentences and answers aloud, one at a time.

What speaks is a program that reads a text from its standard input. Answers are said first, in their
order. Of the narration the newest sentence is said: whoever listens is never told what was seen
long ago, however much there is to say.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
import os
import shlex
import shutil
import signal
import subprocess
import threading
import time

from sww_interfaces.msg import TextChunk
from sww_ros.node import TEXT_QOS, EndingNode, declare, run
from sww_ros.settings import Setting
from sww_ros.terminal.console import TOPICS

NAME = 'speech'
SETTINGS = (
    Setting('command', '', 'What speaks: a program and its arguments, as in a shell. It reads one '
            'text from its standard input, and ends once that is said. Empty: espeak-ng.'),
    Setting('narration', True, 'Whether the narration is said too, or answers only.'),
    Setting('max_age', 5.0, 'A sentence of the narration that has waited longer is not said [s].',
            low=0.1, high=3600.0),
    Setting('patience', 60.0, 'A program that has not ended after this time is killed [s].',
            low=0.1, high=3600.0),
)
DEFAULT_COMMAND = 'espeak-ng --stdin'
MAX_ANSWERS = 32
TOLD_S = 30.0
"""How often at most trouble of one kind is told."""


class Agenda:
    """What is to be said next; pure, times are given."""

    def __init__(self, max_age_s: float, max_answers: int = MAX_ANSWERS) -> None:
        """:param max_answers: the most sentences of answers that wait; the oldest give way"""
        self._max_age_s = max_age_s
        self._answers: deque[str] = deque(maxlen=max_answers)
        self._narration: tuple[str, float] | None = None
        self.dropped = 0

    def add(self, sentence: str, is_answer: bool, now_s: float) -> None:
        """Have a sentence said, if nothing is more urgent."""
        if is_answer:
            self.dropped += len(self._answers) == self._answers.maxlen
            self._answers.append(sentence)
        else:
            self.dropped += self._narration is not None
            self._narration = sentence, now_s

    def next(self, now_s: float) -> str:
        """Take what is to be said now; '' if there is nothing."""
        if self._answers:
            return self._answers.popleft()
        (sentence, since_s), self._narration = self._narration or ('', now_s), None
        if now_s - since_s <= self._max_age_s:
            return sentence
        self.dropped += 1
        return ''


class Voice:
    """Runs the program, once for each text."""

    def __init__(self, command: list[str], patience_s: float) -> None:
        """:param patience_s: how long it may take"""
        self._command, self._patience_s = command, patience_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._closed = False

    def say(self, text: str) -> str:
        """Say a text and return once it is said; return what went wrong, '' if nothing did."""
        try:
            with self._lock:
                if self._closed:
                    return ''
                # In a session of its own: what it starts, such as a pipe to a player, ends with it.
                self._process = process = subprocess.Popen(
                    self._command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE, text=True, errors='replace', start_new_session=True)
        except OSError as error:
            return f'{self._command[0]} cannot be started: {error.strerror}'
        try:
            _, told = process.communicate(f'{text}\n', self._patience_s)
        except subprocess.TimeoutExpired:
            self._kill(process)
            return f'{self._command[0]} has not ended after {self._patience_s:g} s, and was killed'
        if process.returncode == 0 or self._closed:
            return ''
        last = next(reversed(told.strip().splitlines()), 'it says nothing')
        return f'{self._command[0]} ended with exit code {process.returncode}: {last}'

    def close(self) -> None:
        """Fall silent, in the middle of a word too."""
        with self._lock:
            self._closed = True
            if self._process is not None and self._process.poll() is None:
                self._kill(self._process)

    def _kill(self, process: subprocess.Popen[str]) -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class SpeechNode(EndingNode):
    """Subscribes to captions and answers (remappable); a thread says them."""

    def __init__(self) -> None:
        """
        Subscribe.

        :raises ValueError: where there is nothing to speak with, or for bad parameters
        """
        super().__init__(NAME)
        given = declare(self, SETTINGS)
        command = program(given['command'])
        self._agenda = Agenda(given['max_age'])
        self._voice = Voice(command, given['patience'])
        self._ready, self._closing = threading.Condition(), False
        topics = TOPICS if given['narration'] else TOPICS[1:]
        for topic in topics:
            self.create_subscription(TextChunk, topic, self._take, TEXT_QOS)
        self._speaking = threading.Thread(target=self._speak, name='speak', daemon=True)
        self._speaking.start()
        heard = ' and '.join(map(self.resolve_topic_name, topics))
        self.get_logger().info(f'says what comes on {heard}, with {shlex.join(command)}')

    def release(self) -> None:
        """Fall silent."""
        with self._ready:
            self._closing = True
            self._ready.notify()
        self._voice.close()
        self._speaking.join()

    def _take(self, chunk: TextChunk) -> None:
        if sentence := speakable(chunk.sentence):
            with self._ready:
                self._agenda.add(sentence, chunk.stream_id != TextChunk.NARRATION, time.monotonic())
                self._ready.notify()

    def _speak(self) -> None:
        while True:
            with self._ready:
                while not (text := self._agenda.next(time.monotonic())) and not self._closing:
                    self._ready.wait()
                if self._closing:
                    return
            if trouble := self._voice.say(text):
                self.get_logger().warning(trouble, throttle_duration_sec=TOLD_S)


def program(command: str) -> list[str]:
    """
    Return the program that speaks, and its arguments.

    :raises ValueError: for one that is not there, or that no shell could read
    """
    try:
        found = shlex.split(command or DEFAULT_COMMAND)
    except ValueError as error:
        raise ValueError(f'command {command!r} cannot be read: {error}') from None
    if not found or shutil.which(found[0]) is None:
        name = found[0] if found else ''
        raise ValueError(f'there is no program {name!r} to speak with: install espeak-ng (apt '
                         'install espeak-ng), or set the parameter command to one that is there')
    return found


def speakable(text: str) -> str:
    """Return a text without what no program should be sent: control characters, line ends."""
    return ' '.join(''.join(c if c.isprintable() else ' ' for c in text).split())


def main(args: list[str] | None = None) -> int:
    """Run the node; return the exit code."""
    return run(NAME, SpeechNode, args)


if __name__ == '__main__':
    raise SystemExit(main())
