"""The agent itself: killed, stopped, reloaded, started twice, and watched by a service manager."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise

import pytest
from live import Agent, wait_until
from rehearsal import IMPATIENT, Rig, Scenario, ids


def killed_at_random(rig: Rig, durability: str) -> None:
    """Killed with -9 at random moments, start-up included, with the broker there or not; then left alone."""
    broker = rig.broker().start()
    listener = rig.listener(broker.port)
    wait_until(lambda: listener.connects)
    rig.sensor(10)
    agent = rig.agent([broker.url], IMPATIENT + f'[outbox]\ndurability = "{durability}"\nhistory_hz = 500\n')
    stored: set[str] = set()
    kills = rig.many(5, 50)
    for n in range(kills):
        if n % 3 == 1:
            broker.kill()
        agent.start()
        if n % 4:  # otherwise it may be while it starts
            wait_until(agent.status, 30, "it to start")
        time.sleep(rig.random.uniform(0.0, 2.0))  # the moment
        agent.kill()
        stored |= set(agent.stored())
        if n % 3 == 1:
            broker.start()
    agent.start()
    wait_until(lambda: stored <= listener.ids(), 20, "what was stored when it was killed")
    rig.more(listener, 5)
    rig.calm(agent)
    rig.nothing_lost(agent, listener)
    runs = {name.split(":")[0] for name in ids([listener])}
    assert not list(agent.state.glob("outbox.corrupt-*"))
    rig.fact(f"{kills} kills, {len(stored)} stored at one of them, {len(ids([listener]))} made in {len(runs)} runs")


def killed_with_process_durability(rig: Rig) -> None:
    killed_at_random(rig, "process")


def killed_with_power_loss_durability(rig: Rig) -> None:
    killed_at_random(rig, "power-loss")


def ends_in_order(rig: Rig) -> None:
    """SIGTERM: soon, with everything delivered, or stored if there is nobody to deliver to; SIGINT is the same."""
    broker = rig.broker().start()
    listener = rig.listener(broker.port)
    wait_until(lambda: listener.connects)
    rig.sensor(20)
    agent = rig.agent([broker.url], IMPATIENT + "[outbox]\nhistory_hz = 500\n")
    took = {}

    def end(name: str) -> None:
        began = time.monotonic()
        rig.stop(agent)
        took[name] = time.monotonic() - began

    agent.start()
    rig.more(listener, 10)
    end("broker there")
    assert agent.stored() == []
    assert listener.holes() == []
    assert listener.state("har/board/status")["state"] == "offline"
    assert listener.state("har/imu/availability")["state"] == "offline"

    agent.start()
    rig.more(listener, 5)
    broker.pause()
    time.sleep(0.5)  # so that some are on the way
    end("broker that does not answer")
    broker.resume()

    broker.kill()
    agent.start()
    wait_until(lambda: agent.status().get("streams"))
    end("broker away")
    stored = set(agent.stored())
    assert stored

    broker.start()
    agent.start()
    wait_until(lambda: stored <= listener.ids(), 20, "what was stored")
    historical = {name for _, name, old in listener.arrivals if old}
    assert stored <= historical | {n for n, times in listener.seen.items() if times > 1}
    rig.nothing_lost(agent, listener)
    rig.fact(", ".join(f"{name}: {seconds:.1f} s" for name, seconds in took.items()))
    assert took["broker there"] < 3
    assert max(took.values()) < 8


def ends_while_starting(rig: Rig) -> None:
    """SIGTERM at any moment of the first second: it ends, and leaves nothing that keeps the next run from starting."""
    broker = rig.broker().start()
    rig.sensor()
    agent = rig.agent([broker.url])
    codes = []
    for n in range(rig.many(4, 40)):
        agent.start()
        time.sleep(1.2 * (n + 0.5) / rig.many(4, 40))  # the moment
        codes.append(agent.stop())
    listener = rig.listener(broker.port)
    agent.start()
    rig.more(listener)
    rig.nothing_lost(agent, listener)
    rig.fact(f"exit {codes}")
    assert set(codes) <= {0, -signal.SIGTERM}, "a signal before Python has taken it over ends the process as usual"


def reloaded_under_load(rig: Rig) -> None:
    """SIGHUP while samples come at twenty times the usual rate: no window is lost."""
    broker = rig.broker().start()
    listener = rig.listener(broker.port)
    sensor = rig.sensor(20)
    agent = rig.agent([broker.url])
    agent.start()
    for n in range(rig.many(5, 100)):
        rig.more(listener, 5)
        assert agent.process
        agent.process.send_signal(signal.SIGHUP)
        wait_until(lambda n=n: agent.log.read_text().count('"reloaded"') > n, 5)
    rig.more(listener, 5)
    sensor.unplug()
    rig.nothing_lost(agent, listener)
    telemetry = agent.status()["telemetry"]
    assert telemetry["windows"] == (telemetry["samples"] - 64) // 64
    assert set(telemetry["gaps"]) <= {"disconnected"}
    rig.fact(f"{telemetry['windows']} windows")


def started_twice(rig: Rig) -> None:
    """A second agent on the same state directory is refused, names the first, and does not harm it."""
    broker = rig.broker().start()
    listener = rig.listener(broker.port)
    rig.sensor()
    agent = rig.agent([broker.url])
    agent.start()
    rig.more(listener, 2)
    assert agent.process
    command = [sys.executable, "-m", "agent", "run", "--config", str(agent.config)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert second.returncode == 78
    assert f"another agent (pid {agent.process.pid}) uses {agent.state}" in second.stderr
    assert "Traceback" not in second.stderr
    rig.more(listener, 2)
    rig.calm(agent)
    rig.nothing_lost(agent, listener)
    rig.fact(second.stderr.strip().splitlines()[-1].replace(str(rig.folder), "…"))


class ServiceManager:
    """Where systemd would listen."""

    def __init__(self, rig: Rig) -> None:
        path = rig.folder / "notify"
        self.heard: list[tuple[float, str]] = []
        self._wire = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        rig.ending.callback(self._wire.close)
        self._wire.bind(str(path))
        self._wire.setblocking(False)
        self.env = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "2000000"}

    def listen(self) -> list[str]:
        """All that was said so far."""
        while True:
            try:
                message = self._wire.recv(65536).decode()
            except BlockingIOError:
                return [said for _, said in self.heard]
            self.heard.append((time.monotonic(), message))

    def times(self, start: str) -> list[float]:
        """When something that begins so was said."""
        self.listen()
        return [t for t, said in self.heard if said.startswith(start)]


def watched_by_a_service_manager(rig: Rig) -> None:
    """READY with the first samples and not before, STATUS, a sign of life in time, RELOADING and READY, STOPPING."""
    broker = rig.broker().start()
    manager = ServiceManager(rig)
    sensor = rig.sensor(1)
    sensor.unplug()
    agent: Agent = rig.agent([broker.url], env=manager.env)
    agent.start()
    began = time.monotonic()
    wait_until(lambda: manager.listen() and time.monotonic() - began > 4)
    assert "READY=1" not in manager.listen(), "ready without a source"
    assert any(said.startswith("STATUS=") for said in manager.listen())
    sensor.plug()
    plugged = time.monotonic()
    wait_until(lambda: "READY=1" in manager.listen(), 10)
    rig.fact(f"READY {time.monotonic() - plugged:.1f} s after the sensor was plugged in")
    wait_until(lambda: any("1 streams" in said for said in manager.listen() if said.startswith("STATUS=")), 10)

    assert agent.process
    agent.process.send_signal(signal.SIGHUP)
    wait_until(lambda: manager.times("RELOADING=1\nMONOTONIC_USEC=") and len(manager.times("READY=1")) == 2, 5)
    assert manager.times("RELOADING=1")[0] <= manager.times("READY=1")[1]

    broker.kill()  # the broker's absence is no reason to be restarted
    more = len(manager.times("WATCHDOG=1")) + 4
    wait_until(lambda: len(manager.times("WATCHDOG=1")) >= more, 10)
    rig.stop(agent)
    assert "STOPPING=1" in manager.listen()[-3:]
    signs = manager.times("WATCHDOG=1")
    longest = max(b - a for a, b in pairwise(signs))
    assert longest < 2.0, "systemd would have killed it"
    rig.fact(f"{len(signs)} signs of life, at most {longest:.1f} s apart, of 2 s allowed")


SCENARIOS = [
    killed_with_process_durability,
    killed_with_power_loss_durability,
    watched_by_a_service_manager,
    ends_in_order,
    ends_while_starting,
    reloaded_under_load,
    started_twice,
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.__name__)
def test_process(scenario: Scenario, play: Callable[[Scenario], None]):
    play(scenario)
