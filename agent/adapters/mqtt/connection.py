"""A connection to the first broker of a list that can be reached, for ever.

One thread opens a session, serves it until it ends, and opens the next one:

- A failure goes on to the next broker at once. When all have failed, the thread waits (`core.backoff`) and begins with
  the first again.
- A session that held for `stable_s` before it broke is followed by the first wait and the first broker; one that did
  not, or that was given up, counts as a failure of its broker.
- While a later broker is in use, the first is tried every `stable_s` from a thread of its own. Once a session to it is
  open, that one is used and the old one is given up: never is a working connection broken for a mere hope. A first
  broker that opens sessions which do not hold is tried half as often each time, so that it does not keep the link busy.

Every session starts clean. What was under way in one that ended is the caller's to offer again.
"""

import contextlib
import random
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from agent.adapters.mqtt import sentences
from agent.adapters.mqtt.session import MAX_PACKET, Client, Message, Session, Subscription
from agent.core.backoff import Backoff, BackoffSettings
from agent.core.settings import BrokerSettings, MqttSettings
from agent.errors import SinkUnavailable
from agent.ports import Clock
from agent.records import LinkState, Outgoing

CLOSE_S = 3.0
"""Deadline of closing. A thread that is inside a connection attempt then ends by itself after `connect_timeout_s`."""
_TICK_S = 1.0
_MOST_IN_VAIN = 5
"""Doublings of the time between tries of the first broker: half an hour for a `stable_s` of a minute."""


