"""A throw-away certificate authority and the server contexts made with it."""

import base64
import datetime
import hashlib
import ipaddress
import ssl
import threading

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def _name(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem_key(key):
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


class Authority:
    """A CA in a directory: `ca.pem`, and server certificates on request."""

    def __init__(self, directory):
        self.directory = directory
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.subject = _name("black-box test CA")
        self.certificate = (
            self._builder(self.subject, self.key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(True, False, False, False, False, True, True, False, False),
                critical=True,
            )
            .sign(self.key, hashes.SHA256())
        )
        self.path = directory / "ca.pem"
        self.path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject, key, days=(-1, 30)):
        now = datetime.datetime.now(datetime.timezone.utc)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days=days[0]))
            .not_valid_after(now + datetime.timedelta(days=days[1]))
        )

    def server(self, name="leaf", hosts=("localhost", "127.0.0.1"), days=(-1, 30), maximum=None):
        """(ssl context, base64 SHA-256 of the leaf's SPKI)"""
        key = ec.generate_private_key(ec.SECP256R1())
        names = []
        for host in hosts:
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                names.append(x509.DNSName(host))
        leaf = (
            self._builder(_name(name), key, days)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        path = self.directory / f"{name}.pem"
        path.write_bytes(leaf.public_bytes(serialization.Encoding.PEM) + _pem_key(key))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        if maximum is not None:
            context.maximum_version = maximum
        spki = key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return context, base64.b64encode(hashlib.sha256(spki).digest()).decode()


class TlsSocket:
    """A server-side TLS connection that one thread may read while others write.

    Python's own SSLSocket does not allow that: OpenSSL's state is shared between both directions.
    """

    def __init__(self, raw, context):
        self.raw = raw
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.state = threading.Lock()
        self.sending = threading.Lock()
        self._loop(self.tls.do_handshake)

    def _loop(self, operation):
        while True:
            try:
                with self.state:
                    value = operation()
                self._flush()
                return value
            except ssl.SSLWantReadError:
                self._flush()
            except ssl.SSLError:
                self._flush()
                raise
            data = self.raw.recv(65536)
            with self.state:
                if data:
                    self.incoming.write(data)
                else:
                    self.incoming.write_eof()

    def _flush(self, data=None):
        if data is None and not self.outgoing.pending:
            return
        with self.sending:
            with self.state:
                if data is not None:
                    self.tls.write(data)
                ready = self.outgoing.read()
            self.raw.sendall(ready)

    def recv(self, size):
        """Plaintext; empty at the end."""
        try:
            return self._loop(lambda: self.tls.read(size))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    def sendall(self, data):
        """Encrypts and sends all of it."""
        self._flush(data)

    def version(self):
        """`TLSv1.3`."""
        return self.tls.version()

    def __getattr__(self, name):
        return getattr(self.raw, name)
