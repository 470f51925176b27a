"""The recorder: what it writes replays, its limits hold, and nothing of it disturbs whoever feeds it."""

import gzip
import resource
import shutil
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeClock, cut, even_times, signal

from agent.adapters.recorder import CSV, CSV_GZ, MAX_PENDING, RAW, Recorder, safe_name
from agent.adapters.recording import RecordingSource
from agent.core.harraw import RawHeader, RawRecord, RecordReader, decode_header
from agent.core.settings import InputSettings
from agent.errors import OutputError
from agent.records import SampleBatch, Turn

SETTINGS = InputSettings(rate_hz=50.0)


def headers(device: str) -> RawHeader:
    return RawHeader(device, "csv", SETTINGS)


def turn(*batches: SampleBatch) -> Turn:
    return Turn(batches, (), (), {})


def batches(n: int, device: str = "waist-07") -> list[SampleBatch]:
    return cut(even_times(n, t0_s=3.0), signal(n), [10], device)


def feed(recorder: Recorder, clock: FakeClock, items: list[SampleBatch]) -> None:
    for batch in items:
        recorder.write(turn(batch))
        clock.sleep(0.2)


def replayed(path: Path) -> tuple[str, np.ndarray, np.ndarray, list[str | None]]:
    source = RecordingSource(str(path))
    got: list[SampleBatch] = []
    while (decoded := source.poll(0)) is not None:
        assert all(isinstance(d, SampleBatch) for d in decoded)
        got += [d for d in decoded if isinstance(d, SampleBatch)]
    source.close()
    labels = [change.label for b in got for change in b.truth]
    return source.device, np.concatenate([b.t_ns for b in got]), np.concatenate([b.values for b in got]), labels


def records(path: Path) -> tuple[RawHeader, list]:
    line, _, rest = path.read_bytes().partition(b"\n")
    reader = RecordReader()
    return decode_header(line + b"\n"), reader.feed(rest)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.mark.parametrize("kind", [CSV, CSV_GZ])
def test_what_is_recorded_replays(kind: str, tmp_path: Path, clock: FakeClock):
    recorder = Recorder(tmp_path / "new" / "rec", kind, clock, label="walking")
    recorder.start()
    feed(recorder, clock, batches(100))
    recorder.close()

    (path,) = (tmp_path / "new" / "rec").iterdir()
    device, t_ns, values, labels = replayed(path)
    assert path.name == f"waist-07-20231114T221321Z-1.{kind}"
    assert device == "waist-07"
    assert t_ns.tolist() == even_times(100, t0_s=3.0).tolist()
    assert np.abs(values - signal(100)).max() < 1e-5
    assert labels == ["walking"]
    status = recorder.status()
    assert (status.samples, status.devices, status.files, status.ended) == (100, 1, 1, "stopped")
    assert status.size_bytes == path.stat().st_size
    assert status.names == (path.name,)
    text = gzip.decompress(path.read_bytes()) if kind == CSV_GZ else path.read_bytes()
    assert b"# rate_hz: 50\n" in text


def test_nothing_is_recorded_before_it_is_started_nor_after_it_was_stopped(tmp_path: Path, clock: FakeClock):
    recorder = Recorder(tmp_path, CSV, clock)
    feed(recorder, clock, batches(20))
    recorder.start()
    recorder.stop()
    feed(recorder, clock, batches(20))
    recorder.close()

    assert list(tmp_path.iterdir()) == []


def test_it_stops_by_itself_and_can_be_started_again(tmp_path: Path, clock: FakeClock):
    recorder = Recorder(tmp_path, CSV, clock)
    recorder.start(1.0)
    assert recorder.status().left_s == 1.0
    feed(recorder, clock, batches(100))
    first = recorder.status()
    assert (first.active, first.ended, first.samples, first.left_s) == (False, "duration", 60, None)

    recorder.start(2.0)
    assert recorder.status().samples == 0
    recorder.start(9.0)
    assert recorder.status().left_s == 9.0
    feed(recorder, clock, batches(20))
    recorder.close()
    assert recorder.status().samples == 20
    assert len(list(tmp_path.iterdir())) == 2


