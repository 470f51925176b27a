"""An evaluation's result for people: a table for the terminal, and one HTML file that needs nothing beside it."""

import io
import re
from collections.abc import Sequence
from html import escape
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from agent.records import UNKNOWN
from har_export.evaluate import SENSOR_OFF, STILLEST

KINDS = (("streaming", "streaming"), ("filtered", "ready-cut"))
"""Kinds of windows in a result, and what to call them: cut by the agent from recordings, or by the publisher."""

NONE = "-"
"""A figure that there is not."""

INK, MAIN, OTHER, PALE = "#1a1a1a", "#1f5a99", "#b4540a", "#c9d3de"
"""Colours of plots: dark, so that they read on white, and unlike in grey too."""

_CSS = """
:root { color: #1a1a1a; background: #fff; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 66rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 0; padding-top: .75rem; border-top: 2px solid #1a1a1a; }
h3 { font-size: 1rem; margin: 1.75rem 0 .25rem; }
p { margin: .25rem 0 .75rem; max-width: 46rem; }
.caution { border-left: 4px solid #b4540a; padding-left: .75rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .75rem; margin: 1rem 0; }
.figures div { border: 1px solid #c9c9c9; border-radius: 4px; padding: .5rem .75rem; }
.figures b { display: block; font-size: 1.375rem; line-height: 1.25; white-space: nowrap; }
.figures span { font-size: .875rem; color: #444; display: block; line-height: 1.25; }
.pair { display: flex; flex-wrap: wrap; gap: 1rem 2rem; align-items: flex-start; }
.pair > * { flex: 1 1 20rem; min-width: 0; }
.pair > svg { max-width: 32rem; height: auto; }
.wide { overflow-x: auto; }
.wide > svg { width: 100%; min-width: 44rem; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .125rem .75rem .125rem 0; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
th { border-bottom: 1px solid #1a1a1a; vertical-align: bottom; font-weight: 600; }
td { border-bottom: 1px solid #e4e4e4; }
@media (max-width: 30rem) { th, td { padding-right: .5rem; } table { font-size: .8125rem; } }
"""


def text(result: dict[str, Any]) -> str:
    """Return an evaluation's result as a table for the terminal."""
    kinds = [(result[kind], name) for kind, name in KINDS if result[kind]]
    lines = [f"{result['model']} on {_described(result)}", *_cautions(result), ""]
    lines += _aligned(["", *(name for _, name in kinds)], _headline([figures for figures, _ in kinds]))
    for figures, name in kinds:
        lines += ["", *_aligned([name, "precision", "recall", "F1", "windows"], _class_rows(figures))]
        lines += ["", *_aligned(_subject_columns(figures), _subject_rows(figures))]
    return "\n".join(lines)


def render(result: dict[str, Any]) -> str:
    """Return an evaluation's result as an HTML page: no script, nothing that is fetched from elsewhere."""
    body = [f"<h1>{escape(result['model'])}</h1>", f"<p>Evaluated on {escape(_described(result))}.</p>"]
    body += [f'<p class="caution">{escape(sentence)}</p>' for sentence in _cautions(result)]
    kinds = [(result[kind], name) for kind, name in KINDS if result[kind]]
    body.append(_cards(*kinds[0]))
    body.append(_table(["", *(name for _, name in kinds)], _headline([figures for figures, _ in kinds])))
    for figures, name in kinds:
        body += [f"<h2>{name.capitalize()} windows</h2>", *_sections(figures)]
    title = escape(f"Evaluation of {result['model']}")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def _described(result: dict[str, Any]) -> str:
    data = result["data"]
    parts = [_counted(data["subjects"], "subject")]
    if data["recordings"]:
        parts.append(f"{_counted(data['recordings'], 'recording')}, {data['hours']:.2f} h")
    if result["filtered"]:
        parts.append(_counted(result["filtered"]["windows"], "ready-cut window"))
    return f"{data['source']} ({'; '.join(parts)})"


def _counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _cautions(result: dict[str, Any]) -> list[str]:
    said = list(result["data"]["losses"])
    if seen := result["subjects_named_in_training"]:
        said.append(
            f"The bundle names {len(seen)} of the {result['data']['subjects']} subjects among those it was trained on. "
            "If they are the same people, these figures do not say how it does on others."
        )
    if unknown := result["unknown_labels"]:
        said.append(f"Labels that the bundle does not know count as errors: {', '.join(unknown)}.")
    if mapped := result["map"]:
        said.append(
            "Labels were mapped: " + ", ".join(f"{name} counts as {means}" for name, means in mapped.items()) + "."
        )
    return said


