"""
Faults put into the core on purpose: a simulation that does not find each of them is worth little.

Most were real: races of the two threads that the core took the place of, as far as one machine
can have them. Each replaces one member of a class; its docstring says what goes wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType

from sww_ros.streaming import core as core_module
from sww_ros.streaming.core import Core
from sww_ros.streaming.events import NARRATION
from sww_ros.streaming.frames import PendingFrames
from sww_ros.streaming.jobs import Decode, Decoded, Open, Paused, Perceive, Sights, Words
from sww_ros.streaming.relay import Relay, owed
from sww_ros.streaming.schedule import NarrationBudget


@dataclass(frozen=True)
class Fault:
    """A wrong member of a class or module in place of an honest one, which `make` is given."""

    name: str
    words: str
    kind: type | ModuleType
    member: str
    make: Callable


FAULTS: list[Fault] = []


@contextmanager
def seeded(fault: Fault) -> Iterator[None]:
    """Have the fault in the core of this process meanwhile."""
    honest, handlers = getattr(fault.kind, fault.member), core_module._HANDLERS
    wrong = fault.make(honest)
    inputs = [given for given, handler in handlers.items() if handler is honest]
    setattr(fault.kind, fault.member, wrong)
    handlers.update(dict.fromkeys(inputs, wrong))
    try:
        yield
    finally:
        setattr(fault.kind, fault.member, honest)
        handlers.update(dict.fromkeys(inputs, honest))


def _fault(kind: type | ModuleType, member: str) -> Callable:
    def keep(make: Callable) -> Callable:
        words = ' '.join(make.__doc__.split())
        FAULTS.append(Fault(make.__name__.strip('_'), words, kind, member, make))
        return make
    return keep


# Questions.

@_fault(Core, '_end_all')
def _a_reset_spares_what_waits(honest):
    """A question that meets a reset outlives it, and is answered."""
    def end_all(core, reason):
        for question_id in [*core._answers]:
            core._end(question_id, reason)
    return end_all


@_fault(Core, '_forget')
def _a_reset_spares_an_answer(honest):
    """An ask that meets a reset is answered to its end about the video that was forgotten."""
    def forget(core, reason):
        spared = dict([*core._answers.items()][-1:])
        for question_id in spared:
            del core._answers[question_id]
        honest(core, reason)
        core._answers.update(spared)
    return forget


@_fault(Core, '_close')
def _the_end_forgets_questions(honest):
    """A fatal trouble, or closing, leaves questions without an end."""
    def close(core, reason):
        core._answers.clear()
        core._queue.clear()
        honest(core, reason)
    return close


@_fault(Core, '_end_all')
def _the_end_forgets_the_newest_question(honest):
    """A question let in while all are ended stays open for ever."""
    def end_all(core, reason):
        for question_id in core.open_questions[:-1] or core.open_questions:
            core._end(question_id, reason)
        core._queue.clear()
        core._answers.clear()
    return end_all


@_fault(Core, '_cancelled')
def _a_cancel_misses_the_start(honest):
    """A cancel that meets the start of its question is lost: the answer goes on to its end."""
    def cancelled(core, given):
        question = core._answers.get(given.question_id)
        if question is None or question.spoken:
            honest(core, given)
    return cancelled


@_fault(Core, '_asked')
def _one_id_is_let_in_twice(honest):
    """Two that ask under one id at once are both let in."""
    def asked(core, given):
        waiting = [question for question in core._queue
                   if question.question_id == given.question_id]
        for question in waiting:
            question.question_id += "'"
        honest(core, given)
        for question in waiting:
            question.question_id = given.question_id
    return asked


@_fault(Core, '_admit')
def _one_answer_too_many(honest):
    """A place is given away twice: more are answered at once than may be."""
    def admit(core):
        core._config, config = replace(
            core._config, max_answers=core._config.max_answers + 1), core._config
        honest(core)
        core._config = config
    return admit


@_fault(Core, 'deadline_ns')
def _time_stands_still(honest):
    """Nobody wakes whoever waits for a video that never comes."""
    return property(lambda core: None)


@_fault(Core, 'deadline_ns')
def _a_place_is_waited_for_like_a_video(honest):
    """A question that waits for a place ends for lack of a video when another video begins."""
    def deadline_ns(core):
        core._blind_ns, blind_ns = 0, core._blind_ns
        found = honest.fget(core)
        core._blind_ns = blind_ns
        return found
    return property(deadline_ns)


@_fault(Core, '_admit')
def _the_last_step_lets_nobody_in(honest):
    """A question that waits for a step misses it where the next video waits already."""
    def admit(core):
        if not core._perception_due:
            honest(core)
    return admit


# Failures.

@_fault(Core, '_perceived')
def _a_step_clears_all_failures(honest):
    """Decoding that always fails is never fatal: each step perceived clears its count."""
    def perceived(core, given):
        core._failures.clear()
        honest(core, given)
    return perceived


@_fault(Core, '_was_decoded')
def _a_token_clears_all_failures(honest):
    """Perception that always fails is never fatal: each token clears its count."""
    def decoded(core, given):
        core._failures.clear()
        honest(core, given)
    return decoded


@_fault(Core, '_failed')
def _a_failure_is_not_counted(honest):
    """Two threads count at once, and one of two failures is lost."""
    def failed(core, given):
        if core._perceiving or core._decoding:
            side = 'decoding' if isinstance(given.jobs[0], Decode) else 'perception'
            core._failures[side] -= 1
        honest(core, given)
    return failed


@_fault(Core, '_failed')
def _a_failure_halts_the_next_video(honest):
    """After an error of perception the new video is halted, not the one that failed."""
    def failed(core, given):
        honest(core, given)
        core.video.spoken |= not isinstance(given.jobs[0], Decode)
    return failed


@_fault(Core, '_failed')
def _a_late_failure_begins_anew(honest):
    """A job about a video that is forgotten fails, and the next video is lost with it."""
    def failed(core, given):
        honest(core, given)
        if not core.closed:
            core._forget('error')
    return failed


# Hand-overs between the sides.

@_fault(Core, '_perception_due')
def _the_end_of_a_text_wakes_nobody(honest):
    """A video fed during the last word about the one before is never watched."""
    def due(core):
        return honest.fget(core) and not (core.video.spoken and core.video.ended)
    return property(due)


@_fault(Core, '_is_owed')
def _a_video_cuts_the_one_before(honest):
    """A step that comes while the end of a video is spoken of is taken all the same."""
    return lambda core, video: False


@_fault(Core, '_is_live')
def _what_is_late_is_told(honest):
    """A token about a video that was forgotten meanwhile is told as if nothing had been."""
    def is_live(core, turn):
        return turn.question is None or honest(core, turn)
    return is_live


@_fault(Core, '_is_live')
def _a_late_answer_is_told(honest):
    """The last token of an answer that was ended meanwhile goes to the next one of its id."""
    def is_live(core, turn):
        return (honest(core, turn) if turn.question is None
                else turn.question.question_id in core._answers)
    return is_live


@_fault(Core, '_perceived')
def _a_late_step_is_told(honest):
    """A step of a video that was forgotten meanwhile counts for the next one."""
    def perceived(core, given):
        honest(core, replace(given, job=replace(given.job, video=core.video)))
    return perceived


@_fault(Core, '_opened')
def _a_late_prefix_opens_the_next_video(honest):
    """A step is perceived into a cache that lacks the prefix of its video."""
    def opened(core, given):
        core.video.opened = True
        honest(core, given)
    return opened


@_fault(Core, 'next_decode')
def _both_sides_at_once(honest):
    """Interleaved, a word is computed while its video's next step is."""
    def next_decode(core, now_ns, riding=None):
        core.serial, serial = False, core.serial
        job = honest(core, now_ns, riding)
        core.serial = serial
        return job
    return next_decode


