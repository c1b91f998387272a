"""The ROS 2 nodes: thin, no model code."""
