"""
Faults put into the core on purpose: a simulation that does not find each of them is worth little.

Most were real: races of the two threads that the core took the place of, as far as one machine
can have them. Each takes the place of one member of a class, or of a function, and is given the
`honest` one first; its docstring says what goes wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any

from sww_ros.evaluation.simulation.world import side_of
from sww_ros.streaming import core as core_module
from sww_ros.streaming.core import Core
from sww_ros.streaming.events import NARRATION
from sww_ros.streaming.gate import Gate
from sww_ros.streaming.jobs import (
    Decode,
    Decoded,
    Open,
    Paused,
    PendingFrames,
    Perceive,
    Sights,
    Video,
    Words,
)
from sww_ros.streaming.relay import Relay, owed
from sww_ros.streaming.schedule import NarrationBudget


@dataclass(frozen=True)
class Fault:
    """A wrong member of a class or module; `wrong` is given the honest one, then its arguments."""

    name: str
    words: str
    kind: type | ModuleType
    member: str
    wrong: Callable


FAULTS: list[Fault] = []


@contextmanager
def seeded(fault: Fault) -> Iterator[None]:
    """Have the fault in the core of this process meanwhile."""
    honest, handlers = getattr(fault.kind, fault.member), core_module._HANDLERS
    if isinstance(honest, property):
        wrong: Any = property(partial(fault.wrong, honest.fget))
    else:
        def wrong(*given: Any, **named: Any) -> Any:  # A partial would not become a method.
            return fault.wrong(honest, *given, **named)
    inputs = [given for given, handler in handlers.items() if handler is honest]
    with _having(fault.kind, **{fault.member: wrong}):
        handlers.update(dict.fromkeys(inputs, wrong))
        try:
            yield
        finally:
            handlers.update(dict.fromkeys(inputs, honest))


def _fault(kind: type | ModuleType, member: str) -> Callable:
    def keep(wrong: Callable) -> Callable:
        words = ' '.join(wrong.__doc__.split())
        FAULTS.append(Fault(wrong.__name__.strip('_'), words, kind, member, wrong))
        return wrong
    return keep


@contextmanager
def _having(thing: object, **state: object) -> Iterator[None]:
    """Let some attributes be others meanwhile."""
    before = {name: getattr(thing, name) for name in state}
    for name, value in state.items():
        setattr(thing, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(thing, name, value)


# Questions.

@_fault(Core, '_end_all')
def _a_reset_spares_what_waits(honest, core, reason):
    """A question that meets a reset outlives it, and is answered."""
    for question_id in [*core._answers]:
        core._end(question_id, reason)


@_fault(Core, '_forget')
def _a_reset_spares_an_answer(honest, core, reason):
    """An ask that meets a reset is answered to its end about the video that was forgotten."""
    spared = dict([*core._answers.items()][-1:])
    core._answers = {key: value for key, value in core._answers.items() if key not in spared}
    honest(core, reason)
    core._answers |= spared


@_fault(Core, '_close')
def _the_end_forgets_questions(honest, core, reason):
    """A fatal trouble, or closing, leaves questions without an end."""
    core._answers.clear()
    core._queue.clear()
    honest(core, reason)


@_fault(Core, '_end_all')
def _the_end_forgets_the_newest_question(honest, core, reason):
    """A question let in while all are ended stays open for ever."""
    for question_id in core.open_questions[:-1] or core.open_questions:
        core._end(question_id, reason)
    core._queue.clear()
    core._answers.clear()


@_fault(Core, '_cancelled')
def _a_cancel_misses_the_start(honest, core, given):
    """A cancel that meets the start of its question is lost: the answer goes on to its end."""
    question = core._answers.get(given.question_id)
    if question is None or question.spoken:
        honest(core, given)


@_fault(Core, '_asked')
def _one_id_is_let_in_twice(honest, core, given):
    """Two that ask under one id at once are both let in."""
    waiting = [question for question in core._queue
               if question.question_id == given.question_id]
    for question in waiting:
        question.question_id += "'"
    honest(core, given)
    for question in waiting:
        question.question_id = given.question_id


@_fault(Core, '_admit')
def _one_answer_too_many(honest, core):
    """A place is given away twice: more are answered at once than may be."""
    config = core._config
    with _having(core, _config=replace(config, max_answers=config.max_answers + 1)):
        honest(core)


@_fault(Core, 'deadline_ns')
def _time_stands_still(honest, core):
    """Nobody wakes whoever waits for a video that never comes."""
    return None


@_fault(Core, 'deadline_ns')
def _a_place_is_waited_for_like_a_video(honest, core):
    """A question that waits for a place ends for lack of a video when another video begins."""
    with _having(core, _blind_ns=0):
        return honest(core)


@_fault(Core, '_admit')
def _the_last_step_lets_nobody_in(honest, core):
    """A question that waits for a step misses it where the next video waits already."""
    if not core._perception_due:
        honest(core)


# Failures.

@_fault(Core, '_perceived')
def _a_step_clears_all_failures(honest, core, given):
    """Decoding that always fails is never fatal: each step perceived clears its count."""
    core._failures.clear()
    honest(core, given)


@_fault(Core, '_was_decoded')
def _a_token_clears_all_failures(honest, core, given):
    """Perception that always fails is never fatal: each token clears its count."""
    core._failures.clear()
    honest(core, given)


@_fault(Core, '_failed')
def _a_failure_is_not_counted(honest, core, given):
    """Two threads count at once, and one of two failures is lost."""
    if core._perceiving or core._decoding:
        core._failures[side_of(given.jobs[0])] -= 1
    honest(core, given)


@_fault(Core, '_failed')
def _a_failure_halts_the_next_video(honest, core, given):
    """After an error of perception the new video is halted, not the one that failed."""
    honest(core, given)
    core.video.spoken |= not isinstance(given.jobs[0], Decode)


@_fault(Core, '_failed')
def _a_late_failure_begins_anew(honest, core, given):
    """A job about a video that is forgotten fails, and the next video is lost with it."""
    honest(core, given)
    if not core.closed:
        core._forget('error')


# Hand-overs between the sides.

@_fault(Core, '_perception_due')
def _the_end_of_a_text_wakes_nobody(honest, core):
    """A video fed during the last word about the one before is never watched."""
    return honest(core) and not (core.video.spoken and core.video.ended)


@_fault(Core, '_is_owed')
def _a_video_cuts_the_one_before(honest, core, video):
    """A step that comes while the end of a video is spoken of is taken all the same."""
    return False


@_fault(Core, '_is_live')
def _what_is_late_is_told(honest, core, turn):
    """A token about a video that was forgotten meanwhile is told as if nothing had been."""
    return turn.question is None or honest(core, turn)


@_fault(Core, '_is_live')
def _a_late_answer_is_told(honest, core, turn):
    """The last token of an answer that was ended meanwhile goes to the next one of its id."""
    return (honest(core, turn) if turn.question is None
            else turn.question.question_id in core._answers)


@_fault(Core, '_perceived')
def _a_late_step_is_told(honest, core, given):
    """A step of a video that was forgotten meanwhile counts for the next one."""
    honest(core, replace(given, job=replace(given.job, video=core.video)))


@_fault(Core, '_opened')
def _a_late_prefix_opens_the_next_video(honest, core, given):
    """A step is perceived into a cache that lacks the prefix of its video."""
    core.video.opened = True
    honest(core, given)


@_fault(Core, 'next_decode')
def _both_sides_at_once(honest, core, now_ns, riding=None):
    """Interleaved, a word is computed while its video's next step is."""
    with _having(core, serial=False):
        return honest(core, now_ns, riding)


