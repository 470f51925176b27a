from pathlib import Path

import pytest

from agent.config import Config, load
from agent.errors import ConfigError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


def test_without_a_file_the_defaults_stand():
    assert load(environ={}) == Config()


def test_flag_wins_over_environment_over_file_over_default(tmp_path):
    path = write(tmp_path, "[decision]\nsmoothing_s = 1\nhold_s = 2\n[window]\nhop = 8\n")
    environ = {"HAR_AGENT__DECISION__HOLD_S": "3", "HAR_AGENT__WINDOW__HOP": "16"}

    got = load(path, environ, {"window.hop": 32, "model.bundle": None})

    assert (got.decision.smoothing_s, got.decision.hold_s, got.window.hop) == (1.0, 3.0, 32)
    assert got.model.bundle == "har-base"


def test_smoothing_is_the_models_matter_until_it_is_set():
    assert load(environ={}).decision.smoothing_s is None
    assert load(environ={"HAR_AGENT__DECISION__SMOOTHING_S": "0"}).decision.smoothing_s == 0.0


def test_the_environment_may_name_the_file(tmp_path):
    path = write(tmp_path, "[window]\nhop = 8\n")

    assert load(environ={"HAR_AGENT_CONFIG": str(path)}).window.hop == 8


def test_every_problem_is_told_at_once_with_line_and_suggestion(tmp_path):
    path = write(
        tmp_path,
        "loose = 1\n[decisions]\nx = 1\n[decision]\nsmothing_s = 1\nhold_s = 'long'\n[window]\nhop = 0\n",
    )

    with pytest.raises(ConfigError) as caught:
        load(path, {"HAR_AGENT__DECISION__SMOOTHING_S": "soon", "HAR_AGENT__HOP": "3"})

    text = str(caught.value)
    for part in (
        f"{path}:1: loose stands outside of a section",
        f"{path}:2: there is no section [decisions]; did you mean decision?",
        f"{path}:5: [decision] has no key smothing_s; did you mean smoothing_s?",
        f"{path}:6: decision.hold_s: must be a number, not 'long'",
        f"{path}:8: window.hop: hop must be 1 or more samples, not 0",
        "HAR_AGENT__HOP: it must be HAR_AGENT__SECTION__KEY",
        "HAR_AGENT__DECISION__SMOOTHING_S: decision.smoothing_s: must be a number, not 'soon'",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[decision\n", "config.toml"),
        ("[window]\nhop = true\n", "whole number"),
        ("[window]\nhop = 1.5\n", "whole number"),
    ],
)
def test_what_is_not_toml_or_not_of_its_kind_is_refused(tmp_path, text, says):
    with pytest.raises(ConfigError, match=says):
        load(write(tmp_path, text), {})


def test_a_named_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no such configuration file"):
        load(tmp_path / "none.toml", {})


WINDOW = '[cloud]\npayload = "window"\n'
OLD_BROKER = '[broker.old]\nprotocol = "3.1.1"\n'
NEW_BROKER = "[broker.new]\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (WINDOW, '{}:2: cloud.payload: a window may only leave the board with privacy = "window" in [cloud]'),
        (
            NEW_BROKER + '[cloud]\nbroker = "nw"\n',
            "{}:3: cloud.broker: there is no section [broker.nw]; did you mean new?",
        ),
        (OLD_BROKER + '[cloud]\nwhen = "always"\n', "{}:2: broker.old.protocol: a worker is asked over MQTT 5"),
        (
            NEW_BROKER + OLD_BROKER + '[cloud]\nwhen = "unknown"\nbroker = "old"\n',
            "{}:3: broker.old.protocol: a worker is asked over MQTT 5",
        ),
        ('[cloud]\nwhen = ""\n', "{}:2: cloud.when: when must be off, always, or one or more of low-confidence, "),
        ('[cloud]\nwhen = "always unknown"\n', "{}:2: cloud.when: when must be off, always, or "),
        ("[cloud]\ndeadline_ms = 0\n", "{}:2: cloud.deadline_ms: deadline_ms must be between 10 and 10000, not 0"),
        ('[cloud]\nservice = "a/b"\n', "{}:2: cloud.service: service must be 1 to 64 printable characters"),
        ('[worker]\nservice = ""\n', "{}:2: worker.service: service must be 1 to 64 printable characters"),
        ('[split]\ncut = ""\n', "{}:2: split.cut: cut must be the name of a tensor"),
        ('[split]\ncut = "window"\n', '{}:2: split.cut: a window may only leave the board with privacy = "window" in'),
        ('[split]\ncut = "auto"\n', "{}:2: split.cut: auto needs profiles"),
        ('[split]\nprofiles = "one"\n', "{}:2: split.profiles: profiles must be two files"),
        ('[split]\ncut = "auto"\nprofiles = "a b"\nexit = "e"\n', "{}:4: split.exit: auto finds exit by itself"),
        ('[split]\nobjective = "speed"\n', "{}:2: split.objective: objective must be one of latency, energy, accuracy"),
        ('[split]\nbroker = "edge"\n', "{}:2: split.broker: there is no section [broker.edge]"),
        ("[split]\ndeadline_ms = 20000\n", "{}:2: split.deadline_ms: deadline_ms must be between 10 and 10000"),
        ('[worker]\nnext = "a/b"\n', "{}:2: worker.next: next must be 1 to 64 printable characters"),
        ('[worker]\nservice = "a"\nnext = "a"\n', "{}:3: worker.next: a worker cannot pass on to its own service"),
    ],
)
def test_a_cloud_that_cannot_be_asked_so_is_refused(tmp_path, text, says):
    path = write(tmp_path, text)

    with pytest.raises(ConfigError) as caught:
        load(path, {})

    assert says.format(path) in str(caught.value)


def test_every_contradiction_is_told_at_once(tmp_path):
    path = write(tmp_path, OLD_BROKER + WINDOW + 'when = "low-confidence overload"\n')

    with pytest.raises(ConfigError) as caught:
        load(path, {})

    assert f"{path}:4: cloud.payload" in str(caught.value)
    assert f"{path}:2: broker.old.protocol" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        WINDOW + 'privacy = "window"\n',
        '[cloud]\nprivacy = "window"\n',
        OLD_BROKER + '[cloud]\nwhen = "off"\n',
        NEW_BROKER + OLD_BROKER + '[cloud]\nwhen = "always"\n',
        OLD_BROKER + NEW_BROKER + '[cloud]\nwhen = "unknown low-confidence"\nbroker = "new"\n',
        '[cloud]\nwhen = "always"\n',
    ],
)
def test_a_cloud_that_can_be_asked_so_is_taken(tmp_path, text):
    assert load(write(tmp_path, text), {}) != Config()


def test_the_cloud_is_off_until_it_is_set():
    assert not load(environ={}).cloud.enabled
    assert load(environ={"HAR_AGENT__CLOUD__WHEN": "unknown overload"}).cloud.enabled


def test_nothing_but_requests_goes_to_a_broker_that_is_there_to_ask_through(tmp_path):
    brokers = "[broker.home]\n[broker.cloud]\n[broker.spare]\n"
    asking = load(write(tmp_path, brokers + '[cloud]\nbroker = "cloud"\n'), {})
    through_the_first = load(write(tmp_path, brokers + '[cloud]\nbroker = "home"\n'), {})

    assert list(asking.brokers) == ["home", "spare"]
    assert list(through_the_first.brokers) == ["home", "cloud", "spare"]