def _headline(kinds: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return a row a figure, a column a kind of window."""
    rows = [
        ["windows of activities", *(f"{f['activity_windows']:,}" for f in kinds)],
        ["accuracy, single window", *(_percent(f["accuracy"]) for f in kinds)],
        ["accuracy, decided activity", *(_percent(f.get("decided_accuracy")) for f in kinds)],
        ["macro F1", *(_percent(f["macro_f1"]) for f in kinds)],
        ["worst subject, single window", *(_worst(f) for f in kinds)],
        ["transition recall", *(_percent(f["transition_recall"]) for f in kinds)],
        ["expected calibration error", *(_number(f["calibration"]["ece"], "{:.4f}") for f in kinds)],
        ["negative log-likelihood", *(_number(f["calibration"]["negative_log_likelihood"], "{:.4f}") for f in kinds)],
        ["called unknown", *(_percent(f["unknown_share"]) for f in kinds)],
        ["onset to label, median", *(_seconds(f, "delay_median_s") for f in kinds)],
        ["onset to label, p90", *(_seconds(f, "delay_p90_s") for f in kinds)],
        ["onsets, of which missed", *(_missed(f) for f in kinds)],
    ]
    for i, group in enumerate(kinds[0]["novelty"]["groups"][1:], 1):
        aurocs = (f["novelty"]["groups"][i]["auroc"] for f in kinds)
        rows.append([f"novelty AUROC, {group['name']}", *(_number(a, "{:.3f}") for a in aurocs)])
    return rows


def _cards(figures: dict[str, Any], name: str) -> str:
    shown = [
        (_percent(figures["accuracy"]), f"accuracy, single {name} window"),
        (_percent(figures.get("decided_accuracy")), "accuracy, decided activity"),
        (_percent(figures["macro_f1"]), "macro F1"),
        (_number(figures["calibration"]["ece"], "{:.3f}"), "expected calibration error"),
        (_seconds(figures, "delay_median_s"), "from onset to label, median"),
        (_seconds(figures, "delay_p90_s"), "from onset to label, p90"),
    ]
    cards = (f"<div><b>{value}</b><span>{what}</span></div>" for value, what in shown if value != NONE)
    return f'<div class="figures">{"".join(cards)}</div>'


def _sections(figures: dict[str, Any]) -> list[str]:
    kind = "streaming" if "onsets" in figures else "filtered"
    calibration, novelty = figures["calibration"], figures["novelty"]
    parts = [
        "<h3>Accuracy per subject</h3>",
        "<p>Over windows of activities; a transition that is predicted is an error.</p>",
        _pair(_svg(_plot_subjects(figures), f"{kind}-subjects"), _subject_columns(figures), _subject_rows(figures)),
        "<h3>Confusion</h3>",
        "<p>Windows of each label, and what they were taken for.</p>",
        _pair(
            _svg(_plot_confusion(figures["confusion"]), f"{kind}-confusion"),
            ["", "precision", "recall", "F1", "windows"],
            _class_rows(figures),
        ),
        "<h3>Calibration</h3>",
        f"<p>{len(calibration['reliability'])} bins of equal width; the larger a dot, the more windows. "
        "On the diagonal, what is said with 80 % confidence is right in 80 % of the windows.</p>",
        _pair(
            _svg(_plot_reliability(calibration), f"{kind}-reliability"),
            ["confidence above", "mean", "accuracy", "windows"],
            [
                [
                    f"{b['above']:.3f}",
                    _number(b["confidence"], "{:.3f}"),
                    _number(b["accuracy"], "{:.3f}"),
                    f"{b['windows']:,}",
                ]
                for b in calibration["reliability"]
                if b["windows"]
            ],
        ),
    ]
    if onsets := figures.get("onsets"):
        parts += [
            "<h3>From onset to label</h3>",
            "<p>From the first sample of a new activity to the end of the first window that decides it. Activities of "
            f"less than {onsets['shortest_s']:g} s are left out; one that was not decided while it lasted is missed, "
            "and keeps the curve below 100 %. Median and p90 are of those that were decided.</p>",
            _pair(_svg(_plot_onsets(onsets), f"{kind}-onsets"), ["", "onsets"], _onset_rows(onsets)),
        ]
    parts += [
        "<h3>Novelty</h3>",
        "<p>Above the threshold a window is called unknown. Known: windows of the labels that the bundle knows. "
        f"{SENSOR_OFF.capitalize()}: made up, a sensor on a table in any orientation, with the noise of the stillest "
        f"{100 * STILLEST:g} % of the windows.</p>",
        _pair(
            _svg(_plot_novelty(novelty), f"{kind}-novelty"),
            ["", "windows", "median", "unknown", "AUROC"],
            [
                [
                    g["name"],
                    f"{g['windows']:,}",
                    _number(g["median"], "{:.3g}"),
                    _percent(g["unknown_share"]),
                    _number(g["auroc"], "{:.3f}"),
                ]
                for g in novelty["groups"]
            ],
        ),
    ]
    if worst := figures.get("worst_recording"):
        parts += [
            f"<h3>Worst recording: subject {escape(worst['subject'])}, session {escape(worst['session'])}</h3>",
            f"<p>The decided activity is right in {_percent(worst['decided_accuracy'])} of its windows of activities. "
            "Wide and pale: its labels. Narrow and dark: what was decided.</p>",
            f'<div class="wide">{_svg(_plot_timeline(worst), f"{kind}-timeline")}</div>',
        ]
    return parts


def _subject_columns(figures: dict[str, Any]) -> list[str]:
    return ["subject", "single window", *(["decided"] if "onsets" in figures else []), "windows"]


def _subject_rows(figures: dict[str, Any]) -> list[list[str]]:
    return [
        [
            subject,
            _percent(f["accuracy"], 1),
            *([_percent(f["decided_accuracy"], 1)] if "decided_accuracy" in f else []),
            f"{f['windows']:,}",
        ]
        for subject, f in figures["subjects"].items()
    ]


def _class_rows(figures: dict[str, Any]) -> list[list[str]]:
    return [
        [name, *(_percent(c[figure], 1) for figure in ("precision", "recall", "f1")), f"{c['support']:,}"]
        for name, c in figures["classes"].items()
        if c["support"] or c["precision"] is not None
    ]


def _onset_rows(onsets: dict[str, Any]) -> list[list[str]]:
    delays = np.array(onsets["delays_s"])
    rows = [[f"decided within {s:g} s", str(int((delays <= s).sum()))] for s in (1, 1.5, 2, 2.5, 3, 4, 5)]
    return [*rows, ["decided at all", str(len(delays))], ["missed", str(onsets["missed"])]]


def _worst(figures: dict[str, Any]) -> str:
    subject, worst = min(figures["subjects"].items(), key=lambda item: item[1]["accuracy"], default=("", None))
    return f"{_percent(worst['accuracy'])} ({subject})" if worst else NONE


def _seconds(figures: dict[str, Any], name: str) -> str:
    return _number(figures["onsets"][name], "{:.2f} s") if "onsets" in figures else NONE


def _missed(figures: dict[str, Any]) -> str:
    return f"{figures['onsets']['count']}, {figures['onsets']['missed']}" if "onsets" in figures else NONE


def _percent(value: float | None, digits: int = 2) -> str:
    return NONE if value is None else f"{100 * value:.{digits}f} %"


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else form.format(value)


def _aligned(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [columns, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(c)}</th>" for c in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _pair(picture: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f'<div class="pair">{picture}{_table(columns, rows)}</div>'


def _svg(figure: Figure, name: str) -> str:
    """Return a figure as an SVG element. `name`: unlike any other's on the page, for the identifiers in it."""
    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "font.family": "sans-serif"}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", metadata=nothing, bbox_inches="tight")
    drawn = out.getvalue()
    # Every figure numbers its parts from 1, and a page has each identifier once.
    return re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{name}-", drawn[drawn.index("<svg") :])


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    axes = figure.add_subplot()
    axes.tick_params(colors=INK, labelsize=9)
    axes.xaxis.label.set_fontsize(9.5)
    axes.yaxis.label.set_fontsize(9.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _plot_subjects(figures: dict[str, Any]) -> Figure:
    subjects = figures["subjects"]
    figure, axes = _axes(4.6, 0.8 + 0.19 * len(subjects))
    y = range(len(subjects))
    single = [100 * f["accuracy"] for f in subjects.values()]
    axes.hlines(y, 0, 100, color="#e4e4e4", linewidth=0.8)
    axes.plot(single, y, "o", color=MAIN, markersize=5.5, label="single window")
    if "onsets" in figures:
        decided = [100 * f["decided_accuracy"] for f in subjects.values()]
        axes.plot(decided, y, "D", color=OTHER, markersize=4.5, markerfacecolor="none", label="decided")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False, fontsize=9)
        single += decided
    axes.set_yticks(y, list(subjects))
    axes.set_ylim(len(subjects) - 0.5, -0.5)
    axes.set_xlim(max(0, np.floor(min(single) / 10) * 10 - 5), 100.5)
    axes.set_xlabel("accuracy, %")
    axes.set_ylabel("subject")
    return figure


