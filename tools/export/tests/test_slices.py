"""A bundle in slices: together they give what the whole gives, each of them is a bundle, and they are well balanced."""

import json
import shutil
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from agent.adapters.bundle import find_bundle, load_bundle, read_golden
from agent.adapters.onnx_model import OrtModel
from agent.adapters.signature import TrustStore
from agent.app.compose import open_parts
from agent.config import load
from agent.core.manifest import NOVELTY, Bundle
from agent.core.planner import Exit, Profile
from agent.errors import InputError, ModelContractError
from agent.records import Scores
from har_export import signing, slices
from har_export.cli import app
from har_export.slices import CLOSE, balanced, segment, slice_bundle

SHIPPED = {name: load_bundle(find_bundle(name)) for name in ("har-base", "har-base-float")}


def windows_of(bundle: Bundle) -> np.ndarray:
    return bundle.manifest.normalisation.apply(read_golden(bundle).window)


def profile_of(cuts: dict[str, int], us: list[float], fixed_us: float = 5.0, bundle: str = "") -> Profile:
    """A profile with the cuts that are given with their bytes."""
    return Profile(
        machine="board", bundle=bundle or SHIPPED["har-base"].id, exits=(Exit("end", None, len(us)),), cuts=tuple(cuts),
        border_bytes=(3072, *cuts.values()), output_bytes=32, code_bytes=64, segments_us=tuple(us), fixed_us=fixed_us,
        whole_us=sum(us) - fixed_us * (len(us) - 1), watts=None,
    )  # fmt: skip


HAR_BASE = profile_of({"ea": 2048, "ef": 1536, "ek": 1024, "code": 64}, [20, 10, 10, 15, 10])


def run(folders: list[Path], windows: np.ndarray) -> Scores:
    """Run windows through bundles in a chain, each of which knows nothing but what the one before it sent."""
    result, at = windows, "window"
    for folder in folders:
        parts = open_parts(load_bundle(folder))
        assert parts.cuts[0].name == at
        result, at = (
            parts.run(at, parts.until, parts.values(at, np.asarray(result).tobytes(), len(windows))),
            parts.until,
        )
    assert isinstance(result, Scores)
    return result


@pytest.mark.parametrize(("name", "count"), [("har-base", 2), ("har-base", 5), ("har-base-float", 3)])
def test_slices_in_a_chain_give_the_bits_of_the_whole(name: str, count: int, tmp_path: Path) -> None:
    whole = SHIPPED[name]
    cuts = open_parts(whole).cuts[1:]
    found = profile_of({cut.name: cut.bytes for cut in cuts}, [10.0] * (len(cuts) + 1), bundle=whole.id)

    made = slice_bundle(whole, lambda: found, tmp_path, count)

    scores, wanted = (
        run([one.folder for one in made.slices], windows_of(whole)),
        OrtModel(whole).infer(windows_of(whole)),
    )
    assert [a.tobytes() for a in scores[:3]] == [a.tobytes() for a in wanted[:3]]


@pytest.mark.parametrize("name", ["har-base", "har-base-float"])
def test_a_slice_between_cuts_gives_the_bits_of_the_whole(name: str) -> None:
    whole = SHIPPED[name]
    parts = open_parts(whole)
    # Between any two cuts, the parts themselves are held against the whole in the agent's own tests.
    for at, until in combinations([*(cut.name for cut in parts.cuts[:-1:3]), "code", ""], 2):
        made = segment(whole, parts, at, until, "part", 1, 2)  # which refuses what is not the same
        assert made.manifest.segment is not None
        assert (made.manifest.segment.at, made.manifest.segment.until) == (at, until)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_no_other_cuts_are_better(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 7))
    us = data.draw(st.lists(st.integers(50, 300).map(lambda x: x / 10), min_size=n, max_size=n))
    sizes = data.draw(st.lists(st.sampled_from([64, 1024, 2048]), min_size=n - 1, max_size=n - 1))
    found = profile_of({f"t{i}": size for i, size in enumerate(sizes)}, us, data.draw(st.floats(0, 8)))
    usable = [cut for cut in found.cuts if data.draw(st.booleans())]
    parts = data.draw(st.integers(2, n))

    def figures(cuts: tuple[str, ...]) -> tuple[float, int]:
        ends = [0, *(found.cuts.index(cut) + 1 for cut in cuts), n]
        return max(found.run_us(a, b) for a, b in pairwise(ends)), sum(found.border_bytes[k] for k in ends[1:-1])

    ways = [figures(cuts) for cuts in combinations(usable, parts - 1)]
    if not ways:
        with pytest.raises(InputError, match=f"into {len(usable) + 1} parts at most, not {parts}"):
            balanced(found, parts, usable)
        return
    slowest, sent = figures(tuple(balanced(found, parts, usable)))
    best = min(us for us, _ in ways)
    assert slowest <= best * (1 + CLOSE)
    assert sent == min(b for us, b in ways if us <= best * (1 + CLOSE))