@_fault(Core, '_prompted')
def _a_prompt_is_lost(honest, core, given):
    """A prompt set while a video begins is taken, and lost."""
    if not any(isinstance(job, Open) for job in core._perceiving):
        honest(core, given)


# The relay.

@_fault(Core, '_may_hand_over')
def _a_hand_over_cuts_a_sentence(honest, core):
    """A stream is relieved as soon as the next one is prepared, in mid-sentence."""
    with _having(core.video, unfinished=False):
        return honest(core)


@_fault(Core, '_may_hand_over')
def _a_hand_over_loses_a_token(honest, core):
    """A stream is relieved while a token of its narration is computed, which is lost then."""
    with _having(core, _decoding=None):
        return honest(core)


@_fault(Core, '_may_hand_over')
def _a_hand_over_skips_steps(honest, core):
    """A stream is relieved before the narration has come to the steps that are carried over."""
    with _having(core.video.successor, first=0):
        return honest(core)


@_fault(core_module, 'is_abreast')
def _a_hand_over_comes_too_early(honest, video):
    """The newest step is missing in the stream that takes over."""
    successor = video.successor
    return successor is not None and bool(successor.steps) and (
        successor.first + len(successor.steps) >= len(video.steps) - 1)


@_fault(core_module, 'take_over')
def _the_last_words_are_forgotten(honest, video):
    """What was said between the last piece and the hand-over is missing in the next stream."""
    successor = honest(video)
    successor.fed = len(successor.words)
    return successor


