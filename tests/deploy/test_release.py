"""A release: what is in it, that it is made again alike, that a changed one is refused, and that it installs."""

import ast
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from deploy.releases import HERE, ROOT, copy_tree, keypair, run_release, unpack

import agent

VERSION = "0.2.0"


class Release(NamedTuple):
    """A signed release for the board that this machine is, and the committed tree that it was made of."""

    folder: Path
    tree: Path
    public: Path
    private: Path

    @property
    def archive(self) -> Path:
        return self.folder / f"har-edge-agent-{VERSION}-{HERE}.tar"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    base = tmp_path_factory.mktemp("release")
    tree, folder = base / "tree", base / "out"
    tree.mkdir()
    copy_tree(tree, VERSION)
    private, public = keypair(base)
    run_release(tree, "build", "--boards", HERE, "--out", folder, "--key", private)
    return Release(folder, tree, public, private)


@pytest.fixture(scope="module")
def installed(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("board")
    done = install(unpack(release.archive, base / "archive"), base / "venv")
    assert done.returncode == 0, done.stderr
    return base / "venv"


@pytest.fixture(scope="module")
def tool() -> Iterator[ModuleType]:
    """`tools/release.py` as a module."""
    spec = importlib.util.spec_from_file_location("release_tool", ROOT / "tools/release.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["release_tool"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["release_tool"]


def install(archive: Path, target: Path, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    """Install an unpacked archive as a board does; whatever asks for a network finds none."""
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    return subprocess.run(
        ["sh", archive / "install.sh", target, python],
        env={"PATH": os.environ["PATH"], "PIP_NO_INDEX": "1", **nowhere},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def verify(folder: Path, *arguments: str | Path) -> tuple[int, dict[str, str], str]:
    """The exit status, what is wrong by file, and what is said; with this system's Python, which has no packages."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", ROOT / "tools/release.py", "verify", folder, "--json", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, json.loads(done.stdout)["wrong"] if done.stdout else {}, done.stderr


def changed(release: Release, folder: Path, change: Callable[[Path], object]) -> Path:
    """A copy of the release with something changed in it."""
    shutil.copytree(release.folder, folder, copy_function=os.link)
    change(folder)
    return folder


def rewrite(path: Path, data: bytes) -> None:
    """Write a file anew, since a copy may be a link to the original."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


# -- what is in one ----------------------------------------------------------------------------------------------------


def test_a_release_is_what_its_documents_say(release: Release) -> None:
    names = {path.name for path in release.folder.iterdir()}
    facts = json.loads((release.folder / "release.json").read_text())
    commit = subprocess.run(
        ["git", "-C", release.tree, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )

    assert names == {
        f"har_edge_agent-{VERSION}-py3-none-any.whl",
        f"har_edge_agent-{VERSION}.tar.gz",
        release.archive.name,
        "har-agent-release",
        "release.json",
        "sbom.cdx.json",
        "SHA256SUMS",
        "SHA256SUMS.sig",
    }
    with tarfile.open(release.archive) as archive:
        requirements = archive.extractfile("requirements.txt").read()  # type: ignore[union-attr]  # it is a file
        inside = archive.extractfile("release.json").read()  # type: ignore[union-attr]  # it is a file
        assert {(entry.uid, entry.uname, entry.mode) for entry in archive} == {(0, "", 0o644)}
        assert archive.getnames() == sorted(archive.getnames())
    assert inside == (release.folder / "release.json").read_bytes()
    assert facts["version"] == VERSION
    assert facts["release"] == f"{VERSION}+{hashlib.sha256(requirements).hexdigest()[:8]}"
    assert (facts["commit"], facts["dirty"]) == (commit.stdout.strip(), False)
    assert facts["created"] == "2026-01-01T00:00:00Z"
    for key, name in (("wheel_sha256", f"har_edge_agent-{VERSION}-py3-none-any.whl"), ("sbom_sha256", "sbom.cdx.json")):
        assert facts[key] == hashlib.sha256((release.folder / name).read_bytes()).hexdigest()


def test_the_bill_of_materials_has_all_that_is_installed(release: Release, tmp_path: Path) -> None:
    sbom = json.loads((release.folder / "sbom.cdx.json").read_text())
    wheels = {path.name: path for path in (unpack(release.archive, tmp_path) / "wheels").iterdir()}
    manifest = ROOT / "models/har-base/manifest.json"

    listed: dict[str, str] = {}
    main = sbom["metadata"]["component"]
    libraries = [c for c in sbom["components"] if c["type"] == "library"]
    for component in (main, *libraries):
        assert component["licenses"], component["name"]
        for reference in component["externalReferences"]:
            listed[reference["url"]] = reference["hashes"][0]["content"]
    assert listed == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in wheels.items()}
    assert (main["name"], main["type"], main["version"]) == ("har-edge-agent", "application", VERSION)
    assert [c["name"] for c in libraries if c.get("scope") == "excluded"] == ["pip"]

    model = next(c for c in sbom["components"] if c["type"] == "machine-learning-model")
    files = json.loads(manifest.read_text())["files"]
    assert model["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(manifest.read_bytes()).hexdigest()}]
    assert {c["name"]: c["hashes"][0]["content"] for c in model["components"]} == {
        name: entry["sha256"] for name, entry in files.items()
    }
    needed = next(d["dependsOn"] for d in sbom["dependencies"] if d["ref"] == main["bom-ref"])
    assert {"onnxruntime", "backports-zstd", "har-base"} <= {ref.split("==")[0].split("@")[0] for ref in needed}


def test_the_same_commit_gives_the_same_bytes(release: Release, tmp_path: Path) -> None:
    again = tmp_path / "elsewhere" / "again"
    # A key beside an inventory, which git ignores, goes with no release.
    keys = release.tree / "deploy/ansible/inventories/lab/keys"
    keys.mkdir()
    (keys / "release.key.pem").write_text("secret")
    before = os.umask(0o077)
    try:
        run_release(release.tree, "build", "--boards", HERE, "--out", again, "--key", release.private)
    finally:
        os.umask(before)

    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in release.folder.iterdir()
    }


def test_what_is_not_committed_is_not_released_unasked(release: Release, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(release.tree, tree)
    (tree / "agent/stray.py").write_text("")
    build = ("build", "--boards", HERE, "--out", tmp_path / "out")

    refused = run_release(tree, *build, check=False)
    run_release(tree, *build, "--allow-dirty")

    assert refused.returncode == 1
    assert "agent/stray.py" in refused.stderr
    assert "--allow-dirty" in refused.stderr
    assert json.loads((tmp_path / "out/release.json").read_text())["dirty"] is True
    assert not (tmp_path / "out/SHA256SUMS.sig").exists()


def test_a_folder_that_is_no_release_is_not_replaced(release: Release, tmp_path: Path) -> None:
    (tmp_path / "thesis.odt").write_text("years of work")

    done = run_release(release.tree, "build", "--boards", HERE, "--out", tmp_path, check=False)

    assert (done.returncode, "is no release" in done.stderr) == (1, True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.odt"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["-algorithm", "RSA"], "is no Ed25519 key"),
        (["-algorithm", "ed448"], "is no Ed25519 key"),
        (None, "reading the key"),
    ],
)
def test_only_an_ed25519_key_signs(release: Release, tmp_path: Path, options: list[str] | None, reason: str) -> None:
    key = tmp_path / "other.pem"
    if options:
        subprocess.run(["openssl", "genpkey", *options, "-out", key], check=True, capture_output=True)

    done = run_release(release.tree, "build", "--boards", HERE, "--out", tmp_path / "out", "--key", key, check=False)

    assert (done.returncode, reason in done.stderr) == (1, True), done.stderr
    assert not (tmp_path / "out").exists()


# -- checking one ------------------------------------------------------------------------------------------------------


def test_a_release_is_checked_with_its_key_and_by_hand(release: Release) -> None:
    assert verify(release.folder, "--key", release.public)[:2] == (0, {})
    assert verify(release.folder, "--unsigned")[:2] == (0, {})

    by_hand = ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", release.public]
    signed = ["-in", "SHA256SUMS", "-sigfile", "SHA256SUMS.sig"]
    subprocess.run([*by_hand, *signed], cwd=release.folder, check=True, capture_output=True)
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=release.folder, check=True)


def test_every_file_that_was_changed_is_named(release: Release, tmp_path: Path) -> None:
    listed = [line.split("  ")[1] for line in (release.folder / "SHA256SUMS").read_text().splitlines()]
    assert release.archive.name in listed

    for name in listed:
        data = bytearray((release.folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        flipped = changed(release, tmp_path / f"{name}-flipped", lambda f, n=name, d=data: rewrite(f / n, bytes(d)))
        gone = changed(release, tmp_path / f"{name}-gone", lambda f, n=name: (f / n).unlink())
        for folder, reason in ((flipped, "changed"), (gone, "missing")):
            status, wrong, said = verify(folder, "--key", release.public)
            assert status == 1
            assert list(wrong) == [name]
            assert wrong[name].startswith(reason)
            assert f"{name}: {reason}" in said


@pytest.mark.parametrize(
    ("change", "file", "reason"),
    [
        (lambda f: (f / "SHA256SUMS.sig").unlink(), "SHA256SUMS.sig", "not signed"),
        (lambda f: rewrite(f / "SHA256SUMS.sig", bytes(64)), "SHA256SUMS.sig", "was changed"),
        (lambda f: rewrite(f / "SHA256SUMS.sig", b"short"), "SHA256SUMS.sig", "was changed"),
        (lambda f: rewrite(f / "SHA256SUMS", b""), "SHA256SUMS.sig", "was changed"),
        (
            lambda f: (f / "har-edge-agent-0.2.0-cp39-riscv64.tar").write_bytes(b""),
            "har-edge-agent-0.2.0-cp39-riscv64.tar",
            "is not in",
        ),
    ],
    ids=["no signature", "other signature", "short signature", "other list", "one file more"],
)
def test_what_nobody_signed_is_refused(
    release: Release, tmp_path: Path, change: Callable[[Path], object], file: str, reason: str
) -> None:
    status, wrong, _ = verify(changed(release, tmp_path / "changed", change), "--key", release.public)

    assert (status, list(wrong)) == (1, [file])
    assert reason in wrong[file]


def test_another_key_is_refused(release: Release, tmp_path: Path) -> None:
    _, other = keypair(tmp_path, "other")

    status, wrong, said = verify(release.folder, "--key", other)
    assert (status, list(wrong)) == (1, ["SHA256SUMS.sig"])
    assert str(other) in said

    status, wrong, said = verify(release.folder, "--key", release.folder / "release.json")
    assert (status, wrong, "reading the public key" in said) == (1, {}, True)


def test_a_list_that_leaves_the_folder_is_refused(release: Release, tmp_path: Path) -> None:
    line = f"{'0' * 64}  ../secret\n"
    folder = changed(release, tmp_path / "changed", lambda f: rewrite(f / "SHA256SUMS", line.encode()))

    status, wrong, _ = verify(folder, "--unsigned")

    assert (status, list(wrong)) == (1, ["SHA256SUMS"])


# -- installing one ----------------------------------------------------------------------------------------------------


def test_it_installs_without_pip_and_network_and_says_what_it_is(release: Release, installed: Path) -> None:
    done = subprocess.run(
        [installed / "bin/har-agent", "version", "--json"], capture_output=True, text=True, check=True, cwd=installed
    )

    assert json.loads(done.stdout)["release"] == json.loads((release.folder / "release.json").read_text())
    assert (installed / "share/har-agent/systemd/har-agent.service").is_file()
    assert not list(installed.glob("lib/python3*/site-packages/pip"))


def test_all_that_the_agent_can_import_is_compiled(installed: Path) -> None:
    def byte_code() -> set[Path]:
        return set(installed.rglob("*.pyc"))

    names = set()
    for path in Path(agent.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
    wanted = sorted(name for name in names if name.split(".")[0] != "amqtt")  # the demo's, and not on a board
    before = byte_code()
    script = f"import importlib\nfor name in {wanted}: importlib.import_module(name)"
    subprocess.run([installed / "bin/python", "-c", script], check=True, cwd=installed)
    subprocess.run(
        [installed / "bin/har-agent", "models", "verify", "har-base"], check=True, cwd=installed, capture_output=True
    )

    assert before
    assert byte_code() == before


def test_a_changed_wheel_is_refused_and_the_next_try_begins_anew(release: Release, tmp_path: Path) -> None:
    archive, target = unpack(release.archive, tmp_path / "archive"), tmp_path / "venv"
    wheel = next((archive / "wheels").glob("structlog-*.whl"))
    whole = wheel.read_bytes()
    wheel.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))

    refused = install(archive, target)
    left = (target / ".complete").exists()
    wheel.write_bytes(whole)
    (target / "half").touch()
    done = install(archive, target)
    again = install(archive, target)

    assert refused.returncode != 0
    assert "structlog" in refused.stderr
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in refused.stderr
    assert not left
    assert (done.returncode, again.returncode) == (0, 0), done.stderr
    assert (target / ".complete").exists()
    assert not (target / "half").exists()


def test_a_folder_that_is_no_environment_is_not_replaced(release: Release, tmp_path: Path) -> None:
    archive, target = unpack(release.archive, tmp_path / "archive"), tmp_path / "home"
    target.mkdir()
    (target / "thesis.odt").write_text("years of work")

    done = install(archive, target)

    assert (done.returncode, "is no virtual environment" in done.stderr) == (1, True)
    assert (target / "thesis.odt").exists()


def test_the_archive_of_another_board_is_refused(release: Release, tmp_path: Path) -> None:
    archive = unpack(release.archive, tmp_path / "archive")
    numpy = next((archive / "wheels").glob("numpy-*.whl"))
    numpy.rename(numpy.with_name(numpy.name.replace("x86_64", "riscv64").replace("aarch64", "riscv64")))

    other = install(archive, tmp_path / "venv")
    none = install(archive, tmp_path / "venv", python="python2.3")

    assert (other.returncode, f"{HERE}.tar" in other.stderr) == (1, True)
    assert (none.returncode, "there is no python2.3" in none.stderr) == (1, True)
    assert not (tmp_path / "venv").exists()


# -- the parts ---------------------------------------------------------------------------------------------------------


def test_the_board_decides_what_is_wanted(tool: ModuleType) -> None:
    lock = f"""# comment
backports-zstd==1.8.0 ; python_full_version < '3.14' \\
    --hash=sha256:{"a" * 64} \\
    --hash=sha256:{"b" * 64}
    # via har-edge-agent (pyproject.toml)
colorama==0.4.6 ; sys_platform == 'win32' \\
    --hash=sha256:{"c" * 64}
numpy==2.4.6 \\
    --hash=sha256:{"d" * 64}
"""
    pins = tool.parse_lock(lock)

    def names(board: str) -> list[Any]:
        return [pin.name for pin in tool.wanted(pins, tool.parse_board(board))]

    assert pins[0].sha256 == ("a" * 64, "b" * 64)
    assert tool.parse_lock("".join(pin.line + "\n" for pin in pins)) == pins
    assert names("cp313-aarch64") == ["backports-zstd", "numpy"]
    assert names("cp314-x86_64") == ["numpy"]


@pytest.mark.parametrize("line", ["numpy>=2", "numpy==2.4.6", "-e .", "numpy==2.4.6 --hash=md5:00"])
def test_a_lock_without_hashes_is_refused(tool: ModuleType, line: str) -> None:
    with pytest.raises(tool.ReleaseError, match="no pin with hashes"):
        tool.parse_lock(line + "\n")


@pytest.mark.parametrize("name", ["", "cp310", "py3-any", "cp311-armv7l", "cp311-aarch64 "])
def test_boards_that_have_no_wheels_are_refused(tool: ModuleType, name: str) -> None:
    with pytest.raises(tool.ReleaseError, match="names no board"):
        tool.parse_board(name)
