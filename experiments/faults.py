"""
Runs the narrator for an hour with a fault a minute, and says what became of each.

`python -m experiments.faults --minutes 60 --json docs/results/faults.json` starts the node with the
built-in checkpoint, a camera of the shapes world and somebody who asks all the time. What must hold
is in `Stand.summary`; a line a fault goes to the file of the same name that ends in `.log`. Between
camera and narrator stands the `Watch`: it spoils frames, asks, hears what is said, and sees what is
held.
"""

from __future__ import annotations

import argparse
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
import json
import os
from pathlib import Path
import random
import signal
import sys
import threading
import time
from typing import Any

from builtin_interfaces.msg import Time
import cv2
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image

from sww_interfaces.msg import StepLatency, TextChunk
from sww_interfaces.srv import Ask
from sww_ros.demo.processes import Child, Household, children, claim_domain, command_of, is_gone

PATIENCE_S = 120.0
"""How long anything may take before the run gives it up as lost."""
SIZES = ((336, 336), (640, 480), (101, 57))
"""Width and height [pixels]."""
BROKEN: tuple[dict[str, Any], ...] = (
    dict(encoding='nonsense'), dict(encoding='32FC1'), dict(data=array('B', [1] * 99)),
    dict(data=array('B')), dict(width=0), dict(height=0), dict(step=1), dict(step=2 ** 32 - 1),
    dict(width=2 ** 32 - 1, height=2 ** 32 - 1), dict(encoding='yuv422', width=335))


def living_children(pid: int) -> list[int]:
    """Return the process ids of the children of a process, those that have ended apart."""
    return [child for child in children(pid) if not is_gone(child)]


def descendants(pid: int) -> list[int]:
    """Return the process ids of all that a process has started, and they in turn."""
    return [deeper for child in living_children(pid) for deeper in (child, *descendants(child))]


