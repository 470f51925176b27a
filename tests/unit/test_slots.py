"""Model slots: what takes over, what is given up, and what is left after a power cut at any step."""

import itertools
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeClock, FakeModel, ScriptedSource, even_times, manifest, signal

from agent.adapters.slot_store import FolderSlotStore
from agent.core.manifest import Context
from agent.core.settings import ModelSettings
from agent.core.slots import MAX_TRIAL_STARTS
from agent.errors import InferenceError, ModelContractError, OutputError, UsageError
from agent.pipeline import Pipeline
from agent.records import Prediction, SampleBatch, Scores, Turn, Unscored
from agent.runtime.engine import Engine, TimedModel
from agent.runtime.slots import Incoming, ModelSlots, Opened

WINDOWS = 20
TIMES, VALUES = even_times(64 * 300), signal(64 * 300)


class NamedModel(FakeModel):
    """A model with an id of its own, which may be slow, fail, give nonsense, or find everything new."""

    def __init__(self, name, clock, slow_ns=0, fails=False, nonsense=False, novelty=None):
        super().__init__()
        self.id = name
        self.clock, self.slow_ns, self.fails, self.nonsense, self.novelty = clock, slow_ns, fails, nonsense, novelty
        self.seen = []

    def broken(self, _):
        raise InferenceError(f"{self.id} failed")

    def infer(self, windows) -> Scores:
        if self.fails:
            self.broken(windows)
        self.seen.append(windows.copy())
        self.clock.now_ns += self.slow_ns * len(windows)
        scores = super().infer(windows)
        if self.nonsense:
            scores.logits[0, 0] = np.nan
        if self.novelty is not None:
            scores = scores._replace(novelty=np.full(len(windows), self.novelty))
        return scores


class FakeLoader:
    """Opens a folder's model by the name that its one file has; a model may be an error."""

    def __init__(self, models):
        self.models = models

    def open(self, name):
        if name != "configured":
            try:
                name = (Path(name) / "id").read_text()
            except OSError as e:
                raise ModelContractError(f"{name} cannot be read") from e
        found = self.models[name]
        if isinstance(found, Exception):
            raise found
        return found

    def inspect(self, source, *, allow_unsigned):
        if source.startswith("unsigned") and not allow_unsigned:
            raise ModelContractError("it is not signed")
        found = self.models[source]
        if isinstance(found, Exception):
            raise found
        return Incoming({"id": source.encode()}, found, None if source.startswith("unsigned") else "key")


class PowerCutError(Exception):
    """The power goes."""


class CuttingStore:
    """A store that stops before or after its nth call that changes something."""

    def __init__(self, store, cut_at=None, *, after=False):
        self._store, self._cut_at, self._after = store, cut_at, after
        self.calls = 0

    def __getattr__(self, name):
        method = getattr(self._store, name)
        if name not in ("save", "stage", "place", "quarantine"):
            return method

        def call(*arguments):
            self.calls += 1
            if self.calls - 1 == self._cut_at and not self._after:
                raise PowerCutError
            method(*arguments)
            if self.calls - 1 == self._cut_at:
                raise PowerCutError

        return call


class Agent:
    """An agent that runs what its slots say."""

    def __init__(self, store, loader, clock, settings):
        self.slots = ModelSlots(store, loader, clock, settings)
        self.opened = self.slots.open()
        self.timed = TimedModel(self.opened.model, clock)
        self.pipeline = Pipeline(self.timed, self.opened.manifest)
        self.pipeline.set_novelty_threshold(settings.novelty_threshold)
        self.slots.attach(self.pipeline, self.timed)
        self.predictions = []
        self.at = 0

    @property
    def model(self):
        return self.slots.status()["model"]

    def turn(self, windows=1):
        """One turn that completes some windows."""
        n = 64 * windows + (64 if self.at == 0 else 0)
        part = slice(self.at, self.at + n)
        batch = SampleBatch("s", TIMES[part], VALUES[part], self.at)
        self.at += n
        events = self.pipeline.feed([batch])
        self.predictions += [e for e in events if isinstance(e, Prediction)]
        self.slots.after_turn(Turn([batch], [], events, {}))
        failed = [e for e in events if isinstance(e, Unscored)]
        if failed:
            self.slots.failed(InferenceError(failed[0].reason))

    def turns(self, n):
        for _ in range(n):
            self.turn()


