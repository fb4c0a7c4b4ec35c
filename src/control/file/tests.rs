//! By claim: what a good file means, and that every mistake is found with its line, all at once.

use std::path::Path;

use super::*;
use crate::model::{Engine, Target, Way};

const GOOD: &str = r#"
state_dir = "/var/lib/backupy"
on_failure = "mail -s failed root"
max_parallel = 2

[storage]
directory = "/var/backups/db"

[keys]
master = "/etc/backupy/master.key"

[maintenance]
start = "23:30"
end = "01:00"

[[backup]]
name = "shop"
database = "postgres://backup@localhost:5432/shop?sslmode=require"
password = "file:/etc/backupy/shop.password"
cron = "0 3 * * *"
keep = { last = 7, days = 30 }
compression = "gzip"
timeout = "2h"
retry = { attempts = 5, backoff = ["30s", "5m"] }

[[backup]]
name = "app"
database = "sqlite:///srv/app.db"
every = "6h"
keep = { last = 3 }
"#;

#[test]
fn a_good_file() {
    let settings = parse(GOOD).unwrap();
    assert_eq!(settings.storage.directory(), Some(Path::new("/var/backups/db")));
    assert_eq!(settings.master_key, Path::new("/etc/backupy/master.key"));
    assert_eq!((settings.max_parallel, settings.backups.len()), (2, 2));
    assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
    let shop = settings.backup("shop").unwrap();
    assert_eq!(shop.schedule.to_string(), "0 3 * * *");
    assert_eq!(shop.keep, keep::Rule { last: Some(7), days: Some(30) });
    assert_eq!((shop.compression, shop.timeout), (Compression::Gzip, Duration::from_secs(7200)));
    assert_eq!(shop.retry, RetryPolicy { max_attempts: 5, backoff_sec: vec![30, 300] });
    assert_eq!(shop.target.connection.password_ref.expose(), "file:/etc/backupy/shop.password");
    let app = settings.backup("app").unwrap();
    assert_eq!(app.schedule, Schedule::Every(Duration::from_secs(6 * 3600)));
    assert_eq!((app.target.engine, app.timeout), (Engine::Sqlite, Duration::from_secs(12 * 3600)));
    assert_eq!(settings, parse(GOOD).unwrap(), "the same file means no change");
}

#[test]
fn the_agents_configuration() {
    let config = parse(GOOD).unwrap().agent_config(7);
    assert_eq!((config.version, config.advanced.max_parallel_jobs), (7, 2));
    assert_eq!(config.maintenance.unwrap().start_utc, "23:30");
    let job = &config.jobs[0];
    assert_eq!(
        (job.id.as_str(), job.target_id.as_str(), job.cron.as_str()),
        ("shop", "shop", "0 3 * * *")
    );
    assert_eq!((job.timeout_sec, job.retention_days, job.encryption_enabled), (7200, 30, true));
    assert_eq!(config.jobs[1].cron, "");
    assert_eq!(config.targets[1].connection.database, "/srv/app.db");
}

/// (line, a part of the message) of every problem.
fn problems(text: &str) -> Vec<(usize, String)> {
    let problems = parse(text).expect_err("the file is wrong");
    problems.into_iter().map(|p| (p.line, p.message)).collect()
}

