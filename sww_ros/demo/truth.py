"""What is true of the scene that the camera shows: of sentences, and of answers."""

from __future__ import annotations

from collections.abc import Iterable
import json

import numpy as np

from sww_ros.frames import NANOSECONDS
from sww_ros.shapes import questions
from sww_ros.shapes.grammar import Claim, parse
from sww_ros.shapes.scene import Fact, Scene, generate


class Witness:
    """
    Knows the scene announced on `~/scene` of the camera; times are stamps [ns].

    A sentence is true if a fact says the same, was visible in the newest frame that its last
    token could see, and has not been told before.
    """

    def __init__(self, scene: Scene, start_ns: int) -> None:
        self.scene, self.start_ns = scene, start_ns
        self._told: set[int] = set()
        self._again: set[Claim] = set()

    @classmethod
    def from_json(cls, text: str) -> Witness:
        """Write the scene again that the camera announced."""
        told = json.loads(text)
        return cls(generate(told['seed'], told['seconds'], told['difficulty'],
                            told['max_objects']), told['start_stamp_ns'])

    def seconds(self, stamp_ns: int) -> float:
        """Return the time in the scene of a stamp [s]."""
        return (stamp_ns - self.start_ns) / NANOSECONDS

    def judge(self, sentence: str, stamp_ns: int) -> Fact | None:
        """Return the fact that makes a sentence true, None if there is none."""
        claim = parse(sentence)
        if claim is None:
            return None
        for index, fact in enumerate(self.scene.facts_visible(self.seconds(stamp_ns))):
            if fact.claim == claim and index not in self._told:
                self._told.add(index)
                return fact
            if fact.claim == claim and claim in self._again:
                self._again.discard(claim)
                return fact
        return None

    def restarted(self, stamp_ns: int) -> None:
        """Take note that the narrator begins anew: it may say again who is there."""
        viewer = questions.Viewer(self.scene, self.seconds(stamp_ns))
        self._again |= {Claim('appears', known.color, known.shape)
                        for known in viewer.present.values()}

    def answer(self, question: str, stamp_ns: int) -> str | None:
        """Return the true answer for one who saw all up to a stamp, None where it has none."""
        return questions.answer(self.scene, max(0.0, self.seconds(stamp_ns)), question)

    def question(self, stamp_ns: int, used: Iterable[str]) -> questions.Question:
        """Return a question for one who saw all up to a stamp, of a kind not in `used`."""
        at_s = max(0.0, self.seconds(stamp_ns))
        rng = np.random.default_rng([self.scene.seed, round(at_s)])
        used = set(used)
        for index in rng.permutation(len(questions.KINDS)):
            kind = questions.KINDS[index]
            made = None if kind in used else questions.make(self.scene, at_s, rng, kind)
            if made is not None:
                return made
        return questions.make(self.scene, at_s, rng)
