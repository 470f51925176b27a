"""`har-agent demo`."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli._exit import Exit
from agent.cli._print import out, say
from agent.cli._stopping import Stopping

if TYPE_CHECKING:
    from agent.app.demo import Received, Status, Summary

_COLUMNS = "{:>7}  {:<18}  {:<18}  {:>6}  {:<18}  {:>8}  {:>9}"


def demo(
    duration: Annotated[float, typer.Option(min=5, help="Seconds to simulate; the script repeats.")] = 30.0,
    seed: Annotated[int, typer.Option(min=0, help="Draws the simulated person.")] = 0,
    model: Annotated[str | None, typer.Option(help="A bundle's folder, or the name of one that ships.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON summary on standard output; lines on stderr.")
    ] = False,
) -> None:
    """Show the agent at work: simulated sensor, live labels, MQTT broker and subscriber, all on this machine.

    Ends by itself with a summary; exit 1 if a sample or a message was lost.

    Example: har-agent demo --seed 3
    """
    say("starting: model, broker, subscriber, simulated sensor")
    from agent.app.demo import DemoSettings
    from agent.app.demo import demo as run

    settings = DemoSettings(model, duration_s=duration, seed=seed)
    with Stopping() as stopping:
        summary = run(settings, _Printer(err=as_json), stopping)
    out(json.dumps(summary.as_dict()) if as_json else "\n" + _summary(summary))
    if not summary.complete:
        say("har-agent: something was lost on the way")
        raise typer.Exit(Exit.NO)


class _Printer:
    """`app.demo.Audience` that prints one line for each prediction."""

    def __init__(self, *, err: bool) -> None:
        self._err = err

    def started(self, model: str, broker: str) -> None:
        say(f"model {model}, broker {broker}, simulated device at 50 Hz; Ctrl-C ends early")
        self._line("time", "true activity", "label", "conf", "decided", "novelty", "latency")

    def received(self, received: "Received") -> None:
        m = received.message
        self._line(
            f"{m['t1']:.2f} s",
            received.truth or "(changing)",
            m["label"],
            f"{m['confidence']:.3f}",
            m["activity"],
            f"{m['novelty']:.3g}" + ("" if m["known"] else "!"),
            f"{received.latency_ms:.1f} ms",
        )

    def status(self, status: "Status") -> None:
        stages = " | ".join(
            f"{stage} " + "/".join(f"{ms:.1f}" for ms in figures.values())
            for stage, figures in status.latency_ms.items()
            if figures
        )
        self._echo(f"-- {status.elapsed_s:.0f} s: latency, ms (p50/p95/p99/max): {stages}")
        self._echo(f"-- {status.elapsed_s:.0f} s: power: {_power(status)}; CPU {status.cpu_pct:.1f} % of a core")

    def _line(self, *cells: str) -> None:
        self._echo(_COLUMNS.format(*cells).rstrip())

    def _echo(self, text: str) -> None:
        (say if self._err else out)(text)


def _power(status: "Status") -> str:
    power = status.power
    if power.watts is None:
        return "not measurable on this machine"
    error = f", ±{power.error_pct:g} %" if power.error_pct is not None else ""
    return f"{power.watts:.2f} W ({power.source}{error})"


def _summary(s: "Summary") -> str:
    score = s.score
    accuracy = "no window is labelled"
    if score["labelled_windows"]:
        accuracy = (
            f"{score['accuracy']:.1%} of {score['labelled_windows']} labelled windows, "
            f"{score['activity_accuracy']:.1%} of decided activities"
        )
    rows = [
        ("ended", "early, on request" if s.interrupted else f"after {s.status.elapsed_s:.1f} s"),
        ("set-up", f"{s.startup_s:.2f} s"),
        ("samples", f"{s.samples} taken, {s.dropped} dropped"),
        ("windows", f"{score['windows']}"),
        ("accuracy", accuracy),
        ("messages", f"{s.published} published, {s.received} received, {s.published - s.received} lost"),
    ]
    rows += [
        (
            f"latency, {stage}",
            "  ".join(f"{name} {ms:.2f}" for name, ms in figures.items()) + "  ms" if figures else "none",
        )
        for stage, figures in s.status.latency_ms.items()
    ]
    rows += [
        ("CPU", f"{s.status.cpu_pct:.2f} % of a core: agent, simulation, broker and subscriber together"),
        ("memory", f"{s.status.rss_mib:.1f} MiB resident"),
        ("power", _power(s.status)),
    ]
    return "\n".join(f"{name:<18}{value}" for name, value in rows)
