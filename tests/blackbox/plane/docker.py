"""A Docker daemon of the test's own, with databases in containers packed from this host's files."""

import os
import pathlib
import secrets
import shutil
import subprocess
import time

from plane.databases import postgres_bin

TOOLS = ["/bin/sh", "/bin/rm", "/bin/sleep", "/usr/bin/env", "/usr/bin/nice"]


class Docker:
    """`dockerd` on a socket in a temporary directory; needs root."""

    def __init__(self):
        self.directory = pathlib.Path("/tmp") / f"backupy-dk-{secrets.token_hex(6)}"
        self.directory.mkdir(mode=0o755)
        self.socket = self.directory / "docker.sock"
        self.password = "p'w \\\" :" + secrets.token_hex(8)
        self.process = None
        self.start_daemon()

    def start_daemon(self):
        """Starts the daemon (again), and waits until it answers."""
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(
                [
                    "dockerd", "--data-root", self.directory / "d", "--exec-root", self.directory / "e",
                    "--pidfile", self.directory / "pid", "-H", f"unix://{self.socket}",
                    "--storage-driver=vfs", "--iptables=false", "--ip6tables=false", "--bridge=none",
                    "--shutdown-timeout=2",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while self._run("version").returncode:
            log = (self.directory / "log").read_text(errors="replace")
            assert self.process.poll() is None and time.monotonic() < deadline, log
            time.sleep(0.1)

    def _run(self, *arguments, **options):
        return subprocess.run(
            ["docker", "-H", f"unix://{self.socket}", *map(str, arguments)],
            capture_output=True, timeout=120, **options,
        )

    def docker(self, *arguments, **options):
        """Runs the `docker` command; its output."""
        done = self._run(*arguments, **options)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    def stop_daemon(self):
        """Stops the daemon, and with it what runs in containers."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def import_busybox(self, *names):
        """Images of nothing but a static program, `/busybox`, under other images' names."""
        root = self.directory / "busybox"
        root.mkdir(exist_ok=True)
        shutil.copy(shutil.which("busybox"), root / "busybox")
        for name in names:
            with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as tar:
                self.docker("import", "--change", "EXPOSE 3306", "-", name, stdin=tar.stdout)
        shutil.rmtree(root)

    def sleep(self, name, image, *options):
        """A container that does nothing."""
        self.docker("run", "-d", "--name", name, "--network=none", *options, image, "/busybox", "sleep", "100000")

    def close(self):
        """Removes the containers, stops the daemon, removes all of it."""
        ids = self._run("ps", "-aq").stdout.decode().split()
        if ids:
            self._run("rm", "-f", *ids)
        self.stop_daemon()
        subprocess.run(["umount", self.directory / "e/netns/default"], capture_output=True)
        shutil.rmtree(self.directory, ignore_errors=True)

    def run_postgres(self, name):
        """A container with a server that asks for `password` everywhere."""
        self._import_postgres()
        tools = postgres_bin()
        start = self.directory / f"{name}.sh"
        quoted = self.password.replace("'", "'\\''")
        start.write_text(
            f"set -e; umask 077; echo '{quoted}' >/tmp/pw; {tools}/initdb -D /tmp/data -U admin "
            "--auth=scram-sha-256 --pwfile=/tmp/pw --no-sync --encoding=UTF8 --locale=C >/dev/null; rm /tmp/pw\n"
            f"exec {tools}/postgres -D /tmp/data -c fsync=off -k /var/run/postgresql\n"
        )
        self.docker(
            "run", "-d", "--name", name, "--network=none", "--user=postgres",
            "-v", f"{start}:/start.sh:ro", "pg", "sh", "/start.sh",
        )
        deadline = time.monotonic() + 120
        while self._sql(name, "SELECT 1").returncode:
            assert time.monotonic() < deadline, self._run("logs", name).stderr.decode()
            time.sleep(0.2)

    def _sql(self, name, text, *options, database="postgres"):
        return self._run(
            "exec", *options, "-e", f"PGPASSWORD={self.password}", name,
            "psql", "-U", "admin", "-d", database, "-qAtX", "-v", "ON_ERROR_STOP=1", "-c", text,
        )

    def sql(self, name, text, *options, database="postgres"):
        """Runs SQL in a container; the output without decoration."""
        done = self._sql(name, text, *options, database=database)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    def logs(self, name):
        """What a container's first process said."""
        return self._run("logs", name).stderr.decode()

    def runs(self, name, program):
        """Whether a program of this name runs in a container."""
        listed = self._run("top", name, "-eo", "pid,comm").stdout.decode().splitlines()
        return any(line.split()[-1:] == [program] for line in listed)

    def _import_postgres(self):
        if self._run("image", "inspect", "pg").returncode == 0:
            return
        root, tools = self.directory / "root", pathlib.Path(postgres_bin())
        for part in ("tmp", "var/run/postgresql", "usr/bin", "bin", "etc"):
            (root / part).mkdir(parents=True, exist_ok=True)
            (root / part).chmod(0o1777)
        wanted = [tools / name for name in ("postgres", "initdb", "pg_dump", "psql")]
        wanted += [tools.parent / "lib" / name for name in ("dict_snowball.so", "plpgsql.so")]
        pack(root, *wanted, *TOOLS)
        share = f"usr/share/postgresql/{tools.parent.name}"
        shutil.copytree(f"/{share}", root / share)
        for name in ("pg_dump", "psql"):
            (root / "usr/bin" / name).symlink_to(tools / name)
        (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\npostgres:x:999:999::/tmp:/bin/sh\n")
        (root / "etc/group").write_text("root:x:0:\npostgres:x:999:\n")
        self._import("pg", root)

    def _import(self, image, root):
        with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as tar:
            self.docker("import", "--change", "ENV PATH=/usr/bin:/bin", "-", image, stdin=tar.stdout)
        shutil.rmtree(root)

    def run_mariadb(self, name, server):
        """A container with what `server` (see plane.mariadb), which is stopped for good, holds."""
        server.process.terminate()
        server.process.wait(60)
        root = self.directory / "root"
        pack(root, "/usr/sbin/mariadbd", "/usr/bin/mariadb-dump", "/usr/bin/mariadb", *TOOLS)
        (root / "tmp").mkdir(mode=0o1777)
        (root / "tmp").chmod(0o1777)
        for part in ("charsets", "english"):
            shutil.copytree(f"/usr/share/mysql/{part}", root / "usr/share/mysql" / part)
        (root / "run").mkdir()
        subprocess.run(["cp", "-a", server.data, root / "data"], check=True)
        owner = (root / "data").stat()
        (root / "run/mysqld").mkdir()
        os.chown(root / "run/mysqld", owner.st_uid, owner.st_gid)
        self._import("maria", root)
        self.docker(
            "run", "-d", "--name", name, "--network=none", f"--user={owner.st_uid}:{owner.st_gid}", "maria",
            "/usr/sbin/mariadbd", "--no-defaults", "--datadir=/data", "--tmpdir=/tmp",
            "--socket=/run/mysqld/mysqld.sock", "--pid-file=/run/mysqld/pid", "--innodb-buffer-pool-size=16M",
        )
        ask = (
            "exec", "-e", f"MYSQL_PWD={server.password}", name, "mariadb", "--no-defaults",
            f"--user={server.superuser}", "--socket=/run/mysqld/mysqld.sock", "-e", "SELECT 1",
        )
        deadline = time.monotonic() + 120
        while self._run(*ask).returncode:
            assert time.monotonic() < deadline, self.logs(name)
            time.sleep(0.2)

    def run_redis(self, name, port, password):
        """A container on the host's network with a Redis server on that port of 127.0.0.1, and keys in it."""
        root = self.directory / "root"
        pack(root, "/usr/bin/redis-server")
        (root / "tmp").mkdir()
        quoted = password.replace("\\", "\\\\").replace('"', '\\"')
        (root / "redis.conf").write_text(
            f'port {port}\nbind 127.0.0.1\nsave ""\ndir /tmp\nenable-debug-command yes\nrequirepass "{quoted}"\n'
            "repl-diskless-sync-delay 0\n"
        )
        self._import("redis", root)
        self.docker("run", "-d", "--name", name, "--network=host", "redis", "/usr/bin/redis-server", "/redis.conf")

    def run_mongo_stand_in(self, name):
        """A container with a stand-in for `mongodump` that writes the recorded archive; the archive."""
        fixtures = pathlib.Path(__file__).resolve().parents[2] / "fixtures"
        root = self.directory / "root"
        pack(root, "/usr/bin/dirname", "/usr/bin/stat", "/bin/cp", "/bin/cat", *TOOLS)
        (root / "tmp").mkdir()
        shutil.copy(fixtures / "mongo-tool", root / "usr/bin/mongodump")
        shutil.copy(fixtures / "mongo.archive", root / "usr/bin/archive")
        (root / "usr/bin/behaviour").write_text('cat "$here/archive"\n')
        self._import("mongo", root)
        self.docker("run", "-d", "--name", name, "--network=none", "mongo", "sleep", "3600")
        return (fixtures / "mongo.archive").read_bytes()


def pack(root, *paths):
    """Copies programs and the libraries they are linked to."""
    for path in paths:
        linked = subprocess.run(["ldd", path], capture_output=True, text=True).stdout.split()
        for file in [path, *(word for word in linked if word.startswith("/"))]:
            target = root / str(file).lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(os.path.realpath(file), target)
