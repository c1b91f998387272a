"""The supervision of engines at random: what must hold whatever happens, and in whatever order."""

from __future__ import annotations

from dataclasses import replace
import random

import pytest
from supervision_kit import DELTA, STEP, Play, frame

from sww_ros.engine.supervision import EngineError, Limits
from sww_ros.frames import CameraFrame
from sww_ros.streaming.events import NARRATION, FramesDropped, QuestionState, TextDelta


class Walk:
    """Plays a machine at random, with an engine that accounts for what it is given."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.play = Play(
            limits=Limits(load=4.0, silence=2.0, work=1.0), max_answers=2, max_queued=1,
            question_policy=self.chance.choice(['queue', 'reject', 'interrupt']))
        self.fed = self.perceived = self.held = self.hangs = 0
        self.asked: list[str] = []
        self.out: list[tuple[object, CameraFrame]] = []
        self.loading, self.ending = False, False

    def step(self) -> None:
        machine = self.play.machine
        moves = [self.feed] * 4 + [self.ask, self.take_back, self.tick, self.send, self.send,
                                   self.settle_frame, self.change]
        if machine.ready:
            moves += [self.perceive, self.talk, self.talk, self.refuse, self.die, self.beat]
        elif self.ending:
            moves += [self.end] * 3
        elif self.loading:
            moves += [self.load] * 3
        self.chance.choice(moves)()

    def feed(self) -> None:
        self.fed += 1
        self.play.machine.feed(frame(self.fed))

    def ask(self) -> None:
        question = f'q{len(self.asked)}'
        try:
            self.play.machine.ask('what?', question)
        except EngineError:
            return
        self.asked.append(question)

    def take_back(self) -> None:
        machine, question = self.play.machine, f'q{self.chance.randrange(len(self.asked) + 1)}'
        self.chance.choice([
            lambda: machine.cancel(question), lambda: machine.cancel_all('deactivated'),
            lambda: machine.abandon([question], 'timeout')])()

    def change(self) -> None:
        machine = self.play.machine
        self.chance.choice([
            machine.reset, lambda: machine.pause(self.chance.random() < 0.5),
            lambda: machine.keep_prompt(self.chance.choice(['', 'Look.', 'Count.']))])()

    def tick(self) -> None:
        if self.play.launch(self.chance.choice([0.0, 1.0, 5.0])) is not None:
            self.loading = True
        if self.play.machine.next_kill() is not None:  # Which is a death like any other.
            assert (self.loading or self.play.machine.ready) and not self.ending
            self.play.machine.lost()
            self.hangs += 1
            self.held, self.loading, self.ending = 0, False, True

    def load(self) -> None:
        if self.chance.random() < 0.2:
            self.play.machine.lost()
            self.loading, self.ending = False, True
        else:
            self.play.machine.became_ready({'default_prompt': 'Describe.'})
            self.loading = False

    def send(self) -> None:
        if (found := self.play.machine.next_send()) and isinstance(found[1], CameraFrame):
            self.out.append(found)

    def settle_frame(self) -> None:
        """A frame comes to its engine, whether that lives, or turns out to be bad."""
        if not self.out:
            return
        engine, _ = self.out.pop(0)
        if self.chance.random() < 0.3:
            self.play.machine.frame_failed(engine, 'bad')
        elif engine == self.play.machine.engine and self.play.machine.ready:
            self.held += 1

    def perceive(self) -> None:
        if self.held < 2:
            return
        self.held -= 2
        if self.chance.random() < 0.7:
            self.perceived += 2
            self.play.say(STEP)
        else:
            self.play.say(FramesDropped('overrun', 2))

    def talk(self) -> None:
        stream = self.chance.choice([NARRATION, *self.asked[-4:]])
        if self.chance.random() < 0.3:
            self.play.say(replace(DELTA, stream_id=stream, final=True, finish_reason='stop'))
        elif stream != NARRATION and self.chance.random() < 0.2:
            self.play.say(QuestionState(stream, 'rejected', 'no'))
        else:
            self.play.say(replace(DELTA, stream_id=stream))

    def refuse(self) -> None:
        self.play.machine.received({'type': 'refused', 'prompt': 'Look.', 'kept': ''})

    def beat(self) -> None:
        self.play.beat(*self.chance.choice([(), ('perceive', self.play.machine.now_ns)]))

    def die(self) -> None:
        if self.chance.random() < 0.3:
            self.play.machine.lost()
            self.held, self.ending = 0, True

    def end(self) -> None:
        self.play.machine.ended('it died')
        self.ending = False

    def check(self) -> None:
        """Check what must hold of a walk that is over."""
        deltas = self.play.events(TextDelta)
        for stream in (NARRATION, *self.asked):
            pieces = [event for event in deltas if event.stream_id == stream]
            assert [event.seq for event in pieces] == list(range(len(pieces)))
            if stream != NARRATION:
                assert [event.final for event in pieces] == [False] * (len(pieces) - 1) + [True]
        assert {event.stream_id for event in deltas} <= {NARRATION, *self.asked}
        videos = [event.video for event in deltas if event.stream_id == NARRATION]
        assert videos == sorted(videos)
        dropped = sum(self.play.dropped().values())
        assert self.fed == self.perceived + dropped


@pytest.mark.parametrize('seed', range(300))
def test_whatever_happens_questions_end_once_and_frames_are_perceived_or_dropped(seed: int):
    walk = Walk(seed)
    for _ in range(walk.chance.randrange(1, 120)):
        walk.step()
    machine = walk.play.machine
    machine.close()
    walk.play.listen()
    told = len(walk.play.told)
    for late in (machine.lost, lambda: machine.ended('closed'), lambda: machine.feed(frame()),
                 lambda: walk.play.say(DELTA, STEP), walk.take_back, walk.change, walk.send):
        late()
    walk.play.listen()
    assert len(walk.play.told) == told, 'nothing is told after the end'
    walk.check()
    assert walk.play.sent() == [] and walk.play.launch(100.0) is None


def test_the_walks_meet_engines_that_hang():
    hangs = 0
    for seed in range(100):
        walk = Walk(seed)
        for _ in range(120):
            walk.step()
        hangs += walk.hangs
    assert hangs > 30
