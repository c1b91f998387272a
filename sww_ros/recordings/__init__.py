"""What was recorded is narrated, without a running ROS; `python -m sww_ros.narrate` is beside."""
