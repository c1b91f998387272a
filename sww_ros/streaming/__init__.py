"""The method: perceive and speak at the same time. Knows no ROS and no camera."""
