"""The bundle that ships is what it says, and every way in which one can be damaged is refused with its reason."""

import io
import json
import os
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
from graphs import classifier, context, encoder, exit_head, field, model, node, value, write_bundle, write_segment

from agent.adapters.bundle import builtin_models, find_bundle, load_bundle, pack, read_golden, read_segment_golden
from agent.adapters.onnx_model import OrtModel
from agent.app.compose import open_model
from agent.core.manifest import Context, Exit, Segment, dump, parse, sha256
from agent.core.onnx_wire import summarise
from agent.errors import InferenceError, ModelContractError


@pytest.fixture
def bundle(har_base, tmp_path):
    """A copy of the shipped bundle that may be damaged."""
    return shutil.copytree(har_base, tmp_path / "bundle")


def edit_manifest(folder, change):
    raw = json.loads((folder / "manifest.json").read_text())
    change(raw)
    (folder / "manifest.json").write_text(json.dumps(raw))


def replace_file(folder, name, data):
    """Put other bytes in a file and make the manifest agree, as a careless or a hostile builder would."""
    (folder / name).write_bytes(data)
    edit_manifest(folder, lambda raw: raw["files"][name].update(sha256=sha256(data), bytes=len(data)))


def test_the_shipped_bundle_passes_its_own_proof(har_base):
    model = open_model("har-base")

    assert model.id == f"har-base@{sha256((har_base / 'manifest.json').read_bytes())[:8]}"
    assert find_bundle("har-base") == builtin_models() / "har-base" == har_base


def test_the_shipped_bundle_keeps_its_size(har_base):
    sizes = {p.name: p.stat().st_size for p in har_base.iterdir()}

    assert sizes["encoder.onnx"] + sizes["classifier.onnx"] <= 69 * 1024
    raw_hop_bytes = 64 * 6 * 2
    assert load_bundle(har_base).manifest.code.bytes <= min(128, raw_hop_bytes // 6)


def test_a_window_scores_the_same_alone_and_in_a_batch(har_base):
    model = open_model("har-base")
    golden = read_golden(model.bundle)
    windows = model.bundle.manifest.normalisation.apply(golden.window)
    many = np.resize(windows, (256, *windows.shape[1:]))
    batched = model.infer(many)

    for i in (0, 1, 7, 100, 255):
        alone = model.infer(many[i : i + 1])
        assert np.array_equal(alone.code[0], batched.code[i])
        assert np.array_equal(alone.logits[0], batched.logits[i])
        assert alone.novelty[0] == batched.novelty[i]
    if golden.codes is not None:
        in_context = model.contextualise(golden.codes)
        for i in range(len(golden.codes)):
            assert np.array_equal(model.contextualise(golden.codes[i : i + 1])[0], in_context[i])


def test_a_call_that_the_runtime_refuses_is_an_inference_error():
    with pytest.raises(InferenceError, match="batch of 2"):
        open_model("har-base").infer(np.zeros((2, 5, 6), np.float32))


@pytest.mark.parametrize("name", ["nowhere", "../har-base", ""])
def test_a_bundle_that_is_not_there_is_named_with_those_that_are(name):
    with pytest.raises(ModelContractError, match="har-base"):
        find_bundle(name or "no/such")


@pytest.mark.parametrize("schema", [0, 2, "1", None, True, 1.0])
def test_an_unknown_schema_version_is_refused(bundle, schema):
    edit_manifest(bundle, lambda raw: raw.update(schema=schema))

    with pytest.raises(ModelContractError, match=r"schema version .*; this agent reads 1"):
        load_bundle(bundle)


@pytest.mark.parametrize("name", ["encoder.onnx", "classifier.onnx", "decoder.onnx", "golden.npz", "CARD.md"])
def test_one_flipped_bit_in_any_file_is_refused(bundle, name):
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)

    with pytest.raises(ModelContractError, match=f"{name} is damaged or was changed"):
        load_bundle(bundle)


def test_a_truncated_file_is_refused(bundle):
    data = (bundle / "encoder.onnx").read_bytes()
    (bundle / "encoder.onnx").write_bytes(data[:-100])

    with pytest.raises(ModelContractError, match=r"encoder\.onnx is \d+ bytes; its manifest says"):
        load_bundle(bundle)


@pytest.mark.parametrize("name", ["encoder.onnx", "golden.npz", "manifest.json"])
def test_a_missing_file_is_refused(bundle, name):
    (bundle / name).unlink()

    with pytest.raises(ModelContractError, match=f"{name} cannot be read"):
        load_bundle(bundle)


