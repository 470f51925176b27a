import gzip
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import (
    COLUMNS,
    HEADER,
    rows_of,
    write_hapt_folder,
    write_mhealth,
    write_motionsense,
    write_npz,
    write_recording,
    write_uci_folder,
)

from agent.core.decoders.recording import Declared
from agent.core.harraw import RawHeader, encode_header
from agent.core.settings import InputSettings
from agent.core.units import STANDARD_GRAVITY
from agent.errors import InputError
from har_export.datasets import hapt, load, merge, mhealth, motionsense, ucihar
from har_export.datasets.records import OWN, UNLABELLED, Data, Recording, at_rate
from har_export.datasets.smartphone import TEST_SUBJECTS

EMPTY_DEFLATED = zlib.compress(b"")[2:-4]


def names_of(data: Data, recording: Recording) -> list[str | None]:
    return [None if i == UNLABELLED else data.labels[i] for i in recording.label.tolist()]


def test_hapt_as_published(tmp_path: Path) -> None:
    values = write_hapt_folder(tmp_path, {1: 1, 2: 30})

    data = load(tmp_path)

    assert data.subjects == ("1", "30")
    first = data.recordings[0]
    assert (first.subject, first.session, first.rate_hz) == ("1", "1", 50.0)
    np.testing.assert_array_equal(first.values, values[1])
    # labels.txt counts from 1 and includes both ends; transitions 7 to 12 are one class, and kept apart in detail.
    expected = np.full(300, UNLABELLED)
    expected[10:100], expected[100:150], expected[150:200] = 4, 6, 3
    np.testing.assert_array_equal(first.label, expected)
    np.testing.assert_array_equal(first.detail, expected)


def test_uci_har_as_published(tmp_path: Path) -> None:
    total = write_uci_folder(tmp_path, {"train": [1, 1, 3], "test": [2, 5]})

    data = load(tmp_path)

    # Acceleration with gravity and angular velocity; subject 2 is kept for the final test wherever it lies.
    np.testing.assert_array_equal(data.windows.values, np.concatenate([total["train"], total["test"][1:]]))
    np.testing.assert_array_equal(data.windows.subject, ["1", "1", "3", "5"])
    np.testing.assert_array_equal(data.windows.label, [0, 1, 2, 1])


@pytest.mark.parametrize("dataset", ["UCI HAR Dataset", "UCI HAR Dataset/.."])
def test_uci_har_is_found_in_its_folder_and_above(tmp_path: Path, dataset: str) -> None:
    write_uci_folder(tmp_path, {"train": [1, 3]})

    assert len(load(tmp_path / dataset).windows.label) == 2


def test_packed_files(tmp_path: Path) -> None:
    write_npz(tmp_path)

    data = load(tmp_path)

    assert [(r.subject, len(r.values)) for r in data.recordings] == [("1", 60), ("3", 40)]
    np.testing.assert_allclose(data.recordings[0].values[1], [0.003, 0.004, 0.005, 0.06, 0.08, 0.1], rtol=1e-6)
    np.testing.assert_array_equal(data.recordings[0].label, np.repeat([UNLABELLED, 5], [10, 50]))
    np.testing.assert_array_equal(data.recordings[1].label, np.full(40, 6))
    np.testing.assert_array_equal(data.recordings[1].detail, np.full(40, 11))
    with np.load(tmp_path / "ucihar_train.npz") as packed:
        np.testing.assert_array_equal(data.windows.values, packed["X"][:, :, [6, 7, 8, 3, 4, 5]])
    np.testing.assert_array_equal(data.windows.label, [0, 1, 5, 2])


def test_a_single_packed_file(tmp_path: Path) -> None:
    write_npz(tmp_path)

    data = load(tmp_path / "ucihar_train.npz")

    assert data.recordings == ()
    assert len(data.windows.label) == 4


@pytest.mark.parametrize("kind", ["U2", "f4", "i8"])
def test_a_test_subject_is_known_however_numbers_are_packed(tmp_path: Path, kind: str) -> None:
    write_npz(tmp_path)
    with np.load(tmp_path / "hapt_train.npz") as packed:
        arrays = dict(packed)
    names = ["02", "03"] if kind == "U2" else [2, 3]
    np.savez(tmp_path / "hapt_train.npz", **{**arrays, "user": np.array(names, kind)})

    assert load(tmp_path / "hapt_train.npz").subjects == ("3",)


