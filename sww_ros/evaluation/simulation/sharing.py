"""
Several cores that share one executor, as the cameras of an engine do, each with its own script.

Each one's log has to keep every invariant that a core alone keeps. No step waits for more than one
job of each of the others, for the successor of another's stream, or where a pass has room for it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace

from sww_ros.evaluation.simulation.invariants import broken
from sww_ros.evaluation.simulation.reading import Reading
from sww_ros.evaluation.simulation.world import (
    EXECUTORS,
    MOST_JOBS,
    Finish,
    Look,
    Move,
    Pass,
    Rest,
    Script,
    World,
    side_of,
)
from sww_ros.streaming.core import Core
from sww_ros.streaming.jobs import Carry, Job, Open
from sww_ros.streaming.rules import JOINT_TOKENS, Handed, Rota, perception

SHARED = ('threads', 'serial', 'fused', 'crowd')
"""The executors that several cores may share."""
_MOST_DEADLINES = 16


class Gathering:
    """Worlds whose jobs are taken by the same workers."""

    def __init__(self, scripts: Sequence[Script], overlap: str) -> None:
        """Make a world of each script, with its settings but for the executor."""
        self.worlds = [World(replace(script, settings=replace(script.settings, overlap=overlap)))
                       for script in scripts]
        self.unfair: list[str] = []
        self.shared_steps = 0
        self._turns = Rota(world.core for world in self.worlds)
        self._rules = EXECUTORS[overlap]
        self._held: list[deque[list[tuple[World, Pass]]]] = [deque() for _ in self._rules]
        # For whom a step that is due has waited; of a crowd several perceive at a time.
        self._waited: list[Counter[int]] = [Counter() for _ in self.worlds]
        self._takes_turns = overlap != 'crowd'

    def play(self, moves: Sequence[tuple[int, Move]]) -> None:
        """Make moves, each in one of the worlds; then let all come to rest, and close them."""
        for number, move in moves:
            self._let_time_pass()
            if isinstance(move, Finish):
                self._hand_in(move.worker % len(self._rules), move.fails, move.says)
            elif not isinstance(move, Look):
                self.worlds[number].make(move)
            self._look()
        self._come_to_rest()
        for world in self.worlds:
            world.end()

    @property
    def violations(self) -> list[str]:
        """What does not hold, once it has been played."""
        return self.unfair + [words for world in self.worlds
                              for words in broken(Reading(world.script, world.log))]

    def _let_time_pass(self, until: int = 0) -> None:
        now = max(until, 1_000_000 + max(world.now for world in self.worlds))
        for world in self.worlds:
            world.now = now

    def _look(self) -> None:
        for worker, held in enumerate(self._held):
            if not held:
                for world in self.worlds:
                    world.tick()
                self._take(worker)

    def _take(self, worker: int) -> None:
        rule = self._rules[worker]
        rested = [world.core.at_rest for world in self.worlds]
        due = {core: (_is_due(core, rule is perception), core.tokens_due, core._perception_due)
               for core in self._turns.cores}
        handed = self._turns.take(rule, self.worlds[0].now)
        parts = []
        for number, world in enumerate(self.worlds):
            if mine := [job for core, job in handed if core is world.core]:
                world.note(mine, rested[number])
                parts.append((world, Pass(mine, world.now)))
        self._judge([(core, job) for core, job in handed if side_of(job) == 'perception'], due)
        if parts:
            self._held[worker].append(parts)
            self.shared_steps += sum(side_of(made.jobs[-1]) == 'decoding' for _, made in parts) > 1

    def _judge(self, taken: Handed, due: dict[Core, tuple[bool, float, bool]]) -> None:
        """
        Note what is unfair to those who are left out of a pass.

        :param due: of each core, in the order of their turns, whether its step is due, with how
            many tokens, and whether there is one at all
        """
        perceiving = [self._number(core) for core, _ in taken]
        left = [core for core, (is_due, *_) in due.items()
                if is_due and self._number(core) not in perceiving]
        for number, waited in enumerate(self._waited):
            if number not in map(self._number, left):
                waited.clear()
                continue
            waited.update(perceiving)
            self.unfair += [f'turns_are_fair: {number} waits for a second job of {other}'
                            for other, jobs in waited.items() if self._takes_turns and jobs > 1]
        if left and taken:
            room = JOINT_TOKENS - sum(due[core][1] for core, _ in taken)
            who = f'{self._number(left[0])} waits for {perceiving}'
            if due[left[0]][1] <= room:
                self.unfair.append(f'steps_go_together: {who}, and there is room in the pass')
            if any(_is_piece(job) and not due[core][2] for core, job in taken):
                self.unfair.append(f'steps_go_before_pieces: {who}, who has no step itself')

    def _number(self, core: Core) -> int:
        return [world.core for world in self.worlds].index(core)

    def _hand_in(self, worker: int, fails: str, says: str) -> None:
        for world, made in self._held[worker].popleft() if self._held[worker] else ():
            world.hand_in(made, fails, says)

    def _come_to_rest(self) -> None:
        """As a world does, with all of them; deadlines may come one after the other."""
        passes = self._work_off()
        for _ in range(_MOST_DEADLINES):
            deadlines = [world.core.deadline_ns for world in self.worlds]
            if given := [deadline for deadline in deadlines if deadline is not None]:
                self._let_time_pass(min(given))
                passes += self._work_off()
        for world in self.worlds:
            world.log.append(Rest(world.now, world.core.at_rest, passes, world.core.video.opened))

    def _work_off(self) -> int:
        passes = 0
        self._look()
        while any(self._held) and passes < MOST_JOBS:
            self._let_time_pass()
            for worker in range(len(self._rules)):
                self._hand_in(worker, '', 't')
            self._look()
            passes += 1
        return passes


def _is_piece(job: Job) -> bool:
    """Whether a job prepares a stream that comes next, or one for an answer."""
    return isinstance(job, Carry) or (isinstance(job, Open) and job.source is not None)


def _is_due(core: Core, regardless: bool) -> bool:
    """Whether a core's step would be taken now if it were alone; `regardless` of its own tokens."""
    return (core._perception_due and not core._perceiving and not core._is_full
            and (regardless or core.prefers_perception))
