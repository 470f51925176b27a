"""`har-export`: build a model bundle, and measure how well such bundles do on people they have not seen."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import typer

from agent.adapters.bundle import pack as pack_bundle
from agent.errors import AgentError, InputError, ModelContractError
from har_export import bundle as bundles
from har_export import crossval as cv
from har_export import signing, simfit
from har_export.datasets import load
from har_export.datasets.records import ACTIVITIES
from har_export.train import Progress, Settings

EXIT_DATA, EXIT_IO, EXIT_MODEL = 65, 74, 78

app = typer.Typer(
    help="Train, quantise and evaluate models for har-edge-agent.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

DataOption = Annotated[
    Path, typer.Option("--data", help="Folder or file with HAPT and UCI HAR, as published or as .npz.")
]
EpochsOption = Annotated[int, typer.Option("--epochs", min=1, help="Passes over the data in one training.")]


@app.command()
def train(
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="Folder of the bundle; its name is the model's.")],
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    metrics: Annotated[
        Path | None, typer.Option("--metrics", help="Result file of crossval, for manifest and card.")
    ] = None,
    epochs: EpochsOption = Settings.epochs,
) -> None:
    """Train on every subject and write a model bundle.

    Example: har-export train --data ../shared/data --out my-model --seed 0
    """
    torch.set_num_threads(cv.default_jobs())
    settings = replace(Settings(), epochs=epochs)
    measured = {} if metrics is None else {"crossval": _summary(metrics)}
    if measured and measured["crossval"].get("settings") != asdict(settings):
        raise InputError(f"{metrics} was measured with other settings than these: it says nothing about this model")
    built = bundles.build(load(data), seed, settings, out.resolve().name, measured, _show_epoch)
    bundles.write(built, out)
    typer.echo(f"{built.id} written to {out}", err=True)
    for name, entry in built.manifest.files.items():
        typer.echo(f"{name}\t{entry.bytes}")


@app.command()
def crossval(
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="Result file; each fold is kept in a folder beside it.")],
    seeds: Annotated[str, typer.Option("--seeds", help="Numbers with commas between them.")] = "0,1,2,3,4",
    folds: Annotated[int, typer.Option("--folds", min=2)] = 5,
    epochs: EpochsOption = Settings.epochs,
    jobs: Annotated[int, typer.Option("--jobs", min=0, help="Folds at a time; 0 is one a core.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Cross-validate by subject: every fold's int8 bundle is scored through the agent's pipeline.

    Interrupted, it goes on where it stopped. Example:
    har-export crossval --data ../shared/data --seeds 0,1,2,3,4 --out results.json
    """
    settings = replace(Settings(), epochs=epochs)
    results = cv.crossval(
        data, _numbers(seeds), folds, settings, out.with_suffix(""), jobs or cv.default_jobs(), _show_fold
    )
    summary = cv.summarise(results)
    out.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    typer.echo(json.dumps(summary, indent=2) if as_json else table(summary))


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


def table(summary: dict[str, Any]) -> str:
    """Return a cross-validation's summary as text for people."""
    seeds = ", ".join(str(seed) for seed in summary["seeds"])
    lines = [f"{summary['folds']}-fold by subject, seeds {seeds}, int8 files"]
    for kind, name in (("streaming", "HAPT streaming windows"), ("filtered", "UCI HAR windows")):
        if f"{kind}_accuracy" not in summary:
            continue
        lines += ["", f"{name} ({summary[f'{kind}_windows']:,} of six activities)"]
        lines.append(_spread("accuracy, six activities", summary[f"{kind}_accuracy"]))
        if kind == "streaming":
            if "transition_recall" in summary:
                lines.append(_spread("transition recall", summary["transition_recall"]))
            lines.append(_spread("called unknown", summary["unknown_share"]))
        worst = summary[f"{kind}_worst_subject"]
        lines.append(f"  worst subject              {worst['accuracy']:7.2%}  (subject {worst['subject']})")
        lines.append(f"  {'class':<24} {'precision':>10} {'recall':>8} {'F1':>8}")
        lines += [
            f"  {label:<24} {c['precision']:>10.2%} {c['recall']:>8.2%} {c['f1']:>8.2%}"
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


def _show_fold(result: dict[str, Any], done: int, tasks: int) -> None:
    task = result["task"]
    text = ", ".join(
        f"{kind} {text}" for kind in ("streaming", "filtered") if (text := _accuracy_of(result[kind])) is not None
    )
    typer.echo(f"{done}/{tasks}: seed {task['seed']}, fold {task['fold']}: {text}", err=True)


def _accuracy_of(scored: dict[str, list[int]]) -> str | None:
    pairs = [(t, p) for t, p in zip(scored["truth"], scored["predicted"], strict=True) if t < ACTIVITIES]
    return f"{sum(t == p for t, p in pairs) / len(pairs):.2%}" if pairs else None


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as e:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 0,1,2", param_hint="--seeds") from e


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