class Connection:
    """See the module. `subscribe`, `start`, `disturb` and `close` are for one thread, the others for any."""

    def __init__(
        self,
        client_id: str,
        brokers: Mapping[str, BrokerSettings],
        settings: MqttSettings,
        clock: Clock,
        *,
        will: Outgoing | None = None,
        credentials: Path | None = None,
        complain: Callable[[str], None] = lambda _: None,
        jitter: Callable[[], float] = random.random,
        thread: str = "mqtt-link",
        longest: int = MAX_PACKET,
    ) -> None:
        """Prepare; `start` begins to connect. `brokers`: name -> settings, the preferred one first.

        `longest`: bytes of a packet; an MQTT 5 broker sends no larger one.

        `will`: what a broker publishes when the connection breaks. `credentials`: where a bare file name is looked for
        first. `complain`: told, once for each filter, that its taker raised; called in the connection's thread.
        """
        self._settings = settings
        self.inflight = settings.inflight
        """Messages that may be handed over and not acknowledged."""
        self._clock = clock
        self._brokers = list(brokers.items())
        self._subscriptions: list[Subscription] = []
        self._client = Client(client_id, settings, clock, self._subscriptions, will, credentials, self._failed, longest)
        self._complain = complain
        self._complained: set[str] = set()
        self.failures = 0
        """Messages whose taker raised, and mistakes in here."""
        self._backoff = Backoff(
            BackoffSettings(settings.retry_first_s, settings.retry_longest_s, settings.stable_s), jitter
        )
        self._tick_s = min(_TICK_S, settings.stable_s / 2)
        self._lock = threading.Lock()
        self._stopping = False  # written under _lock
        self._better: Session | None = None  # a session to the first broker, from the prober; written under _lock
        self._probe_problem: str | None = None  # why the prober has none
        self._roused = threading.Event()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=thread, daemon=True)
        self._prober: threading.Thread | None = None
        self._problems: dict[str, str] = {}
        self._shaky: set[str] = set()
        """Brokers whose last session did not hold: their problem is told until one does."""
        self._disturbed = False
        self._in_vain = 0
        """Sessions to the first broker in a row that did not hold."""
        self._number = 0
        self._now: tuple[LinkState, Session | None] = (LinkState(False, 0, self._brokers[0][0]), None)

    def start(self) -> None:
        """Begin to connect. Does not wait for it."""
        self._thread.start()

    def now(self) -> tuple[LinkState, Session | None]:
        """Return the state, and the session that is connected.

        `problem` may be set while connected: why not the first broker is in use, why the last session did not hold,
        until this one has, or what may not be subscribed to.
        """
        return self._now

    def subscribe(self, topic_filter: str, qos: int, take: Callable[[Message], None]) -> None:
        """Subscribe in this session and in every one to come. `take` is called in the connection's thread."""
        self._subscriptions.append(Subscription(topic_filter, qos, take))
        if (session := self._now[1]) is not None:
            session.news = True
            session.wake()

    def unsubscribe(self, topic_filter: str, timeout_s: float) -> None:
        """End a subscription of the session that is open, and wait until all that came of it was taken.

        For the end of a member of a group: what is still to come goes to the others.
        """
        session = self._now[1]
        if session is not None:
            session.unsubscribe(topic_filter)
            self.wait(lambda: self._now[1] is not session or topic_filter not in session.subscribed, timeout_s)

    def wait(self, until: Callable[[], bool], timeout_s: float) -> bool:
        """Block until `until` is true, looking whenever the state changes; False if it did not become true in time."""
        with self._changed:
            return self._changed.wait_for(until, timeout_s)

    def disturb(self, problem: str) -> None:
        """Give the session up because of `problem`, and go on to the next broker."""
        if (session := self._now[1]) is not None:
            self._disturbed = True
            session.give_up(problem)

    def close(self) -> None:
        """Disconnect. Blocks no longer than `CLOSE_S`. Idempotent."""
        with self._lock:
            self._stopping = True
        self._rouse()
        deadline_ns = self._clock.monotonic_ns() + round(CLOSE_S * 1e9)
        for thread in (self._thread, self._prober):
            if thread is not None and thread.ident is not None:
                thread.join(max(0.0, (deadline_ns - self._clock.monotonic_ns()) / 1e9))

    def _run(self) -> None:
        at = 0
        while not self._stopping:
            try:
                at = self._go_on(at)
            except Exception as error:  # noqa: BLE001  a mistake in here must not end the thread, or nobody connects again
                self._failed("the connection itself", error)
                state, session = self._now
                self._tell(None, state.broker)
                if session is not None:
                    session.close()
                at = 0
                self._pause()
        if (better := self._take_better()) is not None:
            better.close()
        self._tell(None, self._now[0].broker)

    def _go_on(self, at: int) -> int:
        """Use a broker for as long as that goes, wait if need be, and return which one is next."""
        if at == 0 and self._prober is not None:
            self._prober.join()  # or two sessions of one client would drive each other out
        better = self._take_better()
        held = self._use(0, better) if better is not None else self._try(at)
        if self._stopping or self._better is not None:
            return 0
        if better is not None:
            at = 0
        if at + 1 < len(self._brokers) and not held:
            return at + 1
        self._pause()
        return 0

    def _pause(self) -> None:
        """Wait before the next round, unless there is something to do."""
        self._roused.clear()
        wait_s = self._backoff.failed(self._clock.monotonic_ns())
        if not self._stopping and self._better is None:
            self._roused.wait(wait_s)

    def _try(self, at: int) -> bool:
        """Connect to a broker and stay with it to the session's end; return whether it held."""
        name, broker = self._brokers[at]
        session = Session(name, broker, self._client)
        self._tell(None, name)
        try:
            session.open(lambda: self._stopping)
        except SinkUnavailable as error:
            if not self._stopping:
                self._problems[name] = str(error)
                self._shaky.discard(name)
            self._tell(None, name)
            return False
        return self._use(at, session)

    def _use(self, at: int, session: Session) -> bool:
        """Serve an open session to its end; return whether it held, and was not given up."""
        name = session.broker
        since_ns = looked_ns = probed_ns = self._clock.monotonic_ns()
        stable_ns = round(self._settings.stable_s * 1e9)
        held = self._disturbed = False
        self._number += 1
        for known, _ in self._brokers[at:]:
            if known not in self._shaky:
                self._problems.pop(known, None)
        while True:
            self._tell(session, name)
            problem = session.serve(lambda: self._stopping or self._better is not None or session.news, self._tick_s)
            if problem is not None:
                break
            now_ns = self._clock.monotonic_ns()
            if self._stopping:
                session.finish()
            elif self._better is not None:
                session.give_up("left for the first broker")
            elif not held and now_ns - since_ns >= stable_ns:
                held = True
                self._problems.pop(name, None)
                self._shaky.discard(name)
            if self._probe_problem is not None:
                self._problems[self._brokers[0][0]], self._probe_problem = self._probe_problem, None
                self._shaky.discard(self._brokers[0][0])
            if now_ns - looked_ns >= stable_ns:
                looked_ns = now_ns
                session.ask_again()
            if at > 0 and now_ns - probed_ns >= stable_ns << self._in_vain:
                probed_ns = now_ns
                if self._prober is None or not self._prober.is_alive():
                    self._prober = threading.Thread(target=self._probe, name=f"{self._thread.name}-probe", daemon=True)
                    self._prober.start()
        if held:
            self._backoff.succeeded(since_ns)
        if not self._stopping and self._better is None:
            if problem == sentences.LOST and not held and name in self._shaky:
                problem = sentences.lost_again(self._client.id, self._settings.stable_s)
            self._problems[name] = f"{session.where}: {problem}"
            if self._disturbed or not held:
                self._shaky.add(name)
        self._tell(None, name)
        held = held and not self._disturbed
        if at == 0:
            self._in_vain = 0 if held else min(self._in_vain + 1, _MOST_IN_VAIN)
        return held

    def _probe(self) -> None:
        """Open a session to the first broker, for the link's thread to take."""
        name, broker = self._brokers[0]
        session = Session(name, broker, self._client)
        try:
            session.open(lambda: self._stopping)
        except SinkUnavailable as error:
            self._probe_problem = str(error)
            return
        with self._lock:
            wanted = not self._stopping
            if wanted:
                self._better = session
        if wanted:
            self._rouse()
        else:
            session.close()

    def _failed(self, what: str, error: Exception) -> None:
        self.failures += 1
        if what not in self._complained:
            self._complained.add(what)
            with contextlib.suppress(Exception):
                # Whoever is told must not be able to end the connection's thread.
                self._complain(f"{what} failed: {type(error).__name__}: {error}")

    def _take_better(self) -> Session | None:
        with self._lock:
            better, self._better = self._better, None
        return better

    def _rouse(self) -> None:
        self._roused.set()
        if (session := self._now[1]) is not None:
            session.wake()

    def _tell(self, session: Session | None, broker: str) -> None:
        """Make the state known."""
        problems = [*self._problems.values(), *(session.denied.values() if session is not None else ())]
        window = 0 if session is None else session.window
        state = LinkState(session is not None, self._number, broker, "; ".join(problems) or None, window)
        with self._changed:
            self._now = (state, session)
            self._changed.notify_all()
