"""The Prometheus endpoint, asked over real sockets, and its text, read by Prometheus' own parser."""

import copy
import http.client
import json
import math
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.adapters.prometheus import PrometheusEndpoint
from agent.core.messages import HealthMessage, RequestFigures, SplitFigures, TelemetryMessage
from agent.core.prometheus_text import exposition
from agent.errors import SinkUnavailable

TELEMETRY: TelemetryMessage = {
    "v": 1,
    "agent": "board-1",
    "boot": "0123456789ab",
    "time": "2026-05-04T10:21:07.310Z",
    "clock_synced": True,
    "uptime_s": 3600.5,
    "interval_s": 60.0,
    "model": "har-base@3f9c1a7e",
    "streams": 2,
    "samples": 360_000,
    "windows": 5600,
    "windows_per_s": 1.56,
    "unscored": 1,
    "gaps": {"missing_samples": 3, "disconnected": 1},
    "losses": {"partial_window": 130},
    "bad_frames": {"bad_checksum": 7},
    "worst_streams": [],
    "drops": {"input": 0, "outbox": 4, "unsent": 2},
    "delivery": {"published": 5610, "acknowledged": 5600, "historical": 9, "refused": 0, "in_flight": 10},
    "outbox": {"depth": 12, "size_bytes": 4096, "written_bytes": 1_000_000, "written_bytes_per_day": 24_000_000},
    "latency_ms": {
        "wait": {"p50": 0.4, "p95": 1.0, "p99": 2.0, "max": 3.0},
        "infer": {"p50": 0.2, "p95": 0.3, "p99": 0.4, "max": 0.5},
        "total": {"p50": 1.3, "p95": 2.0, "p99": 2.5, "max": 4.0},
        "delivered": {},
    },
    "cpu_s": 20.25,
    "rss_bytes": 70_000_000,
    "temperature_c": 52.35,
    "throttling": {"now": False, "under_voltage": False, "source": "vcgencmd"},
    "power": {
        "watts": 3.5,
        "source": "pmic",
        "error_pct": 31.3,
        "joules": 210.0,
        "idle_watts": 3.0,
        "joules_per_window": 0.32,
    },
    "cloud": {
        "asked": 12,
        "answered": 8,
        "timed_out": 2,
        "refused": {"overloaded": 1, "failed": 1},
        "garbled": 0,
        "not_sent": 0,
        "abandoned": 0,
        "not_asked": {"byte_budget": 3},
        "late": 1,
        "unexpected": 0,
        "dropped": 5,
        "bytes_up": 1000,
        "bytes_down": 500,
        "rtt_ms": {"p50": 41.0, "p95": 80.0, "p99": 90.0, "max": 95.0},
        "breaker": "half-open",
    },
    "split": {
        "cut": "ek",
        "windows": {"end": 40, "first": 2},
        "away": 39,
        "asked": 12,
        "answered": 11,
        "timed_out": 0,
        "refused": {"other_part": 1},
        "garbled": 0,
        "not_sent": 0,
        "abandoned": 0,
        "not_asked": {"breaker_open": 3},
        "late": 0,
        "unexpected": 0,
        "dropped": 6,
        "bytes_up": 4000,
        "bytes_down": 600,
        "rtt_ms": {"p50": 21.0, "p95": 40.0, "p99": 41.0, "max": 42.0},
        "link_rtt_ms": 20.5,
        "link_mbit": 3.0,
        "breaker": "closed",
    },
}
HEALTH: HealthMessage = {
    "v": 1,
    "agent": "board-1",
    "state": "degraded",
    "reasons": [{"code": "broker_away", "text": "no broker answers", "since_s": 12.0}],
    "time": "2026-05-04T10:21:07.310Z",
    "clock_synced": True,
    "boot": "0123456789ab",
    "windows": 5600,
    "coverage_gap": {
        "seconds": 3.2,
        "windows": 1.25,
        "devices": 3,
        "absent": 0,
        "previous": "0.1.0",
        "orderly": True,
    },
}


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


# text


def test_what_prometheus_reads_is_what_was_told():
    got = samples(exposition(TELEMETRY, HEALTH))

    power = (("source", "pmic"),)
    assert got["har_info", (("agent", "board-1"), ("model", "har-base@3f9c1a7e"), ("boot", "0123456789ab"))] == 1
    assert got["har_windows_total", ()] == 5600
    assert got["har_gaps_total", (("reason", "missing_samples"),)] == 3
    assert got["har_bad_frames_total", (("reason", "bad_checksum"),)] == 7
    assert got["har_dropped_total", (("queue", "outbox"),)] == 4
    assert got["har_outbox_bytes", ()] == 4096
    assert got["har_latency_seconds", (("stage", "total"), ("statistic", "p99"))] == pytest.approx(0.0025)
    assert got["har_cpu_seconds_total", ()] == 20.25
    assert got["har_throttled", (("source", "vcgencmd"),)] == 0
    assert got["har_power_watts", power] == 3.5
    assert got["har_power_error_ratio", power] == pytest.approx(0.313)
    assert got["har_health", (("state", "degraded"),)] == 1
    assert got["har_health", (("state", "ok"),)] == 0
    assert got["har_health_reason", (("code", "broker_away"),)] == 1
    assert not any(("stage", "delivered") in labels for _, labels in got)
    assert all(math.isfinite(value) for value in got.values())


