"""Scenes of the shapes world: seeded scripts of who is where, and every fact with its time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from sww_ros.shapes.grammar import COLORS, DIRECTIONS, SHAPES, Claim

TICK_S = 0.5
"""Seconds between two ticks; all changes happen on a tick, motion is linear in between."""

# A change of motion shows once half a tick of it has been seen; other changes show at once.
_MOTION_SHOWS_AFTER_S = {'moves': 0.25, 'turns': 0.25, 'stops': 0.25, 'hits': 0.25}
_MARGIN = 0.02
_HORIZON = 40


def newest_frame_s(step: int, phase_s: float, frame_period_s: float = TICK_S) -> float:
    """Time of the second frame of a step, in seconds, for a camera that starts at `phase_s`."""
    return phase_s + (2 * step + 1) * frame_period_s


@dataclass(frozen=True)
class Difficulty:
    """How hard a scene is to follow; lengths in widths of the scene, gaps in ticks of 0.5 s."""

    max_objects: int = 2
    gaps: tuple[int, ...] = (4, 5, 6, 7, 8)
    speeds: tuple[float, float] = (0.036, 0.058)
    radii: tuple[float, float] = (0.105, 0.13)
    texture: float = 1.0
    noise: float = 1.0
    light: float = 1.0

    @property
    def min_gap(self) -> int:
        return min(self.gaps)


PRESETS = {
    'easy': Difficulty(max_objects=1),
    'normal': Difficulty(max_objects=2),
    'hard': Difficulty(max_objects=3),
}


@dataclass(frozen=True)
class Fact:
    """Something that happened: the claim, when (s), and from when on a viewer can know it (s)."""

    claim: Claim
    object_id: int
    event_s: float
    visible_s: float
    x: float
    y: float


@dataclass
class ShapeTrack:
    """One shape's life: its looks, and its place and color on every tick (NaN, -1 while absent)."""

    object_id: int
    shape: int
    radius: float
    xy: np.ndarray
    color: np.ndarray

    def tick(self, time_s: float) -> int:
        """Return the index of the last tick up to a time; past the script's end its last one."""
        return min(max(0, int(time_s / TICK_S + 1e-9)), len(self.color) - 1)


@dataclass(frozen=True)
class Scene:
    """A script: `tracks` to render, `facts` in the order of their visibility, length in seconds."""

    seed: int
    seconds: float
    difficulty: Difficulty
    tracks: tuple[ShapeTrack, ...]
    facts: tuple[Fact, ...]

    def facts_visible(self, until_s: float) -> list[Fact]:
        """All facts a viewer can know who has seen every frame up to `until_s` (seconds)."""
        return [fact for fact in self.facts if fact.visible_s <= until_s + 1e-9]


@dataclass
class _Body:
    """A shape while the script is being written."""

    track: ShapeTrack
    x: float
    y: float
    color: int
    speed: float
    way: str | None = None
    exits: bool = False

    @property
    def radius(self) -> float:
        return self.track.radius

    def step(self) -> tuple[float, float]:
        if self.way is None:
            return 0.0, 0.0
        dx, dy = DIRECTIONS[self.way]
        return dx * self.speed, dy * self.speed

    def towards(self, other: _Body) -> tuple[float, float]:
        """How far another shape is ahead of this one, as it moves, and how far aside."""
        dx, dy = DIRECTIONS[self.way]
        return ((other.x - self.x) * dx + (other.y - self.y) * dy,
                abs((other.x - self.x) * dy) + abs((other.y - self.y) * dx))

    def room(self) -> int:
        """Ticks until the wall, or, for a shape that exits, until its center leaves the picture."""
        if self.way is None:
            return _HORIZON
        wall = 0.0 if self.exits else self.radius + _MARGIN
        ahead = {'left': self.x - wall, 'up': self.y - wall,
                 'right': 1 - wall - self.x, 'down': 1 - wall - self.y}[self.way]
        if self.exits:
            return int(np.ceil(ahead / self.speed - 1e-9))
        return int(np.floor(ahead / self.speed + 1e-9))


