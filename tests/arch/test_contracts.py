"""The rules of the house hold, and each of them can fail: a rule that cannot fail holds nothing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SANS_IO = ("core/intruder.py", "records.py", "errors.py", "ports.py", "pipeline.py")
"""One file for each part of the house that may not touch the outside."""

OUTSIDE = (
    "serial", "paho", "onnxruntime", "psutil", "structlog", "typer",
    "threading", "queue", "time", "socket", "asyncio", "subprocess",
)  # fmt: skip

UPWARD = {
    "errors.py": "records",
    "records.py": "core",
    "core/intruder.py": "ports",
    "ports.py": "pipeline",
    "pipeline.py": "runtime",
    "runtime/intruder.py": "app",
    "adapters/intruder.py": "app",
    "config.py": "app",
    "app/intruder.py": "cli",
    "cli/intruder.py": "__main__",
}
SIDEWAYS = {
    "runtime/intruder.py": ("adapters", "config"),
    "adapters/intruder.py": ("runtime", "config", "adapters.clock"),
    "config.py": ("runtime", "adapters"),
    "cli/intruder.py": ("runtime", "adapters", "config"),
}
TRAINING = ("torch", "onnx", "har_export")
VIOLATIONS = [
    *((file, module) for file in SANS_IO for module in OUTSIDE),
    *((file, f"agent.{module}") for file, module in UPWARD.items()),
    *((file, f"agent.{module}") for file, modules in SIDEWAYS.items() for module in modules),
    *(("core/intruder.py", module) for module in TRAINING),
    *(("cli/intruder.py", module) for module in TRAINING),
]  # fmt: skip


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    # The linter looks for `agent` in its current folder first, and wraps lines at COLUMNS.
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"COLUMNS": "250"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="module")
def broken_house(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the linter says of a copy of the package with every violation, and with a floor too many."""
    folder = tmp_path_factory.mktemp("house")
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copytree(ROOT / "agent", folder / "agent", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "agent" / "attic.py").touch()
    for file, module in VIOLATIONS:
        with (folder / "agent" / file).open("a") as source:
            source.write(f"\nimport {module}\n")
    linted = lint_imports(folder)
    assert linted.returncode == 1, linted.stdout + linted.stderr
    return linted.stdout


def test_the_contracts_are_kept() -> None:
    linted = lint_imports(ROOT)

    assert linted.returncode == 0, linted.stdout + linted.stderr


@pytest.mark.parametrize(("file", "module"), VIOLATIONS)
def test_a_forbidden_import_is_found(broken_house: str, file: str, module: str) -> None:
    importer = "agent." + file.removesuffix(".py").replace("/", ".")

    assert f"{importer} -> {module} (" in broken_house


def test_no_contract_is_kept_by_a_house_that_breaks_them_all(broken_house: str) -> None:
    assert "Contracts: 0 kept" in broken_house


def test_a_module_on_no_floor_is_found(broken_house: str) -> None:
    assert "attic" in broken_house