#[test]
fn all_problems_at_once_each_with_its_line() {
    let text = r#"state_dir = "var/lib"
colour = "red"
[storage]
directroy = "/x"
[maintenance]
start = "2:00"
end = "04:00"
[[backup]]
name = "shop"
databse = "postgres://localhost/shop"
cron = "0 3 * *"
timeout = 30
[[backup]]
name = "Shop"
database = "oracle://x"
every = "6"
cron = "0 3 * * *"
keep = { lsat = 7 }
[[backup]]
name = "a/b"
database = "sqlite:app.db"
password = "env:A-B"
compression = "lz4"
retry = { attempts = 0, backoff = ["x", 3] }
on_failure = "x"
"#;
    let found = problems(text);
    let expected = [
        (1, "`state_dir` must be an absolute path"),
        (2, "unknown key `colour` at the top"),
        (3, "[storage] needs `directory`"),
        (4, "unknown key `directroy` [storage]; did you mean `directory`?"),
        (6, "the window's start"),
        (8, "[[backup]] needs `database`"),
        (10, "unknown key `databse` [[backup]]; did you mean `database`?"),
        (11, "`cron`: a cron line has five fields"),
        (12, "`timeout` must be a duration such as \"6h\", not a whole number"),
        (14, "the name \"Shop\" is taken by line 9"),
        (15, "`database`: a database is a URL"),
        (16, "both `cron` and `every`"),
        (16, "`every`: a duration is"),
        (18, "`keep` says nothing"),
        (18, "unknown key `lsat` keep; did you mean `last`?"),
        (19, "[[backup]] needs a schedule"),
        (20, "`name` may have letters"),
        (21, "`database`: a SQLite file is named by its absolute path"),
        (22, "`password`: after env:"),
        (23, "`compression` must be"),
        (24, "`attempts` must be a number from 1 to 100"),
        (24, "`backoff` must be a list of durations"),
        (25, "unknown key `on_failure` [[backup]]; it belongs at the top"),
    ];
    for (line, part) in expected {
        assert!(
            found.iter().any(|(l, m)| *l == line && m.contains(part)),
            "{line}: {part}\n{found:#?}"
        );
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    assert!(found.is_sorted());
}

#[test]
fn several_syntax_errors_are_reported_together_and_invent_no_missing_keys() {
    let found = problems("[storage\ndirectory = \"/x\"\n[[backup]]\nname = \nname2 == 3\n");
    assert!(found.len() >= 2, "{found:?}");
    assert!(found.iter().all(|(_, message)| !message.contains("needs")), "{found:?}");
    assert!(found.iter().any(|(line, _)| *line == 1) && found.iter().any(|(line, _)| *line >= 4));
}

#[test]
fn an_upload_can_be_limited() {
    let with = |limit: &str| {
        format!("{}\nupload_limit = {limit}\n", with_paths("/s", "/b", "/k").trim_end())
    };
    let good = parse(&with("\"512KiB/s\"")).unwrap();
    assert_eq!(good.backups.last().unwrap().upload_bytes_per_sec, 512 << 10);
    assert_eq!(good.agent_config(1).jobs.last().unwrap().upload_bytes_per_sec, 512 << 10);
    for bad in ["\"fast\"", "\"1KiB/s\"", "7"] {
        assert!(
            problems(&with(bad)).iter().any(|(_, text)| text.contains("upload_limit")),
            "{bad}"
        );
    }
}

#[test]
fn an_empty_file_says_what_it_needs() {
    let found = problems("");
    assert!(found.iter().any(|(_, m)| m.contains("`storage`")));
    assert!(found.iter().any(|(_, m)| m.contains("[[backup]]")));
}

fn with_paths(state: &str, storage: &str, master: &str) -> String {
    format!(
        "state_dir = \"{state}\"\n[storage]\ndirectory = \"{storage}\"\n[keys]\nmaster = \"{master}\"\n\
         [[backup]]\nname = \"a\"\ndatabase = \"sqlite:///a.db\"\nevery = \"1h\"\n"
    )
}

#[test]
fn state_storage_and_key_are_apart() {
    assert!(parse(&with_paths("/s", "/b", "/k/master.key")).is_ok());
    assert!(parse(&with_paths("/s", "/b", "/s/master.key")).is_ok());
    assert!(parse(&with_paths("/s", "/sb", "/k")).is_ok(), "a common prefix is not a parent");
    for (state, storage, master, part) in [
        ("/s", "/s/backups", "/k", "inside the state directory"),
        ("/b/state", "/b", "/k", "contains the state directory"),
        ("/s", "/s", "/k", "inside the state directory"),
        ("/s", "/b", "/b/master.key", "master key lies inside the storage"),
        ("/s", "/b/../s/x", "/k", "without \"..\""),
        ("/s", "/", "/k", "root of the file system"),
        ("/s", "/b/", "/b//x/./k", "master key lies inside the storage"),
    ] {
        let found = problems(&with_paths(state, storage, master));
        assert!(found.iter().any(|(_, m)| m.contains(part)), "{part}: {found:?}");
    }
}

#[test]
fn passwords_in_the_clear_are_warned_about_and_never_shown() {
    let text = |extra: &str| {
        format!(
            "[storage]\ndirectory = \"/b\"\n[[backup]]\nname = \"a\"\nevery = \"1h\"\nkeep = {{ last = 1 }}\n{extra}\n"
        )
    };
    let settings = parse(&text("database = \"postgres://u:hunter2@h/x\"")).unwrap();
    assert_eq!(settings.warnings.len(), 1);
    assert_eq!(settings.warnings[0].line, 7);
    let settings = parse(&text("database = \"postgres://u@h/x\"\npassword = \"hunter2\"")).unwrap();
    assert_eq!(settings.warnings.len(), 1);
    assert!(!format!("{settings:?}").contains("hunter2"));
    let found =
        problems(&text("database = \"postgres://u:hunter2@h:x/x\"\npassword = \"env:1hunter2\""));
    assert!(found.len() >= 2 && !format!("{found:?}").contains("hunter2"), "{found:?}");
    let found = problems(&text("database = \"postgres://u:a@h/x\"\npassword = \"env:A\""));
    assert!(found[0].1.contains("given twice"));
}

#[test]
fn a_container_is_another_way_in() {
    let text = "[storage]\ndirectory = \"/b\"\n[[backup]]\nname = \"a\"\nevery = \"1h\"\n\
                database = \"postgres://u@localhost/x\"\ncontainer = \"db-1\"\n";
    let settings = parse(text).unwrap();
    let connection = &settings.backups[0].target.connection;
    assert_eq!((connection.way, connection.container.as_str()), (Way::DockerExec, "db-1"));
    let own_socket = parse(&text.replace("localhost", "")).unwrap();
    assert_eq!(own_socket.backups[0].target.connection.host, "");
    let no_container = text.replace("localhost", "").replace("container = \"db-1\"", "");
    assert!(problems(&no_container)[0].1.contains("names no host"));
    assert!(settings.warnings[0].message.contains("`keep`"));
    assert!(problems(&text.replace("db-1", "--rm"))[0].1.contains("`container`"));
    for (url, engine, host) in [
        ("mariadb://u@/x", Engine::MariaDb, ""),
        ("mysql://u@/", Engine::MySql, ""),
        ("mysql://u@/x?socket=/run/my.sock", Engine::MySql, "/run/my.sock"),
        ("mongodb://u@/x", Engine::MongoDb, "mongodb://localhost/x"),
        ("redis://", Engine::Redis, ""),
        ("rediss://cache.internal", Engine::Redis, "cache.internal"),
    ] {
        let settings = parse(&text.replace("postgres://u@localhost/x", url)).unwrap();
        let Target { engine: found, connection, .. } = &settings.backups[0].target;
        assert_eq!((*found, connection.host.as_str()), (engine, host), "{url}");
        assert_eq!(connection.way, Way::DockerExec);
    }
    let socket = "redis:///?host=/run/redis.sock";
    assert!(
        problems(&text.replace("postgres://u@localhost/x", socket))[0].1.contains("a Redis socket")
    );
}

#[test]
fn flags_mean_what_a_file_would() {
    let flags = Flags {
        database: "sqlite:///srv/my app.db".into(),
        to: "/var/backups".into(),
        every: Some("6h".into()),
        keep_last: Some(7),
        ..Flags::default()
    };
    let settings = Settings::from_flags(&flags).unwrap();
    assert_eq!(settings.backups[0].name, "my-app");
    assert_eq!(settings.state_dir, Path::new(STATE_DIR));
    assert!(settings.warnings.is_empty());
    assert_eq!(parse(&flags.as_file()).unwrap(), settings);
    for (database, name) in
        [("mongodb://u@a:1,b/shop?tls=true", "shop"), ("mongodb+srv://c0.example.net", "database")]
    {
        let flags = Flags { database: database.into(), ..flags.clone() };
        assert_eq!(Settings::from_flags(&flags).unwrap().backups[0].name, name);
    }
}

#[test]
fn flags_are_called_by_their_names() {
    let flags = Flags {
        database: "postgres://u@h/sh\"op\\".into(),
        to: "backups\n".into(),
        every: Some("soon".into()),
        keep_last: Some(0),
        ..Flags::default()
    };
    let found = Settings::from_flags(&flags).unwrap_err();
    assert!(found.iter().all(|p| p.line == 0 && !p.to_string().contains("line")));
    for part in ["`--to` must be an absolute path", "`--every`: a duration", "`--keep`"] {
        assert!(found.iter().any(|p| p.message.contains(part)), "{part}: {found:?}");
    }
}

#[test]
fn files_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b.toml");
    assert!(load(&path).unwrap_err()[0].message.contains("failed to open"));
    std::fs::write(&path, b"a = 1\n\xff\n").unwrap();
    assert_eq!(load(&path).unwrap_err(), [Problem { line: 2, message: "not UTF-8 text".into() }]);
    std::fs::write(&path, vec![b'#'; 1 << 21]).unwrap();
    assert!(load(&path).unwrap_err()[0].message.contains("larger than 1 MiB"));
    std::fs::write(&path, GOOD).unwrap();
    assert!(load(&path).is_ok());
}

