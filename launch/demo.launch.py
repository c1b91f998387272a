"""Shows a scene of the shapes world, narrates it, prints it: ros2 launch sww_ros demo.launch.py."""

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
from sww_ros.nodes import console, shapes_camera
from sww_ros.settings import Setting, Value

NODE_SETTINGS = (
    Setting('model', 'builtin', "The checkpoint: 'builtin', a folder, or the id of a hub."),
    Setting('namespace', '', 'Namespace of the three nodes.'),
    Setting('log_level', 'warn', 'What is logged; the narration comes from the console.',
            choices=('debug', 'info', 'warn', 'error', 'fatal')),
)
SETTINGS = (*NODE_SETTINGS, *shapes_camera.SETTINGS, *console.SETTINGS)


def start(context: LaunchContext) -> list[Node]:
    """Start the three nodes."""
    values = {setting.name: setting.parse(LaunchConfiguration(setting.name).perform(context))
              for setting in SETTINGS}

    def node(executable: str, **parameters: Value) -> Node:
        return Node(
            package='sww_ros', executable=executable, namespace=values['namespace'],
            # The console writes whole lines here: growing ones do not mix with launch's prefixes.
            output='screen', emulate_tty=executable != 'console',
            # launch_ros would read plain text as YAML.
            parameters=[{name: ParameterValue(value, value_type=type(value))
                         for name, value in parameters.items()}],
            ros_arguments=['--log-level', values['log_level']])

    return [node('narrator', model=values['model'], image_transport=values['transport']),
            node('shapes_camera', **{s.name: values[s.name] for s in shapes_camera.SETTINGS}),
            node('console', style=values['style'])]


def generate_launch_description() -> LaunchDescription:
    """Return what to launch."""
    return LaunchDescription([
        # Or these defaults would count as given to what is launched beside it.
        PushLaunchConfigurations(),
        *[DeclareLaunchArgument(**setting.launch_argument) for setting in SETTINGS],
        OpaqueFunction(function=start),
        PopLaunchConfigurations(),
    ])