def test_every_reader_says_whose_the_data_is(tmp_path: Path) -> None:
    (tmp_path / "phone").mkdir()
    write_npz(tmp_path / "phone")
    write_mhealth(tmp_path / "mhealth", [1])
    write_motionsense(tmp_path / "pocket", ["wlk_7"], [1])
    write_recording(tmp_path / "own" / "anna" / "x.csv", [("rowing", 1)])
    phone, pocket, own = (load(tmp_path / name) for name in ("phone", "pocket", "own"))
    arm = load(tmp_path / "mhealth", place="arm")

    both = merge([phone, own])

    assert {r.origin.citation[:12] for r in phone.recordings} == {"Reyes-Ortiz "}
    assert phone.of(["1"]).windows.origin.name == both.windows.origin.name == ucihar.ORIGIN.name
    assert {r.origin for r in arm.recordings} == {mhealth.ORIGIN}
    assert {r.origin for r in pocket.recordings} == {motionsense.ORIGIN}
    assert [r.origin for r in both.at_rate(25).of(["1", "anna"]).recordings] == [hapt.ORIGIN, OWN]


def test_test_subjects_are_never_returned(tmp_path: Path) -> None:
    write_hapt_folder(tmp_path, dict(enumerate([*map(int, TEST_SUBJECTS), 1], 1)))

    assert load(tmp_path).subjects == ("1",)


@pytest.mark.parametrize(("place", "first"), [("ankle", 5), ("arm", 14)])
def test_mhealth_as_published(tmp_path: Path, place: str, first: int) -> None:
    tables = write_mhealth(tmp_path / "MHEALTHDATASET", [1, 10, 2])

    data = load(tmp_path, place=place)

    assert data.labels == mhealth.LABELS
    assert [r.subject for r in data.recordings] == ["mhealth-1", "mhealth-2", "mhealth-10"]
    recording, table = data.recordings[2], tables[10].astype(np.float64)
    assert recording.rate_hz == 50.0
    np.testing.assert_allclose(recording.values[:, :3], table[:, first : first + 3] / STANDARD_GRAVITY, rtol=1e-6)
    np.testing.assert_allclose(recording.values[:, 3:], np.deg2rad(table[:, first + 3 : first + 6]), rtol=1e-6)
    assert names_of(data, recording) == [None] * 50 + ["walking"] * 50 + ["running"] * 50


def test_motionsense_as_published(tmp_path: Path) -> None:
    tables = write_motionsense(tmp_path / "motion-sense", ["jog_9", "wlk_15", "std_6"], [2, 11])
    (tmp_path / "motion-sense" / "data_subjects_info.csv").write_text("code,weight\n1,102\n")

    data = load(tmp_path)

    assert data.subjects == ("motionsense-2", "motionsense-11")
    assert [r.session for r in data.recordings[:3]] == ["std_6", "jog_9", "wlk_15"]
    walk = data.recordings[2]
    table = tables["wlk_15", 2]
    np.testing.assert_array_equal(walk.values[:, :3], table[:, 3:6] + table[:, 9:])
    np.testing.assert_array_equal(walk.values[:, 3:], table[:, 6:9])
    assert [set(names_of(data, r)) for r in data.recordings[:3]] == [{"standing"}, {"jogging"}, {"walking"}]


def test_own_recordings_of_several_subjects(tmp_path: Path) -> None:
    values, labels = write_recording(tmp_path / "anna" / "monday.csv", [("sitting", 2), ("", 1), ("rowing", 2)])
    write_recording(tmp_path / "anna" / "gym" / "tuesday.csv.gz", [("rowing", 2)], seed=1)
    write_recording(tmp_path / "bert" / "monday.csv", [("walking", 2)], seed=2)
    (tmp_path / "anna" / ".hidden.csv").write_text("left by an editor")

    data = load(tmp_path)

    assert [(r.subject, r.session) for r in data.recordings] == [
        ("anna", "gym/tuesday"),
        ("anna", "monday"),
        ("bert", "monday"),
    ]
    assert data.labels == ("rowing", "sitting", "walking")
    assert data.losses == ()
    monday = data.recordings[1]
    # A source that runs on the grid passes bit for bit.
    np.testing.assert_array_equal(monday.values, values)
    assert names_of(data, monday) == [name or None for name in labels]


