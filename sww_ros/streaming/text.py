"""From token ids to text that can be published: whole characters, whole sentences."""

from __future__ import annotations

import re

_TERMINATORS = '.!?。！？\n'
_UNFINISHED = '\ufffd'
_LONE_SURROGATE = re.compile('[\ud800-\udfff]')


class TextAssembler:
    """
    Turns a stream of token ids into deltas that never split a character, and into sentences.

    The tokens of a sentence are decoded together, as a byte-level tokenizer may spread one
    character over several of them.
    """

    def __init__(self, tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._said = ''

    def add(self, token: int) -> tuple[str, str]:
        """Take one token; return (new text, the whole sentence if this ends one), '' for none."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        # No UTF-8, so no message, could carry one.
        text = _LONE_SURROGATE.sub(_UNFINISHED, text)
        if text.endswith(_UNFINISHED):
            return '', ''
        delta, self._said = text[len(self._said):], text
        return delta, self.flush() if delta and _ends_sentence(text) else ''

    @property
    def unfinished(self) -> str:
        """What has been said since the last sentence, stripped."""
        return self._said.strip()

    def flush(self) -> str:
        """Return what has been said since the last sentence, stripped, and begin anew."""
        sentence, self._ids, self._said = self._said.strip(), [], ''
        return sentence


def _ends_sentence(text: str) -> bool:
    text = text.rstrip(' ')
    if not text or text[-1] not in _TERMINATORS or not text.strip():
        return False
    # "3." may go on as "3.5".
    return not (text[-1] == '.' and text[-2:-1].isdigit())
