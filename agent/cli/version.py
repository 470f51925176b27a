"""`har-agent version`."""

import json
from typing import Annotated

import typer

from agent.cli._print import out


def version(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Print the version of the agent, of Python and of ONNX Runtime.

    Example: har-agent version --json
    """
    import platform
    from importlib.metadata import version as installed

    from agent import __version__

    facts = {
        "har-edge-agent": __version__,
        "python": platform.python_version(),
        "onnxruntime": installed("onnxruntime"),
        "machine": platform.machine(),
    }
    out(json.dumps(facts) if as_json else "\n".join(f"{k} {v}" for k, v in facts.items()))
