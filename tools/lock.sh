#!/usr/bin/env bash
# Write requirements/*.txt from pyproject.toml: one set of versions, with hashes, for every Linux board and Python that
# we support. Each file is complete in itself, so that an installation needs exactly one:
#   board.txt  what a board runs        demo.txt  the same and what `make demo` needs        dev.txt  everything
#   installer.txt  the pip that a release carries to boards that have none
# Versions stay as they are locked; `tools/lock.sh --upgrade` takes the newest.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-.venv/bin/python}
"$python" -m uv --version >/dev/null 2>&1 || "$python" -m pip install --quiet uv

compile() {
    local out=requirements/$1
    shift
    # 'fewest' keeps one version of numpy for Python 3.11 to 3.14: boards of a fleet compute the same.
    "$python" -m uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
        --custom-compile-command "make lock" --no-emit-index-url --no-emit-find-links \
        --output-file "$out" "$@" >/dev/null
}
compile dev.txt pyproject.toml --all-extras --group dev "$@"
# The others follow the versions of the first: what is tested is what is installed.
compile demo.txt pyproject.toml --extra zstd --extra demo --group build --constraint requirements/dev.txt
compile board.txt pyproject.toml --extra zstd --constraint requirements/dev.txt
compile installer.txt --group installer "$@"
