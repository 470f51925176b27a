"""The lock files follow pyproject.toml: `make lock` after a change to the dependencies."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DEPENDENCIES = PROJECT["project"]["dependencies"]
EXTRAS = PROJECT["project"]["optional-dependencies"]
BUILD = PROJECT["dependency-groups"]["build"]
DEV = [item for item in PROJECT["dependency-groups"]["dev"] if isinstance(item, str)]

LOCKS = {
    "board": [*DEPENDENCIES, *EXTRAS["zstd"]],
    "demo": [*DEPENDENCIES, *EXTRAS["zstd"], *EXTRAS["demo"], *BUILD],
    "dev": [*DEPENDENCIES, *(item for extra in EXTRAS.values() for item in extra), *BUILD, *DEV],
}


def locked(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    pins = [line.split(" ")[0].split("==") for line in lines if "==" in line and not line.startswith((" ", "#"))]
    return dict(pins)


@pytest.mark.parametrize("name", LOCKS)
def test_every_dependency_is_locked_at_a_version_that_is_allowed(name: str) -> None:
    pins = locked(name)
    wanted = {canonicalize_name(r.name): r for r in map(Requirement, LOCKS[name])}

    assert wanted.keys() <= pins.keys()
    assert [str(r) for package, r in wanted.items() if pins[package] not in r.specifier] == []


@pytest.mark.parametrize("name", ["board", "demo"])
def test_what_is_tested_is_what_is_installed(name: str) -> None:
    assert locked(name).items() <= locked("dev").items()
