"""`har-export`: build a model bundle, and measure how well such bundles do on people they have not seen."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import typer

from agent.adapters.bundle import find_bundle, load_bundle
from agent.adapters.bundle import pack as pack_bundle
from agent.adapters.onnx_model import OrtModel
from agent.core.decoders.recording import Declared
from agent.core.manifest import Bundle
from agent.core.planner import Profile
from agent.errors import AgentError, InputError, ModelContractError
from har_export import bundle as bundles
from har_export import crossval as cv
from har_export import evaluate as ev
from har_export import exits, signing, simfit
from har_export.datasets import Source
from har_export.datasets.records import Data
from har_export.lab.cli import app as lab
from har_export.lab.cli import numbers
from har_export.network import BASE
from har_export.train import Progress, Settings

EXIT_DATA, EXIT_IO, EXIT_MODEL = 65, 74, 78

app = typer.Typer(
    help="Train, quantise and evaluate models for har-edge-agent.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

app.add_typer(lab, name="lab")

DataOption = Annotated[
    Path, typer.Option("--data", help="A data set as its publisher gives it, or a folder of the agent's recordings.")
]
DeclareOption = Annotated[
    list[str] | None,
    typer.Option(
        "--declare",
        help="What the data does not say itself, KEY=VALUE; may be repeated: place=arm, axes='-y x z', acc_unit=m/s2, "
        "gyro_unit=deg/s, rate_hz=100, max_bad_rows=100.",
    ),
]
EpochsOption = Annotated[int, typer.Option("--epochs", min=1, help="Passes over the data in one training.")]
RateOption = Annotated[
    float, typer.Option("--model-rate-hz", min=10, max=400, help="Samples a second that the model takes.")
]
WindowOption = Annotated[int, typer.Option("--window", min=32, max=4096, help="Samples in a window, a multiple of 8.")]

MembersOption = Annotated[
    int, typer.Option("--members", min=1, max=16, help="Networks that work together: better, slower, larger.")
]
ExitsOption = Annotated[bool, typer.Option("--exits", help="A wider network with two early exits, without context.")]


@app.command()
def train(
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="Folder of the bundle; its name is the model's.")],
    declare: DeclareOption = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    metrics: Annotated[
        Path | None, typer.Option("--metrics", help="Result file of crossval, for manifest and card.")
    ] = None,
    members: MembersOption = 1,
    with_exits: ExitsOption = False,
    epochs: EpochsOption = Settings.epochs,
    rate_hz: RateOption = Settings.rate_hz,
    window: WindowOption = Settings.window,
    with_float: Annotated[bool, typer.Option("--float", help="Also write OUT-float: the same model in float.")] = False,
) -> None:
    """Train on every subject and write a model bundle.

    Example: har-export train --data ../shared/data --out my-model --seed 0
    """
    torch.set_num_threads(cv.default_jobs())
    settings = replace(Settings(), epochs=epochs, rate_hz=rate_hz, window=window)
    shape = exits.SHAPE if with_exits else BASE
    measured = {} if metrics is None else {"crossval": _summary(metrics)}
    wanted = {"settings": asdict(settings), "members": members, "shape": None, **bundles.describe_shape(shape)}
    if measured and {key: measured["crossval"].get(key) for key in wanted} != wanted:
        raise InputError(f"{metrics} was measured with other settings than these: it says nothing about this model")
    name = out.resolve().name
    if with_float and (members > 1 or with_exits):
        raise InputError("--float is for models of boards, which have one member and no exits")
    built, networks = bundles.build(
        read(data, declare, rate_hz), seed, settings, name, measured, _show_epoch, members, shape
    )
    written = [(built, out)]
    if with_float:
        written.append((bundles.float_variant(built, networks[0]), out.with_name(f"{out.name}-float")))
    for bundle, folder in written:
        bundles.write(bundle, folder)
        typer.echo(f"{bundle.id} written to {folder}", err=True)
        for file, entry in bundle.manifest.files.items():
            typer.echo(f"{file}\t{entry.bytes}")


@app.command()
def crossval(
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="Result file; each fold's bundle is kept in a folder beside it.")],
    declare: DeclareOption = None,
    seeds: Annotated[str, typer.Option("--seeds", help="Numbers with commas between them.")] = "0,1,2,3,4",
    folds: Annotated[int, typer.Option("--folds", min=2)] = 5,
    members: MembersOption = 1,
    with_exits: ExitsOption = False,
    epochs: EpochsOption = Settings.epochs,
    rate_hz: RateOption = Settings.rate_hz,
    window: WindowOption = Settings.window,
    jobs: Annotated[int, typer.Option("--jobs", min=0, help="Folds at a time; 0 is one a core.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Cross-validate by subject: every fold's int8 bundle is scored through the agent's pipeline.

    Interrupted, it goes on where it stopped. Example:
    har-export crossval --data ../shared/data --seeds 0,1,2,3,4 --out results.json
    """
    if not out.suffix:
        raise typer.BadParameter(
            f"{out} has no suffix such as .json: it is the folder of the bundles", param_hint="--out"
        )
    settings = replace(Settings(), epochs=epochs, rate_hz=rate_hz, window=window)
    where = source(data, declare)
    _say_lost(cv.load(where, rate_hz))
    results = cv.crossval(
        where, numbers(seeds), folds, settings, out.with_suffix(""), jobs or cv.default_jobs(),
        _show_fold, members, exits.SHAPE if with_exits else BASE,
    )  # fmt: skip
    summary = cv.summarise(results)
    out.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    typer.echo(json.dumps(summary, indent=2) if as_json else table(summary))