@dataclass
class _Writer:
    """Writes one script tick by tick, keeping every forced event at least one gap apart."""

    rng: np.random.Generator
    difficulty: Difficulty
    ticks: int
    bodies: list[_Body] = field(default_factory=list)
    leaving: list[_Body] = field(default_factory=list)
    tracks: list[ShapeTrack] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    tick: int = 0

    def write(self) -> None:
        if self.rng.random() < 0.35:
            self._found_objects()
            next_slot = self._gap() + (len(self.bodies) - 1) * self.difficulty.min_gap
        else:
            next_slot = int(self.rng.integers(0, 4))
        for tick in range(self.ticks):
            self.tick = tick
            due = self._due()
            if due is not None:
                self._force(due)
                next_slot = self.tick + self._gap()
            elif self.tick >= next_slot and self._choose():
                next_slot = self.tick + self._gap()
            self._advance()

    def _gap(self) -> int:
        return int(self.rng.choice(self.difficulty.gaps))

    def _found_objects(self) -> None:
        """Start with shapes in place, as a camera that is switched on finds them."""
        for _ in range(int(self.rng.integers(1, self.difficulty.max_objects + 1))):
            body = self._new_body()
            if body is not None:
                self.bodies.append(body)
                self.tracks.append(body.track)
        for body in sorted(self.bodies, key=lambda b: b.x):
            self._tell(body, 'appears')

    def _tell(self, body: _Body, kind: str, argument: str = '', color: int | None = None) -> None:
        claim = Claim(kind, COLORS[body.color if color is None else color],
                      SHAPES[body.track.shape], argument)
        event_s = self.tick * TICK_S
        shows = event_s + _MOTION_SHOWS_AFTER_S.get(kind, 0.0)
        self.facts.append(Fact(claim, body.track.object_id, event_s, shows, body.x, body.y))

    # What must happen: a shape about to touch something or to cross the border.

    def _contact(self, body: _Body) -> tuple[int, _Body] | None:
        """Return (ticks, other) for the still shape this body runs into, if there is one."""
        if body.way is None or body.exits:
            return None
        found = None
        for other in self.bodies:
            if other.track is body.track or other.way is not None:
                continue
            ahead, aside = body.towards(other)
            reach = body.radius + other.radius
            if ahead > 0 and aside < 0.45 * reach:
                ticks = round((ahead - np.sqrt(reach ** 2 - aside ** 2)) / body.speed)
                if found is None or ticks < found[0]:
                    found = (int(ticks), other)
        return found

    def _deadline(self, body: _Body) -> int:
        contact = self._contact(body)
        return min(body.room(), contact[0] if contact else _HORIZON)

    def _feasible(self) -> bool:
        """Whether all shapes keep clear of each other and no two forced events crowd."""
        gap = self.difficulty.min_gap
        deadlines = {id(b): self._deadline(b) for b in self.bodies}
        ordered = sorted(d for b, d in zip(self.bodies, deadlines.values()) if b.way)
        if any(d < gap * (i + 1) for i, d in enumerate(ordered)):
            return False
        everyone = self.bodies + self.leaving
        for i, a in enumerate(everyone):
            for b in everyone[i + 1:]:
                if (a.way or b.way) and not self._clear(a, b, deadlines):
                    return False
        return True

    def _clear(self, a: _Body, b: _Body, deadlines: dict[int, int]) -> bool:
        for first, second in ((a, b), (b, a)):
            contact = self._contact(first) if first in self.bodies else None
            if contact and contact[1] is second:
                return True
        ticks = np.arange(_HORIZON)
        places = []
        for body in (a, b):
            moved = np.minimum(ticks, deadlines.get(id(body), _HORIZON))[:, None]
            places.append(np.array([body.x, body.y]) + moved * np.array(body.step()))
        distance = np.hypot(*(places[0] - places[1]).T)
        reach = 1.25 * (a.radius + b.radius)
        return bool((distance[1:] >= min(reach, distance[0] - 1e-9)).all())

    def _due(self) -> _Body | None:
        late = [body for body in self.bodies if body.way and self._deadline(body) <= 0]
        return late[0] if late else None

    def _force(self, body: _Body) -> None:
        contact = self._contact(body)
        if contact and contact[0] <= 0:
            other = contact[1]
            body.way = None
            self._tell(body, 'hits', f'{COLORS[other.color]} {SHAPES[other.track.shape]}')
        elif body.exits:
            self._tell(body, 'leaves')
            self.bodies.remove(body)
            self.leaving.append(body)
        elif self.rng.random() < 0.45 or not self._try_turn(body):
            body.way = None
            self._tell(body, 'stops')

    # What may happen: one event a slot, of those that keep the scene readable.

    def _choose(self) -> bool:
        options: list[Callable[[], bool]] = []
        if len(self.bodies) < self.difficulty.max_objects:
            options += [self._try_appear] * (8 if not self.bodies else 4)
        for body in self.bodies:
            become = partial(self._try_become, body)
            if body.way is None:
                options += [partial(self._try_motion, body, 'moves', list(DIRECTIONS))] * 5
                options += [become] * 2
            else:
                options += [partial(self._try_motion, body, 'stops', [None])] * 2
                options += [partial(self._try_turn, body)] * 2 + [become]
        return any(options[index]() for index in self.rng.permutation(len(options)))

    def _try_appear(self) -> bool:
        body = self._new_body()
        if body is None:
            return False
        self.bodies.append(body)
        if not self._feasible():
            self.bodies.pop()
            return False
        self.tracks.append(body.track)
        self._tell(body, 'appears')
        return True

    def _new_body(self) -> _Body | None:
        d, rng = self.difficulty, self.rng
        free = [i for i in range(len(COLORS)) if i not in {b.color for b in self.bodies}]
        radius = float(rng.uniform(*d.radii))
        low, high = radius + _MARGIN, 1 - radius - _MARGIN
        for _ in range(20):
            x, y = rng.uniform(low, high, 2)
            if self.bodies and rng.random() < 0.5:
                # In line with another shape, so that a move can lead to a collision.
                near = self.bodies[int(rng.integers(len(self.bodies)))]
                offset = rng.uniform(-0.08, 0.08)
                if rng.random() < 0.5:
                    x = float(np.clip(near.x + offset, low, high))
                else:
                    y = float(np.clip(near.y + offset, low, high))
            if all(np.hypot(x - b.x, y - b.y) > 1.5 * (radius + b.radius)
                   for b in self.bodies + self.leaving):
                track = ShapeTrack(
                    len(self.tracks), int(rng.integers(len(SHAPES))), radius,
                    np.full((self.ticks, 2), np.nan), np.full(self.ticks, -1, np.int8))
                return _Body(track, float(x), float(y), int(rng.choice(free)),
                             float(rng.uniform(*d.speeds)))
        return None

    def _try_turn(self, body: _Body) -> bool:
        opposite = {'left': 'right', 'right': 'left', 'up': 'down', 'down': 'up'}[body.way]
        return self._try_motion(body, 'turns',
                                [w for w in DIRECTIONS if w not in (body.way, opposite)])

    def _try_motion(self, body: _Body, kind: str, ways: Sequence[str | None]) -> bool:
        before = (body.way, body.speed, body.exits)
        order = [ways[index] for index in self.rng.permutation(len(ways))]
        if self.rng.random() < 0.6:
            order.sort(key=lambda way: not self._leads_to_contact(body, way))
        for way in order:
            body.way, body.exits = way, False
            if way is not None and self._contact(body) is None:
                body.exits = bool(self.rng.random() < 0.35)
            if kind == 'moves':
                body.speed = float(self.rng.uniform(*self.difficulty.speeds))
            self._aim(body)
            if self._feasible():
                self._tell(body, kind, body.way or '')
                return True
            body.way, body.speed, body.exits = before
        return False

    def _leads_to_contact(self, body: _Body, way: str | None) -> bool:
        return self._contact(replace(body, way=way, exits=False)) is not None

    def _aim(self, body: _Body) -> None:
        """Trim the speed so that a collision falls on a tick, with the two just touching."""
        contact = self._contact(body)
        if contact is None or contact[0] < 1:
            return
        ticks, other = contact
        ahead, aside = body.towards(other)
        body.speed = (ahead - np.sqrt((body.radius + other.radius) ** 2 - aside ** 2)) / ticks

    def _try_become(self, body: _Body) -> bool:
        free = [i for i in range(len(COLORS)) if i not in {b.color for b in self.bodies}]
        if not self._feasible():
            return False
        color = int(self.rng.choice(free))
        self._tell(body, 'becomes', COLORS[color])
        body.color = color
        return True

    def _advance(self) -> None:
        for body in self.bodies + self.leaving:
            body.track.xy[self.tick] = body.x, body.y
            body.track.color[self.tick] = body.color
            dx, dy = body.step()
            body.x, body.y = body.x + dx, body.y + dy
        self.leaving = [b for b in self.leaving
                        if -b.radius < b.x < 1 + b.radius and -b.radius < b.y < 1 + b.radius]


