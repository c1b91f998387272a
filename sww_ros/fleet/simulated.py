"""
Engines of a pool in virtual time: the engine's own rules, with passes that only take their time.

No thread, clock or tensor: cameras take their pictures, jobs are taken by the rules of
streaming/rules.py in the turns that the engine keeps, streams are relieved by those of
streaming/relay.py, and a pass lasts what one was measured to last. Not simulated: questions, and
what two threads cost each other on the same cores.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
import heapq
from math import inf
from operator import attrgetter
import random
from typing import Any, cast

from sww_ros.streaming.core import Core
from sww_ros.streaming.jobs import Carry, Decode, Perceive
from sww_ros.streaming.relay import Relay
from sww_ros.streaming.rules import JOINT_TOKENS, RULES, Handed, Rota, Rule, looked_at

FULL = 'full'
ARRIVALS = ('together', 'apart', 'spaced', 'random', FULL)
"""
All cameras take their pictures at the same moments, which is the worst; each at its own, at the
same rate, drawn or as far from those of others as can be; at moments that know nothing of each
other (a Poisson process); or, at full load, as soon as a step has been perceived, with as many
waiting as may, the first ones at moments as far from those of others as can be.
"""
WAITING = 4
"""Steps of a camera that may wait, as `max_pending_frames` has it; the oldest gives way."""
FULL_STEPS = 200
"""So many of each camera are simulated at full load."""
CAP = 4
"""How many steps' tokens may be left to say, as in the live schedule."""


@dataclass(frozen=True)
class Costs:
    """
    What passes take.

    A step's perception takes `step_s`; `tokens_s` has, by the number of speakers, what the next
    token of each takes, from 1 on, with straight lines between and beyond; `spread` by what a
    pass is multiplied, by its share of all passes, in the same way: ((0.5, 1.0), (0.99, 1.6)).
    A step has so many visual tokens, by which small ones share a pass, where each after the first
    takes `more_s` (None: as much as the first). A piece of a stream's successor takes `piece_s` if
    it is the first in a pass without steps, else `more_piece_s` (None: as much).
    Of pictures that are taken at the same moment those of each camera come `feed_s` after those of
    the one before. For `look_s` of what a step takes it is looked at before it is taken, if it is
    one of several cameras': steps that come meanwhile go into its pass.
    """

    step_s: float
    tokens_s: tuple[tuple[float, float], ...] = ()
    spread: tuple[tuple[float, float], ...] = ()
    more_s: float | None = None
    step_tokens: int = JOINT_TOKENS
    piece_s: float = 0.0
    more_piece_s: float | None = None
    feed_s: float = 0.0
    look_s: float = 0.0

    @staticmethod
    def read(found: dict) -> Costs:
        """
        Return those that were written as JSON.

        :raises TypeError: for what are none
        """
        pairs = {name: tuple((x, y) for x, y in found[name]) for name in ('tokens_s', 'spread')
                 if name in found}
        return Costs(**(found | pairs))

    def pass_s(self, steps: int, speakers: int, share: float = 0.5, pieces: int = 0) -> float:
        """Return what a pass takes [s], at this share of all passes."""
        more_s = self.piece_s if self.more_piece_s is None else self.more_piece_s
        taken = pieces * more_s
        if steps:
            taken += self._steps_s(steps)
        elif pieces:
            taken += self.piece_s - more_s
        if speakers and self.tokens_s:
            taken += _at(self.tokens_s, speakers)
        return taken * self._factor(share)

    def looking_s(self, steps: int, share: float = 0.5) -> float:
        """Return for how long steps are looked at together [s], at this share of all passes."""
        if not (steps and self.look_s):
            return 0.0
        return self.look_s * self._steps_s(steps) / self.step_s * self._factor(share)

    def _steps_s(self, steps: int) -> float:
        return self.step_s + (steps - 1) * (self.step_s if self.more_s is None else self.more_s)

    def _factor(self, share: float) -> float:
        if not self.spread:
            return 1.0
        return _at(self.spread, min(max(share, self.spread[0][0]), self.spread[-1][0]))


