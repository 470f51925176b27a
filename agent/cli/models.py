"""`har-agent models …`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from agent.cli._print import out, say
from agent.errors import UsageError

models = typer.Typer(
    help="Look at model bundles, install them, and say whose are trusted.", no_args_is_help=True, rich_markup_mode=None
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="Configuration file.")]


@models.command("list")
def list_models(config: ConfigOption = None, as_json: Json = False) -> None:
    """List the bundles that ship with the agent and those that are installed.

    Example: har-agent models list
    """
    from agent.app.compose import load_config
    from agent.app.models import listed
    from agent.cli._table import table

    rows = listed(load_config(config, {}))
    out(json.dumps(rows) if as_json else table(rows))


@models.command()
def verify(
    bundle: Annotated[str, typer.Argument(help="A bundle: its folder, .harmodel file, or name.")] = "har-base",
    config: ConfigOption = None,
    as_json: Json = False,
) -> None:
    """Check a bundle's files, graphs, shapes and signature, and run its golden vectors on this machine.

    Example: har-agent models verify har-base
    """
    from agent.app.compose import load_config
    from agent.app.models import verify as check

    facts = check(bundle, load_config(config, {}))
    if as_json:
        out(json.dumps(facts))
        return
    signed = f"signed by {facts['signed_by']}" if facts["signed_by"] else facts["unsigned"]
    if "segment" in facts:
        out(f"{facts['model']}: files, graphs and golden vectors are right; it holds {facts['segment']}; {signed}")
        return
    context = f"it looks back {facts['look_back_s']:g} s" if facts["look_back_s"] else "it has no context"
    unproven = "" if facts["novelty"] == "decoder.onnx" else " (decoder.onnx is not proven: no board runs it)"
    out(
        f"{facts['model']}: files, graphs and golden vectors are right{unproven}; novelty is that of "
        f"{facts['novelty']}, {context}; {signed}"
    )


@models.command()
def install(
    bundle: Annotated[str, typer.Argument(help="A bundle: its folder or .harmodel file.")],
    allow_unsigned: Annotated[
        bool, typer.Option("--allow-unsigned", help="Take it without the signature of a trusted key.")
    ] = False,
    allow_downgrade: Annotated[
        bool,
        typer.Option(
            "--allow-downgrade",
            help="Take it over a higher version of the same bundle, or one that cannot be compared. `har-agent models "
            "rollback` needs no such option.",
        ),
    ] = False,
    config: ConfigOption = None,
    as_json: Json = False,
) -> None:
    """Verify a bundle on this board and put it in the free slot; the agent tries it there and goes over to it.

    Example: har-agent models install har-mine.harmodel
    """
    from agent.app.compose import load_config
    from agent.app.models import install as put

    done = put(bundle, load_config(config, {}), allow_unsigned=allow_unsigned, allow_downgrade=allow_downgrade)
    if not done["signed_by"]:
        say(f"har-agent: {done['model']} has no signature of a trusted key")
    if as_json:
        out(json.dumps(done))
    elif not done["changed"]:
        out(f"{done['model']} is in service already")
    elif done["slot"] is None:
        out(f"{done['model']} stays in service, and what waited to be tried is withdrawn; {done['agent']}")
    else:
        out(f"{done['model']} is in slot {done['slot']} and will be tried on live windows; {done['agent']}")


@models.command()
def rollback(
    reason: Annotated[str, typer.Option(help="Why, for health and for whoever looks later.")] = "by hand",
    config: ConfigOption = None,
    as_json: Json = False,
) -> None:
    """Go back to the bundle that was in service before, or to the configured one.

    Example: har-agent models rollback --reason "calls stairs walking"
    """
    from agent.app.compose import load_config
    from agent.app.models import rollback as back

    done = back(load_config(config, {}), reason)
    out(json.dumps(done) if as_json else f"{done['rolled_back']} was given up for {done['active']}; {done['agent']}")


@models.command()
def trust(
    key: Annotated[str | None, typer.Argument(help="An Ed25519 public key in PEM, .pub.pem.")] = None,
    remove: Annotated[str | None, typer.Option(metavar="FINGERPRINT", help="Trust this key no longer.")] = None,
    show: Annotated[bool, typer.Option("--list", help="List the trusted keys.")] = False,
    config: ConfigOption = None,
    as_json: Json = False,
) -> None:
    """Say whose bundles may be installed.

    Example: har-agent models trust release.pub.pem
    """
    from agent.app.compose import load_config
    from agent.app.models import distrust, trusted
    from agent.app.models import trust as add
    from agent.cli._table import table

    if (key is not None) + (remove is not None) + show != 1:
        raise UsageError("give a key to trust, or --remove FINGERPRINT, or --list")
    settings = load_config(config, {})
    if show:
        rows = trusted(settings)
        out(json.dumps(rows) if as_json else table(rows) or "no key is trusted")
    elif key is not None:
        fingerprint = add(key, settings)
        out(json.dumps({"trusted": fingerprint}) if as_json else f"{fingerprint} is trusted")
    elif remove is not None:
        fingerprint = distrust(remove, settings)
        out(json.dumps({"removed": fingerprint}) if as_json else f"{fingerprint} is not trusted any more")
