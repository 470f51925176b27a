"""The best split of a network that is no chain between a device and a server, by a minimum cut.

DADS (Hu et al., INFOCOM 2019): a graph is made so that what a cut of it costs is what the split costs in time, and the
least cut is found by the greatest flow (Ford and Fulkerson). A layer on the source's side runs on the device:

    source -> layer     its time on the server, paid if it runs there
    layer -> sink       its time on the device, paid if it runs there
    layer -> sender     the transfer of what it gives, paid once however many layers on the server take it
    sender -> taker     never cut
    taker -> layer      never cut: what has left the device does not come back before it is the answer

What is paid once for running anything on a side is a node as well. Times are whole nanoseconds, so that all is exact.
The flow is found along shortest paths, a level graph at a time (Dinitz, 1970).
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from agent.core.planner import Link

INPUT = -1
"""The number of what the network takes, among those of its layers."""


class Layer(NamedTuple):
    """One layer. `takes`: the numbers of those before it whose output it takes."""

    device_ns: int
    server_ns: int
    output_bytes: int
    takes: tuple[int, ...] = (INPUT,)


class Network(NamedTuple):
    """Layers, each after those that it takes from, and what is paid once.

    `device_ns`, `server_ns`: for running anything on that side. `output_bytes`: the answer, which comes back from the
    server if anything runs there.
    """

    layers: tuple[Layer, ...]
    input_bytes: int
    output_bytes: int
    device_ns: int = 0
    server_ns: int = 0


class Split(NamedTuple):
    """Which layers run on the device, by number, and how long it takes in all."""

    on_device: tuple[bool, ...]
    latency_ns: int


def split(network: Network, link: Link) -> Split:
    """Return the fastest split; of equal ones, that which leaves most to the device."""
    layers = network.layers
    local = network.device_ns + sum(layer.device_ns for layer in layers)
    if link.bits_per_s <= 0.0:
        return Split((True,) * len(layers), local)

    def transfer_ns(n_bytes: int) -> int:
        return round(8e9 * n_bytes / link.bits_per_s)

    # The layers have their own numbers, the senders follow, that of the input first.
    n = len(layers)
    device, server, source, sink = range(2 * n + 1, 2 * n + 5)
    flow = _Flow(2 * n + 5)
    # To run all on the device costs less: no least cut goes through a pipe of this.
    never = local + 1
    flow.add(device, sink, network.device_ns)
    flow.add(source, server, round(link.rtt_ns) + transfer_ns(network.output_bytes) + network.server_ns)
    flow.add(source, n, transfer_ns(network.input_bytes))
    for v, layer in enumerate(layers):
        flow.add(source, v, layer.server_ns)
        flow.add(v, sink, layer.device_ns)
        flow.add(v, device, never)
        flow.add(server, v, never)
        flow.add(v, n + 1 + v, transfer_ns(layer.output_bytes))
        for u in layer.takes:
            flow.add(n + 1 + u, v, never)
            if u != INPUT:
                flow.add(v, u, never)
    latency_ns = flow.fill(source, sink)
    off_device = flow.reaching(sink)
    return Split(tuple(not off_device[v] for v in range(n)), latency_ns)


class _Flow:
    """A network of pipes: each with what it can still carry, and beside it the one back, by number xor 1."""

    def __init__(self, n_nodes: int) -> None:
        self._from: list[list[int]] = [[] for _ in range(n_nodes)]
        self._to: list[int] = []
        self._left: list[int] = []

    def add(self, start: int, end: int, capacity: int) -> None:
        for node, to, left in ((start, end, capacity), (end, start, 0)):
            self._from[node].append(len(self._to))
            self._to.append(to)
            self._left.append(left)

    def fill(self, source: int, sink: int) -> int:
        """Return the greatest flow."""
        flow = 0
        while (level := self._levels(source))[sink] >= 0:
            at = [0] * len(self._from)
            path: list[int] = []
            while True:
                node = self._to[path[-1]] if path else source
                if node == sink:
                    least = min(self._left[pipe] for pipe in path)
                    flow += least
                    for pipe in path:
                        self._left[pipe] -= least
                        self._left[pipe ^ 1] += least
                    path.clear()
                    continue
                pipes = self._from[node]
                while at[node] < len(pipes) and not self._leads_on(pipes[at[node]], level):
                    at[node] += 1
                if at[node] < len(pipes):
                    path.append(pipes[at[node]])
                elif path:
                    at[self._to[path.pop() ^ 1]] += 1
                else:
                    break
        return flow

    def _leads_on(self, pipe: int, level: Sequence[int]) -> bool:
        return self._left[pipe] > 0 and level[self._to[pipe]] == level[self._to[pipe ^ 1]] + 1

    def _levels(self, source: int) -> list[int]:
        """Return how many pipes that carry more each node is from the source; -1 where none lead."""
        level = [-1] * len(self._from)
        level[source] = 0
        queue = deque([source])
        while queue:
            node = queue.popleft()
            for pipe in self._from[node]:
                if self._left[pipe] and level[self._to[pipe]] < 0:
                    level[self._to[pipe]] = level[node] + 1
                    queue.append(self._to[pipe])
        return level

    def reaching(self, sink: int) -> list[bool]:
        """Return from which nodes more could flow to the sink: the smallest side of it that a least cut can have."""
        found = [False] * len(self._from)
        found[sink] = True
        queue = deque([sink])
        while queue:
            node = queue.popleft()
            for pipe in self._from[node]:
                start = self._to[pipe]
                if self._left[pipe ^ 1] and not found[start]:
                    found[start] = True
                    queue.append(start)
        return found
