"""`har-export lab`: each experiment is a command that writes a result file, from which docs/results.md is made."""

import json
import re
import shlex
from pathlib import Path
from typing import Annotated

import torch
import typer

from agent.adapters.bundle import load_bundle
from agent.adapters.onnx_model import OrtModel
from agent.errors import InputError
from har_export.crossval import Task, held_out
from har_export.datasets import load
from har_export.datasets.records import Data
from har_export.lab.result import Result, write

app = typer.Typer(
    help="Measure the experiments of docs/results.md; each takes minutes to an hour.", no_args_is_help=True
)

DataOption = Annotated[Path, typer.Option("--data", help="Folder that holds the data sets.")]
OutOption = Annotated[Path, typer.Option("--out", help="Result file, JSON.")]
PlotsOption = Annotated[Path, typer.Option("--plots", help="Folder that plots are written to.")]
KeepOption = Annotated[Path, typer.Option("--keep", help="Folder of trained networks: a run goes on where it stopped.")]
SeedsOption = Annotated[str, typer.Option("--seeds", help="Numbers with commas between them.")]

FIVE = "0,1,2,3,4"

_FOLD = re.compile(r"seed(\d+)-fold(\d+)of(\d+)")


@app.command()
def zoo(
    context: typer.Context, data: DataOption, out: OutOption = Path("zoo.json"), keep: KeepOption = Path("zoo")
) -> None:
    """Compare networks of the literature, baselines on hand features, and ours.

    Example: har-export lab zoo --data ../shared/data --keep zoo
    """
    from har_export.lab.zoo import compare

    _one_thread()
    _save(compare.run(load(data), keep, _typed(context), _say), out)


@app.command()
def ladder(
    context: typer.Context, data: DataOption, out: OutOption = Path("ladder.json"), keep: KeepOption = Path("zoo")
) -> None:
    """Compress the LSTM of the literature and our network, step by step. Uses the networks of `zoo`.

    Example: har-export lab ladder --data ../shared/data --keep zoo
    """
    from har_export.lab import ladder as steps

    _one_thread()
    _save(steps.run(load(data), keep, _typed(context), _say), out)


@app.command()
def reduction(
    context: typer.Context,
    data: DataOption,
    out: OutOption = Path("reduction.json"),
    plots: PlotsOption = Path("plots"),
    seeds: SeedsOption = FIVE,
) -> None:
    """Compare ways to make windows smaller: accuracy against bytes.

    Example: har-export lab reduction --data ../shared/data
    """
    from har_export.lab import reduction as ways
    from har_export.train import Settings

    _one_thread()
    result = ways.run(load(data), numbers(seeds), Settings(), _typed(context), lambda point: _say(str(point)))
    ways.draw(result, plots / Path(ways.PLOT).name)
    _save(result, out)


@app.command("edge-learning")
def edge_learning(
    context: typer.Context,
    data: DataOption,
    out: OutOption = Path("edge_learning.json"),
    plots: PlotsOption = Path("plots"),
    seeds: SeedsOption = FIVE,
) -> None:
    """Learn digits from what devices send, whole or reduced: traffic, time and accuracy.

    Example: har-export lab edge-learning --data ../shared/data
    """
    from har_export.datasets import mnist
    from har_export.lab import edge_learning as case

    _one_thread()
    result = case.run(mnist.load(data), numbers(seeds), _typed(context), lambda trial: _say(str(trial)))
    case.draw(result, plots / Path(case.PLOT).name)
    _save(result, out)


@app.command()
def robustness(
    context: typer.Context,
    data: DataOption,
    bundles: Annotated[Path, typer.Option("--bundles", help="Folder of bundles, as crossval keeps it.")],
    out: OutOption = Path("robustness.json"),
) -> None:
    """Score a cross-validation's models on changed recordings: turned, noisy, with samples lost, at other rates.

    Example: har-export lab robustness --data ../shared/data --bundles crossval
    """
    from har_export.lab import robustness as matrix

    _save(matrix.run(folds_of(load(data), bundles), _typed(context), _say), out)


@app.command()
def cloud(
    context: typer.Context,
    data: DataOption,
    bundles: Annotated[Path, typer.Option("--bundles", help="Folder of bundles for boards, as crossval keeps it.")],
    larger: Annotated[
        Path, typer.Option("--larger", help="Folder of bundles for the cloud, of the same data, seeds and folds.")
    ],
    out: OutOption = Path("cloud.json"),
) -> None:
    """Compare boards alone with boards that ask a larger model about what they are unsure of.

    Example: har-export lab cloud --data ../shared/data --bundles crossval --larger crossval-cloud
    """
    from har_export.lab import cloud as trial

    people = load(data)
    clouds = folds_of(people, larger)
    # A larger model may have been cross-validated with fewer seeds.
    _save(trial.run(folds_of(people, bundles)[: len(clouds)], clouds, _typed(context), _say), out)


