"""The command line: `har-agent`. One file a command; what a command needs is imported when it runs."""

import gc
import io
import os
import sys
from collections.abc import Iterable
from importlib import import_module
from typing import NoReturn

import typer

from agent.cli._exit import Exit, exit_status
from agent.cli._print import say
from agent.errors import AgentError

COMMANDS = (
    "run",
    "replay",
    "simulate",
    "demo",
    "record",
    "watch",
    "status",
    "check",
    "bench",
    "profile",
    "models",
    "plan",
    "cloud-worker",
    "version",
)
"""Each is a function, or a group of functions, of that name in the module of that name, hyphens as underscores."""


def build(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """Return the command line with the given commands."""
    app = typer.Typer(
        name="har-agent",
        help="Streaming human activity recognition on the edge: IMU samples in, activity labels out.",
        no_args_is_help=True,
        # Rich costs a board 11 MB and 80 ms, for colours in a help text.
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    # Without a callback, Typer would take an app of one command for the command itself.
    app.callback()(lambda: None)
    for name in names:
        spelled = name.replace("-", "_")
        command = getattr(import_module(f"agent.cli.{spelled}"), spelled)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command()(command)
    return app


def main() -> None:
    """Run `har-agent`; every `AgentError` ends it with one sentence and its exit status."""
    # Start-up makes objects that stay; looking for garbage among them every 700 objects costs a twentieth of it.
    gc.set_threshold(50_000, 20, 20)
    # ONNX Runtime's wheels report to their maker since 1.29, and keep what they cannot send on the disk.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    named = sys.argv[1:2]
    app = build(named if named and named[0] in COMMANDS else COMMANDS)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Output is UTF-8 whatever the locale; what is no Unicode, such as bytes of a file name, is escaped.
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        app()
    except AgentError as e:
        _end(str(e), exit_status(e))
    except OSError as e:
        # Only the printing of a help text is not guarded where it happens.
        _end(f"writing failed: {e.strerror or e}", Exit.IO)
    except KeyboardInterrupt:
        _end("interrupted", 130)


def _end(sentence: str, status: int) -> NoReturn:
    say(f"har-agent: {sentence}")
    # What is still buffered for a reader that has gone must not fail again while the interpreter shuts down.
    try:
        sys.stdout.flush()
    except (OSError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(status)