def test_a_file_that_the_manifest_does_not_list_is_not_there(bundle):
    edit_manifest(bundle, lambda raw: raw["files"].pop("decoder.onnx"))

    with pytest.raises(ModelContractError, match=r"does not list decoder\.onnx"):
        load_bundle(bundle)


@pytest.mark.parametrize("name", ["../escape.onnx", "run.sh", "sub/encoder.onnx", "a\0.onnx", "\ud800.md"])
def test_a_file_name_outside_of_the_contract_is_refused(bundle, name):
    edit_manifest(bundle, lambda raw: raw["files"].update({name: {"sha256": "0" * 64, "bytes": 1}}))

    with pytest.raises(ModelContractError, match="may not carry"):
        load_bundle(bundle)


@pytest.mark.parametrize(("name", "size"), [("CARD.md", 300 << 10), ("encoder.onnx", 9 << 20)])
def test_a_file_over_its_size_cap_is_refused(bundle, name, size):
    replace_file(bundle, name, b" " * size)

    with pytest.raises(ModelContractError, match="larger than"):
        load_bundle(bundle)


# A ModelProto: the real graph with a field added that protobuf merges into it.
EXTERNAL_TENSOR = field(7, field(5, field(8, b"w") + bytes([14 << 3, 1]) + field(13, field(1, b"location"))))
EXTERNAL_ATTRIBUTE = field(7, field(1, field(4, b"Constant") + field(5, field(5, bytes([14 << 3, 1])))))
EXTERNAL_IN_SUBGRAPH = field(7, field(1, field(4, b"Add") + field(5, field(6, field(5, bytes([14 << 3, 1]))))))
EXTERNAL_SPARSE = field(7, field(15, field(1, field(13, b""))))


@pytest.mark.parametrize("added", [EXTERNAL_TENSOR, EXTERNAL_ATTRIBUTE, EXTERNAL_IN_SUBGRAPH, EXTERNAL_SPARSE])
def test_data_outside_of_the_file_is_refused_wherever_it_hides(bundle, added):
    replace_file(bundle, "encoder.onnx", (bundle / "encoder.onnx").read_bytes() + added)

    with pytest.raises(ModelContractError, match=r"encoder\.onnx keeps data outside the file"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("added", "says"),
    [
        (field(7, field(1, field(4, b"If"))), "uses If"),
        (field(7, field(1, field(4, b"Evil") + field(7, b"com.example"))), r"uses com\.example\.Evil"),
        (field(7, field(1, field(4, b"Add") + field(5, field(6, field(1, field(4, b"Loop")))))), "uses Loop"),
        (field(25, b""), "local functions"),
        (field(8, field(1, b"") + bytes([2 << 3, 99])), "opset 99"),
    ],
)
def test_an_operator_or_opset_outside_of_the_list_is_refused(bundle, added, says):
    replace_file(bundle, "encoder.onnx", (bundle / "encoder.onnx").read_bytes() + added)

    with pytest.raises(ModelContractError, match=says):
        load_bundle(bundle)


@pytest.mark.parametrize("data", [b"\xff" * 100, b"not a model", b"\x3a\x7f"])
def test_what_is_no_onnx_file_is_refused(bundle, data):
    replace_file(bundle, "encoder.onnx", data)

    with pytest.raises(ModelContractError, match=r"encoder\.onnx: it is not a(n| whole) ONNX file"):
        load_bundle(bundle)


def test_graphs_that_nest_too_deep_are_refused():
    graph = b""
    for _ in range(20):
        graph = field(1, field(5, field(6, graph)))

    with pytest.raises(ModelContractError, match="nest too deep"):
        summarise(field(7, graph))


def test_a_graph_that_onnx_runtime_cannot_open_is_refused(bundle):
    undefined = field(7, field(1, node("Relu", "nothing", "something")))
    replace_file(bundle, "encoder.onnx", (bundle / "encoder.onnx").read_bytes() + undefined)

    with pytest.raises(ModelContractError, match=r"encoder\.onnx cannot be opened"):
        OrtModel(load_bundle(bundle))


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw["input"].update(window=100),
        lambda raw: raw["code"].update(shape=[32], bytes=32),
        lambda raw: raw["labels"].append("hopping"),
    ],
)
def test_shapes_unlike_the_manifest_are_refused(bundle, change):
    edit_manifest(bundle, change)

    with pytest.raises(ModelContractError, match=r"where the manifest means one"):
        OrtModel(load_bundle(bundle))


