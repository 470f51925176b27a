"""`har-agent run`."""

import os
import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from agent.cli._log import open_log


def run(
    config: Annotated[
        Path | None, typer.Option(help="The configuration; /etc/har-agent/config.toml if there is one.")
    ] = None,
    port: Annotated[str | None, typer.Option(help="A serial port to read, beside those configured.")] = None,
    device: Annotated[str, typer.Option(help="What the sensor on --port is called.")] = "imu",
    format: Annotated[  # noqa: A002  the option's name
        str | None, typer.Option(help="What --port speaks: csv, json, witmotion or har1.")
    ] = None,
    baud: Annotated[int | None, typer.Option(help="Speed of --port.")] = None,
    rate_hz: Annotated[float | None, typer.Option(help="Samples a second on --port, if it sends no time.")] = None,
    broker: Annotated[str | None, typer.Option(help="A broker's address, such as mqtt://localhost:1883.")] = None,
    model: Annotated[str | None, typer.Option(help="A bundle's folder, or the name of one that ships.")] = None,
    forget: Annotated[
        bool, typer.Option("--forget", help="Clear what brokers retain of this agent, Home Assistant's too, and end.")
    ] = False,
) -> None:
    """Label what sensors send, and publish it over MQTT, until stopped.

    SIGTERM or Ctrl-C ends it in order, a second Ctrl-C at once; SIGHUP looks at the model slots again.

    Example: har-agent run --port /dev/ttyUSB0 --format csv --rate-hz 50 --broker mqtt://localhost:1883
    """
    from agent.app.run import forget as clear
    from agent.app.run import run as work

    flags: dict[str, Any] = {"model.bundle": model}
    if port is not None:
        named = {"port": port, "format": format, "baud": baud, "rate_hz": rate_hz}
        flags |= {f"serial.{device}.{key}": value for key, value in named.items()}
    elif format or baud or rate_hz:
        raise typer.BadParameter("--format, --baud and --rate-hz describe --port, which is missing")
    if broker is not None:
        flags["broker.local.url"] = broker
    log = open_log()
    if forget:
        clear(config, flags, log)
        return
    with _Signals() as signals:
        work(config, flags, log, signals)


class _Signals:
    """What was asked for by signals since the last look. A second SIGINT ends the process as usual."""

    def __init__(self) -> None:
        self.stopping = False
        self._reload = False
        self._before: dict[signal.Signals, Any] = {}

    def take_reload(self) -> bool:
        """Whether SIGHUP came since the last call."""
        asked, self._reload = self._reload, False
        return asked

    def __enter__(self) -> "_Signals":
        for number, handler in (
            (signal.SIGTERM, self._stop),
            (signal.SIGINT, self._stop),
            (signal.SIGHUP, self._hangup),
        ):
            self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, _frame: object) -> None:
        if self.stopping and number == signal.SIGINT:
            os._exit(130)
        self.stopping = True

    def _hangup(self, *_: object) -> None:
        self._reload = True