def test_a_second_passes_at_most_before_it_is_on_disk(tmp_path: Path, clock: FakeClock):
    recorder = Recorder(tmp_path, CSV_GZ, clock)
    recorder.start()
    feed(recorder, clock, batches(60))
    (path,) = tmp_path.iterdir()

    # As after a kill: the file has no end, and what was flushed can be read all the same.
    assert zlib.decompressobj(31).decompress(path.read_bytes()).count(b"\n") >= 50
    recorder.close()


def test_files_are_rotated_by_size_and_each_replays(tmp_path: Path, clock: FakeClock):
    recorder = Recorder(tmp_path, CSV, clock, rotate_mb=0.01)
    recorder.start()
    feed(recorder, clock, batches(1000))
    recorder.close()

    files = sorted(tmp_path.iterdir(), key=lambda p: int(p.stem.rpartition("-")[2]))
    assert len(files) > 3
    assert [p.stat().st_size <= 10_000 for p in files] == [True] * len(files)
    assert np.concatenate([replayed(p)[1] for p in files]).tolist() == even_times(1000, t0_s=3.0).tolist()


def test_devices_have_files_of_their_own_whatever_they_are_called(tmp_path: Path, clock: FakeClock):
    names = ["a/b", "a_b", "../../etc/passwd", "", ".", "-rf", "x" * 500, "line\nbreak", "esc\x1b[2J", "ü", "\ud800"]
    recorder = Recorder(tmp_path, CSV, clock)
    recorder.start()
    feed(recorder, clock, [b for name in names for b in batches(10, name)])
    recorder.close()

    files = list(tmp_path.iterdir())
    assert len(files) == len(names)
    assert all(p.name.isascii() and len(p.name) < 100 and p.name[0] not in "-." for p in files)
    assert {replayed(p)[0] for p in files} == {
        "a/b", "a_b", "../../etc/passwd", "device", ".", "-rf", "x" * 500, "line_break", "esc_[2J", "ü", "_",
    }  # fmt: skip
    assert safe_name("..") == "device"


def test_it_stops_at_the_budget_of_the_folder_and_deletes_nothing(tmp_path: Path, clock: FakeClock):
    old = tmp_path / "old.csv"
    old.write_bytes(bytes(15_000))
    recorder = Recorder(tmp_path, CSV, clock, rotate_mb=0.005, budget_mb=0.03)
    recorder.start()
    feed(recorder, clock, batches(1000))

    status = recorder.status()
    assert (status.active, status.ended) == (False, "budget")
    assert "budget of 0.03 MB" in (recorder.problem or "")
    assert old.exists()
    assert 25_000 < sum(p.stat().st_size for p in tmp_path.iterdir()) <= 30_000

    old.write_bytes(bytes(31_000))
    with pytest.raises(OutputError, match="raise --budget-mb"):
        recorder.start()


def test_a_disk_that_refuses_ends_it_and_says_so(tmp_path: Path, clock: FakeClock):
    recorder = Recorder(tmp_path / "rec", CSV, clock)
    recorder.start()
    feed(recorder, clock, batches(60))
    shutil.rmtree(tmp_path / "rec")
    (tmp_path / "rec").write_text("in the way")
    feed(recorder, clock, batches(60))

    assert recorder.status().ended == "problem"
    assert "stopped" in (recorder.problem or "")
    with pytest.raises(OutputError, match="rec"):
        recorder.start()