@app.command()
def evaluate(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder or .harmodel file, or the name of one that ships.")],
    data: DataOption,
    declare: DeclareOption = None,
    html: Annotated[Path | None, typer.Option("--html", help="Also write a report with plots: one HTML file.")] = None,
    novel: Annotated[
        list[str] | None,
        typer.Option("--novel", help="Label that the model was never shown and should call unknown; may be repeated."),
    ] = None,
    mapping: Annotated[
        list[str] | None,
        typer.Option("--map", help="What a label of the data means in the bundle, jogging=walking; may be repeated."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """Measure a bundle on recorded data, through the agent's own pipeline.

    Example: har-export evaluate my-model --data my-recordings/ --html report.html
    """
    from har_export import report  # with matplotlib, which the other commands need not wait for

    means = dict(_pair(text, "--map", "jogging=walking") for text in mapping or ())
    model = OrtModel(load_bundle(find_bundle(bundle)))
    recorded = read(data, declare, model.bundle.manifest.input.rate_hz)
    result = ev.run(model, recorded, str(data), novel or (), means)
    if html is not None:
        html.write_text(report.render(result), encoding="utf-8")
        typer.echo(f"{html} written", err=True)
    typer.echo(json.dumps(result, indent=2) if as_json else report.text(result))


@app.command()
def finetune(
    base: Annotated[
        str, typer.Option("--from", help="What is taught: a bundle's folder or .harmodel file, or one that ships.")
    ],
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="Folder of the new bundle; its name is the model's.")],
    declare: DeclareOption = None,
    replay: Annotated[
        Path | None, typer.Option("--replay", help="Recordings of what the base knows, if it carries no exemplars.")
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", help="Secret key to sign the new bundle with.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was measured as JSON.")] = False,
) -> None:
    """Teach a bundle new activities, or a new person, from a few labelled minutes; what it knew, it keeps.

    Example: har-export finetune --from har-base --data my-recordings/ --out my-model --key release.pem
    """
    from har_export import finetune as ft

    if key is not None:
        signing.read_key(key)
    taught = load_bundle(find_bundle(base))
    rate_hz = taught.manifest.input.rate_hz
    own = read(data, declare, rate_hz)
    known = None if replay is None else read(replay, None, rate_hz)
    built = ft.finetune(taught, own, out.resolve().name, seed, known, lambda text: typer.echo(text, err=True))
    bundles.write(built, out)
    typer.echo(f"{built.id} written to {out}", err=True)
    if key is not None:
        typer.echo(f"signed with {signing.sign(out, key)}", err=True)
    typer.echo(json.dumps(built.manifest.metrics["finetune"], indent=2) if as_json else ft.text(built))


@app.command("slice")
def slice_(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder or .harmodel file, or the name of one that ships.")],
    out: Annotated[Path, typer.Option("--out", help="Folder in which each slice gets one of its own.")],
    parts: Annotated[int | None, typer.Option("--parts", min=2, max=64, help="Slices of similar compute time.")] = None,
    at: Annotated[
        list[str] | None, typer.Option("--at", help="Cut at this tensor instead; may be repeated, in order.")
    ] = None,
    profile: Annotated[
        Path | None, typer.Option("--profile", help="File of har-agent profile of the machines that run the slices.")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, max=600, help="Time to measure here instead.")] = 3.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
) -> None:
    """Cut a bundle into parts of similar compute time, for machines that run the network in a chain.

    Example: har-export slice har-base --parts 3 --out slices/
    """
    from har_export import slices

    if (parts is None) == (not at):
        raise typer.BadParameter("say into how many parts, or where with --at", param_hint="--parts")
    whole = load_bundle(find_bundle(bundle))

    def profiled() -> Profile:
        return slices.measured(bundle, seconds) if profile is None else slices.read(profile)

    made = slices.slice_bundle(whole, profiled, out, parts, at or ())
    typer.echo(f"{len(made.slices)} bundles written to {out}; sign them with har-export sign", err=True)
    typer.echo(json.dumps(made.as_dict(), indent=2) if as_json else made.text())


@app.command("fit-simulator")
def fit_simulator(
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="JSON file of the coefficients.")],
) -> None:
    """Fit the agent's simulated IMU on the HAPT recordings.

    Example: har-export fit-simulator --data ../shared/data --out agent/adapters/simulated_imu.json
    """
    simfit.fit_simulator(data, out)
    typer.echo(f"{out} written, {out.stat().st_size} bytes", err=True)


