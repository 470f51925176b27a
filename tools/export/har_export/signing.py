"""Keys and signatures of bundles: Ed25519, in the files that `openssl` reads and writes too."""

import base64
import binascii
import os
import re
from pathlib import Path

from nacl.signing import SigningKey

from agent.adapters.bundle import MANIFEST, SIGNATURE, load_bundle
from agent.adapters.signature import fingerprint_of, public_pem
from agent.errors import InputError

_PRIVATE = bytes.fromhex("302e020100300506032b657004220420")
"""What stands before the 32 bytes of an Ed25519 private key in PKCS #8 (RFC 8410), as openssl writes it."""


def keygen(out: Path) -> str:
    """Write a new key pair, `<out>.pem` (mode 0600) and `<out>.pub.pem`; return its fingerprint.

    Raises:
        InputError: there is a key of that name already.
        OSError: the files cannot be written.
    """
    key = SigningKey.generate()
    private, public = out.with_name(out.name + ".pem"), out.with_name(out.name + ".pub.pem")
    pem = b"-----BEGIN PRIVATE KEY-----\n" + base64.encodebytes(_PRIVATE + bytes(key)) + b"-----END PRIVATE KEY-----\n"
    try:
        fd = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as e:
        raise InputError(f"{private} is there already, and is not overwritten") from e
    with open(fd, "wb") as f:  # noqa: PTH123
        f.write(pem)
    public.write_bytes(public_pem(bytes(key.verify_key)))
    return fingerprint_of(bytes(key.verify_key))


def sign(folder: Path, key: Path) -> str:
    """Sign a bundle's folder: write its `manifest.sig`. Return the fingerprint of the key.

    Raises:
        ModelContractError: the bundle breaks its contract; it is not signed.
        InputError: the key is none.
        OSError: the key cannot be read, or the signature not be written.
    """
    signing_key = read_key(key)
    load_bundle(folder)
    signature = signing_key.sign((folder / MANIFEST).read_bytes()).signature
    (folder / SIGNATURE).write_bytes(signature)
    return fingerprint_of(bytes(signing_key.verify_key))


def read_key(path: Path) -> SigningKey:
    """Read a private key in PEM, not encrypted.

    Raises:
        InputError: the file holds no such key.
        OSError: it cannot be read.
    """
    body = re.fullmatch(
        rb"\s*-----BEGIN PRIVATE KEY-----\s([A-Za-z0-9+/=\s]*)-----END PRIVATE KEY-----\s*", path.read_bytes()
    )
    try:
        der = base64.b64decode(b"".join(body[1].split()), validate=True) if body else b""
    except binascii.Error:
        der = b""
    if len(der) != len(_PRIVATE) + 32 or not der.startswith(_PRIVATE):
        raise InputError(
            f"{path} is no Ed25519 private key in PEM without a passphrase: `har-export keygen` writes one"
        )
    return SigningKey(der[len(_PRIVATE) :])
