import json

import pytest
from fakes import ListLog

from agent.errors import ConfigError
from agent.records import Outgoing
from agent.runtime.commands import MAX_WAITING, MAX_WAITING_BYTES, Commands, arguments


def commands(sent: list[Outgoing]) -> Commands:
    def fail(payload: bytes) -> dict[str, object]:
        raise ConfigError("no such thing")

    handlers = {"echo": lambda payload: {"said": payload.decode()}, "fail": fail, "break": lambda _: {"x": 1 / 0}}
    return Commands(handlers, sent.append, ListLog())


def test_a_request_is_answered_with_its_correlation_data():
    sent: list[Outgoing] = []
    taken = commands(sent)

    taken.receive("har/board/command/echo", b"hi", "reply/here", b"42")
    assert sent == []
    taken.handle()

    (reply,) = sent
    assert (reply.topic, reply.correlation, reply.retain) == ("reply/here", b"42", False)
    assert json.loads(reply.payload) == {"v": 1, "ok": True, "result": {"said": "hi"}}


def test_errors_and_unknown_commands_are_answered_too():
    sent: list[Outgoing] = []
    taken = commands(sent)

    taken.receive("har/board/command/fail", b"", "r")
    taken.receive("har/board/command/dance", b"", "r")
    taken.receive("har/board/command/break", b"", "r")
    for _ in range(4):
        taken.handle()

    assert [json.loads(r.payload)["error"] for r in sent] == [
        "no such thing",
        "there is no command 'dance'; there are break, echo, fail",
        "it failed: ZeroDivisionError: division by zero",
    ]


def test_a_flood_of_requests_is_cut_and_counted():
    sent: list[Outgoing] = []
    taken = commands(sent)

    for _ in range(MAX_WAITING + 5):
        taken.receive("har/board/command/echo", b"", "r")
    for _ in range(MAX_WAITING + 5):
        taken.handle()

    assert (len(sent), taken.refused) == (MAX_WAITING, 5)


def test_large_requests_do_not_pile_up():
    sent: list[Outgoing] = []
    taken = commands(sent)

    for _ in range(3):
        taken.receive("har/board/command/fail", bytes(MAX_WAITING_BYTES // 2), "r")
    assert taken.refused == 1
    taken.handle()
    taken.receive("har/board/command/fail", b"", "r")
    assert taken.refused == 1


def test_without_a_response_topic_nothing_is_sent():
    sent: list[Outgoing] = []
    taken = commands(sent)

    taken.receive("har/board/command/echo", b"")
    taken.handle()

    assert sent == []


@pytest.mark.parametrize("number", [b"1" + b"0" * 400, b"-1" + b"0" * 400])
def test_numbers_beyond_all_bounds_are_refused(number):
    with pytest.raises(ValueError, match="too large"):
        arguments(b'{"x": ' + number + b"}", {"x": float})


@pytest.mark.parametrize("payload", [b"[1]", b"{", b'{"x": "1"}', b'{"x": true}', b'{"y": 1}', b"\xff"])
def test_arguments_that_cannot_be_used_are_refused(payload):
    with pytest.raises(ValueError, match="the payload must be a JSON object with x"):
        arguments(payload, {"x": float})


def test_arguments_take_a_whole_number_for_a_number():
    assert arguments(b'{"x": 3}', {"x": float}) == {"x": 3}
    assert arguments(b" ", {"x": float}) == {}