@app.command()
def exits(
    context: typer.Context,
    data: DataOption,
    bundles: Annotated[Path, typer.Option("--bundles", help="Folder of bundles, as crossval --exits keeps it.")],
    out: OutOption = Path("exits.json"),
) -> None:
    """Score and time the early exits of a cross-validation's models: each by itself, by threshold, by deadline.

    Example: har-export lab exits --data ../shared/data --bundles crossval-exits
    """
    from har_export.lab import exits as trial

    _save(trial.run(folds_of(load(data), bundles), _typed(context), _say), out)


@app.command()
def novelty(context: typer.Context, data: DataOption, out: OutOption = Path("novelty.json")) -> None:
    """Leave each activity out of training once, and see how novel it is.

    Example: har-export lab novelty --data ../shared/data
    """
    from har_export.lab import novelty as trial

    _one_thread()
    _save(trial.run(load(data), _typed(context), _say), out)


@app.command()
def finetune(
    context: typer.Context,
    data: DataOption,
    out: OutOption = Path("finetune.json"),
    plots: PlotsOption = Path("plots"),
    seeds: SeedsOption = "0,1,2",
) -> None:
    """Teach models two activities and a person from minutes of labels: accuracy against minutes.

    Example: har-export lab finetune --data ../shared/data
    """
    from har_export.lab import finetuning

    _one_thread()
    _save(finetuning.run(load(data), numbers(seeds), plots, _typed(context), _say), out)


def folds_of(data: Data, bundles: Path) -> list[list[tuple[OrtModel, Data]]]:
    """Return a cross-validation's models with the people whom each has not seen, a list a seed.

    Raises:
        InputError: there are none, or not those of one whole cross-validation of `data`.
    """
    named = [(folder, match) for folder in bundles.glob("seed*") if (match := _FOLD.fullmatch(folder.name))]
    tasks = {Task(*map(int, match.groups())): folder for folder, match in named}
    if not tasks:
        raise InputError(f"{bundles} holds no bundles of a cross-validation; `har-export crossval` writes them")
    counts = sorted({task.folds for task in tasks})
    if len(counts) > 1:
        raise InputError(
            f"{bundles} holds cross-validations of {' and '.join(map(str, counts))} folds: move all but one away"
        )
    seeds = []
    for seed in sorted({task.seed for task in tasks}):
        wanted = [Task(seed, fold, counts[0]) for fold in range(counts[0])]
        if missing := [task.name for task in wanted if task not in tasks]:
            raise InputError(f"{bundles} lacks {', '.join(missing)}: let `har-export crossval` finish first")
        seeds.append([_unseen(data, task, tasks[task]) for task in wanted])
    return seeds


def _unseen(data: Data, task: Task, folder: Path) -> tuple[OrtModel, Data]:
    bundle = load_bundle(folder)
    held = held_out(data, task)
    if not set(held).isdisjoint(bundle.manifest.training.get("subjects", held)):
        raise InputError(f"{folder} was trained on people whom it is to be tested on: it is of other data")
    return OrtModel(bundle), data.of(held)


def _typed(context: typer.Context) -> str:
    """Return the command as it was typed, for its result file; what is left at its default is left out."""
    given = [
        text
        for parameter in context.command.params
        # Paths are still text here, and their defaults are not.
        if (value := str(context.params.get(parameter.name or ""))) != str(parameter.default)
        for text in (parameter.opts[0], value)
    ]
    return shlex.join(["har-export", "lab", context.info_name or "", *given])


def _save(result: Result, out: Path) -> None:
    write(result, out)
    for table in result.tables:
        typer.echo(f"{table.caption}\n{json.dumps(list(table.columns))}")
        for row in table.rows:
            typer.echo("\t".join(row))
    typer.echo(f"{out} written", err=True)


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _one_thread() -> None:
    # Times are quoted of one core, and results do not depend on how many there are.
    torch.set_num_threads(1)


def numbers(text: str) -> list[int]:
    """Read "0,1,2".

    Raises:
        typer.BadParameter: it is no such list.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 0,1,2", param_hint="--seeds")
    return [int(part) for part in parts]