def generate(seed: int, seconds: float = 16.0,
             difficulty: Difficulty | str = 'normal', max_objects: int | None = None) -> Scene:
    """
    Write the scene of a seed: the same arguments give the same scene on every machine.

    :param seconds: length of the scene; a longer scene of the same seed is another scene
    :param difficulty: a `Difficulty`, or one of `PRESETS`
    :param max_objects: how many shapes at most are in the picture at a time
    :raises ValueError: for an unknown difficulty or a length that is not positive
    """
    if isinstance(difficulty, str):
        if difficulty not in PRESETS:
            raise ValueError(f'unknown difficulty {difficulty!r}; one of {", ".join(PRESETS)}')
        difficulty = PRESETS[difficulty]
    if not seconds > 0:
        raise ValueError(f'a scene needs a positive length in seconds, not {seconds!r}')
    if max_objects is not None:
        difficulty = replace(difficulty, max_objects=max_objects)
    if not 1 <= difficulty.max_objects < len(COLORS):
        raise ValueError(f'max_objects must be 1 to {len(COLORS) - 1}, as no two shapes share '
                         f'a color, not {difficulty.max_objects}')
    rng = np.random.default_rng([20260111, seed])
    writer = _Writer(rng, difficulty, int(np.ceil(seconds / TICK_S)) + 2)
    writer.write()
    facts = sorted(writer.facts, key=lambda fact: fact.visible_s)
    return Scene(seed, seconds, difficulty, tuple(writer.tracks), tuple(facts))