class Board:
    """A state directory, and the bundles that there are in the world."""

    def __init__(self, folder):
        self.folder = folder
        self.clock = FakeClock()
        self.models = {}
        self.settings = ModelSettings(bundle="configured", canary_windows=WINDOWS)
        for name in ("configured", "one", "two", "three", "unsigned"):
            self.add(name)

    def add(self, name, change=lambda m: m, **how):
        self.models[name] = Opened(NamedModel(name, self.clock, **how), change(manifest()))

    @property
    def store(self):
        return FolderSlotStore(self.folder)

    @property
    def state(self):
        return self.store.load()[0]

    def slots(self, store=None):
        """What another process has: no pipeline."""
        return ModelSlots(store or self.store, FakeLoader(self.models), self.clock, self.settings)

    def start(self, store=None):
        return Agent(store or self.store, FakeLoader(self.models), self.clock, self.settings)

    def with_active(self, *names):
        """Start an agent and bring bundles into service, one after the other, confirmed."""
        agent = self.start()
        for name in names:
            agent.slots.install(name)
            agent.turns(2 * WINDOWS + 2)
            assert agent.model == name
            assert self.state.confirmed
        return agent


@pytest.fixture
def board(tmp_path):
    return Board(tmp_path)


def test_the_configured_bundle_runs_while_nothing_is_installed(board):
    agent = board.start()

    assert agent.model == "configured"
    assert agent.slots.problem is None
    assert list(board.folder.iterdir()) == []


def test_an_installed_bundle_takes_over_after_its_canary_and_no_window_is_lost(board):
    agent = board.start()
    agent.turns(3)
    agent.slots.install("one")
    agent.turns(WINDOWS)
    before = agent.model
    agent.turns(WINDOWS)

    assert before == agent.model == "one"
    assert [p.seq for p in agent.predictions] == list(range(3 + 2 * WINDOWS))
    assert [p.model for p in agent.predictions] == ["configured"] * (3 + WINDOWS) + ["one"] * WINDOWS
    assert [p.t0_ns for p in agent.predictions] == [round(64 * 2e7 * i) for i in range(3 + 2 * WINDOWS)]


def test_it_is_the_active_ones_results_that_are_published_during_a_canary(board):
    alone, agent = Board(board.folder / "other").start(), board.start()
    agent.slots.install("one")
    agent.turns(WINDOWS - 1)
    alone.turns(WINDOWS - 1)

    assert agent.predictions == alone.predictions
    assert agent.slots.status()["canary"] == {"scored": WINDOWS - 1, "windows": WINDOWS}


def test_a_candidate_sees_the_same_windows_through_its_own_normalisation(board):
    other = manifest()._replace(
        normalisation=type(manifest().normalisation)(np.full(6, 0.5, np.float32), np.full(6, 2, np.float32))
    )
    board.add("one", lambda _: other)
    agent = board.start()
    agent.slots.install("one")
    agent.turns(3)

    raw = np.concatenate(board.models["configured"].model.seen[:1])
    assert np.allclose(board.models["one"].model.seen[0], (raw - 0.5) / 2)


def test_a_candidates_context_begins_when_it_takes_over(board):
    board.add("configured", lambda m: m._replace(context=Context(2, 1.0)))
    board.add("one", lambda m: m._replace(context=Context(3, 1.0)))
    agent = board.start()
    agent.turns(3)
    agent.slots.install("one")
    agent.turns(WINDOWS + 2)
    # Each is run in the canary, too.
    old = board.models["configured"].model.contexts[3 + WINDOWS :]
    canary, new = np.split(np.array(board.models["one"].model.contexts), [WINDOWS])

    assert [codes.shape for codes in old] == [(1, 2, 4)] * WINDOWS
    assert canary.shape == (WINDOWS, 1, 3, 4)
    assert new.shape == (2, 1, 3, 4)
    assert (canary == canary[:, :, :1]).all()
    assert not new[0][0, :2].any()
    assert np.array_equal(new[1][0, 1], new[0][0, 2])


def test_what_is_in_service_is_confirmed_by_windows_and_survives_a_restart(board):
    agent = board.with_active("one")

    assert board.state.confirmed
    assert board.start().model == "one"
    assert agent.slots.problem is None


def test_without_a_canary_the_switch_comes_with_the_next_turn(board):
    board.settings = ModelSettings(bundle="configured", canary_windows=0)
    agent = board.start()
    agent.slots.install("one")
    agent.turn()

    assert agent.model == "one"


def slow(model, codes):
    model.clock.now_ns += 30_000_000 * len(codes)
    return type(model).contextualise(model, codes)


