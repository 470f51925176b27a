"""Model bundles, slots and trusted keys: what `har-agent models` does, and the slots of a running agent."""

import fcntl
import os
import signal
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.adapters.bundle import (
    MANIFEST,
    SIGNATURE,
    builtin_models,
    check_files,
    find_bundle,
    read_files,
    read_golden,
)
from agent.adapters.clock import SystemClock
from agent.adapters.owner import as_owner_of
from agent.adapters.signature import SYSTEM_TRUST, TrustStore
from agent.adapters.slot_store import FolderSlotStore
from agent.app.compose import open_model, open_parts, state_dir
from agent.config import Config
from agent.core.manifest import NOVELTY, Bundle
from agent.core.slots import SLOTS
from agent.errors import InputError, ModelContractError, SourceUnavailable, UsageError
from agent.ports import Clock
from agent.runtime.slots import Incoming, ModelSlots, Opened

if TYPE_CHECKING:
    from agent.adapters.onnx_model import OrtModel

_PATIENCE_S = 10.0
"""How long a command waits for another one, or for the agent, to have changed the slots."""

_COLUMNS = (
    "model", "where", "state", "version", "classes", "code_bytes", "onnx_bytes", "novelty", "look_back_s", "created",
    "signed_by",
)  # fmt: skip


class BundleLoader:
    """`runtime.slots.Loader` on files and ONNX Runtime."""

    def __init__(self, trust: TrustStore) -> None:
        self._trust = trust

    def open(self, name: str) -> Opened:
        """See `Loader.open`."""
        model = open_model(name)
        return Opened(model, model.bundle.manifest)

    def inspect(self, source: str | bytes, *, allow_unsigned: bool) -> Incoming:
        """See `Loader.inspect`. An unsigned bundle is refused before anything but its names and sizes was looked at."""
        files = read_files(find_bundle(source) if isinstance(source, str) else source)
        signed_by, unsigned = _signer(files, self._trust)
        if signed_by is None and not allow_unsigned:
            raise ModelContractError(
                f"the bundle is refused: {unsigned}. Trust the key of who made it with `har-agent models trust`, or "
                "install it with --allow-unsigned if you know where it comes from"
            )
        model = _prove(check_files(files))
        return Incoming(files, Opened(model, model.bundle.manifest), signed_by)


def trust_store(config: Config) -> TrustStore:
    """Return the keys that this board trusts."""
    return TrustStore([state_dir(config) / "trusted", SYSTEM_TRUST])


def build_slots(config: Config, clock: Clock, patience_s: float = 0.0) -> ModelSlots:
    """Return the model slots of this board's state directory.

    `patience_s`: how long they may wait for another process that changes them.
    """
    state = state_dir(config)
    store = FolderSlotStore(state, patience_s, partial(as_owner_of, state))
    return ModelSlots(store, BundleLoader(trust_store(config)), clock, config.model)


def listed(config: Config) -> list[dict[str, Any]]:
    """Describe the bundles that ship with the agent and those in the slots, a row each."""
    state, damage = FolderSlotStore(state_dir(config)).load()
    store = FolderSlotStore(state_dir(config))
    trust = trust_store(config)
    roles = {state.active: "active", state.candidate: "candidate", state.previous: "previous"}
    configured = "configured" if state.active else "configured, active"
    rows = [
        _row("shipped", folder, configured if config.model.bundle in (folder.name, str(folder)) else "", trust)
        for folder in sorted(p for p in builtin_models().iterdir() if (p / MANIFEST).is_file())
    ]
    if not any(row["state"] for row in rows):
        rows.append(_row(config.model.bundle, Path(config.model.bundle), configured, trust))
    for slot in SLOTS:
        if state.models[slot] is not None:
            role = roles.get(slot, "")
            role = "active, on trial" if role == "active" and not state.confirmed else role
            rows.append(_row(f"slot {slot}", Path(store.folder(slot)), role, trust))
    if damage:
        rows.append(dict.fromkeys(_COLUMNS) | {"where": "slots", "state": f"damaged: {damage}"})
    return rows


def verify(name: str, config: Config) -> dict[str, Any]:
    """Check a bundle in every way that loading does, its golden vectors included, and describe it.

    Raises:
        ModelContractError: it breaks its contract.
    """
    files = read_files(find_bundle(name))
    signed_by, unsigned = _signer(files, trust_store(config))
    bundle = check_files(files)
    segment = bundle.manifest.segment
    if segment:
        open_parts(bundle)
    else:
        _prove(bundle)
    facts = {
        "model": bundle.id,
        "digest": bundle.digest,
        "golden": "ok",
        "novelty": _novelty(bundle),
        "look_back_s": bundle.manifest.look_back_s or None,
        "signed_by": signed_by,
    }
    if segment:
        facts["segment"] = f"{segment.of}, {segment.at} to {segment.until or 'the end'}"
    return facts if signed_by else {**facts, "unsigned": unsigned}


