import json
import math
from itertools import pairwise, product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.min_cut import INPUT, Layer, Network, split
from agent.core.planner import (
    Demand,
    Exit,
    Link,
    Objective,
    Place,
    Profile,
    StaticMap,
    aligned,
    candidates,
    crossings,
    plan,
    read_profile,
    spans,
)
from agent.errors import InputError, UsageError

PROFILES = Path(__file__).parents[1] / "profiles"
MS = 1e6


def network(segments_us, border_bytes, exits=(), output_bytes=40, fixed_us=0.0, watts=None, machine="m"):
    n = len(segments_us)
    return Profile(
        machine,
        "net@0",
        tuple(exits) or (Exit("end", 0.9, n),),
        tuple(f"t{k}" for k in range(1, n)),
        tuple(border_bytes),
        output_bytes,
        0,
        tuple(segments_us),
        fixed_us,
        sum(segments_us) - (n - 1) * fixed_us,
        watts,
    )


US = st.integers(100, 20_000)


@st.composite
def chains(draw, n_places):
    """Places with a profile each, the links between them, in whole microseconds and bytes."""
    n = draw(st.integers(1, 5))
    border_bytes = draw(st.lists(st.integers(1, 5000), min_size=n, max_size=n))
    ends = sorted(draw(st.sets(st.integers(1, n), max_size=2)) | {n})
    accuracies = [draw(st.integers(50, 99)) / 100 for _ in ends]
    places = []
    for k in range(n_places):
        heads = [Exit(f"exit{e}", a, e, float(draw(US))) for e, a in zip(ends, accuracies, strict=True)]
        us = draw(st.lists(US.map(float), min_size=n, max_size=n))
        speed, load = draw(st.sampled_from([0.5, 1.0, 4.0])), draw(st.sampled_from([0.0, 0.5]))
        places.append(Place(f"place{k}", network(us, border_bytes, heads, fixed_us=50.0, watts=2.0), speed, load))
    bits_per_s = st.sampled_from([0.0, 1e5, 1e6, 1e7, math.inf])
    links = [Link(draw(st.integers(0, 50)) * MS, draw(bits_per_s)) for _ in range(n_places - 1)]
    return places, links


def walked(places, links, way_out, where):
    """Return latency and the device's joules of running each segment where it says, walking from one to the next."""
    spent, on_device, here, segments = 0.0, 0.0, 0, []

    def run():
        nonlocal spent, on_device
        if not segments:
            return
        p = places[here].profile
        us = sum(p.segments_us[s] for s in segments) - p.fixed_us * (len(segments) - 1)
        us = max(us, *(p.segments_us[s] for s in segments)) if len(segments) < len(p.segments_us) else p.whole_us
        if segments[-1] + 1 == way_out.after:
            us += next(e for e in p.exits if e.name == way_out.name).us - p.fixed_us
        ns = 1000 * us / places[here].speed / (1 - places[here].load)
        spent += ns
        on_device += ns if here == 0 else 0.0
        segments.clear()

    first_bytes = 0
    for segment, place in enumerate(where):
        while here < place:
            run()
            n_bytes = places[0].profile.border_bytes[segment] + places[0].profile.output_bytes
            first_bytes += n_bytes if here == 0 else 0
            bits_per_s = links[here].bits_per_s
            spent += links[here].rtt_ns + (8e9 * n_bytes / bits_per_s if bits_per_s else math.inf)
            here += 1
        segments.append(segment)
    run()
    return spent, 2.0 * on_device / 1e9 + 1e-6 * first_bytes


def all_ways(places, links):
    """Yield exit, latency and joules of every way, by trying each place for each segment."""
    for way_out in places[0].profile.exits:
        for where in product(range(len(places)), repeat=way_out.after):
            if all(a <= b for a, b in pairwise(where)):
                yield way_out, *walked(places, links, way_out, where)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 3).flatmap(chains), st.sampled_from(Objective), st.integers(1, 100))
def test_no_way_is_better_than_the_pick(chain, objective, deadline_ms):
    places, links = chain
    deadline_ns = deadline_ms * MS

    found = plan(places, links, Demand(objective, deadline_ns), joules_per_byte=1e-6)

    ways = [w for w in all_ways(places, links) if math.isfinite(w[1])]
    timely = [w for w in ways if round(w[1]) <= deadline_ns]
    if objective is not Objective.ACCURACY:
        last = max((w[0].after for w in timely), default=None)
        timely = [w for w in timely if w[0].after == last]
    assert found.in_time == bool(timely)
    assert (found.pick.latency_ns <= deadline_ns) == bool(timely)
    if not timely:
        assert found.pick.latency_ns == pytest.approx(min(w[1] for w in ways))
    elif objective is Objective.LATENCY:
        assert found.pick.latency_ns == pytest.approx(min(w[1] for w in timely))
    elif objective is Objective.ENERGY:
        assert found.pick.joules == pytest.approx(min(w[2] for w in timely))
    else:
        most = max(w[0].accuracy for w in timely)
        assert found.pick.exit.accuracy == most
        assert found.pick.latency_ns == pytest.approx(min(w[1] for w in timely if w[0].accuracy == most))


