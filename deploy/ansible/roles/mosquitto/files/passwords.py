"""Bring a password file of mosquitto 2 up to date; what already fits stays as it is.

From stdin, JSON: `path`, `passwords` (user to password), `hashes` (user to what mosquitto_passwd wrote) and `check`
(true: write nothing). Users who are in neither go. Prints what changed, as JSON: users who came, changed and went.
Passwords come by stdin, because others on the host can read a command line.
"""

import base64
import hashlib
import hmac
import json
import os
import sys
from pathlib import Path

ITERATIONS = 10_000
"""mosquitto_passwd takes 101. The broker hashes in its only thread, at each connection: this is some milliseconds."""


def hashed(password: str, salt: bytes, iterations: int = ITERATIONS) -> str:
    """Return the hash that mosquitto 2 stores: PBKDF2 with SHA-512."""
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, iterations)
    return f"$7${iterations}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def fits(password: str, stored: str) -> bool:
    """Tell whether `stored` is a hash of `password`."""
    try:
        _, kind, iterations, salt, _ = stored.split("$")
        again = hashed(password, base64.b64decode(salt), int(iterations))
    except ValueError:
        return False
    return kind == "7" and hmac.compare_digest(again, stored)


def main() -> None:
    """Read what is asked for, and do it."""
    asked = json.load(sys.stdin)
    path = Path(asked["path"])
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    old = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    new = dict(asked["hashes"])
    for user, password in asked["passwords"].items():
        kept = old.get(user, "")
        new[user] = kept if fits(password, kept) else hashed(password, os.urandom(12))
    changes = {
        "came": sorted(new.keys() - old.keys()),
        "changed": sorted(user for user in new.keys() & old.keys() if new[user] != old[user]),
        "went": sorted(old.keys() - new.keys()),
    }
    if not asked["check"]:
        # In place: the folder is a draft, and the file's owner and mode are given to it beforehand.
        path.write_text("".join(f"{user}:{new[user]}\n" for user in sorted(new)), encoding="utf-8")
    json.dump(changes, sys.stdout)


main()
