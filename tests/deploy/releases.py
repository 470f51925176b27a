"""Releases for tests: made by `tools/release.py` of a copy of the tree, so that a test may change what is in one."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "har-edge-agent" / "wheels"
HERE = f"cp3{sys.version_info.minor}-{os.uname().machine}"
"""The board that this machine is."""

GIT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    **{
        f"GIT_{who}_{what}": f"{who.lower()}@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    },
    "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z",
    "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z",
}


def build_release(
    out: Path,
    version: str = "0.2.0",
    boards: Sequence[str] = ("cp311-x86_64",),
    key: Path | None = None,
    patch: Callable[[Path], None] | None = None,
) -> Path:
    """Make a release of the tree as it is now, committed or not; about 4 s once the wheels were fetched.

    Args:
        out: the release folder to make; one that is there is replaced.
        version: the version that it shall have.
        boards: what to make archives for.
        key: the Ed25519 private key that signs it.
        patch: changes the copy of the tree before it is built.

    Returns:
        `out`.

    Raises:
        CalledProcessError: it cannot be made; what was said is printed.
    """
    with tempfile.TemporaryDirectory(prefix="har-tree-") as name:
        tree = Path(name)
        copy_tree(tree, version, patch)
        signed = ("--key", key) if key else ()
        run_release(tree, "build", "--out", out, "--boards", ",".join(boards), *signed)
    return out


def copy_tree(tree: Path, version: str, patch: Callable[[Path], None] | None = None) -> None:
    """Copy the checkout to `tree`, set the agent's version, patch it, and commit all, always at the same time."""
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    init = tree / "agent/__init__.py"
    init.write_text(re.sub(r'__version__ = ".*"', f'__version__ = "{version}"', init.read_text()))
    if patch:
        patch(tree)
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "copy"]):
        subprocess.run(["git", *command], cwd=tree, check=True, env={**os.environ, **GIT})


def run_release(tree: Path, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a tree's `tools/release.py`. Wheels that were fetched before for the same lock are not fetched again."""
    locks = b"".join((tree / f"requirements/{name}.txt").read_bytes() for name in ("board", "installer"))
    wheels = CACHE / hashlib.sha256(locks).hexdigest()[:16]
    words = [str(word) for word in arguments]
    boards = words[words.index("--boards") + 1].split(",") if "--boards" in words else []
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
    known = boards and all((wheels / f".{board}").exists() for board in boards)
    done = subprocess.run(
        [sys.executable, tree / "tools/release.py", *words],
        env={**os.environ, **GIT, **(offline if known else {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if check and done.returncode:
        sys.stderr.write(done.stderr)
        done.check_returncode()
    if boards and not known and not done.returncode:
        for board in boards:
            _keep(next(Path(words[words.index("--out") + 1]).glob(f"*-{board}.tar")), wheels)
            (wheels / f".{board}").touch()
    return done


def unpack(archive: Path, into: Path) -> Path:
    """Unpack a board archive; return the folder."""
    with tarfile.open(archive) as packed:
        packed.extractall(into, filter="data")
    return into


def keypair(folder: Path, name: str = "release") -> tuple[Path, Path]:
    """Make an Ed25519 key pair with openssl: `<name>.key.pem` and `<name>.pub.pem`."""
    private, public = folder / f"{name}.key.pem", folder / f"{name}.pub.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    return private, public


def _keep(archive: Path, wheels: Path) -> None:
    """Keep an archive's wheels, other than the agent's, for the next build."""
    wheels.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheels) as folder:
        for path in (unpack(archive, Path(folder)) / "wheels").iterdir():
            if not path.name.startswith("har_edge_agent-"):
                path.replace(wheels / path.name)
