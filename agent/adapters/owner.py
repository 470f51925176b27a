"""Root, acting as the user whom a folder belongs to."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.errors import OutputError


@contextmanager
def as_owner_of(folder: Path) -> Iterator[None]:
    """Do what is inside as the user and group of `folder`, where root does it; nothing changes for anybody else.

    What root makes in a service's folder would lock the service out; and a link that the service has put there would
    lead root anywhere. So root has, inside, the rights of the service and no more. The whole process has.

    Raises:
        OutputError: root may not become that user, such as in a container without CAP_SETUID.
    """
    try:
        owner = folder.stat() if os.geteuid() == 0 else None
    except OSError:
        # It is yet to be made, by root: systemd gives it to the service with all that is in it.
        owner = None
    if owner is None or owner.st_uid == 0:
        yield
        return
    group, groups = os.getegid(), os.getgroups()
    try:
        try:
            os.setgroups([owner.st_gid])
            os.setegid(owner.st_gid)
            os.seteuid(owner.st_uid)
        except OSError as e:
            raise OutputError(
                f"{folder} belongs to user {owner.st_uid}, whom root may not act as here ({e.strerror or e}): "
                "run this as that user"
            ) from e
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)
