"""Make a release that boards install without a network, and check one.

    make release KEY=release.key.pem                     all boards, signed, in dist/har-edge-agent-<version>
    .venv/bin/python tools/release.py build --boards cp311-aarch64 --out DIR
    python3 tools/release.py verify DIR --key release.pub.pem

docs/reference/release.md says what is in it. The same commit gives the same bytes. `verify` needs no more than Python
and openssl, since a controller may have nothing else.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
NAME = "har-edge-agent"
BOARDS = tuple(f"cp3{minor}-{machine}" for minor in (11, 12, 13) for machine in ("aarch64", "x86_64"))

GLIBC_MINOR = 35
"""glibc 2.35 is the oldest among the systems that are supported (Ubuntu 22.04): no wheel may need a newer one."""

SUMS = "SHA256SUMS"
SIGNATURE = "SHA256SUMS.sig"


class ReleaseError(Exception):
    """A release cannot be made, or is not what it should be; the text says why and what to do."""


class Board(NamedTuple):
    """What wheels are chosen by: CPython 3.`minor` on a 64-bit `machine`, aarch64 or x86_64."""

    minor: int
    machine: str

    def __str__(self) -> str:
        return f"cp3{self.minor}-{self.machine}"


class Pin(NamedTuple):
    """A distribution in a lock file: its exact version, where it is wanted (PEP 508), and the files that it may be."""

    name: str
    version: str
    marker: str
    sha256: tuple[str, ...]

    @property
    def line(self) -> str:
        """The pin as pip reads it, with its hashes."""
        marker = f" ; {self.marker}" if self.marker else ""
        return f"{self.name}=={self.version}{marker}" + "".join(f" \\\n    --hash=sha256:{h}" for h in self.sha256)


# -- what a release is made of -----------------------------------------------------------------------------------------


def parse_board(text: str) -> Board:
    """Read `cp311-aarch64`.

    Raises:
        ReleaseError: it is no such name.
    """
    match = re.fullmatch(r"cp3(\d\d)-(aarch64|x86_64)", text)
    if not match:
        raise ReleaseError(f"'{text}' names no board: write a Python and a machine, such as {BOARDS[0]}")
    return Board(int(match[1]), match[2])


def parse_lock(text: str) -> list[Pin]:
    """Read a lock file as `tools/lock.sh` writes it: `name==version ; marker --hash=sha256:…`, in the file's order.

    Raises:
        ReleaseError: a line is none of these, or a pin has no hash.
    """
    pins = []
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = re.fullmatch(r"([\w.-]+)==(\S+)(?:\s*;\s*(.*?))?((?:\s+--hash=sha256:[0-9a-f]{64})+)\s*", line)
        if not match:
            raise ReleaseError(f"the lock file has a line that is no pin with hashes: {line.strip()[:80]}")
        pins.append(Pin(match[1], match[2], match[3] or "", tuple(re.findall(r"[0-9a-f]{64}", match[4]))))
    return pins


def wanted(pins: Iterable[Pin], board: Board) -> list[Pin]:
    """Choose the pins that are installed on a board. Only the board counts, not the machine that this runs on."""
    from packaging.markers import Marker

    environment = {
        "implementation_name": "cpython",
        "implementation_version": f"3.{board.minor}.0",
        "os_name": "posix",
        "platform_machine": board.machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"3.{board.minor}.0",
        "python_version": f"3.{board.minor}",
        "sys_platform": "linux",
    }
    return [pin for pin in pins if not pin.marker or Marker(pin.marker).evaluate(environment)]


def download(pins: Sequence[Pin], board: Board, into: Path) -> None:
    """Fetch the wheels of `pins` for a board, each held to its hashes; pip keeps them in its cache.

    Raises:
        ReleaseError: there is no wheel for the board, a hash is another, or nothing can be reached.
    """
    lock = into.parent / f"{board}.txt"
    lock.write_text("".join(pin.line + "\n" for pin in pins))
    tags = [f"manylinux_2_{minor}" for minor in range(GLIBC_MINOR, 16, -1)] + ["manylinux2014"]
    abis = (f"cp3{board.minor}", "abi3", "none")
    _run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"],
        ["--no-deps", "--require-hashes", "--only-binary=:all:", "--requirement", lock, "--dest", into],
        ["--implementation", "cp", "--python-version", f"3.{board.minor}"],
        *(["--abi", abi] for abi in abis),
        *(["--platform", f"{tag}_{board.machine}"] for tag in tags),
        what=f"downloading the wheels for {board}",
    )


def tar(files: Mapping[str, bytes | Path], mtime: int) -> bytes:
    """Pack files so that the same content gives the same bytes: sorted, without owner, one time, mode 0644."""
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name in sorted(files):
            content = files[name]
            data = content.read_bytes() if isinstance(content, Path) else content
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(data), mtime
            archive.addfile(entry, BytesIO(data))
    return packed.getvalue()


# -- making one --------------------------------------------------------------------------------------------------------


def build(boards: Sequence[Board], out: Path | None, key: Path | None, *, allow_dirty: bool) -> dict[str, object]:
    """Make a release folder; one that is there is replaced, and only by a whole one.

    Args:
        boards: what to make archives for.
        out: the folder; `dist/har-edge-agent-<version>` of the checkout when it is None.
        key: an Ed25519 private key in PEM that signs SHA256SUMS; the release is not signed when it is None.
        allow_dirty: release what is not committed, too; release.json then says so.

    Returns:
        The summary that `--json` prints.

    Raises:
        ReleaseError: it cannot be made; nothing is changed.
    """
    if key:
        _check_key(key)
    commit, committed, dirty = _commit()
    if dirty and not allow_dirty:
        shown = "\n  ".join(dirty[:10])
        raise ReleaseError(
            f"the working tree differs from commit {commit[:12]}:\n  {shown}\n"
            "commit first, or say --allow-dirty for a release that nobody can make again"
        )
    # A variable that is set but empty is as if it were not set.
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or committed)
    if out and out.exists() and not (out / SUMS).is_file() and any(out.iterdir()):
        raise ReleaseError(f"{out} is there and is no release: name another folder")

    with tempfile.TemporaryDirectory(prefix="har-release-") as work_name:
        work = Path(work_name)
        new = work / "new"
        new.mkdir()
        _say("building wheel and sdist")
        _copy_known(work / "tree")
        _run(
            [sys.executable, "-m", "hatchling", "build", "-d", new],
            what="building the wheel",
            env={"SOURCE_DATE_EPOCH": str(epoch)},
            cwd=work / "tree",
        )
        wheel = next(new.glob("*.whl"))
        version = wheel.name.split("-")[1]
        pins = parse_lock((ROOT / "requirements/board.txt").read_text())
        installer = parse_lock((ROOT / "requirements/installer.txt").read_text())
        requirements = "".join(
            pin.line + "\n" for pin in sorted([*pins, Pin(NAME, version, "", (_sha256(wheel),))])
        ).encode()
        release = f"{version}+{hashlib.sha256(requirements).hexdigest()[:8]}"

        wheels: dict[Board, list[Path]] = {}
        for board in boards:
            folder = work / f"wheels-{board}"
            folder.mkdir()
            _say(f"{board}: fetching wheels")
            download([*wanted(pins, board), *installer], board, folder)
            wheels[board] = sorted(folder.iterdir())

        _say("listing what is in it")
        import sbom

        created = datetime.fromtimestamp(epoch, UTC)
        materials = sbom.bill_of_materials(
            wheel,
            [*{path.name: path for paths in wheels.values() for path in paths}.values()],
            ROOT / "models",
            created,
        )
        (new / "sbom.cdx.json").write_text(materials)

        facts = {
            "v": 1,
            "name": NAME,
            "version": version,
            "release": release,
            "commit": commit,
            "dirty": bool(dirty),
            "created": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "wheel_sha256": _sha256(wheel),
            "requirements_sha256": hashlib.sha256(requirements).hexdigest(),
            "sbom_sha256": _sha256(new / "sbom.cdx.json"),
        }
        release_json = (json.dumps(facts, indent=1) + "\n").encode()
        (new / "release.json").write_bytes(release_json)
        for board, paths in wheels.items():
            content: dict[str, bytes | Path] = {f"wheels/{path.name}": path for path in [*paths, wheel]}
            content |= {"requirements.txt": requirements, "release.json": release_json}
            content["install.sh"] = ROOT / "tools/install.sh"
            (new / f"{NAME}-{version}-{board}.tar").write_bytes(tar(content, epoch))

        shutil.copy(ROOT / "deploy/ansible/roles/har_agent/files/har-agent-release", new)

        sums = "".join(f"{_sha256(path)}  {path.name}\n" for path in sorted(new.iterdir()))
        (new / SUMS).write_text(sums)
        if key:
            _say(f"signing with {key}")
            _sign(new, key, work / "public.pem")
        for path in new.iterdir():
            path.chmod(0o644)

        out = out or ROOT / "dist" / f"{NAME}-{version}"
        _replace(new, out)

    size = {path.name: path.stat().st_size for path in sorted(out.iterdir())}
    _say(f"{release} in {out}" + ("" if key else ", not signed"))
    return {**facts, "out": str(out), "signed": key is not None, "boards": [str(b) for b in boards], "bytes": size}


def _commit() -> tuple[str, int, list[str]]:
    """The commit, its time in seconds since the epoch, and what of the tree differs from it."""
    if not (ROOT / ".git").exists():
        raise ReleaseError(f"{ROOT} is no git checkout: a release says which commit it is made of")
    git = ("git", "-C", str(ROOT))
    commit, time = _run([*git, "log", "-1", "--format=%H %ct"], what="asking git for the commit").split()
    changes = _run([*git, "status", "--porcelain"], what="asking git for changes")
    return commit, int(time), changes.splitlines()


def _copy_known(into: Path) -> None:
    """Copy what git tracks or would track: no key that lies ignored beside an inventory may go into a release."""
    known = _run(["git", "-C", ROOT, "ls-files", "-z", "-co", "--exclude-standard"], what="asking git for its files")
    for name in filter(None, known.split("\0")):
        if (ROOT / name).is_file():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, into / name)


def _replace(new: Path, out: Path) -> None:
    """Put the finished folder where it belongs: first beside it, since `new` may lie on another file system."""
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        beside.chmod(0o755)
        shutil.copytree(new, beside, dirs_exist_ok=True)
        if out.exists():
            shutil.rmtree(out)
        beside.rename(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


# -- signatures --------------------------------------------------------------------------------------------------------


def _check_key(key: Path) -> None:
    text = _run(["openssl", "pkey", "-in", key, "-noout", "-text"], what=f"reading the key {key}")
    if not text.startswith("ED25519 Private-Key"):
        raise ReleaseError(f"{key} is no Ed25519 key: 'openssl genpkey -algorithm ed25519 -out {key.name}' makes one")


def _sign(folder: Path, key: Path, public: Path) -> None:
    _run(
        ["openssl", "pkeyutl", "-sign", "-rawin", "-inkey", key, "-in", folder / SUMS, "-out", folder / SIGNATURE],
        what="signing",
    )
    _run(["openssl", "pkey", "-in", key, "-pubout", "-out", public], what="deriving the public key")
    if not _is_signed(folder, public):
        raise ReleaseError("openssl does not accept the signature that it has just made")


def _is_signed(folder: Path, public: Path) -> bool:
    verify = ("openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", public)
    done = subprocess.run(
        [*verify, "-in", folder / SUMS, "-sigfile", folder / SIGNATURE], capture_output=True, text=True, check=False
    )
    return done.returncode == 0


# -- checking one ------------------------------------------------------------------------------------------------------


def verify(folder: Path, key: Path | None) -> dict[str, str]:
    """Check a release folder against its signed list of hashes.

    Args:
        folder: the release.
        key: the Ed25519 public key in PEM that it must be signed with; None checks the hashes alone.

    Returns:
        The files that are wrong, each with the reason; empty when all is well. When the signature is wrong, nothing
        else is looked at, since the hashes are worth nothing.

    Raises:
        ReleaseError: the folder is no release, or the key is none.
    """
    try:
        listed = (folder / SUMS).read_text()
    except OSError as e:
        raise ReleaseError(f"{folder} is no release: {SUMS} cannot be read ({e.strerror})") from e
    if key:
        _run(["openssl", "pkey", "-pubin", "-in", key, "-noout"], what=f"reading the public key {key}")
        if not (folder / SIGNATURE).is_file():
            return {SIGNATURE: "missing: the release is not signed"}
        if not _is_signed(folder, key):
            return {SIGNATURE: f"{SUMS} was changed, or is not signed with the key {key}"}

    wrong, seen = {}, {SUMS, SIGNATURE}
    for line in listed.splitlines():
        match = re.fullmatch(r"([0-9a-f]{64})  ([\w+-][\w.+-]*)", line)
        if not match:
            return {SUMS: f"has a line that names no file: {line[:80]}"}
        expected, name = match.groups()
        seen.add(name)
        if not (folder / name).is_file():
            wrong[name] = "missing"
        elif (found := _sha256(folder / name)) != expected:
            wrong[name] = f"changed: SHA-256 is {found}, and {SUMS} says {expected}"
    for path in sorted(folder.iterdir()):
        if path.name not in seen:
            wrong[path.name] = f"is not in {SUMS}"
    return wrong


# -- the command -------------------------------------------------------------------------------------------------------


def _run(*parts: Sequence[str | Path], what: str, env: Mapping[str, str] | None = None, cwd: Path = ROOT) -> str:
    """Run a program and return its output; its last words go into the error."""
    command = [str(word) for part in parts for word in part]
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})}
        )
    except FileNotFoundError as e:
        raise ReleaseError(f"{what} needs {command[0]}: install it, then run this again") from e
    if done.returncode:
        said = "\n  ".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise ReleaseError(f"{what} failed:\n  {said}")
    return done.stdout


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _say(text: str) -> None:
    sys.stderr.write(f"release: {text}\n")
    sys.stderr.flush()


def main() -> int:
    """Run `build` or `verify`; the exit status is 1 where the answer is no."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("build", help="make a release folder")
    make.add_argument("--boards", default=",".join(BOARDS), help="comma-separated; all of %(default)s by default")
    make.add_argument("--out", type=Path, help="the folder; dist/har-edge-agent-VERSION by default")
    make.add_argument("--key", type=Path, help="Ed25519 private key in PEM, signs SHA256SUMS")
    make.add_argument("--allow-dirty", action="store_true", help="release what is not committed, too")
    make.add_argument("--json", action="store_true", help="print a summary as JSON")
    check = commands.add_parser("verify", help="check a release folder: signature and every hash")
    check.add_argument("folder", type=Path)
    trust = check.add_mutually_exclusive_group(required=True)
    trust.add_argument("--key", type=Path, help="Ed25519 public key in PEM that it must be signed with")
    trust.add_argument("--unsigned", action="store_true", help="check the hashes alone")
    check.add_argument("--json", action="store_true", help="print the result as JSON")
    given = parser.parse_args()

    try:
        if given.command == "build":
            boards = [parse_board(name) for name in given.boards.split(",")]
            key = given.key.absolute() if given.key else None
            summary = build(boards, given.out and given.out.absolute(), key, allow_dirty=given.allow_dirty)
            if given.json:
                print(json.dumps(summary))  # noqa: T201  the command's output
            return 0
        key = given.key.absolute() if given.key else None
        wrong = verify(given.folder.absolute(), key)
        if given.json:
            print(json.dumps({"v": 1, "ok": not wrong, "wrong": wrong}))  # noqa: T201  the command's output
        for name, reason in wrong.items():
            _say(f"{name}: {reason}")
        if not wrong:
            _say(f"{given.folder}: all files are as they were " + ("signed" if key else "listed; not checked by whom"))
    except ReleaseError as e:
        _say(str(e))
        return 1
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
