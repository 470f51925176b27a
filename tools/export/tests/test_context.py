import io
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from agent.adapters.onnx_model import session_options
from agent.core.manifest import Bundle
from agent.errors import InputError
from har_export import bouts, context
from har_export import bundle as bundles
from har_export.context import Codes, Context, histories, look_back
from har_export.datasets.records import UNLABELLED, Data, Windows, no_windows
from har_export.train import Settings

SIZE = 8
WINDOWS = 16
QUICK = Settings(epochs=1, epochs_with_everyone=1, context_steps=10, batch=32)


def codes(person: str, label: list[int], seed: int) -> Codes:
    """Codes that say nothing of the present, but all of the window before it."""
    rng = np.random.default_rng(seed)
    code = rng.integers(-20, 20, (len(label), SIZE)).astype(np.int8)
    code[:-1, 0] = 60 * np.array(label[1:])
    code[-1, 0] = 0
    return Codes(person, code, np.array(label))


def test_the_present_is_last_and_there_is_nothing_before_the_start() -> None:
    code = np.arange(1, 41, dtype=np.int8).reshape(20, 2)

    seen = histories(code, WINDOWS)

    assert seen.shape == (20, WINDOWS, 2)
    np.testing.assert_array_equal(seen[:, -1], code)
    np.testing.assert_array_equal(seen[0, :-1], 0)
    np.testing.assert_array_equal(seen[19], code[20 - WINDOWS :])


def test_it_learns_what_only_the_past_tells(tiny: Data) -> None:
    rng = np.random.default_rng(0)
    sequences = [codes(str(i), np.repeat(rng.integers(0, 2, 400), 3).tolist(), i) for i in range(4)]

    network = context.fit(sequences, tiny, seed=0, steps=300, windows=WINDOWS)

    fresh = codes("new", np.repeat(rng.integers(0, 2, 100), 3).tolist(), 99)
    history = np.ascontiguousarray(histories(fresh.code, WINDOWS))
    with torch.no_grad():
        predicted = network(torch.from_numpy(history.astype(np.float32))).argmax(dim=1).numpy()
    assert (predicted == fresh.label)[WINDOWS:].mean() > 0.95

    graph = context.export(network, history)
    session = ort.InferenceSession(graph, session_options(), providers=["CPUExecutionProvider"])
    together = session.run(None, {"codes": history})[0]
    assert (together.argmax(axis=1) == predicted).mean() > 0.97
    assert len(graph) < 8192
    for i in (0, 5, 77):
        np.testing.assert_array_equal(session.run(None, {"codes": history[i : i + 1]})[0][0], together[i])


def test_it_sees_so_far_and_no_further() -> None:
    torch.manual_seed(0)
    network = Context(SIZE, 3, WINDOWS).eval()
    rng = np.random.default_rng(0)
    code = rng.integers(-100, 100, (40, SIZE)).astype(np.int8)

    def at_last(changed: int) -> torch.Tensor:
        other = code.copy()
        other[changed] = -other[changed]
        with torch.no_grad():
            return network(torch.from_numpy(histories(other, WINDOWS)[-1:].astype(np.float32)))

    with torch.no_grad():
        given = network(torch.from_numpy(histories(code, WINDOWS)[-1:].astype(np.float32)))
    for back in range(1, 41):
        assert torch.equal(at_last(-back), given) == (back > WINDOWS), back


@pytest.mark.parametrize(
    ("rate_hz", "hop", "windows"), [(50, 64, 16), (25, 64, 8), (50, 128, 8), (200, 64, 16), (10, 256, 0), (10, 100, 2)]
)
def test_it_looks_back_no_further_than_bundles_may(rate_hz: float, hop: int, windows: int) -> None:
    assert look_back(rate_hz, hop) == windows


