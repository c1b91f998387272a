"""
The narrator as a ROS 2 node: thin, no model code, and imported by nothing outside.

`python -m sww_ros.nodes.console`, `shapes_camera` and `video_source` are documented: they are
found in the rooms where they live.
"""

from pathlib import Path

__path__ += [str(Path(__file__).parents[1] / room) for room in ('sources', 'terminal')]