def install(
    source: str, config: Config, *, allow_unsigned: bool = False, allow_downgrade: bool = False
) -> dict[str, Any]:
    """Install a bundle into the free slot and tell a running agent.

    Raises:
        ModelContractError: it is refused.
        OutputError: the state directory cannot be written.
    """
    slots = build_slots(config, SystemClock(), _PATIENCE_S)
    done = slots.install(source, allow_unsigned=allow_unsigned or None, allow_downgrade=allow_downgrade)
    return {**done._asdict(), "agent": tell_agent(config) if done.changed else "nothing to tell"}


def rollback(config: Config, reason: str) -> dict[str, Any]:
    """Give up what is active and tell a running agent.

    Raises:
        UsageError: the configured bundle is in service.
        OutputError: the state directory cannot be written.
    """
    slots = build_slots(config, SystemClock(), _PATIENCE_S)
    given_up = slots.rollback(reason)
    state, _ = FolderSlotStore(state_dir(config)).load()
    now = state.models[state.active] if state.active else config.model.bundle
    return {"rolled_back": given_up, "active": now, "agent": tell_agent(config)}


def trusted(config: Config) -> list[dict[str, Any]]:
    """Describe the trusted keys, a row each."""
    return [
        {"fingerprint": key.fingerprint, "path": str(key.path), "problem": key.problem}
        for key in trust_store(config).entries()
    ]


def trust(path: str, config: Config) -> str:
    """Trust the public key in a PEM file; return its fingerprint.

    Raises:
        SourceUnavailable: the file cannot be read.
        UsageError: it holds no Ed25519 public key.
        OutputError: the state directory cannot be written.
    """
    try:
        with Path(path).open("rb") as f:
            pem = f.read(1 << 16)
    except OSError as e:
        raise SourceUnavailable(f"{path} cannot be read: {e.strerror or e}") from e
    try:
        with as_owner_of(state_dir(config)):
            return trust_store(config).add(pem)
    except UsageError as e:
        raise InputError(f"{path}: {e}") from e


def distrust(fingerprint: str, config: Config) -> str:
    """Trust a key no longer; return its whole fingerprint. See `TrustStore.remove`."""
    with as_owner_of(state_dir(config)):
        return trust_store(config).remove(fingerprint)


def tell_agent(config: Config) -> str:
    """Let a running agent look at its slots again, with SIGHUP; return what came of it, for people.

    An agent holds a flock on `lock` in the state directory, and has written its process id there.
    """
    by_hand = "run `systemctl reload har-agent`, or send it SIGHUP"
    try:
        with (state_dir(config) / "lock").open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                pid, owner = int(lock.read(32)), os.fstat(lock.fileno()).st_uid
            else:
                return "no agent is running here"
        # Who may write there must not choose whom root sends a signal to.
        if pid <= 1 or Path(f"/proc/{pid}").stat().st_uid != owner:
            return f"the agent could not be told (process {pid} is none of user {owner}): {by_hand}"
        os.kill(pid, signal.SIGHUP)
    except FileNotFoundError:
        return "no agent is running here"
    except (OSError, ValueError) as e:
        return f"the agent could not be told ({getattr(e, 'strerror', None) or e}): {by_hand}"
    return f"the agent (process {pid}) was told"


def _prove(bundle: Bundle) -> "OrtModel":
    """Run a bundle's golden vectors on this board."""
    # Only here: to list bundles or to trust a key, nobody needs the runtime of models.
    from agent.adapters.onnx_model import OrtModel

    model = OrtModel(bundle)
    model.verify(read_golden(bundle))
    if bundle.manifest.exits:
        open_parts(bundle)
    return model


def _row(where: str, source: Path, role: str, trust: TrustStore) -> dict[str, Any]:
    try:
        files = read_files(source)
        bundle = check_files(files)
    except ModelContractError as e:
        return dict.fromkeys(_COLUMNS) | {"where": where, "state": f"{role}, unusable: {e}".lstrip(", ")}
    values = (
        bundle.id,
        where,
        role,
        bundle.manifest.version,
        len(bundle.manifest.labels),
        bundle.manifest.code.bytes,
        sum(f.bytes for n, f in bundle.manifest.files.items() if n.endswith(".onnx")),
        _novelty(bundle),
        bundle.manifest.look_back_s or None,
        bundle.manifest.created,
        _signer(files, trust)[0],
    )
    return dict(zip(_COLUMNS, values, strict=True))


def _novelty(bundle: Bundle) -> str | None:
    """The file that a window's novelty comes from; a part of a network has none of its own."""
    if bundle.manifest.segment:
        return None
    return NOVELTY if NOVELTY in bundle.contents else "decoder.onnx"


def _signer(files: Mapping[str, bytes], trust: TrustStore) -> tuple[str | None, str]:
    """Who signed a bundle; or None, and why it counts as unsigned."""
    if SIGNATURE not in files:
        return None, f"it is not signed, it has no {SIGNATURE}"
    signed_by = trust.signer(files.get(MANIFEST, b""), files[SIGNATURE])
    return signed_by, "no key that is trusted here has signed it, or its manifest was changed since"
