"""A certificate authority of one's own, made on first start and kept in the root.

azure-core refuses to send a bearer token over plain HTTP, so the emulators speak TLS. The CA is trusted only where
somebody points at its file; the leaf covers loopback names only.
"""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_NAMES = (
    "localhost",
    "*.localhost",
    "onelake.dfs.localhost",
    "onelake.blob.localhost",
    "*.dfs.localhost",
    "*.blob.localhost",
)
_ADDRESSES = ("127.0.0.1", "::1")
# 825 days is the most that Apple's TLS stack accepts of a leaf.
_VALID_FOR = datetime.timedelta(days=820)


@dataclass(frozen=True, slots=True)
class Certificates:
    """Where the files are. ``ca`` is what a client has to trust."""

    ca: Path
    chain: Path
    key: Path

    def server_context(self) -> ssl.SSLContext:
        """Returns a context that serves the leaf."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.chain, self.key)
        return context


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _builder(subject: str, issuer: str, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + _VALID_FOR)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _write_all(folder: Path) -> None:
    ca_name = "Emulators on this machine only"
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = (
        _builder(ca_name, ca_name, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    leaf_key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.DNSName(name) for name in _NAMES]
    addresses = [x509.IPAddress(ipaddress.ip_address(address)) for address in _ADDRESSES]
    leaf = (
        _builder("localhost", ca_name, leaf_key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([*names, *addresses]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    ca_pem = ca.public_bytes(serialization.Encoding.PEM)
    key_path = folder / "server-key.pem"
    key_path.touch(mode=0o600)
    key_path.write_bytes(_pem(leaf_key))
    (folder / "server-chain.pem").write_bytes(leaf.public_bytes(serialization.Encoding.PEM) + ca_pem)
    (folder / "ca.pem").write_bytes(ca_pem)


def ensure_certificates(folder: Path) -> Certificates:
    """Returns the certificates of the folder, made now if they are missing or about to lapse.

    The key of the CA is thrown away once the leaf is signed: nobody can sign another certificate that a client of
    these emulators would trust.
    """
    certificates = Certificates(folder / "ca.pem", folder / "server-chain.pem", folder / "server-key.pem")
    if certificates.ca.exists():
        ends = x509.load_pem_x509_certificate(certificates.ca.read_bytes()).not_valid_after_utc
        if ends > datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=7):
            return certificates
    folder.mkdir(parents=True, exist_ok=True)
    _write_all(folder)
    return certificates