const BACKUP: &str = "[[backup]]\nname = \"a\"\ndatabase = \"sqlite:///a.db\"\nevery = \"1h\"\nkeep = { last = 1 }\n";

#[test]
fn a_bucket_instead_of_a_directory() {
    let text = format!(
        "[storage]\ns3 = {{ bucket = \"b\", prefix = \"/web/1\", region = \"eu-west-1\", \
         access_key = \"env:K\", secret_key = \"file:/s\" }}\n{BACKUP}"
    );
    let settings = parse(&text).unwrap();
    assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
    let StorageSettings::S3(bucket) = &settings.storage else { panic!("{:?}", settings.storage) };
    assert_eq!(bucket.endpoint, "https://s3.eu-west-1.amazonaws.com");
    assert_eq!((bucket.prefix.as_str(), bucket.path_style), ("web/1/", false));
    assert_eq!(settings.storage.directory(), None);
    let shown = format!("{settings:?} {}", settings.storage);
    assert!(shown.contains("s3://b/web/1/") && !shown.contains("file:/s"), "{shown}");
}

#[test]
fn every_mistake_about_a_bucket_has_its_line() {
    let text = format!(
        "[storage.s3]\nbuckett = \"b\"\nprefix = \"../x\"\nendpoint = \"http://far.example\"\n\
         path_style = 1\naccess_key = \"env:\"\nsecret_key = \"5ec7e7\"\n{BACKUP}"
    );
    let found = problems(&text);
    for (line, words) in [
        (1, "needs `bucket`"),
        (2, "did you mean `bucket`?"),
        (3, "`prefix`"),
        (4, "insecure_http"),
        (5, "`path_style`"),
        (6, "`access_key`"),
    ] {
        let named = |(at, why): &(usize, String)| *at == line && why.contains(words);
        assert!(found.iter().any(named), "{line} {words}: {found:?}");
    }
    assert_eq!(found.len(), 6, "{found:?}");
    assert!(!format!("{found:?}").contains("5ec7e7"));

    let both = format!("[storage]\ndirectory = \"/x\"\ns3 = {{}}\n{BACKUP}");
    assert_eq!(
        problems(&both),
        [(3, "both `directory` and `s3`: the backups go to one place".into())]
    );
    let text = format!(
        "[storage.s3]\nbucket = \"b\"\nendpoint = \"http://far.example\"\ninsecure_http = true\n\
         access_key = \"AK\"\nsecret_key = \"5ec7e7\"\n{BACKUP}"
    );
    let warnings = parse(&text).unwrap().warnings;
    assert_eq!(warnings.iter().map(|warning| warning.line).collect::<Vec<_>>(), [4, 6]);
    assert!(!format!("{warnings:?}").contains("5ec7e7"));
}