def _plot_confusion(confusion: dict[str, dict[str, int]]) -> Figure:
    truths, predictions = list(confusion), list(next(iter(confusion.values())))
    counts = np.array([list(row.values()) for row in confusion.values()])
    shares = counts / counts.sum(axis=1, keepdims=True)
    figure, axes = _axes(4.6, 1.6 + 0.42 * len(truths))
    axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1.15, edgecolors="white", linewidth=1)
    for (i, j), n in np.ndenumerate(counts):
        if n:
            colour = "white" if shares[i, j] > 0.6 else INK
            axes.text(j + 0.5, i + 0.5, str(n), ha="center", va="center", fontsize=8.5, color=colour)
    axes.set_yticks(np.arange(len(truths)) + 0.5, [_name(t) for t in truths])
    axes.set_xticks(np.arange(len(predictions)) + 0.5, [_name(p) for p in predictions], rotation=40, ha="right")
    axes.tick_params(length=0)
    axes.invert_yaxis()
    axes.set_ylabel("label")
    axes.set_xlabel("predicted")
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    return figure


def _plot_reliability(calibration: dict[str, Any]) -> Figure:
    figure, axes = _axes(4.6, 3.6)
    bins = [b for b in calibration["reliability"] if b["windows"]]
    area = [20 + 380 * b["windows"] / calibration["windows"] for b in bins]
    axes.plot([0, 1], [0, 1], color="#808080", linewidth=1, linestyle="--")
    axes.scatter([b["confidence"] for b in bins], [b["accuracy"] for b in bins], s=area, color=MAIN, alpha=0.75)
    axes.set_xlim(0, 1.04)
    axes.set_ylim(0, 1.06)
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy")
    return figure


