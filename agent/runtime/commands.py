"""Requests over MQTT: taken in the link's thread, carried out in the engine's, answered where they ask for it."""

import json
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from agent.core.wire import VERSION, encode
from agent.errors import AgentError
from agent.ports import Log
from agent.records import Outgoing

MAX_WAITING = 32
MAX_WAITING_BYTES = 33 << 20
"""Requests, and bytes of them, that may wait for the engine; more are refused at once, by silence, and counted. The
largest bundle that can be installed just fits."""

Handler = Callable[[bytes], dict[str, Any]]
"""Takes a request's payload and returns its result.

Raises AgentError or ValueError with a sentence for whoever asked.
"""


class Commands:
    """Carries out commands by name."""

    def __init__(self, handlers: Mapping[str, Handler], reply: Callable[[Outgoing], object], log: Log) -> None:
        self._handlers = handlers
        self._reply = reply
        self._log = log
        self._lock = threading.Lock()
        self._waiting: deque[tuple[str, bytes, str, bytes]] = deque()
        self._waiting_bytes = 0
        self.refused = 0
        """Requests that found too many others waiting."""

    def receive(self, topic: str, payload: bytes, response_topic: str = "", correlation: bytes = b"") -> None:
        """Take a request; called from the link's thread, never blocks. Its name is the topic's last level."""
        with self._lock:
            fits = self._waiting_bytes + len(payload) <= MAX_WAITING_BYTES
            if len(self._waiting) >= MAX_WAITING or not fits:
                self.refused += 1
                return
            self._waiting_bytes += len(payload)
            self._waiting.append((topic.rpartition("/")[2], payload, response_topic, correlation))

    def handle(self) -> None:
        """Carry out the one that has waited longest: between two of them there is a turn, and a sign of life."""
        with self._lock:
            if not self._waiting:
                return
            name, payload, response_topic, correlation = self._waiting.popleft()
            self._waiting_bytes -= len(payload)
        answer = self._answer(name, payload)
        self._log.info("command", command=name[:64], ok=answer["ok"], error=answer.get("error"))
        if response_topic:
            self._reply(Outgoing(response_topic, encode(answer), correlation=correlation or None))

    def _answer(self, name: str, payload: bytes) -> dict[str, Any]:
        handler = self._handlers.get(name)
        if handler is None:
            return _failed(f"there is no command {name[:64]!r}; there are {', '.join(sorted(self._handlers))}")
        try:
            return {"v": VERSION, "ok": True, "result": handler(payload)}
        except (AgentError, ValueError) as e:
            return _failed(str(e))
        except Exception as e:  # noqa: BLE001  whoever may send a request must not be able to end the agent
            self._log.warning("command failed", command=name, error=f"{type(e).__name__}: {e}")
            return _failed(f"it failed: {type(e).__name__}: {e}")


def arguments(payload: bytes, known: Mapping[str, type]) -> dict[str, Any]:
    """Read a request's payload: empty, or a JSON object with some of the `known` keys, each of its type.

    Raises:
        ValueError: it is something else; the text says what it must be.
    """
    if not payload.strip():
        return {}
    wants = "a JSON object with " + ", ".join(f"{k} ({t.__name__})" for k, t in known.items())
    if not known:
        raise ValueError("this command takes no arguments: its payload must be empty")
    try:
        given = json.loads(payload)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"the payload must be {wants}: {e}") from e
    if not isinstance(given, dict):
        raise ValueError(f"the payload must be {wants}")
    for key, value in given.items():
        kind = known.get(key)
        number = kind is float and isinstance(value, int)
        if kind is None or isinstance(value, bool) != (kind is bool) or not (number or isinstance(value, kind)):
            raise ValueError(f"{key!r}: the payload must be {wants}")
        if number:
            try:
                given[key] = float(value)
            except OverflowError as e:
                raise ValueError(f"{key!r} is too large") from e
    return given


def _failed(sentence: str) -> dict[str, Any]:
    return {"v": VERSION, "ok": False, "error": sentence}
