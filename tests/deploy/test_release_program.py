"""`har-agent-release`, the program that switches a board: killed anywhere, the next call puts the board right.

What a kill leaves is what the disk held at that moment. So one call is run with commands that take a copy of the disk
before and after they change it, `rm -r` and `cp -a` after each file, and every such copy is a board on which the call
was killed there.
"""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "deploy/ansible/roles/har_agent/files/har-agent-release"
RELEASE = "0.1.0+00000000"
CHANGING = ("chmod", "cp", "install", "ln", "mkdir", "mv", "rm", "sync")

RECORDER = r"""#!/bin/sh
# As COMMAND, with a copy of the disk before and after.
command=COMMAND
taken() {
    number=$(/bin/ls "$KILLED_AT" | /usr/bin/wc -l)
    /bin/cp -a "$BOARD" "$KILLED_AT/$number"
}
taken
case "$command $1" in
'rm -rf')
    for gone in "$@"; do
        [ ! -d "$gone" ] || /usr/bin/find "$gone" -type f | while read -r file; do
            /bin/rm -f "$file"
            taken
        done
    done
    ;;
'cp -a')
    /bin/mkdir -p "$3"
    (cd "$2" && /usr/bin/find . -type f) | while read -r file; do
        /usr/bin/install -D "$2/$file" "$3/$file"
        taken
    done
    ;;
esac
case "$command $1" in
'cp -a') /bin/cp -aT "$2" "$3" ;;
*) "/usr/bin/$command" "$@" ;;
esac
code=$?
taken
exit $code
"""

SYSTEMCTL = r"""#!/bin/sh
# A systemd that knows one service; what it was started with is on the disk, for tests to see.
state=$BOARD/systemd
/bin/mkdir -p "$state"
case "$*" in
*is-active*) [ -f "$state/running" ] ;;
*is-enabled*) [ -f "$state/enabled" ] ;;
*daemon-reload*) /bin/cp "$BOARD/units/har-agent.service" "$state/loaded" ;;
*disable*) /bin/rm -f "$state/enabled" "$state/running" ;;
*enable*) : >"$state/enabled" ;;
*restart*) /bin/cat "$state/loaded" "$BOARD/etc/config.toml" >"$state/running" ;;
esac
"""


class Killed(NamedTuple):
    """A board on which a call was killed, and where: the number of the copy."""

    board: "Board"
    where: int


