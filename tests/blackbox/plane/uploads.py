"""Multipart uploads of the object store, as strict as S3: signatures, sizes, ETags, order, one object.

`choose_fault(what, number, count)`: what is "part", "complete" or "abort", number the part's, and count says the
how-many-eth request for it this is:

    "503" "403"     read the body, then answer so
    "reset"         read half of the body, then reset the connection
    "lost-answer"   do it, then reset instead of answering
    "stall"         read a little, then nothing until the store's `release()`
    "hidden-error"  answer 200 with an error in the body
"""

import collections
import hashlib
import hmac
import re
import secrets
import time
import urllib.parse

from . import websocket

MIB = 1 << 20
RESULT = "<?xml version=\"1.0\"?>\n<CompleteMultipartUploadResult><Key>k</Key></CompleteMultipartUploadResult>"


class Upload:
    """One multipart upload."""

    def __init__(self, upload_id, key, part_bytes):
        self.upload_id = upload_id
        self.key = key
        self.part_bytes = part_bytes
        self.parts = {}
        self.completed = None
        self.aborted = False


class Uploads:
    """All of them; the object store hands it the requests that name one."""

    def __init__(self, store):
        self.store = store
        self.uploads = {}
        self.seen = collections.Counter()
        self.choose_fault = lambda what, number, count: None

    def create(self, key, part_bytes=5 * MIB):
        """As CreateMultipartUpload."""
        upload = Upload(secrets.token_hex(16), key, part_bytes)
        self.uploads[upload.upload_id] = upload
        return upload

    def creds(self, upload, ahead, ttl_sec=600.0):
        """The wire's MultipartUpload with URLs for the first parts."""
        expires = int((time.time() + ttl_sec) * 1000)
        return {
            "upload_id": upload.upload_id,
            "part_size_bytes": upload.part_bytes,
            "parts": self.part_urls(upload.upload_id, 1, ahead, ttl_sec),
            "complete_url": self._presign("POST", upload, None, expires),
            "abort_url": self._presign("DELETE", upload, None, expires),
            "expires_at_ms": expires,
        }

    def part_urls(self, upload_id, first, count, ttl_sec=600.0):
        """The wire's PartUrls.parts."""
        expires = int((time.time() + ttl_sec) * 1000)
        upload = self.uploads[upload_id]
        return [
            {"part_number": number, "url": self._presign("PUT", upload, number, expires)}
            for number in range(first, first + count)
        ]

    def count(self, what, number=None):
        """How many requests there were."""
        with self.store.changed:
            return self.seen[(what, number)]

    def _presign(self, method, upload, number, expires):
        signature = self._sign(method, upload.key, upload.upload_id, number, expires)
        self.store.signatures.add(signature)
        part = f"partNumber={number}&" if number else ""
        return (
            f"http://{self.store.host}:{self.store.port}/bucket/{urllib.parse.quote(upload.key)}?{part}"
            f"uploadId={upload.upload_id}&X-Amz-Date={expires}&X-Amz-Signature={signature}"
        )

    def _sign(self, method, key, upload_id, number, expires):
        text = f"{method}\n{key}\n{upload_id}\n{number or ''}\n{expires}".encode()
        return hmac.new(self.store.secret, text, hashlib.sha256).hexdigest()

    def handle(self, sock, method, key, query, headers):
        """One request; whether the connection stays."""
        number = int(query["partNumber"][0]) if "partNumber" in query else None
        what = {"PUT": "part", "POST": "complete", "DELETE": "abort"}[method]
        upload = self.uploads.get(query["uploadId"][0])
        with self.store.changed:
            self.seen[(what, number)] += 1
            count = self.seen[(what, number)]
            fault = self.choose_fault(what, number, count) or ""
            self.store.changed.notify_all()
        expires = int(query["X-Amz-Date"][0])
        expected = self._sign(method, key, query["uploadId"][0], number, expires)
        size = int(headers.get("content-length", "0"))
        body = self._body(sock, size, fault)
        if body is None:
            return self.store._reset(sock)
        if not hmac.compare_digest(query["X-Amz-Signature"][0], expected):
            return self._answer(sock, 403, self._error("SignatureDoesNotMatch"))
        if time.time() * 1000 > expires:
            return self._answer(sock, 403, self._error("AccessDenied", "Request has expired"))
        if fault.isdigit():
            return self._answer(sock, int(fault), self._error("Fault"))
        if fault == "hidden-error":
            return self._answer(sock, 200, self._error("InternalError"))
        with self.store.changed:
            answer = self._do(what, upload, number, body)
            self.store.changed.notify_all()
        if fault == "lost-answer":
            return self.store._reset(sock)
        return self._answer(sock, *answer)

    def _body(self, sock, size, fault):
        limit = size // 2 if fault == "reset" else min(size, 1000) if fault == "stall" else size
        body = bytearray()
        while len(body) < limit:
            piece = sock.recv(min(65536, limit - len(body)))
            if not piece:
                raise websocket.Closed("the body is cut off")
            body += piece
            if self.store.bytes_per_sec:
                self.store.released.wait(len(piece) / self.store.bytes_per_sec)
        if fault == "stall":
            self.store._stall(sock)
        return None if fault in ("reset", "stall") else bytes(body)

    def _do(self, what, upload, number, body):
        if upload is None or upload.aborted:
            return 404, self._error("NoSuchUpload")
        if what == "abort":
            upload.aborted = True
            return 204, ""
        if what == "part":
            if upload.completed:
                return 404, self._error("NoSuchUpload")
            etag = '"' + hashlib.md5(body).hexdigest() + '"'
            upload.parts[number] = (etag, body)
            return 200, "", etag
        return self._complete(upload, body.decode())

    def _complete(self, upload, xml):
        if upload.completed:
            return (200, RESULT) if upload.completed == xml else (404, self._error("NoSuchUpload"))
        listed = re.findall(r"<Part><PartNumber>(\d+)</PartNumber><ETag>([^<]*)</ETag></Part>", xml)
        numbers = [int(number) for number, _ in listed]
        if not numbers or numbers != list(range(1, len(numbers) + 1)):
            return 400, self._error("InvalidPartOrder")
        if any(n not in upload.parts or upload.parts[n][0] != etag for n, (_, etag) in zip(numbers, listed)):
            return 400, self._error("InvalidPart")
        bodies = [upload.parts[number][1] for number in numbers]
        if any(len(body) != upload.part_bytes for body in bodies[:-1]):
            return 400, self._error("EntityTooSmall")
        upload.completed = xml
        self.store.object_path(upload.key).write_bytes(b"".join(bodies))
        return 200, RESULT

    def _error(self, code, message=""):
        return f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"

    def _answer(self, sock, status, body, etag=None):
        head = f"ETag: {etag}\r\n" if etag else ""
        data = body.encode()
        sock.sendall(f"HTTP/1.1 {status} Answer\r\n{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        return True