@pytest.mark.parametrize("given", [".", "monday.csv"])
def test_own_recordings_without_folders_are_of_one_subject(tmp_path: Path, given: str) -> None:
    write_recording(tmp_path / "anna" / "monday.csv", [("sitting", 2)])

    data = load(tmp_path / "anna" / given)

    assert [(r.subject, r.session) for r in data.recordings] == [("anna", "monday")]


def test_units_and_rate_of_own_recordings_are_declared(tmp_path: Path) -> None:
    rows = ["0,0,9.80665,0,0,180,rowing"] * 60
    path = tmp_path / "anna" / "monday.csv"
    path.parent.mkdir()
    path.write_text("\n".join(["ax,ay,az,gx,gy,gz,label", *rows, ""]))

    for missing in (Declared(), Declared("m/s2"), Declared("m/s2", "deg/s")):
        with pytest.raises(InputError, match=r"monday.csv: .*--declare (acc_unit|gyro_unit|rate_hz)="):
            load(tmp_path, declared=missing)
    data = load(tmp_path, declared=Declared("m/s2", "deg/s", 25.0))

    assert (data.recordings[0].rate_hz, len(data.recordings[0].values)) == (25.0, 60)
    np.testing.assert_allclose(data.recordings[0].values[7], [0, 0, 1, 0, 0, np.pi], rtol=1e-6)


@pytest.mark.parametrize("rate_hz", [25.0, 30.0, 100.0, 104.0])
def test_the_rate_of_own_recordings_comes_from_their_times(tmp_path: Path, rate_hz: float) -> None:
    write_recording(tmp_path / "a" / "x.csv", [("sitting", 2), ("walking", 2)], rate_hz=rate_hz)

    data = load(tmp_path)

    n = round(2 * rate_hz)
    assert data.recordings[0].rate_hz == pytest.approx(rate_hz, rel=1e-5)
    assert names_of(data, data.recordings[0])[: 2 * n - 1] == (["sitting"] * n + ["walking"] * n)[: 2 * n - 1]


@pytest.mark.parametrize("grid_hz", [None, 50.0])
def test_uneven_times_are_resampled_and_labels_stay_with_them(tmp_path: Path, grid_hz: float | None) -> None:
    t = np.cumsum(np.random.default_rng(0).uniform(0.018, 0.0235, 2000))
    labels = ["odd" if int(time) % 2 else "even" for time in t]
    values = np.zeros((len(t), 6))
    values[:, 0], values[:, 2] = t, 1  # a ramp: resampled, it tells the time that it stands for
    (tmp_path / "x.csv").write_text("\n".join([HEADER + COLUMNS, *rows_of(t, values, labels), ""]))

    data = load(tmp_path, grid_hz=grid_hz).at_rate(50.0)

    recording = data.recordings[0]
    taken = recording.values[:, 0]
    np.testing.assert_allclose(np.diff(taken), 0.02, atol=1e-5)
    far = np.abs(taken - np.round(taken)) > 0.05  # further from a change than two samples
    expected = np.where(np.floor(taken) % 2 == 1, "odd", "even")
    assert (np.array(names_of(data, recording))[far] == expected[far]).all()


def test_a_gap_makes_two_recordings_of_one(tmp_path: Path) -> None:
    t = np.arange(300) / 50
    t[100:] += 1.0
    t[200:] -= 90.0  # the clock was set
    values = np.random.default_rng(0).normal(0, 1, (300, 6)).astype(np.float32)
    labels = ["sitting"] * 90 + ["walking"] * 90 + ["sitting"] * 120
    rows = rows_of(t, values, labels)
    rows.insert(50, rows[49])  # a time that does not move forward
    rows[20] = rows[20].replace("sitting", "walking")
    (tmp_path / "x.csv").write_text("\n".join([HEADER + COLUMNS, *rows, ""]))

    data = load(tmp_path)

    labels[20] = "walking"
    assert [r.session for r in data.recordings] == ["x", "x~2", "x~3"]
    for recording, part in zip(data.recordings, (slice(100), slice(100, 200), slice(200, 300)), strict=True):
        np.testing.assert_allclose(recording.values, values[part], atol=1e-5)
        assert names_of(data, recording) == labels[part]
    assert [loss.partition("x.csv: ")[2] for loss in data.losses] == [
        "samples left out because their times do not move forward: 1",
        "interruptions, which no window spans: 2",
    ]


