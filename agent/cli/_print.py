"""What a command prints: data to standard output, everything else to standard error."""

import typer

from agent.errors import OutputError


def out(text: str) -> None:
    """Print data.

    Raises:
        OutputError: its reader has gone, or the disk is full.
    """
    try:
        typer.echo(text)
    except OSError as e:
        raise OutputError(f"standard output cannot be written: {e.strerror or e}") from e


def say(text: str) -> None:
    """Tell a person. That nobody can be told is no reason to fail."""
    try:
        typer.echo(text, err=True)
    except OSError:
        return
