"""A MariaDB server of the test's own."""

import os
import pathlib
import secrets
import shutil
import subprocess
import time

from plane.databases import free_port

ENV = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin"}


class MariaDb:
    """A server with a password, on TCP and on a unix socket; as root it runs as the user mysql."""

    def __init__(self):
        self.directory = pathlib.Path("/tmp") / f"backupy-mdb-{secrets.token_hex(6)}"
        self.directory.mkdir(mode=0o755)
        self.user = "mysql" if os.getuid() == 0 else None
        self.superuser = "admin"
        self.password = "p'w \\\" # ; n\\n:" + secrets.token_hex(8) + " "
        self.port = free_port()
        self.socket = self.directory / "mysqld.sock"
        self.data = self.directory / "data"
        self.process = None
        init = self.directory / "init.sql"
        literal = self.password.replace("\\", "\\\\").replace("'", "\\'")
        init.write_text(
            f"CREATE USER IF NOT EXISTS '{self.superuser}'@'%' IDENTIFIED BY '{literal}';\n"
            f"GRANT ALL ON *.* TO '{self.superuser}'@'%' WITH GRANT OPTION;\n"
        )
        if self.user:
            for path in (self.directory, init):
                shutil.chown(path, self.user, self.user)
        subprocess.run(
            self._as(
                "mariadb-install-db", "--no-defaults", f"--datadir={self.data}", "--skip-test-db",
                f"--tmpdir={self.directory}",
                "--auth-root-authentication-method=normal",
            ),
            check=True, capture_output=True, cwd="/", env=ENV, timeout=120,
        )
        self.start()

    def _as(self, *command):
        if not self.user:
            return [*command]
        return ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups", *command]

    def start(self):
        """Starts it and waits until it answers."""
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(
                self._as(
                    "mariadbd", "--no-defaults", f"--datadir={self.data}", f"--socket={self.socket}",
                    f"--tmpdir={self.directory}",
                    f"--port={self.port}", "--bind-address=127.0.0.1", f"--init-file={self.directory}/init.sql",
                    f"--pid-file={self.directory}/pid", "--innodb-flush-log-at-trx-commit=0",
                    "--innodb-buffer-pool-size=16M", "--skip-name-resolve",
                ),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", env=ENV,
            )
        deadline = time.monotonic() + 90
        while self.client("SELECT 1", check=False).returncode != 0:
            log = (self.directory / "log").read_text()[-2000:]
            assert self.process.poll() is None and time.monotonic() < deadline, log
            time.sleep(0.1)

    def stop(self):
        """Kills it, as a crash would."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def close(self):
        """Stops it and removes all of it."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def client(self, sql=None, database="", input=None, check=True, tool="mariadb", options=()):
        """Runs the client or another tool as the superuser."""
        command = [
            tool, "--no-defaults", f"--socket={self.socket}", f"--user={self.superuser}",
            "--default-character-set=utf8mb4", *options,
        ]
        if sql is not None:
            command += ["--batch", "--skip-column-names", f"--execute={sql}"]
        command += ["--", database] if database else []
        done = subprocess.run(
            command, env={**ENV, "MYSQL_PWD": self.password}, capture_output=True, input=input, timeout=300
        )
        assert not check or done.returncode == 0, done.stderr.decode()
        return done

    def sql(self, text, database=""):
        """Runs SQL; what it answers."""
        return self.client(text, database).stdout.decode().strip()

    @staticmethod
    def quoted(name):
        """A name in backticks."""
        return "`" + name.replace("`", "``") + "`"

    def fill(self, database, rows=20000):
        """A database with tables, blobs, letters of four bytes, a view, a trigger, routines and an event."""
        self.sql(f"CREATE DATABASE {self.quoted(database)}")
        self.sql(
            "CREATE TABLE item (id INT PRIMARY KEY, name TEXT, data BLOB, at TIMESTAMP NULL) CHARSET=utf8mb4;"
            f"INSERT INTO item SELECT seq, CONCAT('größe 😀 ', seq), UNHEX(SHA2(seq, 256)), FROM_UNIXTIME(seq) "
            f"FROM seq_1_to_{rows};"
            "CREATE VIEW odd AS SELECT * FROM item WHERE id % 2 = 1;"
            "CREATE TRIGGER before_item BEFORE INSERT ON item FOR EACH ROW SET NEW.name = UPPER(NEW.name);"
            "CREATE FUNCTION twice(n INT) RETURNS INT DETERMINISTIC RETURN n * 2;"
            "CREATE PROCEDURE hello() SELECT '-- Dump completed on 2026-01-01 00:00:00';"
            "CREATE EVENT daily ON SCHEDULE EVERY 1 DAY DO SET @a = '😀'",
            database,
        )

    def content(self, database):
        """All definitions and rows, without what differs from one database or minute to the next."""
        options = ("--routines", "--events", "--hex-blob", "--skip-comments", "--order-by-primary")
        text = self.client(database=database, tool="mariadb-dump", options=options).stdout.decode()
        return text.replace(self.quoted(database), "`it`")

    def restore(self, dump, database):
        """Loads a dump into a new database."""
        self.sql(f"CREATE DATABASE {self.quoted(database)}")
        self.client(database=database, input=dump, options=("--binary-mode",))