def _plot_onsets(onsets: dict[str, Any]) -> Figure:
    figure, axes = _axes(4.6, 3.2)
    delays = onsets["delays_s"]
    end = max([5.0, *(1.05 * d for d in delays[-1:])])
    share = 100 * np.arange(1, len(delays) + 1) / max(1, onsets["count"])
    axes.step([0, *delays, end], [0, *share, *(share[-1:] if len(share) else [0])], where="post", color=MAIN)
    for name, what, style in (("delay_median_s", "median", ":"), ("delay_p90_s", "p90", "--")):
        if onsets[name] is not None:
            label = f"{what} {onsets[name]:.2f} s"
            axes.axvline(onsets[name], color=OTHER, linewidth=1.2, linestyle=style, label=label)
            axes.legend(loc="lower right", frameon=False, fontsize=9)
    axes.set_xlim(0, end)
    axes.set_ylim(0, 102)
    axes.set_xlabel("seconds after the onset")
    axes.set_ylabel("onsets decided, %")
    return figure


def _plot_novelty(novelty: dict[str, Any]) -> Figure:
    figure, axes = _axes(4.6, 3.2)
    edges = novelty["edges"]
    for group, colour, style in zip(
        novelty["groups"], cycle((MAIN, OTHER, INK)), cycle(("-", "--", ":", "-.")), strict=False
    ):
        shares = [100 * s for s in group["shares"]]
        axes.stairs(shares, edges, color=colour, linestyle=style, linewidth=1.4, label=_name(group["name"]))
    axes.axvline(novelty["threshold"], color="#808080", linewidth=1.2, label="threshold")
    axes.set_xscale("log")
    axes.set_xlabel("novelty")
    axes.set_ylabel("windows, %")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=9)
    return figure


def _plot_timeline(worst: dict[str, Any]) -> Figure:
    names = list(dict.fromkeys(name for _, _, name in [*worst["truth"], *worst["decided"]] if name))
    figure, axes = _axes(10, 0.8 + 0.28 * len(names))
    rows = {name: i for i, name in enumerate(sorted(names, key=lambda name: name == UNKNOWN))}
    for stretches, height, colour in ((worst["truth"], 0.8, PALE), (worst["decided"], 0.3, INK)):
        for name, row in rows.items():
            bars = [(a / 60, (b - a) / 60) for a, b, label in stretches if label == name]
            axes.broken_barh(bars, (row - height / 2, height), color=colour, linewidth=0)
    axes.set_yticks(range(len(rows)), [_name(name) for name in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, max(b for _, b, _ in worst["truth"]) / 60)
    axes.set_xlabel("minutes")
    return figure


def _name(label: str) -> str:
    # A dollar would begin a formula.
    return label.replace("_", " ").replace("$", r"\$")