@contextmanager
def small_files() -> Iterator[None]:
    """No file of this process can be larger than 4 kB: the disk refuses as a full one does.

    Not a fixture: pytest's own output may be a file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_it_and_what_was_written_replays(tmp_path: Path, clock: FakeClock):
    recorder = Recorder(tmp_path, RAW, clock, headers)
    recorder.start(joins=False)
    with small_files():
        for k in range(100):
            recorder.raw("a", bytes(100), k)
            clock.sleep(1.0)
            recorder.tick()

    (path,) = tmp_path.iterdir()
    assert recorder.status().ended == "problem"
    assert records(path)[1] == [RawRecord(k, bytes(100)) for k in range(len(records(path)[1]))]
    assert len(records(path)[1]) > 25


def test_a_file_that_was_taken_away_is_followed_by_a_new_one(tmp_path: Path, clock: FakeClock):
    recorder = Recorder(tmp_path, CSV, clock)
    recorder.start()
    feed(recorder, clock, batches(60))
    for path in tmp_path.iterdir():
        path.unlink()
    feed(recorder, clock, batches(60))
    recorder.close()

    (path,) = tmp_path.iterdir()
    assert len(replayed(path)[1]) > 50


def test_bytes_are_kept_as_they_came_with_their_times(tmp_path: Path, clock: FakeClock):
    recorder = Recorder(tmp_path, RAW, clock, headers, rotate_mb=0.002)
    recorder.start(joins=False)
    sent = [RawRecord(1000 + 7 * k, None if k % 10 == 9 else b"\xff\x00" * k) for k in range(60)]
    for record in sent:
        recorder.raw("pty/1", record.data, record.t_rx_ns)
        clock.sleep(0.4)
        recorder.tick()
    recorder.close()

    files = sorted(tmp_path.iterdir(), key=lambda p: int(p.stem.rpartition("-")[2]))
    stored = [records(p) for p in files]
    assert len(files) > 1
    assert {p.suffix for p in files} == {".harraw"}
    got = [[RawRecord(h.t0_ns + r.t_rx_ns, r.data) for r in items] for h, items in stored]
    # A file that another one went before may begin inside a line, and says so.
    assert [items[0].data for items in got[1:]] == [None] * (len(files) - 1)
    flat = [r for items in got for r in items]
    assert [r for r in flat if r.data is not None] == [r for r in sent if r.data is not None]
    assert {r.t_rx_ns for r in flat if r.data is None} >= {r.t_rx_ns for r in sent if r.data is None}
    assert {(h.device, h.format, h.settings) for h, _ in stored} == {("pty/1", "csv", SETTINGS)}


def test_a_recording_that_joins_a_running_stream_says_that_it_may_begin_inside_a_line(tmp_path: Path, clock: FakeClock):
    recorder = Recorder(tmp_path, RAW, clock, headers)
    recorder.start()
    recorder.raw("a", b"x", 5)
    recorder.raw("b", None, 5)
    recorder.raw("b", b"x", 6)
    recorder.close()

    got = {records(p)[0].device: [r.data for r in records(p)[1]] for p in tmp_path.iterdir()}
    assert got == {"a": [None, b"x"], "b": [None, b"x"]}


def test_readers_are_never_held_up_and_what_is_let_go_is_counted_and_cut_out(tmp_path: Path, clock: FakeClock):
    recorder = Recorder(tmp_path, RAW, clock, headers)
    recorder.start(joins=False)
    chunk = bytes(1 << 20)
    for k in range(20):
        recorder.raw("a", chunk, k)
    recorder.tick()
    recorder.raw("a", b"after", 99)
    recorder.close()

    (path,) = tmp_path.iterdir()
    kept = MAX_PENDING // len(chunk) - 1
    assert recorder.status().lost == (20 - kept) * len(chunk)
    assert records(path)[1][kept:] == [RawRecord(99, None), RawRecord(99, b"after")]


def test_many_threads_may_deliver_bytes(tmp_path: Path, clock: FakeClock):
    recorder = Recorder(tmp_path, RAW, clock, headers)
    recorder.start(joins=False)

    def deliver(name: str) -> None:
        for k in range(500):
            recorder.raw(name, f"{name}{k}".encode(), k)

    threads = [threading.Thread(target=deliver, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    while any(t.is_alive() for t in threads):
        clock.sleep(1.0)
        recorder.tick()
    for thread in threads:
        thread.join()
    recorder.close()

    for name in "abcd":
        (path,) = tmp_path.glob(f"{name}-*")
        assert [r.data for r in records(path)[1]] == [f"{name}{k}".encode() for k in range(500)]


def test_a_kind_that_is_none_is_refused(tmp_path: Path, clock: FakeClock):
    with pytest.raises(ValueError, match="kind"):
        Recorder(tmp_path, "wav", clock)
    with pytest.raises(ValueError, match="headers"):
        Recorder(tmp_path, RAW, clock)
