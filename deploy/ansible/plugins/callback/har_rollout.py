"""What became of each board, as a table at the end of a playbook, and as a file for other programs.

A board's outcome is what the playbook said last of it with `set_stats` (`har_agent_outcome`, `har_agent_reason`, for
each host). Where it said nothing, the outcome follows from what Ansible saw, and `untouched` is said only of a board on
which no task changed anything. Unreachable is stronger than all: nobody knows how such a board is now.
"""

from __future__ import annotations

import csv
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from ansible import context
from ansible.plugins.callback import CallbackBase
from ansible.plugins.loader import filter_loader

DOCUMENTATION = """
  name: har_rollout
  type: aggregate
  short_description: What became of each board
  description:
    - Prints at the end of a playbook which boards are done, unchanged, rolled back, failed, untouched or unreachable,
      and why. Boards with the same outcome and reason share a line.
    - Is silent in playbooks that are not about boards, which set neither O(har_agent_report) nor an outcome.
  requirements:
    - to be enabled with C(callbacks_enabled)
  options:
    report:
      description: File to write the same to, for other programs; CSV if its name ends in .csv, else JSON.
      type: path
      env:
        - name: HAR_ROLLOUT_REPORT
      ini:
        - section: callback_har_rollout
          key: report
"""

OUTCOMES = ("done", "would change", "unchanged", "rolled back", "failed", "untouched", "unreachable")
"""In the order in which they are told."""

_MOST_LINES = 20
"""Reasons of one outcome that are told apart in the table; the file has them all."""


class Outcome(NamedTuple):
    """What became of a board. `facts`: what else the playbook said of it, for the file."""

    outcome: str
    reason: str
    facts: Mapping[str, Any]


class Ledger:
    """Collects what happens to boards while a playbook runs."""

    def __init__(self) -> None:
        self._boards: dict[str, None] = {}
        self._failed: dict[str, str] = {}
        self._unreachable: dict[str, str] = {}
        self._excused: dict[str, int] = {}
        self._stopped = ""

    def expect(self, boards: Iterable[str]) -> None:
        """Note that a play is about these boards, whether a batch ever comes to them or not."""
        self._boards.update(dict.fromkeys(boards))

    def failed(self, board: str, reason: str) -> None:
        """Note that a task failed."""
        self._failed[board] = reason

    def stopped(self, board: str, reason: str) -> None:
        """Note that a task failed that was about all boards; `board` is only where it ran."""
        self._excused[board] = self._excused.get(board, 0) + 1
        self._stopped = reason

    def unreachable(self, board: str, reason: str) -> None:
        """Note that a board could not be reached."""
        self._unreachable.setdefault(board, reason)

    def close(
        self, said: Mapping[str, Mapping[str, Any]], failures: Mapping[str, int], changed: Mapping[str, int]
    ) -> dict[str, Outcome]:
        """Return the outcome of each board, in the order of the inventory.

        `said`: what `set_stats` collected, by board. `failures`, `changed`: how many such tasks a board had.
        """
        failed = {board for board, count in failures.items() if count > self._excused.get(board, 0)}
        touched = {board for board, count in changed.items() if count}
        return {board: self._outcome(board, said.get(board, {}), failed, touched) for board in self._boards}

    def _outcome(self, board: str, said: Mapping[str, Any], failed: set[str], touched: set[str]) -> Outcome:
        facts = {k.removeprefix("har_agent_"): v for k, v in said.items() if k.startswith("har_agent_")}
        outcome = str(facts.pop("outcome", "")).replace("_", " ")
        reason = str(facts.pop("reason", "") or "")
        if board in self._unreachable:
            before = f"; until then: {outcome}" if outcome else "; it was being changed" if board in touched else ""
            return Outcome("unreachable", self._unreachable[board] + before, facts)
        if outcome in OUTCOMES:
            return Outcome(outcome, reason, facts)
        if board in failed:
            return Outcome("failed", self._failed.get(board, "no reason was given"), facts)
        if board in touched:
            return Outcome("failed", "the playbook stopped while it was at work on this board: run it again", facts)
        return Outcome("untouched", reason or self._stopped, facts)


def fold(names: Iterable[str]) -> str:
    """Return names as one text, those that count up as a range: `board[1-3], gate`."""
    runs: list[tuple[str, str, list[str]]] = []
    for name in names:
        match = re.fullmatch(r"(.*?)(\d+)(\D*)", name)
        head, digits, tail = match.groups() if match else (name, "", "")
        if runs and digits and runs[-1][:2] == (head, tail):
            last = runs[-1][2][-1]
            if len(last) == len(digits) and int(last) + 1 == int(digits):
                runs[-1][2].append(digits)
                continue
        runs.append((head, tail, [digits]))
    return ", ".join(
        f"{head}{run[0]}{tail}" if len(run) == 1 else f"{head}[{run[0]}-{run[-1]}]{tail}" for head, tail, run in runs
    )