@app.command()
def keygen(
    out: Annotated[Path, typer.Option("--out", help="Name of the pair: OUT.pem is secret, OUT.pub.pem is for boards.")],
) -> None:
    """Make a key pair for signing bundles.

    Example: har-export keygen --out release
    """
    fingerprint = signing.keygen(out)
    typer.echo(f"{out}.pem (secret) and {out}.pub.pem written", err=True)
    typer.echo(fingerprint)


@app.command()
def sign(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")],
    key: Annotated[Path, typer.Option("--key", help="Secret key, as of keygen or openssl genpkey.")],
) -> None:
    """Sign a bundle: write its manifest.sig.

    Example: har-export sign my-model --key release.pem
    """
    typer.echo(signing.sign(bundle, key))


@app.command()
def pack(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")],
    out: Annotated[Path, typer.Option("--out", help="The single file, .harmodel.")],
) -> None:
    """Put a bundle, with its signature if it has one, into a single file.

    Example: har-export pack my-model --out my-model.harmodel
    """
    data = pack_bundle(bundle)
    out.write_bytes(data)
    typer.echo(f"{out} written, {len(data)} bytes", err=True)


def source(path: Path, declare: list[str] | None) -> Source:
    """Return where data lies, with what `--declare` says of it.

    Raises:
        typer.BadParameter: it declares something else than can be declared.
    """
    given = dict(_pair(text, "--declare", "place=arm") for text in declare or ())
    texts = {key: given.pop(key, None) for key in ("place", "axes", "acc_unit", "gyro_unit")}
    rate_hz = _declared(given, "rate_hz", "finite number above 0", lambda value: 0 < value < math.inf)
    bad_rows = _declared(given, "max_bad_rows", "whole number from 0", lambda value: value >= 0 and value.is_integer())
    if given:
        raise typer.BadParameter(f"{', '.join(given)} cannot be declared", param_hint="--declare")
    return Source(
        path,
        place=texts["place"],
        axes=texts["axes"] or Source._field_defaults["axes"],
        declared=Declared(texts["acc_unit"], texts["gyro_unit"], rate_hz),
        max_bad_rows=Source._field_defaults["max_bad_rows"] if bad_rows is None else int(bad_rows),
    )


def _declared(given: dict[str, str], key: str, wanted: str, fits: Callable[[float], bool]) -> float | None:
    """Take the number out of `given`, if it is there."""
    text = given.pop(key, None)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not fits(value):
        raise typer.BadParameter(f"{text!r} is no {wanted}", param_hint=f"--declare {key}")
    return value


def read(path: Path, declare: list[str] | None, grid_hz: float | None = None) -> Data:
    """Load data and say what of it was lost."""
    data = source(path, declare).load(grid_hz)
    _say_lost(data)
    return data


def _say_lost(data: Data) -> None:
    for loss in data.losses:
        typer.echo(f"lost: {loss}", err=True)


