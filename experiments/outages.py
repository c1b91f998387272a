"""
Has robots watch by a pool of engines on Ray while parts of it fail, and says what became of each.

`python -m experiments.outages --json docs/results/outages.json` starts `fleet up` with the built-in
checkpoint. Each robot shows a scene of its own through a link that can be cut, asks all the time,
and hears what is said; what must hold is in `broken`. Stamps of one robot are hours from those of
the others, so whatever is told to the wrong one gives itself away.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
import json
import os
from pathlib import Path
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time

import numpy as np

from experiments.faults import PATIENCE_S, descendants, wait_until
from sww_ros.demo.processes import Child, Household, is_gone
from sww_ros.engine.client import EngineClient, EngineError
from sww_ros.engine.link import Link
from sww_ros.frames import NANOSECONDS, CameraFrame
from sww_ros.shapes.render import Film
from sww_ros.shapes.scene import TICK_S, generate
from sww_ros.shapes.truth import Witness
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import NARRATION, Event, FramesDropped, StepPerceived, TextDelta

FIRST_SEED = 90_000
SCENE_S = 900.0
APART_NS = 3600 * NANOSECONDS
"""From a stamp of one robot to the same moment's of the next."""
ASK_S = 3.0
START_S = 180.0
GRACE_S = 20.0
CUT_S = 5.0
BACK_S = 10.0
"""Within so long each robot is to be told about its own scene again, by an engine that is there."""
NONE_LEFT = 'all_replicas_killed'
"""After this it is told how long others take to start."""


