import gzip
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from agent.adapters.bundle import load_bundle, read_golden
from agent.adapters.onnx_model import OrtModel
from agent.core.manifest import Bundle
from agent.errors import InputError
from har_export import bundle as bundles
from har_export import cli, finetune, signing
from har_export.bundle import Parts
from har_export.calibrate import UNCALIBRATED
from har_export.datasets.records import Data, Recording, no_windows
from har_export.finetune import Contradiction, Examples, Lesson, Scores, contradicted, occasion
from har_export.train import Settings

RATE_HZ = 50
SETTINGS = Settings(epochs=4, context_steps=5, batch=32)


@pytest.fixture(scope="module")
def parts(tiny: Data) -> Parts:
    return bundles.fit(tiny, 0, SETTINGS)


@pytest.fixture(scope="module")
def base(parts: Parts, tiny: Data) -> Bundle:
    return bundles.assemble(parts, tiny.labels, SETTINGS, UNCALIBRATED, None, "har-tiny", {}, {})


@pytest.fixture(scope="module")
def plain(parts: Parts, base: Bundle) -> Bundle:
    """The same without a context, which takes most of a lesson's time."""
    graphs = {name: graph for name, graph in parts.graphs.items() if name != "context.onnx"}
    known, packed = finetune.read_exemplars(base), io.BytesIO()
    np.savez_compressed(packed, codes=known.codes[:, -1:], label=known.label)
    alone = replace(parts, graphs=graphs, exemplars=packed.getvalue())
    return bundles.assemble(alone, base.manifest.labels, SETTINGS, UNCALIBRATED, None, "har-tiny", {}, {})


@pytest.fixture(autouse=True)
def _short_lesson(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune, "STEPS", 100)
    monkeypatch.setattr(finetune, "BATCH", 48)
    monkeypatch.setattr(bundles, "IDLE_WINDOWS", 256)


def moving(name: str, seconds: float, seed: int) -> np.ndarray:
    """Six channels: gravity along another axis for each activity; what is new turns slowly, or shakes quickly."""
    rng = np.random.default_rng(seed)
    n = int(seconds * RATE_HZ)
    t = np.arange(n) / RATE_HZ
    values = rng.normal(0, 0.01, (n, 6))
    axis, down = {"standing": (1, 1), "laying": (2, 1), "rowing": (2, -1), "skipping": (1, -1)}[name]
    values[:, axis] += down
    if name == "rowing":
        values[:, 3:] += 2 * np.sin(2 * np.pi * 0.6 * t)[:, None]
    if name == "skipping":
        values[:, :3] += np.sin(2 * np.pi * 5 * t)[:, None]
    return values.astype(np.float32)


def session(
    subject: str, name: str, activities: Sequence[str], labels: Sequence[str], seconds: float = 20
) -> Recording:
    seed = sum(map(ord, subject + name))
    values = np.concatenate([moving(a, seconds, seed + i) for i, a in enumerate(activities)])
    label = np.repeat([labels.index(a) for a in activities], int(seconds * RATE_HZ))
    return Recording(subject, name, float(RATE_HZ), values, label)


def own(*sessions: tuple[str, str, Sequence[str]], seconds: float = 20) -> Data:
    labels = list(dict.fromkeys(a for _, _, activities in sessions for a in activities))
    recordings = tuple(session(subject, name, a, labels, seconds) for subject, name, a in sessions)
    return Data(recordings, no_windows(), tuple(labels))


TWO_DAYS = (("me", "monday", ("rowing", "skipping", "laying")), ("me", "tuesday", ("laying", "rowing", "skipping")))