def _at(points: Sequence[tuple[float, float]], x: float) -> float:
    """Return the height at `x` of the line through points, which goes on straight."""
    if len(points) == 1:
        return points[0][1]
    after = min(max(1, bisect_left(points, (x,))), len(points) - 1)
    (left, low), (right, high) = points[after - 1:after + 1]
    return low + (high - low) * (x - left) / (right - left)


@dataclass(frozen=True)
class Load:
    """
    What a camera asks for: a step every so often, and `tokens` to be said of each.

    The last of them is the silence after what is said; with none, nothing is decoded.
    """

    step_every_s: float
    tokens: int = 3
    arrivals: str = 'together'

    def __post_init__(self) -> None:
        if self.arrivals not in ARRIVALS:
            raise ValueError(f'arrivals must be one of {", ".join(ARRIVALS)}, not {self.arrivals}')
        if self.step_every_s <= 0 or self.tokens < 0:
            raise ValueError('a step must come every so many seconds, more than 0, and have 0 '
                             'tokens or more')


@dataclass
class Served:
    """
    What came of a simulation, over all cameras.

    `latencies_s` has, for each step, the time from its capture to the first token that saw it,
    `waits_s` that to the end of its perception; `dropped` steps gave way to newer ones. Passes
    took `busy_s` of the `lasted_s` until all was said.
    """

    latencies_s: list[float] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    dropped: int = 0
    busy_s: float = 0.0
    lasted_s: float = 0.0


class SimulatedCamera:
    """
    What the rules ask of a core, for one camera that is narrated.

    Its pictures come to the engine `late_s` after they are taken.
    """

    def __init__(self, turn: int, load: Load, waiting: int, outcome: Served,
                 step_tokens: int = JOINT_TOKENS, relay: Relay | None = None,
                 again: int = 0) -> None:
        """
        Begin.

        :param turn: its place among those that wait: who has perceived goes behind them
        :param relay: when its stream is relieved
        :param again: of so many steps pictures are taken as soon as one has been perceived
        """
        self.turn, self.late_s = turn, 0.0
        self._load, self._waiting, self._outcome = load, waiting, outcome
        self._step_tokens, self._relay, self._again = step_tokens, relay, again
        self._captured: deque[float] = deque()
        self._perceiving: tuple[Perceive | Carry, float] | None = None
        self._unseen: list[float] = []
        self._decoding, self._sees = False, 0
        self._left = self._decodes_first = 0
        # Steps of the stream, pieces that its successor lacks, and those since the last step.
        self._steps = self._lacks = self._pieces = 0

    @property
    def rests(self) -> bool:
        """Whether it has nothing to do until it takes the next pictures."""
        return not (self._captured or self._left or self._perceiving or self._decoding
                    or self._lacks)

    def go_on(self, steps: int) -> None:
        """Begin with a stream that has so many steps."""
        self._steps = steps

    def capture(self, now_s: float) -> None:
        """Take the pictures of a step."""
        self._captured.append(now_s)
        if len(self._captured) > self._waiting:
            self._captured.popleft()
            self._outcome.dropped += 1

    # As `Core` has them.

    @property
    def frames_due(self) -> bool:
        """Whether there are frames that may be looked at."""
        return (self.tokens_due > 0 and not self._is_piece_first
                and len(self._captured) < self._waiting)

    @property
    def prefers_perception(self) -> bool:
        return not (self._decodes_first and self._left and not self._decoding)

    @property
    def tokens_due(self) -> float:
        return 0 if not self._captured or self._perceiving else self._step_tokens

    @property
    def piece_tokens(self) -> float:
        return 0 if not self._lacks or self._perceiving else self._step_tokens

    def next_perception(self, shared: bool = False) -> Perceive | Carry | None:
        if self._perceiving or not self._captured:
            return None
        if self._is_piece_first:
            return self.next_piece()
        job = Perceive(cast(Any, self), (), False)
        self._perceiving, self._pieces = (job, self._captured.popleft()), 0
        return job

    def next_piece(self) -> Carry | None:
        if not self.piece_tokens:
            return None
        job = Carry(cast(Any, self), cast(Any, self), 0)
        self._perceiving, self._pieces = (job, 0.0), self._pieces + 1
        return job

    @property
    def _is_piece_first(self) -> bool:
        relay = self._relay
        return bool(relay and self._lacks and (
            self._steps >= relay.max_steps or self._pieces < relay.pieces))

    def next_decode(self, now_ns: int, riding: Perceive | None = None) -> Decode | None:
        left = self._more() if riding else self._left
        if self._decoding or not left:
            return None
        self._decoding, self._sees = True, len(self._unseen) + (riding is not None)
        return Decode((), now_ns, riding)

    # What has come of jobs; those of one pass in their order.

    def perceived(self, now_s: float) -> None:
        assert self._perceiving is not None
        captured_s = self._perceiving[1]
        self._perceiving = None
        self._steps += 1
        if self._lacks:
            self._lacks += 1
        elif self._relay and self._steps >= self._relay.capacity:
            self._lacks = 1 + self._relay.memory
        if self._again:
            self._again -= 1
            self.capture(now_s)
        self._outcome.waits_s.append(now_s - captured_s)
        self._left = self._more()
        if self._load.tokens:
            self._unseen.append(captured_s)
        self._decodes_first = self._load.tokens if self._captured else 0

    def decoded(self, now_s: float) -> None:
        seen, self._unseen = self._unseen[:self._sees], self._unseen[self._sees:]
        self._outcome.latencies_s += [now_s - captured_s for captured_s in seen]
        self._decoding = False
        self._left -= 1
        self._decodes_first = max(0, self._decodes_first - 1)

    def carried(self) -> None:
        """A piece is there: the successor that has all of them takes over."""
        self._perceiving = None
        self._lacks -= 1
        if not self._lacks and self._relay:
            self._steps = self._relay.memory + max(0, self._steps - self._relay.capacity)

    def _more(self) -> int:
        """Return how many tokens are left to say once another step has been perceived."""
        return min(self._left + self._load.tokens, CAP * self._load.tokens)


