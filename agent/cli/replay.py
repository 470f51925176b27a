"""`har-agent replay`."""

import json
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli._exit import Exit, end_on_sigterm, exit_status
from agent.cli._print import say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from agent.app.replay import Progress, ReplayResult


def replay(
    recordings: Annotated[
        list[str],
        typer.Argument(help="Recordings (.csv, .csv.gz, .csv.zst), patterns, or - for standard input."),
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="Where predictions go; - is standard output.")] = "-",
    fmt: Annotated[str | None, typer.Option("--format", "-f", help="jsonl or csv; told by the name otherwise.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write a JSON report here.")] = None,
    min_accuracy: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Exit 1 if fewer labelled windows than this share are right."),
    ] = None,
    speed: Annotated[str, typer.Option(help="max, real, or a factor such as 10.")] = "max",
    model: Annotated[str | None, typer.Option(help="A bundle's folder, or the name of one that ships.")] = None,
    hop: Annotated[
        int | None, typer.Option(min=1, help="Samples from one window to the next; the bundle's own (64) otherwise.")
    ] = None,
    smoothing_s: Annotated[
        float | None, typer.Option(min=0, help="Time constant of the decided activity; 1 otherwise, 0 with a context.")
    ] = None,
    hold_s: Annotated[float | None, typer.Option(min=0, help="How long a new activity must lead; 0 otherwise.")] = None,
    acc_unit: Annotated[str | None, typer.Option(help="g or m/s2, over the recording's header.")] = None,
    gyro_unit: Annotated[str | None, typer.Option(help="rad/s or deg/s, over the recording's header.")] = None,
    rate_hz: Annotated[float | None, typer.Option(help="Rate of a recording that has no times.")] = None,
    device: Annotated[str | None, typer.Option(help="Name of the stream, over the recording's header.")] = None,
    max_bad_rows: Annotated[int, typer.Option(min=0, help="Give a recording up beyond this many.")] = 100,
    config: Annotated[Path | None, typer.Option(help="Configuration file.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary.")] = False,
) -> None:
    """Label recordings with the very pipeline that runs live.

    Example: har-agent replay walk.csv --report report.json > labels.jsonl
    """
    from agent.app.compose import load_config
    from agent.app.replay import FORMATS, ReplaySettings, expand, total_bytes
    from agent.app.replay import replay as run
    from agent.core.decoders.recording import Declared

    fmt = fmt or ("csv" if out.endswith((".csv", ".csv.gz")) else "jsonl")
    if fmt not in FORMATS:
        raise typer.BadParameter(f"{fmt!r} is not one of {', '.join(FORMATS)}", param_hint="--format")
    _check_report(report, min_accuracy)
    _check_declared(acc_unit, gyro_unit, rate_hz, device)
    flags = {
        "model.bundle": model,
        "window.hop": hop,
        "decision.smoothing_s": smoothing_s,
        "decision.hold_s": hold_s,
    }
    settings = ReplaySettings(
        config=load_config(config, flags),
        declared=Declared(acc_unit, gyro_unit, rate_hz, device),
        speed=_speed(speed),
        max_bad_rows=max_bad_rows,
        out=out,
        fmt=fmt,
        report=str(report) if report else None,
    )
    paths = expand(recordings)
    length = total_bytes(paths)
    mixed = out == "-" and sys.stdout is not None and sys.stdout.isatty()
    show = length is not None and not (quiet or mixed or sys.stderr is None) and sys.stderr.isatty()
    end_on_sigterm()
    with _progress(length) if show and length else nullcontext(lambda _: None) as on_progress:
        result = run(paths, settings, on_progress)
    if report:
        _write(report, json.dumps(result.as_dict(), indent=2) + "\n")
    if not quiet:
        say(_summary(result))
    _finish(result, min_accuracy)


def _check_report(report: Path | None, min_accuracy: float | None) -> None:
    if min_accuracy is not None and min_accuracy != min_accuracy:
        raise typer.BadParameter("nan is no accuracy", param_hint="--min-accuracy")
    if report is not None and str(report) == "-":
        raise typer.BadParameter("a report needs a file of its own", param_hint="--report")


