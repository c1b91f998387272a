"""All caption metrics of a corpus at once, on the scale of papers."""

from __future__ import annotations

from collections.abc import Sequence

from sww_ros.evaluation.metrics.bleu import bleu
from sww_ros.evaluation.metrics.bleurt import Bleurt
from sww_ros.evaluation.metrics.cider import cider
from sww_ros.evaluation.metrics.meteor import meteor
from sww_ros.evaluation.metrics.rouge import rouge_l
from sww_ros.evaluation.metrics.words import words


def score(hypotheses: Sequence[str], references: Sequence[Sequence[str]],
          bleurt: Bleurt | None = None) -> dict[str, float]:
    """
    Score one text per video against its reference texts.

    Every figure is 100 times what the metric's own function returns, as papers print them: 0 to
    100, except CIDEr, 0 to 1000 (pycocoevalcap's 0.354 is 35.4), and BLEURT, which may leave its
    usual 0 to 100. Text is split by `words`; BLEURT reads it as it is.

    :param hypotheses: one text per video; an empty one scores 0
    :param references: at least one text per video, with at least one word each
    :param bleurt: a loaded checkpoint, for the entry BLEURT
    :return: CIDEr, BLEU-1, BLEU-4, METEOR, ROUGE-L, and BLEURT if asked for
    :raises ValueError: if the lengths differ, there is nothing to score, or a reference is empty
    """
    ours, theirs = _split(hypotheses, references)
    orders = bleu(ours, theirs)
    scores = {'CIDEr': cider(ours, theirs), 'BLEU-1': orders[0], 'BLEU-4': orders[3],
              'METEOR': meteor(ours, theirs), 'ROUGE-L': rouge_l(ours, theirs)}
    if bleurt is not None:
        scores['BLEURT'] = bleurt.mean(hypotheses, references)
    return {name: 100 * value for name, value in scores.items()}


def _split(hypotheses: Sequence[str], references: Sequence[Sequence[str]],
           ) -> tuple[list[list[str]], list[list[list[str]]]]:
    if len(hypotheses) != len(references):
        raise ValueError(f'{len(hypotheses)} hypotheses, but references for {len(references)}')
    if not hypotheses:
        raise ValueError('nothing to score: no hypotheses')
    for index, group in enumerate(references):
        # A string is a sequence of strings too: each letter would be a reference.
        if isinstance(group, str):
            raise ValueError(f'references[{index}] is a text, not a list of texts')
    theirs = [[words(text) for text in group] for group in references]
    for index, group in enumerate(theirs):
        if not group or not all(group):
            raise ValueError(f'references[{index}] is empty or has a text without words')
    return [words(text) for text in hypotheses], theirs
