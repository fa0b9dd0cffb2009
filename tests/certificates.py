"""Certificates for a stand-in of AMO that speaks TLS: good ones, and those that must not be believed."""

import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_DAY = timedelta(days=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Authority:
    """Somebody who issues certificates; `file` is whom to trust for them."""

    file: Path
    _key: ec.EllipticCurvePrivateKey = field(repr=False)
    _name: x509.Name

    def client(self) -> ssl.SSLContext:
        """Return what believes this authority, and no other."""
        return ssl.create_default_context(cafile=self.file)

    def server(self, host: str, *, days: int = 1, trusted: bool = True) -> ssl.SSLContext:
        """Return what serves `host` with a certificate for so many days, of its own where not `trusted`."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(host)
        signed = _certificate(
            name, key, issuer=self._name if trusted else name, by=self._key if trusted else key, host=host, days=days
        )
        folder = self.file.parent
        chain, private = folder / "server.pem", folder / "server.key"
        chain.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        private.write_bytes(_private(key))
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(chain, private)
        return context


def make_authority(folder: Path) -> Authority:
    """Make an authority of one's own."""
    key, name, file = ec.generate_private_key(ec.SECP256R1()), _name("An authority for tests"), folder / "ca.pem"
    certificate = _certificate(name, key, issuer=name, by=key, host=None, days=1)
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return Authority(file=file, _key=key, _name=name)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certificate(
    name: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    *,
    issuer: x509.Name,
    by: ec.EllipticCurvePrivateKey,
    host: str | None,
    days: int,
) -> x509.Certificate:
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 30 * _DAY)
        .not_valid_after(now + days * _DAY)
        .add_extension(x509.BasicConstraints(ca=host is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False)
    )
    if host is not None:
        built = built.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
    return built.sign(by, hashes.SHA256())


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
