"""
When a narration speaks whose checkpoint was never taught silence: a sentence once there is news.

A checkpoint that was trained to stream says nothing where there is nothing to say. Any other one
speaks at each step. A gate has it rest until a step is news; then it says one sentence, in the
same turn as those before, and rests again. What says that there is news is the end of that turn: a
checkpoint that has described what there is to be seen would end it, and would not where it has
more to say. A sentence that was said just before is not said again. Nothing here computes.
"""

from __future__ import annotations

from collections import deque
import math
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from sww_ros.streaming.jobs import Spoken

LONGEST = 64
"""At most so many tokens of what has been said are weighed."""
NEWS = math.log(5)
"""The least surprise of news [nats]: where one in five would end the turn."""
USUAL, DEVIATIONS, LEAST_DEVIATION = 16, 3.0, 0.5
"""It is this many deviations [nats] above the mean of so many before it, since a sentence."""
# Chosen on scenes of the shapes world apart from those of docs/models.md.


class GateSettings(Protocol):
    """What a gate asks of the settings of a session."""

    @property
    def speak(self) -> str: ...

    @property
    def narrate(self) -> bool: ...


class Weighed(NamedTuple):
    """Tokens of what has been said, weighed for the sake of the video's step `step`, from 1."""

    tokens: tuple[int, ...]
    step: int


class Gate:
    """
    What a narration needs to speak, over all streams of a video; this one always has it.

    `weighs` is what has to be weighed with the newest step before it is known whether that is
    news; None: nothing.
    """

    awake = True
    weighs: Weighed | None = None

    def stepped(self, changed: float) -> None:
        """Take a step that was perceived, of whose visual tokens this share has changed."""

    def weighed(self, said: Weighed, surprise: float) -> None:
        """
        Take what weighing has come to.

        :param said: what was weighed; more steps may have come since
        :param surprise: negative log-probability that nothing follows it [nats]
        """

    def said(self, spoken: Spoken) -> tuple[str, str]:
        """Take what was spoken; return the text to tell, and the sentence that it ends."""
        return spoken.delta, spoken.sentence

    def let_go(self) -> str:
        """Return the text that was kept back, as nothing more is said."""
        return ''


class NewsGate(Gate):
    """Closes with each sentence; others say when it opens."""

    def __init__(self) -> None:
        self.awake = False
        self._news = self._speaks = False
        self._held = self._last = ''

    def open(self) -> None:
        """Have a sentence said; after the one that is being said, which has not seen the news."""
        self._news, self.awake = self._speaks, True

    def said(self, spoken: Spoken) -> tuple[str, str]:
        text, self._held = self._held + spoken.delta, ''
        if spoken.sentence:
            again, self._last = spoken.sentence == self._last, spoken.sentence
            self._close()
            return ('', '') if again else (text, spoken.sentence)
        if spoken.kind == 'stop':
            self._close()
        elif spoken.unfinished:
            self._speaks = True
            if self._last.startswith(spoken.unfinished):
                self._held, text = text, ''
        return text, ''

    def _close(self) -> None:
        self.awake, self._speaks, self._news = self._news, False, False

    def let_go(self) -> str:
        text, self._held = self._held, ''
        return text


class AlwaysGate(NewsGate):
    """Opens with each step, whether or not it is news, and tells what was said before again."""

    def stepped(self, changed: float) -> None:
        self.open()

    def said(self, spoken: Spoken) -> tuple[str, str]:
        self._last = ''
        return super().said(spoken)


class WeighingGate(NewsGate):
    """
    Opens where a checkpoint would end what it has said so far no more.

    Its surprise rises at once with a step that is news, and slowly where a scene stands still: so
    it is held against its running mean and deviation, as MMDuet's scores are. Once a sentence is
    said, the steps that it has seen are weighed again: they may hold more.
    """

    def __init__(self) -> None:
        super().__init__()
        self._tokens: deque[int] = deque(maxlen=LONGEST)
        self._surprises: deque[float] = deque(maxlen=USUAL)
        self._steps = 0

    def stepped(self, changed: float) -> None:
        self._steps += 1
        if self.asks(changed):
            self._weigh()

    def asks(self, changed: float) -> bool:
        """Whether a step, of whose tokens this share has changed, is to be weighed."""
        return True

    def _weigh(self) -> None:
        if not self.awake:
            self.weighs = Weighed(tuple(self._tokens), self._steps)

    def weighed(self, said: Weighed, surprise: float) -> None:
        is_news = surprise > max(NEWS, self._unusual())
        self._surprises.append(surprise)
        if is_news or said == self.weighs:
            self.weighs = None
        if is_news:
            self._surprises.clear()
            self.open()

    def _unusual(self) -> float:
        """Return the least surprise that is unusual by now [nats]."""
        if not self._surprises:
            return 0.0
        deviation = max(pstdev(self._surprises), LEAST_DEVIATION)
        return fmean(self._surprises) + DEVIATIONS * deviation

    def said(self, spoken: Spoken) -> tuple[str, str]:
        if spoken.kind == 'text':
            self._tokens.append(spoken.token)
        told = super().said(spoken)
        self._weigh()
        return told


class ChangedGate(WeighingGate):
    """
    Weighs where a step has changed, and costs no pass where it has not.

    So one that stands still is not told of, whatever noise its camera has.
    """

    LEAST = 0.02

    def asks(self, changed: float) -> bool:
        return changed > self.LEAST


class SurprisedGate(WeighingGate):
    """Weighs each step."""


GATES: dict[str, type[Gate]] = {
    'trained': Gate, 'always': AlwaysGate, 'changed': ChangedGate, 'surprised': SurprisedGate}
"""By the setting `speak`."""


def gate_of(settings: GateSettings) -> Gate:
    """Return the gate of a new video; where nothing is narrated, there is nothing to hold back."""
    return GATES[settings.speak if settings.narrate else 'trained']()