def test_exemplars_are_so_many_of_each_class() -> None:
    sequence = codes("a", [0] * 30 + [UNLABELLED] * 5 + [2] * 3, 0)

    with np.load(io.BytesIO(context.exemplars([sequence], 10, np.random.default_rng(0), WINDOWS))) as packed:
        assert packed["codes"].shape == (13, WINDOWS, SIZE)
        assert packed["codes"].dtype == np.int8
        assert sorted(packed["label"].tolist()) == [0] * 10 + [2] * 3


def test_pieces_lead_from_inside_one_bout_to_inside_the_next() -> None:
    label = np.array([0] * 10 + [UNLABELLED] * 4 + [1] * 3 + [UNLABELLED] + [2] * 12)

    found = bouts.pieces(label, source=7, margin=3, rng=np.random.default_rng(0))

    # The bout of 1 is too short to be cut.
    assert [(p.source, p.begins, p.ends) for p in found] == [(7, 0, 2)]
    assert 3 <= found[0].first <= 7
    assert 21 <= found[0].last <= 27


def test_a_new_order_joins_like_with_like_and_is_not_the_script() -> None:
    script = [0, 1, 0, 2, 1, 2] * 4
    label = np.repeat(script, 20)

    order = bouts.reorder([label], margin=4, rng=np.random.default_rng(1))

    assert all(a.ends == b.begins for a, b in pairwise(order))
    assert len(label) <= sum(p.last - p.first for p in order) < len(label) + 60
    assert [p.begins for p in order[:6]] != script[:6]
    # Where people go from a bout is drawn evenly from where they went at all, however often the script says so.
    seen = {(a, b) for a, b in pairwise(script)}
    assert {(p.begins, p.ends) for p in order} <= seen


def test_nothing_to_cut_is_nothing_to_reorder(tiny: Data) -> None:
    assert bouts.reorder([np.zeros(5, np.int64)], 4, np.random.default_rng(0)) == []
    assert bouts.reordered(tiny, margin_s=60, seed=0).recordings == ()


def test_reordered_recordings_keep_samples_with_their_labels(tiny: Data) -> None:
    again = bouts.reordered(tiny, margin_s=1.0, seed=0)

    assert [r.subject for r in again.recordings] == list(tiny.subjects)
    for old, new in zip(tiny.recordings, again.recordings, strict=True):
        of = {row.tobytes(): int(label) for row, label in zip(old.values, old.label, strict=True)}
        assert [of[row.tobytes()] for row in new.values] == new.label.tolist()


def test_a_bundle_of_ready_cut_windows_has_no_context(tiny: Data) -> None:
    few = tiny.windows
    twice = Windows(*(np.concatenate([column, column]) for column in (few.values, few.label, few.subject)))
    data = Data((), twice, tiny.labels)

    built, _ = bundles.build(data, 0, QUICK, "har-tiny", {})

    assert built.manifest.context is None
    assert "context.onnx" not in built.contents
    assert "novelty.onnx" in built.contents


def test_a_bundle_says_how_its_context_is_read(tiny: Data) -> None:
    built, _ = bundles.build(tiny, 0, QUICK, "har-tiny", {})

    assert isinstance(built, Bundle)
    assert built.manifest.context is not None
    assert built.manifest.context.windows == WINDOWS
    assert 0.2 <= built.manifest.context.temperature <= 10
    with pytest.raises(InputError, match="two subjects"):
        bundles.build(tiny.of(["1"]), 0, Settings(epochs=1), "har-tiny", {})


def test_another_rate_and_window_make_a_bundle(tiny: Data, tmp_path: Path) -> None:
    recordings = replace(tiny, windows=no_windows()).at_rate(25)

    built, _ = bundles.build(recordings, 0, replace(QUICK, rate_hz=25, window=128), "har-slow", {})

    bundles.write(built, tmp_path / "har-slow")
    assert built.manifest.context is not None
    assert built.manifest.context.windows == 8
    with pytest.raises(InputError, match="ready-cut windows of 128 samples at 50 Hz"):
        bundles.build(tiny, 0, replace(QUICK, window=64), "har-short", {})