def held(pid: int) -> dict[str, int]:
    """Return what a process, or one that it has started, holds of what can leak."""
    family = [pid, *descendants(pid)]
    status = dict(line.split(':', 1) for line in _read(Path(f'/proc/{pid}/status')).splitlines())
    return dict(processes=len(family), shared_memory=len(shared_memory(family)),
                descriptors=len(os.listdir(f'/proc/{pid}/fd')), threads=int(status['Threads']),
                rss_mib=int(status['VmRSS'].split()[0]) // 1024)


def shared_memory(pids: Iterable[int]) -> set[str]:
    """Return the files in memory that processes have mapped."""
    return {line.split(None, 5)[5] for pid in pids
            for line in _read(Path(f'/proc/{pid}/maps')).splitlines()
            if '/dev/shm/' in line or 'memfd:' in line}


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ''


class Watch:
    """A ROS node between camera and narrator: spoils frames, asks, and hears all that is said."""

    def __init__(self) -> None:
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        self.node = rclpy.create_node('watch')
        self.offset_s, self.size, self.broken = 0.0, SIZES[0], False
        self.sent_s: dict[int, float] = {}
        self.told: deque[tuple[int, float]] = deque(maxlen=4096)
        self.seen: deque[tuple[int, float]] = deque(maxlen=4096)
        self.frames: dict[str, int] = {}
        self.restarts = self.asked = self.answered = self.refused = 0
        self.responses: set[str] = set()
        self.ends: dict[str, str] = {}
        deep = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)
        self._images = self.node.create_publisher(Image, 'image', qos_profile_sensor_data)
        for kind, topic, take, qos in (
                (Image, 'eye', self._pass_on, qos_profile_sensor_data),
                (TextChunk, 'narrator/caption', self._hear, deep),
                (TextChunk, 'narrator/answer', self._hear_answer, deep),
                (StepLatency, 'narrator/latency', self._note_step, deep),
                (DiagnosticArray, '/diagnostics', self._note_health, 10)):
            self.node.create_subscription(kind, topic, take, qos)
        self._ask = self.node.create_client(Ask, 'narrator/ask', qos_profile=deep)
        self._change = self.node.create_client(ChangeState, 'narrator/change_state')
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._stopping = False
        self._thread.start()

    def close(self) -> None:
        """Leave ROS."""
        self._stopping = True
        self._thread.join()
        self.node.destroy_node()
        rclpy.try_shutdown()

    def ask(self, question: str, wait: bool = False) -> None:
        """Ask; `asked` grows at once, and `ended` once there is an answer or a reason."""
        self.asked += 1
        self._ask.call_async(Ask.Request(question=question, wait=wait)).add_done_callback(
            self._note_response)

    @property
    def responded(self) -> int:
        """How many questions were taken or refused."""
        return len(self.responses) + self.refused

    @property
    def ended(self) -> int:
        """How many questions have ended, with an answer or with a reason."""
        return len(self.responses & {*self.ends}) + self.refused

    @property
    def unaccounted(self) -> int:
        """Frames that the narrator received and has neither perceived nor dropped."""
        counts = dict(self.frames)
        return counts.pop('received', 0) - sum(counts.values())

    def change(self, transition: int) -> None:
        """
        Take the narrator through a transition.

        :raises RuntimeError: when it is refused, fails, or lasts too long
        """
        done = threading.Event()
        future = self._change.call_async(ChangeState.Request(transition=Transition(id=transition)))
        future.add_done_callback(lambda _: done.set())
        if not done.wait(PATIENCE_S) or not future.result().success:
            raise RuntimeError(f'the transition {transition} failed')

    def _spin(self) -> None:
        while not self._stopping:
            self._executor.spin_once(timeout_sec=0.1)

    def _pass_on(self, image: Image) -> None:
        stamp_ns = _nanoseconds(image.header.stamp) + round(self.offset_s * 1e9)
        image.header.stamp = Time(sec=stamp_ns // 10 ** 9, nanosec=stamp_ns % 10 ** 9)
        if (image.width, image.height) != self.size:
            pixels = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)
            image.data = array('B', cv2.resize(pixels, self.size).tobytes())
            image.width, image.height = self.size
            image.step = 3 * image.width
        for field, value in (BROKEN[len(self.sent_s) % len(BROKEN)] if self.broken else {}).items():
            setattr(image, field, value)
        self.sent_s[stamp_ns] = time.monotonic()
        self._images.publish(image)

    def _hear(self, chunk: TextChunk) -> None:
        if chunk.delta:
            self.told.append((_nanoseconds(chunk.header.stamp), time.monotonic()))

    def _hear_answer(self, chunk: TextChunk) -> None:
        if chunk.is_final:
            self.ends[chunk.stream_id] = chunk.finish_reason

    def _note_step(self, step: StepLatency) -> None:
        if step.has_first_token:
            self.seen.append((_nanoseconds(step.header.stamp), time.monotonic()))

    def _note_response(self, done: rclpy.task.Future) -> None:
        response = done.result()
        if response.accepted:
            self.responses.add(response.question_id)
        elif response.reason:
            self.refused += 1

    def _note_health(self, health: DiagnosticArray) -> None:
        for status in health.status:
            values = {value.key: value.value for value in status.values}
            if status.name == 'narrator: camera':
                self.frames = {key.removeprefix('frames '): int(value)
                               for key, value in values.items() if key.startswith('frames ')}
            self.restarts = int(values.get('restarts', self.restarts))


def _nanoseconds(stamp: Time) -> int:
    return stamp.sec * 10 ** 9 + stamp.nanosec


def wait_until(condition: Callable[[], object], patience_s: float = PATIENCE_S) -> bool:
    """Wait until a condition holds; False after the time."""
    end = time.monotonic() + patience_s
    while not (holds := bool(condition())) and time.monotonic() < end:
        time.sleep(0.02)
    return holds


RATE_HZ = 5.0
QUESTIONS = ('What colour is the square?', 'How many shapes are there?', 'Where is the circle?')
STORM = 200
JUMPS_S = (3600.0, -3600.0, 0.7, -30.0)
NARRATOR = ('overlap:=processes', 'diagnostics_period:=0.5', 'camera_timeout:=3600.0')
"""In two processes, so that there is one that perceives to be killed."""


