"""All faults in the numbers that the project promises to survive; a bounded version runs with the tests.

    .venv/bin/python tools/bench/faults.py [-k killed]

Needs mosquitto, and the right to mount for the faults of disks. Arguments go to pytest; what was measured is printed
at the end.
"""

import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    sys.exit(pytest.main([str(Path(__file__).parents[2] / "tests" / "faults"), "--long", *sys.argv[1:]]))
