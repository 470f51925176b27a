"""Brokers that die, vanish, refuse, or never answer; the link to them is real, and so are they."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from live import wait_until
from mosquitto import PERSISTENT, Authority, free_port, scripted_server
from rehearsal import IMPATIENT, Rig, Scenario, ids

CONNACK = bytes([0x20, 3, 0, 0, 0])
"""Of MQTT 5: welcome, without properties."""


def away_for_long(rig: Rig) -> None:
    """What was made meanwhile comes afterwards, marked, at a bounded rate; what is made then does not wait for it."""
    history_hz, speed = rig.many(25, 100), rig.many(20, 40)
    broker = rig.broker().start()
    listener = rig.listener(broker.port)
    sensor = rig.sensor(speed)
    agent = rig.agent([broker.url], IMPATIENT + f"[outbox]\nhistory_hz = {history_hz}\n")
    agent.start()
    rig.more(listener, 20)
    rss = agent.rss_mib()
    broker.kill()
    began, sent = time.monotonic(), sensor.sent
    wait_until(lambda: sensor.sent - sent >= rig.many(300, 3600) * 50, rig.many(60, 600))
    rig.told(agent, "broker_away", "connection refused")
    away_s, before = time.monotonic() - began, listener.count()
    broker.start()
    back = rig.more(listener)
    missed = (sensor.sent - sent) // 64
    rig.calm(agent, 60)
    wait_until(lambda: not listener.holes(), 2 * missed / history_hz + 10, "history to be complete")
    grown = agent.rss_mib() - rss
    rig.nothing_lost(agent, listener)

    after = listener.arrivals[before:]
    history = [t for t, _, old in after if old]
    fastest = max(sum(t <= other < t + 1 for other in history) for t in history)
    live = [t for t, _, old in after if not old and t >= history[0]]
    longest_wait = max(b - a for a, b in pairwise(live))
    rig.fact(
        f"broker away {away_s:.0f} s = {missed * 64 / 50:.0f} s of stream, first prediction {back:.1f} s after"
        f" its return; {len(history)} historical in {history[-1] - history[0]:.0f} s, at most {fastest} in a second;"
        f" live ones at most {longest_wait:.2f} s apart meanwhile; {grown:+.1f} MiB"
    )
    assert missed - 30 <= len(history) <= missed + 200, "what was made while the broker was away, and no more"
    assert history[-1] - history[0] >= (len(history) - 2 * history_hz) / history_hz, "the rate, after a burst"
    assert longest_wait < (history[-1] - history[0]) / 3, "a live prediction waited for history"
    assert grown < 16
    assert any("broker_away" in codes for codes in listener.health_codes())
    assert listener.health_codes()[-1] <= {"clock_unsynced"}


def cut_without_a_fin(rig: Rig) -> None:
    """The broker neither answers nor closes anything: it is as if the cable was cut."""
    broker = rig.broker().start()
    listener = rig.listener(broker.port)
    rig.sensor()
    agent = rig.agent([broker.url])
    agent.start()
    noticed, delays = [], []
    for n in range(rig.many(2, 10)):
        rig.more(listener, 5)
        wait_until(lambda: agent.status()["link"]["connected"], 10)
        broker.pause()
        began = time.monotonic()
        wait_until(lambda: not agent.status()["link"]["connected"], 10, "it to see that the broker is away")
        noticed.append(time.monotonic() - began)
        if n == 0:
            rig.told(agent, "broker_away", "does not greet")
        broker.resume()
        delays.append(rig.more(listener))
    rig.calm(agent)
    rig.fact(f"seen after at most {max(noticed):.1f} s, predictions back after at most {max(delays):.1f} s")
    assert any("broker_away" in codes for codes in listener.health_codes())
    rig.nothing_lost(agent, listener)


def cable_pulled(rig: Rig) -> None:
    """A link between two network namespaces goes down, under way and again, and packets are lost in it."""
    name = f"har{os.getpid() % 100000}"

    if shutil.which("ip") is None:
        pytest.skip("no iproute2 here")

    def ip(*arguments: str) -> str:
        ran = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
        return ran.stderr.strip() if ran.returncode else ""

    if problem := ip("netns", "add", name):
        pytest.skip(f"no network namespace can be made here: {problem}")
    rig.ending.callback(ip, "netns", "del", name)
    if problem := ip("link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b", "netns", name):
        pytest.skip(f"no link between namespaces can be made here: {problem}")
    rig.ending.callback(ip, "link", "del", f"{name}a")
    ip("addr", "add", "10.213.7.1/30", "dev", f"{name}a")
    ip("link", "set", f"{name}a", "up")
    ip("-n", name, "addr", "add", "10.213.7.2/30", "dev", f"{name}b")
    ip("-n", name, "link", "set", f"{name}b", "up")
    port = free_port()
    broker = rig.broker(PERSISTENT + f"listener {port} 10.213.7.1\n").start()
    listener = rig.listener(broker.port)
    rig.sensor()
    agent = rig.agent([f"mqtt://10.213.7.1:{port}"])
    agent.through = ["ip", "netns", "exec", name]
    agent.start()
    delays = []
    for n in range(rig.many(2, 10)):
        rig.more(listener, 5)
        ip("link", "set", f"{name}a", "down")
        if n == 0:
            rig.told(agent, "broker_away")
            assert listener.state("har/board/status")["state"] == "offline", "the last will"
        else:
            time.sleep(rig.random.uniform(0.2, 4))  # how long it is out
        ip("link", "set", f"{name}a", "up")
        delays.append(rig.more(listener))
    rig.fact(f"predictions back after at most {max(delays):.1f} s")
    rig.calm(agent)
    assert any("broker_away" in codes for codes in listener.health_codes())
    rig.nothing_lost(agent, listener)


def not_to_be_trusted(rig: Rig) -> None:
    """A wrong CA, then an expired certificate; both are put right in their files, and nobody touches the agent."""
    theirs, other = Authority(rig.folder, "theirs"), Authority(rig.folder, "other")
    expired, good = theirs.issue("expired", days=(-10, -1)), theirs.issue("good")
    certificate, key, ca = (rig.folder / name for name in ("broker.crt", "broker.key", "trusted.crt"))

    def put(pair: tuple[Path, Path]) -> None:
        shutil.copy(pair[0], certificate)
        shutil.copy(pair[1], key)

    put(expired)
    shutil.copy(other.certificate, ca)
    plain = free_port()
    broker = rig.broker(
        f"cafile {theirs.certificate}\ncertfile {certificate}\nkeyfile {key}\n"
        f"listener {plain} 127.0.0.1\nallow_anonymous true"
    ).start()
    listener = rig.listener(plain)
    rig.sensor()
    agent = rig.agent([f'mqtts://localhost:{broker.port}"\nca_file = "{ca}'])
    agent.start()
    rig.told(agent, "broker_away", "not signed by ca_file")
    shutil.copy(theirs.certificate, ca)
    rig.told(agent, "broker_away", "has expired", 10)
    put(good)
    broker.reload()
    rig.fact(f"predictions {rig.more(listener):.1f} s after the certificate was put right")
    rig.calm(agent)
    rig.nothing_lost(agent, listener)


def denied(rig: Rig) -> None:
    """An ACL that lets the agent speak of itself, but not publish predictions, nor take commands."""
    acl = rig.folder / "acl"
    acl.write_text("topic read har/imu/#\ntopic write har/board/#\ntopic read har/board/health\n")
    broker = rig.broker(f"allow_anonymous true\nmax_queued_messages 0\nacl_file {acl}").start()
    rig.sensor()
    agent = rig.agent([broker.url])
    agent.start()
    rig.told(agent, "broker_refuses", "har/imu/")
    acl.write_text("topic readwrite #\n")
    broker.reload()
    listener = rig.listener(broker.port)
    rig.fact(f"predictions {rig.more(listener):.1f} s after they were allowed")
    rig.calm(agent)
    state = agent.status()
    assert state["link"]["problem"] is None
    refused, left = state["telemetry"]["delivery"]["refused"], state["telemetry"]["outbox"]["depth"]
    rig.fact(f"{refused} refusals")
    assert left < 10
    rig.nothing_lost(agent, listener)


def never_acknowledges(rig: Rig) -> None:
    """A broker that welcomes and is silent then; a real one takes its place."""
    with scripted_server(CONNACK) as port:
        rig.sensor()
        agent = rig.agent([f"mqtt://127.0.0.1:{port}"])
        agent.start()
        rig.told(agent, "broker_unsteady", "did not acknowledge")
        wait_until(lambda: agent.status()["uptime_s"] > 8)
        cpu = agent.cpu_s()
    broker = rig.broker(port=port).start()
    listener = rig.listener(port)
    rig.fact(f"{cpu:.1f} s of CPU in the first 8 s; predictions {rig.more(listener):.1f} s after a real broker came")
    assert cpu < 4
    rig.calm(agent)
    rig.nothing_lost(agent, listener)
    assert broker.log.read_text().count("as board") < 20


def never_acknowledges_but_another_does(rig: Rig) -> None:
    """The second broker takes what the first one never acknowledges, though the first one is tried again and again."""
    broker = rig.broker().start()
    listener = rig.listener(broker.port)
    rig.sensor()
    patient = IMPATIENT.replace("stable_s = 1.0", "stable_s = 4.0")
    with scripted_server(CONNACK) as port:
        agent = rig.agent([f"mqtt://127.0.0.1:{port}", broker.url], patient)
        agent.start()
        rig.fact(f"first prediction after {rig.more(listener):.1f} s")
        rig.told(agent, "broker_unsteady", "did not acknowledge")
        began = time.monotonic()
        rig.more(listener, 50, 60)
        since = [t for t, _, _ in listener.arrivals if t >= began]
        pauses = [b - a for a, b in pairwise(since)]
        rig.fact(f"then at most {max(pauses):.1f} s without one; {sum(p > 1 for p in pauses)} pauses of more than 1 s")
        rig.nothing_lost(agent, listener)


def fails_over_and_returns(rig: Rig) -> None:
    """The second broker while the first is away, and the first again once it is back; nothing between them is lost."""
    first, second = rig.broker().start(), rig.broker().start()
    one, two = rig.listener(first.port), rig.listener(second.port)
    rig.sensor()
    agent = rig.agent([first.url, second.url])
    agent.start()
    over, back = [], []
    for n in range(rig.many(2, 10)):
        rig.more(one, 5)
        first.kill()
        over.append(rig.more(two))
        if n == 0:
            rig.told(agent, "broker_unsteady", "connection refused")
        rig.more(two, 5)
        first.start()
        back.append(rig.more(one))
    rig.calm(agent)
    assert any("broker_unsteady" in codes for codes in two.health_codes())
    rig.nothing_lost(agent, one, two)
    assert two.state("har/board/status")["state"] == "offline", "the broker that was left sends the last will"
    rig.fact(f"on the second broker after at most {max(over):.1f} s, on the first again after {max(back):.1f} s")


def two_of_one_name(rig: Rig) -> None:
    """Two agents of one name drive each other out: both say so, neither spins, and one alone delivers everything."""
    broker = rig.broker().start()
    listener = rig.listener(broker.port)
    link = IMPATIENT.replace("retry_longest_s = 0.5", "retry_longest_s = 2.0").replace(
        "stable_s = 1.0", "stable_s = 5.0"
    )
    agents = []
    for device in ("one", "two"):
        folder = rig.folder / device
        folder.mkdir()
        rig.sensor(name=device)
        agents.append(rig.agent([broker.url], link, device=device, folder=folder))
        agents[-1].start()
    told = [False, False]

    def both() -> bool:
        for n, agent in enumerate(agents):
            reasons = json.dumps(agent.status().get("health", {}).get("reasons", ()))
            told[n] = told[n] or "the client id 'board'" in reasons
        return all(told)

    wait_until(both, 30, f"both to say so: {told}")
    began, connects, cpu = time.monotonic(), broker.log.read_text().count("as board "), [a.cpu_s() for a in agents]
    time.sleep(rig.many(6, 60))  # how long it lasts
    took = time.monotonic() - began
    rate = (broker.log.read_text().count("as board ") - connects) / took
    load = max((a.cpu_s() - c) / took for a, c in zip(agents, cpu, strict=True))
    rig.fact(f"{rate:.1f} connections a second, waits of 2 s at most; at most {load:.0%} of a core each")
    assert 0 < rate < 4
    assert load < 0.5
    agents[1].stop()
    rig.calm(agents[0])
    rig.stop(agents[0])
    agents[1].start()
    rig.calm(agents[1])
    rig.nothing_lost(agents[1], listener)
    rig.nothing_lost(agents[0], listener)


def killed_mid_stream(rig: Rig) -> None:
    """Killed with -9, again and again, and started again."""
    broker = rig.broker().start()
    listener = rig.listener(broker.port)
    rig.sensor()
    agent = rig.agent([broker.url])
    agent.start()
    delays = []
    for _ in range(rig.many(3, 20)):
        rig.more(listener, 5)
        broker.kill()
        time.sleep(rig.random.uniform(0.1, 1.0))  # how long it is away
        broker.start()
        delays.append(rig.more(listener))
    rig.fact(f"predictions back after {min(delays):.1f} to {max(delays):.1f} s, of which the listener takes up to 1 s")
    rig.calm(agent)
    rig.nothing_lost(agent, listener)
    assert len(ids([listener])) > 20


SCENARIOS = [
    away_for_long,
    not_to_be_trusted,
    cut_without_a_fin,
    cable_pulled,
    two_of_one_name,
    denied,
    never_acknowledges,
    never_acknowledges_but_another_does,
    fails_over_and_returns,
    killed_mid_stream,
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.__name__)
def test_broker(scenario: Scenario, play: Callable[[Scenario], None]):
    play(scenario)
