"""Robots that speak ROS: a bridge that knows no ROS, and one small file for each way to reach them."""
