"""Model slots: which bundle runs, how a new one takes over without losing a window, and how a bad one is given up.

A bundle comes in four steps: `install` verifies it and writes it to the free slot; a canary lets it score the windows
of the model in service, off the path of what is published; it is switched to between two feeds; it is confirmed once
it has scored as many windows in service. Whatever fails on the way is rolled back, and said until the next install.

The state on disk changes before what runs does, so that after a power cut an agent starts with what it was about to do.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

import numpy as np

from agent.core import slots
from agent.core.decision import calibrated
from agent.core.manifest import Manifest, is_lower
from agent.core.settings import ModelSettings
from agent.core.slots import MAX_TRIAL_STARTS, RolledBack, Slot, SlotState
from agent.errors import InferenceError, ModelContractError, OutputError, UsageError
from agent.pipeline import Pipeline, check_same_input
from agent.ports import Clock, Model, SlotStore
from agent.records import Float32Array, Prediction, Scores, Turn
from agent.runtime.engine import TimedModel

SLOWER = 5.0
SLOWER_FLOOR_NS = 200_000
"""A candidate may take five times as long for a window as the model in service, and a fifth of a millisecond more,
which is what a call costs at all. The fastest call of each counts: other processes only ever make one slower."""

MORE_UNKNOWN = 0.5
"""How much larger a candidate's share of unknown windows may be."""

_RETRY_NS = 30_000_000_000
"""Between tries of a disk that refused."""

MAX_TAKEN = 8
"""Windows that a canary scores after one turn: it must not keep the next turn waiting."""


class Opened(NamedTuple):
    """A verified bundle that is ready to run."""

    model: Model
    manifest: Manifest


class Incoming(NamedTuple):
    """A bundle that passed every check. `signed_by`: fingerprint of the trusted key, None if there is none."""

    files: Mapping[str, bytes]
    opened: Opened
    signed_by: str | None


class Loader(Protocol):
    """Opens bundles."""

    def open(self, name: str) -> Opened:
        """Open and prove the bundle of a folder, or one that ships with the agent.

        Raises:
            ModelContractError: it breaks its contract.
        """

    def inspect(self, source: str | bytes, *, allow_unsigned: bool) -> Incoming:
        """Check a bundle that somebody brings, its signature first, and prove it on this board.

        Raises:
            ModelContractError: it is refused.
        """


class Installed(NamedTuple):
    """What an installation did.

    `slot`: where it waits to be tried; None if it is in service already. `changed`: whether anything did.
    """

    model: str
    slot: Slot | None
    signed_by: str | None
    changed: bool


