"""A Redis with a replica and three sentinels, as real processes: `sentinel://` names whichever of the two is the master."""

from __future__ import annotations

import subprocess
from pathlib import Path

from mesh.errors import StoreUnavailable
from mesh.store.client import Client
from mesh.store.embedded import Server, free_port, start_server
from tests.waiting import wait_until

SERVICE = "mesh-master"
DOWN_AFTER_MS = 1500
SENTINELS = 3
MAX_LAG_S = 2


class Failover:
    """`first` is the master at the start, `second` replicates it as a user of its own: so their link alone can be cut."""

    def __init__(self, folder: Path, *, min_replicas: int = 0) -> None:
        options = ("--repl-diskless-sync-delay", "0", "--repl-timeout", "5")
        options += ("--min-replicas-to-write", str(min_replicas), "--min-replicas-max-lag", str(MAX_LAG_S))
        options += ("--user", "link", "on", ">link", "+@all", "--masteruser", "link", "--masterauth", "link")
        self.folder = folder
        self.first = start_server(folder / "first", options=options)
        follows = ("--replicaof", "127.0.0.1", str(self.first.port))
        self.second = start_server(folder / "second", options=(*options, *follows))
        self._sentinels: list[subprocess.Popen[bytes]] = []
        self._ports: list[int] = []
        wait_until(lambda: self._fact(self.second, "master_link_status") == "up", 20, "the replica to follow")
        for number in range(SENTINELS):
            self._sentinels.append(self._start_sentinel(number))
        wait_until(lambda: all(self._knows(port) for port in self._ports), 30, "the sentinels to know all")

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self._ports)
        return f"sentinel://{hosts}/{SERVICE}"

    def cut_link(self) -> None:
        """The replica hears no more of the master; all others do."""
        control = Client(self.first.url)
        control.execute("ACL", "SETUSER", "link", "off")
        control.execute("CLIENT", "KILL", "TYPE", "replica")
        control.close()

    def _start_sentinel(self, number: int) -> subprocess.Popen[bytes]:
        port = free_port()
        self._ports.append(port)
        home = self.folder / f"sentinel-{number}"
        home.mkdir()
        lines = [
            f"port {port}",
            "bind 127.0.0.1",
            f"dir {home}",
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.first.port} {SENTINELS // 2 + 1}",
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}",
            f"sentinel failover-timeout {SERVICE} 6000",
            f"sentinel parallel-syncs {SERVICE} 1",
        ]
        config = home / "sentinel.conf"
        config.write_text("\n".join(lines) + "\n")
        with (self.folder / f"sentinel-{number}.log").open("ab") as log:
            words = [str(self.first.binary), str(config), "--sentinel"]
            return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _knows(self, port: int) -> bool:
        try:
            raw = Client(f"redis://127.0.0.1:{port}").execute("SENTINEL", "MASTER", SERVICE)
        except StoreUnavailable:
            return False
        facts = dict(zip(raw[::2], raw[1::2], strict=True))
        others = int(facts[b"num-other-sentinels"])
        return others == SENTINELS - 1 and facts[b"num-slaves"] == b"1" and facts[b"flags"] == b"master"

    @staticmethod
    def _fact(server: Server, name: str) -> str:
        try:
            info = Client(server.url).execute("INFO", "replication").decode()
        except StoreUnavailable:  # a sentinel that changes a server's role closes its connections
            return ""
        return dict(line.split(":", 1) for line in info.splitlines() if ":" in line).get(name, "")

    def promoted(self) -> bool:
        """Whether the second is the master now."""
        try:
            return self._fact(self.second, "role") == "master"
        except StoreUnavailable:  # it closes its connections when its role changes
            return False

    def stop(self) -> None:
        """End all of it."""
        for one in self._sentinels:
            one.kill()
            one.wait(10)
        self.second.stop()
        self.first.stop()
