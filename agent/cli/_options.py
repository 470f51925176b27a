"""What options of several commands have in common."""

import math

import typer


def finite(value: float | None) -> float | None:
    """Refuse what float() takes for a number and nobody can wait for; every range lets NaN pass."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a number that can be used")
    return value
