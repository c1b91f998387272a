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
from sww_ros.nodes import SETTINGS, camera_names
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
    Setting('page', 0, 'Port of a live page of what it sees and says, such as 8080; 0: none. '
            'docs/page.md says what there is to see.', high=65535),
    Setting('page_host', '127.0.0.1', 'The address that the page listens on; on any other than '
            'a local one a browser needs the token that is logged.'),
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
    common = dict(
        package='sww_ros', namespace=chosen['namespace'], output='screen', emulate_tty=True,
        ros_arguments=['--log-level', chosen['log_level']],
        respawn=chosen['respawn'], respawn_delay=chosen['respawn_delay'])
    narrator = Node(
        executable='narrator', name=chosen['name'], remappings=[('image', chosen['image'])],
        parameters=[*parameters_file(chosen['params_file']), *filter(None, [parameters])],
        **common)
    if not chosen['page']:
        return [narrator]
    shown = [f'{chosen["name"]}/{camera}' for camera in camera_names(text['cameras'])]
    page = {name: ParameterValue(value, value_type=type(value)) for name, value in dict(
        narrators=' '.join(shown or [chosen['name']]), host=chosen['page_host'],
        port=chosen['page']).items()}
    sim_time = {name: parameters[name] for name in parameters if name == USE_SIM_TIME.name}
    return [narrator, Node(executable='page', parameters=[page | sim_time], **common)]


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