@_fault(Core, '_prompted')
def _a_prompt_is_lost(honest):
    """A prompt set while a video begins is taken, and lost."""
    def prompted(core, given):
        if not any(isinstance(job, Open) for job in core._perceiving):
            honest(core, given)
    return prompted


# The relay.

@_fault(Core, '_may_hand_over')
def _a_hand_over_cuts_a_sentence(honest):
    """A stream is relieved as soon as the next one is prepared, in mid-sentence."""
    def may_hand_over(core):
        core.video.unfinished, unfinished = False, core.video.unfinished
        found = honest(core)
        core.video.unfinished = unfinished
        return found
    return may_hand_over


@_fault(Core, '_may_hand_over')
def _a_hand_over_loses_a_token(honest):
    """A stream is relieved while a token of its narration is computed, which is lost then."""
    def may_hand_over(core):
        core._decoding, decoding = None, core._decoding
        found = honest(core)
        core._decoding = decoding
        return found
    return may_hand_over


@_fault(Core, '_may_hand_over')
def _a_hand_over_skips_steps(honest):
    """A stream is relieved before the narration has come to the steps that are carried over."""
    def may_hand_over(core):
        successor = core.video.successor
        successor.first, first = 0, successor.first
        found = honest(core)
        successor.first = first
        return found
    return may_hand_over


