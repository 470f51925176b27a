import json
import re
from dataclasses import replace

import numpy as np
import pytest
from fakes import FakeClock
from graphs import classifier, decoder, encoder, model, node, value, write_bundle
from typer.testing import CliRunner

from agent.adapters.bundle import find_bundle, load_bundle
from agent.adapters.onnx_model import open_session
from agent.adapters.power import UNMEASURED
from agent.app import profile as profiling
from agent.app.profile import Network, Runs, left_out, measured, prediction, profile
from agent.cli import build
from agent.config import Config
from agent.core.layers import Layer
from agent.core.manifest import Exit, Segment
from agent.core.planner import read_profile
from agent.core.settings import TelemetrySettings
from agent.errors import InferenceError, ModelContractError, OutputError, UsageError
from agent.records import PowerReading

UNMETERED = Config(telemetry=TelemetrySettings(power="none"))


class Meter:
    """Gives what it was told to, the last of it for ever."""

    def __init__(self, *watts):
        self._left = [UNMEASURED if w is None else PowerReading(w, "ina219", None) for w in watts]

    def read(self):
        return self._left.pop(0) if len(self._left) > 1 else self._left[0]


def measured_alone(network, meter):
    (found,) = measured([(network, lambda: None)], 0.01, meter, FakeClock())
    return found


@pytest.fixture
def tiny(tmp_path):
    return Network.of(load_bundle(write_bundle(tmp_path / "tiny")))


@pytest.fixture
def tiny_profile(tiny):
    return measured_alone(tiny, Meter(None))


def timed(network, fixed_us=10.0, us_per_layer=5.0):
    """A profile of times that were never taken: each run costs the same, and so does each layer in it."""
    layers = [len(part) for part in network.layers]
    us = np.array([[fixed_us + us_per_layer * n for n in (sum(layers), *layers)]])
    return profiling._profile(network, us, us, None)


@pytest.mark.parametrize(
    ("name", "cuts"),
    [
        ("har-base", {"e4": 1536, "ea": 2048, "ef": 1536, "ek": 1024, "code": 64}),
        ("har-base-float", {"e9": 8192, "eb": 6144, "ed": 4096, "code": 64}),
    ],
)
def test_the_parts_of_a_shipped_network_give_the_same_bits_as_the_whole(name, cuts):
    network = Network.of(load_bundle(find_bundle(name)))
    whole = open_session(name, network.graph)
    parts = [open_session(name, part) for part in network.parts]

    assert cuts.items() <= {cut.name: cut.bytes for cut in network.cuts}.items()
    assert (network.cuts[-1].name, network.ends) == ("code", ["logits", "novelty"])
    for windows in (network.windows, network.windows[3:4]):
        given = [windows]
        for part in parts:
            given = part.run(None, {part.get_inputs()[0].name: given[0]})
        assert all(map(np.array_equal, given, whole.run(network.ends, {"window": windows})))


def test_every_part_has_its_layers_and_every_cut_its_size():
    network = Network.of(load_bundle(find_bundle("har-base")))
    convolutions = [[layer.macs for layer in part if layer.op == "QLinearConv"] for part in network.layers]

    assert len(network.parts) == len(network.layers) == len(network.cuts) + 1
    # 12 channels in, 32 of 64 steps out, kernel 8; then 48 of 32 steps and 64 of 16, kernel 5.
    assert [macs for part in convolutions[:4] for macs in part] == [
        12 * 32 * 64 * 8,
        32 * 48 * 32 * 5,
        48 * 64 * 16 * 5,
    ]
    assert (network.input_bytes, network.output_bytes, network.code_bytes) == (128 * 6 * 4, 7 * 4 + 4, 64)
    first = network.cuts[1]
    assert (first.dtype, first.shape, first.bytes) == ("uint8", [1, 32, 64], 2048)


def test_parts_that_give_something_else_are_not_measured(tiny):
    tiny.parts[-1] = model(
        [node("Cast", "code", "a", to=1), node("MatMul", "a w", "logits")],
        [value("code", np.int8, "batch", 4)],
        [value("logits", np.float32, "batch", 3)],
        {"w": np.ones((4, 3), np.float32)},
    )
    tiny.parts[:-1] = [encoder()]

    with pytest.raises(InferenceError, match="cannot be cut here"):
        Runs(tiny)


