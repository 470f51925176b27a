"""`har-agent record` without a sensor: when it ends, what it counts, what it leaves on disk."""

from collections import deque
from collections.abc import Sequence
from pathlib import Path

import pytest
from fakes import FakeClock, cut, even_times, signal

from agent.adapters.recording import RecordingSource
from agent.app.record import Progress, RecordSettings, RecordSummary, Tee, raw_headers, record
from agent.config import Config
from agent.core.decoders.formats import decoder
from agent.core.settings import MqttInSettings, SerialSettings
from agent.errors import ConfigError, SourceUnavailable
from agent.records import BadFrame, Decoded, Dropped, GapReason, Loss, SampleBatch

PORT = SerialSettings(port="/dev/null", rate_hz=50.0, acc_unit="m/s2", axes="-y x z")


class FakeInbox:
    """Sources that deliver a script, one item a poll, each of them a fifth of a second."""

    def __init__(self, clock: FakeClock, script: Sequence[Sequence[Decoded] | Exception]) -> None:
        self._clock = clock
        self._script = deque(script)
        self.started = self.closed = False

    def start(self) -> None:
        self.started = True

    def poll(self, timeout_s: float) -> Sequence[Decoded] | None:
        if not self._script:
            return None
        self._clock.sleep(0.2)
        item = self._script.popleft()
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        self.closed = True

    def problems(self) -> dict[str, str | None]:
        return {"waist-07": None, "wrist": "another program has it open"}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def batches(n: int) -> list[list[Decoded]]:
    return [[b] for b in cut(even_times(n), signal(n), [10], "waist-07")]


def recorded(clock: FakeClock, settings: RecordSettings, script: Sequence, **more) -> tuple[FakeInbox, RecordSummary]:
    inbox = FakeInbox(clock, script)
    return inbox, record(Config(), settings, clock=clock, open_sources=lambda *_: inbox, **more)


def test_everything_that_came_is_recorded_and_counted(tmp_path: Path, clock: FakeClock):
    script = [*batches(200), [BadFrame("waist-07", Loss.CHECKSUM, 3, 4)], [Dropped("waist-07", 7)]]
    script.append([Dropped("waist-07", 0, GapReason.DISCONNECTED)])
    told: list[Progress] = []

    inbox, summary = recorded(clock, RecordSettings(tmp_path), script, on_progress=told.append)

    assert (inbox.started, inbox.closed) == (True, True)
    assert summary.status.samples == 200
    assert summary.bad == {Loss.CHECKSUM: 4}
    assert (summary.dropped, summary.interruptions) == (7, 1)
    assert summary.problems == {"wrist": "another program has it open"}
    assert summary.as_dict()["bad_frames"] == {"bad_checksum": 4}
    assert [round(p.rate_hz) for p in told[:3]] == [50, 50, 50]
    assert told[0].status.samples == 50


def test_it_ends_when_the_duration_is_over_or_when_it_is_asked_to(tmp_path: Path, clock: FakeClock):
    inbox, summary = recorded(clock, RecordSettings(tmp_path, duration_s=2.0), batches(1000))
    assert (inbox.closed, summary.status.ended, summary.status.samples) == (True, "duration", 100)

    asked = iter([False] * 5 + [True] * 100)
    _, summary = recorded(clock, RecordSettings(tmp_path), batches(1000)[:8], stopping=lambda: next(asked))
    # What the sources had already delivered is recorded to its end.
    assert (summary.status.ended, summary.status.samples) == ("stopped", 80)


def test_it_ends_at_the_budget(tmp_path: Path, clock: FakeClock):
    _, summary = recorded(clock, RecordSettings(tmp_path, budget_mb=0.01), batches(10_000))

    assert summary.status.ended == "budget"
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 10_000


def test_what_was_recorded_is_whole_when_a_source_fails(tmp_path: Path, clock: FakeClock):
    with pytest.raises(SourceUnavailable):
        recorded(clock, RecordSettings(tmp_path, gzip=True), [*batches(100), SourceUnavailable("gone")])

    (path,) = tmp_path.iterdir()
    source = RecordingSource(str(path))
    got = []
    while (decoded := source.poll(0)) is not None:
        got += decoded
    source.close()
    assert sum(len(b.t_ns) for b in got if isinstance(b, SampleBatch)) == 100


def test_without_sources_it_says_what_is_missing(tmp_path: Path):
    with pytest.raises(ConfigError, match="no source"):
        record(Config(), RecordSettings(tmp_path / "rec"))

    assert not (tmp_path / "rec").exists()


def test_raw_bytes_are_decoded_again_as_the_device_was_configured(tmp_path: Path, clock: FakeClock):
    config = Config(serial={"waist-07": PORT})
    live = decoder("csv", "waist-07", PORT)
    sent = b"".join(b"0.5,-9.8,%.1f,1,2,3\r\n" % (k / 10) for k in range(100))
    came: list[Decoded] = []

    class Serial(FakeInbox):
        def __init__(self, tee: Tee) -> None:
            super().__init__(clock, [[]] * 50)
            self._tee = tee
            self._at = 0

        def poll(self, timeout_s: float) -> Sequence[Decoded] | None:
            if super().poll(timeout_s) is None:
                return None
            data, self._at = sent[self._at : self._at + 50], self._at + 50
            self._tee("waist-07", data, clock.now_ns)
            came.extend(decoded := live.feed(data, clock.now_ns))
            return decoded

    record(
        config, RecordSettings(tmp_path, raw=True), clock=clock, open_sources=lambda _config, _clock, tee: Serial(tee)
    )

    (path,) = tmp_path.iterdir()
    source = RecordingSource(str(path))
    got: list[Decoded] = []
    while (decoded := source.poll(0)) is not None:
        got += decoded
    source.close()
    assert source.is_raw
    assert source.device == "waist-07"
    assert [plain(b) for b in got] == [plain(b) for b in came]
    assert sum(len(b.t_ns) for b in got if isinstance(b, SampleBatch)) == 100


def test_a_device_that_is_no_port_is_one_of_mqtt():
    headers = raw_headers(Config(serial={"a": PORT}, mqtt_in=MqttInSettings(filter="x/{device}", max_payload=99)))

    assert headers("a").format == "csv"
    assert (headers("b").format, headers("b").max_payload) == ("mqtt", 99)


def plain(item: Decoded) -> tuple:
    assert isinstance(item, SampleBatch)
    return item.stream, item.t_ns.tolist(), item.values.tolist(), item.seq0
