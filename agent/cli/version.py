"""`har-agent version`."""

import json
from typing import Annotated, Any

import typer

from agent.cli._print import out


def version(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Print what is installed: agent, release, Python, dependencies, and the model bundles that came with it.

    Example: har-agent version --json
    """
    from agent.app.version import facts

    found = facts()
    out(json.dumps(found) if as_json else _view(found))


def _view(found: dict[str, Any]) -> str:
    release, bundles = found["release"], found["bundles"]
    rows = [
        ("har-edge-agent", found["version"]),
        ("release", release["release"] if release else "none: this was not installed from a release"),
        ("python", f"{found['python']} on {found['machine']}, {found['executable']}"),
        *((name, version) for name, version in found["dependencies"].items()),
        *(("bundle", b["problem"] or f"{b['model']}, version {b['version']}") for b in bundles),
    ]
    width = max(len(name) for name, _ in rows) + 1
    return "\n".join(f"{name:<{width}}{value}" for name, value in rows)
