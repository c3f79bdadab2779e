"""What must not be seen: secrets in URLs, tokens, and the values that this process knows to be secret, taken out of any text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote

__all__ = ["MASK", "Redactor", "safe_url", "secrets_of_url"]

MASK = "***"
_SHORTEST = 6  # a shorter value is a word that any text may have
#: user:password@ behind the scheme, up to the last @ before the path: passwords with an @ in them are as good as any.
_LOGIN = re.compile(r"(?<=://)([^\s/?#:@\"']*):([^\s/?#\"']+)@")
_QUERY = re.compile(r"([?&][A-Za-z_]*(?:password|secret|token)=)[^&\s\"'#]+", re.IGNORECASE)
#: Three parts of base64url, the first of them a JSON object's beginning: a JSON Web Token (or its like without a signature).
_TOKEN = re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*")
_PEM = re.compile(r"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?-----END \1-----", re.DOTALL)


def safe_url(url: str) -> str:
    """The URL without its passwords, for messages and logs."""
    return _QUERY.sub(rf"\1{MASK}", _LOGIN.sub(rf"\1:{MASK}@", url))


def secrets_of_url(url: str) -> set[str]:
    """The passwords in a URL, as they stand there and as they are meant."""
    found = {match[2] for match in _LOGIN.finditer(url)}
    found |= {match[0].partition("=")[2] for match in _QUERY.finditer(url)}
    return found | {unquote(one) for one in found}


class Redactor:
    """Masks the secrets it was told of, and what looks like one: tokens, private keys, passwords in URLs."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = sorted({one for one in secrets if len(one) >= _SHORTEST}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def __call__(self, text: str) -> str:
        """The text without secrets. Costs about a microsecond a line that has none."""
        if self._known is not None:
            text = self._known.sub(MASK, text)
        if "eyJ" in text:
            text = _TOKEN.sub(MASK, text)
        if "://" in text:
            text = safe_url(text)
        if "PRIVATE KEY" in text:
            text = _PEM.sub(MASK, text)
        return text

    def __repr__(self) -> str:
        return "Redactor()"
