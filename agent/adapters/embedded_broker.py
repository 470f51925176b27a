"""An MQTT 3.1.1 broker inside this process, on a free port of the loopback: for the demo and for tests.

It runs amqtt in a thread with an event loop of its own. It has no rights management and no persistence, and
it is not meant to carry anybody's data: a deployment brings its own broker.
"""

import asyncio
import contextlib
import logging
import threading
from types import TracebackType
from typing import Self

from agent.errors import SinkUnavailable

LOOPBACK = "127.0.0.1"
_GRACE_S = 2.0
"""How long amqtt has to end its tasks."""


class EmbeddedBroker:
    """A broker that runs from `start` to `stop`; `host` and `port` say where."""

    host = LOOPBACK

    def __init__(self) -> None:
        self.port = 0
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._started = threading.Event()
        self._error: Exception | None = None

    def start(self, timeout_s: float = 10.0) -> None:
        """Listen. Blocks until the broker accepts connections, at most `timeout_s`.

        Raises:
            SinkUnavailable: amqtt is not installed, or it did not start.
        """
        try:
            import amqtt.broker  # noqa: F401  told here, in the caller's thread
        except ImportError as error:
            raise SinkUnavailable("the demo's broker is not installed: pip install 'har-edge-agent[demo]'") from error
        for name in ("amqtt", "transitions"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._started.clear()
        self._error = None
        self._thread = threading.Thread(target=self._run, name="embedded-broker", daemon=True)
        self._thread.start()
        if not self._started.wait(timeout_s) or self._error is not None:
            self.stop()
            reason = self._error or f"it did not start within {timeout_s:g} s"
            raise SinkUnavailable(f"the embedded broker cannot be started: {reason}") from self._error

    def stop(self, timeout_s: float = 5.0) -> None:
        """Close every connection and end the thread, within `timeout_s`. Idempotent.

        Raises:
            SinkUnavailable: the thread did not end; it is a daemon and will not keep the process.
        """
        thread, self._thread = self._thread, None
        if thread is None:
            return
        if self._loop is not None and self._stopping is not None and thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
        thread.join(timeout_s)
        if thread.is_alive():
            raise SinkUnavailable(f"the embedded broker did not stop within {timeout_s:g} s")

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:  # noqa: BLE001  whatever amqtt raises is handed to `start`
            self._error = error
            self._started.set()

    async def _serve(self) -> None:
        """Accept connections ourselves and hand them to amqtt.

        So the system chooses the port, and every connection can be closed at the end: amqtt alone may wait for ever
        for one whose message is on its way (a cancellation that Python 3.11's `wait_for` loses).
        """
        from amqtt.adapters import StreamReaderAdapter, StreamWriterAdapter
        from amqtt.broker import Broker

        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        broker = Broker(
            {
                "listeners": {"default": {"type": "external"}},
                "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
            }
        )
        open_writers: set[asyncio.StreamWriter] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            open_writers.add(writer)
            try:
                incoming, outgoing = StreamReaderAdapter(reader), StreamWriterAdapter(writer)
                await broker.external_connected(incoming, outgoing, "default")
            finally:
                open_writers.discard(writer)
                writer.close()

        await broker.start()
        server = await asyncio.start_server(connected, LOOPBACK, 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stopping.wait()
        server.close()
        for writer in open_writers:
            writer.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(broker.shutdown(), _GRACE_S)