@pytest.mark.parametrize(
    ("contextualise", "says"),
    [
        (NamedModel.broken, "one failed"),
        (slow, "30 ms for a window, where 0 ms"),
        (lambda _, codes: np.full((len(codes), 3), np.nan, np.float32), "not finite"),
    ],
)
def test_a_candidate_whose_context_does_worse_is_rejected(board, contextualise, says):
    board.add("one", lambda m: m._replace(context=Context(3, 1.0)))
    model = board.models["one"].model
    model.contextualise = partial(contextualise, model)
    agent = board.start()
    agent.slots.install("one")
    agent.turns(2 * WINDOWS)

    assert agent.model == "configured"
    assert says in agent.slots.problem


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"fails": True}, "one failed"),
        ({"slow_ns": 30_000_000}, "30 ms for a window, where 0 ms"),
        ({"novelty": 99.0}, "20 of 20 windows are unknown"),
        ({"novelty": float("nan")}, "20 of 20 windows are unknown"),
        ({"nonsense": True}, "not finite"),
    ],
)
def test_a_candidate_that_does_worse_is_rejected_and_the_active_one_goes_on(board, how, says):
    board.add("one", **how)
    agent = board.start()
    agent.slots.install("one")
    agent.turns(2 * WINDOWS)

    assert agent.model == "configured"
    assert says in agent.slots.problem
    assert len(agent.predictions) == 2 * WINDOWS
    assert board.state.candidate is None
    assert board.state.rolled_back.model == "one"
    assert board.start().slots.problem == agent.slots.problem

    agent.slots.install("two")

    assert agent.slots.problem is None


def test_a_candidate_may_be_five_times_as_slow_and_as_lost_as_the_active_one(board):
    board.add("configured", slow_ns=1_000_000, novelty=99.0)
    board.add("one", slow_ns=5_000_000, novelty=99.0)
    agent = board.start()
    agent.slots.install("one")
    agent.turns(WINDOWS)

    assert agent.model == "one"


def test_one_slow_call_rejects_nobody(board):
    agent = board.start()
    agent.slots.install("one")
    board.models["one"].model.slow_ns = 50_000_000
    agent.turn()
    board.models["one"].model.slow_ns = 0
    agent.turns(WINDOWS)

    assert agent.model == "one"


def test_a_canary_takes_few_windows_of_a_large_batch(board):
    agent = board.start()
    agent.slots.install("one")
    agent.turn(windows=50)

    assert sum(map(len, board.models["one"].model.seen)) == 8


def comparison_of(agent):
    found = agent.slots.status()["comparison"]
    json.dumps(found, allow_nan=False)
    return found


def test_both_models_are_compared_on_the_same_windows_and_that_is_kept(board):
    board.add("configured", novelty=1.0)
    board.add("one", novelty=99.0)
    agent = board.start()
    assert comparison_of(agent) is None
    agent.slots.install("one")
    assert comparison_of(agent) is None
    agent.turns(4)
    during = comparison_of(agent)
    agent.turns(WINDOWS)

    assert (during["models"], during["windows"]) == ({"old": "configured", "new": "one"}, 4)
    # The same formula: the same labels with the same confidence.
    assert during["agreement"] == 1.0
    assert (
        during["confidence"]["old"]
        == during["confidence"]["new"]
        == pytest.approx(np.mean([p.confidence for p in agent.predictions[:4]]), abs=1e-4)
    )
    assert during["novelty"] == {"old": 1.0, "new": 99.0}
    assert during["unknown"] == {"old": 0.0, "new": 1.0}
    kept = comparison_of(agent)
    assert kept["windows"] == WINDOWS
    agent.turns(2 * WINDOWS)
    assert comparison_of(agent) == kept
    agent.slots.install("two")
    assert comparison_of(agent) is None


def test_a_candidate_that_took_over_is_compared_until_the_next_one(board):
    agent = board.with_active("one")
    kept = comparison_of(agent)

    assert (kept["models"], kept["windows"]) == ({"old": "configured", "new": "one"}, WINDOWS)
    agent.slots.rollback("by hand")
    assert comparison_of(agent) == kept


class Fixed(FakeModel):
    """A model of some labels that always gives the same one."""

    def __init__(self, name, labels, label):
        super().__init__()
        self.id, self.labels, self._logits = name, labels, np.array([5.0 * (each == label) for each in labels])

    def infer(self, windows) -> Scores:
        scores = super().infer(windows)
        return scores._replace(logits=np.tile(self._logits, (len(windows), 1)).astype(np.float32))


