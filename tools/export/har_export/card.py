"""The model card, filled in from a manifest; nothing in it is typed by hand."""

from collections.abc import Mapping
from importlib.resources import files
from string import Template
from typing import Any

from agent.core.manifest import Manifest

HAPT = {
    "name": "HAPT, Smartphone-Based Recognition of Human Activities and Postural Transitions (UCI id 341)",
    "citation": "Reyes-Ortiz et al., Transition-Aware Human Activity Recognition Using Smartphones, "
    "Neurocomputing 171, 2016",
    "terms": "no commercial use, according to the publisher's read-me file",
}
UCI_HAR = {
    "name": "UCI HAR, Human Activity Recognition Using Smartphones (UCI id 240)",
    "citation": "Anguita et al., A Public Domain Dataset for Human Activity Recognition Using Smartphones, ESANN 2013",
    "terms": "no commercial use, according to the publisher's read-me file",
}


def render(manifest: Manifest) -> str:
    """Return the card as Markdown."""
    training = manifest.training
    template = Template((files("har_export") / "card.md").read_text(encoding="utf-8"))
    return template.substitute(
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
        noise=training.get("settings", {}).get("noise", "?"),
    )


def _data_line(entry: Mapping[str, Any]) -> str:
    windows = ", ".join(f"{label} {n:,}" for label, n in entry["windows"].items() if n)
    return f"- {entry['name']}. {entry['citation']}. Terms: {entry['terms']}. Windows: {windows or 'none'}."


def _join(numbers: list[int]) -> str:
    return ", ".join(str(n) for n in numbers)


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
    lines += [
        "",
        f"Subject-wise {crossval['folds']}-fold cross-validation, {len(crossval['seeds'])} seeds, every fold's int8 "
        "files scored through the agent's pipeline; the label of a window is that of its middle sample:",
        "",
        "| what | mean over seeds | spread (standard deviation) | lowest seed |",
        "|---|---|---|---|",
        *(
            "| {} | {mean:.2%} | {sd:.2%} | {min:.2%} |".format(text, **crossval[key])
            for key, text in (
                ("streaming_accuracy", "HAPT streaming windows, six activities"),
                ("transition_recall", "HAPT streaming windows, transitions found"),
                ("filtered_accuracy", "UCI HAR windows"),
                ("unknown_share", "windows called unknown"),
            )
            if key in crossval
        ),
    ]
    for kind, text in (("streaming", "HAPT streaming windows"), ("filtered", "UCI HAR windows")):
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
        *(f"| {name} | {c['precision']:.1%} | {c['recall']:.1%} | {c['f1']:.1%} |" for name, c in classes.items()),
    ]
