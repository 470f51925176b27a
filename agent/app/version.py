"""Version: what is installed here, so that two boards that should be alike can be compared."""

import json
import sys
from pathlib import Path
from typing import Any

import agent

DISTRIBUTION = "har-edge-agent"
RELEASE_FILE = "release.json"
"""What `make release` puts into a release, and an installation into the folder of its virtual environment."""

_CAP = 1 << 16
_LONGEST_ID = 64


def release(prefix: Path | None = None) -> dict[str, Any] | None:
    """Return what `release.json` says; None where this is no release, such as in a checkout.

    `prefix`: of the installation, that of this Python if None.
    """
    try:
        with (Path(sys.prefix) if prefix is None else prefix).joinpath(RELEASE_FILE).open("rb") as file:
            said = json.loads(file.read(_CAP))
    except (OSError, ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) and release_id(said) else None


def release_id(said: dict[str, Any] | None) -> str | None:
    """Return the id of a release, such as `0.2.0+1a2b3c4d`; None where there is none."""
    name = (said or {}).get("release")
    return name if isinstance(name, str) and name.isprintable() and 0 < len(name) <= _LONGEST_ID else None


def facts() -> dict[str, Any]:
    """Return version, release, Python, dependencies and shipped bundles, with plain values.

    Bundles are held against their manifests, and one that differs says so under `problem`.
    """
    import platform

    found = dependencies()
    return {
        DISTRIBUTION: agent.__version__,
        "version": agent.__version__,
        "release": release(),
        "python": platform.python_version(),
        "onnxruntime": found.get("onnxruntime"),
        "machine": platform.machine(),
        "executable": sys.executable,
        "prefix": sys.prefix,
        "dependencies": found,
        "bundles": _bundles(),
    }


def dependencies(distribution: str = DISTRIBUTION) -> dict[str, str]:
    """Return the versions of what a distribution and its extras need, directly or not, as far as it is installed."""
    from importlib import metadata

    found: dict[str, str] = {}
    wanted = _required(distribution, extras=True)
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        wanted |= _required(name)
    return dict(sorted(found.items()))


def _required(distribution: str, *, extras: bool = False) -> set[str]:
    """Names, in lower case with hyphens, of what a distribution needs, with or without its extras."""
    import re
    from importlib import metadata

    try:
        lines = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return set()
    names = (re.match(r"[A-Za-z0-9._-]+", line) for line in lines if extras or "extra ==" not in line)
    return {re.sub(r"[-_.]+", "-", name[0]).lower() for name in names if name}


def _bundles() -> list[dict[str, Any]]:
    # Only here, as other imports of this module: the daemon starts with the release alone.
    from agent.adapters.bundle import MANIFEST, builtin_models, load_bundle
    from agent.errors import ModelContractError

    rows: list[dict[str, Any]] = []
    for folder in sorted(path.parent for path in builtin_models().glob(f"*/{MANIFEST}")):
        try:
            bundle = load_bundle(folder)
        except ModelContractError as e:
            rows.append({"name": folder.name, "model": None, "version": None, "digest": None, "problem": str(e)})
            continue
        model = {"name": folder.name, "model": bundle.id, "version": bundle.manifest.version}
        rows.append({**model, "digest": bundle.digest, "problem": None})
    return rows