class _Worker:
    """A thread of an executor: it looks at steps, and has them in a pass."""

    def __init__(self, rule: Rule, costs: Costs, chance: random.Random, cameras: int) -> None:
        """:param cameras: how many share it, and so which turn the next one to perceive has"""
        self.idle = True
        self._rule, self._costs, self._chance, self._turn = rule, costs, chance, cameras
        self._looks = cameras > 1 and costs.look_s > 0
        self._looked: set[Core] = set()
        self._share = 0.0

    def begin(self, turns: Rota, now_s: float) -> tuple[float, Handed] | None:
        """Begin to look at steps, or with a pass: return for how long, and what is in it."""
        ahead = {*looked_at(self._rule, turns.cores)} - self._looked if self._looks else set()
        if ahead:
            if not self._looked:
                self._share = self._chance.random()
            self.idle, self._looked = False, self._looked | ahead
            return self._costs.looking_s(len(ahead), self._share), []
        if not (handed := turns.take(self._rule, round(now_s * 1e9))):
            return None
        speakers = pieces = 0
        for core, job in handed:
            if isinstance(job, Decode):
                speakers += 1
            else:
                pieces += isinstance(job, Carry)
                self._turn += 1
                cast(SimulatedCamera, core).turn = self._turn
        looked = len(self._looked)
        share = self._share if looked else self._chance.random()
        taken_s = self._costs.pass_s(len(handed) - speakers - pieces, speakers, share, pieces)
        self.idle, self._looked = False, set()
        return max(0.0, taken_s - self._costs.looking_s(looked, share)), handed