def test_the_rest_of_the_pipeline_comes_before_every_run_that_is_timed(tiny):
    done = []
    spent = Runs(tiny).timed(0.0, lambda: done.append(1))

    assert spent.shape == (profiling.FEWEST_ROUNDS, 1 + len(tiny.parts))
    assert len(done) == spent.size
    assert spent.min() > 0


def test_one_more_run_costs_what_the_parts_take_more_than_the_whole():
    spent = np.array([[10.0, 6, 6, 7], [10, 6, 6, 8], [10, 60, 6, 8]])

    assert profiling._fixed(spent) == (20 - 10) / 2
    assert profiling._fixed(spent[:, :2]) == 0


def test_a_profile_is_what_a_plan_is_made_from(tiny_profile):
    plain = json.loads(json.dumps(tiny_profile.as_dict()))

    assert (plain["v"], plain["measured"], plain["watts"]) == (1, True, None)
    assert {"name", "cpu", "arch"} <= plain["machine"].keys()
    assert plain["bundle"].startswith("tiny@")
    assert plain["exits"] == [{"name": "end", "accuracy": None, "after": len(plain["segments"]), "us": 0.0}]
    assert (plain["input_bytes"], plain["output_bytes"], plain["code_bytes"]) == (128 * 6 * 4, 3 * 4, 4)
    assert {"name": "code", "bytes": 4, "dtype": "int8", "shape": [1, 4]} in plain["cuts"]
    assert [(s["from"], s["to"]) for s in plain["segments"]] == [(i, i + 1) for i in range(len(plain["cuts"]) + 1)]
    assert all(0 < s["us"] <= s["us_p95"] and s["hot_us"] > 0 and s["joules"] is None for s in plain["segments"])
    assert plain["whole_us"] > 0
    assert plain["fixed_us"] >= 0
    dense = [layer for s in plain["segments"] for layer in s["layers"] if layer["macs"]]
    assert [layer["macs"] for layer in dense] == [768 * 4, 4 * 3]
    assert dense[0].keys() == {"op", "macs", "in_bytes", "out_bytes", "weight_bytes"}


def head(at, size):
    """What an exit has after a tensor of floats: `at` -> logits and novelty."""
    return model(
        [
            node("Reshape", f"{at} shape", "flat"),
            node("MatMul", "flat w", "logits"),
            node("ReduceMax", "flat", "novelty", axes=[1], keepdims=0),
        ],
        [value(at, np.float32, "batch", *[None] * 2) if size > 4 else value(at, np.float32, "batch", size)],
        [value("logits", np.float32, "batch", 3), value("novelty", np.float32, "batch")],
        {"shape": np.array([-1, size]), "w": np.ones((size, 3), np.float32)},
    )


@pytest.fixture
def early(tmp_path):
    """A bundle with an early exit."""
    graphs = {"exit-early.onnx": head("eb", 4)}
    return write_bundle(tmp_path / "early", novel=True, graphs=graphs, exits=(Exit("early", "eb", 0.8, 0.9),))


def with_exit(bundle, at, graph):
    network = Network.of(bundle)
    return Network(bundle.id, network.graph, network.windows, [(Exit("early", at, None, 0.9), graph)])


def test_exits_are_where_a_plan_looks_for_them(early):
    network = Network.of(load_bundle(early))
    found = measured_alone(network, Meter(None))

    assert [cut.name for cut in network.cuts] == ["ea", "eb", "code"]
    first, end = found.exits
    assert (first.name, first.accuracy, first.after, end.after) == ("early", 0.8, 2, 4)
    assert first.us > 0
    assert read_profile(json.dumps(found.as_dict()).encode()).exits == (first, end)


def test_a_head_is_no_part_of_the_chain(early):
    network = Network.of(load_bundle(early))
    us = np.array([[30.0, 10, 10, 10, 12, 99]])
    found = profiling._profile(network, us, us, None)

    assert [s.us for s in found.segments] == [10, 10, 10, 12]
    assert (found.fixed_us, found.exits[0].us) == (4, 99)


