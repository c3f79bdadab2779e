"""A Redis with the users of `deploy/redis/users.acl`, as the documentation sets them up."""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

from mesh.core.redis_rights import RIGHTS, acl_file
from mesh.store.client import Client
from mesh.store.embedded import Server, start_server
from tests.leaks import leaks


class Guarded:
    """A running server; `admin` speaks to it as a user who may do everything."""

    def __init__(self, folder: Path, namespace: str, *, binary: Path | None = None) -> None:
        self.namespace = namespace
        self.passwords = {name: secrets.token_hex(24) for name in ("admin", *RIGHTS)}
        # Who starts the server asks it as nobody whether it is there.
        text = acl_file(namespace).replace("user default off", "user default on nopass +ping +info +quit")
        for name, password in self.passwords.items():
            text = text.replace(f"{name.upper()}_SHA256", hashlib.sha256(password.encode()).hexdigest())
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "users.acl").write_text(text)
        options = ("--aclfile", str(folder / "users.acl"), "--enable-debug-command", "yes")
        self.server: Server = start_server(folder, binary=binary, options=options)
        self.admin = Client(self.url("admin"))

    def url(self, role: str) -> str:
        """Where this role's processes find it."""
        return f"redis://{role}:{self.passwords[role]}@127.0.0.1:{self.server.port}/0"

    def denied(self) -> list[str]:
        """What has been refused to anybody: `user: reason, where, what`."""
        rows = [dict(zip(row[::2], row[1::2], strict=True)) for row in self.admin.execute("ACL", "LOG", 128)]
        return [
            f"{row[b'username'].decode()}: {row[b'reason'].decode()}, {row[b'context'].decode()}, {row[b'object'].decode()}"
            for row in rows
        ]

    def stop(self, *, searched: bool = True) -> None:
        """End it; `searched`: no secret of this run may be in it."""
        if searched:
            leaks.know(*self.passwords.values())
            leaks.look_at_redis(self.admin)
        self.admin.close()
        self.server.stop()