class Stand:
    """The narrator with its camera, and the faults that befall them, each a method `fault_…`."""

    def __init__(self, house: Household, watch: Watch, seed: int, outage_s: float) -> None:
        """
        Start all, and wait until something is told.

        :param outage_s: how long what passes lasts: a stop, a camera that is gone [s]
        :raises RuntimeError: when nothing is told
        """
        self._house, self.watch, self._outage_s = house, watch, outage_s
        self._random = random.Random(seed)
        self._lives: Counter[str] = Counter()
        self.entries: list[dict] = []
        self.left: set[str] = set()
        self.narrator = house.start('narrator', [*command_of('narrator'), *_parameters(*NARRATOR)])
        self._start_camera()
        if not wait_until(lambda: watch.told and watch.restarts == 0 and watch.frames):
            raise RuntimeError('the narrator does not speak')
        self.fault_questions()  # Threads that come with the first questions are no leak.
        wait_until(lambda: watch.ended == watch.asked)
        self.take_note()
        self._asking = threading.Thread(target=self._ask_on, daemon=True)
        self._done = threading.Event()
        self._asking.start()

    def take_note(self) -> None:
        """Note what is held now: what is more at the end has leaked."""
        self._before = held(self.narrator.process.pid)

    @property
    def engine(self) -> int:
        """The process id of the engine, once there is one that perceives."""
        found: list[int] = []

        def look() -> bool:
            found[:] = [child for child in living_children(self.narrator.process.pid)
                        if living_children(child)]
            return bool(found)
        if not wait_until(look):
            raise RuntimeError('there is no engine')
        return found[0]

    # The faults: each returns when it has ended, from when on recovery counts (None: now).

    def fault_kill_engine(self) -> None:
        os.kill(self.engine, signal.SIGKILL)

    def fault_kill_perceiver(self) -> None:
        os.kill(living_children(self.engine)[0], signal.SIGKILL)

    def fault_stop_engine_for_a_while(self) -> None:
        pid = self.engine
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: is_gone(pid), self._outage_s)
        if not is_gone(pid):
            os.kill(pid, signal.SIGCONT)

    def fault_stop_engine_for_ever(self) -> float:
        return self._stop_for_ever(self.engine, self.engine)

    def fault_stop_perceiver_for_ever(self) -> float:
        return self._stop_for_ever(living_children(self.engine)[0], self.engine)

    def _stop_for_ever(self, pid: int, engine: int) -> float:
        """Stop a process; return how long it took until the engine was ended for it [s]."""
        began_s = time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        if not wait_until(lambda: is_gone(engine)):
            os.kill(pid, signal.SIGCONT)
            raise RuntimeError('nobody noticed')
        return time.monotonic() - began_s

    def fault_camera_gone(self) -> None:
        self.left |= shared_memory([self._camera.process.pid])
        self._camera.process.kill()
        self._camera.process.wait()
        self._house.forget(self._camera)
        time.sleep(self._outage_s / 2)
        sent = len(self.watch.sent_s)
        self._start_camera()
        wait_until(lambda: len(self.watch.sent_s) > sent)

    def fault_image_size(self) -> None:
        self.watch.size = self._random.choice([s for s in SIZES if s != self.watch.size])

    def fault_clock(self) -> None:
        self.watch.offset_s += self._random.choice(JUMPS_S)

    def fault_questions(self) -> None:
        for number in range(STORM):
            self.watch.ask(QUESTIONS[number % len(QUESTIONS)], wait=number % 8 == 0)
        wait_until(lambda: self.watch.responded == self.watch.asked)

    def fault_broken_frames(self) -> None:
        self.watch.broken = True
        time.sleep(self._outage_s / 2)
        self.watch.broken = False

    def fault_lifecycle(self) -> None:
        self.watch.change(Transition.TRANSITION_DEACTIVATE)
        self._account()
        self.watch.change(Transition.TRANSITION_CLEANUP)
        self.watch.change(Transition.TRANSITION_CONFIGURE)
        self.watch.change(Transition.TRANSITION_ACTIVATE)

    def run(self, name: str, log: Callable[[str], None]) -> None:
        """Have a fault happen; note what becomes of it."""
        begun_s, watch, noticed_s, trouble = time.monotonic(), self.watch, None, ''
        try:
            noticed_s = getattr(self, f'fault_{name}')()
        except RuntimeError as error:
            trouble = str(error)
        end_s = time.monotonic()
        told, seen = (lambda: first_after(watch.told, watch.sent_s, end_s),
                      lambda: first_after(watch.seen, watch.sent_s, end_s))
        wait_until(lambda: self.narrator.ended or told() is not None and seen() is not None)
        entry = dict(fault=name, lasted_s=round(end_s - begun_s, 2), recovery_s=told(),
                     seen_s=seen(), restarts=watch.restarts, alive=not self.narrator.ended,
                     **({} if self.narrator.ended else dict(
                         rss_mib=held(self.narrator.process.pid)['rss_mib'])),
                     **({} if noticed_s is None else dict(noticed_s=round(noticed_s, 2))),
                     **({} if not trouble else dict(trouble=trouble)))
        self.entries.append(entry)
        log(f'{name}: ' + ', '.join(f'{key} {value}' for key, value in entry.items()
                                    if key != 'fault'))

    def summary(self, minutes: float) -> dict:
        """End all, and return what became of questions, frames and what was held."""
        watch, pid = self.watch, self.narrator.process.pid
        self._done.set()
        self._asking.join()
        wait_until(lambda: watch.ended == watch.asked)
        before = self._before | dict(rss_mib=round(1.1 * self._before['rss_mib']))
        leaks: dict[str, int] = {}

        def clean() -> bool:
            leaks.update({f'leaked_{what}': max(0, count - before[what])
                          for what, count in held(pid).items()})
            return not any(leaks.values())
        wait_until(clean, PATIENCE_S / 2)  # A participant that was killed is missed after a while.
        after = held(pid)
        watch.change(Transition.TRANSITION_DEACTIVATE)
        self._account()
        self._house.forget(self.narrator)
        self.narrator.process.send_signal(signal.SIGINT)
        code = self.narrator.process.wait(PATIENCE_S)
        leaks['leaked_processes'] += len(
            set(living_children(os.getpid())) - {self._camera.process.pid})
        recoveries = [entry['recovery_s'] for entry in self.entries]
        return dict(
            minutes=round(minutes, 1), faults=len(recoveries),
            recovered=sum(entry['recovery_s'] is not None and 'trouble' not in entry
                          for entry in self.entries),
            slowest_recovery_s=max((found for found in recoveries if found is not None),
                                   default=None),
            questions=watch.asked, questions_ended=watch.ended,
            finish_reasons=dict(Counter(watch.ends.values())), questions_refused=watch.refused,
            frames=self._lives['received'], frames_accounted=self._lives['accounted'],
            frames_by_fate={fate: count for fate, count in self._lives.items()
                            if fate not in ('received', 'accounted')},
            exit_code=code, held_before=self._before, held_after=after, **leaks)

    def _account(self) -> None:
        """Add up the frames since the node was configured; it has to be inactive."""
        frames: list[dict] = []

        def rests() -> bool:
            frames[:] = [*frames[-1:], dict(self.watch.frames)]
            return self.watch.unaccounted == 0 and len(frames) == 2 and frames[0] == frames[1]
        wait_until(lambda: time.sleep(0.6) or rests(), 20.0)
        self._lives.update(self.watch.frames)
        self._lives['accounted'] += self.watch.frames['received'] - self.watch.unaccounted

    def _start_camera(self) -> None:
        seed = self._random.randrange(10 ** 6)
        self._camera: Child = self._house.start('camera', [
            *command_of('shapes_camera'), *_parameters(f'seed:={seed}', f'rate:={RATE_HZ}'),
            '-r', 'image:=eye'])

    def _ask_on(self) -> None:
        while not self._done.wait(5.0):
            self.watch.ask(self._random.choice(QUESTIONS))


