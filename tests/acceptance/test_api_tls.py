"""A coordinator that speaks HTTPS, with certificates made here."""

from __future__ import annotations

import datetime
import ipaddress
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.acceptance.conftest import Place
from tests.acceptance.test_coordinator import start
from tests.waiting import wait_until

HEALTH = Path(__file__).resolve().parents[2] / "deploy" / "image" / "health.py"


def name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


class Authority:
    """Signs certificates for 127.0.0.1."""

    def __init__(self, folder: Path, common: str = "authority") -> None:
        self._folder, self._name = folder, name(common)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.file = self._write(f"{common}.pem", self._certificate(self._name, self._key, is_ca=True))

    def _certificate(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, is_ca: bool) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        where: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        made = (
            x509.CertificateBuilder(self._name, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName(where), critical=False)
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        return made.public_bytes(serialization.Encoding.PEM)

    def _write(self, file: str, data: bytes) -> str:
        path = self._folder / file
        path.write_bytes(data)
        return str(path)

    def pair(self, common: str) -> tuple[str, str]:
        """(certificate file, key file)."""
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        certificate = self._certificate(name(common), key, is_ca=False)
        return self._write(f"{common}.crt", certificate), self._write(f"{common}.key", pem)


def serial(url: str, ca: str) -> int:
    """Of the certificate that a server shows."""
    place = urlsplit(url)
    context = ssl.create_default_context(cafile=ca)
    with (
        socket.create_connection((place.hostname, place.port), timeout=10) as link,
        context.wrap_socket(link, server_hostname=place.hostname) as secured,
    ):
        shown = secured.getpeercert(binary_form=True)
        assert shown is not None and secured.version() in ("TLSv1.2", "TLSv1.3")
        return x509.load_der_x509_certificate(shown).serial_number


def speaks(url: str, version: ssl.TLSVersion, ca: str) -> bool:
    place = urlsplit(url)
    context = ssl.create_default_context(cafile=ca)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    with socket.create_connection((place.hostname, place.port), timeout=10) as link:
        try:
            context.wrap_socket(link, server_hostname=place.hostname).close()
        except (ssl.SSLError, ConnectionError):
            return False
    return True


@pytest.mark.ci
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_https_from_the_coordinator_to_its_callers(place: Place, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.pair("coordinator")
    files = {"MESH_COORDINATOR_CERT_FILE": cert, "MESH_COORDINATOR_KEY_FILE": key}
    process, plain = start(place, "c1", **files)
    url = plain.replace("http:", "https:")

    trusting = {"COORDINATOR_URL": url, "MESH_COORDINATOR_CA_FILE": authority.file, "REDIS_URL": None}
    done = place.call("discover", **trusting)
    assert (done.returncode, "No agents" in done.stdout + done.stderr or not done.stdout) == (0, True), (
        done.stderr
    )
    for ca, said in (
        (None, "certificate"),
        (Authority(tmp_path, "another").file, "certificate"),
        (str(tmp_path / "none.pem"), r"MESH_COORDINATOR_CA_FILE: cannot use .*none.pem \(No such file"),
        (key, "no certificate in PEM is in it"),
    ):
        refused = place.call(
            "discover", **{**trusting, "MESH_COORDINATOR_CA_FILE": ca}, TRANSPORT_RETRIES="0"
        )
        assert refused.returncode in (2, 5) and said.split(":")[0] in refused.stderr, refused.stderr

    # The probe of the image, which asks on loopback whatever name the certificate is for.
    (tmp_path / "mesh-role").write_text("coordinator")
    port = str(urlsplit(url).port)
    probe = subprocess.run(
        [sys.executable, str(HEALTH)], capture_output=True, check=False, timeout=30,
        env={**place.environment({**files}), "TMPDIR": str(tmp_path), "MESH_COORDINATOR_PORT": port},
    )  # fmt: skip
    assert probe.returncode == 0, probe.stderr

    assert speaks(url, ssl.TLSVersion.TLSv1_2, authority.file)
    assert speaks(url, ssl.TLSVersion.TLSv1_3, authority.file)
    assert not speaks(url, ssl.TLSVersion.TLSv1_1, authority.file)
    with socket.create_connection(("127.0.0.1", int(port)), timeout=10) as link:
        link.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert not link.recv(100).startswith(b"HTTP"), "no plain answer on this port"

    context = ssl.create_default_context(cafile=authority.file)
    with (
        socket.create_connection(("127.0.0.1", int(port)), timeout=10) as link,
        context.wrap_socket(link, server_hostname="127.0.0.1") as secured,
    ):
        secured.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b"strict-transport-security: max-age=" in secured.recv(4096)

    # A new certificate in place of the old, then one that is broken: the former stays.
    before = serial(url, authority.file)
    for old, new in zip((cert, key), authority.pair("renewed"), strict=True):
        Path(old).write_bytes(Path(new).read_bytes())
    process.process.send_signal(signal.SIGHUP)
    wait_until(lambda: serial(url, authority.file) != before, 10, "the new certificate")
    renewed = serial(url, authority.file)
    Path(key).write_text("broken")
    process.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "the certificate was not changed" in process.output(), 10, "it to say so")
    assert serial(url, authority.file) == renewed
    assert "Traceback" not in process.output()


def test_a_pair_that_is_none_is_one_sentence(place: Place, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.pair("a")
    _, other = authority.pair("b")
    (tmp_path / "none.txt").write_text("nothing")
    for one, two, said in (
        (cert, None, "MESH_COORDINATOR_CERT_FILE is set, but MESH_COORDINATOR_KEY_FILE is not"),
        (None, key, "MESH_COORDINATOR_KEY_FILE is set, but MESH_COORDINATOR_CERT_FILE is not"),
        (str(tmp_path / "no"), key, "MESH_COORDINATOR_CERT_FILE: cannot read"),
        (cert, str(tmp_path), "MESH_COORDINATOR_KEY_FILE: cannot read"),
        (cert, other, "is not that of the certificate in"),
        (str(tmp_path / "none.txt"), key, "must be a certificate"),
        (key, cert, "must be a certificate"),
    ):
        done = place.call(
            "coordinator",
            "--host",
            "127.0.0.1",
            MESH_COORDINATOR_CERT_FILE=one,
            MESH_COORDINATOR_KEY_FILE=two,
        )
        assert done.returncode == 2 and said in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr
