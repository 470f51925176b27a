"""What is signed here is trusted there, and keys are those of openssl."""

import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agent.adapters.bundle import load_bundle
from agent.adapters.signature import TrustStore
from agent.errors import InputError, ModelContractError
from har_export import bundle as bundles
from har_export import signing
from har_export.cli import app

SHIPPED = Path(__file__).resolve().parents[3] / "models" / "har-base"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED, tmp_path / "har-mine"))


def openssl(*arguments: str) -> bytes:
    return subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=30).stdout


def test_a_signed_bundle_is_trusted_by_a_board_that_has_the_key(folder: Path, tmp_path: Path) -> None:
    fingerprint = signing.keygen(tmp_path / "release")
    trust = TrustStore([tmp_path / "trusted"])

    signed_by = signing.sign(folder, tmp_path / "release.pem")
    added = trust.add((tmp_path / "release.pub.pem").read_bytes())

    message, signature = (folder / "manifest.json").read_bytes(), (folder / "manifest.sig").read_bytes()
    assert fingerprint == signed_by == added == trust.signer(message, signature)
    assert trust.signer(message + b" ", signature) is None
    assert stat.S_IMODE((tmp_path / "release.pem").stat().st_mode) == 0o600


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    signing.keygen(tmp_path / "release")
    before = (tmp_path / "release.pem").read_bytes()

    with pytest.raises(InputError, match="not overwritten"):
        signing.keygen(tmp_path / "release")

    assert (tmp_path / "release.pem").read_bytes() == before


def test_keys_and_signatures_are_those_of_openssl(folder: Path, tmp_path: Path) -> None:
    key, public, other = tmp_path / "o.pem", tmp_path / "o.pub.pem", tmp_path / "other.sig"
    openssl("genpkey", "-algorithm", "ed25519", "-out", str(key))
    openssl("pkey", "-in", str(key), "-pubout", "-out", str(public))

    signing.sign(folder, key)

    manifest, signature = str(folder / "manifest.json"), str(folder / "manifest.sig")
    openssl("pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", str(public), "-in", manifest, "-sigfile", signature)
    openssl("pkeyutl", "-sign", "-rawin", "-inkey", str(key), "-in", manifest, "-out", str(other))
    assert other.read_bytes() == (folder / "manifest.sig").read_bytes()
    signing.keygen(tmp_path / "ours")
    text = openssl("pkey", "-in", str(tmp_path / "ours.pem"), "-pubout")
    assert text == (tmp_path / "ours.pub.pem").read_bytes()


def test_what_is_no_key_does_not_sign(folder: Path, tmp_path: Path) -> None:
    signing.keygen(tmp_path / "release")
    encrypted, rsa = tmp_path / "encrypted.pem", tmp_path / "rsa.pem"
    openssl("pkcs8", "-topk8", "-in", str(tmp_path / "release.pem"), "-passout", "pass:x", "-out", str(encrypted))
    openssl("genpkey", "-algorithm", "rsa", "-pkeyopt", "rsa_keygen_bits:2048", "-out", str(rsa))

    for key in (encrypted, rsa, tmp_path / "release.pub.pem", folder / "encoder.onnx"):
        with pytest.raises(InputError, match="no Ed25519 private key"):
            signing.sign(folder, key)

    assert not (folder / "manifest.sig").exists()


def test_a_damaged_bundle_is_not_signed(folder: Path, tmp_path: Path) -> None:
    signing.keygen(tmp_path / "release")
    (folder / "encoder.onnx").write_bytes(b"")

    with pytest.raises(ModelContractError, match=r"encoder\.onnx"):
        signing.sign(folder, tmp_path / "release.pem")

    assert not (folder / "manifest.sig").exists()


def test_a_bundle_that_is_written_anew_is_not_signed(folder: Path, tmp_path: Path) -> None:
    signing.keygen(tmp_path / "release")
    signing.sign(folder, tmp_path / "release.pem")

    bundles.write(load_bundle(SHIPPED), folder)

    assert not (folder / "manifest.sig").exists()


def test_the_command_line_makes_signs_and_packs(folder: Path, tmp_path: Path) -> None:
    key, single = tmp_path / "release", tmp_path / "mine.harmodel"
    calls = [
        ["keygen", "--out", str(key)],
        ["sign", str(folder), "--key", f"{key}.pem"],
        ["pack", str(folder), "--out", str(single)],
    ]

    results = [CliRunner().invoke(app, call) for call in calls]

    assert [r.exit_code for r in results] == [0, 0, 0]
    assert results[0].stdout == results[1].stdout
    assert load_bundle(single).contents == load_bundle(folder).contents
    assert b"manifest.sig" in single.read_bytes()