@_fault(Core, '_carried')
def _words_are_carried_twice(honest, core, given):
    """What went with one piece goes with the next one again."""
    honest(core, given)
    given.job.video.fed = 0


@_fault(Core, '_perceived')
def _a_step_is_carried_twice(honest, core, given):
    """A step that went into both streams is carried over as well."""
    honest(core, given)
    if given.job.also and given.job.also.steps:
        given.job.also.steps.pop()


@_fault(core_module, 'take_over')
def _a_hand_over_is_another_video(honest, video):
    """The stream that takes over counts as the next video."""
    successor = honest(video)
    successor.number += 1
    return successor


@_fault(Relay, 'successor')
def _steps_count_from_0_again(honest, relay, video, stream):
    """The stream that takes over does not know how many steps the video had before."""
    found = honest(relay, video, stream)
    found.base = 0
    return found


@_fault(core_module, 'take_over')
def _the_budget_is_not_handed_over(honest, video):
    """The next stream's narration spends the budget by the old stream's count of steps."""
    successor = honest(video)
    successor.budget = video.budget
    return successor


@_fault(core_module, 'take_over')
def _what_was_seen_is_seen_again(honest, video):
    """The steps that are carried over are told to be seen for the first time."""
    successor = honest(video)
    successor.sights = Sights(successor.base)
    return successor


@_fault(Core, 'next_piece')
def _a_step_waits_for_all_pieces(honest, core):
    """A frame is not looked at before the next stream is prepared."""
    core._pieces = -1
    return honest(core)


@_fault(Core, '_failed')
def _a_piece_that_fails_is_tried_again(honest, core, given):
    """A successor that cannot be prepared is begun again and again."""
    honest(core, given)
    core.video.alone = False


@_fault(Core, '_switch')
def _a_reset_spares_a_successor(honest, core, reason):
    """A stream that was to relieve one that is forgotten relieves the next video's."""
    successor = core.video.successor
    honest(core, reason)
    core.video.successor = successor


@_fault(Core, '_words_due')
def _both_sides_write_a_narration(honest, core, turns):
    """Words are put into a stream beside a piece that does the same."""
    successor = core.video.successor
    if (found := honest(core, turns)) or not successor or not successor.opened:
        return found
    words = [word for word in owed(core.video).words if word.sees <= len(successor.steps)]
    return Words(successor, tuple(words)) if words and turns[-1].question is None else None


@_fault(Video, 'is_ready')
def _an_answer_begins_before_it_remembers(honest, video):
    """A question about the past is answered from a part of what is recalled for it."""
    return bool(video.steps)


@_fault(Core, '_recall_no_more')
def _what_cannot_be_recalled_is_tried_for_ever(honest, core, *videos):
    """An answer waits for a stream that will not come."""
    for video in videos:
        video.beside = None


@_fault(Core, '_is_full')
def _a_full_stream_goes_on(honest, core):
    """A stream that waits to be relieved gets more steps than it may have."""
    return False if core.video.successor else honest(core)


# Pauses and frames.

@_fault(Core, '_opened')
def _a_resume_is_overtaken(honest, core, given):
    """A resume while a video begins is overtaken by the pause of before."""
    honest(core, given)
    core._paused(Paused(getattr(core, 'paused_before', False)))
    core.paused_before = core.paused