@settings(deadline=None)
@given(st.integers(1, 3).flatmap(chains))
def test_every_way_is_a_candidate_once(chain):
    places, links = chain
    found = candidates(places, links, joules_per_byte=1e-6)
    ways = list(all_ways(places, links))

    assert len({(c.exit, c.borders) for c in found}) == len(found) == len(ways)
    assert sorted(c.latency_ns for c in found) == pytest.approx(sorted(w[1] for w in ways))
    assert sorted(c.joules for c in found) == pytest.approx(sorted(w[2] for w in ways))


@settings(deadline=None)
@given(chains(3), st.floats(0, 1e8), st.floats(0, 1e8), st.integers(0, 1))
def test_more_bandwidth_never_makes_the_pick_slower(chain, one, other, which):
    places, links = chain
    slower, faster = sorted((one, other))

    def latency(bits_per_s):
        changed = [*links]
        changed[which] = links[which]._replace(bits_per_s=bits_per_s)
        return plan(places, changed, Demand()).pick.latency_ns

    assert latency(faster) <= latency(slower)


@settings(deadline=None)
@given(st.integers(2, 3).flatmap(chains), st.sampled_from(Objective))
def test_without_a_link_the_device_does_all(chain, objective):
    places, links = chain

    found = plan(places, [links[0]._replace(bits_per_s=0.0), *links[1:]], Demand(objective))

    assert found.pick.is_local
    assert found.pick.bytes == (0,) * len(links)


def test_of_equal_ones_the_device_gets_most():
    here, there = (Place(name, network([100.0] * 3, [0] * 3, output_bytes=0, watts=0.0)) for name in "ab")
    for objective in (Objective.LATENCY, Objective.ENERGY):
        found = plan([here, there], [Link(0.0, math.inf)], Demand(objective))
        assert {c.latency_ns for c in found.candidates} == {300_000.0}
        assert found.pick.is_local


@settings(deadline=None)
@given(chains(2), st.floats(0, 1e9))
def test_a_map_holds_what_it_promises(chain, bits_per_s):
    places, links = chain
    grid = [10.0**k for k in range(4, 9)]
    static = StaticMap(places, links, Demand(), grid)

    found = static.at(bits_per_s)

    now = candidates(places, [links[0]._replace(bits_per_s=bits_per_s)])
    same = next(c for c in now if (c.exit, c.borders) == (found.pick.exit, found.pick.borders))
    assert same.latency_ns <= found.pick.latency_ns
    if bits_per_s < grid[0]:
        assert found.pick.is_local
    if bits_per_s in grid:
        assert found == plan(places, [links[0]._replace(bits_per_s=bits_per_s)], Demand())


@settings(deadline=None)
@given(chains(2).filter(lambda chain: len(chain[0][0].profile.exits) == 1))
def test_a_chain_is_a_graph_whose_least_cut_is_the_pick(chain):
    places, links = chain
    factor = [1000 / (p.speed * (1 - p.load)) for p in places]
    device, server = (p.profile for p in places)
    n = len(device.segments_us)
    layers = []
    for k in range(n):
        # Its part of a run; what the first one takes more is paid once.
        times = [round(f * (p.segments_us[k] - p.fixed_us)) for f, p in zip(factor, (device, server), strict=True)]
        if k == n - 1:
            times = [
                round(t + f * (p.exits[-1].us - p.fixed_us))
                for t, f, p in zip(times, factor, (device, server), strict=True)
            ]
        after = device.border_bytes[k + 1] if k < n - 1 else 0
        layers.append(Layer(*times, after, (k - 1 if k else INPUT,)))
    graph = Network(
        tuple(layers),
        device.border_bytes[0],
        device.output_bytes,
        round(factor[0] * device.fixed_us),
        round(factor[1] * server.fixed_us),
    )

    found = split(graph, links[0])
    chosen = plan(places, links, Demand()).pick

    assert found.latency_ns == pytest.approx(chosen.latency_ns, abs=5)


DEVICE = network([1000.0, 4000.0, 9000.0], [3000, 500, 100], watts=3.0, machine="board")
SERVER = network([100.0, 400.0, 900.0], [3000, 500, 100], machine="rack")
TWO = (Place("device", DEVICE), Place("server", SERVER))


