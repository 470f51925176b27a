from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.min_cut import INPUT, Layer, Network, split
from agent.core.planner import Link

TIMES = st.integers(0, 1000)
BYTES = st.integers(0, 50)


@st.composite
def networks(draw):
    n = draw(st.integers(1, 8))
    layers = tuple(
        Layer(draw(TIMES), draw(TIMES), draw(BYTES), tuple(draw(st.sets(st.integers(INPUT, v - 1), min_size=1))))
        for v in range(n)
    )
    return Network(layers, draw(BYTES), draw(BYTES), draw(TIMES), draw(TIMES))


def latency(network, link, on_device):
    """Return what a split takes, layer by layer; None if something comes back before it is the answer."""
    total = sum(
        layer.device_ns if here else layer.server_ns for layer, here in zip(network.layers, on_device, strict=True)
    )
    sent = set()
    for layer, here in zip(network.layers, on_device, strict=True):
        for u in layer.takes:
            was_here = u == INPUT or on_device[u]
            if here and not was_here:
                return None
            if was_here and not here:
                sent.add(u)
    sizes = [network.input_bytes if u == INPUT else network.layers[u].output_bytes for u in sent]
    if any(on_device):
        total += network.device_ns
    if not all(on_device):
        total += network.server_ns + link.rtt_ns
        sizes.append(network.output_bytes)
    return total + sum(round(8e9 * size / link.bits_per_s) for size in sizes)


@settings(max_examples=300, deadline=None)
@given(networks(), st.integers(0, 500), st.sampled_from([1e8, 1e9, 8e9, 1e12]))
def test_no_split_is_faster_than_the_least_cut_and_no_equal_one_leaves_more_to_the_device(network, rtt_ns, bits_per_s):
    link = Link(rtt_ns, bits_per_s)
    tried = {s: latency(network, link, s) for s in product([True, False], repeat=len(network.layers))}
    fastest = min(t for t in tried.values() if t is not None)

    found = split(network, link)

    assert (found.latency_ns, tried[found.on_device]) == (fastest, fastest)
    assert sum(found.on_device) == max(sum(s) for s, t in tried.items() if t == fastest)


@settings(deadline=None)
@given(networks())
def test_without_a_link_the_device_runs_all(network):
    found = split(network, Link(0, 0.0))

    assert found == ((True,) * len(network.layers), latency(network, Link(0, 1.0), (True,) * len(network.layers)))


def test_what_two_layers_take_is_sent_once():
    slow_tail = (Layer(0, 0, 10), Layer(300, 0, 0, (0,)), Layer(300, 0, 0, (0,)))

    found = split(Network(slow_tail, 1000, 0), Link(0, 8e8))

    assert found == ((True, False, False), 100)


def test_a_large_network_is_split_at_its_narrowest():
    """Two hundred diamonds in a row: the bytes between them fall, and then the server is the faster one."""
    layers = []
    for k in range(200):
        device_ns, server_ns = (10, 11) if k <= 100 else (11, 10)
        before = (len(layers) - 1,)
        layers += [Layer(device_ns, server_ns, 500, before)] * 2
        layers.append(Layer(device_ns, server_ns, 100 + abs(k - 100), (len(layers) - 2, len(layers) - 1)))

    found = split(Network(tuple(layers), 400, 0), Link(0, 8e9))

    assert found == ((True,) * 303 + (False,) * 297, 6000 + 100)
