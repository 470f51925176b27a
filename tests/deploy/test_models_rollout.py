"""Model bundles brought to six boards: refused, given up, taken back, and at last in service everywhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fleet import Board
from live import Listener
from rollouts import Operator, at_work, flip_a_byte, make_bundle

pytestmark = [pytest.mark.fleet, pytest.mark.usefixtures("deployed")]


def models(listener: Listener, boards: list[Board]) -> set[str]:
    """Return what made the newest prediction of each board."""
    at_work(listener, boards)
    with listener._lock:
        newest = {p["device"]: p["model"] for p in listener.predictions.values()}
    return {newest[f"imu-{board.name}"] for board in boards}


def names_are_swapped(manifest: dict[str, Any]) -> None:
    """Every label is called by another's name: golden vectors hold numbers, and do not see it."""
    first, *others = manifest["labels"]
    manifest["labels"] = [*others, first]


def nothing_is_known(manifest: dict[str, Any]) -> None:
    """No window is like what it was trained on."""
    manifest["calibration"]["novelty_threshold"] = 1e-6


def test_bundles_that_must_be_refused_are_refused(desk: Operator, listener: Listener, tmp_path: Path):
    before = models(listener, desk.boards)
    tampered = make_bundle(tmp_path / "tampered", desk.model_key, "0.2.0")
    flip_a_byte(tampered)
    refused = {
        "board1": (tampered, "damaged or was changed"),
        "board2": (make_bundle(tmp_path / "other", desk.other_key, "0.2.0"), "no key that is trusted"),
        "board3": (make_bundle(tmp_path / "older", desk.model_key, "0.0.9"), "0.0.9"),
    }

    ran = desk.play_each("models", {board: {"har_agent_bundle": str(bundle)} for board, (bundle, _) in refused.items()})

    for board, (_, words) in refused.items():
        assert ran[board].rc != 0
        assert ran[board].outcomes() == {board: "failed"}, ran[board].said
        assert words in ran[board].why(board), ran[board].why(board)
    assert models(listener, desk.boards) == before
    assert len(before) == 1


@pytest.mark.parametrize(
    ("change", "words"), [(names_are_swapped, "agreement"), (nothing_is_known, "windows are unknown to it")]
)
def test_a_bad_bundle_stops_at_the_canary(
    desk: Operator,
    listener: Listener,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], None],
    words: str,
    long: bool,
):
    if change is nothing_is_known and not long:
        pytest.skip("the agent's own canary has a test; with --long")
    before = models(listener, desk.boards)

    ran = desk.play("models", har_agent_bundle=str(make_bundle(tmp_path / "bad", desk.model_key, "0.2.1", change)))

    assert ran.rc != 0
    outcomes = ran.outcomes()
    assert outcomes.pop("board1") == "rolled back", ran.said
    assert set(outcomes.values()) == {"untouched"}, ran.said
    assert words in ran.why("board1"), ran.why("board1")
    assert models(listener, desk.boards) == before


def test_a_good_bundle_comes_into_service_everywhere(
    desk: Operator, listener: Listener, tmp_path: Path, fact: Callable[[str], None]
):
    bundle = make_bundle(tmp_path / "good", desk.model_key, "0.3.0")

    ran = desk.play("models", har_agent_bundle=str(bundle), har_agent_batches=["100%"])
    again = desk.play("models", only=desk.boards[:2], har_agent_bundle=str(bundle))

    assert ran.rc == 0, ran.said
    assert set(ran.outcomes().values()) == {"done"}, ran.said
    # The same weights: the two agree on every window.
    assert {found["comparison"]["agreement"] for found in ran.boards.values()} == {1.0}
    (running,) = models(listener, desk.boards)
    assert {ran.why(board.name).split()[0] for board in desk.boards} == {running}
    assert again.rc == 0, again.said
    assert set(again.outcomes().values()) == {"unchanged"}, again.said
    assert listener.holes() == []
    fact(f"a bundle on {len(desk.boards)} boards, canary first: {ran.seconds:.0f} s")


def test_a_bundle_is_taken_back_by_hand(desk: Operator, listener: Listener):
    one, others = desk.boards[0], desk.boards[1:]
    (running,) = models(listener, desk.boards)

    ran = desk.play("rollback", only=[one], har_agent_rollback_what="models")

    assert ran.rc == 0, ran.said
    assert ran.outcomes() == {"board1": "rolled back"}
    assert models(listener, [one]) != {running}
    assert models(listener, others) == {running}
    assert listener.holes() == []