def test_the_reason_is_told_in_words():
    def why(demand, mbit=1.0):
        return plan(TWO, [Link(2 * MS, mbit * 1e6)], demand).why

    assert why(Demand()) == (
        "device runs segment 1, server runs segments 2 to 3: 8.62 ms is the fastest of 4 that can be had; device "
        "alone takes 14 ms"
    )
    assert why(Demand(), 0.0) == "device runs all of it: 14 ms is the fastest of 1 that can be had"
    assert why(Demand(deadline_ns=MS)) == (
        "device runs segment 1, server runs segments 2 to 3: none of 4 is in time, and 8.62 ms is the fastest; device "
        "alone takes 14 ms"
    )
    assert why(Demand(Objective.ENERGY, 10 * MS)) == (
        "device runs segment 1, server runs segments 2 to 3: 3 mJ is the least of 2 in time, at 8.62 ms; device alone "
        "takes 42 mJ and 14 ms"
    )


def test_accuracy_is_not_given_away_unasked():
    exits = (Exit("early", 0.8, 1), Exit("late", 0.95, 3))
    places = [p._replace(profile=p.profile._replace(exits=exits)) for p in TWO]
    links = [Link(2 * MS, 1e6)]

    def pick(*args):
        found = plan(places, links, Demand(*args))
        return found.pick.exit.name, found.pick.latency_ns / MS

    assert pick(Objective.LATENCY) == ("late", 8.62)
    assert pick(Objective.LATENCY, 5 * MS) == ("early", 1.0)
    assert pick(Objective.LATENCY, math.inf, 0.7) == ("early", 1.0)
    assert pick(Objective.ACCURACY, 10 * MS) == ("late", 8.62)
    assert pick(Objective.ACCURACY, 5 * MS) == ("early", 1.0)
    assert pick(Objective.ACCURACY, 5 * MS, 0.9) == ("late", 8.62)
    with pytest.raises(UsageError, match=r"no exit has an accuracy of 0\.99: the most accurate exit has 0\.95"):
        pick(Objective.LATENCY, math.inf, 0.99)


def test_what_is_not_known_cannot_be_made_the_best_of():
    unknown = [p._replace(profile=p.profile._replace(exits=(Exit("end", None, 3),), watts=None)) for p in TWO]
    links = [Link(2 * MS, 1e6)]

    assert {c.joules for c in candidates(unknown, links)} == {None}
    with pytest.raises(
        UsageError, match=r"has no watts: profile it .* or with idle_watts and busy_watts in \[telemetry"
    ):
        plan(unknown, links, Demand(Objective.ENERGY))
    assert plan(unknown, links, Demand(Objective.ENERGY), watts=1.0).pick.joules == 0.0
    with pytest.raises(UsageError, match="no accuracies"):
        plan(unknown, links, Demand(Objective.ACCURACY))
    with pytest.raises(UsageError, match="no accuracies"):
        plan(unknown, links, Demand(min_accuracy=0.5))


def test_the_code_comes_back_from_the_end():
    exits = (Exit("early", 0.8, 1), Exit("end", 0.95, 4))
    net = network([1000.0] * 4, [3000, 500, 64, 100], exits)._replace(cuts=("a", "code", "c"), code_bytes=64)

    found = candidates([Place(name, net) for name in "abc"], [Link(0, 1e6)] * 2)

    sent = {(c.exit.name, *crossings(c, net)): c.bytes for c in found}
    assert sent["end", "window", "window"] == (3104, 3104)
    assert sent["end", "a", None] == (604, 0)
    assert sent["end", "a", "code"] == (604, 168)
    assert sent["end", "code", "c"] == (168, 204)
    assert sent["early", "window", None] == (3040, 0)
    assert sent["end", None, None] == sent["early", None, None] == (0, 0)


def test_load_and_speed_scale_a_place():
    slowed = Place("device", DEVICE, speed=0.5, load=0.75)

    assert slowed.run_ns(0, 3, DEVICE.exits[0]) == 8 * TWO[0].run_ns(0, 3, DEVICE.exits[0])


def read(name):
    return read_profile((PROFILES / name).read_bytes())


def test_a_profile_is_read():
    profile = read("board.json")

    assert (profile.machine, profile.bundle) == ("board-7", "har-test@0123abcd")
    assert profile.exits == (Exit("end", 0.95, 5),)
    assert profile.border_bytes == (3072, 3072, 1536, 1024, 48)
    assert profile.segments_us == (900, 250, 4000, 2500, 12000)
    assert (profile.fixed_us, profile.whole_us, profile.watts) == (200, 18850, 3.0)
    assert profile.run_us(0, 5) == 18850
    assert profile.run_us(1, 3) == 250 + 4000 - 200
    assert profile.run_us(4, 5) == 12000


