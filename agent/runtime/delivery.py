"""What is sent when: the policy between the publisher, the outbox and the link. Does no I/O of its own; one thread.

Three kinds of messages:

- Stored: in the outbox before they are offered to the link, out of it once the broker has acknowledged them. Offered
  live while the link is connected, in the turn that made them or as soon as it has room; what was not, or was lost with
  its connection, is history.
  History is offered in order of the keys, marked, at a bounded rate, and only into the part of the window that is not
  kept free for live messages.
- State: retained topics. The latest payload of each is offered when it changes and first thing in every session.
- Sent once: telemetry and replies. Dropped and counted if the link takes none.

History is walked with a cursor: all that is stored above it was not offered in this session, or is in flight. It goes
back to the start when a session ends, since then everything that is still stored is history.

A refusal (an ACL, mostly) pauses its topic: what belongs there stays stored, and after a while a single message of it
probes, the next one each time, in case only one is at fault. Once a probe is taken, the topic's messages are history.
"""

import itertools
import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from agent.core.histogram import Histogram
from agent.core.settings import MqttSettings, OutboxSettings
from agent.core.wire import HISTORICAL, LIVE
from agent.ports import Clock, Link, Outbox
from agent.records import Ack, Outgoing, Stored

MOST_LATE = 5000
"""Live messages that may wait for room in the link; what comes beyond is history."""

_PAGE = 64
"""Stored messages that are looked at in a turn, at least."""
_POLL_S = 0.005


class _Flight(NamedTuple):
    """A message that the link has taken. `key`: in the outbox; None for the other kinds."""

    topic: str
    offered_ns: int
    key: int | None = None
    received_ns: int | None = None
    """When what a live message tells of was received."""
    is_state: bool = False


class _Late(NamedTuple):
    """A live message that waits for room."""

    message: Outgoing
    flight: _Flight


class _State:
    """The latest payload of a retained topic. `last`: the topic is forgotten once the broker has it."""

    def __init__(self, payload: bytes, *, last: bool = False) -> None:
        self.payload = payload
        self.last = last
        self.token: int | None = None
        """Under which the link has it, or had it."""


class _Refusal:
    """A topic that the broker refused. `first_key`: the oldest stored message that is held back for it."""

    def __init__(self, first_key: int) -> None:
        self.first_key = first_key
        self.reason = ""
        self.until_ns = 0
        self.probe: int | None = None
        """Key of the message in flight that tries again."""
        self.probed = first_key
        """Where to look for the next one: above it."""
        self.again = False
        """Whether that has come to the end once, and began from the first."""


