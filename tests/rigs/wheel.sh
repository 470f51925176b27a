#!/usr/bin/env bash
# The wheel in a clean environment: it carries the model bundles, installs from the board's lock file, and runs.
set -euo pipefail
cd "$(dirname "$0")/../.."

tools/setup.sh dev
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

.venv/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$work" .
wheel=$(echo "$work"/har_edge_agent-*.whl)
.venv/bin/python - "$wheel" <<'PY'
import sys
from pathlib import Path
from zipfile import ZipFile

carried = {name for name in ZipFile(sys.argv[1]).namelist() if name.startswith("agent/models/")}
wanted = {f"agent/{path}" for path in Path("models").rglob("*") if path.is_file()}
if carried != wanted or not any(name.endswith("/manifest.json") for name in carried):
    sys.exit(f"the wheel's bundles are not those of models/: {sorted(carried ^ wanted) or 'both are empty'}")
PY

.venv/bin/python -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --require-hashes --only-binary=:all: --requirement requirements/board.txt
"$work/venv/bin/python" -m pip install --quiet --no-deps "$wheel"
"$work/venv/bin/python" -m pip check
# From another folder, so that nothing is found in the checkout.
cd "$work"
venv/bin/har-agent version
