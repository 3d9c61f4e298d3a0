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
    # What it was made of lies beside it: what is to be made of something else is made anew.
    made="$options $*"
    [ "$(cat "$folder/$name/.ready" 2>/dev/null)" = "$made" ] && return
    echo "making $folder/$name (once)"
    rm -rf "$folder/$name"
    # shellcheck disable=SC2086
    if "$base" -m venv $options "$folder/$name" &&
        "$folder/$name/bin/python" -m pip --disable-pip-version-check -q install "$@"; then
        printf '%s\n' "$made" >"$folder/$name/.ready"
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

# A rosbridge server that speaks to the ROS 2 above: not rosbridge_suite, which no package index has, but one of npm's. It
# is built against the wheels' headers and libraries; the program `ros2`, which they lack, tells it where they lie.
make_rosbridge() {
    [ -e "$folder/rosbridge/.ready" ] && return
    echo "making $folder/rosbridge (once)"
    rm -rf "$folder/rosbridge"
    mkdir -p "$folder/rosbridge"
    (
        set -e
        ros=$folder/ros2
        printf '#!/bin/sh\n' >"$ros/bin/ros2"
        chmod +x "$ros/bin/ros2"
        include=$(find "$ros/include" -maxdepth 1 -type d | paste -s -d :)
        export AMENT_PREFIX_PATH="$ros" ROS_DISTRO=jazzy CPLUS_INCLUDE_PATH="$include" C_INCLUDE_PATH="$include"
        export LIBRARY_PATH="$ros/lib" PATH="$ros/bin:$PATH"
        cd "$folder/rosbridge"
        npm install ros2-web-bridge@0.3.0 --ignore-scripts --no-audit --no-fund --silent
        gyp=$(dirname "$(readlink -f "$(command -v npm)")")/../node_modules/node-gyp/bin/node-gyp.js
        headers=$(dirname "$(dirname "$(readlink -f "$(command -v node)")")")
        for module in rclnodejs @rclnodejs/ref-napi; do
            (cd "node_modules/$module" && node "$gyp" rebuild --nodedir="$headers" >build.log 2>&1) || {
                tail -5 "node_modules/$module/build.log" >&2
                exit 1
            }
        done
        cd node_modules/rclnodejs && LD_LIBRARY_PATH="$ros/lib" node scripts/generate_messages.js >/dev/null
    ) && touch "$folder/rosbridge/.ready" || echo "could not make $folder/rosbridge; it needs node, npm and g++" >&2
}
[ -e "$folder/ros2/.ready" ] && make_rosbridge
exit 0