#[test]
fn hooks_are_lists_of_bounded_commands() {
    let with = |line: &str| format!("{}\n{line}\n", with_paths("/s", "/b", "/k").trim_end());
    let good =
        parse(&with("pre_hooks = [\"systemctl stop shop\"]\npost_hooks = [\"a\", \"b\"]")).unwrap();
    let job = good.agent_config(1).jobs.pop().unwrap();
    assert_eq!(job.pre_hooks, ["systemctl stop shop"]);
    assert_eq!(job.post_hooks, ["a", "b"]);
    for (bad, why) in [
        ("pre_hooks = \"true\"".to_owned(), "pre_hooks"),
        ("post_hooks = [7]".to_owned(), "post_hooks"),
        ("post_hooks = [\"\"]".to_owned(), "post-hook 1 is empty"),
        (format!("pre_hooks = [{}]", "\"a\", ".repeat(17)), "17 pre-hooks"),
        (format!("pre_hooks = [\"{}\"]", "a".repeat(4097)), "4097 bytes"),
    ] {
        let found = problems(&with(&bad));
        assert!(found.iter().any(|(_, text)| text.contains(why)), "{bad}: {found:?}");
    }
}

#[test]
fn checks_and_what_is_wrong_with_them() {
    let head = "[storage]\ndirectory = \"/srv/b\"\n[[backup]]\nname = \"a\"\ndatabase = \"sqlite:///srv/a.db\"\nevery = \"6h\"\nkeep = { last = 1 }\n";
    let good = format!(
        "{head}[[check]]\nname = \"web\"\nurl = \"https://a.example/x\"\ninterval = \"30s\"\n[[check]]\nname = \"db\"\ntcp = \"a:5432\"\n"
    );
    let settings = parse(&good).unwrap();
    let checks = settings.agent_config(1).checks;
    assert_eq!((checks[0].interval_sec, checks[0].timeout_sec), (30, 10));
    assert_eq!((checks[1].target.as_str(), checks[1].interval_sec), ("a:5432", 60));
    for (lines, problem) in [
        ("name = \"x\"\n", "either `url` or `tcp`"),
        ("name = \"x\"\nurl = \"ftp://a\"\n", "`url` must be"),
        ("name = \"x\"\ntcp = \"a:1\"\nexpected_status = 200\n", "for a `url` only"),
        ("name = \"x\"\ntcp = \"a:1\"\ninterval = \"1s\"\n", "`interval`"),
        ("name = \"x\"\ntcp = \"a:1\"\n[[check]]\nname = \"X\"\ntcp = \"a:1\"\n", "two checks"),
    ] {
        let problems = parse(&format!("{head}[[check]]\n{lines}")).unwrap_err();
        assert!(problems[0].message.contains(problem), "{problems:?}");
    }
}

