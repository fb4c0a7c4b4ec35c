"""`decrypt` on foreign artifacts: good ones open, everything else is refused and leaves no file."""

import base64
import os
import struct
import subprocess

import pytest
import zstandard

from plane import agent as agents
from plane import artifact

KEY = bytes(range(32))
DUMP = b"-- a dump\n" + os.urandom(2_500_000) + b"\n-- end\n"
FAILED, USAGE = 1, 2


class Desk:
    """A directory with an artifact in it."""

    def __init__(self, lab):
        self.agent = lab.agent(start=False)
        self.lab = lab
        self.directory = lab.directory
        self.input = lab.directory / "in"
        self.output = lab.directory / "out"
        self.key_file = lab.directory / "key"
        self.key_file.write_bytes(KEY)
        self.key_file.chmod(0o600)

    def run(self, data, *arguments, token=None, key_file=True, out=None):
        """Runs `decrypt`."""
        self.input.write_bytes(data)
        source = ["--token", token] if token else ["--key-file", self.key_file] if key_file else []
        return self.agent.command(
            "decrypt", *map(str, source), "--in", str(self.input), "--out", str(out or self.output), *arguments
        )

    def refused(self, data, *arguments, words=(), **options):
        """It fails with a message, and nothing is left."""
        before = set(os.listdir(self.directory))
        done = self.run(data, *arguments, **options)
        assert done.returncode in (FAILED, USAGE), (done.returncode, done.stderr)
        assert done.stderr.strip(), "a message says why"
        for word in words:
            assert word in done.stderr.lower(), done.stderr
        assert not self.output.exists()
        assert set(os.listdir(self.directory)) - before <= {"in"}, "nothing else is left either"
        assert base64.b64encode(KEY).decode() not in done.stderr
        return done.stderr


@pytest.fixture
def desk(lab):
    return Desk(lab)


@pytest.mark.parametrize("compression", ["zstd", "gzip", "none"])
@pytest.mark.parametrize("way", ["key-file", "key-hex", "key-base64", "token", "token-file"])
def test_good(desk, compression, way):
    data = artifact.seal(artifact.compress(DUMP, compression), KEY)
    token = artifact.token(KEY, sha256=artifact.sha256(data))
    arguments = []
    if way == "key-hex":
        desk.key_file.write_text(KEY.hex() + "\n")
    elif way == "key-base64":
        desk.key_file.write_text(base64.b64encode(KEY).decode() + "\n")
    elif way == "token-file":
        (desk.directory / "token").write_text(token + "\n")
        arguments = ["--token-file", str(desk.directory / "token")]
    done = desk.run(
        data, *arguments, token=token if way == "token" else None, key_file=way.startswith("key")
    )
    assert done.returncode == 0, done.stderr
    assert desk.output.read_bytes() == DUMP
    assert desk.output.stat().st_mode & 0o077 == 0


def test_skip_decompress(desk):
    # As a stream of unknown size and without a checksum, which existing agents write.
    compressed = zstandard.ZstdCompressor(write_content_size=False).compress(DUMP)
    assert desk.run(artifact.seal(compressed, KEY)).returncode == 0
    assert desk.output.read_bytes() == DUMP
    desk.output.unlink()
    assert desk.run(artifact.seal(compressed, KEY), "--skip-decompress").returncode == 0
    assert desk.output.read_bytes() == compressed


def test_empty(desk):
    assert desk.run(artifact.seal(b"", KEY)).returncode == 0
    assert desk.output.read_bytes() == b""


def test_pipes(desk):
    data = artifact.seal(artifact.compress(DUMP, "gzip"), KEY)
    done = subprocess.run(
        [*agents.COMMAND, "decrypt", "--key-file", desk.key_file, "--in", "-", "--out", "-"],
        input=data, capture_output=True, env=agents.clean_environment(), timeout=30,
    )
    assert done.returncode == 0 and done.stdout == DUMP


