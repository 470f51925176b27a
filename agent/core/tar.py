"""The plain part of tar, POSIX ustar: regular files with plain names, and nothing else that the format can do.

Reading what a stranger sends with a general tar library means to find and refuse links, devices, sparse files,
extended headers and paths one by one. Here they do not exist: a member that is not a regular file is an error.
"""

import re
from collections.abc import Mapping

BLOCK = 512
MAX_MEMBERS = 64
_NAME = re.compile(rb"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")


class TarError(ValueError):
    """The bytes are no such archive; the text says why."""


def pack(files: Mapping[str, bytes]) -> bytes:
    """Return `files` as an archive: in the order given, without times or owners, so that equal files give equal bytes.

    Raises:
        TarError: a name that `unpack` would refuse.
    """
    out = bytearray()
    for name, data in files.items():
        if not _NAME.fullmatch(name.encode()):
            raise TarError(f"{name!r} cannot be a member: give it a plain name")
        out += _header(name.encode(), len(data)) + data + bytes(-len(data) % BLOCK)
    return bytes(out + bytes(2 * BLOCK))


def unpack(archive: bytes) -> dict[str, bytes]:
    """Return the files of an archive by name, in its order.

    Raises:
        TarError: it is cut short, damaged, or holds anything but regular files with plain names.
    """
    files: dict[str, bytes] = {}
    at = 0
    while True:
        header = archive[at : at + BLOCK]
        if len(header) < BLOCK:
            raise TarError("it is cut short")
        if not any(header):
            return files
        name, size = _member(header)
        if name in files:
            raise TarError(f"it holds {name!r} twice")
        if len(files) == MAX_MEMBERS:
            raise TarError(f"it holds more than {MAX_MEMBERS} files")
        at += BLOCK
        files[name] = archive[at : at + size]
        at += size + -size % BLOCK
        if at > len(archive):
            raise TarError("it is cut short")


def _member(header: bytes) -> tuple[str, int]:
    if header[257:262] != b"ustar":
        raise TarError("it is not a tar archive")
    if _octal(header[148:156]) != _checksum(header):
        raise TarError("it is damaged: a header's checksum is wrong")
    raw = header[:100].rstrip(b"\0")
    # GNU tar keeps times where ustar has the prefix of a long path; no plain name needs one.
    has_prefix = header[257:265] == b"ustar\x0000" and any(header[345:500])
    if header[156:157] not in (b"0", b"\0") or has_prefix or not _NAME.fullmatch(raw):
        shown = raw.decode("ascii", "backslashreplace")
        raise TarError(f"it holds {shown!r}, which is not a regular file with a plain name")
    return raw.decode(), _octal(header[124:136])


def _octal(field: bytes) -> int:
    digits = field.strip(b" \0")
    if not re.fullmatch(rb"[0-7]{1,12}", digits):
        raise TarError("it is damaged: a number in a header cannot be read")
    return int(digits, 8)


def _checksum(header: bytes) -> int:
    return sum(header[:148]) + 8 * ord(" ") + sum(header[156:BLOCK])


def _header(name: bytes, size: int) -> bytes:
    mode, owner, time, checksum, kind = b"0000644\0", b"0000000\0" * 2, b"00000000000\0", b" " * 8, b"0"
    fields = name.ljust(100, b"\0") + mode + owner + b"%011o\0" % size + time + checksum + kind
    header = (fields.ljust(257, b"\0") + b"ustar\x0000").ljust(BLOCK, b"\0")
    return header[:148] + b"%06o\0 " % _checksum(header) + header[156:]
