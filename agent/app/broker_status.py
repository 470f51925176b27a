"""Status as a broker knows it: what it retains of one agent, whoever asks and wherever the agent is."""

import json
from dataclasses import replace
from typing import Any, Self

from agent.adapters.clock import SystemClock
from agent.adapters.mqtt import Message, Subscriber
from agent.app.compose import agent_name, broker_named, credentials_dir
from agent.app.status import AgentStatus, wall_age_s
from agent.config import Config
from agent.core.wire import topic_level
from agent.errors import SinkUnavailable
from agent.ports import Clock

UNREACHABLE = "unreachable"
"""The state of an agent whose broker could not be asked."""

_SETTLE_S = 2.0
"""How long nothing may come after a subscription is confirmed until it counts as nothing retained: brokers send what
they retain at once, and MQTT has no word for its end."""
_AGAIN_S = 1.0
"""Between tries of a broker that could not be asked."""
_MAX_PAYLOAD = 1 << 16


class BrokerStatus:
    """What one broker says of one agent, from entering to leaving. For one thread."""

    def __init__(
        self, config: Config, broker: str, agent: str = "", patience_s: float | None = None, clock: Clock | None = None
    ) -> None:
        """`broker`: the name of a configured one, or an address. `agent`: its name, this board's if empty.

        `patience_s`: how long a connection may take, if that is less than configured.

        Raises:
            UsageError: an address that is none.
        """
        self._clock = clock or SystemClock()
        self._broker = broker_named(config, broker)
        self._agent = agent or agent_name(config)
        self._topic = f"{config.mqtt.root}/{topic_level(self._agent)}"
        longest_s = config.mqtt.connect_timeout_s
        timeout_s = longest_s if patience_s is None else min(longest_s, max(patience_s, 1.0))
        self._settings = replace(config.mqtt, connect_timeout_s=timeout_s)
        self._subscriber: Subscriber | None = None
        self._problem: str | None = None
        self._again_ns = 0
        self._told: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        """Prepare; `look` connects."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Disconnect."""
        if self._subscriber is not None:
            self._subscriber.close()

    def look(self) -> AgentStatus:
        """Return what is known now. Connects if need be, and blocks until it is clear what the broker retains."""
        if self._subscriber is None:
            if self._problem is None or self._clock.monotonic_ns() >= self._again_ns:
                self._connect()
            if self._subscriber is None:
                return AgentStatus(UNREACHABLE, self._problem, self._said(), None)
        while (message := self._subscriber.poll(0)) is not None:
            self._take(message)
        link = self._subscriber.state()
        if not link.connected:
            problem = link.problem or f"the connection to {self._where} was lost"
            return AgentStatus(UNREACHABLE, problem, self._said(), None)
        return self._judged()

    @property
    def _where(self) -> str:
        return f"{self._broker.host}:{self._broker.port}"

    def _connect(self) -> None:
        filters = [f"{self._topic}/status", f"{self._topic}/health"]
        subscriber = Subscriber(
            self._broker, self._settings, filters, self._clock, credentials=credentials_dir(), longest=100
        )
        try:
            subscriber.start()
        except SinkUnavailable as e:
            self._problem = str(e)
            self._again_ns = self._clock.monotonic_ns() + round(_AGAIN_S * 1e9)
            return
        self._subscriber, self._problem, self._told = subscriber, None, {}
        deadline_ns = self._clock.monotonic_ns() + round(_SETTLE_S * 1e9)
        while not self._is_known() and (left_ns := deadline_ns - self._clock.monotonic_ns()) > 0:
            message = subscriber.poll(left_ns / 1e9)
            if message is not None:
                self._take(message)

    def _is_known(self) -> bool:
        """Whether nothing more is retained: an agent that is offline may have no health."""
        status = self._told.get("status")
        return status is not None and (status.get("state") == "offline" or "health" in self._told)

    def _take(self, message: Message) -> None:
        kind = message.topic.rpartition("/")[2]
        if not message.payload:
            self._told.pop(kind, None)
            return
        try:
            said = json.loads(message.payload) if len(message.payload) <= _MAX_PAYLOAD else None
        except (ValueError, RecursionError):
            said = None
        # What is no such message is as good as none that says anything.
        self._told[kind] = said if isinstance(said, dict) else {}

    def _said(self) -> dict[str, Any]:
        health = self._told.get("health") or {}
        beside = {"windows": health.get("windows"), "updated": health.get("time")} if health else {}
        return {
            **self._told.get("status", {}),
            "agent": self._agent,
            "broker": self._where,
            "health": health or None,
            **beside,
        }

    def _judged(self) -> AgentStatus:
        status, health, said = self._told.get("status"), self._told.get("health") or {}, self._said()
        age_s = None
        if health.get("clock_synced") is True and self._clock.synced():
            age_s = wall_age_s(health.get("time"), self._clock)
        if status is None:
            problem = f"{self._where} retains nothing under {self._topic}/status: no agent of this name is known there"
            return AgentStatus("absent", f"{problem}; check --agent, --broker and mqtt.root", said, None)
        if status.get("state") == "offline":
            problem = "it was stopped, or its connection to this broker broke"
            return AgentStatus("offline", problem, said, age_s)
        if status.get("state") != "online":
            return AgentStatus("absent", f"{self._topic}/status does not say how it is", said, age_s)
        if not health or health.get("boot", status.get("boot")) != status.get("boot"):
            # What is retained of its health is of the run before.
            said = {**said, "health": None, "windows": None}
            return AgentStatus("starting", "it is connected, and has not told its health yet", said, None)
        state = health.get("state")
        if state not in ("ok", "degraded", "failing"):
            return AgentStatus("absent", f"{self._topic}/health does not say how it is", said, age_s)
        return AgentStatus(state, None, said, age_s)
