import json
from functools import partial

import pytest
from graphs import LABELS, write_bundle
from typer.testing import CliRunner

from agent.app import bench as measuring
from agent.app.bench import FEWEST_CALLS, Choice, choose, preferred
from agent.cli import build
from agent.core.manifest import Input
from agent.errors import ModelContractError, UsageError


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """What is measured at cadence is not slept for."""
    monkeypatch.setattr(measuring, "CADENCE_S", 0.001)


@pytest.mark.parametrize(
    ("spent", "which"),
    [
        ([2.0, 1.0], 1),
        ([1.0, 2.0], 0),
        ([1.04, 1.0], 0),
        ([1.06, 1.0], 1),
        ([3.0, 1.04, 1.0], 1),
        ([1.0, 1.0], 0),
    ],
)
def test_the_fastest_is_preferred_and_of_equals_the_first(spent, which):
    assert preferred(spent) == which


def test_bundles_that_score_and_those_with_a_context_are_measured_side_by_side(tmp_path):
    names = [str(write_bundle(tmp_path / "a")), str(write_bundle(tmp_path / "b", 5, novel=True))]
    choice = choose(names, 0.1)

    assert isinstance(choice, Choice)
    assert [c.bundle for c in choice.bundles] == names
    assert choice.chosen == names[preferred([c.at_cadence_us for c in choice.bundles])]
    assert min(c.ratio for c in choice.bundles) == 1
    assert all(c.at_cadence_us > 0 and c.hot_us > 0 for c in choice.bundles)


@pytest.mark.parametrize(("seconds", "calls"), [(0.001, FEWEST_CALLS), (0.1, 100)])
def test_each_bundle_is_measured_for_as_long_as_is_said_and_often_enough(tmp_path, monkeypatch, seconds, calls):
    rounds = []
    at_cadence = measuring._at_cadence

    def counted(time_s, *acts):
        counts = [0] * len(acts)

        def count(i, act):
            counts[i] += 1
            act()

        found = at_cadence(time_s, *(partial(count, i, act) for i, act in enumerate(acts)))
        rounds.append(counts)
        return found

    monkeypatch.setattr(measuring, "_at_cadence", counted)
    choose([str(write_bundle(tmp_path / name)) for name in "abc"], seconds)

    assert rounds == [[calls] * 3]


@pytest.mark.parametrize("names", [[], ["har-base"]])
def test_fewer_than_two_are_no_choice(names):
    with pytest.raises(UsageError, match="at least two"):
        choose(names, 0.1)


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"labels": LABELS[::-1]}, "labels"), ({"input": Input(hop=32)}, "input")],
)
def test_bundles_that_cannot_stand_for_each_other_are_refused(tmp_path, changes, what):
    names = [str(write_bundle(tmp_path / "a")), str(write_bundle(tmp_path / "b", **changes))]

    with pytest.raises(UsageError, match=f"b cannot stand for each other: their {what} differs"):
        choose(names, 0.1)


def test_a_bundle_that_is_not_there_cannot_be_chosen(tmp_path):
    with pytest.raises(ModelContractError, match="no model bundle at 'nowhere'"):
        choose([str(write_bundle(tmp_path / "a")), "nowhere"], 0.1)


def bench(*arguments):
    return CliRunner().invoke(build(["bench"]), ["bench", *map(str, arguments), "--seconds", "0.1"])


def test_only_the_name_of_the_chosen_goes_to_standard_output(tmp_path):
    a, b = write_bundle(tmp_path / "a"), write_bundle(tmp_path / "b")
    done = bench("--choose", a, b)

    assert done.exit_code == 0, done.exception
    assert done.stdout.strip() in (str(a), str(b))
    assert "at_cadence_us" in done.stderr


def test_all_figures_of_a_choice_are_json_on_standard_output(tmp_path):
    a, b = write_bundle(tmp_path / "a"), write_bundle(tmp_path / "b")
    result = json.loads(bench("--choose", a, b, "--json").stdout)

    assert (result["v"], [c["bundle"] for c in result["bundles"]]) == (1, [str(a), str(b)])
    assert result["chosen"] in (str(a), str(b))
    assert {"machine", "onnxruntime"} <= result["machine"].keys()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["har-base"], "give --choose"),
        (["--choose", "har-base"], "at least two"),
        (["--choose", "--model", "har-base", "a", "b"], "not --model"),
        (["--choose", "--config", "agent.toml", "a", "b"], "or --config"),
    ],
)
def test_a_choice_that_is_none_is_wrong_usage(arguments, says):
    done = bench(*arguments)

    assert isinstance(done.exception, UsageError)
    assert says in str(done.exception)
    assert done.stdout == ""
