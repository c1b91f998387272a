"""Starts the narrator on a camera topic: ros2 launch sww_ros narrate.launch.py image:=/camera."""

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchContext, LaunchDescription
from sww_ros.nodes.narrator_parameters import SETTINGS, Setting

LAUNCH_ARGUMENTS = [
    DeclareLaunchArgument(
        'image', default_value='image',
        description='The image topic, without the ending /compressed.'),
    DeclareLaunchArgument(
        'namespace', default_value='',
        description='Namespace of the node and its topics: one for each of several cameras.'),
    DeclareLaunchArgument(
        'name', default_value='narrator', description='Name of the node.'),
    DeclareLaunchArgument(
        'params_file', default_value='',
        description='A YAML file of parameters, such as a copy of config/narrator.yaml. The '
        'arguments given beside it go first.'),
    DeclareLaunchArgument(
        'use_sim_time', default_value='false', choices=['true', 'false'],
        description='Whether time comes from /clock: in simulation, or with a bag played back.'),
    DeclareLaunchArgument(
        'log_level', default_value='info',
        choices=['debug', 'info', 'warn', 'error', 'fatal'],
        description='What is logged.'),
]


def argument_of(setting: Setting) -> DeclareLaunchArgument:
    """Return the argument that sets a parameter; its default is the node's own."""
    default, choices = setting.default, list(setting.choices) or None
    if isinstance(default, bool):
        default, choices = str(default).lower(), ['true', 'false']
    return DeclareLaunchArgument(
        setting.name, default_value=str(default), choices=choices,
        description=setting.description)


def start(context: LaunchContext, given: set[str]) -> list[Node]:
    """Start the node with the file's parameters, and those given as arguments."""
    def argument(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    parameters = {
        setting.name: ParameterValue(argument(setting.name), value_type=type(setting.default))
        for setting in SETTINGS if setting.name in given}
    parameters['use_sim_time'] = argument('use_sim_time') == 'true'
    files = [argument('params_file')] if argument('params_file') else []
    return [Node(
        package='sww_ros', executable='narrator', name=argument('name'),
        namespace=argument('namespace'), output='screen', emulate_tty=True,
        remappings=[('image', argument('image'))], parameters=[*files, parameters],
        ros_arguments=['--log-level', argument('log_level')])]


def generate_launch_description() -> LaunchDescription:
    """Return what to launch."""
    # Noted before the declarations set defaults, which must not override the file's values.
    given: set[str] = set()
    return LaunchDescription([
        OpaqueFunction(function=lambda context: given.update(context.launch_configurations)),
        *LAUNCH_ARGUMENTS, *[argument_of(setting) for setting in SETTINGS],
        OpaqueFunction(function=start, args=[given])])
