//! Images of MariaDB, Redis and a stand-in for MongoDB's tools, packed from this host's own files.

#![allow(dead_code, reason = "each test crate uses what it needs of it")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use crate::support_docker::{Dockerd, copy_tree, put};
use crate::support_mariadb::{self, PASSWORD, USER};

const PATIENCE: Duration = Duration::from_secs(120);
/// What `run.sh` needs beside the shell.
const USERLAND: [&str; 6] =
    ["/bin/sh", "/bin/rm", "/bin/sleep", "/bin/cat", "/usr/bin/env", "/usr/bin/nice"];

/// A root directory with a shell and what it needs.
fn root(docker: &Dockerd, name: &str) -> std::path::PathBuf {
    let root = docker.dir().join(format!("root-{name}"));
    for dir in ["tmp", "run", "var/lib", "etc", "usr/bin", "bin"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    for dir in ["tmp", "run"] {
        fs::set_permissions(root.join(dir), fs::Permissions::from_mode(0o1777)).unwrap();
    }
    for tool in USERLAND {
        put(&root, Path::new(tool));
    }
    root
}

/// An image `maria` with MariaDB's programs and an empty server; `tools` are its clients.
pub fn import_mariadb(docker: &Dockerd) {
    let root = root(docker, "maria");
    for program in ["/usr/sbin/mariadbd", "/usr/bin/mariadb-dump", "/usr/bin/mariadb"] {
        put(&root, Path::new(program));
    }
    let share = Path::new("/usr/share/mysql");
    copy_tree(&share.join("charsets"), &root.join("usr/share/mysql/charsets"));
    copy_tree(&share.join("english"), &root.join("usr/share/mysql/english"));
    let (uid, gid) = support_mariadb::account().unwrap_or((999, 999));
    let accounts = format!("root:x:0:0::/:/bin/sh\nmysql:x:{uid}:{gid}::/tmp:/bin/sh\n");
    fs::write(root.join("etc/passwd"), accounts).unwrap();
    fs::write(root.join("etc/group"), format!("root:x:0:\nmysql:x:{gid}:\n")).unwrap();
    let scratch = docker.dir().join("scratch");
    let sockets = root.join("run/mysqld");
    for dir in [&scratch, &sockets, &root.join("var/lib")] {
        fs::create_dir_all(dir).unwrap();
        support_mariadb::give(dir);
    }
    // The way to it has to be open to the server's user while it is made.
    fs::set_permissions(docker.dir(), fs::Permissions::from_mode(0o755)).unwrap();
    support_mariadb::install(&root.join("var/lib/mysql"), &scratch);
    docker.import(&root, "maria");
}

/// A container of the image `maria` with a server that answers on its socket and on port 3306.
///
/// With `first` it is the container's first process, as in the official images; else that is a shell that outlives it.
pub fn run_mariadb(docker: &Dockerd, name: &str, first: bool) {
    let init = docker.dir().join("init.sql");
    fs::write(&init, support_mariadb::init_sql()).unwrap();
    fs::set_permissions(&init, fs::Permissions::from_mode(0o600)).unwrap();
    support_mariadb::give(&init);
    let server = "mariadbd --no-defaults --user=mysql --datadir=/var/lib/mysql --tmpdir=/tmp \
                  --socket=/run/mysqld/mysqld.sock --pid-file=/run/mysqld/pid --init-file=/init.sql \
                  --innodb-flush-log-at-trx-commit=0 --innodb-buffer-pool-size=16M --skip-name-resolve";
    let script = match first {
        true => format!("exec {server}"),
        false => format!("{server}; sleep 3600"),
    };
    let mount = format!("{}:/init.sql:ro", init.display());
    let args = ["run", "-d", "--name", name, "--network=none", "-v", &mount, "maria"];
    docker.docker(&[&args[..], &["sh", "-c", &script]].concat());
    wait_until_ready(docker, name, &|| client(docker, name, "", "SELECT 1"));
}

fn client(docker: &Dockerd, name: &str, database: &str, sql: &str) -> Output {
    // The environment of these commands is the test's own business.
    let password = format!("MYSQL_PWD={PASSWORD}");
    let user = format!("--user={USER}");
    let args = ["exec", "-e", &password, name, "mariadb", "--no-defaults", &user, "--batch"];
    let more = ["--skip-column-names", "--default-character-set=utf8mb4"];
    let socket = ["--socket=/run/mysqld/mysqld.sock", "--execute", sql, "--", database];
    docker.try_docker(&[&args[..], &more, &socket].concat())
}

/// Runs SQL as the superuser of the server in a container.
pub fn maria_sql(docker: &Dockerd, name: &str, database: &str, sql: &str) -> String {
    let output = client(docker, name, database, sql);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    assert!(output.status.success(), "{sql}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// An image `mongo` with a stand-in for `mongodump` that writes the recorded archive, and its container `name`.
pub fn run_mongo_stand_in(docker: &Dockerd, name: &str) {
    let root = root(docker, "mongo");
    for tool in ["/usr/bin/dirname", "/usr/bin/stat", "/bin/cp"] {
        put(&root, Path::new(tool));
    }
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let bin = root.join("usr/local/bin");
    fs::create_dir_all(&bin).unwrap();
    fs::copy(fixtures.join("mongo-tool"), bin.join("mongodump")).unwrap();
    fs::copy(fixtures.join("mongo.archive"), bin.join("archive")).unwrap();
    docker.import(&root, "mongo");
    let args = ["run", "-d", "--name", name, "--network=none", "mongo", "sleep", "3600"];
    docker.docker(&args);
}

/// What the stand-in shall do from now on.
pub fn mongo_behaves(docker: &Dockerd, name: &str, behaviour: &str) {
    let write = "printf '%s' \"$1\" >/usr/local/bin/behaviour";
    docker.docker(&["exec", name, "sh", "-c", write, "sh", behaviour]);
}

/// An image `redis` of nothing but the server.
pub fn import_redis(docker: &Dockerd) {
    let root = docker.dir().join("root-redis");
    fs::create_dir_all(root.join("tmp")).unwrap();
    put(&root, Path::new("/usr/bin/redis-server"));
    docker.import(&root, "redis");
}

/// A container of the image `redis`; the settings are in a file, so that no password is in an argument.
pub fn run_redis(docker: &Dockerd, name: &str, network: &str, settings: &str) {
    let file = docker.dir().join(format!("{name}.conf"));
    let common = "save \"\"\nenable-debug-command yes\nrepl-diskless-sync-delay 0\ndir /tmp\n";
    fs::write(&file, format!("{common}{settings}\n")).unwrap();
    let mount = format!("{}:/redis.conf:ro", file.display());
    let network = format!("--network={network}");
    let args = ["run", "-d", "--name", name, &network, "-v", &mount, "redis"];
    docker.docker(&[&args[..], &["/usr/bin/redis-server", "/redis.conf"]].concat());
}

/// A network of the daemon's that leads nowhere but to this host; each daemon has a range of its own.
pub fn make_network(docker: &Dockerd, name: &str) {
    let pid = std::process::id();
    let subnet = format!("10.{}.{}.0/24", 200 + pid % 50, pid / 50 % 256);
    docker.docker(&["network", "create", "--internal", "--subnet", &subnet, name]);
}

/// The address of a container on its network.
pub fn address(docker: &Dockerd, name: &str) -> String {
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    docker.docker(&["inspect", "-f", format, name])
}

fn wait_until_ready(docker: &Dockerd, name: &str, ask: &dyn Fn() -> Output) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let output = ask();
        if output.status.success() {
            return;
        }
        let logs = docker.try_docker(&["logs", name]);
        let logs = String::from_utf8_lossy(&logs.stderr);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(Instant::now() < deadline, "{name}: {said} {logs}");
        std::thread::sleep(Duration::from_millis(200));
    }
}
