"""A sensor on a real terminal: a pty whose other end is this test."""

import errno
import os
import random
import time
import tty
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from fakes import signal

from agent.adapters import serial_port
from agent.adapters.clock import SystemClock
from agent.adapters.serial_port import SerialPort, list_ports
from agent.core.backoff import Backoff, BackoffSettings
from agent.core.decoders.formats import decoder
from agent.core.decoders.har1 import cobs_encode, encode_har1, to_counts
from agent.core.settings import SerialSettings
from agent.errors import SourceUnavailable
from agent.records import BadFrame, Dropped, Loss, SampleBatch
from agent.runtime.queues import BoundedQueue, Overflow
from agent.runtime.reader import ReaderThread
from agent.runtime.supervisor import Reopening

LINE = b"1,2,3,4,5,6\r\n"
DEADLINE_S = 20


class Sensor:
    """The other end of a port; `link` is a name that lasts, as in by-id."""

    def __init__(self, link: Path) -> None:
        self.link = link
        self.master = -1
        self.plug()

    def plug(self) -> None:
        self.master, slave = os.openpty()
        tty.setraw(slave)
        self.link.unlink(missing_ok=True)
        self.link.symlink_to(os.ttyname(slave))
        os.close(slave)
        os.set_blocking(self.master, False)

    def unplug(self) -> None:
        if self.master >= 0:
            os.close(self.master)
            self.link.unlink()
            self.master = -1

    def write(self, data: bytes) -> bytes:
        """Write what fits; return the rest."""
        try:
            return data[os.write(self.master, data) :]
        except BlockingIOError:
            return data


@pytest.fixture
def sensor(tmp_path):
    it = Sensor(tmp_path / "usb-sensor")
    yield it
    it.unplug()


@pytest.fixture
def opened(sensor):
    """Opens the sensor's port; closes it in the end."""
    ports = []

    def open_(decode=None, tee=None, **settings):
        s = SerialSettings(port=str(sensor.link), rate_hz=50, **settings)
        ports.append(SerialPort(s, decode or decoder(s.format, "a", s), SystemClock(), tee))
        return ports[-1]

    yield open_
    for port in ports:
        port.close()


def polled(port, enough):
    """Poll until `enough(items)`."""
    items = []
    deadline = time.monotonic() + DEADLINE_S
    while not enough(items):
        assert time.monotonic() < deadline, f"{len(items)} items only"
        items += port.poll(0.05)
    return items


def n_samples(items):
    return sum(len(i.t_ns) for i in items if isinstance(i, SampleBatch))


def test_samples_come_with_the_time_at_which_they_came(sensor, opened):
    seen = []
    port = opened(tee=lambda data, t: seen.append((data, t)))
    before = time.monotonic_ns()
    sensor.write(LINE * 2)
    items = polled(port, lambda got: n_samples(got) == 2)

    assert b"".join(data for data, _ in seen) == LINE * 2
    assert items[-1].t_rx_ns == seen[-1][1]
    assert before <= seen[-1][1] <= time.monotonic_ns()


def test_byte_by_byte_and_all_together_are_the_same(sensor, opened):
    counts = to_counts(signal(60), 1 / 4096, 1 / 1024)
    data = b"".join(
        cobs_encode(encode_har1(k, 20_000 * k, 1, counts[k : k + 1], 1 / 4096, 1 / 1024)) for k in range(60)
    )
    got = []
    for pieces in ([data[i : i + 1] for i in range(len(data))], [data]):
        port = opened(format="har1")
        items = []
        for piece in pieces:
            assert sensor.write(piece) == b""
            items += port.poll(1)
        items += polled(port, lambda more, items=items: n_samples(items + more) == 60)
        got.append(np.concatenate([i.values for i in items]).tolist())
        port.close()

    assert got[0] == got[1]


def test_silence_is_an_outage(opened):
    port = opened(silence_s=0.5)
    polled(port, lambda got: any(isinstance(i, Dropped) for i in got))

    with pytest.raises(SourceUnavailable, match=r"no data for 0\.5 s on .*usb-sensor"):
        port.poll(0.1)


