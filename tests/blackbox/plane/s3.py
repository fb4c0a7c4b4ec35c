"""SeaweedFS as an S3 service that checks signatures, and a client of its own (SigV4 by hand) to look into it."""

import datetime
import hashlib
import hmac
import http.client
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.parse
import xml.etree.ElementTree as ElementTree

ACCESS_KEY = "AKOWNER0000000000001"
SECRET_KEY = "s3cret/Key+of=the%20owner"
REGION = "us-east-1"


def program(name):
    """A program that `s3_servers` of scripts/lib.sh installed."""
    here = pathlib.Path(__file__).resolve().parents[3]
    found = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", here / "target")) / "s3-venv/bin" / name
    assert found.exists(), f"{found} is missing: . scripts/lib.sh; s3_servers"
    return found


def port(above=None):
    """A free port below 22768: SeaweedFS adds 10,000 for gRPC."""
    for number in range(above + 1 if above else 10_000 + os.getpid() * 7 % 6000, 22_700):
        try:
            for one in (number, number + 10_000):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", one))
        except OSError:
            continue
        return number
    raise AssertionError("no free port")


class S3:
    """A server with its data; it can be stopped and started again on the same port."""

    def __init__(self, bucket="backups"):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="backupy-weed-"))
        (self.directory / "data").mkdir()
        identity = {
            "name": "owner",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (self.directory / "s3.json").write_text(json.dumps({"identities": [identity]}))
        self.bucket = bucket
        self.process = None
        self.port = None
        self.start()
        status, body = self.request("PUT", f"/{bucket}")
        assert status == 200, body

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        """Starts it and waits until it is ready."""
        for _ in range(5):
            self.port = self.port or port()
            others = [self.port]
            while len(others) < 4:
                others.append(port(above=others[-1]))
            log = open(self.directory / "log", "ab")
            self.process = subprocess.Popen(
                [
                    program("weed"), "mini", f"-dir={self.directory / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
                    f"-master.port={others[1]}", f"-volume.port={others[2]}", f"-filer.port={others[3]}",
                    f"-s3.port={self.port}", f"-s3.config={self.directory / 's3.json'}", "-webdav=false",
                    "-admin.ui=false", "-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory, start_new_session=True,
            )
            log.close()
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and self.process.poll() is None:
                try:
                    if self.request("GET", "/healthz")[0] == 200:
                        return
                except OSError:
                    pass
                time.sleep(0.1)
            self.stop()
        raise AssertionError((self.directory / "log").read_text(errors="replace")[-4000:])

    def stop(self):
        """Stops the process."""
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def close(self):
        """Stops it and forgets its data."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)
        pathlib.Path(f"/tmp/seaweedfs-s3-{self.port}.sock").unlink(missing_ok=True)

    def request(self, method, path, query=None, body=b""):
        """A signed request; (status, body)."""
        now = datetime.datetime.now(datetime.timezone.utc)
        stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
        quote = lambda text: urllib.parse.quote(text, safe="-_.~")  # noqa: E731
        query = "&".join(f"{quote(k)}={quote(v)}" for k, v in sorted((query or {}).items()))
        digest = hashlib.sha256(body).hexdigest()
        headers = {"host": f"127.0.0.1:{self.port}", "x-amz-content-sha256": digest, "x-amz-date": stamp}
        signed = ";".join(headers)
        canonical = "\n".join(
            [method, urllib.parse.quote(path), query, *(f"{k}:{v}" for k, v in headers.items()), "", signed, digest]
        )
        scope = f"{day}/{REGION}/s3/aws4_request"
        text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
        signature = hmac.new(self._signing_key(day), text.encode(), hashlib.sha256).hexdigest()
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/{scope}, SignedHeaders={signed}, Signature={signature}"
        )
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path + (f"?{query}" if query else ""), body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def presign(self, method, key, expires_sec, **query):
        """A presigned URL for an object."""
        stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        scope = f"{stamp[:8]}/{REGION}/s3/aws4_request"
        query |= {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256", "X-Amz-Credential": f"{ACCESS_KEY}/{scope}", "X-Amz-Date": stamp,
            "X-Amz-Expires": str(expires_sec), "X-Amz-SignedHeaders": "host",
        }
        quote = lambda text: urllib.parse.quote(str(text), safe="-_.~")  # noqa: E731
        words = "&".join(f"{quote(k)}={quote(v)}" for k, v in sorted(query.items()))
        path = urllib.parse.quote(f"/{self.bucket}/{key}")
        host = f"127.0.0.1:{self.port}"
        canonical = "\n".join([method, path, words, f"host:{host}", "", "host", "UNSIGNED-PAYLOAD"])
        text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
        signature = hmac.new(self._signing_key(stamp[:8]), text.encode(), hashlib.sha256).hexdigest()
        return f"http://{host}{path}?{words}&X-Amz-Signature={signature}"

    @staticmethod
    def _signing_key(day):
        key = ("AWS4" + SECRET_KEY).encode()
        for part in (day, REGION, "s3", "aws4_request"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        return key

    def create_upload(self, key):
        """Begins a multipart upload; its id."""
        status, body = self.request("POST", f"/{self.bucket}/{key}", {"uploads": ""})
        assert status == 200, (status, body)
        return re.search(rb"<UploadId>([^<]+)</UploadId>", body)[1].decode()

    def _contents(self):
        status, body = self.request("GET", f"/{self.bucket}", {"list-type": "2", "max-keys": "1000"})
        assert status == 200, body
        root = ElementTree.fromstring(re.sub(rb' xmlns="[^"]*"', b"", body))
        return list(root.iter("Contents"))

    def objects(self):
        """Keys and sizes of everything in the bucket."""
        return {one.findtext("Key"): int(one.findtext("Size")) for one in self._contents()}

    def etags(self):
        """Keys and ETags; one made of parts ends with their number."""
        return {one.findtext("Key"): one.findtext("ETag") for one in self._contents()}

    def get(self, key):
        """An object's bytes."""
        status, body = self.request("GET", f"/{self.bucket}/{key}")
        assert status == 200, (status, body)
        return body

    def put(self, key, body):
        """Replaces an object."""
        status, answer = self.request("PUT", f"/{self.bucket}/{key}", body=body)
        assert status == 200, (status, answer)

    def delete(self, key):
        """Removes an object."""
        assert self.request("DELETE", f"/{self.bucket}/{key}")[0] in (200, 204)

    def uploads(self):
        """Keys of the multipart uploads that are not complete."""
        status, body = self.request("GET", f"/{self.bucket}", {"uploads": ""})
        assert status == 200, body
        return re.findall(rb"<Key>([^<]*)</Key>", body)
