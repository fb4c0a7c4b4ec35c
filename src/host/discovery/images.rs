//! An image's name → what is in it. Pure; knows nothing of ports.

use crate::model::Engine;

/// What a name says about an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is this database.
    Engine(Engine),
    /// It has to do with databases but is none: an exporter, a web page, a proxy, a backup tool. Many of them are
    /// built from a database's image and expose its port.
    Other,
    /// The name says nothing.
    Unknown,
}

/// Whole repositories.
const REPOSITORIES: [(&str, Engine); 33] = [
    ("postgres", Engine::PostgreSql),
    ("postgis/postgis", Engine::PostgreSql),
    ("timescale/timescaledb", Engine::PostgreSql),
    ("timescale/timescaledb-ha", Engine::PostgreSql),
    ("pgvector/pgvector", Engine::PostgreSql),
    ("ankane/pgvector", Engine::PostgreSql),
    ("supabase/postgres", Engine::PostgreSql),
    ("kartoza/postgis", Engine::PostgreSql),
    ("citusdata/citus", Engine::PostgreSql),
    ("tensorchord/pgvecto-rs", Engine::PostgreSql),
    ("mysql", Engine::MySql),
    ("mysql/mysql-server", Engine::MySql),
    ("mysql/community-server", Engine::MySql),
    ("percona", Engine::MySql),
    ("percona/percona-server", Engine::MySql),
    ("percona/percona-xtradb-cluster", Engine::MySql),
    ("mariadb", Engine::MariaDb),
    ("linuxserver/mariadb", Engine::MariaDb),
    ("mongo", Engine::MongoDb),
    ("mongodb/mongodb-community-server", Engine::MongoDb),
    ("mongodb/mongodb-enterprise-server", Engine::MongoDb),
    ("percona/percona-server-mongodb", Engine::MongoDb),
    ("redis", Engine::Redis),
    ("redis/redis-stack", Engine::Redis),
    ("redis/redis-stack-server", Engine::Redis),
    ("valkey/valkey", Engine::Redis),
    ("valkey/valkey-bundle", Engine::Redis),
    ("eqalpha/keydb", Engine::Redis),
    ("rapidfort/postgresql", Engine::PostgreSql),
    ("rapidfort/mysql", Engine::MySql),
    ("rapidfort/mariadb", Engine::MariaDb),
    ("rapidfort/mongodb", Engine::MongoDb),
    ("rapidfort/redis", Engine::Redis),
];

/// Of `bitnami/*` and `bitnamilegacy/*`.
const BITNAMI: [(&str, Engine); 11] = [
    ("postgresql", Engine::PostgreSql),
    ("postgresql-repmgr", Engine::PostgreSql),
    ("mysql", Engine::MySql),
    ("mariadb", Engine::MariaDb),
    ("mariadb-galera", Engine::MariaDb),
    ("mongodb", Engine::MongoDb),
    ("mongodb-sharded", Engine::MongoDb),
    ("redis", Engine::Redis),
    ("redis-cluster", Engine::Redis),
    ("valkey", Engine::Redis),
    ("valkey-cluster", Engine::Redis),
];

/// The last part of the name of whoever's image, as in `ghcr.io/immich-app/postgres`.
const LAST_PARTS: [(&str, Engine); 8] = [
    ("postgres", Engine::PostgreSql),
    ("postgresql", Engine::PostgreSql),
    ("mysql", Engine::MySql),
    ("mariadb", Engine::MariaDb),
    ("mongo", Engine::MongoDb),
    ("mongodb", Engine::MongoDb),
    ("redis", Engine::Redis),
    ("valkey", Engine::Redis),
];

/// Words between the dashes and dots of a last part that make it no database.
const OTHER_WORDS: [&str; 29] = [
    "exporter",
    "express",
    "admin",
    "commander",
    "backup",
    "backups",
    "restore",
    "dump",
    "sentinel",
    "operator",
    "router",
    "proxy",
    "pooler",
    "client",
    "cli",
    "tools",
    "migrate",
    "migrations",
    "ui",
    "gui",
    "web",
    "rest",
    "meta",
    "agent",
    "monitor",
    "backrest",
    "barman",
    "insight",
    "shell",
];

/// Parts of a last part that do, wherever they stand.
const OTHER_PARTS: [&str; 27] = [
    "pgadmin",
    "phpmyadmin",
    "phppgadmin",
    "adminer",
    "pgbouncer",
    "pgpool",
    "pgcat",
    "odyssey",
    "proxysql",
    "maxscale",
    "haproxy",
    "_exporter",
    "redisinsight",
    "pgweb",
    "pghero",
    "postgrest",
    "postgraphile",
    "flyway",
    "liquibase",
    "pgbackrest",
    "pgloader",
    "dbgate",
    "cloudbeaver",
    "twemproxy",
    "mongoclient",
    "rockmongo",
    "phpredisadmin",
];

/// Judges an image by its name.
pub fn judge(image: &str) -> Verdict {
    let repository = repository(image);
    let last = repository.rsplit('/').next().unwrap_or_default();
    if let Some(engine) = look_up(&REPOSITORIES, &repository) {
        return Verdict::Engine(engine);
    }
    if is_other(last) {
        return Verdict::Other;
    }
    let bitnami = ["bitnami/", "bitnamilegacy/"];
    let bitnami = bitnami.iter().find_map(|owner| repository.strip_prefix(owner));
    bitnami
        .and_then(|name| look_up(&BITNAMI, name))
        .or_else(|| look_up(&LAST_PARTS, last))
        .map_or(Verdict::Unknown, Verdict::Engine)
}