def test_machines_that_keep_different_cuts_share_those_that_both_have():
    board, server = aligned([read("board.json"), read("server.json")], "ab")

    assert board.cuts == server.cuts == ("conv1", "conv2", "code")
    assert board.border_bytes == (3072, 3072, 1024, 48)
    assert board.segments_us == (900, 4050, 2500, 12000)
    assert server.segments_us == (50, 160, 110, 420)
    assert board.exits == (Exit("end", 0.95, 4),)
    assert spans(candidates([Place("d", board), Place("s", server)], [Link(0, 1e6)])[1]) == [(0, 3), (3, 4)]


def test_an_exit_that_only_one_of_them_can_cut_at_is_left_out():
    board = read("board.json")
    board = board._replace(exits=(Exit("early", 0.8, 2), Exit("middle", 0.9, 3), *board.exits))
    server = read("server.json")
    server = server._replace(exits=(Exit("middle", 0.9, 2), *server.exits))

    assert [[(e.name, e.after) for e in p.exits] for p in aligned([board, server], "ab")] == [
        [("middle", 2), ("end", 4)]
    ] * 2


SAME = "though both are called har-test@0123abcd: "


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"bundle": "other@1"}, "(har-test@0123abcd and other@1): profile the same bundle on both machines"),
        ({"output_bytes": 1}, SAME + "an answer has 40 and 1 bytes. Profile it anew on both machines, with the same"),
        ({"code_bytes": 1}, SAME + "the code in it has 48 and 1 bytes. Profile it anew"),
        ({"border_bytes": (3072, 3072, 1024, 64)}, SAME + "code has 48 and 64 bytes. Profile it anew"),
        ({"border_bytes": (1, 2, 3, 4)}, SAME + "window has 3072 and 1 bytes. Profile it anew"),
        ({"cuts": ("conv2", "conv1", "code")}, SAME + "their cuts are not in the same order. Profile it anew"),
        ({"exits": (Exit("x", 1, 4),)}, SAME + "no exit in common. Profile it anew"),
    ],
)
def test_profiles_of_different_networks_do_not_go_together(other, said):
    with pytest.raises(UsageError) as refused:
        aligned([read("board.json"), read("server.json")._replace(**other)], ["a.json", "b.json"])
    assert str(refused.value).startswith("the profiles of a.json and b.json are of different networks")
    assert said in str(refused.value)


GOOD = json.loads((PROFILES / "board.json").read_text())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"v": 2}, "version 2; this agent reads 1"),
        ({"v": None}, "not a profile"),
        ({"segments": []}, "0 segments do not lie between 4 cuts"),
        ({"cuts": 7}, "cuts must be a list"),
        ({"cuts": [GOOD["cuts"][0]] * 4}, "different names"),
        ({"segments": GOOD["segments"][::-1]}, "segments[0] goes from 4 to 5: they are not in order"),
        ({"fixed_us": "x"}, "fixed_us must be a number"),
        ({"fixed_us": math.nan}, "fixed_us must be a number"),
        ({"whole_us": -1}, "whole_us must be a number"),
        ({"input_bytes": 1.5}, "input_bytes must be a whole number"),
        ({"exits": []}, "exits must be at least one"),
        ({"exits": GOOD["exits"] * 2}, "of different names"),
        ({"exits": [GOOD["exits"][0] | {"accuracy": 90}]}, "exits.accuracy must be a number from 0 to 1"),
        ({"exits": [GOOD["exits"][0] | {"after": 6}]}, "after 1 to 5 segments"),
        ({"exits": [{"name": "end", "accuracy": 0.9, "after": 5}]}, "lacks 'us'"),
        ({"watts": {"busy": 1}}, "lacks 'idle'"),
        ({"machine": {"name": "a\nb"}}, "machine.name must be 1 to 256 printable characters"),
        ({"bundle": None}, "bundle must be"),
    ],
)
def test_a_bad_profile_is_told_what_is_wrong(change, said):
    with pytest.raises(InputError) as refused:
        read_profile(json.dumps(GOOD | change).encode())
    assert said in str(refused.value)
    assert "har-agent profile" in str(refused.value) or "version" in said


@pytest.mark.parametrize("key", sorted(GOOD))
def test_a_profile_lacks_nothing(key):
    with pytest.raises(InputError):
        read_profile(json.dumps({k: v for k, v in GOOD.items() if k != key}).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"7", b"[" * 100_000, b"\xff\xfe", b'{"v": true}', b"null"])
def test_what_is_no_profile_is_refused(data):
    with pytest.raises(InputError, match="har-agent profile"):
        read_profile(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)
@given(st.sampled_from(sorted(GOOD)), JSON)
def test_whatever_stands_in_a_field_is_read_or_refused(key, value):
    try:
        profile = read_profile(json.dumps(GOOD | {key: value}).encode())
    except InputError:
        return
    assert plan([Place("device", profile)], [], Demand()).pick.is_local
