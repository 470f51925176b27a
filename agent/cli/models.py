"""`har-agent models …`."""

import json
from typing import Annotated

import typer

from agent.cli._print import out

models = typer.Typer(help="Look at model bundles and verify them.", no_args_is_help=True, rich_markup_mode=None)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@models.command("list")
def list_models(as_json: Json = False) -> None:
    """List the bundles that ship with the agent.

    Example: har-agent models list
    """
    from agent.app.models import shipped
    from agent.cli._table import table

    rows = shipped()
    out(json.dumps(rows) if as_json else table(rows))


@models.command()
def verify(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder, or the name of one that ships.")] = "har-base",
    as_json: Json = False,
) -> None:
    """Check a bundle's files, graphs and shapes, and run its golden vectors on this machine.

    Example: har-agent models verify har-base
    """
    from agent.app.models import verify as check

    facts = check(bundle)
    out(json.dumps(facts) if as_json else f"{facts['model']}: files, graphs and golden vectors are right")
