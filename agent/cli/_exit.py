"""Exit statuses, and which error ends in which."""

import signal
from enum import IntEnum

from agent import errors


class Exit(IntEnum):
    """Exit statuses, from sysexits.h where it has one."""

    NO = 1
    USAGE = 2
    DATA = 65
    UNAVAILABLE = 69
    IO = 74
    CONFIG = 78


_EXIT_OF: tuple[tuple[type[errors.AgentError], Exit], ...] = (
    (errors.UsageError, Exit.USAGE),
    (errors.ConfigError, Exit.CONFIG),
    (errors.ModelContractError, Exit.CONFIG),
    (errors.InputError, Exit.DATA),
    (errors.OutputError, Exit.IO),
    (errors.SourceUnavailable, Exit.UNAVAILABLE),
    (errors.SinkUnavailable, Exit.UNAVAILABLE),
    (errors.InferenceError, Exit.UNAVAILABLE),
)


def end_on_sigterm() -> None:
    """Let SIGTERM end a command as Ctrl-C does, so that what has been written is closed properly.

    To be called after a command's imports: inside of those, an interrupt is taken for a broken package.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def exit_status(error: errors.AgentError) -> int:
    """Return the exit status that an error ends a one-shot command with."""
    return next((int(code) for kind, code in _EXIT_OF if isinstance(error, kind)), int(Exit.NO))
