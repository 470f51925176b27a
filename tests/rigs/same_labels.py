"""Compare two outputs of `har-agent replay`: exit 1 unless they hold the same windows with the same labels.

Confidences may differ in their last digits between processors; the largest difference is printed.
"""

import json
import sys
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

SAME = ("device", "seq", "t0", "t1", "label", "known", "origin", "model")


def compare(expected_path: str, actual_path: str) -> str:
    expected, actual = (
        [json.loads(line) for line in Path(path).read_text().splitlines()] for path in (expected_path, actual_path)
    )
    if not expected:
        raise SystemExit("no predictions to compare")

    nothing: Mapping[str, Any] = {}
    for number, (e, a) in enumerate(zip_longest(expected, actual, fillvalue=nothing), 1):
        differing = [f"{key} {e.get(key)!r} != {a.get(key)!r}" for key in SAME if e.get(key) != a.get(key)]
        if differing:
            raise SystemExit(f"prediction {number} differs: {', '.join(differing)}")

    off = max(abs(e["confidence"] - a["confidence"]) for e, a in zip(expected, actual, strict=True))
    return f"{len(expected)} predictions, labels identical; confidence differs by at most {off:.2g}\n"


if __name__ == "__main__":
    sys.stdout.write(compare(*sys.argv[1:]))