def _check_declared(acc_unit: str | None, gyro_unit: str | None, rate_hz: float | None, device: str | None) -> None:
    from agent.core.decoders.recording import is_rate
    from agent.core.units import ACC_UNITS, GYRO_UNITS

    for flag, unit, known in (("--acc-unit", acc_unit, ACC_UNITS), ("--gyro-unit", gyro_unit, GYRO_UNITS)):
        if unit is not None and unit not in known:
            raise typer.BadParameter(f"{unit!r} is not one of {', '.join(known)}", param_hint=flag)
    if device is not None and not (device.strip() and device.isprintable()):
        raise typer.BadParameter("a device's name is one line of printable text", param_hint="--device")
    if rate_hz is not None and not is_rate(rate_hz):
        raise typer.BadParameter(f"{rate_hz:g} is no rate of a sensor", param_hint="--rate-hz")


def _speed(text: str) -> float | None:
    if text == "max":
        return None
    try:
        speed = 1.0 if text == "real" else float(text)
    except ValueError:
        speed = 0.0
    if not 0 < speed < float("inf"):
        raise typer.BadParameter(f"{text!r} is not max, real or a factor above 0", param_hint="--speed")
    return speed


@contextmanager
def _progress(length: int) -> "Iterator[Callable[[Progress], None]]":
    """A progress bar on standard error, in bytes, with samples/s beside it."""
    import time

    start, done = time.monotonic(), 0
    with typer.progressbar(length=length, file=sys.stderr) as bar:

        def update(progress: "Progress") -> None:
            nonlocal done
            rate = progress.samples / max(time.monotonic() - start, 1e-9)
            bar.label = f"{rate:,.0f} samples/s"
            bar.update(progress.done_bytes - done)
            done = progress.done_bytes

        yield update


def _write(path: Path, text: str) -> None:
    from agent.errors import OutputError

    try:
        path.write_text(text, "utf-8")
    except OSError as e:
        raise OutputError(f"the report {path} cannot be written: {e.strerror or e}") from e


def _summary(result: "ReplayResult") -> str:
    lines = []
    for r in result.recordings:
        counts = [f"{r.samples} samples", f"{r.windows} windows"]
        counts += [f"{n} {what}" for n, what in ((r.gaps, "gaps"), (r.resampled, "resampled")) if n]
        counts += [f"{n} {reason.value}" for reason, n in sorted(r.losses.items()) if n]
        if r.error and not r.samples:
            continue
        lines.append(f"{r.path}: {', '.join(counts)}")
        if r.bad_lines:
            shown = ", ".join(str(b["line"]) for b in r.bad_lines[:5])
            more = ", …" if r.bad_rows > len(r.bad_lines[:5]) else ""
            lines.append(f"  {r.bad_rows} bad rows, in line {shown}{more}")
        if r.samples and not r.windows and not r.error:
            lines.append("  no window: there are too few samples without a gap to fill one")
    card = result.scorecard.as_dict()
    if card["labelled_windows"]:
        lines.append(
            f"{card['labelled_windows']} labelled windows: {card['accuracy']:.1%} right, "
            f"{card['activity_accuracy']:.1%} of decided activities, macro F1 {card['macro_f1']:.3f}"
        )
        lines += _onsets(card["onsets"])
        foreign = card["labels_not_in_model"]
        if foreign:
            names = ", ".join(repr(name) for name in list(foreign)[:5]) + (", …" if len(foreign) > 5 else "")
            lines.append(f"  the model has no label {names}: {sum(foreign.values())} windows count as wrong")
    return "\n".join(lines)


def _onsets(onsets: "Mapping[str, Any]") -> list[str]:
    if not onsets["count"]:
        return []
    line = f"  {onsets['count']} changes of label: {onsets['missed']} missed"
    median, p90 = onsets["delay_median_s"], onsets["delay_p90_s"]
    return [line if median is None else f"{line}, the others decided within {median:.2f} s (median), {p90:.2f} s (p90)"]


def _finish(result: "ReplayResult", min_accuracy: float | None) -> None:
    """Say what could not be used, and end with the exit status that it has."""
    failed = [r for r in result.recordings if r.error]
    for r in failed:
        say(f"har-agent: {r.path}: {r.error}")
    if failed:
        assert failed[0].error is not None
        raise typer.Exit(exit_status(failed[0].error))
    if min_accuracy is None:
        return
    accuracy = result.scorecard.accuracy
    if accuracy is None:
        say("har-agent: no window is labelled, so --min-accuracy cannot be told")
        raise typer.Exit(Exit.NO)
    if accuracy < min_accuracy:
        say(f"har-agent: accuracy {accuracy:.4f} is below --min-accuracy {min_accuracy}")
        raise typer.Exit(Exit.NO)