def test_what_is_lost_of_own_recordings_is_said(tmp_path: Path) -> None:
    write_recording(tmp_path / "a" / "x.csv", [("sitting", 4)])
    lines = (tmp_path / "a" / "x.csv").read_text().splitlines()
    lines[30], lines[31] = "1,2,3", lines[31].replace("0.", "zero.", 1)
    (tmp_path / "a" / "x.csv").write_text("\n".join([*lines, "4.0,0.1"]))
    write_recording(tmp_path / "a" / "short.csv", [("sitting", 0.5)], seed=1)

    data = load(tmp_path)

    assert [loss.removeprefix(f"{tmp_path}/a/") for loss in data.losses] == [
        "short.csv: left out, since its rate cannot be told from so few samples: 25",
        "x.csv: rows that cannot be read: 3 (not_a_number 1, torn_last_line 1, wrong_number_of_columns 1), "
        "the first in line 31",
    ]
    assert [(r.session, len(r.values)) for r in data.recordings] == [("x", 200)]
    assert load(tmp_path, max_bad_rows=2).recordings
    with pytest.raises(InputError, match=r"x.csv: rows that cannot be read: 3 .* --declare max_bad_rows="):
        load(tmp_path, max_bad_rows=1)


def test_of_a_recording_that_a_power_cut_ended_the_beginning_is_used(tmp_path: Path) -> None:
    write_recording(tmp_path / "x.csv.gz", [("sitting", 60)])
    whole = (tmp_path / "x.csv.gz").read_bytes()
    (tmp_path / "x.csv.gz").write_bytes(whole[: len(whole) // 2])

    data = load(tmp_path)

    assert 1000 < len(data.recordings[0].values) < 2000
    assert "cut short" in data.losses[0]


def test_axes_are_turned_as_declared(tmp_path: Path) -> None:
    write_npz(tmp_path)
    plain = load(tmp_path)

    data = load(tmp_path, axes="-y x z")

    signs = np.array([-1, 1, 1, -1, 1, 1], np.float32)
    order = [1, 0, 2, 4, 3, 5]
    np.testing.assert_array_equal(data.recordings[0].values, plain.recordings[0].values[:, order] * signs)
    np.testing.assert_array_equal(data.windows.values, plain.windows.values[:, :, order] * signs)


def test_of_keeps_only_the_subjects_asked_for(tiny: Data) -> None:
    some = tiny.of(["3", "7"])

    assert some.subjects == ("3", "7")
    assert {r.subject for r in some.recordings} == {"3", "7"}
    assert set(some.windows.subject.tolist()) == {"3", "7"}


def test_merged_sets_have_the_classes_of_all(tmp_path: Path) -> None:
    write_npz(tmp_path)
    write_recording(tmp_path / "own" / "anna" / "x.csv", [("rowing", 1), ("sitting", 1), ("", 1)])
    smartphone, own = load(tmp_path / "hapt_train.npz"), load(tmp_path / "own")

    data = merge([smartphone, own])

    assert data.labels == (*smartphone.labels, "rowing")
    assert data.subjects == ("1", "3", "anna")
    for recording, before in zip(data.recordings[:2], smartphone.recordings, strict=True):
        np.testing.assert_array_equal(recording.label, before.label)
    assert names_of(data, data.recordings[2]) == ["rowing"] * 50 + ["sitting"] * 50 + [None] * 50
    # Transitions' finer classes would have the number of the new class.
    assert data.details == len(data.labels)


@settings(max_examples=40, deadline=None)
@given(
    rate_hz=st.sampled_from([12.5, 25.0, 30.0, 33.3, 49.7, 50.0, 64.0, 100.0, 104.0, 208.0, 400.0]),
    grid_hz=st.sampled_from([25.0, 50.0, 100.0]),
    bouts=st.lists(st.integers(40, 300), min_size=1, max_size=6),
)
def test_a_resampled_label_is_that_of_the_sample_at_or_before_its_grid_point(
    rate_hz: float, grid_hz: float, bouts: list[int]
) -> None:
    label = np.repeat(np.arange(len(bouts), dtype=np.int64), bouts)
    values = np.zeros((len(label), 6), np.float32)
    # A ramp: resampled, it tells the time that it stands for.
    values[:, 0] = taken = np.arange(len(label)) / rate_hz
    recording = Recording("anna", "x", rate_hz, values, label, label + 1)

    resampled = at_rate(recording, grid_hz)

    t = np.arange(len(resampled.values)) / grid_hz
    assert resampled.rate_hz == grid_hz
    assert t[-1] <= taken[-1] + 1e-6 < t[-1] + 1 / grid_hz + 1e-5
    before = np.floor(t * rate_hz + 1e-3).astype(np.int64)
    np.testing.assert_array_equal(resampled.label, label[before])
    np.testing.assert_array_equal(resampled.detail, label[before] + 1)
    # The average over a faster source delays it by half the difference of the periods.
    delay = max(1 / grid_hz - 1 / rate_hz, 0) / 2 if rate_hz > 1.5 * grid_hz else 0
    np.testing.assert_allclose(resampled.values[10:, 0], t[10:] - delay, atol=1e-3)


def drop_gyro(folder: Path) -> Path:
    write_hapt_folder(folder, {1: 1})
    (folder / "RawData" / "gyro_exp01_user01.txt").unlink()
    return folder


def hapt_with(name: str, text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write_hapt_folder(folder, {1: 1})
        (folder / "RawData" / name).write_text(text)
        return folder

    return make


def too_few_labels(folder: Path) -> Path:
    write_uci_folder(folder, {"train": [1, 3]})
    np.savetxt(folder / "UCI HAR Dataset" / "train" / "y_train.txt", [1])
    return folder


def damaged_npz(folder: Path) -> Path:
    write_npz(folder)
    data = (folder / "hapt_train.npz").read_bytes()
    (folder / "hapt_train.npz").write_bytes(data[: len(data) // 2])
    return folder


def deflated_npz(edit: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write_npz(folder)
        with np.load(folder / "hapt_train.npz") as packed:
            np.savez_compressed(folder / "hapt_train.npz", **dict(packed))
        data = bytearray((folder / "hapt_train.npz").read_bytes())
        # The first member, `acc`: its stream begins after the header of 30 bytes, the name and an extra field.
        at = 30 + int.from_bytes(data[26:28], "little") + int.from_bytes(data[28:30], "little")
        data[at : at + 20] = edit(bytes(data[at : at + 20]))
        (folder / "hapt_train.npz").write_bytes(data)
        return folder

    return make


def foreign_npz(folder: Path) -> Path:
    np.savez(folder / "mnist.npz", x_train=np.zeros(3))
    return folder / "mnist.npz"


def twice(folder: Path) -> Path:
    write_npz(folder)
    write_hapt_folder(folder, {1: 1})
    return folder


def no_total_acc(folder: Path) -> Path:
    np.savez(folder / "u.npz", X=np.zeros((1, 128, 1)), channels=["body_acc_x"], y=[1], subject=[1])
    return folder


def mhealth_with(edit: Callable[[list[str]], None], labels: tuple[int, ...] = (0, 4)) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write_mhealth(folder, [1], labels)
        lines = (folder / "mHealth_subject1.log").read_text().splitlines()
        edit(lines)
        (folder / "mHealth_subject1.log").write_text("\n".join(lines))
        return folder

    return make


def last_column_gone(lines: list[str]) -> None:
    lines[:] = [line.rpartition("\t")[0] for line in lines]


def text_in_row_five(lines: list[str]) -> None:
    lines[4] = lines[4].replace("\t", "\tn/a\t", 1).rpartition("\t")[0]


def nan_in_row_five(lines: list[str]) -> None:
    lines[4] = "nan\t" + lines[4].partition("\t")[2]


def motionsense_with(edit: Callable[[Path], Any], trial: str = "wlk_7") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write_motionsense(folder, [trial], [1])
        edit(folder / "A_DeviceMotion_data" / trial / "sub_1.csv")
        return folder

    return make


def rename_gravity(path: Path) -> None:
    path.write_text(path.read_text().replace("gravity", "down"))


def cut_a_row(path: Path) -> None:
    path.write_text(path.read_text().rpartition(",")[0] + "\n")


def own_with(text: str, name: str = "anna/x.csv") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return folder

    return make


def own(*names: str, label: str = "sitting") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        for seed, name in enumerate(names):
            write_recording(folder / name, [(label, 2)], seed)
        return folder

    return make


def own_beside_hapt(folder: Path) -> Path:
    write_npz(folder)
    return own("anna/x.csv")(folder)


def raw_bytes(folder: Path) -> Path:
    (folder / "x.csv").write_bytes(encode_header(RawHeader("waist", "csv", InputSettings(rate_hz=50))))
    return folder


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder, "no data of a training subject"),
        (lambda folder: folder / "nowhere", "does not exist"),
        (drop_gyro, "gyro_exp01_user01.txt"),
        (hapt_with("gyro_exp01_user01.txt", "0 0 0\n" * 299), "has 300 rows and its gyroscope file has 299"),
        (hapt_with("acc_exp01_user01.txt", "0 0\n" * 300), "has 2 columns, where HAPT has 3"),
        (hapt_with("acc_exp01_user01.txt", ""), "holds no numbers"),
        (hapt_with("labels.txt", "1 1 13 1 100\n"), "labels.txt has the label 13"),
        (too_few_labels, "differ in their number of rows"),
        (damaged_npz, "cannot be read"),
        (deflated_npz(lambda data: b"\xff" * len(data)), "cannot be read"),
        (deflated_npz(lambda data: EMPTY_DEFLATED + data[len(EMPTY_DEFLATED) :]), "cannot be read"),
        (foreign_npz, "no data of a training subject"),
        (twice, "same data set is there twice"),
        (no_total_acc, "lacks the channels total_acc_x"),
        (mhealth_with(last_column_gone), "has 23 columns, where MHEALTH has 24"),
        (mhealth_with(text_in_row_five), "cannot be read: .*'n/a'"),
        (mhealth_with(nan_in_row_five), "no finite number, first in row 5"),
        (mhealth_with(list.clear), "holds no numbers"),
        (mhealth_with(lambda lines: None, (0, 13)), "has the label 13 in row 51, where MHEALTH has 0 to 12"),
        (motionsense_with(rename_gravity), "has no column gravity.x, gravity.y, gravity.z"),
        (motionsense_with(cut_a_row), "sub_1.csv cannot be read"),
        (motionsense_with(lambda path: path.write_text("")), "has no column gravity.x"),
        (motionsense_with(lambda path: None, "run_1"), "run_1 is named after no activity"),
        (own_with("", "x.csv"), "x.csv: it is empty"),
        (own_with("", "x.csv.gz"), "x.csv.gz: it is empty"),
        (own_with("time,x,y,z\n1,2,3,4\n"), "x.csv: its column line lacks ax"),
        (own_with(f"{COLUMNS}\n0,1,2,3,4,5,6,sitting\n"), "x.csv: it does not say its acc_unit"),
        (own_with(HEADER + COLUMNS + "\n" + "".join(f"{i},0,0,1,0,0,0,a\n" for i in range(40))), "come at 1 Hz"),
        (own_with(HEADER + COLUMNS + "\n" + "".join(f"{i},0,0,9,0,0,0,a\n" for i in range(40))), "that of m/s2"),
        (raw_bytes, "raw bytes, which have no labels"),
        (own("anna/x.csv", "y.csv"), "recordings as well as folders of them"),
        (own("x.csv", "x.csv.gz"), "have the same name"),
        (own("x~2.csv"), "take it out of the name"),
        (own("x.csv", label=""), "nothing in .* is labelled"),
        (own("x.csv", label="unknown"), "has the label 'unknown'"),
        (own_beside_hapt, "holds HAPT and UCI HAR, recordings of the agent"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_reason(tmp_path: Path, make: Any, says: str) -> None:
    path = make(tmp_path)

    with pytest.raises(InputError, match=says):
        load(path, place="arm" if (tmp_path / "mHealth_subject1.log").exists() else None)


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        ({"place": "arm"}, "a place is declared"),
        ({"declared": Declared("g")}, "units or a rate are declared"),
        ({"axes": "x y y"}, "axes must name x, y and z once each"),
    ],
)
def test_a_declaration_that_does_not_apply_is_refused(tmp_path: Path, declared: dict[str, Any], says: str) -> None:
    write_npz(tmp_path)

    with pytest.raises(InputError, match=says):
        load(tmp_path, **declared)


@pytest.mark.parametrize(
    ("place", "says"),
    [(None, "--declare place=ankle or place=arm$"), ("knee", "not 'knee'"), ("chest", "chest has no gyroscope")],
)
def test_the_place_of_mhealth_is_not_guessed(tmp_path: Path, place: str | None, says: str) -> None:
    write_mhealth(tmp_path, [1])

    with pytest.raises(InputError, match=says):
        load(tmp_path, place=place)
