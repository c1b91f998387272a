"""
The narrator as a ROS 2 node, thin, no model code, and imported by nothing outside; its parameters.

`python -m sww_ros.nodes.console`, `page`, `shapes_camera` and `video_source` are documented: they
are found in the rooms where they live.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
import re

from rcl_interfaces.msg import SetParametersResult
from rclpy.parameter import Parameter

from sww_ros.engine.address import check_engine
from sww_ros.settings import CONFIGURE, LIBRARY, LIVE, Setting, Value
from sww_ros.streaming import config
from sww_ros.streaming.config import SessionConfig

__path__ += [str(Path(__file__).parents[1] / room) for room in ('sources', 'terminal', 'web')]

NAME_OF_TOPIC = re.compile('[A-Za-z][A-Za-z0-9_]*')

NODE_SETTINGS = (
    Setting('model', 'builtin', "The checkpoint: 'builtin', a folder, or the id of a hub.",
            changes=CONFIGURE),
    Setting('autostart', True, 'Configure and activate at the start; if that fails, the node '
            'ends. If not set, the node waits for its lifecycle services.'),
    Setting('cameras', '', 'Names of several cameras, such as [front, rear]: each has topics and '
            'services under its name, its images come on NAME/image, and all share one engine. '
            'Empty: one camera, on `image`.'),
    Setting('engine', '', "Name of an engine that narrators in other processes share, such as "
            "'shared': the first of them starts it, and it ends with the last. Or the address of a "
            'pool (docs/scale.md), such as wss://host:8443, whose model it is then. '
            'Empty: one of its own.', changes=CONFIGURE),
    Setting('engine_token', '', 'File that holds the token by which the pool knows this robot.',
            changes=CONFIGURE),
    Setting('engine_authority', '', 'File of the certificate that vouches for the pool; empty: '
            'those that this machine trusts.', changes=CONFIGURE),
    Setting('jpeg_quality', 90, 'Quality of the frames that the pool is sent.', low=1, high=100,
            changes=CONFIGURE),
    Setting('ask_again', False, 'Whether a question of which nothing was said when the engine, or '
            'the link to it, was lost is asked again; if not, it ends (error).',
            changes=CONFIGURE),
    Setting('fallback', '', "Checkpoint that speaks here while there is no way to the pool, such "
            "as 'builtin'; empty: none does.", changes=CONFIGURE),
    Setting('image_transport', 'raw', "How images come: 'raw' (sensor_msgs/Image on `image`) or "
            "'compressed' (sensor_msgs/CompressedImage on `image`/compressed).",
            choices=('raw', 'compressed'), changes=CONFIGURE),
    Setting('camera_timeout', 5.0, 'Warn when no frame has come for so long [s].', low=0.1,
            high=3600.0, changes=LIVE),
    Setting('load_timeout', 600.0, 'The longest that loading the model may take [s].', low=1.0,
            high=86400.0, changes=CONFIGURE),
    Setting('ask_timeout', 30.0, 'The longest that ~/ask waits for an answer when the request '
            'names no timeout, and that a goal of ~/answer_question may take [s].', low=0.1,
            high=3600.0, changes=LIVE),
    Setting('restart_engine', True, 'Whether to start the engine again when it dies.',
            changes=CONFIGURE),
    Setting('silence_timeout', 10.0, "The longest that the engine's process may give no sign of "
            'life once the model is loaded [s]; then it is killed, which is a death like any '
            'other. 0: no limit.', high=3600.0, changes=CONFIGURE),
    Setting('work_timeout', 20.0, 'The longest that a single job of the engine, a step perceived '
            'or a token decoded, may take [s], or ten times what a step took when the model was '
            'loaded, if that is longer; then the engine is killed. 0: no limit.', high=3600.0,
            changes=CONFIGURE),
    Setting('diagnostics_period', 1.0, 'Time between two messages on /diagnostics [s]; 0: none.',
            high=60.0),
    Setting('annotation_rate', 5.0, 'Most images per second on ~/image_annotated [Hz].', low=0.1,
            high=60.0),
)

SESSION_SETTINGS = tuple(
    replace(setting, choices=tuple(choice for choice in setting.allowed
                                   if choice not in setting.recorded_only))
    for setting in config.SETTINGS if setting.changes != LIBRARY)
"""What a session of frames that do not end can have: all but what says how it ends."""

SETTINGS = NODE_SETTINGS + SESSION_SETTINGS
BY_NAME = {setting.name: setting for setting in SETTINGS}


def listed(text: str) -> list[str]:
    """Return the parts of a list such as 'front, rear' or '[front, rear]'."""
    return [part.strip() for part in text.strip().strip('[]').split(',') if part.strip()]


def camera_names(text: str) -> list[str]:
    """
    Return the names of a list (`listed`).

    :raises ValueError: for one that no topic can have, or that comes twice
    """
    names = listed(text)
    for name in names:
        if not NAME_OF_TOPIC.fullmatch(name):
            raise ValueError(f'cameras: {name!r} cannot be a part of a topic: use letters, digits '
                             'and _, no digit first')
        if names.count(name) > 1:
            raise ValueError(f'cameras: {name!r} comes twice')
    return names


def whole_path(model: str) -> str:
    """Return what a model is called by nodes that were started in other folders too."""
    path = Path(model).expanduser()
    return str(path.resolve()) if model != 'builtin' and path.is_dir() else model


def session_config(values: dict[str, Value]) -> SessionConfig:
    """
    Return the session's settings among the values.

    :raises ValueError: for a value that no session can have
    """
    return SessionConfig(**{setting.name: values[setting.name] for setting in SESSION_SETTINGS})


def check(changes: Iterable[Parameter], values: dict[str, Value],
          configured: bool) -> SetParametersResult:
    """
    Return whether the changes are taken, and if not, why.

    Types and ranges of numbers are checked by rclpy before.

    :param values: the present values
    :param configured: whether the engine runs or is being started
    """
    changed = {p.name: p.value for p in changes if p.name in BY_NAME}
    try:
        for name, value in changed.items():
            if configured and BY_NAME[name].changes == CONFIGURE and value != values[name]:
                raise ValueError(f'{name} takes effect when the node is configured: clean it up '
                                 '(or restart it) first')
            BY_NAME[name].check_range(value)
        check_engine((values | changed)['engine'])
        session_config(values | changed)
    except ValueError as error:
        return SetParametersResult(successful=False, reason=str(error))
    return SetParametersResult(successful=True)