def simulate_engine(costs: Costs, load: Load, cameras: int, steps: int, *, seed: int = 0,
                    overlap: str = 'fused', waiting: int = WAITING,
                    relay: Relay | None = None) -> Served:
    """
    Let cameras be narrated on one engine, each for so many steps.

    :param overlap: how the engine shares its time: 'fused', 'serial' or, with two threads that
        do not slow each other, 'threads'
    :param waiting: how many steps of a camera may wait
    :param relay: when streams are relieved; None: they go on
    """
    chance, outcome = random.Random(seed), Served()
    watched = [SimulatedCamera(number, load, waiting, outcome, costs.step_tokens, relay,
                               steps - waiting if load.arrivals == FULL else 0)
               for number in range(cameras)]
    workers = [_Worker(rule, costs, chance, cameras) for rule in RULES[overlap].values()]
    # Those that have something to do, in the order of their turns.
    turns = Rota()
    busy = cast(list[SimulatedCamera], turns.cores)
    events: list[tuple[float, int, Any]] = []
    between_s = costs.feed_s if load.arrivals == 'together' else 0.0
    for number, camera in enumerate(watched):
        camera.late_s = number * between_s
        if relay and load.arrivals in ('apart', 'random'):
            # They began at other times too: their streams are not relieved all at once.
            camera.go_on(chance.randrange(relay.memory, relay.capacity))
        for at_s in _captures(load, min(steps, waiting) if load.arrivals == FULL else steps,
                              chance, number / cameras):
            events.append((at_s + camera.late_s, len(events), camera))
    heapq.heapify(events)
    order, now_s = len(events), 0.0
    while events:
        now_s = events[0][0]
        while events and events[0][0] == now_s:
            event = heapq.heappop(events)[2]
            if isinstance(event, SimulatedCamera):
                if event.rests:
                    insort(busy, event, key=attrgetter('turn'))
                event.capture(now_s - event.late_s)
            else:
                worker, handed = event
                worker.idle = True
                for camera in _hand_in(handed, now_s):
                    if camera.rests:
                        busy.remove(camera)
        for worker in workers:
            if worker.idle and (begun := worker.begin(turns, now_s)):
                taken_s, handed = begun
                order += 1
                outcome.busy_s += taken_s
                heapq.heappush(events, (now_s + taken_s, order, (worker, handed)))
    outcome.lasted_s = now_s
    return outcome


def steps_a_second(costs: Costs, tokens: int, cameras: int, engines: int = 1, *,
                   relay: Relay | None = None, outside_s: float = 0.0, cores: float = inf,
                   waiting: int = WAITING, overlap: str = 'fused', pace: float = 1.0) -> float:
    """
    Return how many steps engines perceive and narrate at full load, of all cameras.

    :param cameras: on all engines, evenly
    :param outside_s: what cores compute for a step beside engines, each of which has one [s]
    :param cores: of the machine that all of this is on; what it has not is waited for
    :param waiting: steps of a camera that wait all the time
    :param pace: what passes take there, over what they cost
    """
    found = 0.0
    for number in range(engines):
        served = simulate_engine(
            costs, Load(cameras * costs.step_s, tokens, FULL),
            cameras // engines + (number < cameras % engines), FULL_STEPS, seed=number,
            relay=relay, waiting=waiting, overlap=overlap)
        found += len(served.waits_s) / served.lasted_s / pace
    return found / max(1.0, (engines + found * outside_s) / cores)


def _hand_in(handed: Handed, now_s: float) -> set[SimulatedCamera]:
    """Tell cameras that their jobs are done; return these cameras."""
    cameras = set()
    for core, job in handed:
        camera = cast(SimulatedCamera, core)
        cameras.add(camera)
        if isinstance(job, Decode):
            camera.decoded(now_s)
        elif isinstance(job, Carry):
            camera.carried()
        else:
            camera.perceived(now_s)
    return cameras


def _captures(load: Load, steps: int, chance: random.Random, share: float) -> list[float]:
    """Return when a camera, before which so large a share of them is, takes its pictures [s]."""
    every_s, at_s, found = load.step_every_s, 0.0, []
    if load.arrivals == 'random':
        for _ in range(steps):
            at_s += chance.expovariate(1 / every_s)
            found.append(at_s)
        return found
    if load.arrivals == FULL:
        return [share * every_s] * steps
    if load.arrivals == 'apart':
        share = chance.random()
    begin_s = every_s * share if load.arrivals != 'together' else 0.0
    return [begin_s + step * every_s for step in range(steps)]
