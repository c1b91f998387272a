"""Starts the narrator on a camera topic: ros2 launch sww_ros narrate.launch.py image:=/camera."""

from pathlib import Path

from launch.actions import (
    DeclareLaunchArgument,
    OpaqueFunction,
    PopLaunchConfigurations,
    PushLaunchConfigurations,
)
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchContext, LaunchDescription
from sww_ros.nodes import SETTINGS
from sww_ros.settings import Setting

USE_SIM_TIME = Setting(
    'use_sim_time', False,
    'Whether time comes from /clock: in simulation, or with a bag played back.')
PARAMETERS = (USE_SIM_TIME, *SETTINGS)
LAUNCH_SETTINGS = (
    Setting('image', 'image', 'The image topic, without the ending /compressed.'),
    Setting('namespace', '',
            'Namespace of the node and its topics: one for each of several cameras.'),
    Setting('name', 'narrator', 'Name of the node.'),
    Setting('params_file', '', 'A YAML file of parameters, such as a copy of '
            'config/narrator.yaml. The arguments given beside it go first.'),
    Setting('log_level', 'info', 'What is logged.',
            choices=('debug', 'info', 'warn', 'error', 'fatal')),
    Setting('respawn', False, 'Whether to start the node again when it has ended.'),
    Setting('respawn_delay', 2.0, 'Time before it is started again [s].', high=3600.0),
)


def parameters_file(text: str) -> list[str]:
    """
    Return what there is to read.

    :raises FileNotFoundError: launch itself would go on without the file
    """
    path = Path(text).expanduser()
    if text and not path.is_file():
        raise FileNotFoundError(f'params_file: there is no file {text!r} ({path.absolute()})')
    return [str(path)] if text else []


def start(context: LaunchContext, given: set[str]) -> list[Node]:
    """Start the node with the file's parameters, and those given as arguments."""
    text = {setting.name: LaunchConfiguration(setting.name).perform(context)
            for setting in (*LAUNCH_SETTINGS, *PARAMETERS)}
    chosen = {setting.name: setting.parse(text[setting.name]) for setting in LAUNCH_SETTINGS}
    # launch_ros would read plain text as YAML.
    parameters = {
        setting.name: ParameterValue(
            setting.parse(text[setting.name]), value_type=type(setting.default))
        for setting in PARAMETERS if setting.name in given}
    return [Node(
        package='sww_ros', executable='narrator', name=chosen['name'],
        namespace=chosen['namespace'], output='screen', emulate_tty=True,
        remappings=[('image', chosen['image'])],
        parameters=[*parameters_file(chosen['params_file']), *filter(None, [parameters])],
        ros_arguments=['--log-level', chosen['log_level']],
        respawn=chosen['respawn'], respawn_delay=chosen['respawn_delay'])]


def generate_launch_description() -> LaunchDescription:
    """Return what to launch."""
    given: set[str] = set()

    def note(context: LaunchContext) -> None:
        given.clear()  # Of an earlier inclusion.
        given.update(context.launch_configurations)

    return LaunchDescription([
        # Or these defaults would count as given where this file is included once more.
        PushLaunchConfigurations(),
        # Before the declarations set defaults, which must not override the file's values.
        OpaqueFunction(function=note),
        *[DeclareLaunchArgument(**setting.launch_argument)
          for setting in (*LAUNCH_SETTINGS, *PARAMETERS)],
        OpaqueFunction(function=start, args=[given]),
        PopLaunchConfigurations()])