@pytest.mark.parametrize(
    ("labels", "label", "agreement"),
    [
        (("still", "moving", "turning"), "moving", 1.0),
        (("turning", "moving", "still"), "moving", 1.0),
        (("moving", "turning", "still"), "still", 0.0),
        (("still", "moving"), "moving", None),
        (("up", "down", "moving"), "moving", None),
    ],
)
def test_labels_agree_by_their_names_where_they_are_the_same(board, labels, label, agreement):
    old = Fixed("configured", ("still", "moving", "turning"), "moving")
    board.models["configured"] = Opened(old, manifest())
    board.models["one"] = Opened(Fixed("one", labels, label), manifest()._replace(labels=labels))
    agent = board.start()
    agent.slots.install("one")
    agent.turns(5)

    assert comparison_of(agent)["agreement"] == agreement


def test_figures_that_are_no_numbers_are_none(board):
    board.add("configured", novelty=2.0)
    board.add("one", novelty=float("nan"))
    agent = board.start()
    agent.slots.install("one")
    agent.turns(3)

    assert comparison_of(agent)["novelty"] == {"old": 2.0, "new": None}


def versioned(board, name, version, bundle="fake"):
    board.add(name, lambda m: m._replace(name=bundle, version=version))


@pytest.mark.parametrize(
    ("running", "new", "says"),
    [
        ("0.10.0", "0.9.1", "0.9.1, and 0.10.0 is in service: its version is older"),
        ("1.0.1", "1.0", "is older"),
        ("1.0", "1.0-rc1", "cannot be compared"),
        ("spring", "0.2", "cannot be compared"),
    ],
)
def test_an_older_version_is_refused_unless_that_is_said(board, running, new, says):
    versioned(board, "configured", running)
    versioned(board, "one", new)
    agent = board.start()
    for slots in (agent.slots, board.slots()):
        with pytest.raises(ModelContractError, match=re.escape(says)):
            slots.install("one")
    assert list(board.folder.iterdir()) == []

    assert board.slots().install("one", allow_downgrade=True).changed


@pytest.mark.parametrize(
    ("running", "new", "bundle"),
    [("0.9", "0.10", "fake"), ("1.0", "1.0.0", "fake"), ("1", "1", "fake"), ("rc", "rc", "fake"), ("2", "1", "other")],
)
def test_what_is_no_older_version_of_the_same_bundle_is_taken(board, running, new, bundle):
    versioned(board, "configured", running)
    versioned(board, "one", new, bundle)

    assert board.start().slots.install("one").changed


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m._replace(input=m.input._replace(rate_hz=100.0)),
        lambda m: m._replace(input=m.input._replace(window=64, hop=32)),
    ],
)
def test_another_input_is_refused_for_a_live_switch(board, change):
    board.add("one", change)
    agent = board.start()

    for slots in (agent.slots, board.slots()):
        with pytest.raises(ModelContractError, match=r"cannot take over live\. Set model\.bundle"):
            slots.install("one")

    assert list(board.folder.iterdir()) == []


def test_what_is_refused_leaves_everything_as_it_was(board):
    board.with_active("one").slots.install("two")
    before = board.state
    board.models["three"] = ModelContractError("golden vectors")

    for source, says in (("three", "golden"), ("unsigned", "not signed")):
        with pytest.raises(ModelContractError, match=says):
            board.slots().install(source)

    assert board.state == before
    assert sorted(p.name for p in (board.folder / "models").iterdir()) == [".lock", "a", "b", "slots.json"]


def test_unsigned_bundles_are_taken_when_that_is_said_or_configured(board):
    assert board.slots().install("unsigned", allow_unsigned=True).signed_by is None
    board.settings = ModelSettings(bundle="configured", allow_unsigned=True)
    assert board.slots().install("unsigned").changed


def test_what_is_in_service_already_is_not_installed_again(board):
    agent = board.with_active("one")
    again = agent.slots.install("one")
    agent.slots.install("two")
    agent.turn()
    withdrawn = agent.slots.install("one")
    agent.turns(2 * WINDOWS)

    assert not again.changed
    assert withdrawn.changed
    assert agent.model == "one"


def test_installations_take_turns_and_the_one_before_is_kept(board):
    agent = board.with_active("one", "two")

    assert (board.state.active, board.state.previous) == ("b", "a")

    agent.slots.rollback("by hand")

    assert agent.model == "one"
    assert (board.state.active, board.state.previous) == ("a", None)
    assert "two was given up: by hand" in agent.slots.problem

    agent.slots.rollback("this too")

    assert agent.model == "configured"
    with pytest.raises(UsageError, match="nothing to roll back"):
        agent.slots.rollback("again")
    assert [p.seq for p in agent.predictions] == list(range(len(agent.predictions)))


