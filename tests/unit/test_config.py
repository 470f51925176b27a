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
