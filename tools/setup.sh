#!/usr/bin/env bash
# Make a virtual environment from a lock file, starting from a bare Debian or Raspberry Pi OS:
#   tools/setup.sh demo     .venv with what `make demo` needs
#   tools/setup.sh dev      .venv with the tests' and linters' needs as well, and the broker that the tests run
#   tools/setup.sh export   tools/export/.venv: the same, PyTorch and the training side
# Says what it installs from the distribution, and does nothing when all is up to date. PYTHON chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

case ${1:-} in
    demo | dev) lock=$1 venv=.venv projects=(--editable .) inputs=(pyproject.toml) ;;
    export)
        lock=dev venv=tools/export/.venv projects=(--editable . --editable tools/export)
        inputs=(pyproject.toml tools/export/pyproject.toml)
        ;;
    *) die "usage: tools/setup.sh demo|dev|export" ;;
esac
# The training side has no lock file: its wheels depend on the machine's accelerator. Its results are what is pinned.
torch=torch==2.13.0

apt_install() {
    local sudo=()
    command -v apt-get >/dev/null || die "needs $*: install it with your system's package manager, then run this again"
    if [ "$(id -u)" != 0 ]; then
        sudo -n true 2>/dev/null || die "needs $*: run 'sudo apt-get install $*', then run this again"
        sudo=(sudo -n)
    fi
    say "installing $* with apt-get"
    "${sudo[@]}" apt-get update -qq
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# The tests run a real broker, and certificates of their own. Debian keeps the broker where only root's PATH looks.
if [ "$1" = dev ]; then
    for tool in mosquitto openssl; do
        PATH=$PATH:/usr/sbin command -v "$tool" >/dev/null || apt_install "$tool"
    done
fi

# A stamp names the lock and digests all that the installation depends on. `dev` holds all that `demo` does.
stamp=$venv/.installed
state() { printf '%s %s\n' "$1" "$(cat "${inputs[@]}" "requirements/$1.txt" tools/setup.sh | sha256sum)"; }
for have in "$lock" dev; do
    if [ -x "$venv/bin/har-agent" ] && grep -qsxF "$(state "$have")" "$stamp"; then exit 0; fi
done

supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if supported "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

find_python >/dev/null || apt_install python3 python3-venv
python=$(find_python) || die "needs Python 3.11 to 3.14, which this system's python3 is not: set PYTHON=/path/to/one"
# Debian splits venv from Python: without python3-venv the module is there, but not the pip that goes into it.
"$python" -c 'import ensurepip, venv' 2>/dev/null || apt_install python3-venv
"$python" -c 'import ensurepip, venv' 2>/dev/null || die "$python has no venv: install the package that carries it"

machine=$("$python" -c 'import platform, struct; print(platform.machine(), struct.calcsize("P") * 8)')
case $machine in
    "x86_64 64" | "aarch64 64") ;;
    *) die "ONNX Runtime has no wheel for this system ($machine-bit): a 64-bit x86 or ARM Linux is needed" ;;
esac

say "$venv from requirements/$lock.txt, $("$python" --version)"
# A half-made venv, or one whose Python went with a system upgrade, is made again; any other is brought up to date.
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv"
pip_install() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input "$@"; }
# Wheels only: a board must never start to compile numpy.
pip_install --require-hashes --only-binary=:all: --requirement "requirements/$lock.txt"
if [ "$1" = export ]; then
    # PyTorch first and by its exact version, so that no range in another package picks another build of it.
    pip_install "$torch"
    pip_install --no-build-isolation "${projects[@]}"
else
    pip_install --no-deps --no-build-isolation "${projects[@]}"
fi
state "$lock" >"$stamp"
