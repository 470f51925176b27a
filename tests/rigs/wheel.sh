#!/usr/bin/env bash
# What is shipped: the wheel carries bundles and units, the sdist builds the same wheel, a board's archive installs
# without a network and is small enough, and pipx installs the wheel as a user would.
set -euo pipefail
cd "$(dirname "$0")/../.."

tools/setup.sh dev
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
say() { printf 'wheel: %s\n' "$*"; }
most_mb=160

SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
board=$(.venv/bin/python -c 'import platform, sys; print("cp%d%d-" % sys.version_info[:2] + platform.machine())')
release=$work/release
.venv/bin/python tools/release.py build --boards "$board" --out "$release" --allow-dirty
python3 tools/release.py verify "$release" --unsigned

wheel=$(echo "$release"/har_edge_agent-*.whl)
.venv/bin/python - "$wheel" <<'PY'
import sys
from pathlib import Path
from zipfile import ZipFile

names = ZipFile(sys.argv[1]).namelist()
data = next(name for name in names if name.endswith(".dist-info/WHEEL")).replace(".dist-info/WHEEL", ".data/data")
for carried, folder in (("agent/models", "models"), (f"{data}/share/har-agent/systemd", "systemd")):
    found = {name for name in names if name.startswith(f"{carried}/")}
    wanted = {f"{carried}/{path.relative_to(folder)}" for path in Path(folder).rglob("*") if path.is_file()}
    if found != wanted or not found:
        sys.exit(f"the wheel's {carried} is not {folder}/: {sorted(found ^ wanted) or 'both are empty'}")
PY

mkdir "$work/sdist"
tar -xzf "$release"/har_edge_agent-*.tar.gz -C "$work/sdist" --strip-components=1
(cd "$work/sdist" && "$OLDPWD/.venv/bin/python" -m hatchling build --target wheel --directory "$work/again" >/dev/null 2>&1)
cmp "$wheel" "$work"/again/*.whl
say "the sdist builds the same wheel"

mkdir "$work/archive"
tar -xf "$release"/har-edge-agent-*-"$board".tar -C "$work/archive"
# A proxy that is not there: what asks for the network anyway fails.
HTTPS_PROXY=http://127.0.0.1:9 PIP_NO_INDEX=1 sh "$work/archive/install.sh" "$work/venv" .venv/bin/python
.venv/bin/python -m pip --python "$work/venv/bin/python" check
# From another folder, so that nothing is found in the checkout.
(cd "$work" && venv/bin/har-agent version --json && venv/bin/har-agent models verify har-base)
size=$(du --summarize --block-size=1 "$work/venv" | cut -f1)
say "installed on $board: $((size / 1000000)) MB, of at most $most_mb"
if [ "$size" -gt $((most_mb * 1000000)) ]; then
    du --block-size=1M --max-depth=1 "$work"/venv/lib/python3*/site-packages | sort -n | tail
    exit 1
fi

# pipx asks the network: its own pip, and the newest versions that the wheel allows.
export PIPX_HOME=$work/pipx PIPX_BIN_DIR=$work/pipx/bin PIPX_MAN_DIR=$work/pipx/man
start=$SECONDS
base=$(.venv/bin/python -c 'import sys; print(sys._base_executable)')
timeout 180 .venv/bin/pipx install --quiet --python "$base" "${wheel}[zstd]"
say "installed with pipx in $((SECONDS - start)) s"
(cd "$work" && pipx/bin/har-agent version && pipx/bin/har-agent models verify har-base)