def _parameters(*values: str) -> list[str]:
    return ['--ros-args', *(part for value in values for part in ('-p', value))]


def first_after(pieces: Iterable[tuple[int, float]], sent_s: dict[int, float],
                since_s: float) -> float | None:
    """
    Return how long after a moment the first piece came about a frame sent after it [s].

    After a jump of the clock a stamp may come twice; what was said before it was sent is older.
    """
    return next((round(at_s - since_s, 2) for stamp_ns, at_s in list(pieces)
                 if since_s < sent_s.get(stamp_ns, 0.0) < at_s), None)


def kinds() -> list[str]:
    """Return the names of the faults."""
    return [name.removeprefix('fault_') for name in vars(Stand) if name.startswith('fault_')]


def order(names: list[str], seed: int) -> Iterator[str]:
    """Yield kinds of faults without end: all of them in a new order, again and again."""
    shuffled = random.Random(seed)
    while True:
        yield from shuffled.sample(names, len(names))


def play(minutes: float, every_s: float, seed: int, outage_s: float,
         log: Callable[[str], None], faults: list[str]) -> dict:
    """
    Run for so long, a fault at a time; return `summary`, and an entry a fault.

    :param every_s: from one fault to the next [s], at least; with 0 each kind comes once, however
        long that takes
    """
    begun_s, names = time.monotonic(), order(faults, seed)
    with Household() as house:
        watch = Watch()
        try:
            stand = Stand(house, watch, seed, outage_s)
            begun_s = time.monotonic()
            while (len(stand.entries) < len(faults) if not every_s
                   else time.monotonic() - begun_s < 60 * minutes):
                house.check()
                due_s = time.monotonic() + every_s
                stand.run(next(names), log)
                if every_s and len(stand.entries) == len(faults):
                    stand.take_note()  # Each kind has made it as large as it has to be.
                time.sleep(max(0.0, due_s - time.monotonic()))
            summary = stand.summary((time.monotonic() - begun_s) / 60)
        finally:
            watch.close()
    for path in stand.left:  # A killed camera leaves its segments; who ends well does not.
        Path(path).unlink(missing_ok=True)
    return dict(summary=summary, faults=stand.entries)