def test_the_model_before_takes_over_from_one_that_fails_in_service(board):
    agent = board.with_active("one", "two")
    board.models["two"].model.fails = True
    agent.turns(3)

    assert agent.model == "one"
    assert agent.predictions[-1].model == "one"
    assert "two failed" in agent.slots.problem
    assert board.start().model == "one"


def test_a_context_that_fails_in_service_is_given_up_with_its_model(board):
    board.add("one", lambda m: m._replace(context=Context(3, 1.0)))
    agent = board.with_active("one")
    board.models["one"].model.contextualise = board.models["one"].model.broken
    agent.turns(5)

    assert agent.model == "configured"
    assert agent.slots.problem == "one was given up: one failed"


def test_a_model_that_fails_with_nothing_to_go_back_to_is_fatal(board):
    agent = board.start()
    board.models["configured"].model.fails = True

    with pytest.raises(InferenceError, match="configured failed"):
        agent.turn()


def test_a_failing_model_is_given_up_even_where_that_cannot_be_written(board):
    agent = board.with_active("one")
    board.models["one"].model.fails = True
    with board.store.locked():
        agent.turn()

    assert agent.model == "configured"
    assert "one failed" in agent.slots.problem
    assert "another har-agent" in agent.slots.problem
    agent.turn()
    assert agent.predictions[-1].model == "configured"


def test_a_candidate_that_was_installed_by_another_process_begins_on_reload(board):
    agent = board.start()
    board.slots().install("one")
    agent.turn()
    before = agent.slots.status()["candidate"]
    agent.slots.reload()
    agent.turns(WINDOWS)

    assert before is None
    assert agent.model == "one"


def test_reload_follows_a_rollback_of_another_process(board):
    agent = board.with_active("one", "two")
    board.slots().rollback("by hand")
    agent.slots.reload()

    assert agent.model == "one"


def test_a_candidate_that_was_replaced_during_its_canary_is_not_switched_to(board):
    agent = board.start()
    agent.slots.install("one")
    agent.turns(WINDOWS - 1)
    board.slots().install("two")
    agent.turns(WINDOWS)

    assert agent.model == "configured"

    agent.turns(WINDOWS)

    assert agent.model == "two"
    assert board.models["one"].model.id not in {p.model for p in agent.predictions}


def test_a_candidate_that_waits_at_the_start_goes_through_its_canary(board):
    board.slots().install("one")
    agent = board.start()
    agent.turns(WINDOWS - 1)

    assert agent.model == "configured"

    agent.turn()

    assert agent.model == "one"


def crash(board, n):
    """Start agents that end without a word before they have proven anything."""
    return [board.start().model for _ in range(n)]


def test_a_bundle_that_takes_the_process_down_is_rolled_back(board):
    agent = board.with_active("one")
    agent.slots.install("two")
    agent.turns(WINDOWS)

    assert agent.model == "two"
    assert crash(board, MAX_TRIAL_STARTS) == ["two", "two", "one"]
    assert "started 3 times" in board.start().slots.problem


def test_a_candidate_that_takes_the_process_down_is_rejected(board):
    board.slots().install("one")
    crash(board, MAX_TRIAL_STARTS)
    agent = board.start()
    agent.turns(2 * WINDOWS)

    assert agent.model == "configured"
    assert "one was given up: it was started 3 times" in agent.slots.problem


def test_orderly_restarts_count_against_nobody(board):
    board.slots().install("one")
    for _ in range(3 * MAX_TRIAL_STARTS):
        agent = board.start()
        agent.turn()
        agent.slots.close()
        agent.slots.close()

    assert board.state.candidate == "a"
    assert board.state.trial_starts == 0


@pytest.mark.parametrize("damage", [b"", b"{", b'{"v": 2}', b"\xff" * 100, b"[]", b'{"v": 1}', b"[" * 100_000])
def test_a_damaged_state_is_put_aside_and_the_configured_bundle_runs(board, damage):
    board.with_active("one")
    (board.folder / "models" / "slots.json").write_bytes(damage)
    agent = board.start()

    assert agent.model == "configured"
    assert "slots.json cannot be used" in agent.slots.problem
    assert (board.folder / "models" / "slots.json.damaged").read_bytes() == damage
    assert "slots.json cannot be used" in board.start().slots.problem

    agent.slots.install("two")
    agent.turns(2 * WINDOWS)

    assert agent.model == "two"
    assert agent.slots.problem is None


