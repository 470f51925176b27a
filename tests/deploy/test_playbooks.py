"""What rollout.yml does with boards that fail or vanish, on a stand-in for the role; and how outcomes are told."""

import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from agent.app.compose import load_config

HERE = Path(__file__).parent
ANSIBLE = HERE.parents[1] / "deploy" / "ansible"
PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")

pytestmark = pytest.mark.skipif(not PLAYBOOK.exists(), reason="ansible-core is not installed")


def _plugin(kind: str, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ANSIBLE / "plugins" / kind / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Run:
    """What a playbook did: exit status, output, the report, and the steps of each board in their order."""

    def __init__(self, done: subprocess.CompletedProcess[str], report: Path, logs: Path) -> None:
        self.rc, self.output = done.returncode, done.stdout + done.stderr
        self.report: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {}
        self.steps = {path.name: path.read_text().split() for path in logs.iterdir()}

    @property
    def outcomes(self) -> dict[str, str]:
        return {name: board["outcome"] for name, board in self.report["boards"].items()}

    def reason(self, board: str) -> str:
        return str(self.report["boards"][board]["reason"])


@pytest.fixture
def rollout(tmp_path: Path) -> Callable[..., Run]:
    """Run rollout.yml on six boards; keyword arguments are variables of one board each, or of all (`every`)."""

    def run(*args: str, canaries: tuple[str, ...] = (), **boards: dict[str, Any]) -> Run:
        logs = tmp_path / "logs"
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir()
        inventory = {
            "all": {
                "vars": {
                    # Nothing listens on the discard port: ssh is refused at once.
                    "ansible_host": "127.0.0.1",
                    "ansible_port": 9,
                    "ansible_connection": "local",
                    "ansible_become": False,
                    "ansible_python_interpreter": sys.executable,
                    "standin_logs": str(logs),
                    "har_agent_batches": [2, "100%"],
                    **boards.pop("every", {}),
                },
                "children": {
                    "boards": {"hosts": {f"board{i}": boards.get(f"board{i}", {}) for i in range(1, 7)}},
                    "canaries": {"hosts": {name: {} for name in canaries}},
                },
            }
        }
        (tmp_path / "hosts.json").write_text(json.dumps(inventory))
        report = tmp_path / "report.json"
        report.unlink(missing_ok=True)
        env = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"),
            "ANSIBLE_ROLES_PATH": str(HERE / "standin" / "roles"),
            "ANSIBLE_LOCAL_TEMP": str(tmp_path / "local"),
            "ANSIBLE_NOCOLOR": "1",
            "HAR_ROLLOUT_REPORT": str(report),
        }
        command = [str(PLAYBOOK), "-i", str(tmp_path / "hosts.json"), "playbooks/rollout.yml", *args]
        done = subprocess.run(command, cwd=ANSIBLE, env=env, capture_output=True, text=True, timeout=120, check=False)
        return Run(done, report, logs)

    return run


DONE = ["stage", "cutover", "verify"]


def test_a_canary_goes_first_then_batches_and_a_second_run_changes_nothing(rollout: Callable[..., Run]) -> None:
    run = rollout(canaries=("board4",), every={"har_agent_soak_s": 3, "har_agent_canary_soak_s": 7})

    assert run.rc == 0, run.output
    assert set(run.outcomes.values()) == {"done"}
    assert all(steps == DONE for steps in run.steps.values())
    assert run.reason("board4") == "soaked 7 s"
    assert run.reason("board1") == "soaked 3 s"

    again = rollout(every={"standin_current": True})

    assert again.rc == 0, again.output
    assert set(again.outcomes.values()) == {"unchanged"}


def test_a_bad_canary_stops_everything(rollout: Callable[..., Run]) -> None:
    run = rollout(board1={"standin_fails": "verify"})

    assert run.rc != 0
    assert run.outcomes == {"board1": "rolled back", **{f"board{i}": "untouched" for i in range(2, 7)}}
    assert run.reason("board1") == "har-agent: no window in 90 s"
    assert run.steps == {"board1": [*DONE, "rollback"]}


