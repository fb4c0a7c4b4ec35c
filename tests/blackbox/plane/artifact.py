"""The artifact, format version 1, and the decryption token: a strict reader and a writer."""

import base64
import gzip
import hashlib
import io
import json
import os
import struct
import time

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

FRAME = 1 << 20


class BadArtifact(Exception):
    """The bytes are not a whole, authentic artifact."""


def frames(data):
    """The frames (nonce and ciphertext together) of an artifact, checked for shape and for the end."""
    found, at = [], 0
    while True:
        if at + 4 > len(data):
            raise BadArtifact("truncated: no end marker")
        size = struct.unpack_from(">I", data, at)[0]
        at += 4
        if size == 0:
            break
        if not 28 <= size <= FRAME + 28:
            raise BadArtifact(f"a frame of {size} bytes")
        if at + size > len(data):
            raise BadArtifact("truncated: a frame is cut off")
        found.append(data[at : at + size])
        at += size
    if at != len(data):
        raise BadArtifact(f"{len(data) - at} bytes after the end marker")
    for body in found[:-1]:
        if len(body) != FRAME + 28:
            raise BadArtifact("a frame that is not the last one is short")
    return found


def unseal(data, key):
    """The plaintext of an artifact."""
    cipher, nonces, out = AESGCM(key), set(), bytearray()
    for body in frames(data):
        nonce = body[:12]
        if nonce in nonces:
            raise BadArtifact("a nonce is used twice")
        nonces.add(nonce)
        try:
            plain = cipher.decrypt(nonce, body[12:], None)
        except InvalidTag as error:
            raise BadArtifact("a frame does not authenticate") from error
        if not plain:
            raise BadArtifact("an empty frame")
        out += plain
    return bytes(out)


def seal(plain, key, frame_size=FRAME):
    """The artifact of `plain`."""
    cipher, out = AESGCM(key), bytearray()
    for at in range(0, len(plain), frame_size):
        nonce = os.urandom(12)
        body = nonce + cipher.encrypt(nonce, plain[at : at + frame_size], None)
        out += struct.pack(">I", len(body)) + body
    return bytes(out) + struct.pack(">I", 0)


def compress(data, compression):
    """`zstd`, `gzip` or `none`."""
    if compression == "zstd":
        return zstandard.ZstdCompressor(write_checksum=True).compress(data)
    return gzip.compress(data) if compression == "gzip" else data


def decompress(data, compression):
    """Undoes `compress`; bytes after the compressed stream are an error."""
    if compression == "none":
        return data
    if compression == "gzip":
        return gzip.decompress(data)
    if compression != "zstd":
        raise BadArtifact(f"compression {compression!r}")
    reader = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True)
    return reader.read()


def restore(data, compression, key=None):
    """From the stored object to the dump."""
    return decompress(unseal(data, key) if key is not None else data, compression)


def sha256(data):
    """Lower-case hex."""
    return hashlib.sha256(data).hexdigest()


def _part(value):
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def token(key, **claims):
    """A decryption token; a claim that is `None` is left out."""
    now = int(time.time())
    body = {
        "iss": "backupy-server",
        "aud": "backupy-decrypt",
        "sub": "user-1",
        "iat": now,
        "exp": now + 600,
        "run_id": "run-1",
        "company_id": "company-1",
        "dek": base64.b64encode(key).decode(),
        "alg": "AES-256-GCM",
        "format_version": 1,
        **claims,
    }
    body = {name: value for name, value in body.items() if value is not None}
    header = {"alg": "EdDSA", "typ": "JWT"}
    return ".".join((_part(header), _part(body), _part(os.urandom(64))))
