"""`har-agent cloud-worker`."""

from pathlib import Path
from typing import Annotated

import typer

from agent.cli._log import open_log
from agent.cli._stopping import Stopping


def cloud_worker(
    bundles: Annotated[
        list[str] | None,
        typer.Argument(help="Bundles' folders, or names of those that ship; over [worker] bundles."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="The configuration; /etc/har-agent/config.toml if there is one.")
    ] = None,
    broker: Annotated[str | None, typer.Option(help="A broker's address, such as mqtt://localhost:1883.")] = None,
    service: Annotated[str | None, typer.Option(help="The name under which boards ask.")] = None,
    go_on: Annotated[
        str | None, typer.Option("--next", help="The service that goes on where a split network does not end here.")
    ] = None,
) -> None:
    """Answer boards that ask for a bigger model, or for the rest of a split one, over MQTT 5, until stopped.

    Bundles may be segments, which hold a part of a network: what comes out goes to the workers of --next, or back.
    Any number of workers share the requests to a service. SIGTERM or Ctrl-C has this one leave the others, answer what
    it has got, and end.

    Example: har-agent cloud-worker har-cloud --broker mqtt://localhost:1883
    """
    log = open_log()
    with Stopping() as stopping:
        from agent.app.cloud_worker import cloud_worker as work

        flags = {"broker.local.url": broker, "worker.service": service, "worker.next": go_on}
        work(config, flags, bundles or [], log, stopping)
