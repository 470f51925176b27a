"""Golden replays: a folder a case, with a recording, the arguments, and what must come of it.

    cases/<name>/recording.*      the input
    cases/<name>/args             further arguments of `har-agent replay`, one a line (optional)
    cases/<name>/expected.jsonl   the predictions, or
    cases/<name>/expected.error   the exit status and the sentence
    cases/<name>/report.json      the report of a case that has predictions

A case without an expectation is an error. After a change that is meant to change labels, such as a new model:
`make test ARGS="tests/replay --update-golden"`, and read the difference.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CASES = sorted(p for p in (Path(__file__).parent / "cases").iterdir() if p.is_dir())
TOLERANCE = 0.002
"""What another processor's exp() and rounding may make of four digits."""


def replay(case, report):
    (recording,) = case.glob("recording.*")
    args = (case / "args").read_text().splitlines() if (case / "args").exists() else []
    return subprocess.run(
        [sys.executable, "-m", "agent", "replay", recording.name, "--quiet", "--report", str(report), *args],
        cwd=case,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def without_model(message):
    """The bundle's digest changes with its model card; what it computes is what is compared."""
    return {**message, "model": message["model"].partition("@")[0]}


def assert_same(expected, actual, where):
    assert type(expected) is type(actual), where
    if isinstance(expected, dict):
        assert list(expected) == list(actual), where
        for key in expected:
            assert_same(expected[key], actual[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(expected) == len(actual), where
        for i, pair in enumerate(zip(expected, actual, strict=True)):
            assert_same(*pair, f"{where}[{i}]")
    elif isinstance(expected, float):
        assert actual == pytest.approx(expected, abs=TOLERANCE, rel=TOLERANCE), where
    else:
        assert actual == expected, where


@pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])
def test_case(case, tmp_path, update_golden):
    report = tmp_path / "report.json"
    done = replay(case, report)
    if update_golden:
        for old in ("expected.jsonl", "expected.error", "report.json"):
            (case / old).unlink(missing_ok=True)
        if done.returncode:
            (case / "expected.error").write_text(f"{done.returncode}\n{done.stderr}")
        else:
            (case / "expected.jsonl").write_text(
                "".join(json.dumps(without_model(json.loads(line))) + "\n" for line in done.stdout.splitlines())
            )
            (case / "report.json").write_text(
                json.dumps(without_model(json.loads(report.read_text())), indent=1) + "\n"
            )
    if (case / "expected.error").exists():
        status, sentence = (case / "expected.error").read_text().split("\n", 1)
        assert (done.returncode, done.stderr) == (int(status), sentence)
        return
    assert done.returncode == 0, done.stderr
    expected = [json.loads(line) for line in (case / "expected.jsonl").read_text().splitlines()]
    assert_same(expected, [without_model(json.loads(line)) for line in done.stdout.splitlines()], "predictions")
    wanted = json.loads((case / "report.json").read_text())
    assert_same(wanted, without_model(json.loads(report.read_text())), "report")
