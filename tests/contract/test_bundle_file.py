"""A bundle as a single file: what may be in it, and everything that may not, refused before anything is written."""

import gzip
import io
import json
import shutil
import subprocess
import tarfile

import pytest

from agent.adapters.bundle import MANIFEST, TOTAL_CAP, find_bundle, load_bundle, pack, read_files
from agent.core import tar
from agent.core.manifest import sha256
from agent.errors import ModelContractError


@pytest.fixture
def files(har_base):
    return read_files(har_base)


def archive(members, **defaults):
    """What Python's tarfile makes of (name, data, changes to the header)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **{"format": tarfile.USTAR_FORMAT, **defaults}) as t:
        for name, data, changes in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in changes.items():
                setattr(info, key, value)
            t.addfile(info, io.BytesIO(data))
    return out.getvalue()


def test_a_folder_and_its_single_file_are_the_same_bundle(har_base, tmp_path):
    single = tmp_path / "har.harmodel"
    single.write_bytes(pack(har_base))
    squeezed = tmp_path / "squeezed.harmodel"
    squeezed.write_bytes(gzip.compress(pack(har_base)))
    wanted = load_bundle(har_base)

    for source in (single, squeezed, single.read_bytes(), squeezed.read_bytes(), find_bundle(str(single))):
        assert load_bundle(source).contents == wanted.contents
        assert load_bundle(source).id == wanted.id


def test_equal_bundles_give_equal_bytes_wherever_they_lie(har_base, tmp_path):
    copy = shutil.copytree(har_base, tmp_path / "copy", copy_function=shutil.copy)
    (copy / "notes.txt").write_text("not listed, so not packed")

    assert pack(copy) == pack(har_base)


def test_the_signature_travels_along(har_base, tmp_path):
    copy = shutil.copytree(har_base, tmp_path / "copy")
    (copy / "manifest.sig").write_bytes(b"s" * 64)

    assert read_files(pack(copy))["manifest.sig"] == b"s" * 64
    assert load_bundle(copy).contents == load_bundle(har_base).contents


def test_other_tars_read_it_and_it_reads_theirs(har_base, files, tmp_path):
    single = tmp_path / "har.harmodel"
    single.write_bytes(pack(har_base))
    with tarfile.open(single) as t:
        assert {m.name: t.extractfile(m).read() for m in t} == files
    for fmt in ("gnu", "ustar"):
        made = subprocess.run(
            ["tar", "-c", f"--format={fmt}", "-C", har_base, *files], capture_output=True, check=True, timeout=30
        )
        assert read_files(made.stdout) == files


LINK = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}
REFUSED = [
    ([("../manifest.json", b"x", {})], "not a regular file with a plain name"),
    ([("/manifest.json", b"x", {})], "not a regular file with a plain name"),
    ([("sub/manifest.json", b"x", {})], "not a regular file with a plain name"),
    ([("./manifest.json", b"x", {})], "not a regular file with a plain name"),
    ([(".hidden", b"x", {})], "not a regular file with a plain name"),
    ([("..", b"x", {})], "not a regular file with a plain name"),
    ([("manifest.json\n", b"x", {})], "not a regular file with a plain name"),
    ([("m\u00e4nifest", b"x", {})], "not a regular file with a plain name"),
    ([("manifest.json", b"", LINK)], "not a regular file"),
    ([("manifest.json", b"", {**LINK, "type": tarfile.LNKTYPE})], "not a regular file"),
    ([("manifest.json", b"", {"type": tarfile.DIRTYPE})], "not a regular file"),
    ([("manifest.json", b"", {"type": tarfile.FIFOTYPE})], "not a regular file"),
    ([("manifest.json", b"", {"type": tarfile.CHRTYPE})], "not a regular file"),
    ([("manifest.json", b"", {"type": tarfile.GNUTYPE_SPARSE})], "not a regular file"),
    ([("x" * 120 + "/" + "y" * 20, b"", {})], "not a regular file with a plain name"),
    ([("manifest.json", b"1", {}), ("manifest.json", b"2", {})], "twice"),
    ([(f"f{i}", b"", {}) for i in range(65)], "more than 64 files"),
    ([("CARD.md", b"x", {})], "has no manifest"),
    ([], "has no manifest"),
]


@pytest.mark.parametrize(("members", "says"), REFUSED)
def test_an_archive_of_anything_but_plain_files_is_refused(members, says):
    with pytest.raises(ModelContractError, match=says):
        load_bundle(archive(members))


def test_extended_headers_are_refused(files):
    for extended in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with pytest.raises(ModelContractError, match="not a regular file"):
            load_bundle(archive([("x" * 300, b"", {})], format=extended))


def test_a_file_that_the_manifest_does_not_list_is_refused(files):
    with pytest.raises(ModelContractError, match=r"carries run\.sh, which its manifest does not list"):
        load_bundle(tar.pack({**files, "run.sh": b"#!/bin/sh"}))


def test_a_file_that_is_missing_or_changed_is_refused(files):
    less = {name: data for name, data in files.items() if name != "decoder.onnx"}
    with pytest.raises(ModelContractError, match=r"lacks decoder\.onnx"):
        load_bundle(tar.pack(less))
    with pytest.raises(ModelContractError, match="damaged or was changed"):
        load_bundle(tar.pack({**files, "CARD.md": files["CARD.md"].swapcase()}))


@pytest.mark.parametrize("keep", [0, 100, 512, 600, 5000, -1, -1024])
def test_a_file_that_is_cut_short_is_refused(har_base, keep):
    whole = pack(har_base)
    # The last of the two blocks of zeros may be missing: then nothing is.
    cut = whole[:keep] if keep != -1 else whole[:-1025]

    with pytest.raises(ModelContractError, match=r"cut short|has no manifest"):
        load_bundle(cut)
    with pytest.raises(ModelContractError, match="cut short"):
        load_bundle(gzip.compress(whole)[:-200])


def test_a_bomb_is_not_unpacked():
    bomb = gzip.compress(bytes(8 * TOTAL_CAP))
    assert len(bomb) < TOTAL_CAP // 50

    with pytest.raises(ModelContractError, match="unpacks to more than"):
        load_bundle(bomb)
    with pytest.raises(ModelContractError, match="larger than"):
        load_bundle(bytes(TOTAL_CAP + 1))


def test_a_bundle_whose_files_are_too_much_together_is_refused(har_base, tmp_path):
    folder = shutil.copytree(har_base, tmp_path / "much")
    raw = json.loads((folder / MANIFEST).read_text())
    big = bytes(8 << 20)
    for i in range(5):
        (folder / f"{i}.onnx").write_bytes(big)
        raw["files"][f"{i}.onnx"] = {"sha256": sha256(big), "bytes": len(big)}
    (folder / MANIFEST).write_text(json.dumps(raw))

    with pytest.raises(ModelContractError, match="larger than"):
        load_bundle(folder)


@pytest.mark.parametrize(("name", "size"), [("manifest.json", 1 << 20), ("manifest.sig", 1024)])
def test_a_manifest_or_signature_over_its_cap_is_refused_unread(files, name, size):
    with pytest.raises(ModelContractError, match=f"{name} is larger than {size} bytes"):
        load_bundle(tar.pack({**files, name: b"[" * (size + 1)}))


def test_a_manifest_that_lists_too_many_files_is_refused(har_base, tmp_path):
    folder = shutil.copytree(har_base, tmp_path / "many")
    raw = json.loads((folder / MANIFEST).read_text())
    raw["files"] |= {f"{i}.md": {"sha256": "0" * 64, "bytes": 1} for i in range(100)}
    (folder / MANIFEST).write_text(json.dumps(raw))

    with pytest.raises(ModelContractError, match="more than 64 files"):
        load_bundle(folder)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x1f\x8b", b"\x1f\x8b" + b"x" * 100, b"x" * 2000])
def test_what_is_no_archive_is_refused_with_what_makes_one(data):
    with pytest.raises(ModelContractError, match="har-export pack"):
        load_bundle(data)


def test_a_damaged_header_is_refused(har_base):
    data = bytearray(pack(har_base))
    data[130] ^= 1

    with pytest.raises(ModelContractError, match="checksum"):
        load_bundle(bytes(data))


def test_only_plain_names_are_packed():
    with pytest.raises(tar.TarError, match="plain name"):
        tar.pack({"../x": b""})
