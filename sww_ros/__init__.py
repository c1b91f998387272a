"""sww_ros: Qwen2.5-VL speaks while it watches, as a ROS 2 node."""

__version__ = '0.1.0'
