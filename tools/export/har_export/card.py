"""The model card, filled in from a manifest; nothing in it is typed by hand."""

import re
import textwrap
from collections.abc import Mapping
from importlib.resources import files
from string import Template
from typing import Any

from agent.core.manifest import Manifest
from har_export.datasets import hapt, ucihar

WIDTH = 120
"""Columns of the card's paragraphs."""

SMARTPHONE = (hapt.ORIGIN.name, ucihar.ORIGIN.name)

ABOUT_SMARTPHONE = """The recordings of HAPT and UCI HAR are of volunteers with a phone at the waist. Their publishers'
read-me files forbid commercial use of the data; whoever uses this model commercially must clear that first. The
publishers' nine test subjects took no part."""

LIMITS_SMARTPHONE = """- HAPT and UCI HAR have one body position (waist), one kind of sensor, healthy adults of 19 to 48
  years, a scripted protocol in a laboratory. Elsewhere on the body it must be trained anew, or taught.
- Sitting and standing differ mostly in the wearer's sway, a few thousandths of a g and hundredths of a rad/s, and in
  how the wearer got there.
- Acceleration beyond about 2 g was clipped in the recordings."""

LIMITS = "- It knows the people, the sensor and the place where it was worn that are in its recordings, and no others."

EXEMPLARS = """`exemplars.npz` holds codes of a few windows of each class, for teaching the model new activities; what
the decoder makes of them is the gist of a movement."""


def render(manifest: Manifest) -> str:
    """Return the card as Markdown."""
    training = manifest.training
    smartphone = any(entry["name"] in SMARTPHONE for entry in training.get("data", []))
    template = Template((files("har_export") / "card.md").read_text(encoding="utf-8"))
    card = template.substitute(
        name=manifest.name,
        version=manifest.version,
        created=manifest.created,
        har_export=training.get("har_export", "?"),
        torch=training.get("torch", "?"),
        seed=training.get("seed", "?"),
        window=manifest.input.window,
        rate_hz=f"{manifest.input.rate_hz:g}",
        n_labels=len(manifest.labels),
        labels=", ".join(manifest.labels),
        code_bytes=manifest.code.bytes,
        novelty_threshold=f"{manifest.calibration.novelty_threshold:.3g}",
        files="\n".join(f"| {name} | {entry.bytes:,} |" for name, entry in manifest.files.items()),
        data="\n".join(_data_line(entry) for entry in training.get("data", [])),
        subjects=_join(training.get("subjects", [])),
        calibration_subjects=_join(training.get("calibration_subjects", [])),
        measured=_measured(manifest.metrics),
        context=_context(manifest),
        exits=_exits(manifest),
        about_data=ABOUT_SMARTPHONE if smartphone else "",
        exemplars=EXEMPLARS if "exemplars.npz" in manifest.files else "",
        limits=LIMITS_SMARTPHONE if smartphone else LIMITS,
        noise=training.get("settings", {}).get("noise", "?"),
    )
    return "\n\n".join(_filled(block) for block in card.strip().split("\n\n")) + "\n"


def _filled(block: str) -> str:
    """Break the lines of a paragraph, or of a list's items, anew; headings and tables stay."""
    if block.startswith(("#", "|")):
        return block
    items = re.split(r"\n(?=- )", block)
    return "\n".join(
        textwrap.fill(
            " ".join(item.split()), WIDTH, subsequent_indent="  " if item.startswith("- ") else "",
            break_long_words=False, break_on_hyphens=False,
        )
        for item in items
    )  # fmt: skip


def _data_line(entry: Mapping[str, Any]) -> str:
    windows = ", ".join(f"{label} {n:,}" for label, n in entry["windows"].items() if n)
    return f"- {entry['name']}. {entry['citation']}. Terms: {entry['terms']}. Windows: {windows or 'none'}."


def _context(manifest: Manifest) -> str:
    if manifest.context is None:
        return "It looks at each window alone."
    seen = f"{manifest.context.windows} windows, {manifest.look_back_s:.1f} s"
    return f"A context layer reads the codes of the last {seen}, and says what is decided at the present one."


def _exits(manifest: Manifest) -> str:
    if not manifest.exits:
        return ""
    heads = "; ".join(
        f"`{one.name}`"
        + ("" if one.accuracy is None else f", right in {one.accuracy:.1%} of the calibration subjects' windows")
        + f", where a window may stop from a confidence of {one.confidence:.3g} on"
        for one in manifest.exits
    )
    return f"Heads inside of the encoder read labels earlier, with less accuracy: {heads}."


def _join(names: list[str]) -> str:
    return ", ".join(names)


def _measured(metrics: Mapping[str, Any]) -> str:
    lines = []
    if held_out := metrics.get("held_out"):
        lines.append(
            f"On the {held_out['windows']:,} activity windows of the calibration subjects, the model that had not "
            f"seen them was right in {held_out['accuracy']:.1%} (int8 files; {held_out['float_accuracy']:.1%} before "
            "quantisation)."
        )
    crossval = metrics.get("crossval")
    if crossval is None:
        return "\n".join([*lines, "", "No cross-validation was given to the build."]).strip()
    # What is decided without a context is decided by smoothed scores.
    decided = "as decided with the context" if crossval.get("context_bytes", True) else "as decided"
    lines += [
        "",
        f"Subject-wise {crossval['folds']}-fold cross-validation, {_many(len(crossval['seeds']), 'seed')}, every "
        "fold's files scored through the agent's pipeline; the label of a window is that of its middle sample:",
        "",
        "| what | mean over seeds | spread (standard deviation) | lowest seed |",
        "|---|---|---|---|",
        *(
            "| {} | {mean:.2%} | {sd:.2%} | {min:.2%} |".format(text, **crossval[key])
            for key, text in (
                ("streaming_accuracy", "windows cut from recordings, activities, one window alone"),
                ("decided_accuracy", f"the same, {decided}"),
                ("reordered_accuracy", "the same, bouts in another order"),
                ("streaming_macro_f1", "macro F1, one window alone"),
                ("streaming_transition_recall", "transitions found"),
                ("streaming_ece", "calibration error"),
                ("filtered_accuracy", "windows as UCI HAR publishes them"),
                ("streaming_unknown_share", "windows called unknown"),
                ("sensor_off_auroc", "AUROC of novelty, sensor taken off"),
            )
            if key in crossval
        ),
    ]
    for kind, text in (("streaming", "windows cut from recordings"), ("filtered", "windows as published")):
        if f"{kind}_worst_subject" in crossval:
            lines += _by_class(text, crossval[f"{kind}_classes"], crossval[f"{kind}_worst_subject"])
    return "\n".join(lines).strip()


def _by_class(text: str, classes: Mapping[str, Mapping[str, float]], worst: Mapping[str, Any]) -> list[str]:
    return [
        "",
        f"{text}; the worst subject, {worst['subject']}, has {worst['accuracy']:.1%}.",
        "",
        "| class | precision | recall | F1 |",
        "|---|---|---|---|",
        *(
            f"| {name} | {c['precision'] or 0:.1%} | {c['recall'] or 0:.1%} | {c['f1'] or 0:.1%} |"
            for name, c in classes.items()
        ),
    ]


def _many(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