class Board:
    """A folder that the program takes for a board's disk. Deployments are told apart by one word in their files."""

    def __init__(self, folder: Path, tools: Path) -> None:
        self.folder = folder
        self.tools = tools
        self.deployments = folder / "opt/deployments"

    def make(self) -> None:
        """Give it a release that takes any configuration, and a unit for it."""
        release = self.folder / f"opt/releases/{RELEASE}"
        units = release / "share/har-agent/systemd"
        units.mkdir(parents=True)
        (release / "bin").mkdir()
        (release / "bin/har-agent").write_text("#!/bin/sh\n")
        (release / "bin/har-agent").chmod(0o755)
        (release / ".proven").touch()
        (units / "har-agent.service").write_text("[Service]\n")
        for name in ("units", "bin"):
            (self.folder / name).mkdir()

    def call(self, *arguments: str, killed_at: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run the program on this board; `killed_at`: a folder for what a kill would leave, at each point."""
        program = self.tools / "har-agent-release"
        environment = {
            "BOARD": str(self.folder),
            "TOOLS": f"{self.tools}/recorders:{self.tools}" if killed_at else str(self.tools),
            "KILLED_AT": str(killed_at),
        }
        return subprocess.run(
            ["sh", program, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=30
        )

    def stage(self, word: str) -> None:
        """Stage a deployment, in which one file has the word in its text and another one has it as its name."""
        etc = self.folder / "given"
        shutil.rmtree(etc, ignore_errors=True)
        (etc / "trusted").mkdir(parents=True)
        (etc / "config.toml").write_text(f"{word}\n")
        (etc / f"trusted/{word}.pem").write_text(word)
        done = self.call("stage", f"--release={RELEASE}", f"--etc={etc}")
        assert done.returncode == 0, done.stderr
        shutil.rmtree(etc)

    def deploy(self, *words: str) -> None:
        """Stage, switch to and confirm one deployment after the other."""
        for word in words:
            self.stage(word)
            for command in ("switch", "confirm"):
                done = self.call(command)
                assert done.returncode == 0, done.stderr

    @property
    def word(self) -> str:
        """The deployment that is live, whole and running; anything else fails."""
        word = (self.folder / "etc/config.toml").read_text().strip()
        etc = {str(p.relative_to(self.folder / "etc")) for p in (self.folder / "etc").rglob("*") if p.is_file()}
        assert etc == {"config.toml", f"trusted/{word}.pem"}
        assert (self.folder / "opt/current").readlink() == Path(f"releases/{RELEASE}")
        assert (self.folder / "systemd/running").read_text() == f"[Service]\n{word}\n"
        assert (self.folder / "systemd/enabled").exists()
        return word

    @property
    def confirmed(self) -> bool:
        """Whether what is live is confirmed, and nothing of a call is left that did not end."""
        left = {path.name for path in self.deployments.iterdir()}
        return not left & {"unverified", "confirmed", ".discarded"}

    def staged(self, name: str) -> str:
        """The word of a deployment that lies there whole; empty if there is none."""
        if not (self.deployments / name).is_dir():
            return ""
        word = (self.deployments / name / "etc/config.toml").read_text().strip()
        assert (self.deployments / name / f"etc/trusted/{word}.pem").exists()
        assert (self.deployments / name / "units/har-agent.service").exists()
        assert (self.deployments / name / "release").read_text().strip() == RELEASE
        assert not (self.deployments / name / "back").exists()
        return word

    def copy(self, folder: Path) -> "Board":
        """Return a board with the same disk."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Board(folder, self.tools)

    def content(self) -> dict[str, str]:
        """All that is on its disk, by path."""
        return {
            str(path.relative_to(self.folder)): str(path.readlink()) if path.is_symlink() else path.read_text()
            for path in sorted(self.folder.rglob("*"))
            if path.is_symlink() or path.is_file()
        }


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Board:
    """A board with two deployments: `old`, and `new`, which is live and confirmed."""
    base = tmp_path_factory.mktemp("board")
    tools = base / "tools"
    (tools / "recorders").mkdir(parents=True)
    text = PROGRAM.read_text()
    for name, place in (
        ("OPT=/opt/har-agent", "OPT=$BOARD/opt"),
        ("ETC=/etc/har-agent", "ETC=$BOARD/etc"),
        ("UNITS=/etc/systemd/system", "UNITS=$BOARD/units"),
        ("/usr/local/bin/har-agent\n", '"$BOARD/bin/har-agent"\n'),
        ("PATH=/usr/local/sbin:", "PATH=$TOOLS:/usr/local/sbin:"),
        ('[ "$(id -u)" = 0 ]', "true"),
    ):
        assert text.count(name) == 1, name
        text = text.replace(name, place)
    (tools / "har-agent-release").write_text(text)
    for name in CHANGING:
        (tools / "recorders" / name).write_text(RECORDER.replace("COMMAND", name))
    (tools / "systemctl").write_text(SYSTEMCTL)
    for tool in tools.rglob("*"):
        tool.chmod(0o755)
    made = Board(base / "board", tools)
    made.make()
    made.deploy("old", "new")
    assert (made.word, made.staged("verified"), made.staged("previous")) == ("new", "new", "old")
    return made


@pytest.fixture
def board(first: Board, tmp_path: Path) -> Board:
    """Another one like that."""
    return first.copy(tmp_path / "board")


def killed(board: Board, tmp_path: Path, *arguments: str) -> Iterator[Killed]:
    """Every different disk that this call leaves behind when it is killed, none of which is that of its end."""
    taken = tmp_path / "taken"
    taken.mkdir()
    done = board.call(*arguments, killed_at=taken)
    assert done.returncode == 0, done.stderr
    seen = [board.content()]
    where = 0
    for where in range(len(list(taken.iterdir()))):
        victim = Board(tmp_path / f"killed-{where}", board.tools)
        (taken / str(where)).rename(victim.folder)
        content = victim.content()
        if content not in seen:
            seen.append(content)
            yield Killed(victim, where)
    assert where > 10
    assert len(seen) > 5


def then(victim: Killed, *arguments: str) -> tuple[Board, int]:
    """What the next call makes of it, on a copy, and its exit status."""
    name = "-".join([victim.board.folder.name, "then", *(word.strip("-") for word in arguments)])
    board = victim.board.copy(victim.board.folder.with_name(name))
    done = board.call(*arguments)
    assert done.returncode in (0, 1), done.stderr
    assert done.returncode == 0 or done.stderr.startswith("har-agent-release: "), done.stderr
    return board, done.returncode


def settled(board: Board) -> tuple[str, str, str]:
    """What is live, verified and previous on a board that is whole and confirmed."""
    assert board.confirmed
    return board.word, board.staged("verified"), board.staged("previous")


def go_on(board: Board, *arguments: str) -> Board:
    """Make a call that has to succeed."""
    done = board.call(*arguments)
    assert done.returncode == 0, done.stderr
    return board


def test_a_switch_that_was_killed(board: Board, tmp_path: Path) -> None:
    board.stage("next")
    for victim in killed(board, tmp_path, "switch"):
        back, code = then(victim, "rollback", "--unverified")
        assert (code, *settled(back)) == (0, "new", "new", "old"), victim.where

        again, code = then(victim, "switch")
        assert (code, again.word, again.confirmed) == (0, "next", False), victim.where
        assert settled(go_on(again, "confirm")) == ("next", "next", "new"), victim.where

        hasty, code = then(victim, "confirm")
        if code == 0:
            assert settled(hasty)[:2] in (("new", "new"), ("next", "next")), victim.where
        else:
            assert settled(go_on(hasty, "rollback"))[:2] == ("new", "new"), victim.where


def test_a_way_back_that_was_killed(board: Board, tmp_path: Path) -> None:
    board.stage("next")
    go_on(board, "switch")
    for victim in killed(board, tmp_path, "rollback", "--unverified"):
        back, code = then(victim, "rollback", "--unverified")
        assert (code, *settled(back)) == (0, "new", "new", "old"), victim.where

        again, code = then(victim, "switch")
        if code == 0:
            assert (again.word, again.confirmed) == ("next", False), victim.where
        else:
            assert settled(again) == ("new", "new", "old"), victim.where

        hasty, code = then(victim, "confirm")
        if code == 0:
            assert settled(hasty)[:2] in (("new", "new"), ("next", "next")), victim.where
        else:
            assert settled(go_on(hasty, "rollback"))[:2] == ("new", "new"), victim.where


def test_a_confirmation_that_was_killed(board: Board, tmp_path: Path) -> None:
    board.stage("next")
    go_on(board, "switch")
    for victim in killed(board, tmp_path, "confirm"):
        again, code = then(victim, "confirm")
        assert (code, *settled(again)) == (0, "next", "next", "new"), victim.where

        back, code = then(victim, "rollback")
        assert (code, *settled(back)[:2]) == (0, "new", "new"), victim.where

        other, code = then(victim, "switch")
        if code == 0:
            assert (other.word, other.confirmed) == ("next", False), victim.where
        else:
            assert settled(other) == ("next", "next", "new"), victim.where


def test_a_way_back_from_a_confirmed_deployment_that_was_killed(board: Board, tmp_path: Path) -> None:
    for victim in killed(board, tmp_path, "rollback"):
        again, code = then(victim, "rollback")
        assert (code, *settled(again)) == (0, "old", "old", "new"), victim.where

        careful, code = then(victim, "rollback", "--unverified")
        assert (code, settled(careful)) in (
            (0, ("new", "new", "old")),
            (0, ("old", "old", "new")),
        ), victim.where

        other, code = then(victim, "switch")
        if code == 0:
            assert (other.word, other.confirmed) == ("old", False), victim.where
            assert settled(go_on(other, "confirm")) == ("old", "old", "new"), victim.where
        else:
            assert settled(other)[0] in ("new", "old"), victim.where

        hasty, code = then(victim, "confirm")
        if code == 0:
            assert settled(hasty)[:2] in (("new", "new"), ("old", "old")), victim.where
        else:
            assert settled(go_on(hasty, "rollback")) == ("old", "old", "new"), victim.where


def test_a_staging_that_was_killed(board: Board, tmp_path: Path) -> None:
    board.stage("other")
    etc = board.folder / "given"
    (etc / "trusted").mkdir(parents=True)
    (etc / "config.toml").write_text("next\n")
    (etc / "trusted/next.pem").write_text("next")
    for victim in killed(board, tmp_path, "stage", f"--release={RELEASE}", f"--etc={etc}"):
        switched, code = then(victim, "switch")
        if code == 0:
            assert switched.word in ("other", "next"), victim.where
        else:
            assert settled(switched) == ("new", "new", "old"), victim.where


def test_what_is_live_is_told_and_whether_it_is_confirmed(board: Board) -> None:
    assert board.call("list").stdout == f"{RELEASE}  live verified previous\nthe live deployment is confirmed\n"
    board.stage("next")
    go_on(board, "switch")
    assert board.call("list").stdout.endswith("the live deployment is not confirmed\n")


def test_a_dry_run_of_a_rollback_tells_and_changes_nothing(board: Board) -> None:
    before = board.content()
    assert board.call("rollback", "--dry-run").stdout == f"would go back to {RELEASE}\n"
    assert "unchanged" in board.call("rollback", "--dry-run", "--unverified").stdout
    assert board.content() == before


@pytest.mark.parametrize("command", ["list", "switch", "confirm"])
def test_an_argument_that_means_nothing_is_refused(board: Board, command: str) -> None:
    before = board.content()
    done = board.call(command, "--json")
    assert (done.returncode, done.stderr) == (1, f"har-agent-release: {command} takes no '--json'\n")
    assert board.content() == before


def test_an_archive_is_hashed_where_nobody_else_can_change_it(board: Board, tmp_path: Path) -> None:
    """Who may write to the archive changes it as soon as it was hashed; what is unpacked is what was hashed."""
    package = tmp_path / "python"
    (package / "bin").mkdir(parents=True)
    (package / "bin/python3").symlink_to("/usr/bin/python3")
    (package / "good").touch()
    archive = tmp_path / "python.tar"
    subprocess.run(["tar", "-cf", archive, "-C", tmp_path, "python"], check=True)
    digest = subprocess.run(["sha256sum", archive], check=True, capture_output=True, text=True).stdout.split()[0]
    other = tmp_path / "other.tar"
    (package / "good").rename(package / "bad")
    subprocess.run(["tar", "-cf", other, "-C", tmp_path, "python"], check=True)
    tools = tmp_path / "tools"
    shutil.copytree(board.tools, tools)
    (tools / "sha256sum").write_text(f'#!/bin/sh\n/usr/bin/sha256sum "$@"\ncp {other} {archive}\n')
    (tools / "sha256sum").chmod(0o755)
    board.tools = tools

    done = board.call("python", str(archive), digest)

    folder = board.folder / "opt/python" / digest[:8]
    assert (done.returncode, done.stdout) == (0, f"changed\n{folder}/bin/python3\n"), done.stderr
    assert archive.read_bytes() == other.read_bytes()
    assert {path.name for path in folder.iterdir()} == {"bin", "good"}
    assert [path.name for path in (board.folder / "opt").glob(".unpacked*")] == []

    refused = board.call("python", str(archive), digest, "--remove")
    assert (refused.returncode, archive.exists()) == (1, False)
    assert "is not what was released" in refused.stderr
