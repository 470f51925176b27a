"""A bundle's bytes come from outside: whatever they are, reading them ends in a value or in a refusal."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.manifest import parse
from agent.core.onnx_wire import summarise
from agent.errors import ModelContractError

HAR_BASE = Path(__file__).parents[2] / "models" / "har-base"
ENCODER = (HAR_BASE / "encoder.onnx").read_bytes()
MANIFEST = json.loads((HAR_BASE / "manifest.json").read_text())

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def outcome(read, data):
    try:
        return read(data)
    except ModelContractError as e:
        return str(e)


@given(st.binary(max_size=300))
@settings(deadline=None, max_examples=500)
def test_any_bytes_are_summarised_or_refused(data):
    assert outcome(summarise, data)


@given(st.integers(0, len(ENCODER) - 1), st.integers(0, 255))
@settings(deadline=None, max_examples=300)
def test_a_graph_with_any_byte_changed_is_summarised_or_refused(at, value):
    assert outcome(summarise, ENCODER[:at] + bytes([value]) + ENCODER[at + 1 :])


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=200)
def test_any_bytes_are_no_manifest(data):
    with pytest.raises(ModelContractError):
        parse(data)


@given(st.sampled_from(sorted(MANIFEST)), JSON)
@settings(deadline=None, max_examples=500)
def test_a_manifest_with_any_value_in_any_place_is_read_or_refused(key, value):
    assert outcome(parse, json.dumps({**MANIFEST, key: value}).encode())


@given(
    st.sampled_from([(k, i) for k, v in MANIFEST.items() if isinstance(v, dict) for i in sorted(v)]),
    JSON,
)
@settings(deadline=None, max_examples=500)
def test_a_manifest_with_any_value_one_floor_down_is_read_or_refused(place, value):
    key, inner = place
    changed = {**MANIFEST, key: {**MANIFEST[key], inner: value}}
    assert outcome(parse, json.dumps(changed).encode())
