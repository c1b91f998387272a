"""Shows a scene of the shapes world, narrates it, prints it: ros2 launch sww_ros demo.launch.py."""

from launch.actions import (
    DeclareLaunchArgument,
    PopLaunchConfigurations,
    PushLaunchConfigurations,
)
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription
from sww_ros.nodes import console, shapes_camera
from sww_ros.nodes.settings import Setting

NODE_SETTINGS = (
    Setting('model', 'builtin', "The checkpoint: 'builtin', a folder, or the id of a hub."),
    Setting('namespace', '', 'Namespace of the three nodes.'),
    Setting('log_level', 'warn', 'What is logged; the narration comes from the console.',
            choices=('debug', 'info', 'warn', 'error', 'fatal')),
)


def argument_of(setting: Setting) -> DeclareLaunchArgument:
    """Return the argument that sets a parameter; its default is the node's own."""
    return DeclareLaunchArgument(
        setting.name, default_value=setting.default_text, description=setting.description,
        choices=list(setting.choice_texts) or None)


def value_of(name: str, value_type: type = str) -> ParameterValue:
    """Return the value of an argument as that of a parameter."""
    return ParameterValue(LaunchConfiguration(name), value_type=value_type)


def node(executable: str, **parameters: ParameterValue) -> Node:
    """Return one of the three nodes."""
    return Node(
        package='sww_ros', executable=executable, namespace=LaunchConfiguration('namespace'),
        # The console writes whole lines here: growing ones do not mix with launch's prefixes.
        output='screen', emulate_tty=executable != 'console',
        parameters=[parameters] if parameters else [],
        ros_arguments=['--log-level', LaunchConfiguration('log_level')])


def generate_launch_description() -> LaunchDescription:
    """Return what to launch."""
    settings = (*NODE_SETTINGS, *shapes_camera.SETTINGS, *console.SETTINGS)
    camera = {s.name: value_of(s.name, type(s.default)) for s in shapes_camera.SETTINGS}
    return LaunchDescription([
        # Or these defaults would count as given to what is launched beside it.
        PushLaunchConfigurations(),
        *[argument_of(setting) for setting in settings],
        node('narrator', model=value_of('model'), image_transport=value_of('transport')),
        node('shapes_camera', **camera),
        node('console', style=value_of('style')),
        PopLaunchConfigurations(),
    ])
