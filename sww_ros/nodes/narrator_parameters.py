"""The narrator's parameters: the one table of names, defaults, ranges and descriptions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

from sww_ros.nodes.settings import Setting, Value
from sww_ros.streaming.config import (
    OVERLAPS,
    QUESTION_POLICIES,
    SessionConfig,
    check_prompt,
)
from sww_ros.streaming.positions import SCHEMES
from sww_ros.streaming.schedule import SCHEDULES

START, CONFIGURE, LIVE = 'start', 'configure', 'live'
"""When a parameter may change: never; while the node is unconfigured; at any time."""

WHEN = {
    START: 'Read-only.',
    CONFIGURE: 'Changeable while the node is unconfigured.',
    LIVE: 'Changeable at any time.',
}


@dataclass(frozen=True)
class NarratorSetting(Setting):
    """A parameter that says when it may change."""

    changes: str = CONFIGURE

    def descriptor(self) -> ParameterDescriptor:
        """Return what ROS tools show of the parameter."""
        described = ParameterDescriptor(
            name=self.name, description=f'{self.description} {WHEN[self.changes]}',
            read_only=self.changes == START)
        if self.choices:
            described.additional_constraints = f'one of: {", ".join(self.choices)}'
        if isinstance(self.default, float):
            described.floating_point_range = [
                FloatingPointRange(from_value=float(self.low), to_value=float(self.high))]
        elif isinstance(self.default, int) and not isinstance(self.default, bool):
            described.integer_range = [
                IntegerRange(from_value=int(self.low), to_value=int(self.high), step=1)]
        return described


def _session(name: str, description: str, **options) -> NarratorSetting:
    return NarratorSetting(name, getattr(SessionConfig(), name), description, **options)


SESSION_SETTINGS = (
    _session('prompt', 'What the narrator is told to do; empty: as the checkpoint says.',
             changes=LIVE),
    _session('position_encoding', 'How positions are given to video and text: in groups of their '
             'own (gdpe, with a gap gipe), overlapped (ospe), interleaved (perceives and speaks '
             'in turn), or text after the video (offline); empty: as the checkpoint was trained.',
             choices=('', *SCHEMES)),
    _session('position_gap', "Where the text's positions start in gipe; 0: as the checkpoint was "
             'trained.', high=1_000_000),
    _session('schedule', 'How much may be said, and when: as fast as both sides can, exactly '
             'wait_k tokens behind the video, or a random number of tokens a step (half of '
             'wait_k to wait_k).',
             # A camera has no end at which an offline narrator could begin to speak.
             choices=tuple(name for name in SCHEDULES if name != 'offline')),
    _session('schedule_seed', 'Seed of the random schedule.', high=1_000_000),
    _session('overlap', 'How perception and generation share the hardware: in two threads, in two '
             'processes, one piece of work after the other, or fused into one pass; auto: what '
             'proves best here when the model is loaded.', choices=OVERLAPS),
    _session('wait_k', 'Tokens of narration per step of video; 0: as the checkpoint was trained.',
             high=64),
    _session('max_answers', 'Questions answered at once.', low=1, high=16),
    _session('max_queued', "Questions that may wait for their turn (policy 'queue').", high=64),
    _session('question_policy', 'What happens to a question when max_answers are being answered: '
             'it waits, it takes the place of the oldest, or it is refused.',
             choices=QUESTION_POLICIES),
    _session('max_answer_tokens', 'Longest answer [tokens].', low=1, high=4096),
    _session('question_timeout_s', 'A question that has found nothing to see for so long ends [s]; '
             '0: it waits.', high=86400.0),
    _session('max_steps', 'Steps of video that are remembered; the stream begins anew when it is '
             'reached; 0: as the checkpoint allows.', high=100_000),
    _session('max_pending_frames', 'Frames that may wait for perception; the oldest are dropped.',
             low=1, high=256),
    _session('frame_width', 'Width to which frames are resized [pixels]; 0: as the checkpoint '
             'says.', high=4096),
    _session('frame_height', 'Height to which frames are resized [pixels]; 0: as the checkpoint '
             'says.', high=4096),
    _session('narrate', 'Whether to narrate; if not, questions alone are answered.'),
    _session('device', "Where the model runs: 'cpu', 'cuda', 'cuda:1', ..."),
    _session('dtype', "Type of the weights, such as 'float32' or 'bfloat16'; empty: as the "
             'device likes it.'),
    _session('threads', 'Threads of one computation on the CPU; 0: what proves best here with '
             'overlap auto, else one.', high=256),
    _session('repetition_penalty', 'Above 1.0, tokens already said become less likely; 0: as the '
             'checkpoint says (its generation_config.json), else 1.0, none.', high=10.0),
    _session('allow_download', 'Whether a checkpoint that is not on this machine may be '
             'downloaded from the hub.'),
)

NODE_SETTINGS = (
    NarratorSetting(
        'model', 'builtin', "The checkpoint: 'builtin', a folder, or the id of a hub."),
    NarratorSetting(
        'autostart', True, 'Configure and activate at the start; if that fails, the node ends. '
        'If not set, the node waits for its lifecycle services.', changes=START),
    NarratorSetting(
        'image_transport', 'raw', "How images come: 'raw' (sensor_msgs/Image on `image`) or "
        "'compressed' (sensor_msgs/CompressedImage on `image`/compressed).",
        choices=('raw', 'compressed')),
    NarratorSetting(
        'camera_timeout', 5.0, 'Warn when no frame has come for so long [s].', changes=LIVE,
        low=0.1, high=3600.0),
    NarratorSetting(
        'load_timeout', 600.0, 'The longest that loading the model may take [s].', low=1.0,
        high=86400.0),
    NarratorSetting(
        'ask_timeout', 30.0, 'The longest that ~/ask waits for an answer when the request names '
        'no timeout, and that a goal of ~/answer_question may take [s].', changes=LIVE, low=0.1,
        high=3600.0),
    NarratorSetting(
        'restart_engine', True, 'Whether to start the engine again when it dies.'),
    NarratorSetting(
        'diagnostics_period', 1.0, 'Time between two messages on /diagnostics [s]; 0: none.',
        changes=START, low=0.0, high=60.0),
    NarratorSetting(
        'annotation_rate', 5.0, 'Most images per second on ~/image_annotated [Hz].',
        changes=START, low=0.1, high=60.0),
)

SETTINGS = NODE_SETTINGS + SESSION_SETTINGS
BY_NAME = {setting.name: setting for setting in SETTINGS}


def declare(node: Node) -> None:
    """
    Declare all parameters of the table.

    :raises rclpy.exceptions.InvalidParameterValueException: for an override out of its range
    """
    node.declare_parameters(
        '', [(setting.name, setting.default, setting.descriptor()) for setting in SETTINGS])


def read(node: Node) -> dict[str, Value]:
    """Return the values of all parameters of the table."""
    return {setting.name: node.get_parameter(setting.name).value for setting in SETTINGS}


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

    Types and ranges are checked by rclpy before.

    :param values: the present values
    :param configured: whether the engine runs or is being started
    """
    changed = {p.name: p.value for p in changes if p.name in BY_NAME}
    for name, value in changed.items():
        setting = BY_NAME[name]
        if configured and setting.changes == CONFIGURE and value != values[name]:
            return _refuse(f'{name} takes effect when the node is configured: clean it up '
                           '(or restart it) first')
        if setting.choices and value not in setting.choices:
            return _refuse(f'{name} must be one of {", ".join(setting.choices)}, not {value!r}')
    try:
        if changed.get('prompt'):
            check_prompt(changed['prompt'])
        session_config(values | changed)
    except ValueError as error:
        return _refuse(str(error))
    return SetParametersResult(successful=True)


def _refuse(reason: str) -> SetParametersResult:
    return SetParametersResult(successful=False, reason=reason)