def test_what_a_run_costs_is_in_every_slice_once() -> None:
    cuts = {"a": 64, "b": 64, "c": 64, "d": 64}

    # By the sums, 30 and 30 after b; but one run of all that follows a takes 40 - 3 x 8.
    assert balanced(profile_of(cuts, [20, 10, 10, 10, 10], fixed_us=8), 2, list(cuts)) == ["a"]
    assert balanced(profile_of(cuts, [20, 10, 10, 10, 10], fixed_us=0), 2, list(cuts)) == ["b"]


def test_every_slice_is_a_bundle_with_a_card_that_can_be_signed_and_packed(tmp_path: Path) -> None:
    whole = SHIPPED["har-base"]
    made = slice_bundle(whole, lambda: HAR_BASE, tmp_path / "out", 3)
    fingerprint = signing.keygen(tmp_path / "key")
    trust = TrustStore([tmp_path / "trusted"])
    trust.add((tmp_path / "key.pub.pem").read_bytes())

    assert [one.folder.name for one in made.slices] == [f"har-base-{i}-of-3" for i in (1, 2, 3)]
    for one in made.slices:
        signing.sign(one.folder, tmp_path / "key.pem")
        packed = tmp_path / f"{one.folder.name}.harmodel"
        result = CliRunner().invoke(app, ["pack", str(one.folder), "--out", str(packed)])
        assert result.exit_code == 0, result.output
        read = load_bundle(packed)
        manifest = read.manifest
        assert trust.signer(
            (one.folder / "manifest.json").read_bytes(), (one.folder / "manifest.sig").read_bytes()
        ) == (fingerprint)
        assert manifest.segment is not None
        assert (manifest.segment.of, manifest.segment.network) == (whole.id, whole.digest)
        assert (manifest.labels, manifest.calibration) == (whole.manifest.labels, whole.manifest.calibration)
        assert (manifest.name, manifest.context) == (one.folder.name, None)
        assert whole.id in read.contents["CARD.md"].decode()
        assert open_parts(read).until == one.until


def test_the_same_bundle_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    for out in ("a", "b"):
        slice_bundle(SHIPPED["har-base"], lambda: HAR_BASE, tmp_path / out, 2)

    for one in (tmp_path / "a").rglob("*.*"):
        if one.is_file():
            assert one.read_bytes() == (tmp_path / "b" / one.relative_to(tmp_path / "a")).read_bytes()


def test_what_is_printed_deploys_the_slices(tmp_path: Path) -> None:
    made = slice_bundle(SHIPPED["har-base"], lambda: HAR_BASE, tmp_path / "out", 4)
    _, *places = made.text().split("\n\n# ")
    board, *workers = [place.partition("\n")[2] for place in places]
    loaded = []
    for i, text in enumerate((board, *workers)):
        (tmp_path / f"{i}.toml").write_text(text)
        loaded.append(load(tmp_path / f"{i}.toml", flags={}))

    assert loaded[0].split.cut == made.slices[0].until
    assert loaded[0].split.service == loaded[1].worker.service
    assert [config.worker.next for config in loaded[1:]] == [*(config.worker.service for config in loaded[2:]), ""]
    assert [config.worker.bundles for config in loaded[1:]] == [str(one.folder) for one in made.slices[1:]]
    assert f"every {max(one.us or 0 for one in made.slices):.1f} µs" in made.text()