class Canary:
    """Lets a candidate score the windows of the model in service, both in the same way and on the same windows."""

    def __init__(
        self, active: Opened, candidate: Opened, thresholds: tuple[float, float], clock: Clock, windows: int
    ) -> None:
        """`thresholds`: novelty above which a window is unknown, of each. `windows`: how many must be scored."""
        self.candidate = candidate
        self.windows = windows
        self.scored = 0
        self._clock = clock
        self._opened = (active, candidate)
        self._thresholds = thresholds
        self._unknown = [0, 0]
        self._confidence = [0.0, 0.0]
        self._novelty = [0.0, 0.0]
        self._agreed = 0
        # Labels are compared by name: the order of logits is a bundle's own.
        labels = [opened.model.labels for opened in self._opened]
        same = set(labels[0]) == set(labels[1])
        self._index = np.array([labels[0].index(label) for label in labels[1]]) if same else None
        self._fastest_ns = [float("inf"), float("inf")]
        self._taken: list[Float32Array] = []
        self._held = 0

    @property
    def passed(self) -> bool:
        """Whether it has scored enough, and nothing was wrong so far."""
        return self.scored >= self.windows

    def take(self, windows: Float32Array) -> None:
        """Keep a copy of windows (float32 (B, window, 6), g and rad/s) for `advance`; see `Pipeline.tap`."""
        room = min(MAX_TAKEN, self.windows - self.scored) - self._held
        if room > 0:
            self._taken.append(windows[:room].copy())
            self._held += len(self._taken[-1])

    def advance(self) -> str | None:
        """Score what was taken; return why the candidate must be rejected, None while nothing is wrong."""
        if not self._taken:
            return None
        windows = np.concatenate(self._taken)
        self._taken, self._held = [], 0
        scored: list[Scores] = []
        logits: list[Float32Array] = []
        # The candidate comes last: what stays in `logits` is its own.
        for i, opened in enumerate(self._opened):
            context = opened.manifest.context
            normalised = opened.manifest.normalisation.apply(windows)
            start_ns = self._clock.monotonic_ns()
            try:
                scores = opened.model.infer(normalised)
                logits = [scores.logits]
                if context:
                    # Whose windows these are is not known here: each stands for those before it, too.
                    codes = np.repeat(scores.code[:, None], context.windows, axis=1)
                    logits.append(opened.model.contextualise(codes))
            except InferenceError as e:
                # Whether the model in service fails is the engine's business, and says nothing about the other one.
                return str(e) if opened is self.candidate else None
            spent_ns = self._clock.monotonic_ns() - start_ns
            self._fastest_ns[i] = min(self._fastest_ns[i], spent_ns / len(windows))
            scored.append(scores)
        if not all(np.isfinite(each).all() for each in logits):
            return "its scores are not finite numbers"
        self._compare(scored)
        self.scored += len(windows)
        return self._verdict() if self.passed else None

    def comparison(self) -> dict[str, Any] | None:
        """Return how both did on the same live windows, as plain values; None before the first.

        `agreement`: share of windows that got the same label, None where the two do not have the same labels.
        `confidence`: mean calibrated probability of the label of each window. `novelty`: its mean, in each
        bundle's own unit. `unknown`: share of windows above the threshold. A figure that is no finite
        number is None.
        """
        if not self.scored:
            return None
        ids = (opened.model.id for opened in self._opened)
        return {
            "models": dict(zip(("old", "new"), ids, strict=True)),
            "windows": self.scored,
            "agreement": None if self._index is None else round(self._agreed / self.scored, 4),
            "confidence": self._means(self._confidence),
            "novelty": self._means(self._novelty),
            "unknown": self._means(self._unknown),
        }

    def _compare(self, scored: Sequence[Scores]) -> None:
        for i, (opened, scores) in enumerate(zip(self._opened, scored, strict=True)):
            self._unknown[i] += len(scores.novelty) - int((scores.novelty <= self._thresholds[i]).sum())
            # Of the model in service, nobody has looked yet whether its scores are numbers.
            with np.errstate(invalid="ignore"):
                probable = calibrated(scores.logits, opened.manifest.calibration.temperature).max(axis=1)
            self._confidence[i] += float(probable.sum())
            self._novelty[i] += float(scores.novelty.sum())
        if self._index is not None:
            old, new = (scores.logits.argmax(axis=1) for scores in scored)
            self._agreed += int((old == self._index[new]).sum())

    def _means(self, sums: Sequence[float]) -> dict[str, float | None]:
        means = [total / self.scored for total in sums]
        return {
            name: round(mean, 4) if math.isfinite(mean) else None
            for name, mean in zip(("old", "new"), means, strict=True)
        }

    def _verdict(self) -> str | None:
        (old_ns, new_ns), (old, new) = self._fastest_ns, self._unknown
        if new_ns > SLOWER * old_ns + SLOWER_FLOOR_NS:
            return f"it takes {new_ns / 1e6:.3g} ms for a window, where {old_ns / 1e6:.3g} ms are usual here"
        if (new - old) / self.scored > MORE_UNKNOWN:
            return f"{new} of {self.scored} windows are unknown to it, {old} to the model in service"
        return None