def test_a_board_that_fails_takes_its_batch_back_and_no_other(rollout: Callable[..., Run]) -> None:
    run = rollout(board3={"standin_fails": "verify"})

    assert run.rc != 0
    assert run.outcomes == {
        "board1": "done",
        "board2": "rolled back",
        "board3": "rolled back",
        **{f"board{i}": "untouched" for i in range(4, 7)},
    }
    assert run.reason("board2") == "board3 failed"
    assert run.steps == {"board1": DONE, "board2": [*DONE, "rollback"], "board3": [*DONE, "rollback"]}
    told = [" ".join(line.split()) for line in run.output.splitlines()]
    assert told[-7:-2] == [
        "outcome boards which why",
        "done 1 board1 soaked 20 s",
        "rolled back 1 board2 board3 failed",
        "rolled back 1 board3 har-agent: no window in 90 s",
        "untouched 3 board[4-6]",
    ]


def test_a_board_that_cannot_be_prepared_keeps_its_batch_as_it_was(rollout: Callable[..., Run]) -> None:
    run = rollout(board3={"standin_fails": "stage"})

    assert run.rc != 0
    assert run.outcomes["board2"] == "untouched"
    assert run.outcomes["board3"] == "failed"
    assert run.steps == {"board1": DONE, "board2": ["stage"], "board3": ["stage"]}


def test_an_unchanged_board_is_not_rolled_back_for_another_one(rollout: Callable[..., Run]) -> None:
    run = rollout(board2={"standin_current": True}, board3={"standin_fails": "verify"})

    assert run.steps["board2"] == ["stage", "verify"]
    assert run.outcomes["board2"] == "untouched"


def test_a_rollback_that_fails_is_told_with_both_reasons(rollout: Callable[..., Run]) -> None:
    run = rollout(board2={"standin_fails": "rollback"}, board3={"standin_fails": "verify"})

    assert run.outcomes["board2"] == "failed"
    assert run.reason("board2") == (
        "it could not be put back: har-agent: no window in 90 s; before that: board3 failed"
    )
    assert run.outcomes["board3"] == "rolled back"


def test_an_unreachable_board_is_named_before_any_is_touched(rollout: Callable[..., Run]) -> None:
    gone = {"board2": {"ansible_connection": "ssh"}, "board5": {"ansible_connection": "ssh"}}

    run = rollout(**gone)

    assert run.rc != 0
    assert run.outcomes == {f"board{i}": "unreachable" if i in (2, 5) else "untouched" for i in range(1, 7)}
    assert run.reason("board1").startswith("board2, board5 cannot be reached. Nothing was touched.")
    assert run.steps == {}

    run = rollout("-e", "har_agent_allow_unreachable=true", **gone)

    assert run.rc == 4, "Ansible's own exit status where boards were unreachable"
    assert run.outcomes == {f"board{i}": "unreachable" if i in (2, 5) else "done" for i in range(1, 7)}
    # What ssh says: that the connection was refused, or that what Ansible wrote to it reached nobody, as it happens.
    assert "127.0.0.1" in run.reason("board2")


def test_a_board_that_vanishes_takes_its_batch_back_unless_that_is_allowed(rollout: Callable[..., Run]) -> None:
    run = rollout(board3={"standin_gone": "cutover"})

    assert run.rc != 0
    assert run.outcomes == {
        "board1": "done",
        "board2": "rolled back",
        "board3": "unreachable",
        **{f"board{i}": "untouched" for i in range(4, 7)},
    }
    assert run.reason("board2") == "board3 cannot be reached any more"
    assert run.reason("board3").endswith("; it was being changed")

    run = rollout("-e", "har_agent_allow_unreachable=true", board3={"standin_gone": "cutover"})

    assert run.rc == 4
    assert run.outcomes == {f"board{i}": "unreachable" if i == 3 else "done" for i in range(1, 7)}


def test_the_inventory_chooses_batches_and_a_limit_the_boards(rollout: Callable[..., Run]) -> None:
    run = rollout("--limit", "board2,board3", board3={"standin_fails": "verify"}, every={"har_agent_batches": [1]})

    assert run.outcomes == {"board2": "done", "board3": "rolled back"}


# ---- how outcomes are told


