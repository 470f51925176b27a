"""Watch: what agents publish, from the outside, as any subscriber gets it."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Self

from agent.adapters.clock import SystemClock
from agent.adapters.mqtt import Subscriber
from agent.app.compose import broker_named, credentials_dir
from agent.config import Config
from agent.core.fleet import AGENT_MESSAGES, DEVICE_MESSAGES, Agent, Device, Fleet
from agent.core.settings import BrokerSettings
from agent.core.wire import topic_level
from agent.ports import Clock

_SHORTEST_S = 0.02


class Watch:
    """What is known of agents and devices, from entering to leaving. For one thread."""

    def __init__(
        self, config: Config, brokers: Sequence[str] = (), devices: Sequence[str] = (), clock: Clock | None = None
    ) -> None:
        """`brokers`: addresses, or names of configured ones; the first configured one if empty. `devices`: only these.

        Raises:
            UsageError: an address that is none.
        """
        self._clock = clock or SystemClock()
        self.fleet = Fleet(config.mqtt.root)
        self._subscribers = [
            Subscriber(
                broker,
                config.mqtt,
                filters(config.mqtt.root, devices),
                self._clock,
                credentials=credentials_dir(),
            )
            for broker in _brokers(config, brokers)
        ]
        self._running = ExitStack()

    def __enter__(self) -> Self:
        """Connect; blocks until every broker has confirmed.

        Raises:
            SinkUnavailable: one cannot be reached, or refuses.
        """
        with ExitStack() as starting:
            for subscriber in self._subscribers:
                starting.callback(subscriber.close)
                subscriber.start()
            self._running = starting.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        """Disconnect."""
        self._running.close()

    def now_ns(self) -> int:
        """The clock that ages are counted on."""
        return self._clock.monotonic_ns()

    def wall_ns(self) -> int:
        """The wall clock."""
        return self._clock.wall_ns()

    def update(self, seconds: float, most: int = 1000) -> list[Device | Agent]:
        """Take what comes within `seconds`, or `most` changes; return what changed, in order."""
        deadline_ns = self.now_ns() + round(seconds * 1e9)
        share_s = max(seconds / 5 / len(self._subscribers), _SHORTEST_S)
        changed: list[Device | Agent] = []
        while len(changed) < most:
            left_s = (deadline_ns - self.now_ns()) / 1e9
            if left_s <= 0:
                break
            for subscriber in self._subscribers:
                message = subscriber.poll(min(left_s, share_s))
                while message is not None:
                    what = self.fleet.feed(
                        message.topic, message.payload, message.t_rx_ns, retained=bool(message.retained)
                    )
                    if what is not None:
                        changed.append(what)
                    if len(changed) >= most:
                        break
                    message = subscriber.poll(0)
        return changed

    def problems(self) -> list[str]:
        """What is wrong with the connections, for people."""
        return [s.state().problem or "a broker is away" for s in self._subscribers if not s.state().connected]

    @property
    def overflowed(self) -> int:
        """Messages that came faster than they could be taken."""
        return sum(s.overflowed for s in self._subscribers)


def filters(root: str, devices: Sequence[str]) -> list[str]:
    """Return the topic filters for these devices, all of them if empty, and for every agent."""
    levels = [topic_level(name) for name in devices] or ["+"]
    return [
        *(f"{root}/{level}/{kind}" for level in levels for kind in DEVICE_MESSAGES),
        *(f"{root}/+/{kind}" for kind in AGENT_MESSAGES),
    ]


def _brokers(config: Config, named: Sequence[str]) -> list[BrokerSettings]:
    return [broker_named(config, name) for name in named] or [next(iter(config.broker.values()))]
