"""What `mpu serve --demo` starts with: the sandbox's account, and a pickup directory that sends through it."""

from __future__ import annotations

from sqlmodel import Session

from core.domain.account import Account, AuthMethod, Directory, Security
from core.domain.clock import Clock
from core.errors import NotFound
from core.settings import Settings
from core.store import accounts, directories
from core.store.store import Store

ACCOUNT = "sandbox"
DIRECTORY = "pickup"


async def install_demo(store: Store, settings: Settings, port: int, *, clock: Clock) -> None:
    """Make both where they are missing; the account follows the port of this start."""
    path = settings.data_dir / "pickup"
    path.mkdir(mode=0o770, exist_ok=True)
    now = clock.now()

    def write(session: Session) -> None:
        account = Account(ACCOUNT, "127.0.0.1", port, security=Security.NONE, auth=AuthMethod.NONE)
        try:
            accounts.get(session, store.secrets, ACCOUNT)
        except NotFound:
            accounts.create(session, store.secrets, account, now=now)
        else:
            accounts.change(session, store.secrets, account, now=now)
        try:
            directories.get(session, DIRECTORY)
        except NotFound:
            if not directories.overlapping(session, str(path.resolve())):
                directories.create(session, Directory(DIRECTORY, str(path.resolve()), (ACCOUNT,)), now=now)

    await store.write(write)