class Proxy:
    """What lies between robots and their engines: a link that can be cut, or hold everything up."""

    def __init__(self, port: int) -> None:
        self._target, self._pairs = port, list[socket.socket]()
        self._listener = socket.create_server(('127.0.0.1', 0))
        self.port = self._listener.getsockname()[1]
        self.cut = False
        self._flows = threading.Event()
        self._flows.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def sever(self) -> None:
        """Cut it: what is connected ends, and what comes finds nobody."""
        self.cut = True
        for each in self._pairs:
            with each, suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Have it be back."""
        self.cut = False
        self._flows.set()

    def hold(self) -> None:
        """Have it carry nothing any more, though nobody is told."""
        self._flows.clear()

    def close(self) -> None:
        """End it."""
        self.sever()
        self._flows.set()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                ours = self._listener.accept()[0]
            except OSError:
                return
            try:
                if self.cut:
                    raise ConnectionError
                theirs = socket.create_connection(('127.0.0.1', self._target))
            except OSError:
                ours.close()
                continue
            self._pairs += [ours, theirs]
            for pair in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self._flows.wait()
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Robot:
    """One that shows its own scene, asks about it, and judges what it is told."""

    def __init__(self, number: int, link: Link) -> None:
        self.name = f'robot-{number}'
        rng = np.random.default_rng([FIRST_SEED, number])
        self.start_ns = (number + 1) * APART_NS
        self._film = Film.of(generate(FIRST_SEED + number, SCENE_S, max_objects=2), rng)
        self._witness = Witness(self._film.scene, self.start_ns)
        self._sent_s: dict[int, float] = {}
        self._told: list[tuple[int, float]] = []
        self.asked: dict[str, str] = {}
        self.ends: dict[str, str] = {}
        self.answers: Counter[str] = Counter()
        self.sentences: Counter[str] = Counter()
        self.frames: Counter[str] = Counter()
        self.foreign: list[str] = []
        self.losses = 0
        self._words: dict[str, list[TextDelta]] = {}
        self._video, self._seen_ns = 0, 0
        self._over = threading.Event()
        self.client = EngineClient('', SessionConfig(), host=link, on_event=self._take,
                                   on_lost=self._lose)
        self._threads = [threading.Thread(target=work, daemon=True)
                         for work in (self._show, self._ask_on)]

    def start(self) -> None:
        """Open the session, and go on until `stop`; raises as `EngineClient.start`."""
        self.client.start(START_S)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Have it show no more, and ask nothing."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def ask(self) -> None:
        """Ask about what has been seen; nothing before."""
        if not self._seen_ns:
            return
        question = self._witness.question(self._seen_ns, ())
        name = f'{self.name}-{len(self.asked)}'
        self.asked[name] = question.text
        try:
            self.client.ask(question.text, name)
        except EngineError as error:
            self.ends[name] = f'refused: {error}'

    def told_after(self, moment_s: float) -> float | None:
        """Return how long after a moment words came about a frame captured after it [s]."""
        return next((round(at_s - moment_s, 2) for stamp_ns, at_s in [*self._told]
                     if self._sent_s[stamp_ns] > moment_s), None)

    @property
    def is_answered(self) -> bool:
        """Whether each question has ended."""
        return len(self.ends) == len(self.asked)

    # On the client's thread.

    def _lose(self, why: str) -> None:
        self.losses += 1

    def _take(self, event: Event) -> None:
        stamp_ns = getattr(event, 'stamp_ns', 0)
        if stamp_ns and stamp_ns not in self._sent_s:
            self.foreign.append(f'{event}')
        elif isinstance(event, StepPerceived):
            self.frames['perceived'] += event.frames
            if event.video > self._video:
                self._witness.restarted(stamp_ns)
            self._video, self._seen_ns = event.video, stamp_ns
        elif isinstance(event, FramesDropped):
            self.frames[f'dropped ({event.reason})'] += event.count
        elif isinstance(event, TextDelta) and event.stream_id == NARRATION:
            self._hear(event)
        elif isinstance(event, TextDelta):
            self._hear_answer(event)

    def _hear(self, text: TextDelta) -> None:
        if text.delta:
            self._told.append((text.stamp_ns, time.monotonic()))
        if text.sentence:
            fact = self._witness.judge(text.sentence, text.stamp_ns)
            self.sentences['true' if fact else text.sentence] += 1

    def _hear_answer(self, text: TextDelta) -> None:
        name = text.stream_id
        if name not in self.asked or name in self.ends:
            self.foreign.append(f'{text}')
            return
        self._words.setdefault(name, []).append(text)
        if text.final:
            self.ends[name] = text.finish_reason
            if text.finish_reason == 'stop':
                self._judge_answer(name)

    def _judge_answer(self, name: str) -> None:
        pieces = self._words[name]
        truths = {self._witness.answer(self.asked[name], piece.stamp_ns) for piece in pieces}
        self.answers['right' if ''.join(piece.delta for piece in pieces).strip() in truths
                     else 'wrong'] += 1

    # On threads of its own.

    def _show(self) -> None:
        begun_s = time.monotonic()
        for pixels, number in self._film.steps(0, int(SCENE_S / 2 / TICK_S) - 1):
            scene_s = self._film.phase_s + number * self._film.period_s
            if self._over.wait(max(0.0, begun_s + scene_s - time.monotonic())):
                return
            stamp_ns = self.start_ns + round(scene_s * NANOSECONDS)
            self._sent_s[stamp_ns] = time.monotonic()
            self.frames['shown'] += 1
            self.client.feed(CameraFrame(partial(np.ascontiguousarray, pixels), stamp_ns,
                                         time.monotonic_ns()))

    def _ask_on(self) -> None:
        while not self._over.wait(ASK_S):
            self.ask()


class PoolProcess:
    """A pool of engines by its own command, in processes of its own; leaving it ends them."""

    def __init__(self, robots: Path, replicas: int, port: int) -> None:
        self._lines: list[str] = []
        self._house = Household(self._note)
        self._command = [
            sys.executable, '-m', 'sww_ros.fleet', 'up', '--replicas', str(replicas), '--port',
            str(port), '--robots', str(robots), '--address', 'local', '--cpus-each', '0.5']

    def __enter__(self) -> PoolProcess:
        self._house.__enter__()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._house.stop(GRACE_S)

    def start(self) -> None:
        """Start it, and wait until it is there; raises RuntimeError when it is not."""
        self._lines.clear()
        self._head: Child = self._house.start('pool', self._command)
        wait_until(lambda: self._is_there() or self._head.ended, START_S)
        if not self._is_there():
            raise RuntimeError(f'there is no pool: {self._lines}')

    def kill(self) -> None:
        """Kill its process, and wait until nothing serves any more; orphans are ours to reap."""
        self._house.forget(self._head)
        pids, serving = descendants(self._head.process.pid), self._named('Serve', 'Proxy')
        self._head.process.kill()
        self._head.process.wait()

        def over() -> bool:
            for pid in pids:
                with suppress(OSError):
                    os.waitpid(pid, os.WNOHANG)
            return all(is_gone(pid) for pid in serving)
        if not wait_until(over):
            raise RuntimeError('what it had started goes on to serve')

    def replicas(self) -> list[int]:
        """Return the process ids of the engines' replicas."""
        return self._named('ServeReplica')

    def _named(self, *names: str) -> list[int]:
        return [pid for pid in descendants(self._head.process.pid)
                if any(name in Path(f'/proc/{pid}/cmdline').read_text() for name in names)]

    def _note(self, _: str, line: str) -> None:
        self._lines.append(line)

    def _is_there(self) -> bool:
        return any('for robots at' in line for line in self._lines)