class Delivery:
    """Hands messages to the link so that none that is stored is lost, and the newest never wait for old ones.

    Attributes:
        published: messages that were to be delivered, stored ones.
        acknowledged: of those, by the broker.
        historical: times one was offered from the store.
        refused: refusals by the broker, of messages of any kind.
        unsent: messages to be sent once that were dropped, or lost with their connection.
        possible_repeats: stored messages that were lost sight of with their connection, and are sent again.
    """

    def __init__(self, outbox: Outbox, link: Link, clock: Clock, settings: OutboxSettings, mqtt: MqttSettings) -> None:
        self._outbox = outbox
        self._link = link
        self._clock = clock
        self._history_hz = settings.history_hz
        self._inflight = mqtt.inflight
        self._history_room = max(1, mqtt.inflight * 3 // 4)
        self._ack_timeout_ns = round(mqtt.ack_timeout_s * 1e9)
        self._pause_ns = round(mqtt.retry_longest_s * 1e9)
        self._flights: dict[int, _Flight] = {}
        """By token, in the order in which they were offered."""
        self._keys: set[int] = set()
        """Stored messages in flight, or late."""
        self._late: deque[_Late] = deque()
        """Live messages that found no room, in order."""
        self._states: dict[str, _State] = {}
        self._due_ns: dict[str, int] = {}
        """States that are to be offered, and from when on."""
        self._refused_states: dict[str, str] = {}
        self._refusals: dict[str, _Refusal] = {}
        self._connected = False
        self._session = 0
        self._answered_ns = 0
        self._disturbed = 0
        self._cursor = 0
        self._waiting = True
        """Whether there may be history above the cursor."""
        self._burst = max(1.0, self._history_hz)
        self._tokens = self._burst
        self._filled_ns = clock.monotonic_ns()
        self._ending = False
        self._delivered = Histogram()
        self.published = 0
        self.acknowledged = 0
        self.historical = 0
        self.refused = 0
        self.unsent = 0
        self.possible_repeats = 0

    @property
    def in_flight(self) -> int:
        """Messages that the link has taken and the broker has not answered."""
        return len(self._flights)

    @property
    def problem(self) -> str | None:
        """What the broker refuses, for people; None if nothing is."""
        refused = {topic: refusal.reason for topic, refusal in self._refusals.items()} | self._refused_states
        if not refused:
            return None
        topic, reason = next(iter(refused.items()))
        more = f" and {len(refused) - 1} more topics" if len(refused) > 1 else ""
        return (
            f"{topic}{more} refused: {reason}; what is refused is kept and tried again every {self._pause_ns / 1e9:g} s"
        )

    def take_delivered(self) -> Histogram:
        """Return the times from receiving to PUBACK of live messages since the last call."""
        taken, self._delivered = self._delivered, Histogram()
        return taken

    def publish(self, messages: Sequence[Outgoing], received_ns: Sequence[int] = ()) -> None:
        """Store messages, which are not retained, and offer them live. Blocks on the outbox.

        `received_ns`: for each, when what it tells of was received; empty where that is not known.
        """
        if not messages:
            return
        now_ns = self._observe()
        keys = self._outbox.append(messages)
        self.published += len(messages)
        for key, message, received in zip(keys, messages, received_ns or itertools.repeat(None), strict=False):
            if self._connected and message.topic not in self._refusals:
                flight = _Flight(message.topic, now_ns, key, received)
                if not self._late and self._offer(message, flight):
                    continue
                if len(self._late) < MOST_LATE:
                    self._late.append(_Late(message, flight))
                    self._keys.add(key)
                    continue
            self._waiting = True

    def set_state(self, topic: str, payload: bytes) -> None:
        """Publish `payload` retained, now and in every session from now on, until it is followed by another."""
        known = self._states.get(topic)
        if known is None or known.last or known.payload != payload:
            self._set_state(topic, _State(payload))

    def forget_state(self, topic: str) -> None:
        """Have the broker forget what it retains under `topic`."""
        self._set_state(topic, _State(b"", last=True))

    def repeat_state(self, topic: str) -> None:
        """Publish what `topic` retains once more, for a subscriber that has begun anew."""
        if topic in self._states:
            self._due_ns[topic] = self._clock.monotonic_ns()

    @property
    def settled(self) -> bool:
        """Whether the broker has acknowledged every state and every message that was handed to it."""
        return self._connected and not self._flights and not self._late and not self._due_ns

    def send(self, message: Outgoing) -> bool:
        """Send once, without storing; False, and counted, if the link takes none."""
        now_ns = self._observe()
        sent = self._connected and self._offer(message, _Flight(message.topic, now_ns))
        self.unsent += not sent
        return sent

    def tick(self) -> None:
        """Take the broker's answers, and offer what is due; then the outbox's own `tick`. Blocks on the outbox."""
        now_ns = self._observe()
        if self._connected:
            self._watch(now_ns)
            self._offer_states(now_ns)
            self._offer_late(now_ns)
            self._probe(now_ns)
            self._offer_history(now_ns)
        self._outbox.tick()

    def flush(self, deadline_ns: int) -> int:
        """Wait for what is in flight, until `deadline_ns` at most; offers no more history.

        Returns:
            Messages that are still in flight; those of the outbox stay there.
        """
        self._ending = True
        self.tick()
        while self._connected and (self._flights or self._late) and self._clock.monotonic_ns() < deadline_ns:
            self._clock.sleep(_POLL_S)
            self.tick()
        return len(self._flights)

    def farewell(self, deadline_ns: int) -> int:
        """Do as `flush` does, before the link is closed; break the connection where messages are still in flight."""
        left = self.flush(deadline_ns)
        if left:
            # Without a farewell the broker publishes the last will, which says the same.
            self._link.disturb("it was closed while messages were under way")
        return left

    # --- what the link says

    def _observe(self) -> int:
        """Follow the link: its session, and the broker's answers. Return the time."""
        now_ns = self._clock.monotonic_ns()
        # The state before the answers: what came before the session ended is among them.
        state = self._link.state()
        done: list[int] = []
        for ack in self._link.acknowledged():
            self._answered(ack, now_ns, done)
        if done:
            self._outbox.remove(done)
        if state.session != self._session or not state.connected:
            self._void()
        if state.connected and state.session != self._session:
            self._session = state.session
            self._due_ns = dict.fromkeys(self._states, now_ns)
        if state.window:
            # A quarter of what is under way at a time is kept free for live messages; but where turns are as seldom as
            # one sensor needs them, history must find room for half a second at a time, or it falls behind its rate.
            room = max(state.window, math.ceil(self._history_hz / 2))
            self._history_room = max(1, min(self._inflight, room) * 3 // 4)
        self._connected = state.connected
        return now_ns

    def _answered(self, ack: Ack, now_ns: int, done: list[int]) -> None:
        flight = self._flights.pop(ack.token, None)
        if flight is None:
            return
        self._answered_ns = max(self._answered_ns, ack.t_ns)
        if ack.refusal is not None:
            self._note_refusal(ack.token, ack.refusal, flight, now_ns)
            return
        if flight.is_state:
            known = self._states.get(flight.topic)
            if known and known.token == ack.token:
                self._refused_states.pop(flight.topic, None)
                if known.last:
                    del self._states[flight.topic]
                    self._due_ns.pop(flight.topic, None)
        elif flight.key is not None:
            self._keys.discard(flight.key)
            done.append(flight.key)
            self.acknowledged += 1
            if flight.received_ns is not None:
                self._delivered.add(ack.t_ns - flight.received_ns)
            refusal = self._refusals.get(flight.topic)
            if refusal and refusal.probe == flight.key:
                del self._refusals[flight.topic]
                self._rewind(refusal.first_key - 1)

    def _note_refusal(self, token: int, reason: str, flight: _Flight, now_ns: int) -> None:
        self.refused += 1
        until_ns = now_ns + self._pause_ns
        if flight.is_state:
            known = self._states.get(flight.topic)
            if known and known.token == token:
                self._due_ns[flight.topic] = until_ns
                self._refused_states[flight.topic] = reason
        elif flight.key is not None:
            self._keys.discard(flight.key)
            refusal = self._refusals.setdefault(flight.topic, _Refusal(flight.key))
            refusal.first_key = min(refusal.first_key, flight.key)
            refusal.reason = reason
            if refusal.probe in (None, flight.key):
                refusal.until_ns, refusal.probe = until_ns, None

    def _void(self) -> None:
        """Everything in flight is lost sight of: what is stored is history."""
        if not self._flights and not self._late:
            return
        for flight in self._flights.values():
            if flight.key is None and not flight.is_state:
                self.unsent += 1
        self.possible_repeats += len(self._keys) - len(self._late)
        if self._keys:
            self._rewind(min(self._keys) - 1)
        for refusal in self._refusals.values():
            refusal.probe = None
        self._flights.clear()
        self._late.clear()
        self._keys.clear()

    def _rewind(self, cursor: int) -> None:
        self._cursor = min(self._cursor, cursor)
        self._waiting = True

    def _watch(self, now_ns: int) -> None:
        """Give a connection up whose broker answers nothing although messages are in flight.

        Brokers answer in order: while answers come, the oldest message only waits for its turn on a slow line.
        """
        if not self._flights or self._disturbed == self._session:
            return
        silent_ns = now_ns - max(next(iter(self._flights.values())).offered_ns, self._answered_ns)
        if silent_ns > self._ack_timeout_ns:
            self._disturbed = self._session
            self._link.disturb(f"the broker did not acknowledge a message for {silent_ns / 1e9:.0f} s")

    # --- what is offered

    def _offer(self, message: Outgoing, flight: _Flight) -> bool:
        token = self._link.offer(message)
        if token is None:
            return False
        self._flights[token] = flight
        if flight.key is not None:
            self._keys.add(flight.key)
        elif flight.is_state:
            self._states[flight.topic].token = token
        return True

    def _set_state(self, topic: str, state: _State) -> None:
        now_ns = self._observe()
        self._states[topic] = state
        self._due_ns[topic] = now_ns
        self._offer_states(now_ns)

    def _offer_states(self, now_ns: int) -> None:
        if not self._connected:
            return
        due = [topic for topic, due_ns in self._due_ns.items() if due_ns <= now_ns]
        for topic in due:
            message = Outgoing(topic, self._states[topic].payload, retain=True)
            if not self._offer(message, _Flight(topic, now_ns, is_state=True)):
                return
            del self._due_ns[topic]

    def _offer_late(self, now_ns: int) -> None:
        """Offer live messages that found no room when they were made: still live, and before any history."""
        while self._late:
            message, flight = self._late[0]
            assert flight.key is not None
            if message.topic in self._refusals:
                self._keys.discard(flight.key)
                self._rewind(flight.key - 1)
            elif not self._offer(message, flight._replace(offered_ns=now_ns)):
                return
            self._late.popleft()

    def _probe(self, now_ns: int) -> None:
        """Try a message of a topic whose pause is over: one topic in a turn, and a page of what is stored."""
        due = (known for known in self._refusals.items() if known[1].probe is None and known[1].until_ns <= now_ns)
        topic, refusal = next(due, (None, None))
        if self._ending or topic is None or refusal is None:
            return
        page = self._outbox.oldest(_PAGE, refusal.probed)
        for stored in page:
            if stored.topic == topic and stored.key not in self._keys:
                if self._offer_stored(stored, now_ns):
                    refusal.probe = refusal.probed = stored.key
                    refusal.again = False
                return
        if page:
            refusal.probed = page[-1].key
        elif not refusal.again:
            refusal.probed, refusal.again = refusal.first_key - 1, True
        else:
            # All of it went to make room.
            del self._refusals[topic]

    def _offer_history(self, now_ns: int) -> None:
        elapsed_s = (now_ns - self._filled_ns) / 1e9
        self._tokens = min(self._burst, self._tokens + elapsed_s * self._history_hz)
        self._filled_ns = now_ns
        if not self._waiting and not self._refusals and self._outbox.depth > len(self._keys):
            # Something is stored that nobody knows of: a disk came back.
            self._rewind(0)
        if not self._waiting or self._ending:
            return
        room = 0 if self._late else min(int(self._tokens), self._history_room - len(self._flights))
        if room < 1:
            return
        page = self._outbox.oldest(max(room, _PAGE), self._cursor)
        self._waiting = bool(page)
        for stored in page:
            refusal = self._refusals.get(stored.topic)
            if refusal:
                refusal.first_key = min(refusal.first_key, stored.key)
            elif stored.key not in self._keys:
                if room < 1 or not self._offer_stored(stored, now_ns):
                    return
                room -= 1
                self._tokens -= 1
            self._cursor = stored.key

    def _offer_stored(self, stored: Stored, now_ns: int) -> bool:
        message = Outgoing(stored.topic, stored.payload.replace(LIVE, HISTORICAL, 1))
        if not self._offer(message, _Flight(stored.topic, now_ns, stored.key)):
            return False
        self.historical += 1
        return True
