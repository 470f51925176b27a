"""A disk, a kernel and an initial ramdisk of a Debian arm64 board, made once and kept.

The root is a Debian that its own maintainer scripts configured, under qemu-user, with what a bare board has: systemd,
udev, sshd and a Python without pip. Kernel and modules are unpacked, never installed: what makes a Debian's ramdisk
does not run under qemu-user, so this makes one of its own.
"""

import contextlib
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

SUITES = ("bookworm", "trixie")
STATE_DIR = "/var/lib/har-agent"
STATE_LABEL = "har-state"
HOST = "broker.rig"
"""Name of this machine inside the board, as its certificates have it."""

_TOOLS = {
    "qemu-system-aarch64": "qemu-system-arm",
    "qemu-img": "qemu-utils",
    "qemu-aarch64-static": "qemu-user-static",
    "arch-test": "arch-test",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "modprobe": "kmod",
    "cpio": "cpio",
    "ssh": "openssh-client",
    "openssl": "openssl",
    "mosquitto": "mosquitto",
}
_PACKAGES = ("systemd", "systemd-sysv", "udev", "dbus", "openssh-server", "python3", "iproute2", "ca-certificates")
_KERNEL_PACKAGES = ("linux-image-arm64", "busybox-static")  # the kernel for clouds has no USB
_BOOT_MODULES = ("virtio_blk", "virtio_pci", "virtio_mmio", "ext4")
_LEFT_OUT = ("doc", "man", "info", "locale", "lintian")
_DISK_MB = 2048
_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_SBIN = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])

_INIT = """\
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
for module in /modules/*; do /bin/busybox insmod $module || echo "insmod $module failed"; done
n=0
while [ ! -b /dev/vda ] && [ $n -lt 600 ]; do /bin/busybox sleep 0.1; n=$((n + 1)); done
/bin/busybox mount -t ext4 -o rw /dev/vda /root && /bin/busybox mount --move /dev /root/dev
/bin/busybox umount /proc /sys
exec /bin/busybox switch_root /root /lib/systemd/systemd
"""

# qemu's user network has this machine's loopback at 10.0.2.2.
_FILES = {
    "etc/hostname": "board\n",
    "etc/hosts": f"127.0.0.1 localhost board\n10.0.2.2 {HOST}\n",
    "etc/fstab": f"LABEL={STATE_LABEL} {STATE_DIR} ext4 noatime 0 2\n",
    "etc/systemd/network/wired.network": "[Match]\nName=e*\n\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\n",
}
# A board that is measured does nothing of its own accord.
_LINKS = {
    "multi-user.target.wants/systemd-networkd.service": "/lib/systemd/system/systemd-networkd.service",
    "apt-daily.timer": "/dev/null",
    "apt-daily-upgrade.timer": "/dev/null",
    "getty@tty1.service": "/dev/null",
}


@dataclass(frozen=True)
class Image:
    """What a board boots from. The disk is a base that is never written to; `key` opens its root by ssh."""

    kernel: Path
    initrd: Path
    disk: Path
    key: Path


def say(text: str) -> None:
    """Tell whoever waits what goes on."""
    sys.stderr.write(f"board_vm: {text}\n")
    sys.stderr.flush()


def run(*command: object, env: Mapping[str, str] | None = None, timeout_s: float = 600, check: bool = True) -> str:
    """Run a command of this machine, and return what it printed.

    Raises RuntimeError with what it said if it fails, unless `check` is false.
    """
    name, *rest = map(str, command)
    found = shutil.which(name, path=_SBIN)
    if found is None:
        raise RuntimeError(f"there is no {name}")
    ran = subprocess.run(
        [found, *rest],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PATH": _SBIN, **(env or {})},
    )
    if check and ran.returncode:
        said = f"{ran.stdout[-4000:]}\n{ran.stderr[-4000:]}".strip()
        raise RuntimeError(f"{' '.join([name, *rest])}: exit {ran.returncode}\n{said}")
    return ran.stdout


def install_tools() -> None:
    """Install from Debian what is missing; raises SystemExit if it may not."""
    missing = sorted({package for tool, package in _TOOLS.items() if shutil.which(tool, path=_SBIN) is None})
    if not missing:
        return
    if os.geteuid() != 0:
        raise SystemExit(f"needs {' '.join(missing)}: run 'sudo apt-get install {' '.join(missing)}', then this again")
    say(f"installing {' '.join(missing)} with apt-get")
    run("apt-get", "update", "-qq")
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing, env=quiet)


