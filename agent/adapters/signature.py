"""Ed25519 signatures of model bundles, and the keys that are trusted.

A signature is the 64 bytes that Ed25519 (RFC 8032) gives for the bytes of `manifest.json`, as
`openssl pkeyutl -sign -rawin` writes it. Keys are PEM files as of `openssl genpkey -algorithm ed25519`. PyNaCl is
imported where a signature is checked, and nowhere else: what runs every day never loads it.
"""

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from agent.errors import ConfigError, OutputError, UsageError

SIGNATURE_BYTES = 64

SYSTEM_TRUST = Path("/etc/har-agent/trusted")
"""Keys that whoever administers the board trusts; `models trust` writes to the state directory's `trusted` instead."""

_PUBLIC = bytes.fromhex("302a300506032b6570032100")
"""What stands before the 32 bytes of an Ed25519 public key in a SubjectPublicKeyInfo (RFC 8410): always this."""
_KEY_CAP = 10_000


class TrustedKey(NamedTuple):
    """A file in a trust store. `problem`: why it is not used, None for a good key."""

    fingerprint: str
    path: Path
    problem: str | None = None


class TrustStore:
    """Folders of public keys, each in a PEM file; the first is the one that is changed."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders

    def entries(self) -> list[TrustedKey]:
        """Return every key; files that are none are returned with what is wrong with them."""
        return [key for key, _ in self._read()]

    def signer(self, message: bytes, signature: bytes) -> str | None:
        """Return the fingerprint of the trusted key that signed `message`, None if none did."""
        if len(signature) != SIGNATURE_BYTES:
            return None
        from nacl.exceptions import BadSignatureError
        from nacl.signing import VerifyKey

        for key, raw in self._read():
            if raw is None:
                continue
            try:
                VerifyKey(raw).verify(message, signature)
            except BadSignatureError:
                continue
            return key.fingerprint
        return None

    def add(self, pem: bytes) -> str:
        """Trust a public key; return its fingerprint.

        Raises:
            UsageError: it is no Ed25519 public key.
            OutputError: it cannot be written.
        """
        fingerprint = fingerprint_of(public_key(pem))
        folder = self._folders[0]
        path = folder / f"{fingerprint}.pem"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            fresh = folder / f".{fingerprint}.new"
            with fresh.open("wb") as f:
                f.write(pem)
                f.flush()
                os.fsync(f.fileno())
            # Whatever the umask of whoever trusts it: the agent must be able to read it.
            folder.chmod(0o755)
            fresh.chmod(0o644)
            fresh.rename(path)
        except OSError as e:
            raise OutputError(f"{path} cannot be written: {e.strerror or e}") from e
        return fingerprint

    def remove(self, fingerprint: str) -> str:
        """Trust a key no longer; return its whole fingerprint.

        Raises:
            UsageError: no key, or more than one, begins like this.
            ConfigError: it is not in the folder that is changed here.
            OutputError: it cannot be removed.
        """
        wanted = fingerprint.lower()
        found = [k for k in self.entries() if len(wanted) >= 8 and k.fingerprint.startswith(wanted)]
        if len({k.fingerprint for k in found}) != 1:
            raise UsageError(
                f"{fingerprint!r} is not the beginning (8 digits or more) of one trusted key's fingerprint"
            )
        elsewhere = [str(k.path) for k in found if k.path.parent != self._folders[0]]
        if elsewhere:
            raise ConfigError(f"{', '.join(elsewhere)}: remove this file by hand, it is not in {self._folders[0]}")
        try:
            for key in found:
                key.path.unlink()
        except OSError as e:
            raise OutputError(f"{key.path} cannot be removed: {e.strerror or e}") from e
        return found[0].fingerprint

    def _read(self) -> list[tuple[TrustedKey, bytes | None]]:
        found: list[tuple[TrustedKey, bytes | None]] = []
        for folder in self._folders:
            try:
                names = sorted(n for n in os.listdir(folder) if n.endswith(".pem"))  # noqa: PTH208
            except OSError:
                continue
            for path in (folder / name for name in names):
                try:
                    with path.open("rb") as f:
                        raw = public_key(f.read(_KEY_CAP))
                except (OSError, UsageError) as e:
                    found.append((TrustedKey(path.stem, path, getattr(e, "strerror", None) or str(e)), None))
                    continue
                found.append((TrustedKey(fingerprint_of(raw), path), raw))
        return found


def public_key(pem: bytes) -> bytes:
    """Return the 32 bytes of the Ed25519 public key in a PEM file.

    Raises:
        UsageError: it holds no such key, or a private one.
    """
    if b"PRIVATE KEY" in pem:
        raise UsageError("it is a private key, which never leaves whoever signs: give the public one, .pub.pem")
    body = re.fullmatch(rb"\s*-----BEGIN PUBLIC KEY-----\s([A-Za-z0-9+/=\s]*)-----END PUBLIC KEY-----\s*", pem)
    try:
        der = base64.b64decode(b"".join(body[1].split()), validate=True) if body else b""
    except binascii.Error:
        der = b""
    if len(der) != len(_PUBLIC) + 32 or not der.startswith(_PUBLIC):
        raise UsageError("it is no Ed25519 public key in PEM: `har-export keygen` or `openssl pkey -pubout` writes one")
    return der[len(_PUBLIC) :]


def fingerprint_of(raw: bytes) -> str:
    """Return the first 32 hex digits of a public key's SHA-256: `openssl pkey -pubin -outform DER | sha256sum`."""
    return hashlib.sha256(_PUBLIC + raw).hexdigest()[:32]


def public_pem(raw: bytes) -> bytes:
    """Return the 32 bytes of a public key as a PEM file."""
    return b"-----BEGIN PUBLIC KEY-----\n" + base64.encodebytes(_PUBLIC + raw) + b"-----END PUBLIC KEY-----\n"
