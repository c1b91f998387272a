"""When the text of a clip was spoken: how late it began, and how much came after the end."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

from sww_ros.evaluation.playing import Played


def lateness(clips: Sequence[Played], wait_k: int, seconds_per_step: float) -> dict[str, float]:
    """
    Say when the tokens were spoken, in the time of the videos.

    All is counted in steps perceived when a token was spoken, so that it says the same on every
    machine; one step stands for `seconds_per_step`. Tokens spoken at a clip's last step, those
    that the schedule grants that step among them, come after its end: nothing was left to watch.

    - `first_step`, `first_s`: how much of the clip had been watched when the first token was
      spoken, in steps (1 is the least) and in seconds; offline, all of it.
    - `before_end`: the share of all tokens that was spoken before the end, 0 offline.
    - `tail_s`: how long a listener who hears `wait_k` tokens a step, the pace of the stream, goes
      on listening once the clip has ended: tokens after the end / wait_k * seconds_per_step.
    - `tokens`: per clip. `silent`: clips of which nothing was said; they count in `tokens` only.
    - `live_tail_s`: measured seconds from the last frame to the last token, if fed in real time.

    Each but `before_end` and `silent` is a mean and, as `median_...`, a median over clips.
    """
    spoken = [clip for clip in clips if clip.said]
    after = [sum(part.tokens for part in clip.said if part.step >= clip.steps) for clip in spoken]
    total = [sum(part.tokens for part in clip.said) for clip in clips]
    values = dict(
        first_step=[clip.said[0].step for clip in spoken],
        first_s=[clip.said[0].step * seconds_per_step for clip in spoken],
        tail_s=[count / wait_k * seconds_per_step for count in after],
        tokens=total,
        live_tail_s=[clip.live_tail_s for clip in spoken if clip.live_tail_s is not None])
    found: dict[str, float] = dict(silent=len(clips) - len(spoken))
    if spoken:
        found['before_end'] = 1 - sum(after) / sum(total)
    for name, each in values.items():
        if each:
            found |= {name: fmean(each), f'median_{name}': median(each)}
    return found