def test_a_head_is_predicted_like_a_part(tiny, early):
    network = Network.of(load_bundle(early))

    first, _ = prediction(network, [timed(tiny)]).exits
    assert first.us == pytest.approx(10.0 + 5.0 * len(network.heads[0].layers), rel=1e-2)


def test_what_an_exit_reads_is_a_cut_though_the_network_would_compute_over_it():
    bundle = load_bundle(find_bundle("har-base-float"))
    network = with_exit(bundle, "e8", head("e8", 32 * 64))

    assert "e8" not in {cut.name for cut in Network.of(bundle).cuts}
    assert network.cuts[network.heads[0].after - 1].name == "e8"
    Runs(network)


def test_an_exit_must_read_what_everything_passes_through():
    bundle = load_bundle(find_bundle("har-base-float"))

    with pytest.raises(ModelContractError, match="exit early reads e2, where the network cannot be cut"):
        with_exit(bundle, "e2", head("e2", 768))


def test_exits_are_told_below_the_table(early):
    assert re.search(r"^exit early: after eb, its head [0-9.]+ µs, accuracy 0\.8$", command(early).stdout, re.MULTILINE)


def test_without_a_graph_that_fits_novelty_is_left_out_and_that_is_said(tmp_path):
    assert "novelty is not in it" in command(write_bundle(tmp_path / "tiny")).stdout
    assert "novelty is not in it" not in command(write_bundle(tmp_path / "novel", novel=True)).stdout


def test_accuracy_is_what_the_bundle_says(tmp_path):
    folder = write_bundle(tmp_path / "tiny", metrics={"held_out": {"accuracy": 0.97}})

    assert Network.of(load_bundle(folder)).accuracy == 0.97


@pytest.mark.parametrize(
    "said", [{}, {"held_out": 3}, {"held_out": {"accuracy": "high"}}, {"held_out": {"accuracy": 97}}]
)
def test_accuracy_that_nobody_says_is_not_made_up(tmp_path, said):
    assert Network.of(load_bundle(write_bundle(tmp_path / "tiny", metrics=said))).accuracy is None


def test_energy_is_what_a_run_adds_to_an_idle_machine(tiny):
    first, *idle, then = 99, 2, 2, 2, 2, 99
    found = measured_alone(tiny, Meter(first, *idle, then, 4, 5, 4, 5))

    assert found.watts == profiling.Watts(4.5, 2.0, "ina219", None)
    assert [s.joules for s in found.segments] == pytest.approx([2.5e-6 * s.us for s in found.segments], rel=1e-3)


@pytest.mark.parametrize("watts", [(2, None), (2, 2, 2, 2, 2, 4, None)], ids=["idle", "busy"])
def test_a_meter_that_stops_gives_no_figure(tiny, watts):
    found = measured_alone(tiny, Meter(*watts))

    assert found.watts is None
    assert {s.joules for s in found.segments} == {None}


def test_several_bundles_are_each_predicted_from_the_others(tmp_path):
    names = [str(write_bundle(tmp_path / name)) for name in "abc"]
    report = profile(names, UNMETERED, 0.05)

    assert [error.bundle for error in report.left_out] == [found.bundle for found in report.profiles]
    assert report.predicted is None


def test_how_far_the_others_are_off_is_a_share_of_what_was_measured(tiny):
    quick, slow = timed(tiny), timed(tiny, 20.0, 10.0)

    assert [(e.segments, e.whole) for e in left_out([quick, quick])] == [pytest.approx((0, 0), abs=1e-3)] * 2
    assert [(e.segments, e.whole) for e in left_out([quick, slow])] == [
        pytest.approx((1, 1), abs=1e-3),
        pytest.approx((0.5, 0.5), abs=1e-3),
    ]


def test_what_the_others_do_not_have_is_not_predicted(tiny_profile):
    last = tiny_profile.segments[-1]
    other = replace(tiny_profile, segments=[*tiny_profile.segments, replace(last, layers=[Layer("Conv", 9, 1, 1, 1)])])

    fits, misses = left_out([tiny_profile, other])
    assert (misses.segments, misses.whole, misses.unknown) == (None, None, ["Conv"])
    assert fits.whole is not None
    assert left_out([tiny_profile]) == []