def test_new_labels_are_learned_and_old_ones_kept(
    base: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "STEPS", 150)
    told: list[str] = []

    taught = finetune.finetune(base, own(*TWO_DAYS), "mine", 0, report=told.append)

    bundles.write(taught, tmp_path / "mine")
    read = load_bundle(tmp_path / "mine")
    OrtModel(read).verify(read_golden(read))
    assert read.manifest.name == "mine"
    assert read.manifest.labels == (*base.manifest.labels, "rowing", "skipping")
    assert read.contents["encoder.onnx"] == base.contents["encoder.onnx"]
    measured = read.manifest.metrics["finetune"]
    assert measured["by"] == "session"
    assert measured["own"]["before"]["single"] < 0.5
    assert measured["own"]["after"]["single"] > 0.9
    assert measured["own"]["after"]["in_context"] > measured["own"]["before"]["in_context"] + 0.2
    # Two of its seven classes look the same.
    assert measured["kept"]["after"]["single"] > 0.6
    assert measured["minutes"] == {"laying": 0.67, "rowing": 0.67, "skipping": 0.67}
    assert measured["warnings"] == []
    assert np.sum(measured["confusion"]) == 2 * ((3 * 20 * RATE_HZ - 128) // 64 + 1)
    assert read.manifest.training["from"]["id"] == base.id
    assert told[1] == "cross-validation by session, fold 1 of 2"


def test_what_was_taught_can_be_taught_further(plain: Bundle) -> None:
    first = finetune.finetune(plain, own(*TWO_DAYS), "mine", 0)
    more = own(("me", "a", ("laying", "standing")), ("me", "b", ("laying", "standing")))

    second = finetune.finetune(first, more, "more", 0)

    exemplars = finetune.read_exemplars(second)
    assert set(exemplars.label.tolist()) == set(range(len(second.manifest.labels)))
    assert np.bincount(exemplars.label).max() == 3 * bundles.EXEMPLARS
    measured = second.manifest.metrics["finetune"]
    assert "learned from me before" in measured["warnings"][0]
    with pytest.raises(InputError, match=rf"learned from me/a, me/b before.*Teach {first.id} from all"):
        finetune.finetune(second, more, "again", 0)
    with pytest.raises(InputError, match=rf"learned from me/monday, me/tuesday before.*Teach {plain.id} from all"):
        finetune.finetune(second, own(*TWO_DAYS), "again", 0)


def test_whom_the_base_has_met_is_no_stranger(plain: Bundle) -> None:
    sessions = [(subject, "monday", ("rowing", "skipping")) for subject in ("me", "you")]

    training = {"from": {"id": "older", "training": {"subjects": ["you"]}}}
    met = plain._replace(manifest=plain.manifest._replace(training=training))

    taught = finetune.finetune(met, own(*sessions), "mine", 0)

    measured = taught.manifest.metrics["finetune"]
    assert measured["by"] == "session"
    assert "learned from you before" in measured["warnings"][0]


def test_the_same_seed_gives_the_same_bytes(plain: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    monkeypatch.setattr(finetune, "STEPS", 5)
    monkeypatch.setattr(finetune, "REFUSED", 1.0)

    first, second = (finetune.finetune(plain, own(*TWO_DAYS), "mine", 1) for _ in range(2))

    assert first.digest == second.digest


def test_people_are_left_out_where_two_did_what_is_new(plain: Bundle) -> None:
    labels = plain.manifest.labels
    both = own(*TWO_DAYS, ("you", "monday", ("rowing", "skipping")))
    alone = own(*TWO_DAYS, ("you", "monday", ("rowing", "laying")))

    assert finetune.check_data(both, labels, 128) == "subject"
    assert finetune.check_data(alone, labels, 128) == "session"


@pytest.mark.parametrize(
    ("sessions", "seconds", "says"),
    [
        ((("me", "monday", ("rowing", "laying")),), 40, "all recordings are of one session.*record another session"),
        (
            (("me", "monday/a", ("rowing",)), ("me", "monday/b", ("laying",))),
            40,
            "files in one folder are one session",
        ),
        (
            (("me", "a", ("laying",)), ("me", "b", ("laying",))),
            40,
            "the base knows it: there is nothing to tell apart",
        ),
        (TWO_DAYS, 12, "there are 24 s of .*record at least 30 s"),
        ((("me", "a", ("rowing", "skipping")), ("me", "b", ("rowing",))), 40, "skipping is in one session only"),
    ],
)
def test_what_cannot_support_a_claim_is_refused(
    plain: Bundle, sessions: tuple[tuple[str, str, Sequence[str]], ...], seconds: float, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        finetune.finetune(plain, own(*sessions, seconds=seconds), "mine", 0)


def test_nothing_labelled_is_refused(plain: Bundle, tiny: Data) -> None:
    with pytest.raises(InputError, match="no recording is labelled"):
        finetune.finetune(plain, Data((), tiny.windows, tiny.labels), "mine", 0)


def test_one_new_label_is_enough_with_a_warning(plain: Bundle) -> None:
    data = own(("me", "a", ("rowing",)), ("me", "b", ("rowing",)))

    taught = finetune.finetune(plain, data, "mine", 0)

    assert "rowing is the only label" in taught.manifest.metrics["finetune"]["warnings"][0]


def test_swapped_labels_are_refused_by_file_and_time(plain: Bundle) -> None:
    data = own(*TWO_DAYS, ("me", "wednesday", ("rowing", "skipping", "laying")))
    rowing, skipping = data.labels.index("rowing"), data.labels.index("skipping")
    label = data.recordings[2].label
    swapped = np.select([label == rowing, label == skipping], [skipping, rowing], label)
    recordings = (*data.recordings[:2], replace(data.recordings[2], label=swapped))

    with pytest.raises(
        InputError, match=r"me/wednesday, \d+ s to \d+ s: labelled (skipping, looks like rowing|rowing)"
    ):
        finetune.finetune(plain, replace(data, recordings=recordings[1:]), "mine", 0)


def test_a_copy_under_another_name_is_refused(plain: Bundle) -> None:
    data = own(*TWO_DAYS)
    copied = replace(data, recordings=(data.recordings[0], replace(data.recordings[0], session="tuesday")))

    with pytest.raises(InputError, match="share samples"):
        finetune.finetune(plain, copied, "mine", 0)


def test_another_unit_is_noticed(plain: Bundle) -> None:
    data = own(*TWO_DAYS)
    recordings = tuple(replace(r, values=r.values * np.float32(9.81)) for r in data.recordings)

    with pytest.raises(InputError, match=r"acceleration is \d.* unit declared right"):
        finetune.finetune(plain, replace(data, recordings=recordings), "mine", 0)


def test_another_sensor_is_noticed(plain: Bundle) -> None:
    strict = plain.manifest.calibration._replace(novelty_threshold=1e-9)
    suspicious = plain._replace(manifest=plain.manifest._replace(calibration=strict))

    with pytest.raises(InputError, match=r"of laying, which the base knows, look like nothing that it has seen"):
        finetune.finetune(suspicious, own(*TWO_DAYS), "mine", 0)

    new = own(("me", "a", ("rowing", "skipping")), ("me", "b", ("rowing", "skipping")))
    warnings = finetune.finetune(suspicious, new, "mine", 0).manifest.metrics["finetune"]["warnings"]
    assert "a minute of one that it knows" in warnings[0]


def test_a_rate_beyond_resampling_is_refused(plain: Bundle) -> None:
    data = own(*TWO_DAYS)
    recordings = tuple(replace(r, rate_hz=5.0) for r in data.recordings)

    with pytest.raises(InputError, match=r"recording monday of subject me: .* 5"):
        finetune.finetune(plain, replace(data, recordings=recordings), "mine", 0)


def test_a_base_without_exemplars_needs_recordings(plain: Bundle, tiny: Data) -> None:
    contents = {name: data for name, data in plain.contents.items() if name != finetune.EXEMPLARS}
    forgetful = plain._replace(contents=contents)

    with pytest.raises(InputError, match="--replay"):
        finetune.finetune(forgetful, own(*TWO_DAYS), "mine", 0)
    with pytest.raises(InputError, match=r"have no .*walking.*would forget"):
        finetune.finetune(forgetful, own(*TWO_DAYS), "mine", 0, replay=own(*TWO_DAYS))

    taught = finetune.finetune(forgetful, own(*TWO_DAYS), "mine", 0, replay=tiny)
    assert taught.manifest.metrics["finetune"]["kept"]["after"]["single"] > 0.6


def lesson(label: Sequence[int], at_s: Sequence[float]) -> Lesson:
    recording = Recording("me", "monday", 50.0, np.zeros((0, 6), np.float32), np.zeros(0, np.int64))
    examples = Examples(np.zeros((len(label), 16, 4), np.int8), np.array(label))
    return Lesson(
        recording, examples, examples, np.array(at_s), Scores(np.zeros((0, 2), np.float32), None, np.zeros(0))
    )


def test_contradictions_are_joined_and_timed() -> None:
    taught = lesson([0] * 16 + [1] * 16, np.arange(32.0))
    probability = np.zeros((32, 2))
    probability[:, 0] = [0.9] * 8 + [0.1] * 8 + [0.0] * 15 + [1.0]
    probability[:, 1] = 1 - probability[:, 0]

    share, found = contradicted([taught], probability, ("still", "moving"), 1.0)

    assert share == 8 / 32
    assert found == [Contradiction("me", "monday", 7.5, 15.5, "still", "moving")]
    assert str(found[0]) == "me/monday, 8 s to 16 s: labelled still, looks like moving"


def test_a_stretch_does_not_span_what_is_not_labelled() -> None:
    taught = lesson([0] * 8, [0, 1, 2, 3, 90, 91, 92, 93])
    probability = np.array([[0.0, 1.0]] * 4 + [[1.0, 0.0]] * 4)

    _, found = contradicted([taught], probability, ("still", "moving"), 1.0)

    assert [(c.from_s, c.to_s) for c in found] == [(-0.5, 3.5)]


def test_files_of_one_folder_are_one_occasion() -> None:
    def of(name: str) -> Recording:
        return session("me", name, ("laying",), ("laying",), 1)

    assert occasion(of("monday/a")) == occasion(of("monday/b~2")) == ("me", "monday")
    assert occasion(of("a")) == occasion(of("a~2")) != occasion(of("b"))


def test_every_fold_teaches_what_is_new(plain: Bundle) -> None:
    data = own(*[("me", f"{n}/{a}", (a,)) for n in range(2) for a in ("rowing", "skipping", "standing", "laying")])
    files = replace(data, recordings=tuple(replace(r, session=r.session.replace("/", "-")) for r in data.recordings))
    taught = [lesson([int(r.label[0])], [0.0])._replace(recording=r) for r in files.recordings]
    new = {0, 1}

    for seed in range(5):
        folds = finetune._folds(taught, "session", new, seed)
        for held in folds:
            assert new <= {int(t.scored.label[0]) for fold in folds if fold is not held for t in fold}


def test_from_recordings_to_a_signed_bundle(plain: Bundle, tmp_path: Path) -> None:
    bundles.write(plain, tmp_path / "base")
    data = own(*TWO_DAYS)
    for recording in data.recordings:
        folder = tmp_path / "recordings" / "me" / recording.session
        folder.mkdir(parents=True)
        for k, name in enumerate(data.labels):
            write_csv(folder / f"{name}.csv.gz", recording.values[recording.label == k], name)
    signing.keygen(tmp_path / "release")
    command = ["finetune", "--from", str(tmp_path / "base"), "--data", str(tmp_path / "recordings"),
               "--out", str(tmp_path / "mine"), "--key", str(tmp_path / "release.pem"), "--json"]  # fmt: skip

    result = CliRunner().invoke(cli.app, command, catch_exceptions=False)

    assert result.exit_code == 0, result.output
    read = load_bundle(tmp_path / "mine")
    assert json.loads(result.stdout)["labels"] == list(read.manifest.labels)
    assert len((tmp_path / "mine" / "manifest.sig").read_bytes()) == 64
    text = finetune.text(read)
    assert "own recordings" in text
    assert "exemplars of the base" in text
    card = read.contents["CARD.md"].decode()
    assert "| rowing | 0.67 |" in card
    assert "## Model card: har-tiny" in card
    assert "$" not in card


def write_csv(path: Path, values: np.ndarray, label: str) -> None:
    out = io.StringIO()
    out.write("# format: har-recording/1\n# device: waist\n# acc_unit: g\n# gyro_unit: rad/s\n")
    out.write("t,ax,ay,az,gx,gy,gz,label\n")
    for i, row in enumerate(values):
        out.write(f"{i / RATE_HZ:.2f},{','.join(f'{v:.5f}' for v in row)},{label}\n")
    path.write_bytes(gzip.compress(out.getvalue().encode()))
