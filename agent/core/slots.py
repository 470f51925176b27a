"""The state of the two model slots, and how each step changes it. Nothing here touches a file.

    install    candidate = the free slot
    canary     the candidate scores live windows beside the model in service, and is switched to or rejected
    switch     previous = active, active = candidate; on trial until it has scored windows in service
    confirm    the trial is over
    roll back  active = previous, or the configured bundle; rolled_back says what happened until the next install

`trial_starts` counts how often an agent began to use what is not proven yet, a candidate or an active slot on trial,
and did not end in an orderly way: a bundle that takes the process down (SIGILL) is given up after `MAX_TRIAL_STARTS`.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeVar

Slot = Literal["a", "b"]
_T = TypeVar("_T")
SLOTS: tuple[Slot, Slot] = ("a", "b")

VERSION = 1
MAX_TRIAL_STARTS = 3


class RolledBack(NamedTuple):
    """A bundle that was given up: `model` is its id, `reason` for people, `time` ISO 8601 as this board knew it."""

    model: str
    reason: str
    time: str


class SlotState(NamedTuple):
    """What `slots.json` says.

    `active`: the slot in service, None while the configured bundle is. `candidate`: the slot that waits for its canary.
    `previous`: the slot that was active before, for a rollback. `confirmed`: whether the active slot is proven.
    `models`: id of the bundle in each slot, None if there is none.
    """

    active: Slot | None = None
    candidate: Slot | None = None
    previous: Slot | None = None
    confirmed: bool = True
    trial_starts: int = 0
    models: Mapping[Slot, str | None] = {"a": None, "b": None}
    rolled_back: RolledBack | None = None

    @property
    def on_trial(self) -> bool:
        """Whether something is in use, or about to be, that has not proven itself."""
        return self.candidate is not None or not self.confirmed

    @property
    def free(self) -> Slot:
        """The slot that an installation may overwrite: that of a candidate, else one that is not active."""
        return self.candidate or ("b" if self.active == "a" else "a")


def emptied(state: SlotState, slot: Slot) -> SlotState:
    """`slot` is about to be overwritten, or is damaged: nothing refers to it any more."""
    return state._replace(
        active=None if state.active == slot else state.active,
        candidate=None if state.candidate == slot else state.candidate,
        previous=None if state.previous == slot else state.previous,
        models={**state.models, slot: None},
    )


def installed(state: SlotState, slot: Slot, model: str) -> SlotState:
    """`slot` holds a verified bundle that waits for its canary."""
    models = {**state.models, slot: model}
    return state._replace(candidate=slot, models=models, trial_starts=0, rolled_back=None)


def withdrawn(state: SlotState) -> SlotState:
    """What is in service was installed again: no candidate is wanted, and nothing is wrong."""
    return state._replace(candidate=None, trial_starts=0, rolled_back=None)


def tried(state: SlotState, count: int) -> SlotState:
    """What is on trial is used once more (1), or was in an orderly way (-1)."""
    return state._replace(trial_starts=max(0, state.trial_starts + count))


def rejected(state: SlotState, model: str | None, reason: str, time: str) -> SlotState:
    """The candidate is not switched to, if it still is `model`."""
    if state.candidate is None or state.models[state.candidate] != model:
        return state
    noted = RolledBack(model or "a bundle", reason, time)
    return state._replace(candidate=None, trial_starts=0, rolled_back=noted)


def switched(state: SlotState, model: str) -> SlotState:
    """The candidate is in service, on trial, if it still is `model`."""
    if state.candidate is None or state.models[state.candidate] != model:
        return state
    return state._replace(
        active=state.candidate, candidate=None, previous=state.active, confirmed=False, trial_starts=1
    )


def confirmed(state: SlotState, model: str) -> SlotState:
    """The active slot has proven itself, if it still holds `model`."""
    if state.active is None or state.models[state.active] != model:
        return state
    return state._replace(confirmed=True, trial_starts=0)


def rolled_back(state: SlotState, model: str | None, reason: str, time: str) -> SlotState:
    """The active slot, if it still holds `model`, is given up for the one before it, or for the configured bundle."""
    if state.active is None or state.models[state.active] != model:
        return state
    noted = RolledBack(model or "a bundle", reason, time)
    return state._replace(active=state.previous, previous=None, confirmed=True, trial_starts=0, rolled_back=noted)


def dump(state: SlotState) -> bytes:
    """Return the state as the bytes of `slots.json`."""
    noted = state.rolled_back and state.rolled_back._asdict()
    return (json.dumps({"v": VERSION, **state._asdict(), "rolled_back": noted}, indent=2) + "\n").encode()


def parse(data: bytes) -> SlotState:
    """Read `slots.json`.

    Raises:
        ValueError: it is damaged, contradicts itself, or is of another version.
    """
    try:
        raw = json.loads(data)
        if type(raw["v"]) is not int or raw["v"] != VERSION:
            raise ValueError(f"version {raw['v']!r}, where this agent reads {VERSION}")
        noted = raw["rolled_back"]
        state = SlotState(
            _slot(raw["active"]),
            _slot(raw["candidate"]),
            _slot(raw["previous"]),
            _typed(raw["confirmed"], bool),
            _typed(raw["trial_starts"], int),
            {slot: None if raw["models"][slot] is None else _typed(raw["models"][slot], str) for slot in SLOTS},
            None if noted is None else RolledBack(*(_typed(noted[field], str) for field in RolledBack._fields)),
        )
    except (KeyError, TypeError, AttributeError, RecursionError) as e:
        raise ValueError(f"it is not a state of slots: {e!r}") from e
    used = [slot for slot in (state.active, state.candidate, state.previous) if slot]
    if len(set(used)) < len(used) or any(state.models[slot] is None for slot in used):
        raise ValueError("it contradicts itself")
    return state


def _slot(value: object) -> Slot | None:
    if value is not None and value not in SLOTS:
        raise TypeError(f"{value!r} is no slot")
    return value


def _typed(value: Any, kind: type[_T]) -> _T:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value