def grouped(outcomes: Mapping[str, Outcome]) -> list[dict[str, str]]:
    """Return the rows of the table: boards with the same outcome and reason share one."""
    rows = []
    for outcome in OUTCOMES:
        by_reason: dict[str, list[str]] = {}
        for board, found in outcomes.items():
            if found.outcome == outcome:
                by_reason.setdefault(found.reason, []).append(board)
        told, rest = list(by_reason.items())[:_MOST_LINES], list(by_reason.items())[_MOST_LINES:]
        if rest:
            more = [board for _, boards in rest for board in boards]
            told.append((f"{len(rest)} more reasons: the report file tells them", more))
        rows += [
            {"outcome": outcome, "boards": str(len(boards)), "which": fold(boards), "why": reason}
            for reason, boards in told
        ]
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return rows as lines with a heading; columns are those of the first row."""
    columns = list(rows[0]) if rows else []
    cells = [[column.replace("_", " ") for column in columns], *([_text(row.get(c)) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def summary(outcomes: Mapping[str, Outcome]) -> str:
    """Return how many boards had which outcome."""
    found = sorted(OUTCOMES.index(o.outcome) for o in outcomes.values())
    return ", ".join(f"{len(list(same))} {OUTCOMES[i]}" for i, same in groupby(found)) or "no board"


def _has_rows(outcomes: Mapping[str, Outcome]) -> bool:
    return any("row" in o.facts for o in outcomes.values())


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


class CallbackModule(CallbackBase):  # type: ignore[misc]  # ansible-core has no type information
    """What Ansible loads."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "har_rollout"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._ledger = Ledger()
        self._playbook = ""
        self._title = ""
        self._started = datetime.now(UTC)
        self._started_s = time.monotonic()

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Note which playbook it is."""
        self._playbook = Path(playbook._file_name).name  # noqa: SLF001 - there is no public name for it

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Note which boards a play is about; those of batches that never come are only known here."""
        title = play.vars.get("har_agent_report")
        if not title:
            return
        self._title = str(title)
        known = play.get_variable_manager().get_vars(play=play, include_hostvars=False)
        self._ledger.expect(known.get("ansible_play_hosts_all", ()))

    # `_host`, `_task` and `_result` became `host`, `task` and `result` with ansible-core 2.19; both know these.

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Note why a task failed."""
        if ignore_errors:
            return
        note = self._ledger.stopped if result._task.run_once else self._ledger.failed  # noqa: SLF001
        note(result._host.get_name(), _sentence(result._result))  # noqa: SLF001

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Note why a board could not be reached."""
        self._ledger.unreachable(result._host.get_name(), _sentence(result._result))  # noqa: SLF001

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Print the table, and write the report."""
        outcomes = self._ledger.close(stats.custom, stats.failures, stats.changed)
        if not self._title or not outcomes:
            return
        seconds = time.monotonic() - self._started_s
        check = bool(context.CLIARGS.get("check"))
        rows = self._rows(outcomes)
        self._display.banner(f"{self._title.upper()}{' (check: nothing was changed)' if check else ''}")
        for line in table(rows):
            self._display.display(line)
        away = sum(o.outcome == "unreachable" for o in outcomes.values())
        told = (
            f"{len(outcomes) - away} of {len(outcomes)} boards answered" if _has_rows(outcomes) else summary(outcomes)
        )
        self._display.display(f"{told}; {seconds:.0f} s")
        path = self.get_option("report")
        if path:
            self._write(Path(path), outcomes, rows, seconds, check)
            self._display.display(f"written to {path}")

    @staticmethod
    def _rows(outcomes: Mapping[str, Outcome]) -> list[dict[str, Any]]:
        """Rows by board where the playbook gave `har_agent_row`s (inventory.yml), else rows by outcome."""
        columns = next((list(o.facts["row"]) for o in outcomes.values() if "row" in o.facts), None)
        if columns is None:
            return list(grouped(outcomes))
        found = []
        for board, outcome in outcomes.items():
            row = outcome.facts.get("row") or dict.fromkeys(columns)
            told = {} if "row" in outcome.facts else {"reasons": f"{outcome.outcome}: {outcome.reason}"}
            found.append({"board": board, **row, **told})
        return found

    def _write(
        self, path: Path, outcomes: Mapping[str, Outcome], rows: list[dict[str, Any]], seconds: float, check: bool
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".csv":
            if "board" not in (rows[0] if rows else ()):
                rows = [{"board": b, "outcome": o.outcome, "reason": o.reason} for b, o in outcomes.items()]
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(rows[0] if rows else ())
                writer.writerows([_text(value) for value in row.values()] for row in rows)
            return
        report = {
            "v": 1,
            "playbook": self._playbook,
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": round(seconds, 1),
            "check": check,
            "counts": {name: sum(o.outcome == name for o in outcomes.values()) for name in OUTCOMES},
            "boards": {b: {"outcome": o.outcome, "reason": o.reason, **o.facts} for b, o in outcomes.items()},
        }
        path.write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")


def _sentence(result: Mapping[str, Any]) -> str:
    return str(filter_loader.get("har_sentence").j2_function(result))
