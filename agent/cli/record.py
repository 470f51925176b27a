"""`har-agent record`."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli._exit import Exit
from agent.cli._options import finite
from agent.cli._print import out as print_out
from agent.cli._print import say
from agent.cli._stopping import Stopping

if TYPE_CHECKING:
    from agent.app.record import Progress, RecordSummary


def record(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the recordings; it is made.")],
    raw: Annotated[
        bool, typer.Option("--raw", help="Keep the bytes as they came, with their receive times (.harraw).")
    ] = False,
    gzip: Annotated[bool, typer.Option("--gzip", help="Compress samples (.csv.gz).")] = False,
    duration: Annotated[
        float | None, typer.Option(callback=finite, min=0.1, max=3e7, help="Seconds; until Ctrl-C if not given.")
    ] = None,
    rotate_mb: Annotated[
        float, typer.Option(callback=finite, min=0.001, max=1e9, help="Size at which a device gets a new file.")
    ] = 64.0,
    budget_mb: Annotated[
        float,
        typer.Option(
            callback=finite, min=0.001, max=1e9, help="Size of all recordings in the folder at which recording stops."
        ),
    ] = 1024.0,
    label: Annotated[str | None, typer.Option(help="Label of every sample, for training data.")] = None,
    config: Annotated[Path | None, typer.Option(help="Configuration file.")] = None,
    port: Annotated[str | None, typer.Option(help="A serial port to read, beside those configured.")] = None,
    device: Annotated[str, typer.Option(help="What the sensor on --port is called.")] = "imu",
    fmt: Annotated[
        str | None, typer.Option("--format", help="What --port speaks: csv, json, witmotion or har1.")
    ] = None,
    baud: Annotated[int | None, typer.Option(help="Speed of --port.")] = None,
    time: Annotated[
        str | None, typer.Option(help="Unit of the time that lines of csv on --port begin with: s, ms or us.")
    ] = None,
    rate_hz: Annotated[float | None, typer.Option(help="Samples a second on --port, if it sends no time.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Record what the configured sensors send, without a model: a file a device, rotated by size.

    Nothing is ever deleted. Exit 1 if nothing came, 74 if the disk refused.

    Example: har-agent record --out walks --label walking --duration 60
    """
    from agent.app.compose import load_config
    from agent.app.record import RecordSettings
    from agent.app.record import record as run

    if raw and (gzip or label is not None):
        raise typer.BadParameter("it is for samples: bytes are kept as they came", param_hint="--raw")
    if label is not None and not (label == label.strip() and label.isprintable() and not set(label) & set('",')):
        raise typer.BadParameter("a label is one line of text, without commas and quotes", param_hint="--label")
    settings = RecordSettings(out, raw, gzip, duration, rotate_mb, budget_mb, label or None)
    flags: dict[str, object] = {}
    if port is not None:
        named = {"port": port, "format": fmt, "baud": baud, "time": time, "rate_hz": rate_hz}
        flags = {f"serial.{device}.{key}": value for key, value in named.items()}
    elif fmt or baud or time or rate_hz:
        raise typer.BadParameter("--format, --baud, --time and --rate-hz describe --port, which is missing")
    loaded = load_config(config, flags)
    with Stopping() as stopping:
        if not quiet:
            say(f"recording to {out}; Ctrl-C ends it" if duration is None else f"recording to {out} for {duration:g} s")
        summary = run(loaded, settings, (lambda _: None) if quiet else _show, stopping)
    if not quiet and sys.stderr is not None and sys.stderr.isatty():
        say("")
    print_out(json.dumps(summary.as_dict()) if as_json else _summary(summary))
    _finish(summary)


def _show(progress: "Progress") -> None:
    """One line, over and over on a terminal."""
    s = progress.status
    left = "" if s.left_s is None else f", {s.left_s:.0f} s left"
    text = (
        f"{progress.elapsed_s:.0f} s: {s.devices} devices, {s.samples} samples, {progress.rate_hz:.0f}/s, "
        f"{s.size_bytes / 1e6:.2f} MB in {s.files} files{left}"
    )
    if sys.stderr is not None and sys.stderr.isatty():
        typer.echo(f"\r{text:<78}", err=True, nl=False)
    elif round(progress.elapsed_s) % 10 == 0:
        say(text)


def _summary(summary: "RecordSummary") -> str:
    s = summary.status
    lines = [
        f"{s.samples} samples of {s.devices} devices in {summary.elapsed_s:.1f} s, "
        f"{s.size_bytes / 1e6:.3f} MB in {s.files} files in {s.folder}"
    ]
    lines += [f"  {name}" for name in s.names]
    if s.files > len(s.names):
        lines.append(f"  and {s.files - len(s.names)} before them")
    lost = {reason.value: n for reason, n in sorted(summary.bad.items())}
    lost |= {"let go by a full queue": summary.dropped, "interruptions": summary.interruptions}
    unit = "bytes" if s.kind == "raw" else "samples"
    lost[f"{unit} not written, the disk was too slow"] = s.lost
    lines += [f"  {n} {what}" for what, n in lost.items() if n]
    return "\n".join(lines)


def _finish(summary: "RecordSummary") -> None:
    s = summary.status
    for name, problem in summary.problems.items():
        say(f"har-agent: nothing comes from {name}: {problem}")
    if s.problem:
        say(f"har-agent: {s.problem}")
    if s.ended == "problem":
        raise typer.Exit(Exit.IO)
    if not s.files:
        say("har-agent: nothing came to record: see what har-agent check --connect says of the sources")
        raise typer.Exit(Exit.NO)
