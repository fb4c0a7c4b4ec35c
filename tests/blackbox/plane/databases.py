"""Real databases to back up: SQLite files, and a PostgreSQL server of the test's own."""

import glob
import hashlib
import os
import pathlib
import secrets
import shutil
import socket
import sqlite3
import subprocess
import time


def make_sqlite(path, rows=2000, wal=False, blob=400):
    """A database with some content; its digest."""
    with sqlite3.connect(path) as db:
        if wal:
            db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE note (id INTEGER PRIMARY KEY, title TEXT, body BLOB)")
        db.execute("CREATE INDEX note_title ON note (title)")
        db.executemany(
            "INSERT INTO note (title, body) VALUES (?, ?)",
            ((f"title {i} ü", os.urandom(blob)) for i in range(rows)),
        )
    db.close()
    return sqlite_digest(path)


def sqlite_digest(path):
    """SHA-256 over the SQL dump: equal content, whatever the pages look like."""
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        digest = hashlib.sha256()
        for line in db.iterdump():
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()
    finally:
        db.close()


def free_port():
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def postgres_bin():
    """The newest directory with a server's tools; `None` if there is none."""
    found = sorted(
        glob.glob("/usr/lib/postgresql/*/bin/initdb"), key=lambda p: int(p.split("/")[4])
    )
    return os.path.dirname(found[-1]) if found else None


class Postgres:
    """A server with a password, on TCP and on a unix socket."""

    def __init__(self):
        self.bin = postgres_bin()
        # The server refuses root, and its user must reach the directory, whatever the umask above.
        self.directory = pathlib.Path("/tmp") / f"backupy-pg-{secrets.token_hex(6)}"
        self.directory.mkdir(mode=0o755)
        self.user = "postgres" if os.getuid() == 0 else None
        self.superuser = "admin"
        self.password = "p'w \\\" :" + secrets.token_hex(8)
        self.port = free_port()
        self.socket_dir = self.directory / "run"
        self.data = self.directory / "data"
        self.socket_dir.mkdir()
        pwfile = self.directory / "pw"
        pwfile.write_text(self.password + "\n")
        if self.user:
            for path in (self.directory, self.socket_dir, pwfile):
                shutil.chown(path, self.user)
        self._as(
            "initdb", "-D", self.data, "-U", self.superuser, "--pwfile", pwfile,
            "-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "-N",
        )
        self.start()

    def _as(self, tool, *arguments, check=True):
        command = [f"{self.bin}/{tool}", *map(str, arguments)]
        if self.user:
            command = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups", *command]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=90)
        assert not check or done.returncode == 0, done.stderr + done.stdout
        return done

    def start(self):
        """Starts it and waits until it answers."""
        options = f"-k {self.socket_dir} -p {self.port} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._as("pg_ctl", "-D", self.data, "-w", "-l", self.directory / "log", "-o", options, "start")

    def stop(self, mode="immediate"):
        """Stops it."""
        self._as("pg_ctl", "-D", self.data, "-m", mode, "stop", check=False)

    def close(self):
        """Stops it and removes all of it."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def tool(self, name, *arguments, database="postgres", input=None):
        """Runs psql, pg_restore and the like as the superuser."""
        env = {**os.environ, "PGPASSWORD": self.password, "PGHOST": "127.0.0.1"}
        env.update(PGPORT=str(self.port), PGUSER=self.superuser, PGDATABASE=database)
        done = subprocess.run(
            [f"{self.bin}/{name}", *map(str, arguments)],
            env=env, capture_output=True, input=input, timeout=300,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def sql(self, text, database="postgres"):
        """Runs SQL; the output without decoration."""
        return self.tool("psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-c", text, database=database).decode()

    def fill(self, database, rows=20000):
        """A database with content."""
        self.sql(f'CREATE DATABASE "{database}"')
        self.fill_existing(database, rows)

    @staticmethod
    def conninfo(database):
        """A connection string that means this database and nothing else, whatever is in its name."""
        escaped = database.replace("\\", "\\\\").replace("'", "\\'")
        return f"dbname='{escaped}'"

    def fill_existing(self, database, rows=20000):
        """Tables, an index, a view and a function."""
        self.sql(
            "CREATE TABLE item (id int PRIMARY KEY, name text NOT NULL, data bytea, at timestamptz);"
            f"INSERT INTO item SELECT i, 'name ' || i, decode(md5(i::text), 'hex'), to_timestamp(i) "
            f"FROM generate_series(1, {rows}) i; CREATE INDEX item_name ON item (name);"
            "CREATE VIEW odd AS SELECT * FROM item WHERE id % 2 = 1;"
            "CREATE FUNCTION twice(n int) RETURNS int LANGUAGE sql AS 'SELECT n * 2';",
            database,
        )

    def content(self, database):
        """A plain dump without what differs from one database or minute to the next."""
        text = self.tool("pg_dump", "--no-owner", database=database).decode()
        return "\n".join(
            line for line in text.splitlines() if line and not line.startswith(("--", "\\restrict", "\\unrestrict"))
        )

    def restore(self, dump, database):
        """Loads a custom-format dump into a new database."""
        self.sql(f'CREATE DATABASE "{database}"')
        path = self.directory / f"{database}.dump"
        path.write_bytes(dump)
        self.tool("pg_restore", "--exit-on-error", "-d", database, path)
        path.unlink()

    def wait_no_clients(self, database, timeout=10):
        """Waits until nobody but us is connected to it."""
        deadline = time.monotonic() + timeout
        query = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}' AND pid <> pg_backend_pid()"
        while self.sql(query).strip() != "0":
            assert time.monotonic() < deadline, "somebody is still connected"
            time.sleep(0.1)