class Drill:
    """Robots at a pool, and what befalls them: each a method `fault_…`."""

    def __init__(self, pool: PoolProcess, proxy: Proxy, robots: Sequence[Robot]) -> None:
        self._pool, self._proxy, self._robots = pool, proxy, robots
        self.entries: list[dict] = []

    # Each returns when it has ended, from when on it counts until robots narrate again.

    def fault_replica_killed(self) -> None:
        os.kill(self._pool.replicas()[0], signal.SIGKILL)

    def fault_all_replicas_killed(self) -> None:
        for pid in self._pool.replicas():
            os.kill(pid, signal.SIGKILL)

    def fault_link_cut(self) -> None:
        self._proxy.sever()
        time.sleep(CUT_S)
        self._proxy.mend()

    def fault_link_held(self) -> None:
        self._proxy.hold()
        time.sleep(CUT_S)
        self._proxy.mend()

    def fault_head_killed(self) -> None:
        self._pool.kill()
        self._pool.start()

    def run(self, name: str) -> None:
        """Have a fault happen while all robots ask; note what becomes of it."""
        before = [robot.losses for robot in self._robots]
        for robot in self._robots:
            robot.ask()
        begun_s = time.monotonic()
        getattr(self, f'fault_{name}')()
        end_s = time.monotonic()
        if not wait_until(lambda: all(robot.told_after(end_s) is not None
                                      for robot in self._robots)):
            raise RuntimeError(f'{name}: not all robots are told anything within {PATIENCE_S:g} s')
        again_s = [robot.told_after(end_s) or 0.0 for robot in self._robots]
        self.entries.append(dict(
            fault=name, lasted_s=round(end_s - begun_s, 2), again_s=again_s,
            lost=sum(robot.losses > losses for robot, losses in zip(self._robots, before))))

    def summary(self) -> dict:
        """End all, and return what became of questions, sentences, answers and frames."""
        for robot in self._robots:
            robot.stop()
        wait_until(lambda: all(robot.is_answered for robot in self._robots))
        said = [robot.sentences for robot in self._robots]
        answers = sum((robot.answers for robot in self._robots), Counter[str]())
        return dict(
            robots=len(self._robots),
            slowest_s={entry['fault']: max(entry['again_s']) for entry in self.entries},
            questions=sum(len(robot.asked) for robot in self._robots),
            questions_ended=sum(len(robot.ends) for robot in self._robots),
            ends=dict(Counter(end.split(':')[0] for robot in self._robots
                              for end in robot.ends.values())),
            answers=answers.total(), answers_right=answers['right'],
            sentences=sum(each.total() for each in said),
            sentences_true=sum(each['true'] for each in said),
            not_true=[[*each - Counter(true=each['true'])] for each in said],
            foreign=[each for robot in self._robots for each in robot.foreign],
            frames=dict(sum((robot.frames for robot in self._robots), Counter[str]())))


def broken(found: dict) -> list[str]:
    """Return what does not hold of all that has to."""
    summary = found['summary']
    again_s = [seconds for fault, seconds in summary['slowest_s'].items() if fault != NONE_LEFT]
    return [name for name, holds in dict(
        again=max(again_s, default=0.0) < BACK_S,
        questions=summary['questions_ended'] == summary['questions'],
        foreign=not summary['foreign']).items() if not holds]


def kinds() -> list[str]:
    """Return the names of the faults."""
    return [name.removeprefix('fault_') for name in vars(Drill) if name.startswith('fault_')]


def play(faults: Sequence[str], robots: int, replicas: int, between_s: float,
         log: Callable[[str], None]) -> dict:
    """Have each fault happen once; return `summary`, and an entry a fault."""
    tokens = {f'robot-{number}': secrets.token_hex(16) for number in range(robots)}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix='outages-')))
        file = folder / 'robots'
        file.write_text(''.join(f'{name} {token}\n' for name, token in tokens.items()))
        with socket.create_server(('127.0.0.1', 0)) as free:
            port = free.getsockname()[1]
        pool = stack.enter_context(PoolProcess(file, replicas, port))
        proxy = Proxy(port)
        stack.callback(proxy.close)
        there = [Robot(number, Link(f'ws://localhost:{proxy.port}', token))
                 for number, token in enumerate(tokens.values())]
        for robot in there:
            stack.callback(robot.client.close)
            robot.start()
        drill = Drill(pool, proxy, there)
        for fault in faults:
            time.sleep(between_s)
            drill.run(fault)
            log(json.dumps(drill.entries[-1]))
        time.sleep(between_s)
        return dict(summary=drill.summary(), faults=drill.entries)


def main() -> int:
    """Run, print, write; return 0 if all held."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[1])
    parser.add_argument('--robots', type=int, default=8, help='(default: %(default)s)')
    parser.add_argument('--replicas', type=int, default=2, help='(default: %(default)s)')
    parser.add_argument('--between', type=float, default=20.0, help='seconds between two faults '
                        '(default: %(default)s)')
    parser.add_argument('--faults', nargs='+', choices=kinds(), default=kinds(), metavar='KIND',
                        help=f'which of {", ".join(kinds())}, in which order (default: all)')
    parser.add_argument('--json', type=Path, help='file for the figures')
    given = parser.parse_args()
    found = play(given.faults, given.robots, given.replicas, given.between,
                 lambda line: print(line, flush=True))
    print(json.dumps(found['summary'], indent=1))
    if given.json:
        given.json.write_text(json.dumps(dict(replicas=given.replicas, **found), indent=1) + '\n')
    if left := broken(found):
        print(f'what does not hold: {", ".join(left)}')
    return bool(left)


if __name__ == '__main__':
    sys.exit(main())