def test_the_command_measures_here_and_says_all_in_json(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["slice", "har-base", "--parts", "2", "--out", str(tmp_path), "--seconds", "0.1", "--json"]
    )

    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    first, last = said["slices"]
    assert (first["at"], first["until"], last["until"]) == ("window", last["at"], "")
    assert first["segments"][1] == last["segments"][0]
    assert last["bytes"] == 32 + 64
    assert max(first["us"], last["us"]) < said["whole_us"] * 1.5
    assert said["config"]["slice 2"]["worker"]["bundles"] == str(tmp_path / "har-base-2-of-2")


def test_cuts_that_a_profile_does_not_have_can_be_used_all_the_same(tmp_path: Path) -> None:
    made = slice_bundle(SHIPPED["har-base"], lambda: HAR_BASE, tmp_path, at=["ek", "e13"])

    assert [(one.at, one.until, one.us) for one in made.slices] == [
        ("window", "ek", 30.0), ("ek", "e13", None), ("e13", "", None),
    ]  # fmt: skip
    assert "pipelined" not in made.text()


@pytest.mark.parametrize(
    ("found", "parts", "at", "says"),
    [
        (HAR_BASE, 6, (), "into 5 parts at most, not 6"),
        (HAR_BASE, None, ("zz",), "can be cut here at e4, .*, not at zz"),
        (HAR_BASE, None, ("ek", "ea"), "in this order, not at ek, ea"),
        (HAR_BASE, None, ("ea", "ea"), "not at ea, ea"),
        (HAR_BASE._replace(bundle="other@12345678"), 2, (), "the profile is of other@12345678"),
    ],
)
def test_cuts_that_cannot_be_made_are_refused(
    found: Profile, parts: int | None, at: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=says):
        slice_bundle(SHIPPED["har-base"], lambda: found, tmp_path / "out", parts, at)
    assert not (tmp_path / "out").exists()


def test_slices_of_the_same_model_are_written_over_and_nothing_else_is(tmp_path: Path) -> None:
    slice_bundle(SHIPPED["har-base"], lambda: HAR_BASE, tmp_path, 2)
    (tmp_path / "har-base-1-of-2" / "manifest.sig").write_bytes(b"old")
    made = slice_bundle(SHIPPED["har-base"], lambda: HAR_BASE, tmp_path, at=["ea"])
    assert load_bundle(made.slices[0].folder).manifest.segment.until == "ea"  # type: ignore[union-attr]  # it is one
    assert not (tmp_path / "har-base-1-of-2" / "manifest.sig").exists()

    shutil.rmtree(tmp_path / "har-base-2-of-2")
    shutil.copytree(find_bundle("har-base"), tmp_path / "har-base-2-of-2")
    with pytest.raises(InputError, match="har-base-2-of-2 is there already, and is no slice of har-base"):
        slice_bundle(SHIPPED["har-base"], lambda: HAR_BASE, tmp_path, 2)
    assert load_bundle(tmp_path / "har-base-2-of-2").id == SHIPPED["har-base"].id
    with pytest.raises(InputError, match="space"):
        slice_bundle(SHIPPED["har-base"], lambda: HAR_BASE, tmp_path / "my slices", 2)


def test_a_slice_is_not_cut_again(tmp_path: Path) -> None:
    made = slice_bundle(SHIPPED["har-base"], lambda: HAR_BASE, tmp_path, 2)

    with pytest.raises(InputError, match=f"cut the whole, {SHIPPED['har-base'].id}"):
        slice_bundle(load_bundle(made.slices[1].folder), lambda: HAR_BASE, tmp_path, 2)


def test_a_network_that_cannot_be_split_is_not_sliced(tmp_path: Path) -> None:
    whole = SHIPPED["har-base"]
    without = {name: data for name, data in whole.contents.items() if name != NOVELTY}

    with pytest.raises(ModelContractError, match="cannot be split"):
        slice_bundle(whole._replace(contents=without), lambda: HAR_BASE, tmp_path, 2)


@pytest.mark.parametrize("options", [[], ["--parts", "2", "--at", "ea"], ["--parts", "1"]])
def test_the_command_wants_a_number_or_cuts(options: list[str], tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["slice", "har-base", "--out", str(tmp_path), *options]).exit_code == 2


def test_a_file_that_is_no_profile_is_refused(tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text("{}")

    with pytest.raises(InputError, match=r"profile\.json: it is not a profile"):
        slices.read(tmp_path / "profile.json")
