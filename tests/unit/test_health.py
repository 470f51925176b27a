import pytest

from agent.core.health import RULES, Health, HealthCode

S = 1_000_000_000
INSTANT = HealthCode.SOURCE_SILENT
AWAY = HealthCode.BROKER_AWAY
HOLD_S = int(RULES[AWAY].hold_s)


def codes(health: Health, now_s: float) -> list[HealthCode]:
    return [reason.code for reason in health.reasons(round(now_s * S))]


def message(health: Health, now_s: float):
    return health.message("board", round(now_s * S), 1_700_000_000 * S, clock_synced=True)


def test_all_is_well_at_first():
    health = Health()

    assert health.changed(0)
    assert message(health, 0) == {
        "v": 1,
        "agent": "board",
        "state": "ok",
        "reasons": [],
        "time": "2023-11-14T22:13:20.000Z",
        "clock_synced": True,
    }
    assert not health.changed(1000 * S)


def test_a_reason_is_told_with_its_age_and_goes():
    health = Health()
    message(health, 0)
    health.set(INSTANT, "waist is silent", 5 * S)

    assert health.changed(5 * S)
    told = message(health, 7)
    assert told["state"] == "degraded"
    assert told["reasons"] == [{"code": "source_silent", "text": "waist is silent", "since_s": 2.0}]
    assert not health.changed(8 * S)

    health.set(INSTANT, None, 10 * S)
    assert codes(health, 19) == [INSTANT]
    assert health.changed(20 * S)
    assert message(health, 20)["state"] == "ok"


def test_what_passes_by_itself_is_not_told():
    health = Health()
    health.set(AWAY, "no broker", 0)
    assert codes(health, HOLD_S - 1) == []
    health.set(AWAY, None, (HOLD_S - 1) * S)

    assert codes(health, 1000) == []


def test_what_lasts_is_told_from_when_it_began():
    health = Health()
    health.set(AWAY, "no broker", 0)
    health.set(AWAY, "no broker", 3 * S)

    (reason,) = health.reasons(HOLD_S * S)
    assert (reason.code, reason.since_ns) == (AWAY, 0)


def test_what_comes_and_goes_is_one_reason():
    health = Health()
    states = []
    for now_s in range(0, 120, 4):
        health.set(AWAY, "no broker" if now_s % 8 else None, now_s * S)
        states.append(health.state(now_s * S))

    first = states.index("degraded")
    assert set(states[first:]) == {"degraded"}


def test_several_things_of_one_code_are_one_reason():
    health = Health()
    for k in range(5):
        health.set(INSTANT, f"source {k} is silent", 0, name=f"s{k}")
    (reason,) = health.reasons(0)
    assert reason.text == "source 0 is silent; source 1 is silent; source 2 is silent; and 2 more"

    for k in range(4):
        health.set(INSTANT, None, S, name=f"s{k}")
    assert [r.text for r in health.reasons(100 * S)] == ["source 4 is silent"]


def test_a_name_that_was_never_wrong_can_be_cleared():
    health = Health()
    health.set(INSTANT, None, 0)
    health.set(INSTANT, "a is silent", 0, name="a")
    health.set(INSTANT, None, 0, name="b")

    assert codes(health, 100) == [INSTANT]


def test_the_worst_is_told_first_and_decides():
    health = Health()
    health.set(INSTANT, "waist is silent", 0)
    health.set(HealthCode.MODEL_FAILING, "no", S)

    assert codes(health, 1) == [HealthCode.MODEL_FAILING, INSTANT]
    assert health.state(S) == "failing"


def test_a_counter_that_grows_is_a_reason_for_a_minute():
    health = Health()
    code = HealthCode.OUTBOX_DROPPING
    health.count(code, 0, "dropped", 0)
    assert codes(health, 0) == []
    health.count(code, 3, "dropped", S)
    health.count(code, 3, "dropped", 50 * S)
    assert codes(health, 50) == [code]

    health.count(code, 3, "dropped", 61 * S)
    assert codes(health, 80) == []


def test_the_summary_is_one_line_for_people():
    health = Health()
    assert health.summary(0) == "ok"
    assert health.summary(0, "3 sources, 12.3 windows/s") == "ok; 3 sources, 12.3 windows/s"
    health.set(AWAY, "no broker", 0)

    assert health.summary(125 * S, "3 sources, 12.3 windows/s") == (
        "degraded: broker away since 2 min; 3 sources, 12.3 windows/s"
    )
    health.set(INSTANT, "x", 125 * S)
    health.set(HealthCode.THROTTLED, "x", 0)
    assert health.summary(7325 * S) == "degraded: broker away since 2 h, source silent since 2 h and 1 more"


@pytest.mark.parametrize("code", HealthCode)
def test_every_code_has_a_rule(code):
    assert RULES[code].meaning
