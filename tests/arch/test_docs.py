"""What is generated of the documentation is what the code says now."""

import subprocess
import sys
from pathlib import Path

from agent.adapters.bundle import ALLOWED_OPERATORS

ROOT = Path(__file__).parents[2]


def test_generated_pages_are_up_to_date() -> None:
    checked = subprocess.run(
        [sys.executable, "tools/docs.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )

    assert checked.returncode == 0, checked.stderr


def test_the_operators_of_a_bundle_are_those_that_are_allowed() -> None:
    text = " ".join((ROOT / "docs" / "reference" / "bundle.md").read_text().split())

    assert f"without control flow or I/O: {', '.join(sorted(ALLOWED_OPERATORS))}." in text