def table(summary: dict[str, Any]) -> str:
    """Return a cross-validation's summary as text for people."""
    seeds = ", ".join(str(seed) for seed in summary["seeds"])
    lines = [f"{summary['folds']}-fold by subject, seeds {seeds}, int8 files"]
    for kind, name in (("streaming", "windows cut from recordings"), ("filtered", "windows as published")):
        if f"{kind}_accuracy" not in summary:
            continue
        lines += ["", f"{name} ({summary[f'{kind}_windows']:,} of activities)"]
        for key, text in (
            ("accuracy", "accuracy"), ("macro_f1", "macro F1"), ("ece", "calibration error"),
            ("transition_recall", "transition recall"), ("unknown_share", "called unknown"),
        ):  # fmt: skip
            if f"{kind}_{key}" in summary:
                lines.append(_spread(text, summary[f"{kind}_{key}"]))
        if kind == "streaming":
            if summary["context_bytes"]:
                lines.append(_spread("decided, with context", summary["decided_accuracy"]))
            lines.append(_spread("decided, without", summary["without_context_accuracy"]))
            if "reordered_accuracy" in summary:
                lines.append(_spread("decided, bouts reordered", summary["reordered_accuracy"]))
            onsets = summary["onsets"]
            if onsets["delay_median_s"] is not None:
                lines.append(
                    f"  onset to label             {onsets['delay_median_s']:.2f} s median, "
                    f"{onsets['delay_p90_s']:.2f} s p90, {onsets['missed']} of {onsets['count']} missed"
                )
            if "sensor_off_auroc" in summary:
                lines.append(_spread("AUROC, sensor taken off", summary["sensor_off_auroc"]))
        worst = summary[f"{kind}_worst_subject"]
        lines.append(f"  worst subject              {worst['accuracy']:7.2%}  (subject {worst['subject']})")
        lines.append(f"  {'class':<24} {'precision':>10} {'recall':>8} {'F1':>8}")
        lines += [
            f"  {label:<24} {c['precision'] or 0:>10.2%} {c['recall'] or 0:>8.2%} {c['f1'] or 0:>8.2%}"
            for label, c in summary[f"{kind}_classes"].items()
        ]
    size = summary["encoder_and_classifier_bytes"]
    lines += ["", f"encoder + classifier {size:,} bytes, code {summary['code_bytes']} bytes a window"]
    lost = round(summary["quantisation_loss"], 4) + 0.0  # no "-0.00%"
    lines.append(f"accuracy lost by quantisation {lost:.2%}")
    return "\n".join(lines)


def _spread(name: str, figure: dict[str, Any]) -> str:
    return "  {:<26} {mean:7.2%}  (sd over seeds {sd:.2%}, lowest {min:.2%})".format(name, **figure)


def _show_epoch(stage: str, progress: Progress) -> None:
    typer.echo(
        f"{stage}: epoch {progress.epoch}/{progress.epochs}, loss {progress.loss:.4f}, "
        f"{progress.left_s:.0f} s left in this stage",
        err=True,
    )


def _show_fold(bundle: Bundle, done: int, tasks: int) -> None:
    held = bundle.manifest.metrics["held_out"]
    typer.echo(f"{done}/{tasks}: {bundle.manifest.name}, calibration subjects {held['accuracy']:.2%}", err=True)


def _pair(text: str, option: str, example: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise typer.BadParameter(f"{text!r} is no pair such as {example}", param_hint=option)
    return name, value


def _summary(path: Path) -> dict[str, Any]:
    """Read a result file of crossval, less what a manifest does not need: the tables by subject.

    Raises:
        InputError: it is no such file.
    """
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        summary["streaming_accuracy"]["mean"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(f"{path} is no result file of har-export crossval: {e}") from e
    return {key: value for key, value in summary.items() if not key.endswith(("_subjects", "_confusion"))}


def main() -> None:
    """Run the command line; errors of the project become one sentence and the exit code of the contract."""
    try:
        app()
    except InputError as e:
        _fail(e, EXIT_DATA)
    except ModelContractError as e:
        _fail(e, EXIT_MODEL)
    except (AgentError, OSError) as e:
        _fail(e, EXIT_IO)


def _fail(error: Exception, code: int) -> NoReturn:
    typer.echo(f"har-export: {error}", err=True)
    raise SystemExit(code)
