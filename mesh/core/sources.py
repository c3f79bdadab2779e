"""Where a request comes from, for limits and for the audit log: an address that its sender cannot choose.

X-Forwarded-For is what anybody writes. It is believed from proxies that the operator has named, and only as far as these wrote
it: from the right, until an address that is no such proxy.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable, Sequence

from mesh.errors import Invalid

__all__ = ["Proxies", "limited_as"]

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_MOST_HOPS = 20


def _address(text: str) -> _Address | None:
    try:
        found = ipaddress.ip_address(text.strip())
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


@functools.lru_cache(maxsize=4096)
def limited_as(address: str) -> str:
    """What counts as one source: an IPv4 address, or the /64 that one host gets of IPv6; any other text as it is."""
    found = _address(address)
    if not isinstance(found, ipaddress.IPv6Address):
        return address if found is None else str(found)
    return str(ipaddress.ip_network((found, 64), strict=False))


class Proxies:
    """The proxies that are trusted: addresses, or networks such as 10.0.0.0/24. Raises `Invalid` for other texts."""

    def __init__(self, names: Iterable[str]) -> None:
        self._networks = []
        for name in names:
            try:
                self._networks.append(ipaddress.ip_network(name, strict=False))
            except ValueError:
                raise Invalid(
                    f"MESH_TRUSTED_PROXIES: {name!r} is neither an IP address nor a network such as 10.0.0.0/24."
                ) from None

    def trusts(self, address: str) -> bool:
        """Whether what comes from there may say for whom it speaks."""
        found = _address(address) if self._networks else None
        return found is not None and any(found in network for network in self._networks)

    def source(self, peer: str, forwarded: Sequence[str]) -> str:
        """The address of who asks. `peer`: the other end of the connection, a trusted proxy; `forwarded`: the values of its
        X-Forwarded-For headers, in order. What is no address ends the search: the last that was one is answered."""
        source = peer
        for hop in reversed(",".join(forwarded).rsplit(",", _MOST_HOPS)):
            found = _address(hop)
            if found is None:
                break
            source = str(found)
            if not self.trusts(source):
                break
        return source
