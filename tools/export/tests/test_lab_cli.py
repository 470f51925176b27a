from pathlib import Path

import pytest
from layouts import write_npz
from typer.testing import CliRunner

from agent.errors import InputError
from har_export import bundle as bundles
from har_export.cli import app, numbers, source
from har_export.crossval import Task, held_out
from har_export.datasets.records import Data
from har_export.lab import cli as lab
from har_export.lab.result import Result
from har_export.train import Settings

QUICK = Settings(epochs=1, epochs_with_everyone=1, context_steps=10, batch=32)
NOTHING = Result("title", "", [], [], [], {})


@pytest.fixture(scope="module")
def crossval(tiny: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two folds of seed 2, as crossval leaves them."""
    folder = tmp_path_factory.mktemp("crossval")
    for fold in range(2):
        task = Task(2, fold, 2)
        training = tiny.of([s for s in tiny.subjects if s not in held_out(tiny, task)])
        bundles.write(bundles.build(training, 2, QUICK, task.name, {})[0], folder / task.name)
    return folder


def test_the_models_of_a_crossval_meet_whom_they_have_not_seen(crossval: Path, tiny: Data) -> None:
    (crossval / "seed2-fold0of2-float").mkdir(exist_ok=True)  # not a fold

    ((first, second),) = lab.folds_of(tiny, crossval)

    assert [model.bundle.manifest.name for model, _ in (first, second)] == ["seed2-fold0of2", "seed2-fold1of2"]
    for model, unseen in (first, second):
        assert set(unseen.subjects).isdisjoint(model.bundle.manifest.training["subjects"])
    assert set(first[1].subjects) | set(second[1].subjects) == set(tiny.subjects)


@pytest.mark.parametrize(
    ("folders", "says"),
    [
        ([], "holds no bundles of a cross-validation"),
        (["seed0-fold0of3", "seed0-fold2of3"], "lacks seed0-fold1of3"),
        (["seed0-fold0of2", "seed0-fold1of2", "seed10-fold1of2"], "lacks seed10-fold0of2"),
        (["seed0-fold0of2", "seed0-fold1of2", "seed1-fold0of5"], "of 2 and 5 folds"),
    ],
)
def test_an_incomplete_crossval_is_refused(
    tmp_path: Path, tiny: Data, monkeypatch: pytest.MonkeyPatch, folders: list[str], says: str
) -> None:
    monkeypatch.setattr(lab, "_unseen", lambda *_: None)
    for name in folders:
        (tmp_path / name).mkdir()

    with pytest.raises(InputError, match=says):
        lab.folds_of(tiny, tmp_path)


def test_a_result_quotes_what_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_npz(tmp_path)
    quoted: list[str] = []
    monkeypatch.setattr("har_export.lab.robustness.run", lambda folds, command, say: quoted.append(command) or NOTHING)
    monkeypatch.setattr("har_export.lab.novelty.run", lambda data, command, say: quoted.append(command) or NOTHING)
    monkeypatch.setattr(lab, "folds_of", lambda data, bundles: [])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my results").mkdir()

    for arguments in (
        ["robustness", "--bundles", "cv", "--data", ".", "--out", "my results/r.json"],
        ["novelty", "--data", ".", "--out", "novelty.json"],
    ):
        result = CliRunner().invoke(app, ["lab", *arguments], catch_exceptions=False)
        assert result.exit_code == 0

    assert quoted == [
        "har-export lab robustness --data . --bundles cv --out 'my results/r.json'",
        "har-export lab novelty --data .",
    ]


@pytest.mark.parametrize(
    "declared",
    ["rate_hz=nan", "rate_hz=inf", "rate_hz=-5", "rate_hz=0", "rate_hz=fast", "max_bad_rows=-1", "max_bad_rows=1.5",
     "max_bad_rows=inf", "max_bad_rows=nan", "colour=red", "place"],
)  # fmt: skip
def test_a_declaration_that_makes_no_sense_is_wrong_usage(tmp_path: Path, declared: str) -> None:
    write_npz(tmp_path)

    result = CliRunner().invoke(
        app, ["crossval", "--data", str(tmp_path), "--declare", declared, "--out", str(tmp_path / "r.json")]
    )

    assert result.exit_code == 2
    assert declared.partition("=")[0] in result.output


def test_what_is_declared_is_passed_on(tmp_path: Path) -> None:
    declared = source(tmp_path, ["rate_hz=62.5", "max_bad_rows=0", "acc_unit=m/s2", "axes=-y x z"])

    assert (declared.declared.rate_hz, declared.declared.acc_unit, declared.max_bad_rows) == (62.5, "m/s2", 0)
    assert declared.axes == "-y x z"
    assert source(tmp_path, None).max_bad_rows == 100
    assert numbers("0, 3") == [0, 3]
