"""A session without a model, which says foreseeable things: for tests of engine and node."""

from __future__ import annotations

import itertools
import os
import queue
import signal
import sys
import threading
import time

from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import (
    NARRATION,
    FirstSight,
    FramesDropped,
    QuestionState,
    Restarted,
    StepPerceived,
    TextDelta,
    Trouble,
)

SESSION = 'fake_session:FakeSession.open'
ENGINE = 'fake_session:FakeEngine.open'
FRAMES_PER_STEP = 2
TOKEN_S = 0.01
LONG_ANSWER_TOKENS = 6000
"""A minute's worth: nobody waits for its end."""
LATE_S = 7.0
POLL_S = 0.01
DEFAULT_PROMPT = 'Describe.'
UNTIL = 'until '


class FakeSession:
    """
    Says one sentence of three tokens per step, and answers with the question's words.

    The model's name chooses what goes wrong: 'bad' does not load, 'until FILE' once that is there,
    'stuck' does not close, 'tidy' closes slowly and says when it has, 'lagging' perceives one frame
    in four. The question 'die' kills the process, 'long' is answered at length, 'late' after
    LATE_S, 'until FILE' once that is there, 'prompt' with the prompt, 'unseen' ends as one of which
    nothing was seen, and at 'give up' the session does.
    """

    def __init__(self, model: str, config: SessionConfig) -> None:
        self._config, self._model = config, model
        self._events: queue.SimpleQueue = queue.SimpleQueue()
        self._work: queue.SimpleQueue = queue.SimpleQueue()
        self._cancelled: set[str] = set()
        self._paused = False
        self._fed = 0
        self._prompt = config.prompt or DEFAULT_PROMPT
        self._seq = itertools.count()
        self._frames: list[tuple] = []
        self._restart()
        self._stop = threading.Event()
        self.work = None
        threading.Thread(target=self._narrate, daemon=True).start()
        self.info = {
            'model': model, 'position_encoding': 'gdpe', 'wait_k': 3, 'frames_per_step': 2,
            'seconds_per_step': 0.2, 'frame_rate': 10.0, 'parameters': 0, 'dtype': 'float32',
            'device': 'cpu', 'prompt': self._prompt,
            'default_prompt': DEFAULT_PROMPT}

    @classmethod
    def open(cls, model: str, config: SessionConfig) -> FakeSession:
        sys.stderr.write(f'loading {model}\n')
        if model == 'bad':
            raise ValueError(f'the checkpoint {model} has no config.json')
        wait_for(model)
        return cls(model, config)

    def feed(self, frame, stamp_ns=0, received_ns=0):
        if self._paused:
            self._events.put(FramesDropped('paused', 1))
            return
        self._fed += 1
        if self._model == 'lagging' and self._fed % 4:
            self._events.put(FramesDropped('overrun', 1))
            return
        self._frames.append((stamp_ns, received_ns, time.monotonic_ns()))
        if len(self._frames) == FRAMES_PER_STEP:
            self._work.put(self._frames[-1])
            self._frames = []

    def ask(self, question, question_id=None):
        if question == 'die':
            sys.stderr.write('dying as told\n')
            sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        if question == 'give up':
            self._events.put(Trouble('it has failed too often', '', True))
        elif question == 'reject':
            self._events.put(QuestionState(question_id, 'rejected', 'no room'))
        elif question == 'unseen':
            self._events.put(QuestionState(question_id, 'queued', ''))
            self._tell(question_id, 0, '', final='no_video')
        else:
            self._events.put(QuestionState(question_id, 'answering', ''))
            threading.Thread(target=self._answer, args=[question_id, question],
                             daemon=True).start()
        return question_id

    def cancel(self, question_id):
        self._cancelled.add(question_id)

    def set_prompt(self, prompt):
        self._prompt = prompt
        self._restart()
        self._events.put(Restarted('prompt'))

    def reset(self):
        self._tell(NARRATION, next(self._seq), '', final='reset')
        self._restart()
        self._events.put(Restarted('reset'))

    def pause(self, paused):
        self._paused = paused

    def poll(self, timeout_s):
        try:
            return self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def close(self):
        self._stop.set()
        if self._model == 'stuck':
            time.sleep(60.0)
        if self._model == 'tidy':
            time.sleep(0.5)
            sys.stderr.write('all is put away\n')
            sys.stderr.flush()

    def _restart(self):
        self._steps, self._stamp = 0, 0

    def _tell(self, stream, seq, delta, sentence='', final='', first=False):
        now = time.monotonic_ns()
        self._events.put(TextDelta(
            stream, seq, delta, sentence, bool(final), final, self._steps - 1, self._steps,
            self._steps * FRAMES_PER_STEP, self._stamp, now, now, first))

    def _narrate(self):
        while not self._stop.is_set():
            stamp, received, fed = self._work.get()
            begun = time.monotonic_ns()
            times = [time.monotonic_ns() for _ in range(3)]
            self._events.put(StepPerceived(self._steps, stamp, FRAMES_PER_STEP, received, fed,
                                           begun, *times, (times[-1] - begun) // 2))
            self._stamp, self._steps = stamp, self._steps + 1
            self._events.put(FirstSight(self._steps - 1, stamp, begun, time.monotonic_ns()))
            sentence = f'step {self._steps - 1}.'
            for i, token in enumerate(['step', f' {self._steps - 1}', '. ']):
                self._tell(NARRATION, next(self._seq), token, sentence * (i == 2), first=not i)
                time.sleep(TOKEN_S)

    def _answer(self, question_id, question):
        if question == 'late':
            time.sleep(LATE_S)
        wait_for(question)
        words = {'long': ['on'] * LONG_ANSWER_TOKENS,
                 'prompt': self._prompt.split()}.get(question, question.split())
        for seq, word in enumerate(words):
            if question_id in self._cancelled:
                self._tell(question_id, seq, '', final='cancelled')
                return
            self._tell(question_id, seq, word + ' ')
            time.sleep(TOKEN_S)
        self._tell(question_id, len(words), '', ' '.join(words), final='stop')


def wait_for(name: str) -> None:
    """Wait for the file of 'until FILE'."""
    while name.startswith(UNTIL) and not os.path.exists(name.removeprefix(UNTIL)):
        time.sleep(POLL_S)


class FakeEngine:
    """Fake sessions of one model, loaded once; one with the prompt 'bad' cannot be opened."""

    def __init__(self, model: str) -> None:
        self._model = model

    @classmethod
    def open(cls, model: str, config: SessionConfig) -> FakeEngine:
        FakeSession.open(model, config).close()
        return cls(model)

    def session(self, config: SessionConfig) -> FakeSession:
        if config.prompt == 'bad':
            raise ValueError('such a prompt cannot be')
        return FakeSession(self._model, config)

    def close(self) -> None:
        """Free what is loaded."""