def main() -> int:
    """Run, print, write; return 0 if all held."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[1])
    parser.add_argument('--minutes', type=float, default=60.0)
    parser.add_argument('--every', type=float, default=60.0, help='seconds between two faults; 0: '
                        'each kind once, as fast as it recovers (default: %(default)s)')
    parser.add_argument('--outage', type=float, default=20.0, help='how long what passes lasts [s] '
                        '(default: %(default)s)')
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--faults', nargs='+', choices=kinds(), default=kinds(), metavar='KIND',
                        help=f'which of {", ".join(kinds())} (default: all)')
    parser.add_argument('--json', type=Path, help='file for the figures')
    arguments = parser.parse_args()
    lock = claim_domain()
    begun_s, lines = time.monotonic(), []

    def log(line: str) -> None:
        seconds = round(time.monotonic() - begun_s)
        lines.append(f'{seconds // 60:02d}:{seconds % 60:02d} {line}')
        print(lines[-1], flush=True)
        if arguments.json:
            arguments.json.with_suffix('.log').write_text('\n'.join(lines) + '\n')
    result = dict(seed=arguments.seed, **play(
        arguments.minutes, arguments.every, arguments.seed, arguments.outage, log,
        arguments.faults))
    if lock is not None:
        os.close(lock)
    print(json.dumps(result['summary'], indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + '\n')
    return 0 if not broken(result['summary']) else 1


def broken(summary: dict) -> list[str]:
    """Return what does not hold of all that has to, whatever the machine's pace."""
    return [*(name for name in summary if name.startswith('leaked_') and summary[name]),
            *(name for name, whole in (('recovered', 'faults'), ('questions_ended', 'questions'),
                                       ('frames_accounted', 'frames'), ('exit_code', None))
              if summary[name] != (summary[whole] if whole else 0))]


if __name__ == '__main__':
    sys.exit(main())
