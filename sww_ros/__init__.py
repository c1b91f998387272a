"""sww_ros: Qwen2.5-VL speaks while it watches, as a ROS 2 node."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = '0.1.0'

if TYPE_CHECKING:
    from sww_ros.library import Engine, Sentence, narrate
    from sww_ros.streaming.config import SessionConfig
    from sww_ros.streaming.events import (
        NARRATION,
        Event,
        FirstSight,
        FramesDropped,
        QuestionState,
        Restarted,
        SessionClosed,
        StepPerceived,
        TextDelta,
        Trouble,
    )
    from sww_ros.streaming.session import Session

__all__ = ['NARRATION', 'Engine', 'Event', 'FirstSight', 'FramesDropped', 'QuestionState',
           'Restarted', 'Sentence', 'Session', 'SessionClosed', 'SessionConfig', 'StepPerceived',
           'TextDelta', 'Trouble', 'narrate']

_ELSEWHERE = {'Engine': 'library', 'Sentence': 'library', 'narrate': 'library',
              'Session': 'streaming.session', 'SessionConfig': 'streaming.config'}
"""The modules of the public names; all the others are events."""


def __getattr__(name: str) -> object:
    """Load a public name when it is first used: a launch file needs no model code."""
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    module = importlib.import_module(f'{__name__}.{_ELSEWHERE.get(name, "streaming.events")}')
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