def test_graphs_that_were_swapped_are_refused(bundle):
    classifier = (bundle / "classifier.onnx").read_bytes()
    replace_file(bundle, "decoder.onnx", classifier)

    with pytest.raises(ModelContractError, match=r"decoder\.onnx: its output"):
        OrtModel(load_bundle(bundle))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda raw: raw.pop("labels"), "lacks 'labels'"),
        (lambda raw: raw["labels"].clear(), "at least two"),
        (lambda raw: raw["labels"].append(raw["labels"][0]), "distinct"),
        (lambda raw: raw["input"].update(channels=["ax"]), "input must be"),
        (lambda raw: raw["input"].update(acc_unit="m/s2"), "input must be"),
        (lambda raw: raw["input"].update(hop=0), "hop must be a positive whole number"),
        (lambda raw: raw["input"].update(hop=500), "do not fit"),
        (lambda raw: raw["input"].update(rate_hz=float("nan")), "finite number"),
        (lambda raw: raw["input"].update(rate_hz=1000), "do not fit"),
        (lambda raw: raw["input"].update(rate_hz="50"), "finite number"),
        (lambda raw: raw["normalisation"].update(std=[0, 1, 1, 1, 1, 1]), "std must be positive"),
        (lambda raw: raw["normalisation"].update(mean=[1, 2]), "mean must be 6 finite numbers"),
        (lambda raw: raw["code"].update(dtype="float32"), "code must be int8"),
        (lambda raw: raw["calibration"].update(temperature=0), "must be positive"),
        (lambda raw: raw["calibration"].update(novelty_threshold=float("inf")), "finite number"),
        (lambda raw: raw.update(labels="walking"), "must be a list"),
        (lambda raw: raw["labels"].append("unknown"), "none of them 'unknown'"),
        (lambda raw: raw["labels"].append("a\nb"), "printable"),
        (lambda raw: raw["labels"].append("\ud800"), "printable"),
        (lambda raw: raw.update(name=""), "printable"),
        (lambda raw: raw.update(files=[]), r"manifest\.json"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(bundle, change, says):
    edit_manifest(bundle, change)

    with pytest.raises(ModelContractError, match=says):
        load_bundle(bundle)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000])
def test_a_manifest_that_is_no_object_is_refused(bundle, text):
    (bundle / "manifest.json").write_text(text)

    with pytest.raises(ModelContractError, match=r"manifest\.json"):
        load_bundle(bundle)


def golden(bundle, **changes):
    with np.load(bundle / "golden.npz") as arrays:
        new = {name: changes.get(name, lambda a: a)(arrays[name]) for name in arrays}
    out = io.BytesIO()
    np.savez(out, **new)
    replace_file(bundle, "golden.npz", out.getvalue())


@pytest.mark.parametrize(
    "changes",
    [
        {"code": lambda a: np.clip(a.astype(int) + 2, -128, 127).astype(np.int8)},
        {"logits": lambda a: a + 1},
        {"logits": lambda a: a[:, ::-1].copy()},
        {"novelty": lambda a: a * 1.2},
        {"window": lambda a: a + np.float32(0.3)},
        {"logits": lambda a: a * np.float32("nan")},
    ],
)
def test_golden_outputs_out_of_tolerance_are_refused(bundle, changes):
    golden(bundle, **changes)
    loaded = load_bundle(bundle)

    with pytest.raises(ModelContractError, match="fails its golden vectors on this board"):
        OrtModel(loaded).verify(read_golden(loaded))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"window": lambda a: a[:, :64]}, "shapes and types"),
        ({"novelty": lambda a: a.astype(np.float32)}, "shapes and types"),
        ({name: lambda a: a[:0] for name in ("window", "code", "logits", "novelty")}, "no windows"),
        ({"window": lambda a: a.astype(object)}, "cannot be read"),
    ],
)
def test_golden_vectors_that_do_not_fit_are_refused(bundle, changes, says):
    golden(bundle, **changes)

    with pytest.raises(ModelContractError, match=says):
        read_golden(load_bundle(bundle))


