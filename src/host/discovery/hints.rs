//! Names of connection variables that are worth telling: how a container's database is called and who may log in.
//!
//! Only these exact names are ever passed on. A name is the container's own text, and somebody may have put a
//! secret on the wrong side of the equals sign.

const NAMES: [&str; 54] = [
    "POSTGRES_DB",
    "POSTGRES_DB_FILE",
    "POSTGRES_USER",
    "POSTGRES_USER_FILE",
    "POSTGRES_PASSWORD",
    "POSTGRES_PASSWORD_FILE",
    "POSTGRES_HOST_AUTH_METHOD",
    "PGDATA",
    "PGDATABASE",
    "PGUSER",
    "PGPASSWORD",
    "PGPORT",
    "POSTGRESQL_DATABASE",
    "POSTGRESQL_USERNAME",
    "POSTGRESQL_PASSWORD",
    "POSTGRESQL_PASSWORD_FILE",
    "POSTGRESQL_POSTGRES_PASSWORD",
    "POSTGRESQL_POSTGRES_PASSWORD_FILE",
    "POSTGRESQL_PORT_NUMBER",
    "MYSQL_DATABASE",
    "MYSQL_USER",
    "MYSQL_PASSWORD",
    "MYSQL_PASSWORD_FILE",
    "MYSQL_ROOT_PASSWORD",
    "MYSQL_ROOT_PASSWORD_FILE",
    "MYSQL_ROOT_HOST",
    "MYSQL_RANDOM_ROOT_PASSWORD",
    "MYSQL_ALLOW_EMPTY_PASSWORD",
    "MARIADB_DATABASE",
    "MARIADB_USER",
    "MARIADB_PASSWORD",
    "MARIADB_PASSWORD_FILE",
    "MARIADB_ROOT_PASSWORD",
    "MARIADB_ROOT_PASSWORD_FILE",
    "MARIADB_ROOT_HOST",
    "MARIADB_RANDOM_ROOT_PASSWORD",
    "MARIADB_ALLOW_EMPTY_ROOT_PASSWORD",
    "MONGO_INITDB_DATABASE",
    "MONGO_INITDB_ROOT_USERNAME",
    "MONGO_INITDB_ROOT_USERNAME_FILE",
    "MONGO_INITDB_ROOT_PASSWORD",
    "MONGO_INITDB_ROOT_PASSWORD_FILE",
    "MONGODB_DATABASE",
    "MONGODB_USERNAME",
    "MONGODB_PASSWORD",
    "MONGODB_ROOT_USER",
    "MONGODB_ROOT_PASSWORD",
    "REDIS_PASSWORD",
    "REDIS_PASSWORD_FILE",
    "REDIS_USERNAME",
    "REDIS_ARGS",
    "ALLOW_EMPTY_PASSWORD",
    "VALKEY_PASSWORD",
    "VALKEY_PASSWORD_FILE",
];

/// Whether a variable's name may be told.
pub fn is_hint(name: &str) -> bool {
    NAMES.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_names_only() {
        assert!(is_hint("POSTGRES_PASSWORD") && is_hint("MONGO_INITDB_ROOT_USERNAME"));
        for other in ["", "PATH", "postgres_password", "POSTGRES_PASSWORD_s3cret", "DATABASE_URL"] {
            assert!(!is_hint(other), "{other}");
        }
    }
}
