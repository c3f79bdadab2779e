"""What Redis promises about what it has acknowledged: said at the start of each process and by `mesh doctor`, in one sentence."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from mesh.errors import StoreUnavailable
from mesh.store.client import Client, pack

__all__ = ["SETTINGS", "Durability", "durability"]
SETTINGS = ("appendonly", "appendfsync", "maxmemory-policy", "min-replicas-to-write")
_CRASH = {
    "always": "nothing is lost, and each write waits for the disk",
    "everysec": "a crash of Redis loses nothing, a loss of power the last second",
    "no": "a crash of Redis loses nothing, a loss of power what the system had not written",
}


@dataclass(frozen=True, kw_only=True)
class Durability:
    """`settings`: Redis's own, None where it does not tell (managed servers often forbid it). `replicas`: in touch now.
    `sentinels`: what the sentinels say in one sentence, '' where none are asked; `agree`: whether all name one master."""

    settings: dict[str, str | None]
    replicas: int
    sentinels: str = ""
    agree: bool = True

    @property
    def appends(self) -> bool:
        """Whether a restart keeps what was acknowledged."""
        return self.settings["appendonly"] == "yes"

    @property
    def evicts(self) -> str | None:
        """The policy by which Redis drops keys when its memory is full; None if it does not."""
        policy = self.settings["maxmemory-policy"]
        return None if policy in (None, "noeviction") else policy

    @property
    def bounded(self) -> bool:
        """Whether a master without replicas stops taking writes: a failover then loses seconds at most."""
        return int(self.settings["min-replicas-to-write"] or 0) > 0

    @property
    def sentence(self) -> str:
        """All of it, for logs and people."""
        said = ", ".join(f"{name} {value or 'unknown'}" for name, value in self.settings.items())
        parts = [
            f"{said}, {self.replicas} {'replica' if self.replicas == 1 else 'replicas'}: {self._crash()}"
        ]
        if self.replicas or self.sentinels:
            parts.append(
                "a failover loses what had not reached the replica, min-replicas-max-lag at most"
                if self.bounded
                else "a failover loses what had not reached the replica, without a bound"
            )
        return "; ".join([*parts, *([self.sentinels] if self.sentinels else [])])

    def _crash(self) -> str:
        if self.settings["appendonly"] == "no":
            return "a restart of Redis loses tasks"
        return _CRASH.get(self.settings["appendfsync"] or "", "what a crash loses is not told")

    def refuse_eviction(self) -> None:
        """Raise `StoreUnavailable` if Redis evicts: an evicted key would be a lost task."""
        if self.evicts:
            raise StoreUnavailable(
                f"Redis evicts keys when memory is full (maxmemory-policy {self.evicts}), which loses tasks: "
                "set it to noeviction."
            )


def durability(client: Client, *, config: bool = True) -> Durability:
    """Ask Redis, and the sentinels where there are some. Without `config` only what every role may ask: the rest stays unknown.

    Raises `StoreUnavailable`.
    """
    client.execute("PING")
    commands = [pack(["CONFIG", "GET", name]) for name in SETTINGS if config] + [pack(["INFO"])]
    *pairs, info = client.calls(commands, len(commands))
    facts = _facts(info)
    # CONFIG is forbidden or renamed on many managed servers
    settings = {
        name: pair[1].decode() if isinstance(pair, list) and pair else None
        for name, pair in zip(SETTINGS, pairs or (None,) * len(SETTINGS), strict=True)
    }
    settings["appendonly"] = settings["appendonly"] or {"1": "yes", "0": "no"}.get(
        facts.get("aof_enabled", "")
    )
    settings["maxmemory-policy"] = settings["maxmemory-policy"] or facts.get("maxmemory_policy")
    sentence, agree = _asked(client)
    return Durability(
        settings=settings,
        replicas=int(facts.get("connected_slaves", 0)),
        sentinels=sentence,
        agree=agree,
    )


def _facts(info: object) -> dict[str, str]:
    lines = info.decode().splitlines() if isinstance(info, bytes) else []
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _asked(client: Client) -> tuple[str, bool]:
    if client.sentinels is None:
        return "", True
    said = client.sentinels.all()
    named = Counter(one.master for one in said if one.master is not None)
    if not named:
        return f"none of {len(said)} sentinels knows {client.sentinels.service}", False
    (host, port), number = named.most_common(1)[0]
    sentence = (
        f"{number} of {len(said)} sentinels name {host}:{port} as the master of {client.sentinels.service}"
    )
    return sentence, number == len(said)
