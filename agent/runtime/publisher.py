"""What the pipeline decides, as messages for the broker."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from agent.core.clock_map import ClockMap
from agent.core.wire import VERSION, LivePredictions, activity_message, encode, topic_level
from agent.ports import Clock
from agent.records import ActivityChange, Outgoing, Prediction, Refused, Turn

if TYPE_CHECKING:
    from agent.core.messages import AvailabilityMessage, AvailabilityState

_SYNCED_NS = 1_000_000_000
"""How long an answer to "is the clock right" is good for: it costs a system call."""


class Delivery(Protocol):
    """What carries messages to the broker."""

    def publish(self, messages: Sequence[Outgoing], received_ns: Sequence[int]) -> None:
        """Take messages that may not be lost, with the time at which the last sample of each was received."""

    def set_state(self, topic: str, payload: bytes) -> None:
        """Take what `topic` shall retain from now on."""

    def forget_state(self, topic: str) -> None:
        """Have `topic` retain nothing any more."""


class _Device:
    """A stream, as subscribers see it."""

    __slots__ = ("activity", "availability", "clock", "prediction", "refusal", "revision", "told")

    def __init__(self, topic: str) -> None:
        self.prediction = f"{topic}/prediction"
        self.revision = f"{topic}/revision"
        self.activity = f"{topic}/activity"
        self.availability = f"{topic}/availability"
        self.clock = ClockMap()
        self.refusal: str | None = None
        self.told: AvailabilityState | None = None


class Publisher:
    """`ports.Sink`: `<root>/<device>/prediction` for every window; `activity` and `availability`, retained.

    And `<root>/<device>/revision` of what a turn revises.
    """

    def __init__(
        self, delivery: Delivery, clock: Clock, root: str, labels: Sequence[str], boot: str, agent: str
    ) -> None:
        """`root`: first level of every topic. `labels`: the model's. `boot`, `agent`: names of run and board."""
        self._delivery = delivery
        self._agent = agent
        self._clock = clock
        self._root = root
        self._boot = boot
        self._live = LivePredictions(labels, boot)
        self._devices: dict[str, _Device] = {}
        self._synced = clock.synced()
        self._synced_until_ns = clock.monotonic_ns() + _SYNCED_NS

    def use_labels(self, labels: Sequence[str]) -> None:
        """Take the labels of a model that takes over from the next turn on."""
        self._live = LivePredictions(labels, self._boot)

    def write(self, turn: Turn) -> None:
        """Hand on what a turn brought. Blocks as long as the outbox does.

        Raises:
            ValueError: a prediction whose scores are no numbers.
        """
        now_ns = self._clock.monotonic_ns()
        epoch_ns = self._clock.wall_ns() - now_ns
        if now_ns >= self._synced_until_ns:
            self._synced, self._synced_until_ns = self._clock.synced(), now_ns + _SYNCED_NS
        for batch in turn.batches:
            device = self._device(batch.stream)
            if len(batch.t_ns) and batch.t_rx_ns is not None:
                device.clock.update(int(batch.t_ns[-1]), batch.t_rx_ns)
            self._tell(batch.stream, device, "degraded" if device.refusal else "online", device.refusal)
        messages: list[Outgoing] = []
        received_ns: list[int] = []
        for event in turn.events:
            if isinstance(event, Prediction):
                device = self._device(event.stream)
                if device.refusal is not None:
                    device.refusal = None
                    self._tell(event.stream, device, "online", None)
                timings = turn.timings.get((event.stream, event.seq))
                wall_ns = epoch_ns + _or(device.clock.monotonic_ns(event.t1_ns), now_ns)
                payload = self._live.encode(event, wall_ns, timings, clock_synced=self._synced)
                messages.append(Outgoing(device.prediction, payload))
                received_ns.append(now_ns if timings is None else timings.received_ns)
            elif isinstance(event, ActivityChange):
                device = self._device(event.stream)
                wall_ns = epoch_ns + _or(device.clock.monotonic_ns(event.t_ns), now_ns)
                message = activity_message(event, wall_ns, clock_synced=self._synced)
                self._delivery.set_state(device.activity, encode(message))
            elif isinstance(event, Refused):
                self.unusable(event.stream, event.reason)
        for revised in turn.revisions:
            device = self._device(revised.stream)
            wall_ns = epoch_ns + _or(device.clock.monotonic_ns(revised.t1_ns), now_ns)
            payload = self._live.encode(revised, wall_ns, clock_synced=self._synced)
            messages.append(Outgoing(device.revision, payload))
            received_ns.append(now_ns)
        if messages:
            self._delivery.publish(messages, received_ns)

    def unusable(self, stream: str, reason: str) -> None:
        """Say that the samples of `stream` cannot be used, until its next prediction. `reason`: for people."""
        device = self._device(stream)
        device.refusal = reason
        self._tell(stream, device, "degraded", reason)

    def silent(self, stream: str, reason: str = "no samples come") -> None:
        """Say that `stream` is offline, until its next samples. `reason`: for people."""
        self._tell(stream, self._device(stream), "offline", reason)

    def retire(self, stream: str) -> None:
        """Forget `stream`, and have the broker forget it: an empty message clears what a topic retains."""
        device = self._devices.pop(stream, None)
        if device is not None:
            self._delivery.forget_state(device.activity)
            self._delivery.forget_state(device.availability)

    def close(self) -> None:
        """Say that every stream is offline. Idempotent."""
        for stream in self._devices:
            self.silent(stream, "the agent was stopped")

    def _device(self, stream: str) -> _Device:
        device = self._devices.get(stream)
        if device is None:
            device = self._devices[stream] = _Device(f"{self._root}/{topic_level(stream)}")
        return device

    def _tell(self, stream: str, device: _Device, state: "AvailabilityState", reason: str | None) -> None:
        if device.told != state:
            device.told = state
            message: AvailabilityMessage = {"v": VERSION, "device": stream, "agent": self._agent, "state": state}
            if reason:
                message["reason"] = reason
            self._delivery.set_state(device.availability, encode(message))


def _or(known_ns: int | None, else_ns: int) -> int:
    return else_ns if known_ns is None else known_ns