@pytest.mark.parametrize(("share", "refused"), [(0.09, False), (0.11, True)])
@pytest.mark.parametrize("golden_novelty", [0.0, 1.0, 200.0])
def test_novelty_near_zero_is_held_against_a_quarter_of_the_threshold(tmp_path, golden_novelty, share, refused):
    loaded = load_bundle(write_bundle(tmp_path, novel=True))
    model, read = OrtModel(loaded), read_golden(loaded)
    scores = model.infer(read.window)
    quarter = loaded.manifest.calibration.novelty_threshold / 4
    told = np.full(len(read.window), golden_novelty)
    off = share * max(golden_novelty, quarter)
    model.infer = lambda _: scores._replace(novelty=told + off)

    with pytest.raises(ModelContractError, match="novelty by 11") if refused else nullcontext():
        model.verify(read._replace(novelty=told))


def test_golden_vectors_that_unpack_to_too_much_are_refused_before_they_are_unpacked(bundle):
    out = io.BytesIO()
    np.savez_compressed(out, window=np.zeros((20 << 20,), np.int8))
    replace_file(bundle, "golden.npz", out.getvalue())

    with pytest.raises(ModelContractError, match="unpacks to"):
        read_golden(load_bundle(bundle))


def test_what_is_no_file_is_refused_and_not_waited_for(bundle):
    (bundle / "encoder.onnx").unlink()
    os.mkfifo(bundle / "encoder.onnx")

    with pytest.raises(ModelContractError, match="is not a file"):
        load_bundle(bundle)


def test_golden_vectors_that_cannot_be_read_are_refused(bundle):
    replace_file(bundle, "golden.npz", b"PK\x03\x04 and then nothing")

    with pytest.raises(ModelContractError, match="cannot be read"):
        read_golden(load_bundle(bundle))


def test_bytes_are_those_that_were_verified(bundle):
    loaded = load_bundle(bundle)
    (bundle / "encoder.onnx").write_bytes(b"changed after verification")

    assert OrtModel(loaded).id == loaded.id


@pytest.fixture(params=[(0, False), (0, True), (5, False), (5, True)], ids=["plain", "novelty", "context", "both"])
def tiny(request, tmp_path):
    """A bundle with and without what is optional; its graphs are run as one."""
    windows, novel = request.param
    return write_bundle(tmp_path / "tiny", windows, novel)


def test_what_is_optional_is_read_and_proven(tiny):
    loaded = load_bundle(tiny)
    model = OrtModel(loaded)
    model.verify(read_golden(loaded))

    assert (model.context_windows == 5) == (tiny / "context.onnx").exists()
    assert (model.novelty is not None) == (tiny / "novelty.onnx").exists()
    assert len(model.scoring) == 1


def test_one_call_gives_what_the_graphs_give_one_by_one(tiny):
    loaded = load_bundle(tiny)
    model = OrtModel(loaded)
    windows = read_golden(loaded).window
    scores = model.infer(windows)

    (code,) = model.encoder.run(None, {"window": windows})
    (logits,) = model.classifier.run(None, {"code": code})
    if model.novelty:
        (novel,) = model.novelty.run(None, {"code": code})
    else:
        (rebuilt,) = model.decoder.run(None, {"code": code})
        novel = np.square(windows - rebuilt).mean((1, 2))
    assert np.array_equal(scores.code, code)
    assert np.array_equal(scores.logits, logits)
    np.testing.assert_allclose(scores.novelty, novel, rtol=1e-6)
    assert [a.dtype for a in scores[:3]] == [np.float32, np.int8, np.float64]


def test_codes_score_as_their_windows_do_and_only_where_novelty_can_be_told_from_them(tiny):
    bundle = load_bundle(tiny)
    model = OrtModel(bundle)
    golden = read_golden(bundle)
    scores = model.infer(bundle.manifest.normalisation.apply(golden.window))

    if model.novelty is None:
        with pytest.raises(InferenceError, match=r"has no novelty\.onnx"):
            model.classify(scores.code)
        return
    classified = model.classify(scores.code)
    np.testing.assert_array_equal(classified.logits, scores.logits)
    np.testing.assert_array_equal(classified.novelty, scores.novelty)
    assert classified.novelty.dtype == np.float64
    with pytest.raises(InferenceError, match="failed on 1 codes"):
        model.classify(np.zeros((1, 3), np.int8))


def test_what_scores_alone_and_in_a_batch_is_the_same(tiny):
    loaded = load_bundle(tiny)
    model = OrtModel(loaded)
    golden = read_golden(loaded)
    many = model.infer(golden.window)

    for i in range(len(golden.window)):
        alone = model.infer(golden.window[i : i + 1])
        assert all(np.array_equal(a[0], b[i]) for a, b in zip(alone[:3], many[:3], strict=True))
    if golden.codes is not None:
        for i, logits in enumerate(golden.context_logits):
            assert np.array_equal(model.contextualise(golden.codes[i : i + 1])[0], logits)