def test_a_bundle_is_predicted_without_being_timed(tmp_path, tiny):
    other = Network.of(load_bundle(write_bundle(tmp_path / "other", version="2")))
    found = prediction(other, [timed(tiny)])
    plain = json.loads(json.dumps(found.as_dict()))

    assert (plain["measured"], plain["bundle"]) == (False, other.name)
    assert {(s["us_p95"], s["hot_us"], s["joules"]) for s in plain["segments"]} == {(None, None, None)}
    assert plain["whole_us"] == pytest.approx(timed(tiny).whole_us, rel=1e-3)
    together = sum(s["us"] for s in plain["segments"]) - (len(plain["segments"]) - 1) * plain["fixed_us"]
    assert together == pytest.approx(plain["whole_us"], abs=0.1)


def test_a_bundle_of_another_kind_cannot_be_predicted(tiny_profile):
    with pytest.raises(UsageError, match="no bundle that was measured has QGemm, QLinearConv"):
        prediction(Network.of(load_bundle(find_bundle("har-base"))), [tiny_profile])


def test_graphs_that_cannot_be_one_cannot_be_profiled(tmp_path):
    folder = write_bundle(tmp_path / "tiny", graphs={"classifier.onnx": classifier("e"), "decoder.onnx": decoder()})

    with pytest.raises(ModelContractError, match="cannot be run as one graph"):
        Network.of(load_bundle(folder))


def test_a_part_of_a_network_is_not_profiled_by_itself(tmp_path):
    whole = load_bundle(write_bundle(tmp_path / "tiny"))
    part = whole._replace(manifest=whole.manifest._replace(segment=Segment(whole.id, whole.digest, "ea", "")))

    with pytest.raises(ModelContractError, match=r"holds a part of tiny@.*: name the bundle of the whole"):
        Network.of(part)


def command(*arguments):
    return CliRunner().invoke(build(["profile"]), ["profile", *map(str, arguments), "--seconds", "0.1"])


def test_a_table_says_what_each_part_costs():
    done = command("har-base")

    assert done.exit_code == 0, done.exception
    assert "Conv" in done.stdout
    assert "code" in done.stdout
    assert max(map(len, done.stdout.split("\n\n")[1].splitlines())) <= 80
    assert "each run more" in done.stdout


def test_a_profile_is_written_to_a_file(tmp_path):
    done = command("har-base", "--out", tmp_path / "profile.json", "--json")

    assert done.exit_code == 0, done.exception
    assert json.loads((tmp_path / "profile.json").read_text()) == json.loads(done.stdout)["profiles"][0]


def test_with_a_prediction_that_is_the_profile_that_is_written(tmp_path):
    a, b = write_bundle(tmp_path / "a"), write_bundle(tmp_path / "b")
    done = command(a, a, "--predict", b, "--out", tmp_path / "profile.json")

    assert done.exit_code == 0, done.exception
    assert "predicted, not measured" in done.stdout
    assert "predicted from the others" in done.stdout
    assert json.loads((tmp_path / "profile.json").read_text())["measured"] is False


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (["nowhere"], ModelContractError, "no model bundle at 'nowhere'"),
        (["har-base", "--predict", "nowhere"], ModelContractError, "no model bundle at 'nowhere'"),
        (["har-base", "har-base", "--out", "x.json"], UsageError, "--out holds one profile"),
        (["har-base", "--out", "/nowhere/x.json"], OutputError, "there is no folder /nowhere"),
    ],
)
def test_what_cannot_be_done_is_said(arguments, error, says):
    done = command(*arguments)

    assert isinstance(done.exception, error)
    assert says in str(done.exception)


def test_a_profile_that_cannot_be_written_is_an_error(tmp_path):
    done = command(write_bundle(tmp_path / "a"), "--out", tmp_path)

    assert isinstance(done.exception, OutputError)
    assert "cannot be written" in str(done.exception)


def test_a_damaged_bundle_is_refused(tmp_path):
    folder = write_bundle(tmp_path / "tiny")
    graph = folder / "encoder.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"!")
    done = command(folder)

    assert isinstance(done.exception, ModelContractError)
    assert "encoder.onnx is damaged" in str(done.exception)