def test_outcomes_follow_from_what_was_said_and_seen() -> None:
    plugin = _plugin("callback", "har_rollout")
    ledger = plugin.Ledger()
    ledger.expect(["a", "b", "c", "d", "e", "f"])
    ledger.unreachable("a", "no route")
    ledger.failed("b", "bad")
    ledger.failed("c", "worse")
    ledger.stopped("e", "no bundle was given")

    found = ledger.close(
        {
            "a": {"har_agent_outcome": "done"},
            "c": {"har_agent_outcome": "rolled_back", "har_agent_reason": "b failed", "har_agent_release": "1"},
            "f": {"har_agent_outcome": "nonsense"},
            "_run": {"x": 1},
        },
        failures={"b": 1, "c": 1, "e": 1},
        changed={"b": 2, "d": 1, "e": 0},
    )

    assert found == {
        "a": ("unreachable", "no route; until then: done", {}),
        "b": ("failed", "bad", {}),
        "c": ("rolled back", "b failed", {"release": "1"}),
        "d": ("failed", "the playbook stopped while it was at work on this board: run it again", {}),
        "e": ("untouched", "no bundle was given", {}),
        "f": ("untouched", "no bundle was given", {}),
    }
    assert plugin.summary(found) == "1 rolled back, 2 failed, 2 untouched, 1 unreachable"
    assert plugin.summary({}) == "no board"


def test_a_thousand_boards_are_a_line() -> None:
    plugin = _plugin("callback", "har_rollout")
    done = {f"board{i:04}.lan": plugin.Outcome("done", "0.2.0 in service", {}) for i in range(1, 1001)}
    done["board0500.lan"] = plugin.Outcome("failed", "no window", {})

    assert plugin.table(plugin.grouped(done)) == [
        "outcome  boards  which                                       why",
        "done     999     board[0001-0499].lan, board[0501-1000].lan  0.2.0 in service",
        "failed   1       board0500.lan                               no window",
    ]


def test_many_reasons_do_not_fill_the_screen() -> None:
    plugin = _plugin("callback", "har_rollout")
    many = {f"b{i}": plugin.Outcome("unreachable", f"10.0.0.{i}: no route", {}) for i in range(100, 150)}

    rows = plugin.grouped(many)

    assert len(rows) == 21
    assert rows[-1]["which"] == "b[120-149]"
    assert rows[-1]["why"] == "30 more reasons: the report file tells them"


@pytest.mark.parametrize(
    ("names", "folded"),
    [
        ([], ""),
        (["gate"], "gate"),
        (["b1", "b2", "b4", "gate", "b9", "b10"], "b[1-2], b4, gate, b9, b10"),
        (["10.0.0.1", "10.0.0.2"], "10.0.0.[1-2]"),
        (["b01", "b1", "b02"], "b01, b1, b02"),
    ],
)
def test_names_that_count_up_are_a_range(names: list[str], folded: str) -> None:
    assert _plugin("callback", "har_rollout").fold(names) == folded


def test_rows_of_an_inventory_have_the_unreachable_boards_too(tmp_path: Path) -> None:
    plugin = _plugin("callback", "har_rollout")
    row = {"release": "0.2.0+1a2b3c4d", "reasons": ["a", "b"]}
    outcomes = {
        "b1": plugin.Outcome("unchanged", "", {"row": row}),
        "b2": plugin.Outcome("unreachable", "no route", {}),
    }
    callback = plugin.CallbackModule()

    rows = callback._rows(outcomes)
    callback._write(tmp_path / "new" / "fleet.csv", outcomes, rows, 1.0, False)

    assert plugin.table(rows) == [
        "board  release         reasons",
        "b1     0.2.0+1a2b3c4d  a, b",
        "b2     -               unreachable: no route",
    ]
    with (tmp_path / "new" / "fleet.csv").open() as file:
        assert list(csv.DictReader(file))[1] == {"board": "b2", "release": "-", "reasons": "unreachable: no route"}


