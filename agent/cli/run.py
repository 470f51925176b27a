"""`har-agent run`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from agent.cli._log import open_log
from agent.cli._stopping import Stopping


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
    time: Annotated[
        str | None, typer.Option(help="Unit of the time that csv on --port begins with: s, ms, us.")
    ] = None,
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
    flags: dict[str, Any] = {"model.bundle": model}
    if port is not None:
        named = {"port": port, "format": format, "baud": baud, "time": time, "rate_hz": rate_hz}
        flags |= {f"serial.{device}.{key}": value for key, value in named.items()}
    elif format or baud or time or rate_hz:
        raise typer.BadParameter("--format, --baud, --time and --rate-hz describe --port, which is missing")
    if broker is not None:
        flags["broker.local.url"] = broker
    log = open_log()
    # Before the long imports: a SIGHUP that comes too early must not end the agent.
    with Stopping(hangup=True) as signals:
        from agent.app.run import forget as clear
        from agent.app.run import run as work

        if forget:
            clear(config, flags, log)
        else:
            work(config, flags, log, signals)
