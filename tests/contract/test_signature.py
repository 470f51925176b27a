"""Whose bundles are taken: Ed25519 over the manifest's bytes, by a key that is in the trust store."""

import os
import subprocess

import pytest
from nacl.signing import SigningKey

from agent.adapters.signature import TrustStore, fingerprint_of, public_key, public_pem
from agent.errors import ConfigError, UsageError

MESSAGE = b'{"schema": 1}'


@pytest.fixture
def key():
    return SigningKey(b"k" * 32)


@pytest.fixture
def trust(tmp_path):
    return TrustStore([tmp_path / "state", tmp_path / "etc"])


def pem_of(key):
    return public_pem(bytes(key.verify_key))


def test_a_signature_of_a_trusted_key_names_the_key(trust, key):
    fingerprint = trust.add(pem_of(key))

    assert trust.signer(MESSAGE, key.sign(MESSAGE).signature) == fingerprint


def test_the_vector_of_rfc_8032_holds(trust):
    public = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
    signature = bytes.fromhex(
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    fingerprint = trust.add(public_pem(public))

    assert trust.signer(b"\x72", signature) == fingerprint


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (MESSAGE + b" ", lambda s: s),
        (MESSAGE, lambda s: s[:-1]),
        (MESSAGE, lambda s: s + b"\n"),
        (MESSAGE, lambda s: bytes([s[0] ^ 1]) + s[1:]),
        (MESSAGE, lambda s: b""),
        (MESSAGE, lambda s: bytes(64)),
    ],
)
def test_anything_else_is_no_signature(trust, key, message, change):
    trust.add(pem_of(key))

    assert trust.signer(message, change(key.sign(MESSAGE).signature)) is None


def test_a_key_that_is_not_trusted_or_no_longer_signs_for_nobody(trust, key):
    signature = key.sign(MESSAGE).signature
    trust.add(pem_of(SigningKey(b"o" * 32)))

    assert trust.signer(MESSAGE, signature) is None

    fingerprint = trust.add(pem_of(key))
    assert trust.remove(fingerprint[:8]) == fingerprint
    assert trust.signer(MESSAGE, signature) is None


def test_a_key_of_low_order_signs_for_nobody(trust):
    """The identity point: under it, one signature would fit every message."""
    trust.add(public_pem(b"\x01" + bytes(31)))

    assert trust.signer(MESSAGE, b"\x01" + bytes(63)) is None


def test_keys_of_the_system_are_trusted_and_removed_by_hand(trust, key, tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "release.pem").write_bytes(pem_of(key))
    fingerprint = fingerprint_of(bytes(key.verify_key))

    assert trust.signer(MESSAGE, key.sign(MESSAGE).signature) == fingerprint
    with pytest.raises(ConfigError, match=r"release\.pem: remove this file by hand"):
        trust.remove(fingerprint)


def test_a_broken_key_file_is_told_and_hides_no_other(trust, key, tmp_path):
    fingerprint = trust.add(pem_of(key))
    (tmp_path / "state" / "0.pem").write_text("nonsense")

    assert trust.signer(MESSAGE, key.sign(MESSAGE).signature) == fingerprint
    assert [(k.fingerprint, k.problem is None) for k in trust.entries()] == [("0", False), (fingerprint, True)]


def test_the_agent_may_read_what_root_trusts_under_any_umask(trust, key, tmp_path):
    before = os.umask(0o077)
    try:
        fingerprint = trust.add(pem_of(key))
    finally:
        os.umask(before)

    modes = [(tmp_path / "state" / name).stat().st_mode & 0o777 for name in (".", f"{fingerprint}.pem")]
    assert modes == [0o755, 0o644]


@pytest.mark.parametrize("wanted", ["", "ab", "00000000", "../x", "0" * 32])
def test_only_one_key_that_is_meant_is_removed(trust, key, wanted):
    trust.add(pem_of(key))

    with pytest.raises(UsageError, match="fingerprint"):
        trust.remove(wanted)

    assert len(trust.entries()) == 1


def test_keys_are_those_of_openssl(tmp_path):
    private, public = tmp_path / "k.pem", tmp_path / "k.pub.pem"
    run = lambda *a: subprocess.run(["openssl", *a], check=True, capture_output=True, timeout=30).stdout  # noqa: E731
    run("genpkey", "-algorithm", "ed25519", "-out", str(private))
    run("pkey", "-in", str(private), "-pubout", "-out", str(public))
    run("pkey", "-in", str(private), "-pubout", "-outform", "DER", "-out", str(tmp_path / "der"))

    raw = public_key(public.read_bytes())

    assert public_pem(raw) == public.read_bytes()
    digest = run("dgst", "-sha256", str(tmp_path / "der")).decode().split()[-1]
    assert digest.startswith(fingerprint_of(raw))
    with pytest.raises(UsageError, match="private key"):
        public_key(private.read_bytes())


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"nonsense",
        b"-----BEGIN PUBLIC KEY-----\n!!!\n-----END PUBLIC KEY-----\n",
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        public_pem(b"x" * 31),
        public_pem(b"x" * 33),
        public_pem(b"x" * 32) * 2,
    ],
)
def test_what_is_no_key_is_not_trusted(trust, pem):
    with pytest.raises(UsageError, match="no Ed25519 public key"):
        trust.add(pem)

    assert trust.entries() == []