@_fault(PendingFrames, 'clear')
def _a_pause_joins_two_videos(honest, frames):
    """The end of a video is thrown away by a pause, and the next one is taken for the same."""
    with _having(frames, cut=frames.cut):
        return honest(frames)


@_fault(PendingFrames, 'put')
def _a_crowd_joins_two_videos(honest, frames, frame):
    """The end of a video gives way to newer frames, and the next one is taken for the same."""
    with _having(frames, cut=frames.cut):
        return honest(frames, frame)


@_fault(Core, '_paused')
def _a_frame_slips_in_behind_a_pause(honest, core, given):
    """What was fed while a pause began is perceived during it."""
    core.paused = given.paused


@_fault(Core, '_close')
def _the_end_forgets_frames(honest, core, reason):
    """Frames in perception when the session closes are not told of."""
    with _having(core, _perceiving=[]):
        honest(core, reason)


@_fault(Core, '_may_look_ahead')
def _a_step_is_taken_ahead_past_the_end(honest, core):
    """The first step of the next clip is taken for this one, whose last step is not back yet."""
    out = [replace(job, last=False) if isinstance(job, Perceive) else job
           for job in core._perceiving]
    with _having(core, _perceiving=out):
        return honest(core)


@_fault(Core, '_may_look_ahead')
def _a_step_is_taken_ahead_of_a_full_video(honest, core):
    """A video gets a step more than it may have, as the one that fills it is not back yet."""
    with _having(core, _relay=None, max_steps=float('inf')):
        return honest(core)


@_fault(Core, '_may_look_ahead')
def _a_step_is_taken_ahead_past_a_lost_end(honest, core):
    """The end of a clip gave way to newer frames, and a step behind it is taken for the clip's."""
    with _having(core._frames, cut=False):
        return honest(core)


@_fault(Core, '_looked_at')
def _frames_taken_ahead_are_not_told_of(honest, core):
    """Of two steps that are out when the video is forgotten, the frames of one are told of."""
    return min(honest(core), core._frames._per_step)


# What is said and seen.

@_fault(NarrationBudget, 'sees')
def _wait_k_sees_ahead(honest, budget):
    """A token sees all that is perceived, however few steps its schedule lets it see."""
    return budget.steps


@_fault(NarrationBudget, 'rest')
def _the_end_of_a_turn_gives_up_all(honest, budget):
    """With wait-K a turn that ends gives up the steps that perception has got ahead."""
    budget.index = max(budget.index, budget._granted)


@_fault(NarrationBudget, 'spend')
def _silence_costs_nothing(honest, budget):
    """A token is not counted, so that a side never comes to rest."""
    return None


@_fault(Core, '_answer')
def _numbers_go_on_after_the_end(honest, core, question, spoken, moment):
    """An id that is used again goes on counting where its last answer ended."""
    honest(core, question, spoken, moment)
    if question.question_id not in core._answers:
        core._seq[question.question_id] = 7


@_fault(Core, '_switch')
def _numbers_begin_anew(honest, core, reason):
    """The narration is numbered from 0 again with every video."""
    honest(core, reason)
    core._seq.pop(NARRATION, None)


@_fault(Core, 'handle')
def _a_job_never_comes_back(honest, core, given, now_ns):
    """A decode step that has nothing to tell counts as running still."""
    events = honest(core, given, now_ns)
    if (isinstance(given, Decoded) and not events and given.job.turns
            and given.job.turns[0].question):
        core._decoding = given.job
    return events


@_fault(Core, '_narration_turn')
def _a_narration_speaks_without_news(honest, core, riding):
    """What rests until there is news goes on all the same."""
    with _having(core.video, gate=Gate()):
        return honest(core, riding)


@_fault(Core, '_rest')
def _a_video_without_news_never_ends(honest, core):
    """Nothing is said of the last step, and nobody says that it was the last."""
    with _having(core.video, ended=False):
        honest(core)


@_fault(Core, '_is_weighed')
def _a_weight_counts_for_another_video(honest, core, again):
    """What a forgotten video's words weigh wakes the next one."""
    return True
