"""Owner, mode and remedy of a file that we may not read or remove, in plain words."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rights:
    """`text`: owner, group and mode; `remedy`: what to do."""

    text: str
    remedy: str


def describe(found: os.stat_result) -> Rights:
    """Say whose it is and how the service gets at it."""
    text = f"owner {_user(found.st_uid)}, group {_group(found.st_gid)}, mode {stat.filemode(found.st_mode)}"
    me = _user(os.geteuid())
    remedy = (
        f"let the writer create files with mode 0640 in a group that {me} is in "
        f"(setgid on the directory, umask 027 or a default ACL); for this one: chmod g+r and chgrp"
    )
    return Rights(text, remedy)


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return f"{grp.getgrgid(gid).gr_name} ({gid})"
    except KeyError:
        return str(gid)