fn look_up(table: &[(&str, Engine)], name: &str) -> Option<Engine> {
    table.iter().find(|(known, _)| *known == name).map(|(_, engine)| *engine)
}

fn is_other(last: &str) -> bool {
    last.split(['-', '_', '.']).any(|word| OTHER_WORDS.contains(&word))
        || OTHER_PARTS.iter().any(|part| last.contains(part))
}

/// Whether an image is named by nothing but its hash: its name means another one by now.
pub fn is_hash(image: &str) -> bool {
    let digits = image.strip_prefix("sha256:").unwrap_or(image);
    digits.len() >= 12 && digits.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The name without registry, tag and digest, in lower case; of a copy of Docker's own library the part after that.
fn repository(image: &str) -> String {
    let name = image.split('@').next().unwrap_or_default();
    let slash = name.rfind('/').map_or(0, |at| at + 1);
    let colon = name.get(slash..).and_then(|last| last.find(':'));
    let name = colon.map_or(name, |at| name.get(..slash + at).unwrap_or(name));
    let name = name.to_ascii_lowercase();
    let path = match name.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => path,
        _ => &name,
    };
    match path.rsplit_once("library/") {
        Some((before, own)) if before.is_empty() || before.ends_with('/') => own.to_owned(),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn databases() {
        let hash = "a".repeat(64);
        for (image, engine) in [
            ("postgres", Engine::PostgreSql),
            ("postgres:16.2-alpine", Engine::PostgreSql),
            ("Postgres:16", Engine::PostgreSql),
            ("docker.io/library/postgres:16", Engine::PostgreSql),
            ("public.ecr.aws/docker/library/postgres", Engine::PostgreSql),
            ("harbor.example.org:8443/hub/library/mariadb:11", Engine::MariaDb),
            ("localhost:5000/postgres", Engine::PostgreSql),
            ("localhost/postgres", Engine::PostgreSql),
            (&format!("registry:5000/postgres:16@sha256:{hash}"), Engine::PostgreSql),
            (&format!("postgres@sha256:{hash}"), Engine::PostgreSql),
            ("postgis/postgis:16-3.4", Engine::PostgreSql),
            ("timescale/timescaledb:latest-pg16", Engine::PostgreSql),
            ("timescale/timescaledb-ha:pg16", Engine::PostgreSql),
            ("pgvector/pgvector:pg16", Engine::PostgreSql),
            ("supabase/postgres:15.1", Engine::PostgreSql),
            ("ghcr.io/immich-app/postgres:14", Engine::PostgreSql),
            ("bitnami/postgresql:16", Engine::PostgreSql),
            ("bitnamilegacy/postgresql-repmgr", Engine::PostgreSql),
            ("docker.io/bitnami/mysql", Engine::MySql),
            ("bitnami/mariadb-galera", Engine::MariaDb),
            ("bitnamilegacy/mongodb-sharded", Engine::MongoDb),
            ("bitnami/redis-cluster", Engine::Redis),
            ("bitnami/valkey", Engine::Redis),
            ("mariadb:11", Engine::MariaDb),
            ("lscr.io/linuxserver/mariadb", Engine::MariaDb),
            ("mysql:8", Engine::MySql),
            ("mysql/mysql-server", Engine::MySql),
            ("container-registry.oracle.com/mysql/community-server", Engine::MySql),
            ("percona:8", Engine::MySql),
            ("percona/percona-server-mongodb", Engine::MongoDb),
            ("mongo:7", Engine::MongoDb),
            ("redis:7-alpine", Engine::Redis),
            ("redis/redis-stack", Engine::Redis),
            ("redis/redis-stack-server:7.2", Engine::Redis),
            ("valkey/valkey:8", Engine::Redis),
        ] {
            assert_eq!(judge(image), Verdict::Engine(engine), "{image}");
        }
    }

    #[test]
    fn what_only_has_to_do_with_them() {
        for image in [
            "prom/mysqld-exporter",
            "mongo-express:1",
            "oliver006/redis_exporter",
            "quay.io/prometheuscommunity/postgres-exporter:v0.15",
            "bitnami/postgres-exporter",
            "bitnami/redis-sentinel",
            "bitnami/pgbouncer",
            "edoburu/pgbouncer",
            "bitnami/pgpool",
            "dpage/pgadmin4",
            "phpmyadmin/phpmyadmin",
            "phpmyadmin",
            "adminer",
            "rediscommander/redis-commander",
            "redis/redisinsight",
            "prodrigestivill/postgres-backup-local",
            "tiredofit/db-backup",
            "mysql/mysql-router",
            "supabase/postgres-meta",
            "proxysql/proxysql",
            "percona/percona-backup-mongodb",
        ] {
            assert_eq!(judge(image), Verdict::Other, "{image}");
        }
    }

    #[test]
    fn the_rest_says_nothing() {
        let hash = format!("sha256:{}", "0123456789ab".repeat(5));
        for image in
            ["", "nginx", "ghcr.io/acme/shop:1", "library/", "/", ":", "@", &hash, "mypostgres"]
        {
            assert_eq!(judge(image), Verdict::Unknown, "{image}");
        }
        assert!(is_hash(&hash) && is_hash("0123456789ab"));
        assert!(!is_hash("postgres") && !is_hash("sha256:") && !is_hash("facade"));
    }
}
