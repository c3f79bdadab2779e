"""TLS for the coordinator: its certificate and key, checked at the start, read again on SIGHUP."""

from __future__ import annotations

import logging
import ssl

from mesh.errors import Invalid
from mesh.settings import Settings

__all__ = ["Tls", "tls_of"]
logger = logging.getLogger(__name__)
_CERT, _KEY = "MESH_COORDINATOR_CERT_FILE", "MESH_COORDINATOR_KEY_FILE"


def tls_of(settings: Settings) -> Tls | None:
    """None without a certificate: plain HTTP. Raises `Invalid` for a half of a pair, and for one that cannot be used."""
    cert, key = settings.coordinator_cert_file, settings.coordinator_key_file
    if not cert and not key:
        return None
    if not cert or not key:
        given, missing = (_CERT, _KEY) if cert else (_KEY, _CERT)
        raise Invalid(f"{given} is set, but {missing} is not: TLS needs both, or neither for plain HTTP.")
    return Tls(cert, key)


class Tls:
    """`context` is for the server; connections that begin after a `reload` have the new certificate."""

    def __init__(self, cert: str, key: str) -> None:
        self._cert, self._key = cert, key
        self.context = self._made()

    def _made(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.set_alpn_protocols(["http/1.1"])
        self._load(context)
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        for name, file in ((_CERT, self._cert), (_KEY, self._key)):
            try:
                with open(file, "rb") as opened:
                    opened.read(1)
            except OSError as error:
                raise Invalid(f"{name}: cannot read {file} ({error.strerror}).") from None
        try:
            context.load_cert_chain(self._cert, self._key, password=lambda: b"")
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise Invalid(
                    f"The key in {self._key} is not that of the certificate in {self._cert}."
                ) from None
            raise Invalid(
                f"{self._cert} and {self._key} must be a certificate (with those that lead to its authority) and its key, "
                f"in PEM and without a password; they are not: {error.reason or error}."
            ) from None

    def reload(self) -> None:
        """Read the files again; if they cannot be used, all stays as it was, and the log says so."""
        try:
            self._made()
            self._load(self.context)
        except Invalid as error:
            logger.error("the certificate was not changed: %s", error)
        else:
            logger.info("the certificate was read anew from %s", self._cert)
