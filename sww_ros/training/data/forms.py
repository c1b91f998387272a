"""Annotation files of all forms; which one a file has is given, or guessed by its keys."""

from __future__ import annotations

from pathlib import Path

from sww_ros.training.data.errors import Rejected
from sww_ros.training.data.records import read_records

FORMS = ('pe_video', 'funqa', 'bag')
_TOLD_BY = {'bag': 'bag', 'caption': 'pe_video', 'instruction': 'funqa', 'question': 'funqa'}
"""The form of a file by the first of these keys that a record has."""


def guess_form(path: Path) -> str:
    """
    Return the form of a file by its first record that has a key of one.

    :raises ValueError: for a file that cannot be read, or has other keys
    """
    for record in read_records(path):
        try:
            key = record.has(*_TOLD_BY)
        except Rejected:  # Counted by whoever reads it.
            continue
        if key:
            return _TOLD_BY[key]
    raise ValueError(f'no record of {path} has one of {", ".join(_TOLD_BY)}: give annotations in '
                     'the form of PE-Video, of FunQA, or of captioned bags, or --form')