class ModelSlots:
    """See the module's text. Used from the main thread; `install` and `rollback` from another process as well."""

    def __init__(self, store: SlotStore, loader: Loader, clock: Clock, settings: ModelSettings) -> None:
        """Prepare; `open` says what to run, `attach` what it runs in."""
        self._store = store
        self._loader = loader
        self._clock = clock
        self._settings = settings
        self._state = SlotState()
        self._running: Opened | None = None
        self._running_slot: Slot | None = None
        self._pipeline: Pipeline | None = None
        self._timed: TimedModel | None = None
        self._canary: Canary | None = None
        self._comparison: dict[str, Any] | None = None
        """What the last canary found, until the next one begins."""
        self._good = 0
        self._counted = False
        self._trouble: str | None = None
        self._retry_ns = 0

    def open(self) -> Opened:
        """Return the bundle to start with: the active slot, or the configured one.

        A slot that cannot be used, or took the process down too often, is rolled back first.

        Raises:
            ModelContractError: the configured bundle cannot be used, and nothing else is left.
        """
        self._load()
        self._begin_trial()
        self._running, self._running_slot = self._open_active()
        return self._running

    def attach(self, pipeline: Pipeline, model: TimedModel) -> None:
        """Say where the opened model runs: `model` is around it, inside `pipeline`. A waiting candidate begins."""
        self._pipeline, self._timed = pipeline, model
        self._start_canary()

    def reload(self) -> None:
        """Look at the slots again: begin with a new candidate, or go over to what is active now. Never raises for them.

        Called after another process has changed something, which it tells with SIGHUP.
        """
        self._load()
        candidate = _model_in(self._state, self._state.candidate)
        is_new = candidate is not None and (self._canary is None or candidate != self._canary.candidate.model.id)
        if is_new:
            self._counted = False
            self._begin_trial()
        active = self._state.active
        running = self._running.model.id if self._running else None
        if active != self._running_slot or (active is not None and self._state.models[active] != running):
            self._take_over()
        if is_new or candidate is None or self._canary is None:
            self._start_canary()

    def after_turn(self, turn: Turn) -> None:
        """Let the canary score what came, switch to a candidate that has passed, confirm what has proven itself."""
        if self._canary is not None:
            self._advance(self._canary)
        elif not self._state.confirmed:
            good = sum(isinstance(e, Prediction) for e in turn.events)
            self._good += good
            if good and self._good >= self._settings.canary_windows:
                self._confirm()

    def failed(self, error: InferenceError) -> None:
        """Give up the model in service, which failed in too many turns, and go on with the one before it.

        Raises:
            InferenceError: there is nothing to go back to.
        """
        if self._running_slot is None or self._pipeline is None:
            raise error
        self._give_up(str(error))
        try:
            self._serve(*self._open_active())
        except ModelContractError as e:
            raise InferenceError(f"{error}; what came before cannot take over: {e}") from e
        self._start_canary()

    def install(
        self, source: str | bytes, *, allow_unsigned: bool | None = None, allow_downgrade: bool = False
    ) -> Installed:
        """Verify a bundle (folder, `.harmodel`, or its bytes), and put it in the free slot as candidate.

        `allow_unsigned`: as configured if None. `allow_downgrade`: whether it may be of a lower version than the bundle
        of the same name that is in service, or of one that cannot be compared. Whoever holds an old signed bundle must
        not be able to bring its mistakes back with it.

        Raises:
            ModelContractError: it is refused; nothing has changed.
            OutputError: the slots cannot be written; what runs, and what is active, has not changed.
        """
        if allow_unsigned is None:
            allow_unsigned = self._settings.allow_unsigned
        new = self._loader.inspect(source, allow_unsigned=allow_unsigned)
        running = self._running or self._peek()
        if running is not None:
            check_same_input(new.opened.manifest, running.manifest)
            if not allow_downgrade:
                _check_no_downgrade(new.opened.manifest, running.manifest)
        model = new.opened.model.id
        if running is not None and running.model.id == model:
            before = self._store.load()[0]
            changed = slots.withdrawn(before) != before
            if changed:
                self._change(slots.withdrawn)
                self.reload()
            return Installed(model, None, new.signed_by, changed)
        with self._store.locked():
            state, _ = self._store.load()
            self._store.stage(new.files)
            slot = state.free
            cleared = slots.emptied(state, slot)
            if cleared != state:
                self._store.save(cleared)
            self._store.place(slot)
            self._store.save(slots.installed(cleared, slot, model))
        if self._pipeline is not None:
            self.reload()
        return Installed(model, slot, new.signed_by, changed=True)

    def rollback(self, reason: str) -> str:
        """Give up the active slot for the one before it, or for the configured bundle; return the id of what it held.

        Raises:
            UsageError: no slot is active.
            OutputError: the slots cannot be written; nothing has changed.
        """
        state, _ = self._store.load()
        if state.active is None:
            raise UsageError("the configured bundle is in service: there is nothing to roll back")
        model, time = state.models[state.active], self._time()
        self._change(lambda s: slots.rolled_back(s, model, reason, time))
        if self._pipeline is not None:
            self.reload()
        return model or "a bundle"

    def close(self) -> None:
        """Note that this agent ends in an orderly way: that does not count against a bundle on trial."""
        if self._counted:
            self._counted = False
            self._try(lambda s: slots.tried(s, -1))

    def status(self) -> dict[str, Any]:
        """Return plain values: what runs, and what is under way."""
        state, canary = self._state, self._canary
        return {
            "model": self._running.model.id if self._running else None,
            "slot": self._running_slot,
            "candidate": _model_in(state, state.candidate),
            "canary": {"scored": canary.scored, "windows": canary.windows} if canary else None,
            "comparison": canary.comparison() if canary else self._comparison,
            "confirmed": state.confirmed,
            "rolled_back": state.rolled_back._asdict() if state.rolled_back else None,
            "problem": self.problem,
        }

    @property
    def problem(self) -> str | None:
        """What health should say, None if all is well."""
        noted = self._state.rolled_back
        told = [f"{noted.model} was given up: {noted.reason}"] if noted else []
        return "; ".join([*told, *([self._trouble] if self._trouble else [])]) or None

    def _load(self) -> None:
        """Read the state; a damaged one is put aside, and replaced by what this agent knows."""
        state, damage = self._store.load()
        if damage is None:
            self._state = state
            return
        noted = RolledBack("what was installed", damage, self._time())
        if self._running_slot is None:
            self._state = SlotState(rolled_back=noted)
        self._try(lambda s: s)

    def _change(self, change: Callable[[SlotState], SlotState], quarantine: Slot | None = None) -> None:
        """Change the state on disk, as it is there now, and here.

        `quarantine`: the slot whose bundle is put aside, if the new state has none in it.

        Raises:
            OutputError: it cannot be written, or somebody else is changing it; nothing has changed.
        """
        with self._store.locked():
            found, damage = self._store.load()
            state = change(self._state if damage else found)
            self._store.save(state)
            if quarantine is not None and state.models[quarantine] is None:
                self._store.quarantine(quarantine)
        self._state = state
        self._trouble = None

    def _try(self, change: Callable[[SlotState], SlotState], quarantine: Slot | None = None) -> bool:
        """Do as `_change`, but only note it if that is not possible now; a disk that refused has peace for a while."""
        now_ns = self._clock.monotonic_ns()
        if now_ns < self._retry_ns:
            return False
        try:
            self._change(change, quarantine)
        except OutputError as e:
            self._trouble = str(e)
            self._retry_ns = now_ns + _RETRY_NS
            return False
        return True

    def _give_up(self, reason: str, *, damaged: bool = False) -> None:
        """Roll back, in memory at least: a disk that cannot be written must not keep a bad model in service.

        `damaged`: what is in the slot cannot be used at all, and is put aside.
        """
        before, time = self._state, self._time()
        slot, model = before.active, _model_in(before, before.active)

        def change(state: SlotState) -> SlotState:
            after = slots.rolled_back(state, model, reason, time)
            # Unless somebody else was faster, and something else is active.
            return slots.emptied(after, slot) if damaged and slot and after != state else after

        self._counted = False
        if not self._try(change, slot if damaged else None):
            self._state = change(before)

    def _reject(self, reason: str) -> None:
        before, time = self._state, self._time()
        model = _model_in(before, before.candidate)
        self._stop_canary()
        self._counted = False
        if not self._try(lambda s: slots.rejected(s, model, reason, time)):
            self._state = slots.rejected(before, model, reason, time)

    def _begin_trial(self) -> None:
        """Count that what is not proven will be used, before it is: it may end the process."""
        while self._state.on_trial and self._state.trial_starts >= MAX_TRIAL_STARTS:
            reason = f"it was started {MAX_TRIAL_STARTS} times, and the agent ended before it had proven itself"
            (self._reject if self._state.candidate else self._give_up)(reason)
        if self._state.on_trial and not self._counted:
            self._counted = self._try(lambda s: slots.tried(s, 1))

    def _open_active(self) -> tuple[Opened, Slot | None]:
        """Open the active slot; one that cannot be used is put aside, until only the configured bundle is left."""
        while (slot := self._state.active) is not None:
            try:
                return self._loader.open(self._store.folder(slot)), slot
            except ModelContractError as e:
                self._give_up(str(e), damaged=True)
        return self._loader.open(self._settings.bundle), None

    def _peek(self) -> Opened | None:
        """Open what an agent would run now, without changing anything."""
        active = self._store.load()[0].active
        try:
            return self._loader.open(self._settings.bundle if active is None else self._store.folder(active))
        except ModelContractError:
            return None

    def _start_canary(self) -> None:
        self._stop_canary()
        slot = self._state.candidate
        if slot is None or self._running is None or self._pipeline is None:
            return
        self._comparison = None
        try:
            candidate = self._loader.open(self._store.folder(slot))
            check_same_input(candidate.manifest, self._running.manifest)
        except ModelContractError as e:
            self._reject(str(e))
            return
        threshold_for = self._pipeline.threshold_for
        thresholds = threshold_for(self._running.manifest), threshold_for(candidate.manifest)
        self._canary = Canary(self._running, candidate, thresholds, self._clock, self._settings.canary_windows)
        self._pipeline.tap = self._canary.take

    def _stop_canary(self) -> None:
        if self._canary is not None:
            self._comparison = self._canary.comparison()
        self._canary = None
        if self._pipeline is not None:
            self._pipeline.tap = None

    def _advance(self, canary: Canary) -> None:
        reason = canary.advance()
        if reason is not None:
            self._reject(reason)
        elif canary.passed:
            model = canary.candidate.model.id
            if not self._try(lambda s: slots.switched(s, model)):
                return
            if _model_in(self._state, self._state.active) == model:
                self._counted = True
                self._serve(canary.candidate, self._state.active)
            else:
                # Somebody has installed another one in the meantime, or none is wanted any more.
                self.reload()

    def _confirm(self) -> None:
        model = self._running.model.id if self._running else ""
        if self._try(lambda s: slots.confirmed(s, model)):
            self._counted = False

    def _take_over(self) -> None:
        """Go over to what the state says, if it can be done while windows are being filled."""
        try:
            self._serve(*self._open_active())
        except ModelContractError as e:
            self._trouble = f"{e}. Until then, what ran so far goes on"

    def _serve(self, opened: Opened, slot: Slot | None) -> None:
        if self._pipeline is not None and self._timed is not None:
            self._pipeline.swap(self._timed, opened.manifest)
            self._timed.replace(opened.model)
        self._stop_canary()
        self._running, self._running_slot = opened, slot
        self._good = 0

    def _time(self) -> str:
        return datetime.fromtimestamp(self._clock.wall_ns() // 1_000_000_000, UTC).isoformat(timespec="seconds")


def _check_no_downgrade(new: Manifest, running: Manifest) -> None:
    """Compare versions of bundles of the same name; the same version may be built anew.

    Raises:
        ModelContractError: the new one is lower, or that cannot be told.
    """
    if new.name != running.name or new.version == running.version:
        return
    lower = is_lower(new.version, running.version)
    if lower is False:
        return
    both = f"{new.name} {new.version}, and {running.version} is in service"
    why = "is older" if lower else "cannot be compared: only numbers with dots between them have an order"
    raise ModelContractError(f"it is {both}: its version {why}. Install it with --allow-downgrade on the board itself")


def _model_in(state: SlotState, slot: Slot | None) -> str | None:
    return state.models[slot] if slot else None