def test_a_state_that_is_damaged_under_way_is_written_again(board):
    agent = board.with_active("one")
    before = board.state
    (board.folder / "models" / "slots.json").write_bytes(b"rot")
    agent.slots.reload()

    assert agent.model == "one"
    assert board.state == before


def test_a_damaged_slot_is_put_aside_for_the_one_before(board):
    board.with_active("one", "two")
    (board.folder / "models" / "b" / "id").unlink()
    agent = board.start()

    assert agent.model == "one"
    assert "b cannot be read" in agent.slots.problem
    assert (board.folder / "models" / "b.damaged").is_dir()
    assert board.state.models["b"] is None


def test_if_every_slot_is_damaged_the_configured_bundle_runs(board):
    board.with_active("one", "two")
    for slot in "ab":
        (board.folder / "models" / slot / "id").unlink()

    assert board.start().model == "configured"


def test_a_candidate_that_cannot_be_opened_is_rejected(board):
    board.slots().install("one")
    board.models["one"] = ModelContractError("golden vectors differ")
    agent = board.start()

    assert agent.model == "configured"
    assert "golden vectors differ" in agent.slots.problem


def test_a_state_directory_that_cannot_be_written_stops_no_agent(board):
    board.with_active("one")
    board.slots().install("two")

    class ReadOnly(CuttingStore):
        def locked(self):
            raise OutputError("Read-only file system")

    agent = board.start(ReadOnly(board.store))
    agent.turns(2 * WINDOWS)

    assert agent.model == "one"
    assert agent.slots.problem == "Read-only file system"
    assert len(agent.predictions) == 2 * WINDOWS
    agent.slots.close()


def test_a_threshold_that_was_set_holds_for_every_model_and_in_the_canary(board):
    board.settings = ModelSettings(bundle="configured", canary_windows=1, novelty_threshold=0.001)
    agent = board.start()
    agent.slots.install("one")
    agent.turns(3)

    assert agent.model == "one"
    assert not any(p.known for p in agent.predictions)


def whole_life(board, store):
    """Every step that changes something, by an agent and by commands."""
    slots = board.slots(store)
    slots.install("one")
    agent = board.start(store)
    agent.turns(2 * WINDOWS + 1)
    slots.install("two")
    agent.slots.reload()
    agent.turns(2 * WINDOWS + 1)
    slots.install("bad")
    agent.slots.reload()
    agent.turns(2 * WINDOWS)
    slots.rollback("by hand")
    agent.slots.reload()
    (board.folder / "models" / "a" / "id").unlink()
    board.start(store).slots.close()


def test_a_power_cut_at_any_step_leaves_a_board_that_works(tmp_path):
    counting = CuttingStore(FolderSlotStore(tmp_path / "count"))
    board = Board(tmp_path / "count")
    board.add("bad", novelty=99.0)
    whole_life(board, counting)
    assert counting.calls >= 15

    for cut_at, after in itertools.product(range(counting.calls), (False, True)):
        board = Board(tmp_path / f"{cut_at}-{after}")
        board.add("bad", novelty=99.0)
        with pytest.raises(PowerCutError):
            whole_life(board, CuttingStore(board.store, cut_at, after=after))

        state, damage = board.store.load()
        agent = board.start()

        assert damage is None
        assert agent.model in {"configured", "one", "two"}
        assert agent.model == (state.models[state.active] if state.active else "configured") or agent.slots.problem
        agent.turns(2 * WINDOWS)
        assert agent.model != "bad"
        agent.slots.install("three")
        agent.turns(2 * WINDOWS + 1)
        assert agent.model == "three"
        assert agent.slots.problem is None


def test_an_engine_gives_the_model_that_takes_over_as_many_turns(board):
    agent = board.with_active("one")
    board.models["one"].model.fails = True
    batches = [SampleBatch("t", TIMES[a : a + 64], VALUES[a : a + 64], a) for a in range(0, 64 * 12, 64)]
    engine = Engine(ScriptedSource([b] for b in batches), agent.pipeline, [], board.clock, agent.timed, max_failures=3)
    failed_at = []
    for n in range(len(batches)):
        try:
            engine.turn()
        except InferenceError as e:
            failed_at.append(n)
            if len(failed_at) == 1:
                agent.slots.failed(e)
                board.models["configured"].model.fails = True

    assert failed_at == [3, 6, 9]
    assert agent.model == "configured"
