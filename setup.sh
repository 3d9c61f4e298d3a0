#!/bin/sh
# Makes the virtual environment that `make rollout` and `make test` use, and the GL libraries that rendering
# needs. Run again it changes only what is missing. Usage: sh setup.sh .venv
set -eu
venv=$1
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "expected Python >= 3.11, got $("$python" --version 2>&1); set PYTHON=/path/to/python3.11" >&2
    exit 1
}

# Mesa renders without a graphics card or a screen: EGL first, OSMesa as the second way.
packages="libegl1 libgl1 libgles2 libegl-mesa0 libgl1-mesa-dri libosmesa6"
missing=""
for library in libEGL.so.1 libOSMesa.so.8; do
    ldconfig -p 2>/dev/null | grep -q "$library" || missing="$missing $library"
done
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ]; then sudo=""; elif sudo -n true 2>/dev/null; then sudo="sudo -n"; else sudo="none"; fi
    if [ "$sudo" != none ] && command -v apt-get >/dev/null; then
        echo "installing the GL libraries: $packages"
        # Not fatal: one of the two ways to render is enough, and the doctor says which works.
        $sudo apt-get update -qq || true
        for package in $packages; do
            DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq "$package" >/dev/null 2>&1 \
                || echo "could not install $package" >&2
        done
    else
        echo "rendering needs:$missing; install with: sudo apt-get install $packages" >&2
    fi
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv" || {
    echo "could not make a virtual environment; on Debian: sudo apt-get install python3-venv" >&2
    exit 1
}
pip="$venv/bin/python -m pip --disable-pip-version-check -q"
echo "installing packages into $venv (once; a few minutes)"
$pip install -c constraints.txt -e '.[all]'
# Its own dependencies pull in torchvision and more that its environments never import.
$pip install -c constraints.txt --no-deps hf-libero