def test_graphs_whose_names_collide_are_run_one_by_one(tmp_path):
    loaded = load_bundle(write_bundle(tmp_path, graphs={"classifier.onnx": classifier("e")}))
    model = OrtModel(loaded)
    model.verify(read_golden(loaded))

    assert model.scoring == [model.encoder, model.classifier, model.decoder]


def test_graphs_of_different_opsets_are_run_one_by_one(tmp_path):
    loaded = load_bundle(write_bundle(tmp_path, graphs={"classifier.onnx": classifier(opset=18)}))
    model = OrtModel(loaded)
    model.verify(read_golden(loaded))

    assert len(model.scoring) == 3


def test_a_bundle_without_context_has_none(tmp_path):
    model = OrtModel(load_bundle(write_bundle(tmp_path)))

    assert model.context_windows == 0
    with pytest.raises(InferenceError, match=r"has no context\.onnx"):
        model.contextualise(np.zeros((1, 2, 4), np.int8))


def test_a_context_that_the_runtime_refuses_is_an_inference_error(tmp_path):
    with pytest.raises(InferenceError, match="context of 2 windows"):
        OrtModel(load_bundle(write_bundle(tmp_path, 5))).contextualise(np.zeros((2, 4, 4), np.int8))


def test_a_context_that_only_the_manifest_knows_is_refused(tmp_path):
    folder = write_bundle(tmp_path, context=Context(5, 1.0))

    with pytest.raises(ModelContractError, match=r"one of context\.onnx and `context`"):
        load_bundle(folder)


def test_a_context_that_the_manifest_does_not_know_is_refused(tmp_path):
    folder = write_bundle(tmp_path, 5, context=None)

    with pytest.raises(ModelContractError, match=r"one of context\.onnx and `context`"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"windows": 0, "temperature": 1}, "windows must be a positive whole number"),
        ({"windows": -3, "temperature": 1}, "windows must be a positive whole number"),
        ({"windows": 5.0, "temperature": 1}, "windows must be a positive whole number"),
        ({"windows": True, "temperature": 1}, "windows must be a positive whole number"),
        ({"windows": 10**400, "temperature": 1}, r"manifest\.json"),
        ({"windows": 24, "temperature": 1}, r"looks back 30\.72 s, at most 30 s"),
        ({"windows": 5, "temperature": 0}, "temperature must be positive"),
        ({"windows": 5, "temperature": "1"}, "finite number"),
        ({"windows": 5}, "lacks 'temperature'"),
        ({"temperature": 1}, "lacks 'windows'"),
        ([5, 1], r"manifest\.json"),
        (True, r"manifest\.json"),
    ],
)
def test_a_context_that_makes_no_sense_is_refused(tmp_path, entry, says):
    folder = write_bundle(tmp_path, 5)
    edit_manifest(folder, lambda raw: raw.update(context=entry))

    with pytest.raises(ModelContractError, match=says):
        load_bundle(folder)


def test_a_look_back_of_31_s_is_refused_and_one_of_30_s_is_not(tmp_path):
    folder = write_bundle(tmp_path, 30)
    edit_manifest(folder, lambda raw: raw["input"].update(hop=50))
    assert load_bundle(folder).manifest.look_back_s == 30

    edit_manifest(folder, lambda raw: raw["context"].update(windows=31))
    with pytest.raises(ModelContractError, match="looks back 31 s"):
        load_bundle(folder)


@pytest.mark.parametrize("absent", [lambda raw: raw.pop("context"), lambda raw: raw.update(context=None)])
def test_a_manifest_without_context_has_none(tmp_path, absent):
    folder = write_bundle(tmp_path)
    edit_manifest(folder, absent)

    assert (load_bundle(folder).manifest.context, load_bundle(folder).manifest.look_back_s) == (None, 0)


