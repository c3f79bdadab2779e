"""A node of its own, as far as the network goes: a namespace with one link to here, on which the kernel loses packets."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest


@dataclass(frozen=True, kw_only=True)
class Node:
    """`name`: of the network namespace; `here`: the address that this side of the link has."""

    name: str
    here: str

    def lose(self, percent: int) -> None:
        """Drop so many of the packets that come and of those that go."""
        rules = "\n".join(
            f"chain {hook} {{ type filter hook {hook} priority 0; numgen random mod 100 < {percent} drop; }}"
            for hook in ("input", "output")
        )
        run("ip", "netns", "exec", self.name, "nft", "-f", "-", text=f"table ip weather {{\n{rules}\n}}\n")

    def heal(self) -> None:
        """Drop no more."""
        run("ip", "netns", "exec", self.name, "nft", "flush", "ruleset")


def run(*words: str, text: str | None = None) -> None:
    """Run a command; AssertionError with what it said if it fails."""
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr.strip()}"


@contextlib.contextmanager
def node() -> Iterator[Node]:
    """A node for one test. Skips where namespaces or nftables are missing."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for a network namespace")
    if missing := [one for one in ("ip", "nft") if not shutil.which(one)]:
        pytest.skip(f"needs {' and '.join(missing)}")
    name = f"mesh{uuid.uuid4().hex[:8]}"
    pair = int(name[4:], 16) % 16384  # one of the /30 networks of 198.18.0.0/16, which is set aside for tests
    here, there = (f"198.18.{pair // 64}.{pair % 64 * 4 + host}" for host in (1, 2))
    link, peer = name, f"{name}p"
    made = []
    try:
        try:
            run("ip", "netns", "add", name)
            made.append(("ip", "netns", "del", name))
            run("ip", "link", "add", link, "type", "veth", "peer", "name", peer, "netns", name)
            run("ip", "addr", "add", f"{here}/30", "dev", link)
            run("ip", "link", "set", link, "up")
            for words in (
                ("addr", "add", f"{there}/30", "dev", peer),
                ("link", "set", peer, "up"),
                ("link", "set", "lo", "up"),
            ):
                run("ip", "-n", name, *words)
            found = Node(name=name, here=here)
            found.lose(0)
            found.heal()
        except AssertionError as error:
            pytest.skip(f"no network of its own for a test here: {error}")
        yield found
    finally:
        for words in made:  # the link goes with its namespace
            subprocess.run(words, check=False, timeout=30)
