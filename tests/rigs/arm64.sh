#!/usr/bin/env bash
# Rig A: the wheel on an emulated ARM board, against the same wheel on this machine.
#
#   tests/rigs/arm64.sh [--suite bookworm|trixie] [RECORDING …]
#
# Puts the wheel and the locked aarch64 wheels of requirements/board.txt beside a Debian aarch64 Python, and runs under
# qemu-user: every bundle against its golden vectors, then a replay whose windows and labels must be those that this
# machine finds (without a RECORDING, in those golden cases that need no arguments). It proves wheels and numerics; speed
# under emulation says nothing about a board.
#
# Needs `make test`'s set-up, and from Debian qemu-user-static and mmdebstrap, which it installs when it is root.
# What it downloads is kept in RIG_CACHE and used again until the lock changes.
set -euo pipefail
cd "$(dirname "$0")/../.."

say() { printf 'arm64: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

suite=bookworm
if [ "${1:-}" = --suite ]; then suite=${2:-}; shift 2 || die "--suite takes bookworm or trixie"; fi
case $suite in
    bookworm) python=3.11 ;;
    trixie) python=3.13 ;;
    *) die "--suite takes bookworm or trixie" ;;
esac
recordings=("$@")

tools/setup.sh dev
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cache=${RIG_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/har-edge-agent/arm64}
root=$cache/$suite
site=$cache/site-$python/$(sha256sum requirements/board.txt | cut -c1-16)

install_tools() {
    local missing=()
    command -v qemu-aarch64-static >/dev/null || missing+=(qemu-user-static)
    command -v mmdebstrap >/dev/null || missing+=(mmdebstrap)
    if [ ${#missing[@]} = 0 ]; then return; fi
    [ "$(id -u)" = 0 ] || die "needs ${missing[*]}: run 'sudo apt-get install ${missing[*]}', then run this again"
    say "installing ${missing[*]} with apt-get"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# ONNX Runtime's cpuinfo library reads the board's cores from these files, which qemu finds in the sysroot before it
# looks at this machine's; where they make no sense it crashes.
fake_cpu() {
    local cpu=$root/sys/devices/system/cpu part features n
    case $1 in
        cortex-a72) part=0xd08 features="fp asimd evtstrm crc32 cpuid" ;;
        cortex-a76)
            part=0xd0b
            features="fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
            ;;
    esac
    mkdir -p "$root/proc" "$cpu"
    : >"$root/proc/cpuinfo"
    echo 0-3 | tee "$cpu/possible" "$cpu/present" >"$cpu/online"
    echo 3 >"$cpu/kernel_max"
    for n in 0 1 2 3; do
        mkdir -p "$cpu/cpu$n/cpufreq" "$cpu/cpu$n/topology"
        echo 600000 >"$cpu/cpu$n/cpufreq/cpuinfo_min_freq"
        echo 1800000 >"$cpu/cpu$n/cpufreq/cpuinfo_max_freq"
        echo 0 >"$cpu/cpu$n/topology/physical_package_id"
        echo 0-3 | tee "$cpu/cpu$n/topology/core_siblings_list" >"$cpu/cpu$n/topology/cluster_cpus_list"
        printf '%s\n' "processor : $n" "BogoMIPS : 108.00" "Features : $features" "CPU implementer : 0x41" \
            "CPU architecture: 8" "CPU variant : 0x0" "CPU part : $part" "CPU revision : 3" "" >>"$root/proc/cpuinfo"
    done
}

build_root() {
    if [ -e "$root/.complete" ]; then return; fi
    say "unpacking Debian $suite for arm64"
    rm -rf "$root"
    mkdir -p "$cache"
    mmdebstrap --quiet --variant=extract --architectures=arm64 --include=base-files,python3,libstdc++6 "$suite" "$root"
    touch "$root/.complete"
}

build_site() {
    if [ -e "$site/.complete" ]; then return; fi
    say "downloading the locked aarch64 wheels for Python $python"
    rm -rf "$cache/site-$python"
    .venv/bin/python -m pip install --quiet --no-compile --require-hashes --only-binary=:all: \
        --requirement requirements/board.txt --target "$site" --implementation cp --python-version "$python" \
        --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
        --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64
    touch "$site/.complete"
}

# Both sides import the very files of the wheel, never the checkout: -P keeps the current folder off the path.
board() {
    QEMU_CPU=$cpu PYTHONHOME=$root/usr PYTHONPATH=$work/app:$site PYTHONDONTWRITEBYTECODE=1 \
        qemu-aarch64-static -L "$root" "$root/usr/bin/python$python" -P "$@"
}
here() { PYTHONPATH=$work/app PYTHONDONTWRITEBYTECODE=1 .venv/bin/python -P "$@"; }

install_tools
build_root
build_site

say "building and installing the wheel"
.venv/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$work" .
.venv/bin/python -m pip install --quiet --no-deps --no-compile --target "$work/app" "$work"/har_edge_agent-*.whl

bundles=("$work"/app/agent/models/*/manifest.json)
[ -e "${bundles[0]}" ] || die "the wheel carries no model bundle"
if [ ${#recordings[@]} = 0 ]; then
    for expected in tests/replay/cases/*/expected.jsonl; do
        case_dir=${expected%/*}
        if [ ! -e "$case_dir/args" ]; then recordings+=("$case_dir"/recording.*); fi
    done
fi
here -m agent replay --quiet "${recordings[@]}" >"$work/here.jsonl"

# A Raspberry Pi 4 and a Pi 5: ONNX Runtime has other int8 kernels for a processor with the dot product instructions.
for cpu in cortex-a72 cortex-a76; do
    say "$cpu"
    fake_cpu "$cpu"
    for bundle in "${bundles[@]}"; do
        board -m agent models verify "${bundle%/*}"
    done
    board -m agent replay --quiet "${recordings[@]}" >"$work/$cpu.jsonl"
    here tests/rigs/same_labels.py "$work/here.jsonl" "$work/$cpu.jsonl"
done

say "the daemon on the emulated board: a sensor on a pty, a broker, kill -9"
export QEMU_CPU=$cpu
here tests/rigs/live_on_board.py env PYTHONHOME="$root/usr" PYTHONPATH="$work/app:$site" \
    qemu-aarch64-static -L "$root" "$root/usr/bin/python$python" -P