def test_what_became_of_windows_in_doubt_is_there_where_any_may_be_asked_about():
    got = samples(exposition(TELEMETRY))
    without = copy.deepcopy(TELEMETRY)
    del without["cloud"]
    assert not any("cloud" in name for name, _ in samples(exposition(without)))

    assert got["har_cloud_requests_total", ()] == 12
    assert got["har_cloud_outcomes_total", (("outcome", "refused"),)] == 2
    assert got["har_cloud_refusals_total", (("reason", "overloaded"),)] == 1
    assert got["har_cloud_not_asked_total", (("reason", "byte_budget"),)] == 3
    assert got["har_cloud_dropped_answers_total", ()] == 5
    assert got["har_cloud_bytes_total", (("direction", "up"),)] == 1000
    assert got["har_cloud_rtt_seconds", (("statistic", "p95"),)] == pytest.approx(0.08)
    assert got["har_cloud_breaker", (("state", "half-open"),)] == 1


def test_a_network_in_parts_has_metrics_of_its_own():
    without = dict(TELEMETRY)
    del without["split"]
    assert not any("split" in name for name, _ in samples(exposition(without)))
    got = samples(exposition(TELEMETRY))
    assert got["har_split_windows_total", (("exit", "first"),)] == 2
    assert got["har_split_away_windows_total", ()] == 39
    assert got["har_split_requests_total", ()] == 12
    assert got["har_split_outcomes_total", (("outcome", "answered"),)] == 11
    assert got["har_split_refusals_total", (("reason", "other_part"),)] == 1
    assert got["har_split_dropped_answers_total", ()] == 6
    assert got["har_split_link_rtt_seconds", ()] == pytest.approx(0.0205)
    assert got["har_split_link_bits_per_second", ()] == pytest.approx(3e6)
    assert got["har_split_breaker", (("state", "closed"),)] == 1


def test_every_family_is_described_typed_and_named_by_the_rules():
    families = list(text_string_to_metric_families(exposition(TELEMETRY, HEALTH)))

    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert family.name.startswith("har_")
        assert family.documentation.endswith(".")
        assert family.type in ("counter", "gauge")
        assert all(s.name.endswith("_total") == (family.type == "counter") for s in family.samples)


def test_what_is_not_known_is_not_there():
    telemetry = copy.deepcopy(TELEMETRY)
    telemetry["temperature_c"] = None
    telemetry["outbox"]["written_bytes"] = None
    telemetry["throttling"] = {"now": None, "under_voltage": None, "source": "none"}
    telemetry["gaps"] = {}
    telemetry["power"] = {
        "watts": None,
        "source": "none",
        "error_pct": None,
        "joules": None,
        "idle_watts": None,
        "joules_per_window": None,
    }
    got = {name for name, _ in samples(exposition(telemetry))}

    assert got.isdisjoint({"har_temperature_celsius", "har_throttled", "har_under_voltage", "har_power_watts"})
    assert got.isdisjoint({"har_disk_written_bytes_total", "har_gaps_total", "har_health", "har_power_error_ratio"})
    assert "har_windows_total" in got


@pytest.mark.parametrize("name", ['say "hi"', "back\\slash", "two\nlines", "ünï\t", "{}=,", ""])
def test_names_are_escaped(name: str):
    telemetry = copy.deepcopy(TELEMETRY)
    telemetry["agent"] = name

    assert [dict(labels)["agent"] for n, labels in samples(exposition(telemetry)) if n == "har_info"] == [name]


def test_a_name_that_is_no_unicode_does_not_break_the_page():
    telemetry = copy.deepcopy(TELEMETRY)
    telemetry["agent"] = "b\udcff"

    assert 'agent="b?"' in exposition(telemetry)


# endpoint


@pytest.fixture
def endpoint() -> Iterator[PrometheusEndpoint]:
    endpoint = PrometheusEndpoint(0)
    yield endpoint
    endpoint.close()


def get(endpoint: PrometheusEndpoint, path: str, method: str = "GET") -> tuple[int, str, str | None]:
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=10)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode(), response.getheader("Content-Type")
    finally:
        connection.close()


