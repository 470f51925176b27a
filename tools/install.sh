#!/bin/sh
# Install the release beside this file, without a network and without the board's own pip:
#   sh install.sh FOLDER [PYTHON]      python3 by default
# FOLDER becomes a virtual environment. It is complete when it has the file .complete, and is then left as it is; one
# that is not, because the power went, is made again. The virtual environment cannot be moved.
set -eu

die() { echo "install: $*" >&2; exit 1; }

case $# in
    1 | 2) ;;
    *) die "usage: sh install.sh FOLDER [PYTHON]" ;;
esac
here=$(cd "$(dirname "$0")" && pwd)
target=$1
python=${2:-python3}
umask 022

[ ! -e "$target/.complete" ] || exit 0
command -v "$python" >/dev/null || die "there is no $python on this board"
tag=$("$python" -I -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
machine=$(uname -m)
set -- "$here"/wheels/numpy-*-"$tag"-"$tag"-*_"$machine".whl
[ -e "$1" ] || die "these wheels are not for $python ($tag, $machine): take the archive whose name ends in $tag-$machine.tar"
"$python" -I -c 'import ctypes; ctypes.CDLL("libstdc++.so.6")' 2>/dev/null ||
    die "NumPy and ONNX Runtime need libstdc++: run 'apt-get install libstdc++6', then this again"
if [ -e "$target" ]; then
    [ -e "$target/pyvenv.cfg" ] || rmdir "$target" 2>/dev/null || die "$target is there and is no virtual environment"
    rm -rf "$target"
fi

set -- "$here"/wheels/pip-*.whl
"$python" -I -m venv --without-pip "$target"
"$python" -I "$1/pip" --isolated --python "$target/bin/python" --disable-pip-version-check install --quiet \
    --no-input --no-index --find-links "$here/wheels" --require-hashes --only-binary=:all: --no-compile \
    --requirement "$here/requirements.txt"
# A board's card is small, and these are a twelfth of it all: NumPy's tests, and tools that convert models.
set -- "$target"/lib/python3*/site-packages
find "$1/numpy" -type d -name tests -prune -exec rm -r {} +
rm -rf "$1/onnxruntime/quantization" "$1/onnxruntime/tools" "$1/onnxruntime/transformers"
# Byte code of what the agent can import, not of what else is in other packages, which would take as much room again.
unused='testing|cffi|distutils|f2py|flatbuffers|formatters|google|lexers|licenses|ma|polynomial|pycparser|styles'
"$target/bin/python" -I -m compileall -q -x "/site-packages/(.*/)?($unused)/" "$target/lib/"
# Readable for the service, however the archive was unpacked.
cat "$here/release.json" >"$target/release.json"
# The stamp must not outlive a power cut that the rest did not.
sync
: >"$target/.complete"
sync