@_fault(core_module, 'is_abreast')
def _a_hand_over_comes_too_early(honest):
    """The newest step is missing in the stream that takes over."""
    def is_abreast(video):
        successor = video.successor
        return successor is not None and bool(successor.steps) and (
            successor.first + len(successor.steps) >= len(video.steps) - 1)
    return is_abreast


@_fault(core_module, 'take_over')
def _the_last_words_are_forgotten(honest):
    """What was said between the last piece and the hand-over is missing in the next stream."""
    def take_over(video):
        successor = honest(video)
        successor.fed = len(successor.words)
        return successor
    return take_over


@_fault(Core, '_carried')
def _words_are_carried_twice(honest):
    """What went with one piece goes with the next one again."""
    def carried(core, given):
        honest(core, given)
        given.job.video.fed = 0
    return carried


@_fault(Core, '_perceived')
def _a_step_is_carried_twice(honest):
    """A step that went into both streams is carried over as well."""
    def perceived(core, given):
        honest(core, given)
        if given.job.also and given.job.also.steps:
            given.job.also.steps.pop()
    return perceived


@_fault(core_module, 'take_over')
def _a_hand_over_is_another_video(honest):
    """The stream that takes over counts as the next video."""
    def take_over(video):
        successor = honest(video)
        successor.number += 1
        return successor
    return take_over


@_fault(Relay, 'successor')
def _steps_count_from_0_again(honest):
    """The stream that takes over does not know how many steps the video had before."""
    def successor(relay, video, stream):
        found = honest(relay, video, stream)
        found.base = 0
        return found
    return successor


@_fault(core_module, 'take_over')
def _the_budget_is_not_handed_over(honest):
    """The next stream's narration spends the budget by the old stream's count of steps."""
    def take_over(video):
        successor = honest(video)
        successor.budget = video.budget
        return successor
    return take_over


@_fault(core_module, 'take_over')
def _what_was_seen_is_seen_again(honest):
    """The steps that are carried over are told to be seen for the first time."""
    def take_over(video):
        successor = honest(video)
        successor.sights = Sights(successor.base)
        return successor
    return take_over


@_fault(Core, 'next_piece')
def _a_step_waits_for_all_pieces(honest):
    """A frame is not looked at before the next stream is prepared."""
    def next_piece(core):
        core._pieces = -1
        return honest(core)
    return next_piece


@_fault(Core, '_failed')
def _a_piece_that_fails_is_tried_again(honest):
    """A successor that cannot be prepared is begun again and again."""
    def failed(core, given):
        honest(core, given)
        core.video.alone = False
    return failed


@_fault(Core, '_switch')
def _a_reset_spares_a_successor(honest):
    """A stream that was to relieve one that is forgotten relieves the next video's."""
    def switch(core, reason):
        successor = core.video.successor
        honest(core, reason)
        core.video.successor = successor
    return switch


@_fault(Core, '_words_due')
def _both_sides_write_a_narration(honest):
    """Words are put into a stream beside a piece that does the same."""
    def words_due(core, turns):
        successor = core.video.successor
        if (found := honest(core, turns)) or not successor or not successor.opened:
            return found
        words = [word for word in owed(core.video).words if word.sees <= len(successor.steps)]
        return Words(successor, tuple(words)) if words and turns[-1].question is None else None
    return words_due


@_fault(Core, '_is_full')
def _a_full_stream_goes_on(honest):
    """A stream that waits to be relieved gets more steps than it may have."""
    return property(lambda core: False if core.video.successor else honest.fget(core))


# Pauses and frames.

@_fault(Core, '_opened')
def _a_resume_is_overtaken(honest):
    """A resume while a video begins is overtaken by the pause of before."""
    def opened(core, given):
        honest(core, given)
        core._paused(Paused(getattr(core, 'paused_before', False)))
        core.paused_before = core.paused
    return opened