@pytest.mark.parametrize(
    ("graphs", "says"),
    [
        (
            {"context.onnx": context(6)},
            r"context\.onnx: its input is 'codes', int8 \(any, 6, 4\), where .* \(any, 5, 4\)",
        ),
        ({"context.onnx": context(5, labels=4)}, r"context\.onnx: its output is 'logits', float32 \(any, 4\)"),
        ({"context.onnx": classifier()}, r"context\.onnx: its input is 'code'"),
        ({"novelty.onnx": classifier()}, r"novelty\.onnx: its output is 'logits'"),
        ({"classifier.onnx": classifier(batch=1)}, r"classifier\.onnx: its input is 'code', int8 \(1, 4\)"),
        ({"classifier.onnx": classifier(declared=4)}, r"classifier\.onnx: its output is 'logits', float32 \(any, 4\)"),
        ({"classifier.onnx": encoder("x")}, r"classifier\.onnx: its input is 'window'"),
        ({"decoder.onnx": classifier("x")}, r"decoder\.onnx: its output is 'logits'"),
    ],
)
def test_graphs_unlike_the_manifest_are_refused_though_they_run_as_one(tmp_path, graphs, says):
    loaded = load_bundle(write_bundle(tmp_path, 5, novel=True, graphs=graphs))

    with pytest.raises(ModelContractError, match=says):
        OrtModel(loaded)


def test_graphs_that_give_other_shapes_than_they_declare_are_refused(tmp_path):
    loaded = load_bundle(write_bundle(tmp_path, graphs={"classifier.onnx": classifier(labels=4)}))

    with pytest.raises(ModelContractError, match="do not give the shapes that they declare"):
        OrtModel(loaded).verify(read_golden(loaded))


@pytest.mark.parametrize(
    "changes",
    [
        {"context_logits": lambda a: a + 1},
        {"context_logits": lambda a: a[:, ::-1].copy()},
        {"codes": lambda a: a[::-1].copy()},
        {"context_logits": lambda a: a * np.float32("nan")},
        {"novelty": lambda a: a + 10},
    ],
)
def test_golden_outputs_of_what_is_optional_are_held_to_their_tolerance(tmp_path, changes):
    folder = write_bundle(tmp_path, 5, novel=True)
    golden(folder, **changes)
    loaded = load_bundle(folder)

    with pytest.raises(ModelContractError, match="fails its golden vectors on this board"):
        OrtModel(loaded).verify(read_golden(loaded))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"codes": lambda a: a[:, 1:]}, "shapes and types"),
        ({"codes": lambda a: a.astype(np.int16)}, "shapes and types"),
        ({"codes": lambda a: a[0, 0, 0]}, "shapes and types"),
        ({"context_logits": lambda a: a[1:]}, "shapes and types"),
        ({"context_logits": lambda a: a.astype(np.float64)}, "shapes and types"),
        ({name: lambda a: a[:0] for name in ("codes", "context_logits")}, "no windows"),
    ],
)
def test_golden_codes_that_do_not_fit_are_refused(tmp_path, changes, says):
    folder = write_bundle(tmp_path, 5)
    golden(folder, **changes)

    with pytest.raises(ModelContractError, match=says):
        read_golden(load_bundle(folder))


@pytest.mark.parametrize("lost", ["codes", "context_logits"])
def test_a_context_without_golden_vectors_is_refused(tmp_path, lost):
    folder = write_bundle(tmp_path, 5)
    with np.load(folder / "golden.npz") as arrays:
        kept = {name: arrays[name] for name in arrays if name != lost}
    out = io.BytesIO()
    np.savez(out, **kept)
    replace_file(folder, "golden.npz", out.getvalue())

    with pytest.raises(ModelContractError, match=f"cannot be read: .*{lost}"):
        read_golden(load_bundle(folder))


@pytest.mark.parametrize("name", ["har-base", "har-base-float", "har-cloud"])
def test_a_manifest_without_exits_and_segment_keeps_its_bytes(name):
    data = (builtin_models() / name / "manifest.json").read_bytes()

    assert (parse(data).exits, parse(data).segment) == ((), None)
    assert dump(parse(data)) == data


EARLY = Exit("early", "eb", 0.9, 0.8)


def test_exits_are_read_as_they_were_written(tmp_path):
    late = Exit("late-2", "eb", None, 1.0)
    heads = {"exit-early.onnx": exit_head(), "exit-late-2.onnx": exit_head(p="y")}

    assert load_bundle(write_bundle(tmp_path, graphs=heads, exits=(EARLY, late))).manifest.exits == (EARLY, late)


