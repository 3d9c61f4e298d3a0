#!/bin/sh
# Makes the environments of other programs that this project is tested with, once, outside the checkout: openpi's client
# (which wants numpy below 2), ROS 2 from wheels (which start every Python of their environment anew) and ROS 1 from
# Debian, for Debian's Python.
# Usage: sh tests/peers.sh folder. One that cannot be made is said, and is not there; the tests then skip, or fail in CI.
set -u
folder=$1
python=${PYTHON:-python3}
# What the light core and the simulators need, as pyproject.toml says, without the versions that constraints.txt pins.
core="numpy>=1.26 pillow>=10 pyyaml>=6 rich>=13 hydra-core>=1.3,<1.4 msgpack>=1 websockets>=13 prometheus-client>=0.20"
sim="robosuite==1.4.0 mujoco>=3.3,<3.4 gymnasium>=1.0 termcolor>=2"

make_peer() {
    name=$1 base=$2 options=$3
    shift 3
    [ -e "$folder/$name/.ready" ] && return
    echo "making $folder/$name (once)"
    rm -rf "$folder/$name"
    # shellcheck disable=SC2086
    if "$base" -m venv $options "$folder/$name" &&
        "$folder/$name/bin/python" -m pip --disable-pip-version-check -q install "$@"; then
        touch "$folder/$name/.ready"
    else
        echo "could not make $folder/$name" >&2
    fi
}

mkdir -p "$folder"
# shellcheck disable=SC2086
make_peer openpi "$python" "" openpi-client==0.1.2 typing_extensions $core $sim
# shellcheck disable=SC2086
make_peer ros2 "$python" "" ros-jazzy-rclpy==7.1.6 "ros-rclpy[fastrtps]==7.1.6" ros-jazzy-sensor-msgs==5.3.6 \
    ros-jazzy-trajectory-msgs==5.3.6 ros-jazzy-std-srvs==5.3.6 ros-jazzy-diagnostic-msgs==5.3.6 "rosbags>=0.10" $core

ros1="ros-core python3-sensor-msgs python3-std-msgs python3-geometry-msgs python3-trajectory-msgs python3-venv"
if ! /usr/bin/python3 -c "import rospy" 2>/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing $ros1 (once)"
    apt-get update -qq || true
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $ros1 >/dev/null ||
        echo "could not install ROS 1" >&2
fi
if /usr/bin/python3 -c "import rospy" 2>/dev/null; then
    # shellcheck disable=SC2086
    make_peer ros1 /usr/bin/python3 --system-site-packages "rosbags>=0.10" $core
else
    echo "ROS 1 needs: apt-get install $ros1" >&2
fi