@_fault(PendingFrames, 'clear')
def _a_pause_joins_two_videos(honest):
    """The end of a video is thrown away by a pause, and the next one is taken for the same."""
    def clear(frames):
        cut = frames.cut
        count = honest(frames)
        frames.cut = cut
        return count
    return clear


@_fault(PendingFrames, 'put')
def _a_crowd_joins_two_videos(honest):
    """The end of a video gives way to newer frames, and the next one is taken for the same."""
    def put(frames, frame):
        cut = frames.cut
        dropped = honest(frames, frame)
        frames.cut = cut
        return dropped
    return put


@_fault(Core, '_paused')
def _a_frame_slips_in_behind_a_pause(honest):
    """What was fed while a pause began is perceived during it."""
    def paused(core, given):
        core.paused = given.paused
    return paused


@_fault(Core, '_close')
def _the_end_forgets_frames(honest):
    """Frames in perception when the session closes are not told of."""
    def close(core, reason):
        core._perceiving, perceiving = [], core._perceiving
        honest(core, reason)
        core._perceiving = perceiving
    return close


def _ahead(core, ends=True, full=True, cut=True):
    """`Core._may_look_ahead`, with some of its conditions left out."""
    out, relay = core._perceiving, core._relay
    room = relay.capacity if relay else core.max_steps
    return (len(out) < core._perceptions and not core.serial and core.video.successor is None
            and not (cut and core._frames.cut)
            and not (full and len(core.video.steps) + len(out) >= room)
            and all(isinstance(job, Perceive) and job.video is core.video
                    and not (ends and job.last) for job in out))


@_fault(Core, '_may_look_ahead')
def _a_step_is_taken_ahead_past_the_end(honest):
    """The first step of the next clip is taken for this one, whose last step is not back yet."""
    return property(lambda core: _ahead(core, ends=False))


@_fault(Core, '_may_look_ahead')
def _a_step_is_taken_ahead_of_a_full_video(honest):
    """A video gets a step more than it may have, as the one that fills it is not back yet."""
    return property(lambda core: _ahead(core, full=False))


@_fault(Core, '_may_look_ahead')
def _a_step_is_taken_ahead_past_a_lost_end(honest):
    """The end of a clip gave way to newer frames, and a step behind it is taken for the clip's."""
    return property(lambda core: _ahead(core, cut=False))


@_fault(Core, '_looked_at')
def _frames_taken_ahead_are_not_told_of(honest):
    """Of two steps that are out when the video is forgotten, the frames of one are told of."""
    return property(lambda core: min(honest.fget(core), core._frames._per_step))


# What is said and seen.

@_fault(NarrationBudget, 'sees')
def _wait_k_sees_ahead(honest):
    """A token sees all that is perceived, however few steps its schedule lets it see."""
    return property(lambda budget: budget.steps)


@_fault(NarrationBudget, 'rest')
def _the_end_of_a_turn_gives_up_all(honest):
    """With wait-K a turn that ends gives up the steps that perception has got ahead."""
    def rest(budget):
        budget.index = max(budget.index, budget._granted)
    return rest


@_fault(NarrationBudget, 'spend')
def _silence_costs_nothing(honest):
    """A token is not counted, so that a side never comes to rest."""
    return lambda budget: None


@_fault(Core, '_answer')
def _numbers_go_on_after_the_end(honest):
    """An id that is used again goes on counting where its last answer ended."""
    def answer(core, turn, spoken, moment):
        stream_id = turn.question.question_id
        honest(core, turn, spoken, moment)
        if stream_id not in core._answers:
            core._seq[stream_id] = 7
    return answer


@_fault(Core, '_switch')
def _numbers_begin_anew(honest):
    """The narration is numbered from 0 again with every video."""
    def switch(core, reason):
        honest(core, reason)
        core._seq.pop(NARRATION, None)
    return switch


@_fault(Core, 'handle')
def _a_job_never_comes_back(honest):
    """A decode step that has nothing to tell counts as running still."""
    def handle(core, given, now_ns):
        events = honest(core, given, now_ns)
        if isinstance(given, Decoded) and not events and given.job.turns[0].question:
            core._decoding = given.job
        return events
    return handle
