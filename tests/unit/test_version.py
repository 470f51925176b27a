"""`har-agent version`: what is installed, and of which release."""

import json
from pathlib import Path

import pytest

import agent
from agent.app.version import dependencies, facts, release, release_id


def test_a_release_is_what_its_file_says(tmp_path: Path):
    (tmp_path / "release.json").write_text(json.dumps({"v": 1, "release": "0.2.0+1a2b3c4d", "commit": "abc"}))
    found = release(tmp_path)

    assert found == {"v": 1, "release": "0.2.0+1a2b3c4d", "commit": "abc"}
    assert release_id(found) == "0.2.0+1a2b3c4d"


@pytest.mark.parametrize(
    "content",
    [
        *(None, b"", b"{", b"[]", b"{}", b"\xff", b'{"release": 7}', b'{"release": ""}', b'{"release": "a\\u001bb"}'),
        *(b"[" * 100_000, json.dumps({"release": "x" * 65}).encode()),
    ],
)
def test_what_is_no_release_is_none(tmp_path: Path, content: bytes | None):
    if content is not None:
        (tmp_path / "release.json").write_bytes(content)

    assert release(tmp_path) is None
    assert release_id(None) is None


def test_what_is_installed_is_told():
    found = facts()

    assert found["version"] == found["har-edge-agent"] == agent.__version__
    assert {"numpy", "onnxruntime", "paho-mqtt", "typing-extensions"} <= found["dependencies"].keys()
    assert found["onnxruntime"] == found["dependencies"]["onnxruntime"]
    assert "pytest" not in found["dependencies"]
    (base,) = (bundle for bundle in found["bundles"] if bundle["name"] == "har-base")
    assert (base["problem"], base["model"]) == (None, f"har-base@{base['digest'][:8]}")
    json.dumps(found)


def test_what_is_not_installed_needs_nothing():
    assert dependencies("no-such-distribution") == {}


def test_a_bundle_that_was_changed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "mine" / "manifest.json").write_text("{}")
    monkeypatch.setattr("agent.adapters.bundle.builtin_models", lambda: tmp_path / "models")

    (bundle,) = facts()["bundles"]
    assert (bundle["name"], bundle["model"]) == ("mine", None)
    assert bundle["problem"]