def test_playbooks_about_other_things_have_no_list(capsys: pytest.CaptureFixture[str]) -> None:
    callback = _plugin("callback", "har_rollout").CallbackModule()

    callback.v2_playbook_on_play_start(SimpleNamespace(vars={}))
    callback.v2_playbook_on_stats(SimpleNamespace(custom={}, failures={}, changed={}))

    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("result", "told"),
    [
        ({"msg": "Task failed: Action failed: no\n  room"}, "no room"),
        ({"rc": 78, "msg": "non-zero return code", "stderr": "warning\nhar-agent: bad key\n"}, "har-agent: bad key"),
        (
            {
                "rc": 1,
                "msg": "non-zero return code",
                "stdout": '{"state": "degraded", "reasons": [{"code": "source_away", "text": "gone"}]}',
            },
            "the agent is degraded: source_away: gone",
        ),
        (
            {"rc": 1, "stdout": '{"state": "absent", "problem": "nobody wrote", "reasons": []}'},
            "the agent is absent: nobody wrote",
        ),
        ({"rc": 0, "msg": "hm", "stderr": "chatter"}, "hm"),
        ({"rc": 1, "stderr": "tar: x\nhar-agent-release: it cannot be unpacked\n"}, "it cannot be unpacked"),
        ({"msg": "One or more items failed", "results": [{"msg": "x"}, {"failed": True, "msg": "y"}]}, "y"),
        ({}, "no reason was given"),
        ({"msg": "a" * 700}, "a" * 599 + "…"),
    ],
)
def test_a_failure_is_one_sentence(result: dict[str, Any], told: str) -> None:
    assert _plugin("filter", "har_sentence").sentence(result) == told


def test_a_hidden_failure_stays_hidden() -> None:
    assert "hidden" in _plugin("filter", "har_sentence").sentence({"censored": "no_log", "stderr": "s3cret", "rc": 1})


@pytest.mark.parametrize(
    ("inventory", "boards", "more"), [("lab", 3, {}), ("fleet-1000", 2, {"har_agent_config_host": {}})]
)
def test_configurations_of_the_example_inventories_are_right(
    inventory: str, boards: int, more: dict[str, Any], tmp_path: Path
) -> None:
    ansible = [
        str(PLAYBOOK.with_name("ansible")), "-i", f"inventories/{inventory}", f"boards[0:{boards - 1}]", "-c", "local",
        "-m", "ansible.builtin.template", "-a",
        f"src={ANSIBLE}/roles/har_agent/templates/config.toml.j2 dest={tmp_path}/{{{{ inventory_hostname }}}}.toml",
        "-e", f"@{ANSIBLE}/roles/har_agent/vars/main.yml",
        "-e", json.dumps({"ansible_python_interpreter": sys.executable, **more}),
    ]  # fmt: skip
    env = {**os.environ, "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"), "ANSIBLE_LOCAL_TEMP": str(tmp_path / "local")}
    subprocess.run(ansible, cwd=ANSIBLE, env=env, check=True, capture_output=True, timeout=120)
    written = sorted(tmp_path.glob("*.toml"))

    assert len(written) == boards
    for path in written:
        config = load_config(path, {})
        assert next(iter(config.broker.values())).url.startswith("mqtts://")
        assert config.agent.name == path.name.partition(".")[0]


def _compared(**given: Any) -> dict[str, Any]:
    pairs = {
        "confidence": {"old": 0.9, "new": 0.85},
        "novelty": {"old": 1.0, "new": 2.0},
        "unknown": {"old": 0.0, "new": 0.05},
    }
    return {"windows": 20, "agreement": 0.95, **pairs, **given}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, ""),
        ({"agreement": 0.5}, "agreement 0.500, and at least 0.8 is wanted"),
        ({"agreement": None}, "the two do not have the same labels, and at least 0.8 is wanted"),
        ({"confidence": {"old": 0.9, "new": 0.7}}, "confidence 0.900 -> 0.700, and 0.1 lower is allowed"),
        ({"confidence": {"old": 0.7, "new": 0.9}}, ""),
        ({"confidence": {"old": 0.7, "new": None}}, "confidence 0.700 -> none, and 0.1 lower is allowed"),
        (
            {"unknown": {"old": 0.0, "new": 1.0}, "agreement": 0.0},
            "agreement 0.000, and at least 0.8 is wanted; "
            "share of unknown windows 0.000 -> 1.000, and 0.1 more is allowed",
        ),
    ],
)
def test_a_bundle_that_differs_too_much_is_told_with_its_figures(given: dict[str, Any], told: str) -> None:
    assert _plugin("filter", "har_compare").excess(_compared(**given), 0.8, 0.1, 0.1) == told


def test_a_comparison_for_people() -> None:
    assert _plugin("filter", "har_compare").figures(_compared(agreement=None)) == (
        "20 windows, agreement none, confidence 0.900 -> 0.850, novelty 1.000 -> 2.000, unknown 0.000 -> 0.050"
    )


def test_bundles_with_other_labels_pass_where_that_was_asked_for() -> None:
    assert _plugin("filter", "har_compare").excess(_compared(agreement=None), "0", 0.1, 0.1) == ""
