"""The agent as a process: started through its environment alone, watched through /proc."""

import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import threading
import time

# BACKUPY_RUNNER starts a program of another architecture: "qemu-arm-static".
COMMAND = [*shlex.split(os.environ.get("BACKUPY_RUNNER", "")), os.environ.get("BACKUPY_BIN", "")]

# What a container or a CI machine may set and an agent must not inherit in these tests.
_CLEARED = ("SSL_CERT", "AWS_", "BACKUP", "PG", "HTTP", "http", "NO_PROXY", "no_proxy", "RUST_LOG", "ALL_PROXY")


def clean_environment(**extra):
    """The environment of this process without anything that changes an agent, plus `extra`."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(_CLEARED)}
    # Nobody else's port; a test that wants it says where.
    env["BACKUPY_METRICS_LISTEN_ADDR"] = ""
    env.update({k: str(v) for k, v in extra.items() if v is not None})
    return env


def children_of(pid):
    """All living descendants."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = pathlib.Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue
            parents[int(entry)] = int(stat.rpartition(")")[2].split()[1])
    found, queue = [], [pid]
    while queue:
        parent = queue.pop()
        below = [child for child, above in parents.items() if above == parent]
        found += below
        queue += below
    return found


class Agent:
    """`backupy run` in a state directory. May be started many times; the log is one file."""

    def __init__(self, directory, plane=None, ca=None, **env):
        self.directory = pathlib.Path(directory)
        self.state = self.directory / "state"
        self.log_path = self.directory / "agent.log"
        self.process = None
        self.exits = []
        base = {"BACKUPY_STATE_DIR": self.state, "BACKUPY_LOG_LEVEL": "debug"}
        if plane is not None:
            base.update(BACKUPY_SERVER_URL=plane.url, BACKUPY_AGENT_KEY=plane.key)
            if plane.context is None or plane.objects.context is None:
                base["BACKUPY_DEV_ALLOW_INSECURE"] = "true"
        if ca is not None:
            base["BACKUPY_CA_FILE"] = ca.path
        self.env = {k: v for k, v in {**base, **env}.items() if v is not None}

    def start(self, *arguments):
        """Starts `backupy run`."""
        assert self.process is None or self.process.poll() is not None, "already running"
        log = open(self.log_path, "ab")
        self.process = subprocess.Popen(
            [*COMMAND, "run", *arguments],
            env=clean_environment(**self.env),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=self.directory,
        )
        log.close()
        return self

    @property
    def pid(self):
        """The process id."""
        return self.process.pid

    @property
    def running(self):
        """Whether the process lives."""
        return self.process is not None and self.process.poll() is None

    @property
    def log(self):
        """All output so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def wait_exit(self, timeout):
        """The exit code."""
        code = self.process.wait(timeout)
        self.exits.append(code)
        return code

    def stop(self, timeout=15):
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait_exit(timeout)

    def kill(self):
        """SIGKILL, as a crash would."""
        self.process.kill()
        self.process.wait()

    def command(self, *arguments, timeout=30, **env):
        """Runs another subcommand with the same environment: CompletedProcess with text."""
        return subprocess.run(
            [*COMMAND, *arguments],
            env=clean_environment(**{**self.env, **env}),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            cwd=self.directory,
        )

    def dump_state(self, *arguments):
        """`dump-state` as JSON."""
        done = self.command("dump-state", *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    # --- what /proc says

    def memory(self, field="VmRSS"):
        """Bytes: VmRSS now, VmHWM at its peak."""
        status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(rf"{field}:\s+(\d+) kB", status).group(1)) * 1024

    def context_switches(self):
        """The sum over all threads."""
        total = 0
        for task in pathlib.Path(f"/proc/{self.pid}/task").iterdir():
            text = (task / "status").read_text()
            total += sum(int(n) for n in re.findall(r"ctxt_switches:\s+(\d+)", text))
        return total

    def thread_names(self):
        """For failing tests: who is there."""
        return sorted(p.read_text().strip() for p in pathlib.Path(f"/proc/{self.pid}/task").glob("*/comm"))

    def disk_bytes(self):
        """What `du` would say of the state directory."""
        seen, total = set(), 0
        for path in [self.state, *self.state.rglob("*")]:
            try:
                stat = path.lstat()
            except FileNotFoundError:
                continue
            if stat.st_ino not in seen:
                seen.add(stat.st_ino)
                total += stat.st_blocks * 512
        return total

    def children(self):
        """The processes below the agent."""
        return children_of(self.pid)


class Watcher:
    """Looks at argv and environment of an agent and all its children, as fast as it can, for secrets."""

    def __init__(self, agent, secrets):
        self.agent = agent
        self.secrets = [s.encode() if isinstance(s, str) else s for s in secrets]
        self.found = []
        self.seen = set()
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.thread.join()

    @staticmethod
    def _words(pid):
        try:
            return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return b""

    def _run(self):
        while not self.stopping.wait(0.003):
            if not self.agent.running:
                continue
            own = self.agent.pid
            own_words = self._words(own)
            for pid in [own, *children_of(own)]:
                # Between fork and exec a child is still the agent, its environment included.
                if pid != own and self._words(pid) == own_words:
                    continue
                # The agent's own environment holds its key by design of the bootstrap.
                files = ("cmdline", "comm") if pid == own else ("cmdline", "comm", "environ")
                for name in files:
                    try:
                        data = pathlib.Path(f"/proc/{pid}/{name}").read_bytes()
                    except OSError:
                        continue
                    if name == "cmdline" and pid != own:
                        self.seen.add(data.split(b"\0")[0].rpartition(b"/")[2].decode())
                    for secret in self.secrets:
                        if secret in data:
                            self.found.append((name, secret, data))


def find_secrets(directory, secrets):
    """(file, secret) for every plain file below `directory` that contains one of them."""
    found = []
    for path in pathlib.Path(directory).rglob("*"):
        if not path.is_file() or path.is_symlink():
            continue
        try:
            data = path.read_bytes()
        except OSError:
            continue
        for secret in secrets:
            if (secret.encode() if isinstance(secret, str) else secret) in data:
                found.append((str(path), secret))
    return found


def wait_until(condition, timeout, what="that"):
    """Polls until `condition()` is true; its value."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise TimeoutError(f"{what} did not happen within {timeout} s")
