"""TLS to Redis: what may stand in a `rediss://` URL, and what a handshake that failed means."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

__all__ = ["FILES", "OPTIONS", "explained", "refuse_unknown"]

FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_ca_path")
OPTIONS = (*FILES, "ssl_cert_reqs", "ssl_check_hostname", "ssl_password")

_MEANINGS = (
    (
        r"self.signed certificate|unable to get (?:local )?issuer|signature failure",
        "its certificate was not signed by an authority that this process trusts: "
        "name the authority's file in the URL, ?ssl_ca_certs=/path/ca.crt",
    ),
    (
        r"certificate is not valid for|[Hh]ostname mismatch|IP address mismatch",
        "its certificate is for another host name: use a name that the certificate has",
    ),
    (r"certificate has expired", "its certificate has expired"),
    (
        r"wrong version number|record layer failure|packet length too long",
        "it does not speak TLS on this port: use its TLS port, or redis://",
    ),
    (
        r"certificate required|handshake failure|bad certificate|unknown ca",
        "it wants a client certificate, another one: name it in the URL, "
        "?ssl_certfile=/path/client.crt&ssl_keyfile=/path/client.key",
    ),
)
_COMPILED = tuple((re.compile(pattern), sentence) for pattern, sentence in _MEANINGS)
#: Of what may as well be a network that failed: whether TLS was spoken, what it looks like, what to try if it has never worked.
_HINTS = (
    (False, r"closed by server|reset by peer", "if this is a TLS port, the URL begins with rediss://"),
    (
        True,
        r"closed by server|reset by peer|EOF occurred",
        "if it has never worked, it may want a client certificate",
    ),
    (True, r"[Tt]imeout|timed out", "if it has never worked, it may not speak TLS on this port"),
)


def refuse_unknown(given: Mapping[str, object]) -> None:
    """Raise `ValueError` for an option of TLS that there is not, or a file that cannot be read."""
    for name, value in given.items():
        if not name.startswith("ssl"):
            continue
        if name not in OPTIONS:
            raise ValueError(f"there is no option {name}, only {', '.join(OPTIONS)}")
        if name in FILES and not os.access(str(value), os.R_OK):
            raise ValueError(f"{name} names {value}, which cannot be read")
    if given.get("ssl_cert_reqs", "required") not in ("required", "none"):
        raise ValueError("ssl_cert_reqs is required or none")


def explained(error: BaseException, *, tls: bool) -> str:
    """What a failure to connect says, in words that tell what to do."""
    text = str(error)
    for pattern, sentence in _COMPILED if tls else ():
        if pattern.search(text):
            return f"{sentence} ({text.rstrip('.')})"
    for with_tls, looks, hint in _HINTS:
        if tls is with_tls and re.search(looks, text):
            return f"{text.rstrip('.')}; {hint}"
    return text
