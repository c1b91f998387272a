"""Evaluates a checkpoint on clips through the live engine, one schedule after the other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
import functools
import hashlib
import json
import platform
import sys

import numpy as np
import torch
from tqdm import tqdm
import transformers

import sww_ros
from sww_ros.evaluation.clips import ClipError, ClipLog, Played, Player, Said, lateness
from sww_ros.evaluation.fluency import Judge, mean_of_known
from sww_ros.evaluation.metrics import Bleurt, bleu, cider, score, words
from sww_ros.fleet.collection import Lost
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.perception import shrunk
from sww_ros.training.frames import READ_FACTOR, Sample, VideoError, read_frames

MODES = ('offline', 'wait_k', 'random_wait_k')
"""Schedules whose text does not depend on the machine."""
CHOSEN = ('position_encoding', 'position_gap', 'wait_k', 'schedule_seed', 'repetition_penalty',
          'temperature', 'top_k', 'top_p', 'sampling_seed', 'max_rest_tokens', 'max_steps',
          'threads')
"""Which settings of the session may be chosen; all but the last change what is said."""


@dataclass(frozen=True)
class Options:
    """
    How to evaluate.

    `session` is how clips are played: its `max_rest_tokens` bounds the text after a clip's end,
    offline all of it, and its `max_steps` is the longest clip taken. `max_pixels` scales larger
    frames down as they are read (0: those of more than READ_FACTOR times what is perceived).
    """

    modes: tuple[str, ...] = ('wait_k',)
    # A clip has one text, and no rows beyond it were ever trained.
    session: SessionConfig = SessionConfig(single_turn=True, max_rest_tokens=256, threads=1)
    max_pixels: int = 0
    live: bool = False
    resamples: int = 200
    bootstrap_seed: int = 0

    def __post_init__(self) -> None:
        for mode in self.modes:
            if mode not in MODES:
                raise ValueError(f'unknown mode {mode!r}; one of {", ".join(MODES)}')
        for name in ('max_pixels', 'resamples', 'bootstrap_seed'):
            if getattr(self, name) < 0:
                raise ValueError(f'{name} must not be negative, not {getattr(self, name)}')

    def resolved(self, checkpoint: Checkpoint) -> Options:
        """
        Fill in what the checkpoint says.

        :raises ValueError: for a setting that no session takes
        """
        found = self.played(self.modes[0]).resolved(checkpoint)
        return replace(self, modes=tuple(dict.fromkeys(self.modes)), session=replace(
            self.session, **{name: getattr(found, name) for name in CHOSEN}))

    def played(self, mode: str) -> SessionConfig:
        """
        Return the settings of the session that plays one mode.

        :raises ValueError: for a setting that no session takes
        """
        return replace(self.session, schedule=mode)


def to_stderr(message: str) -> None:
    """Print a message above the progress bar."""
    tqdm.write(message, file=sys.stderr)


def run_settings(checkpoint: Checkpoint, clips: Sequence[Sample], options: Options) -> dict:
    """
    Return what the text of every clip depends on, as plain data: what a resumed run must share.

    Modes and the figures computed of the texts are not among it.

    :param options: as `Options.resolved` returns them
    """
    settings = {name: getattr(options.session, name) for name in CHOSEN if name != 'threads'}
    content = json.dumps([asdict(clip) for clip in clips], default=str)
    return dict(
        settings, max_pixels=options.max_pixels, live=options.live,
        model=checkpoint.name, system=checkpoint.defaults.system,
        dtype=checkpoint.decoder.precision,
        device=str(checkpoint.decoder.device), clips=len(clips),
        clips_sha256=hashlib.sha256(content.encode()).hexdigest())


ClipJob = tuple[str, int, Sample]
"""A schedule, and a clip with its number."""
Workers = Callable[[Sequence[ClipJob]], Iterable[tuple[ClipJob, Played | str | Lost]]]


class Performer:
    """Reads clips and plays them, in one schedule after the other."""

    def __init__(self, checkpoint: Checkpoint, options: Options) -> None:
        """
        Prepare to play.

        :param options: as `Options.resolved` returns them
        """
        self._checkpoint, self._options = checkpoint, options
        self._mode, self._player = '', None

    def __call__(self, job: ClipJob) -> Played | str:
        """Play one clip; return, for one that cannot be played, why."""
        mode, number, clip = job
        options, pixels = self._options, self._checkpoint.perception.settings
        player = self.player(mode)
        try:
            # One more frame than is taken tells that a clip is too long without reading it all.
            frames = read_frames(
                clip, player.frame_rate, frames_per_step=player.frames_per_step,
                max_pixels=options.max_pixels or READ_FACTOR * pixels.max_pixels,
                shrink=functools.partial(shrunk, settings=pixels),
                max_frames=options.session.max_steps * player.frames_per_step + 1)
            return player.play(frames, clip.prompt, number, clip.answer)
        except (VideoError, ClipError) as error:
            return str(error)

    def player(self, mode: str) -> Player:
        """Return who plays in a schedule; whoever played in another is done."""
        if self._player is None or mode != self._mode:
            self.close()
            self._mode = mode
            self._player = Player(self._checkpoint, self._options.played(mode), self._options.live)
        return self._player

    def close(self) -> None:
        """End the session, if there is one."""
        if self._player is not None:
            self._player.close()


def evaluate(checkpoint: Checkpoint, clips: Sequence[Sample], options: Options, *,
             log: ClipLog | None = None, bleurt: Bleurt | None = None, judge: Judge | None = None,
             workers: Workers | None = None, warn: Callable[[str], None] = to_stderr) -> dict:
    """
    Play all clips in all modes, score what is said, and return settings and results, for JSON.

    A clip that cannot be read or whose run met trouble is told to `warn`, counted and left out.

    :param log: what has been played before, and where to keep what is played now
    :param workers: play what the log does not have, in place of this process, in any order
    :raises ValueError: for a setting that cannot be used
    :raises JudgeError: if the judge cannot be used; what was played is in the log
    """
    options = options.resolved(checkpoint)
    settings = run_settings(checkpoint, clips, options)
    log = ClipLog(None, settings) if log is None else log
    with closing(Performer(checkpoint, options)) as performer:
        mismatches = {mode: performer.player(mode).info['mismatch'] for mode in options.modes}
        for mismatch in dict.fromkeys(filter(None, mismatches.values())):
            warn(f'warning: {mismatch}')
        jobs = [(mode, number, clip) for mode in options.modes for number, clip in enumerate(clips)
                if log.get(mode, number) is None]
        if workers is not None:
            performer.close()
        skipped = _play_all(jobs, log, warn, workers or (
            lambda jobs: ((job, performer(job)) for job in jobs)))
    results = {mode: dict(
        mismatch=mismatches[mode], skipped=skipped[mode], **_figures(
            mode, clips, log, options, checkpoint.defaults.seconds_per_step, bleurt, judge))
        for mode in options.modes}
    versions = dict(sww_ros=sww_ros.__version__, python=platform.python_version(),
                    torch=torch.__version__, transformers=transformers.__version__,
                    numpy=np.__version__)
    return dict(
        settings=dict(settings, resamples=options.resamples,
                      bootstrap_seed=options.bootstrap_seed,
                      judge=judge.model if judge else None),
        versions=versions, modes=results)


def _play_all(jobs: Sequence[ClipJob], log: ClipLog, warn: Callable[[str], None],
              workers: Workers) -> dict[str, list[dict]]:
    """Play clips; return, by schedule, those that had to be skipped, with reasons."""
    skipped: dict[str, dict[int, dict]] = defaultdict(dict)
    for (mode, number, clip), found in tqdm(workers(jobs), total=len(jobs), unit='clip',
                                            disable=None):
        if isinstance(found, Played):
            log.add(mode, number, asdict(found))
            continue
        reason = found.reason if isinstance(found, Lost) else found
        warn(f'skipped, {mode}, {clip.source}: {reason}')
        skipped[mode][number] = dict(source=clip.source, reason=reason)
    return defaultdict(list, {mode: [each for _, each in sorted(of_mode.items())]
                              for mode, of_mode in skipped.items()})


def _figures(mode: str, clips: Sequence[Sample], log: ClipLog, options: Options,
             seconds_per_step: float, bleurt: Bleurt | None, judge: Judge | None) -> dict:
    """What all clips of a mode that were played come to."""
    found = [(clip, _played(result)) for number, clip in enumerate(clips)
             if (result := log.get(mode, number)) is not None]
    if not found:
        return dict(scored=0, metrics={}, intervals={}, lateness={}, clips=[])
    scores = score_texts(
        [played.text for _, played in found], [clip.answer for clip, _ in found], bleurt=bleurt,
        judge=judge, resamples=options.resamples, seed=options.bootstrap_seed,
        progress=lambda work: tqdm(work, desc=f'{mode}: scores', disable=None, leave=False))
    listed = [dict(source=clip.source, video=str(clip.video), prompt=clip.prompt,
                   reference=clip.answer, hypothesis=played.text, **asdict(played),
                   **{name: values[i] for name, values in scores.of_each.items()})
              for i, (clip, played) in enumerate(found)]
    figures = dict(scored=len(found), metrics=scores.metrics, intervals=scores.intervals,
                   lateness=lateness([played for _, played in found], options.session.wait_k,
                                     seconds_per_step))
    if judge is not None:
        figures['judged'] = scores.judged
    return dict(figures, clips=listed)


def _played(result: dict) -> Played:
    return Played(result['steps'], tuple(Said(**part) for part in result['said']),
                  result['live_tail_s'])


MIN_CLIPS = 10
"""With fewer clips an interval would say nothing."""
_OF_EACH = ('METEOR', 'ROUGE-L')
"""Caption metrics of a corpus that are the mean of those of its clips."""


@dataclass
class Scores:
    """
    `metrics` of the whole, those `of_each` clip (None: not judged), 95 % `intervals`.

    Caption metrics are on the scale of `captions.score`, x100; fluency is 1 to 5, or None where
    no text was judged.
    """

    metrics: dict[str, float | None]
    of_each: dict[str, list[float | None]]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    judged: int = 0


def score_texts(hypotheses: Sequence[str], references: Sequence[str], *,
                bleurt: Bleurt | None = None, judge: Judge | None = None, resamples: int = 200,
                seed: int = 0, progress: Callable[[Iterable], Iterable] = iter) -> Scores:
    """
    Score one text per clip against its reference.

    Intervals are bootstrap percentiles over clips, none below MIN_CLIPS clips. BLEU and CIDEr
    are computed anew on each resample; a clip that is drawn twice makes its words less rare
    there, so that CIDEr's interval lies a little low.

    :param progress: wraps what takes long, e.g. tqdm
    :param resamples: how many resamples; 0: no intervals
    :raises ValueError: if the lengths differ or there is nothing to score
    :raises JudgeError: if the judge cannot be used
    """
    metrics: dict[str, float | None] = dict(score(hypotheses, [[text] for text in references]))
    pairs = list(zip(hypotheses, references))
    each = [score([said], [[wanted]]) for said, wanted in pairs]
    of_each: dict[str, list[float | None]] = {
        name: [scores[name] for scores in each] for name in _OF_EACH}
    if bleurt is not None:
        of_each['BLEURT'] = [100 * bleurt.mean([said], [[wanted]])
                             for said, wanted in progress(pairs)]
        metrics['BLEURT'] = mean_of_known(of_each['BLEURT'])
    if judge is not None:
        of_each['fluency'] = [judge.rate(text) for text in progress(hypotheses)]
        metrics['fluency'] = mean_of_known(of_each['fluency'])
    found = Scores(metrics, of_each, judged=sum(
        rating is not None for rating in of_each.get('fluency', [])))
    if resamples and len(pairs) >= MIN_CLIPS:
        found.intervals = _intervals(pairs, of_each, resamples, seed, progress)
    return found


def _intervals(pairs: Sequence[tuple[str, str]], of_each: dict[str, list[float | None]],
               resamples: int, seed: int, progress: Callable[[Iterable], Iterable],
               ) -> dict[str, tuple[float, float]]:
    rng, drawn = np.random.default_rng(seed), {}
    ours, theirs = ([words(text) for text in texts] for texts in zip(*pairs))
    for _ in progress(range(resamples)):
        chosen = rng.integers(len(pairs), size=len(pairs)).tolist()
        hypotheses, references = [ours[i] for i in chosen], [[theirs[i]] for i in chosen]
        orders = bleu(hypotheses, references)
        figures = {'CIDEr': 100 * cider(hypotheses, references), 'BLEU-1': 100 * orders[0],
                   'BLEU-4': 100 * orders[3]}
        for name, values in of_each.items():
            figures[name] = mean_of_known([values[i] for i in chosen])
        for name, figure in figures.items():
            if figure is not None:
                drawn.setdefault(name, []).append(figure)
    return {name: tuple(np.percentile(figures, [2.5, 97.5]).tolist())
            for name, figures in drawn.items()}
