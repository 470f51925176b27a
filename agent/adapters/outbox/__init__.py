"""Messages that must not be lost, on SQLite."""

from agent.adapters.outbox.store import KEPT_CORRUPT, REMOVAL_WAIT_S, RETRY_S, SqliteOutbox

__all__ = ["KEPT_CORRUPT", "REMOVAL_WAIT_S", "RETRY_S", "SqliteOutbox"]
