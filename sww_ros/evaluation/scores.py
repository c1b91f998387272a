"""The metrics of one run over many clips, of each clip where that means something, intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sww_ros.evaluation.fluency import Judge, mean_of_known
from sww_ros.evaluation.metrics.bleu import bleu
from sww_ros.evaluation.metrics.bleurt import Bleurt
from sww_ros.evaluation.metrics.captions import score
from sww_ros.evaluation.metrics.cider import cider
from sww_ros.evaluation.metrics.words import words

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