@pytest.mark.parametrize(
    ("head", "changes", "says"),
    [
        ({}, {"exits": (EARLY,)}, r"does not list exit-early\.onnx"),
        ({"exit-early.onnx": exit_head()}, {}, r"has no exit for exit-early\.onnx"),
        ({"exit-early.onnx": exit_head("code")}, {"exits": (EARLY._replace(at="code"),)}, "which is no cut"),
        ({"exit-early.onnx": exit_head("e1")}, {"exits": (EARLY._replace(at="e1"),)}, "which is no cut"),
        ({"exit-early.onnx": exit_head("window")}, {"exits": (EARLY._replace(at="window"),)}, "which is no cut"),
        ({"exit-early.onnx": exit_head("ea")}, {"exits": (EARLY,)}, "must take eb, and give logits and novelty"),
        ({"exit-early.onnx": exit_head(labels=4)}, {"exits": (EARLY,)}, "must take eb, and give logits and novelty"),
        ({"exit-early.onnx": classifier()}, {"exits": (EARLY,)}, "must take eb, and give logits and novelty"),
        ({"exit-early.onnx": exit_head(opset=99)}, {"exits": (EARLY,)}, "opset 99"),
    ],
)
def test_an_exit_that_is_no_head_of_the_network_is_refused(tmp_path, head, changes, says):
    with pytest.raises(ModelContractError, match=says):
        load_bundle(write_bundle(tmp_path, graphs=head, **changes))


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({}, "must be a list"),
        ([1], "each of exits must be an object, not 1"),
        ([{"name": "a", "at": "eb"}], "lacks 'confidence'"),
        ([{"at": "eb", "confidence": 1}], "lacks 'name'"),
        ([{"name": "../a", "at": "eb", "confidence": 1}], "small letters, digits and dashes"),
        ([{"name": "A", "at": "eb", "confidence": 1}], "small letters, digits and dashes"),
        ([{"name": "a" * 17, "at": "eb", "confidence": 1}], "small letters, digits and dashes"),
        ([{"name": "a", "at": "eb", "confidence": 1}] * 2, "distinct names"),
        ([{"name": "a", "at": "eb", "confidence": 1.1}], "from 0 to 1"),
        ([{"name": "a", "at": "eb", "confidence": None}], "finite number"),
        ([{"name": "a", "at": "eb", "confidence": 1, "accuracy": -1}], "from 0 to 1"),
        ([{"name": "a", "at": "", "confidence": 1}], "printable"),
    ],
)
def test_exits_that_make_no_sense_are_refused(tmp_path, entry, says):
    folder = write_bundle(tmp_path)
    edit_manifest(folder, lambda raw: raw.update(exits=entry))

    with pytest.raises(ModelContractError, match=says):
        load_bundle(folder)


@pytest.fixture
def whole(tmp_path):
    return load_bundle(write_bundle(tmp_path / "whole", 5, novel=True))


@pytest.mark.parametrize(("at", "until"), [("window", "eb"), ("ea", "code"), ("eb", ""), ("code", "")])
def test_a_segment_is_a_bundle_as_a_folder_and_as_a_file(whole, tmp_path, at, until):
    folder = write_segment(tmp_path / "part", whole, at, until)
    loaded = load_bundle(pack(folder))
    golden = read_segment_golden(loaded)

    assert loaded.manifest.segment == Segment(whole.id, whole.digest, at, until)
    assert loaded.contents == load_bundle(folder).contents
    assert len(golden.takes) == len(golden.gives if until else golden.gives.logits) == 8


def test_a_segment_is_refused_where_a_model_is_meant(whole, tmp_path):
    folder = write_segment(tmp_path / "part", whole, "ea")

    with pytest.raises(ModelContractError, match=f"holds a part of {whole.id}"):
        open_model(str(folder))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"at": ""}, "printable"),
        ({"until": 1}, "printable"),
        ({"until": "ea"}, "both 'ea'"),
        ({"network": "x" * 64}, "SHA-256"),
        ({"network": "0" * 64}, "SHA-256"),
        ({"of": "tiny"}, "SHA-256"),
        ({"at": "ec"}, r"segment\.onnx: its input"),
        ({"at": "window"}, r"segment\.onnx: its input"),
        ({"until": "code"}, r"segment\.onnx: its output"),
        ({"until": ""}, r"segment\.onnx: its output"),
    ],
)
def test_a_segment_unlike_its_manifest_is_refused(whole, tmp_path, change, says):
    folder = write_segment(tmp_path / "part", whole, "ea", "eb")
    edit_manifest(folder, lambda raw: raw["segment"].update(change))

    with pytest.raises(ModelContractError, match=says):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (1, "segment must be an object, not 1"),
        ([1], r"segment must be an object, not \[1\]"),
        ("ea", "segment must be an object, not 'ea'"),
        ({}, "lacks 'until'"),
        ({"at": "ea"}, "lacks 'until'"),
    ],
)
def test_a_segment_that_makes_no_sense_is_refused(whole, tmp_path, entry, says):
    folder = write_segment(tmp_path / "part", whole, "ea", "eb")
    edit_manifest(folder, lambda raw: raw.update(segment=entry))

    with pytest.raises(ModelContractError, match=rf"manifest\.json:? {says}"):
        load_bundle(folder)


