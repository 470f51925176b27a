"""The text endpoint for Prometheus, and a health check, on loopback."""

import socket
import socketserver
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from io import BufferedReader, RawIOBase
from typing import Any

from agent.errors import SinkUnavailable

HOST = "127.0.0.1"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class PrometheusEndpoint:
    """Serves what was published last: GET /metrics, and GET /healthz with 200 or 503. Nothing is computed here.

    One daemon thread, one client after the other; it sleeps while there is none.
    """

    def __init__(self, port: int, client_s: float = 2.0) -> None:
        """Listen on 127.0.0.1:`port`, a free port if 0, and serve from now on.

        `client_s`: longest that a client may take to ask, and then to read: the next one waits for it.

        Raises:
            SinkUnavailable: the port is taken, or may not be used.
        """
        try:
            self._server = _Server(port, client_s)
        except OSError as error:
            raise SinkUnavailable(
                f"metrics cannot be served on {HOST}:{port}: {error.strerror or error}; "
                "set telemetry.prometheus_port to a free port, or to 0 for none"
            ) from error
        self._client_s = client_s
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="prometheus", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.server_address[1])

    def publish(self, text: str, healthy: bool) -> None:
        """Serve `text` from now on. Does not block; may be called from any thread."""
        self._server.snapshot = (text.encode("utf-8", "replace"), healthy)

    def close(self) -> None:
        """Stop. Blocks until the client that is being served is done, within its deadline. Idempotent."""
        if self._closing:
            return
        self._closing = True
        # Wakes the thread if it waits for a client; if it does not, it looks by itself when it is done with one.
        with suppress(OSError), socket.create_connection((HOST, self.port), self._client_s):
            pass
        self._thread.join(3 * self._client_s)
        self._server.server_close()

    def _serve(self) -> None:
        while not self._closing:
            self._server.handle_request()


class _Server(socketserver.TCPServer):
    """Not http.server's own, which looks up the host's name when it binds."""

    allow_reuse_address = True
    request_queue_size = 5

    def __init__(self, port: int, client_s: float) -> None:
        self.snapshot: tuple[bytes, bool] | None = None
        self.client_s = client_s
        super().__init__((HOST, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that went away is none of the journal's business."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    connection: socket.socket

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = BufferedReader(_UntilDeadline(self.connection, time.monotonic() + self.server.client_s))

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        snapshot = self.server.snapshot
        if path == "/metrics":
            if snapshot is None:
                self._answer(503, b"nothing has been measured yet\n")
            else:
                self._answer(200, snapshot[0], CONTENT_TYPE)
        elif path == "/healthz":
            healthy = snapshot is not None and snapshot[1]
            self._answer(200 if healthy else 503, b"ok\n" if healthy else b"not healthy\n")
        else:
            self._answer(404, b"/metrics and /healthz are here\n")

    def _answer(self, status: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response_only(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.connection.settimeout(self.server.client_s)
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the name that http.server has for it
        """Log nothing."""


class _UntilDeadline(RawIOBase):
    """What a client sends, until a point in time: a limit on each read alone would let it dribble for ever."""

    def __init__(self, connection: socket.socket, deadline_s: float) -> None:
        self._connection = connection
        self._deadline_s = deadline_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._connection.settimeout(left_s)
        return self._connection.recv_into(buffer)