def test_what_was_published_last_is_served(endpoint: PrometheusEndpoint):
    assert get(endpoint, "/metrics")[0] == 503
    assert get(endpoint, "/healthz")[0] == 503
    endpoint.publish("har_windows_total 1\n", healthy=True)
    assert get(endpoint, "/metrics") == (200, "har_windows_total 1\n", "text/plain; version=0.0.4; charset=utf-8")
    assert get(endpoint, "/metrics?x=1")[0] == 200
    assert get(endpoint, "/healthz")[:2] == (200, "ok\n")
    endpoint.publish("har_windows_total 2\n", healthy=False)
    assert get(endpoint, "/metrics")[1] == "har_windows_total 2\n"
    assert get(endpoint, "/healthz")[0] == 503


@pytest.mark.parametrize("path", ["/", "/metrics/", "/healthz/x", "/../metrics", "/" + "x" * 5000])
def test_everything_else_is_not_there(endpoint: PrometheusEndpoint, path: str):
    endpoint.publish("x 1\n", healthy=True)

    assert get(endpoint, path)[0] == 404


def test_nothing_can_be_posted(endpoint: PrometheusEndpoint):
    assert get(endpoint, "/metrics", "POST")[0] == 501


def test_nothing_is_logged(endpoint: PrometheusEndpoint, capfd: pytest.CaptureFixture[str]):
    get(endpoint, "/metrics")
    get(endpoint, "/nothing")
    with socket.create_connection(("127.0.0.1", endpoint.port)) as client:
        client.sendall(b"\xff\x00 garbage\r\n\r\n")
        while client.recv(4096):
            pass

    assert capfd.readouterr() == ("", "")


def test_it_listens_on_loopback_alone(endpoint: PrometheusEndpoint):
    assert endpoint._server.server_address[0] == "127.0.0.1"


def test_a_client_that_dribbles_holds_the_next_one_up_no_longer_than_its_deadline():
    endpoint = PrometheusEndpoint(0, client_s=0.5)
    endpoint.publish("x 1\n", healthy=True)
    ended = threading.Event()

    def dribble() -> None:
        with socket.create_connection(("127.0.0.1", endpoint.port)) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
            while not ended.wait(0.05):
                try:
                    client.sendall(b"x")
                except OSError:
                    return

    slow = threading.Thread(target=dribble)
    silent = socket.create_connection(("127.0.0.1", endpoint.port))
    slow.start()
    try:
        began = time.monotonic()
        assert get(endpoint, "/metrics")[0] == 200
        assert time.monotonic() - began < 5
    finally:
        ended.set()
        slow.join(5)
        silent.close()
        endpoint.close()


def test_a_client_that_does_not_read_is_given_up():
    endpoint = PrometheusEndpoint(0, client_s=0.5)
    endpoint.publish("x" * 50_000_000, healthy=True)
    with socket.create_connection(("127.0.0.1", endpoint.port)) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert get(endpoint, "/healthz")[0] == 200
    endpoint.close()


def test_a_port_that_is_taken_is_said_with_what_to_do(endpoint: PrometheusEndpoint):
    with pytest.raises(SinkUnavailable, match=rf"127.0.0.1:{endpoint.port}: .*in use; set telemetry.prometheus_port"):
        PrometheusEndpoint(endpoint.port)


def test_it_ends_while_a_client_says_nothing():
    endpoint = PrometheusEndpoint(0, client_s=0.5)
    with socket.create_connection(("127.0.0.1", endpoint.port)):
        endpoint.close()


def test_it_ends_and_can_begin_again():
    endpoint = PrometheusEndpoint(0)
    assert [t.name for t in threading.enumerate() if t.name == "prometheus"] == ["prometheus"]
    get(endpoint, "/metrics")
    endpoint.close()
    endpoint.close()
    assert [t.name for t in threading.enumerate() if t.name == "prometheus"] == []

    again = PrometheusEndpoint(endpoint.port)
    again.close()


def test_the_telemetry_that_is_tested_with_is_a_message():
    assert TELEMETRY.keys() == TelemetryMessage.__annotations__.keys()
    assert TELEMETRY["cloud"].keys() == get_type_hints(RequestFigures).keys()
    assert TELEMETRY["split"].keys() == get_type_hints(SplitFigures).keys()
    assert HEALTH.keys() == HealthMessage.__annotations__.keys()
    assert json.loads(json.dumps(TELEMETRY)) == TELEMETRY


def test_every_metric_is_in_the_reference():
    page = (Path(__file__).parents[2] / "docs/reference/power.md").read_text()

    assert {name for name, _ in samples(exposition(TELEMETRY, HEALTH))} == set(re.findall(r"`(har_\w+)`", page))
