#!/usr/bin/env bash
# tools/setup.sh VENV: make a virtual environment with the pinned set and this package; with a file of requirements as second argument, with
# these alone. Needs a Python of 3.10 or newer as $PYTHON (python3).
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
python=${PYTHON:-python3}
requirements=${2:-}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || {
    echo "vitzoo needs Python 3.10 or newer; '$python' is $("$python" --version 2>&1 || echo missing). Try: make PYTHON=python3.11 ..." >&2
    exit 1
}
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }
apt_install() { command -v apt-get >/dev/null && as_root apt-get update -qq && as_root apt-get install -y -qq "$@"; }

if [ ! -x "$venv/bin/pip" ]; then
    rm -rf "$venv"
    "$python" -m venv "$venv" || {
        rm -rf "$venv"
        apt_install python3-venv && "$python" -m venv "$venv"
    } || { echo "Could not make a virtual environment. On Debian or Ubuntu: sudo apt-get install python3-venv" >&2; exit 1; }
fi

if [ -n "$requirements" ]; then
    exec "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$requirements"
fi

echo "Installing the pinned packages into $venv (about 5 GB with PyTorch's CUDA libraries; a minute or two) ..."
"$venv/bin/pip" install --quiet --disable-pip-version-check -r requirements/pinned.txt
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .

# opencv-python, which mmengine and mmcv require, needs system libraries that small machines lack
if ! "$venv/bin/python" -c 'import cv2' 2>/dev/null; then
    echo "import cv2 fails; installing the system libraries it needs ..."
    apt_install libgl1 libglib2.0-0 || true
    "$venv/bin/python" -c 'import cv2' || {
        echo "OpenCV cannot be imported. Install libGL and libglib, on Debian or Ubuntu: sudo apt-get install libgl1 libglib2.0-0" >&2
        exit 1
    }
fi
"$venv/bin/python" -c 'import torch, timm, vitzoo; print(f"vitzoo {vitzoo.__version__}, torch {torch.__version__}, timm {timm.__version__}: ready")'