def damaged():
    """(name, bytes) for every kind of damage."""
    sealed = artifact.seal(artifact.compress(DUMP, "none"), KEY)
    frames = artifact.frames(sealed)
    join = lambda parts: b"".join(struct.pack(">I", len(p)) + p for p in parts) + b"\0\0\0\0"
    flipped = bytearray(sealed)
    flipped[len(sealed) // 2] ^= 1
    yield "no end marker", sealed[:-4]
    yield "cut in the end marker", sealed[:-2]
    yield "cut in a frame", sealed[: len(sealed) // 2]
    yield "cut in a length", sealed[: 4 + len(frames[0]) + 2]
    yield "cut after a whole frame", sealed[: 4 + len(frames[0])]
    yield "bit flipped", bytes(flipped)
    yield "bytes after the end", sealed + b"x"
    yield "another artifact after the end", sealed + sealed
    yield "oversized frame", struct.pack(">I", (1 << 20) + 29) + os.urandom((1 << 20) + 29) + b"\0\0\0\0"
    yield "huge frame", b"\xff\xff\xff\xff" + os.urandom(100)
    yield "tiny frame", struct.pack(">I", 27) + os.urandom(27) + b"\0\0\0\0"
    yield "short frame in the middle", artifact.seal(DUMP, KEY, frame_size=1 << 19)
    yield "garbage", os.urandom(5000)
    yield "empty file", b""
    yield "text", b"this is not an artifact\n" * 100
    yield "middle frame missing", join([frames[0], frames[2]])


DAMAGED = dict(damaged())


@pytest.mark.parametrize("name", [n for n in DAMAGED if n != "middle frame missing"])
def test_damage(desk, name):
    desk.refused(DAMAGED[name])


def test_damage_through_a_pipe_is_an_exit_code(desk):
    assert desk.run(DAMAGED["no end marker"], out="-").returncode == FAILED


@pytest.mark.parametrize("name", ["reordered", "middle frame missing", "frame twice"])
def test_the_hash_in_the_token_sees_what_frames_cannot(desk, name):
    sealed = artifact.seal(DUMP, KEY)
    frames = artifact.frames(sealed)
    order = {"reordered": [1, 0, 2], "middle frame missing": [0, 2], "frame twice": [0, 0, 1, 2]}[name]
    bad = b"".join(struct.pack(">I", len(frames[i])) + frames[i] for i in order) + b"\0\0\0\0"
    desk.refused(bad, token=artifact.token(KEY, sha256=artifact.sha256(sealed)), words=["sha-256"])


def test_wrong_key(desk):
    desk.key_file.write_bytes(b"x" * 32)
    desk.refused(artifact.seal(DUMP, KEY), words=["key"])


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_key_file_of_another_length(desk, size):
    desk.key_file.write_bytes(b"\x01" * size)
    desk.refused(artifact.seal(DUMP, KEY), words=["32"])


def test_corrupt_compression(desk):
    for name in ("zstd", "gzip"):
        data = bytearray(artifact.compress(DUMP, name))
        data[len(data) // 2] ^= 0xFF
        desk.refused(artifact.seal(bytes(data), KEY))
        desk.refused(artifact.seal(artifact.compress(DUMP, name)[:-9], KEY))


@pytest.mark.parametrize(
    "claims, word",
    [
        ({"exp": 1_000_000_000}, "expire"),
        ({"iss": "somebody"}, "iss"),
        ({"aud": "backupy-login"}, "aud"),
        ({"alg": "AES-128-GCM"}, "alg"),
        ({"format_version": 2}, "version"),
        ({"dek": base64.b64encode(b"short").decode()}, "32"),
        ({"dek": "***"}, "dek"),
        ({"dek": None}, "dek"),
        ({"exp": None}, "exp"),
        ({"sha256": "00" * 32}, "sha-256"),
    ],
)
def test_bad_claims(desk, claims, word):
    data = artifact.seal(DUMP, KEY)
    message = desk.refused(data, token=artifact.token(KEY, **claims)).lower()
    synonyms = {"iss": ["iss"], "aud": ["aud"], "alg": ["alg", "aes"], "dek": ["dek", "key"], "exp": ["exp"]}
    assert any(w in message for w in synonyms.get(word, [word])), message


@pytest.mark.parametrize("token", ["x", "a.b", "a.b.c", "a.b.c.d", "....", "ey.ey.ey", "é.é.é"])
def test_malformed_tokens(desk, token):
    desk.refused(artifact.seal(DUMP, KEY), token=token, words=["token"])


def test_an_existing_output_survives_a_failure(desk):
    desk.output.write_bytes(b"precious")
    done = desk.run(DAMAGED["no end marker"])
    assert done.returncode != 0
    assert desk.output.read_bytes() == b"precious"


def test_output_directory_missing(desk):
    done = desk.run(artifact.seal(DUMP, KEY), out=desk.directory / "no" / "such" / "file")
    assert done.returncode != 0 and "no/such" in done.stderr
