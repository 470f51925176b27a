"""Whatever a stranger sends as a bundle, a signature's key or a state of slots is read or refused, never worse."""

import contextlib
import json
import tracemalloc

import pytest
from graphs import classifier, decoder, encoder, exit_head, write_bundle, write_segment
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.adapters.bundle import builtin_models, check_files, load_bundle, pack, read_files
from agent.adapters.signature import public_key, public_pem
from agent.core import slots, tar
from agent.core.cuts import bridges
from agent.core.manifest import Exit, dump, parse, sha256
from agent.core.onnx_wire import fuse, signature, summarise
from agent.errors import ModelContractError, UsageError

HAR_BASE = builtin_models() / "har-base"
FILES = read_files(HAR_BASE)
MANIFEST = json.loads(FILES["manifest.json"])
SMALL = {"manifest.json": b"{}", "manifest.sig": b"s" * 64, "a.onnx": b"x" * 700}
PACKED = tar.pack(SMALL)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
names = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=20)


@st.composite
def edited_bytes(draw, data):
    """`data` with some bytes replaced, and cut or doubled somewhere."""
    out = bytearray(data)
    for _ in range(draw(st.integers(0, 8))):
        out[draw(st.integers(0, len(out) - 1))] = draw(st.integers(0, 255))
    a, b = sorted((draw(st.integers(0, len(out))), draw(st.integers(0, len(out)))))
    return draw(st.sampled_from([bytes(out), bytes(out[:a]), bytes(out[a:b]), bytes(out[:b] + out[a:])]))


PART = {
    "exits": [{"name": "early", "at": "ea", "accuracy": 0.9, "confidence": 0.8}],
    "segment": {"of": f"har-base@{'0' * 8}", "network": "0" * 64, "at": "window", "until": "ef"},
}


@st.composite
def edited_manifest(draw):
    """The shipped manifest, or that of a part of it, with something else in one or two places, at any depth."""
    raw = {**json.loads(FILES["manifest.json"]), **draw(st.sampled_from([{}, PART]))}
    raw = json.loads(json.dumps(raw))
    for _ in range(draw(st.integers(1, 2))):
        at = raw
        while True:
            key = draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
            inner = at[key]
            if isinstance(inner, dict | list) and inner and draw(st.booleans()):
                at = inner
                continue
            if isinstance(at, dict) and draw(st.booleans()):
                del at[key]
            else:
                at[key] = draw(json_values)
            break
        if not raw:
            break
    return json.dumps(raw).encode()


@settings(max_examples=300, deadline=None)
@given(edited_bytes(PACKED) | st.binary(max_size=3000))
def test_an_archive_is_unpacked_or_refused(data):
    try:
        files = tar.unpack(data)
    except tar.TarError:
        return
    assert sum(map(len, files.values())) <= len(data)
    assert all("/" not in name and not name.startswith(".") for name in files)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([encoder(), classifier(), decoder()]).flatmap(edited_bytes))
def test_a_graph_is_read_and_fused_or_refused(data):
    with contextlib.suppress(ModelContractError):
        summarise(data)
        signature(data)
        for graphs in ([data, classifier()], [encoder(), data]):
            fused = fuse(graphs)
            assert fused is None or signature(fused)
        assert not {"", "window"} & set(bridges(data))


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(names, st.binary(max_size=2000), max_size=8))
def test_what_is_packed_is_what_comes_out(files):
    assert tar.unpack(tar.pack(files)) == files


@settings(max_examples=100, deadline=None)
@given(edited_bytes(pack(HAR_BASE)))
def test_a_damaged_bundle_is_the_same_or_refused(data):
    try:
        bundle = load_bundle(data)
    except ModelContractError:
        return
    assert bundle.contents == {name: FILES[name] for name in bundle.contents}


@settings(max_examples=400, deadline=None)
@given(edited_manifest() | json_values.map(lambda v: json.dumps(v).encode()) | edited_bytes(FILES["manifest.json"]))
def test_a_manifest_is_read_or_refused(data):
    try:
        manifest = parse(data)
    except ModelContractError:
        return
    assert manifest.input.hop <= manifest.input.window
    assert len(manifest.labels) >= 2


@pytest.fixture(scope="module")
def segment(tmp_path_factory):
    """The files of a part of a network with an exit."""
    folder = tmp_path_factory.mktemp("part")
    early = (Exit("early", "eb", None, 1.0),)
    heads = {"exit-early.onnx": exit_head()}
    whole = load_bundle(write_bundle(folder / "whole", novel=True, graphs=heads, exits=early))
    return read_files(write_segment(folder / "part", whole, "ea", "", exits=early))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_part_of_a_network_with_another_graph_is_read_or_refused(segment, data):
    name = data.draw(st.sampled_from(["segment.onnx", "exit-early.onnx"]))
    graph = data.draw(edited_bytes(segment[name]))
    manifest = parse(segment["manifest.json"])
    entry = manifest.files[name]._replace(sha256=sha256(graph), bytes=len(graph) or 1)
    files = {**segment, name: graph, "manifest.json": dump(manifest._replace(files={**manifest.files, name: entry}))}
    with contextlib.suppress(ModelContractError):
        assert check_files(files).contents[name] == graph


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=2000).map(lambda tail: b"\x1f\x8b\x08\x00" + tail))
def test_what_looks_compressed_is_refused(data):
    tracemalloc.start()
    try:
        load_bundle(data)
    except ModelContractError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 40 << 20


STATES = [
    slots.SlotState(),
    slots.switched(slots.installed(slots.SlotState(), "a", "x@1"), "x@1"),
    slots.rejected(slots.installed(slots.SlotState(), "b", "y@2"), "y@2", "slow", "2026-01-01T00:00:00+00:00"),
]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(STATES).map(slots.dump).flatmap(edited_bytes)
    | json_values.map(lambda v: json.dumps(v).encode())
    | st.dictionaries(
        st.sampled_from(["v", *slots.SlotState._fields]), st.sampled_from([1, "a", "b", None, True, {}, [], {"a": "x"}])
    ).map(lambda v: json.dumps(v).encode())
)
def test_a_state_of_slots_is_read_or_refused(data):
    try:
        state = slots.parse(data)
    except ValueError:
        return
    assert slots.parse(slots.dump(state)) == state
    assert state.free != state.active


@settings(max_examples=200, deadline=None)
@given(edited_bytes(public_pem(b"k" * 32)) | st.binary(max_size=200))
def test_a_key_is_read_or_refused(pem):
    with contextlib.suppress(UsageError):
        assert len(public_key(pem)) == 32
