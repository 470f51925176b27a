"""The log of a command that runs for long: JSON lines on standard output under systemd, lines for people otherwise."""

import contextlib
import os
import sys
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from agent.ports import Log


def open_log() -> "Log":
    """Configure structlog, once, and return the logger that is handed down.

    `$JOURNAL_STREAM` is what systemd sets for a service whose output goes to the journal.
    """
    # structlog imports Rich wherever it is installed, for tracebacks that are not used here: 11 MB of a board.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]  # None makes an import fail, by the import system's rules
    import structlog

    render: Any = structlog.processors.JSONRenderer(default=str)
    under_systemd = "JOURNAL_STREAM" in os.environ or not sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _in_order,
            render if under_systemd else _for_people,
        ],
        logger_factory=lambda *_: _Printer(sys.stdout if under_systemd else sys.stderr),
        cache_logger_on_first_use=True,
    )
    return cast("Log", structlog.get_logger())


class _Printer:
    """Prints lines. That nobody can be told, on a full disk or a closed pipe, is no reason to fail."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def info(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            print(line, file=self._file, flush=True)

    warning = info


def _in_order(_logger: object, _method: str, facts: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {name: facts.pop(name) for name in ("timestamp", "level", "event")} | dict(facts)


def _for_people(_logger: object, _method: str, facts: MutableMapping[str, Any]) -> str:
    time, level, event = (str(facts.pop(key)) for key in ("timestamp", "level", "event"))
    rest = "  ".join(f"{name}={value}" for name, value in facts.items() if value is not None)
    return f"{time[11:19]} {level:<7} {event}" + (f"  {rest}" if rest else "")