@pytest.mark.parametrize(
    "part", ["input", "normalisation", "code", "calibration", "files", "training", "metrics", "context"]
)
def test_a_part_of_the_manifest_that_is_no_object_is_named(tmp_path, part):
    folder = write_bundle(tmp_path)
    edit_manifest(folder, lambda raw: raw.update({part: [1]}))

    with pytest.raises(ModelContractError, match=rf"{part} must be an object, not \[1\]"):
        load_bundle(folder)


def test_a_segment_with_a_context_is_refused(whole, tmp_path):
    folder = write_segment(tmp_path / "part", whole, "ea", "eb", context=whole.manifest.context)

    with pytest.raises(ModelContractError, match="one of context"):
        load_bundle(folder)
    (folder / "context.onnx").write_bytes(whole.contents["context.onnx"])
    edit_manifest(folder, lambda raw: raw["files"].update({"context.onnx": {"sha256": "", "bytes": 1}}))
    replace_file(folder, "context.onnx", whole.contents["context.onnx"])
    with pytest.raises(ModelContractError, match="a part of a network has no context"):
        load_bundle(folder)


@pytest.mark.parametrize("name", ["segment.onnx", "golden.npz", "CARD.md"])
def test_a_segment_without_one_of_its_files_is_refused(whole, tmp_path, name):
    folder = write_segment(tmp_path / "part", whole, "ea", "eb")
    edit_manifest(folder, lambda raw: raw["files"].pop(name))

    with pytest.raises(ModelContractError, match=f"does not list {name}"):
        load_bundle(folder)


def relu(taken, given="eb"):
    return model([node("Relu", "ea", "eb")], [value("ea", *taken)], [value(given, np.float32, "batch", 4)])


@pytest.mark.parametrize(
    ("graph", "says"),
    [
        (relu((np.float32, "batch", 1 << 19)), "its input is not what the manifest means"),
        (relu((np.float32, "batch", 1 << 40, 1 << 40)), "its input is not what the manifest means"),
        (relu((np.float32, "batch", "wide")), "its input is not what the manifest means"),
        (relu((np.float32, 1, 768)), "its input is not what the manifest means"),
        (relu((np.float32,)), "its input is not what the manifest means"),
        (relu((np.float32, "batch", 768), "logits"), "its output is not what the manifest means"),
        (field(7, field(1, field(4, b"Loop"))), "uses Loop|opset 0"),
        (b"no graph", "is not an ONNX file"),
    ],
)
def test_a_graph_that_is_no_such_segment_is_refused(whole, tmp_path, graph, says):
    folder = write_segment(tmp_path / "part", whole, "ea", "eb")
    replace_file(folder, "segment.onnx", graph)

    with pytest.raises(ModelContractError, match=says):
        load_bundle(folder)


def test_an_operator_outside_of_the_list_is_refused_in_a_segment_too(whole, tmp_path):
    folder = write_segment(tmp_path / "part", whole, "ea", "eb")
    replace_file(folder, "segment.onnx", (folder / "segment.onnx").read_bytes() + field(7, field(1, field(4, b"If"))))

    with pytest.raises(ModelContractError, match="uses If"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("until", "changes", "says"),
    [
        ("eb", {"takes": lambda a: a[:, 1:]}, "shapes and types"),
        ("eb", {"gives": lambda a: a.astype(np.float64)}, "shapes and types"),
        ("eb", {"gives": lambda a: a[1:]}, "shapes and types"),
        ("eb", {name: lambda a: a[:0] for name in ("takes", "gives")}, "no windows"),
        ("eb", {"gives": lambda a: a.astype(object)}, "cannot be read"),
        ("", {"novelty": lambda a: a.astype(np.float32)}, "shapes and types"),
    ],
)
def test_golden_vectors_of_a_segment_that_do_not_fit_are_refused(whole, tmp_path, until, changes, says):
    folder = write_segment(tmp_path / "part", whole, "ea", until)
    golden(folder, **changes)

    with pytest.raises(ModelContractError, match=says):
        read_segment_golden(load_bundle(folder))