const WITH_GLOBALS: &str = r#"
[storage]
directory = "/var/backups/db"

[[backup]]
name = "shop"
database = "postgres://backup@localhost/shop"
password = "file:/etc/backupy/shop.password"
every = "6h"
keep = { last = 3 }
globals = true
ping = "https://hc.example.org/uuid"
pre_hooks = ["true"]
post_hooks = ["true"]
"#;

#[test]
fn globals_are_a_backup_of_their_own() {
    let settings = parse(WITH_GLOBALS).unwrap();
    let [shop, globals] = &settings.backups[..] else { panic!("{:?}", settings.backups) };
    assert_eq!((shop.name.as_str(), globals.name.as_str()), ("shop", "shop-globals"));
    assert!(!shop.target.connection.globals_only && globals.target.connection.globals_only);
    assert_eq!((&shop.keep, &shop.schedule), (&globals.keep, &globals.schedule));
    assert_eq!(shop.target.connection.database, globals.target.connection.database);
    assert!(shop.pre_hooks.len() == 1 && globals.pre_hooks.is_empty());
    assert!(shop.post_hooks.len() == 1 && globals.post_hooks.is_empty());
    assert!(
        shop.ping.is_some() && globals.ping.is_none(),
        "a monitor of the database hears of it alone"
    );
    let config = settings.agent_config(1);
    let ids: Vec<_> = config.jobs.iter().map(|j| (j.id.as_str(), j.target_id.as_str())).collect();
    assert_eq!(ids, [("shop", "shop"), ("shop-globals", "shop-globals")]);
    let without = parse(&WITH_GLOBALS.replace("= true", "= false")).unwrap();
    assert_eq!(without.backups.len(), 1);
}

#[test]
fn globals_where_there_are_none_or_no_name_for_them() {
    let long = "x".repeat(57);
    let changed = |from: &str, to: &str| problems(&WITH_GLOBALS.replace(from, to));
    for (from, to, message) in [
        ("postgres:", "mysql:", "for PostgreSQL only"),
        ("localhost/shop", "localhost/", "holds the globals already"),
        ("\"shop\"", &format!("{long:?}"), "at most 56 characters"),
        ("true\n", "1\n", "`globals` must be true or false"),
    ] {
        let found = changed(from, to);
        let [(11, said)] = &found[..] else { panic!("{found:?}") };
        assert!(said.contains(message), "{said}");
    }
    let other = "\n[[backup]]\nname = \"Shop-Globals\"\ndatabase = \"sqlite:///a\"\nevery = \"1d\"\nkeep = { last = 1 }\n";
    let found = problems(&format!("{WITH_GLOBALS}{other}"));
    assert!(found.len() == 1 && found[0].1.contains("is taken by line 11"), "{found:?}");
}
