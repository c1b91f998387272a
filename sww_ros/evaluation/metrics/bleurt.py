"""BLEURT (Sellam et al. 2020): a trained model's opinion of how well two texts agree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError

from safetensors import SafetensorError
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

_BATCH = 16
_UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, SafetensorError, UnpicklingError)


class Bleurt:
    """A BLEURT checkpoint in transformers' format: a sequence classifier with one label."""

    def __init__(self, checkpoint: str | Path, *, device: str = 'cpu',
                 allow_download: bool = False) -> None:
        """
        Load a port such as Elron/bleurt-base-128; code of its own, if it has some, is never run.

        Such ports are older than safetensors: their .bin files are read with torch's loader for
        weights only.

        :param checkpoint: the folder, or a hub id in the local cache
        :param device: where to compute, as torch names it
        :param allow_download: whether a hub id may be fetched from the network
        :raises ValueError: if it cannot be loaded, or is not a classifier with one label
        """
        options = dict(local_files_only=not allow_download, trust_remote_code=False)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(checkpoint, **options)
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                checkpoint, output_loading_info=True, dtype=torch.float32, **options)
        except _UNREADABLE as error:
            hint = '' if Path(checkpoint).exists() or allow_download else (
                '; it is neither a folder nor in the local cache')
            raise ValueError(f'no BLEURT checkpoint at {str(checkpoint)!r}{hint}: '
                             f'{error}') from error
        if model.config.num_labels != 1:
            raise ValueError(f'{str(checkpoint)!r} is no BLEURT checkpoint: it has '
                             f'{model.config.num_labels} labels instead of one')
        # What a folder lacks transformers makes up, with no more than a warning: random weights,
        # a tokenizer that knows no words.
        if missing := sorted(loading['missing_keys']):
            raise ValueError(f'{str(checkpoint)!r} is no BLEURT checkpoint: it lacks '
                             f'{", ".join(missing[:3])}')
        if len(self._tokenizer) <= len(set(self._tokenizer.all_special_ids)):
            raise ValueError(f'{str(checkpoint)!r} is no BLEURT checkpoint: it lacks a vocabulary')
        self._model = model.to(device).eval()
        self._tokens = min(self._tokenizer.model_max_length,
                           model.config.max_position_embeddings)

    def mean(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """
        Return the mean score, about 0 to 1, of texts of which the best reference counts.

        Text beyond what the checkpoint reads (128 or 512 tokens for both) is cut off.

        :raises ValueError: if the lengths differ or there is nothing to score
        """
        if len(hypotheses) != len(references) or not hypotheses or not all(references):
            raise ValueError('BLEURT needs one or more hypotheses with references for each')
        pairs = [(reference, hypothesis) for hypothesis, group in zip(hypotheses, references)
                 for reference in group]
        scores = iter(self._score(pairs))
        best = [max(next(scores) for _ in group) for group in references]
        return sum(best) / len(best)

    @torch.inference_mode()
    def _score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Score (reference, hypothesis) pairs, in the order that BLEURT was trained with."""
        scores: list[float] = []
        for start in range(0, len(pairs), _BATCH):
            first, second = zip(*pairs[start:start + _BATCH])
            batch = self._tokenizer(list(first), list(second), padding=True, truncation=True,
                                    max_length=self._tokens, return_tensors='pt')
            scores += self._model(**batch.to(self._model.device)).logits[:, 0].tolist()
        return scores