def test_unplugging_counts_the_unfinished_and_then_says_so(sensor, opened):
    port = opened()
    sensor.write(LINE + b"1,2")
    polled(port, lambda got: n_samples(got) == 1)
    sensor.unplug()
    items = polled(port, lambda got: any(isinstance(i, Dropped) for i in got))

    assert [i.reason for i in items if isinstance(i, BadFrame)] == [Loss.TORN]
    with pytest.raises(SourceUnavailable, match="went away"):
        port.poll(0.1)


def test_a_port_is_opened_by_one_only(opened):
    opened()

    with pytest.raises(SourceUnavailable, match="another program has it open"):
        opened()


def test_closing_under_way_is_told(opened):
    port = opened()
    port.close()
    port.close()

    with pytest.raises(SourceUnavailable, match="is closed"):
        port.poll(0)


def test_a_port_that_is_not_there_names_those_that_are(sensor, opened, tmp_path, monkeypatch):
    monkeypatch.setattr(serial_port, "BY_ID", tmp_path)
    (tmp_path / "usb-other").touch()
    sensor.unplug()
    with pytest.raises(SourceUnavailable, match=r"there is no such port; there are .*usb-other"):
        opened()

    (tmp_path / "usb-other").unlink()
    with pytest.raises(SourceUnavailable, match="is it plugged in"):
        opened()


@pytest.mark.parametrize(
    ("code", "said"), [(errno.EACCES, "group dialout"), (errno.EBUSY, "another program"), (errno.EIO, "Input/output")]
)
def test_refusals_say_what_to_do(opened, monkeypatch, code, said):
    def refuse(*args, **kwargs):
        raise serial_port.serial.SerialException(code, "could not open port")

    monkeypatch.setattr(serial_port.serial, "Serial", refuse)
    with pytest.raises(SourceUnavailable, match=said):
        opened()


@pytest.mark.parametrize("path", ["/dev/null", "/", "/etc/hostname"])
def test_what_is_no_serial_port(path):
    s = SerialSettings(port=path, rate_hz=50)
    with pytest.raises(SourceUnavailable, match="cannot be opened"):
        SerialPort(s, decoder("csv", "a", s), SystemClock())


def test_ports_can_be_listed():
    assert all(port.path.startswith("/dev/") for port in list_ports())


def test_ten_megabytes_of_rubbish_then_a_good_line(sensor, opened):
    rubbish = random.Random(1)
    port = opened()
    rest, left, counted = b"", 10 << 20, 0
    deadline = time.monotonic() + 3 * DEADLINE_S
    while left or rest:
        assert time.monotonic() < deadline
        if not rest:
            rest = rubbish.randbytes(min(left, 4096))
            left -= len(rest)
        rest = sensor.write(rest)
        items = port.poll(0)
        assert n_samples(items) == 0
        counted += len(items)
    while items := port.poll(0.1):
        counted += len(items)
    sensor.write(b"\n" + LINE)

    assert n_samples(polled(port, n_samples)) == 1
    # A line end in every 128 bytes or so.
    assert counted > 70_000


def test_a_sensor_that_is_unplugged_a_hundred_times(sensor):
    s = SerialSettings(port=str(sensor.link), rate_hz=50)
    decode = decoder("csv", "a", s)
    backoff = Backoff(BackoffSettings(0.001, 0.01, 0.0), random.Random(1).random)
    source = Reopening(lambda: SerialPort(s, decode, SystemClock()), backoff, SystemClock(), "a")
    reader = ReaderThread(source, BoundedQueue(10_000, Overflow.DROP_OLDEST), SystemClock(), "serial-a")
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    reader.start()
    items, gone = [], 0
    try:
        for _ in range(100):
            deadline = time.monotonic() + DEADLINE_S
            before = n_samples(items)
            # Opening a port throws away what waits in it, so the sensor goes on talking until it is heard.
            while n_samples(items) == before:
                assert time.monotonic() < deadline, source.problem
                sensor.write(LINE)
                items += reader.poll(0.01)
            sensor.unplug()
            gone += 1
            while sum(isinstance(i, Dropped) for i in items) < gone:
                assert time.monotonic() < deadline, source.problem
                items += reader.poll(0.05)
            sensor.plug()
    finally:
        reader.close()

    assert sum(isinstance(i, Dropped) for i in items) == 100
    assert source.reopened >= 99
    batches = [i for i in items if isinstance(i, SampleBatch)]
    assert [b.seq0 for b in batches] == list(np.cumsum([0, *(len(b.t_ns) for b in islice(batches, len(batches) - 1))]))
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors
