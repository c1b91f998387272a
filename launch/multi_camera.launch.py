"""Starts one narrator on several cameras: ros2 launch sww_ros multi_camera.launch.py."""

from pathlib import Path

from launch.actions import (
    DeclareLaunchArgument,
    GroupAction,
    IncludeLaunchDescription,
    OpaqueFunction,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import SetRemap

from launch import LaunchContext, LaunchDescription
from sww_ros.nodes import camera_names, listed
from sww_ros.settings import Setting

SETTINGS = (
    Setting('cameras', '[front, rear]', 'Names of the cameras, under which each has its topics.'),
    Setting('images', '', 'Their image topics, such as [/front/image_raw, /rear/image_raw], in the '
            'same order and without the ending /compressed; empty: NAME/image for each.'),
)


def start(context: LaunchContext) -> list[GroupAction]:
    """
    Start the narrator as narrate.launch.py does, whose arguments can be given too.

    :raises ValueError: for names that no topic can have, or another number of topics
    """
    names, topics = (LaunchConfiguration(setting.name).perform(context) for setting in SETTINGS)
    cameras = camera_names(names)
    images = listed(topics)
    if images and len(images) != len(cameras):
        raise ValueError(f'images: {len(images)} topics are given for {len(cameras)} cameras')
    narrate = PythonLaunchDescriptionSource(str(Path(__file__).with_name('narrate.launch.py')))
    return [GroupAction([
        *[SetRemap(f'{camera}/image', image) for camera, image in zip(cameras, images)],
        IncludeLaunchDescription(narrate, launch_arguments=[('cameras', names)]),
    ])]


def generate_launch_description() -> LaunchDescription:
    """Return what to launch."""
    return LaunchDescription([
        *[DeclareLaunchArgument(**setting.launch_argument) for setting in SETTINGS],
        OpaqueFunction(function=start),
    ])
