import json
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from agent.adapters.bundle import find_bundle, load_bundle
from agent.adapters.onnx_model import OrtModel
from agent.core.manifest import Calibration
from agent.core.normalise import Normalisation
from agent.errors import InputError
from agent.records import Scores
from har_export import evaluate, report
from har_export.cli import main
from har_export.datasets import load
from har_export.datasets.records import UNLABELLED, Data, Recording, Windows, no_windows

LABELS = ("resting", "walking", "transition")
HOP = 64


class Reader:
    """A model that reads its answer off a window: the label off the middle of ax, the novelty off that of gx."""

    labels = LABELS
    id = "reader@00000000"
    context_windows = 0

    def __init__(self, **training: object) -> None:
        manifest = load_bundle(find_bundle("har-base")).manifest
        self.bundle = SimpleNamespace(
            manifest=manifest._replace(
                labels=LABELS,
                normalisation=Normalisation(np.zeros(6, np.float32), np.ones(6, np.float32)),
                calibration=Calibration(temperature=1.0, novelty_threshold=0.5),
                training=training,
                context=None,
            )
        )

    def infer(self, windows: np.ndarray) -> Scores:
        middle = windows[:, windows.shape[1] // 2]
        label = np.clip(np.round(middle[:, 0]), 0, 2).astype(int)
        return Scores(
            5 * np.eye(3, dtype=np.float32)[label],
            np.zeros((len(windows), 64), np.int8),
            np.abs(middle[:, 3]).astype(np.float64),
        )


def recording(
    truth: list[int], read: list[int], subject: str = "1", session: str = "a", novelty: float = 0.1, rate_hz: float = 50
) -> Recording:
    """One whose windows have these labels, and are read so. The labels are of stretches of a hop, from the second."""
    hop = round(HOP * rate_hz / 50)
    # Less one sample: the last stretch is the middle of no window.
    label = np.repeat(np.array([UNLABELLED, *truth, UNLABELLED]), hop)[:-1]
    values = np.zeros((len(label), 6), np.float32)
    values[:, 0] = np.repeat([0, *read, 0], hop)[:-1]
    values[:, 3] = novelty
    return Recording(subject, session, rate_hz, values, label)


def data(*recordings: Recording, labels: tuple[str, ...] = LABELS, windows: Windows | None = None) -> Data:
    return Data(recordings, windows or no_windows(), labels)


def ready_cut(truth: list[int], read: list[int], length: int = 128) -> Windows:
    values = np.zeros((len(truth), length, 6), np.float32)
    values[:, :, 0] = np.array(read)[:, None]
    return Windows(values, np.array(truth), np.full(len(truth), "1"))


@pytest.fixture
def model() -> OrtModel:
    return Reader()  # type: ignore[return-value]


def test_every_window_is_scored_by_the_label_of_its_middle(model: OrtModel) -> None:
    truth, read = [0, 0, UNLABELLED, 1, 2, 1], [0, 1, 1, 1, 1, 2]

    rows = evaluate.score(model, data(recording(truth, read), recording([1], [1], "2", "b"))).streaming

    assert rows.truth.tolist() == [*truth, 1]
    assert rows.predicted.tolist() == [*read, 1]
    assert rows.subject.tolist() == ["1"] * 6 + ["2"]
    assert rows.session.tolist() == ["a"] * 6 + ["b"]
    assert rows.t1_s.tolist() == pytest.approx([2.56 + 1.28 * i for i in range(6)] + [2.56])
    assert rows.probabilities.argmax(axis=1).tolist() == rows.predicted.tolist()
    assert rows.probabilities.sum(axis=1) == pytest.approx(1)


def test_decided_is_what_the_pipeline_decides(model: OrtModel) -> None:
    seen = recording([0] * 5, [0, 0, 1, 1, 1])
    seen.values[7 * HOP // 2 :, 3] = 9.0

    rows = evaluate.score(model, data(seen)).streaming

    assert rows.decided.tolist() == [0, 0, 1, 1, evaluate.UNKNOWN]
    assert rows.known.tolist() == [True, True, True, False, False]
    assert rows.novelty.tolist() == pytest.approx([0.1, 0.1, 0.1, 9.0, 9.0])


def test_a_recording_at_another_rate_has_the_same_labels(model: OrtModel) -> None:
    truth = [0] * 10 + [1] * 10 + [0] * 10

    rows = evaluate.score(model, data(recording(truth, truth, rate_hz=100))).streaming

    assert abs(len(rows.truth) - len(truth)) <= 1
    assert (rows.truth == rows.predicted).mean() > 0.9


def test_a_rate_that_the_agent_refuses_is_refused(model: OrtModel) -> None:
    slow = recording([0] * 20, [0] * 20, rate_hz=5)

    with pytest.raises(InputError, match="recording a of subject 1: its samples come at 5 Hz"):
        evaluate.score(model, data(slow))


def test_ready_cut_windows_stand_alone(model: OrtModel) -> None:
    scored = evaluate.score(model, data(windows=ready_cut([0, 1, 1], [0, 1, 0])))

    assert len(scored.streaming.truth) == 0
    assert scored.filtered.truth.tolist() == [0, 1, 1]
    assert scored.filtered.predicted.tolist() == scored.filtered.decided.tolist() == [0, 1, 0]


def test_ready_cut_windows_of_another_length_are_refused(model: OrtModel) -> None:
    with pytest.raises(InputError, match=r"windows of 128 samples at 50 Hz.*of 100 at 50 Hz; give recordings only"):
        evaluate.score(model, data(windows=ready_cut([0], [0], 100)))


def test_labels_are_matched_by_name(model: OrtModel) -> None:
    theirs = ("walking", "resting", "jogging")

    scored = evaluate.score(model, data(recording([0, 1, 2], [1, 0, 1]), labels=theirs))

    assert scored.labels == ("resting", "walking", "transition", "jogging")
    assert scored.streaming.truth.tolist() == [1, 0, 3]
    assert scored.streaming.predicted.tolist() == [1, 0, 1]


def test_labels_can_be_mapped(model: OrtModel) -> None:
    theirs = data(recording([0, 1], [1, 1]), labels=("jogging", "strolling"))

    mapped = evaluate.match_labels(LABELS, theirs, {"jogging": "walking", "strolling": "walking"})

    assert mapped.labels == LABELS
    assert evaluate.score(model, mapped).streaming.truth.tolist() == [1, 1]
    with pytest.raises(InputError, match="no label 'running' to map; it has jogging, strolling"):
        evaluate.match_labels(LABELS, theirs, {"running": "walking"})
    with pytest.raises(InputError, match="'jogging' cannot mean 'running': the bundle's labels are resting, walking"):
        evaluate.match_labels(LABELS, theirs, {"jogging": "running"})
    with pytest.raises(InputError, match="no label of the data"):
        evaluate.score(model, theirs)


def test_noise_is_that_of_the_sensor_and_not_slow_movement() -> None:
    rng = np.random.default_rng(0)
    noise = np.array([0.001, 0.002, 0.003, 0.01, 0.02, 0.03])
    windows = rng.normal(size=(50, 128, 6)) * noise
    windows += 0.02 * np.sin(2 * np.pi * 0.3 * np.arange(128) / 50)[:, None]

    found = evaluate.noise_of(windows.astype(np.float32))

    assert np.median(found, axis=0) == pytest.approx(noise, rel=0.3)


def test_a_sensor_at_rest_feels_gravity_and_the_noise_of_the_stillest_windows() -> None:
    noise = np.full((200, 6), 0.5)
    noise[:10] = [0.001, 0.001, 0.001, 0.01, 0.01, 0.01]

    windows = evaluate.at_rest(noise, 128)

    assert windows.shape == (evaluate.AT_REST, 128, 6)
    down = windows[:, :, :3].mean(axis=1)
    assert np.linalg.norm(down, axis=1) == pytest.approx(1, abs=0.01)
    assert np.abs(down.mean(axis=0)).max() < 0.1
    assert windows.std(axis=1).mean(axis=0) == pytest.approx(noise[0], rel=0.05)


def test_the_figures_are_those_of_the_windows(model: OrtModel) -> None:
    first = recording([0, 0, 0, 0, 2, 1, 1, 1, 1, 1], [0, 0, 1, 0, 2, 0, 1, 1, 1, 1])
    second = recording([1, 1, UNLABELLED, 0], [1, 2, 0, 0], "2", "b", novelty=0.6)

    result = evaluate.run(model, data(first, second, windows=ready_cut([0, 1, 1], [0, 1, 0])), "here")

    json.dumps(result, allow_nan=False)
    assert (result["v"], result["model"], result["data"]["source"]) == (1, model.id, "here")
    figures = result["streaming"]
    assert (figures["windows"], figures["labelled_windows"], figures["activity_windows"]) == (14, 13, 12)
    assert figures["accuracy"] == pytest.approx(9 / 12)
    assert figures["decided_accuracy"] == pytest.approx(7 / 12)
    assert figures["transition_recall"] == 1.0
    assert figures["unknown_share"] == pytest.approx(3 / 13)
    assert figures["confusion"]["walking"] == {"resting": 1, "walking": 5, "transition": 1}
    assert figures["classes"]["resting"]["recall"] == pytest.approx(4 / 5)
    assert figures["classes"]["transition"]["precision"] == 0.5
    resting, walking = 2 * 4 / (5 + 5), 2 * 5 / (7 + 6)
    assert figures["macro_f1"] == pytest.approx((resting + walking) / 2)
    assert figures["subjects"]["1"] == {"windows": 9, "accuracy": 7 / 9, "decided_accuracy": 7 / 9}
    assert figures["subjects"]["2"] == {"windows": 3, "accuracy": 2 / 3, "decided_accuracy": 0.0}
    confidence = np.exp(5) / (np.exp(5) + 2)
    assert figures["calibration"]["ece"] == pytest.approx(confidence - 10 / 13)
    assert figures["calibration"]["negative_log_likelihood"] == pytest.approx(
        (10 * -np.log(confidence) + 3 * -np.log((1 - confidence) / 2)) / 13
    )
    worst = figures["worst_recording"]
    assert (worst["subject"], worst["session"], worst["decided_accuracy"]) == ("2", "b", 0.0)
    assert [label for _, _, label in worst["truth"]] == [None, "walking", None, "resting", None]
    assert worst["decided"] == [[2.56, pytest.approx(7.66), "unknown"]]
    ready = result["filtered"]
    assert (ready["windows"], ready["accuracy"], ready["transition_recall"]) == (3, pytest.approx(2 / 3), None)
    assert "onsets" not in ready


def test_onsets_of_activities_that_last_two_windows_are_measured(model: OrtModel) -> None:
    truth = [0] * 6 + [2] + [1] * 6 + [0] * 2
    late = recording(truth, [0] * 8 + [1] * 7)

    onsets = evaluate.run(model, data(late), "here")["streaming"]["onsets"]

    # Walking begins with the ninth hop; the window that first decides it has its middle in the tenth, and ends with it.
    assert (onsets["shortest_s"], onsets["count"], onsets["missed"]) == (5.12, 1, 0)
    assert onsets["delay_median_s"] == pytest.approx(2 * 1.28)
    assert onsets["delays_s"] == [pytest.approx(2.56)]


def test_labels_that_the_model_does_not_know_are_errors_unless_they_are_meant_to_be_novel(model: OrtModel) -> None:
    theirs = (*LABELS, "jogging")
    seen = data(
        recording([0, 1, 1, 0], [0, 1, 1, 0]), recording([3, 3, 3, 3], [1, 1, 1, 1], "2", "b", novelty=0.6),
        labels=theirs,
    )  # fmt: skip

    strict, novel = evaluate.run(model, seen, "here"), evaluate.run(model, seen, "here", novel=["jogging"])

    assert (strict["unknown_labels"], strict["streaming"]["accuracy"]) == (["jogging"], 0.5)
    assert strict["streaming"]["confusion"]["jogging"] == {"resting": 0, "walking": 4, "transition": 0}
    assert strict["streaming"]["calibration"]["windows"] == 4
    assert (novel["unknown_labels"], novel["novel_labels"]) == ([], ["jogging"])
    assert novel["streaming"]["accuracy"] == 1.0
    known, off, jogging = novel["streaming"]["novelty"]["groups"]
    assert (known["name"], known["windows"], known["unknown_share"], known["auroc"]) == ("known", 4, 0.0, None)
    assert (jogging["name"], jogging["windows"], jogging["unknown_share"], jogging["auroc"]) == ("jogging", 4, 1.0, 1.0)
    # Its noise is that of recordings that have none.
    assert (off["name"], off["windows"], off["auroc"]) == (evaluate.SENSOR_OFF, evaluate.AT_REST, 0.0)
    assert sum(known["shares"]) == sum(jogging["shares"]) == pytest.approx(1)


def test_what_cannot_be_novel_is_refused(model: OrtModel) -> None:
    seen = data(recording([0], [0]))

    with pytest.raises(InputError, match="'walking' is not novel: the bundle was trained on it"):
        evaluate.run(model, seen, "here", novel=["walking"])
    with pytest.raises(InputError, match="no label 'jogging' to take for novel; it has resting, walking, transition"):
        evaluate.run(model, seen, "here", novel=["jogging"])


def test_data_without_labels_is_refused(model: OrtModel) -> None:
    with pytest.raises(InputError, match="here has no window of a labelled activity"):
        evaluate.run(model, data(recording([UNLABELLED, 2], [0, 1])), "here")
    with pytest.raises(InputError, match="here has no window of a labelled activity"):
        evaluate.run(model, data(recording([], [])), "here")


def test_people_whom_the_bundle_names_in_its_training_are_pointed_out() -> None:
    seen = data(recording([0], [0], "1"), recording([0], [0], "7"))

    result = evaluate.run(Reader(subjects=[1, 3]), seen, "here")  # type: ignore[arg-type]

    assert result["subjects_named_in_training"] == ["1"]
    assert "names 1 of the 2 subjects among those it was trained on" in report.text(result)


def lines(result: dict[str, object]) -> list[str]:
    """The table, however its columns are aligned."""
    return [" ".join(line.split()) for line in report.text(result).splitlines()]


class Page(HTMLParser):
    """Collects what could be wrong with a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag != "meta":
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "xlink:href"):
                self.links.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_stands_alone() -> None:
    odd = (*LABELS, "<b>$x_1$ & co")
    seen = data(
        recording([0] * 5 + [2] + [1] * 5, [0] * 4 + [1, 2] + [1] * 5), recording([3] * 3, [1] * 3, "2", "<i>"),
        labels=odd, windows=ready_cut([0, 1, 1], [0, 1, 0]),
    )  # fmt: skip
    result = evaluate.run(Reader(), seen, "a & b", novel=odd[3:])  # type: ignore[arg-type]

    text = report.render(json.loads(json.dumps(result)))
    page = Page(text)

    assert page.open == []
    assert len(set(page.ids)) == len(page.ids)
    assert all(link.startswith("#") for link in page.links)
    assert page.tags.count("svg") == 10
    assert not {"script", "link", "img", "b>", "i"} & set(page.tags)
    assert "<?xml" not in text
    assert "a &amp; b" in text
    assert "90.00 %" in text


def test_a_report_of_little_has_no_figures_to_show(model: OrtModel) -> None:
    one = evaluate.run(model, data(recording([0], [1], novelty=0.9)), "here")
    ready = evaluate.run(model, data(windows=ready_cut([0], [0])), "here")

    assert Page(report.render(one)).tags.count("svg") == 6
    assert Page(report.render(ready)).tags.count("svg") == 4
    assert "onsets, of which missed 0, 0" in lines(one)
    assert "onsets, of which missed -" in lines(ready)


def test_the_table_has_a_column_a_kind_of_window(model: OrtModel) -> None:
    seen = data(recording([0, 0, 1, 1], [0, 0, 1, 0]), windows=ready_cut([0, 1, 1], [0, 1, 0]))

    result = evaluate.run(model, seen, "here")

    assert lines(result)[0] == "reader@00000000 on here (1 subject; 1 recording, 0.00 h; 3 ready-cut windows)"
    assert "accuracy, single window 75.00 % 66.67 %" in lines(result)
    assert "walking 100.0 % 50.0 % 66.7 % 2" in lines(result)
    assert "1 75.0 % 75.0 % 4" in lines(result)


def run_command(
    *arguments: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["har-export", "evaluate", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    captured = capsys.readouterr()
    return int(exit_.value.code or 0), captured.out + captured.err


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A minute of somebody who lies still, in HAPT's packed layout."""
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "hapt.npz", acc=rng.normal([1000, 0, 0], 3, (3000, 3)).astype(np.int16), acc_scale=0.001,
        gyro=rng.normal(0, 3, (3000, 3)).astype(np.int16), gyro_scale=0.001, y=np.full(3000, 5), offset=[0, 3000],
        exp=[1], user=[1],
    )  # fmt: skip
    return tmp_path


def test_the_command_prints_a_table_or_json_and_writes_a_report(
    packed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    html = packed / "report.html"

    status, text = run_command(
        "har-base", "--data", str(packed), "--html", str(html), capsys=capsys, monkeypatch=monkeypatch
    )
    _, raw = run_command("har-base", "--data", str(packed), "--json", capsys=capsys, monkeypatch=monkeypatch)

    assert status == 0
    assert "windows of activities" in text
    assert json.loads(raw)["streaming"]["activity_windows"] == 45
    assert html.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_command_says_what_cannot_be_used(
    packed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluated(*arguments: str) -> tuple[int, str]:
        return run_command(*arguments, "--data", str(packed), capsys=capsys, monkeypatch=monkeypatch)

    status, text = evaluated(str(packed))
    assert (status, text.startswith("har-export: ")) == (78, True)
    status, text = evaluated("har-base", "--novel", "jogging")
    assert (status, "no label 'jogging'" in text) == (65, True)
    status, text = evaluated("har-base", "--map", "jogging")
    assert (status, "such as jogging=walking" in text) == (2, True)


@pytest.mark.data
def test_the_shipped_bundle_knows_whom_it_was_trained_on(recorded_data: Path) -> None:
    everything = load(recorded_data)
    some = everything.of(everything.subjects[:3])
    model = OrtModel(load_bundle(find_bundle("har-base")))

    result = evaluate.run(model, some, "the recordings")

    assert result["subjects_named_in_training"] == list(some.subjects)
    assert result["streaming"]["accuracy"] > 0.95
    assert result["filtered"]["accuracy"] > 0.95
    assert result["streaming"]["onsets"]["delay_median_s"] < 2.5