def image(suite: str) -> Image:
    """Return the image of a Debian suite; makes it the first time, which takes some minutes and must be root."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "har-edge-agent"
    cache = Path(os.environ.get("RIG_CACHE") or default) / f"vm-{suite}"
    made = Image(cache / "vmlinuz", cache / "initrd.gz", cache / "disk.raw", cache / "key")
    stamp = cache / "recipe"
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == recipe:
        return made
    if os.geteuid() != 0:
        raise SystemExit("the board's image must be made by root")
    cache.mkdir(parents=True, exist_ok=True)
    # The slow part, which few changes of the recipe concern.
    packed = cache / f"root-{hashlib.sha256(repr((_PACKAGES, _LEFT_OUT)).encode()).hexdigest()[:16]}.tar"
    with tempfile.TemporaryDirectory(dir=cache) as name:
        root, unpacked, fresh = (Path(name) / part for part in ("root", "kernel", "root.tar"))
        if not packed.exists():
            say(f"making a Debian {suite} for arm64; some minutes, once")
            with _foreign_programs_run():
                _debian(suite, fresh, "--variant=minbase", _PACKAGES)
            fresh.replace(packed)
        say("making the board's kernel, ramdisk and disk")
        for old in (stamp, made.key):
            old.unlink(missing_ok=True)
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", made.key)
        _debian(suite, unpacked, "--variant=extract", _KERNEL_PACKAGES)
        (modules,) = (unpacked / "lib/modules").iterdir()
        run("depmod", "-b", unpacked, modules.name)
        shutil.copy(unpacked / f"boot/vmlinuz-{modules.name}", made.kernel)
        _make_initrd(unpacked, modules.name, Path(name) / "initrd", made.initrd)
        root.mkdir()
        run("tar", "-xpf", packed, "-C", root, "--numeric-owner", "--exclude=./dev/*")
        shutil.copytree(modules, root / "usr/lib/modules" / modules.name, symlinks=True)
        _settle(root, made.key.with_suffix(".pub").read_text())
        made.disk.unlink(missing_ok=True)
        run("mke2fs", "-q", "-t", "ext4", "-L", "root", "-d", root, made.disk, f"{_DISK_MB}M")
    stamp.write_text(recipe)
    return made


def _debian(suite: str, target: Path, variant: str, packages: tuple[str, ...]) -> None:
    """Write a Debian to a folder, or to a tar file if `target` ends with .tar."""
    options = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _LEFT_OUT]
    run("mmdebstrap", "--quiet", variant, "--architectures=arm64", "--dpkgopt=force-unsafe-io", *options,
        f"--include={','.join(packages)}", suite, target)  # fmt: skip


def _settle(root: Path, public_key: str) -> None:
    """Give the unpacked root its name, its network, its mounts and who may log in."""
    for path, text in _FILES.items():
        (root / path).write_text(text)
    for path, target in _LINKS.items():
        link = root / "etc/systemd/system" / path
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    (root / STATE_DIR[1:]).mkdir(parents=True, exist_ok=True)
    ssh = root / "root/.ssh"
    ssh.mkdir(mode=0o700, exist_ok=True)
    (ssh / "authorized_keys").write_text(public_key)


def _make_initrd(unpacked: Path, version: str, work: Path, out: Path) -> None:
    """Write a ramdisk that loads what the root's disk needs, mounts it and goes there."""
    for name in ("bin", "proc", "sys", "dev", "root", "modules"):
        (work / name).mkdir(parents=True)
    shutil.copy(unpacked / "bin/busybox", work / "bin/busybox")
    ordered: dict[str, None] = {}
    for module in _BOOT_MODULES:
        shown = run("modprobe", "-d", unpacked.absolute(), "-S", version, "--show-depends", module)
        ordered |= {line.split()[1]: None for line in shown.splitlines() if line.startswith("insmod")}
    for number, path in enumerate(ordered):
        shutil.copy(path, work / "modules" / f"{number:02}-{Path(path).name}")
    (work / "init").write_text(_INIT)
    (work / "init").chmod(0o755)
    names = "\n".join(str(path.relative_to(work)) for path in sorted(work.rglob("*")))
    packed = subprocess.run(
        ["cpio", "--quiet", "-o", "-H", "newc"], input=names.encode(), cwd=work, stdout=subprocess.PIPE, check=True
    )
    out.write_bytes(gzip.compress(packed.stdout, 1))


@contextlib.contextmanager
def _foreign_programs_run() -> Iterator[None]:
    """Let this machine's kernel start arm64 programs under qemu-user; leaves it as it was."""
    rule = _BINFMT / "qemu-aarch64"
    mounted = (_BINFMT / "register").exists()
    if not mounted:
        run("mount", "-t", "binfmt_misc", "binfmt_misc", _BINFMT)
    known = rule.exists()
    if not known:
        (_BINFMT / "register").write_text(Path("/usr/lib/binfmt.d/qemu-aarch64.conf").read_text().strip())
    try:
        yield
    finally:
        if not known:
            rule.write_text("-1")
        if not mounted:
            run("umount", _BINFMT)
