//! What a user cannot see is missing from its dump, without a word from the tool: tables without SELECT, triggers
//! without TRIGGER, routines without any right to them. `SHOW GRANTS` tells; here it is read.
//!
//! Only the account's own grants are read. An account with roles may have more, so nothing is said about it.

/// What may be missing from the dump of `database` (empty = of all), each with the right that would show it.
pub(super) fn unseen(grants: &[String], database: &str) -> Vec<&'static str> {
    let parsed: Vec<_> = grants.iter().filter_map(|line| parse(line)).collect();
    if parsed.is_empty() || parsed.len() < grants.iter().filter(|g| !is_proxy(g)).count() {
        return Vec::new();
    }
    let has = |right: &str, scope: &dyn Fn(&Grant<'_>) -> bool| {
        parsed.iter().any(|grant| grant.gives(right) && scope(grant))
    };
    let here = |grant: &Grant<'_>| grant.covers(database);
    let system = |grant: &Grant<'_>| {
        grant.covers("mysql") || (grant.database == "mysql" && grant.table == "proc")
    };
    let routines = ["EXECUTE", "ALTER ROUTINE", "SHOW CREATE ROUTINE", "SHOW_ROUTINE"];
    let mut missing = Vec::new();
    if !has("SELECT", &here) {
        missing.push("tables (SELECT)");
    }
    if !has("TRIGGER", &here) {
        missing.push("triggers (TRIGGER)");
    }
    if !has("SELECT", &system) && !routines.iter().any(|right| has(right, &here)) {
        missing.push("stored routines (SELECT on mysql.proc, or SHOW_ROUTINE in MySQL 8)");
    }
    missing
}

/// `GRANT rights ON database.table TO …`.
struct Grant<'a> {
    rights: Vec<&'a str>,
    /// A pattern with `%` and `_`; `*` = all.
    database: String,
    table: String,
}

impl Grant<'_> {
    fn gives(&self, right: &str) -> bool {
        self.rights.iter().any(|own| *own == right || *own == "ALL PRIVILEGES")
    }

    fn covers(&self, database: &str) -> bool {
        let all = self.database == "*";
        self.table == "*"
            && (all
                || (!database.is_empty() && like(self.database.as_bytes(), database.as_bytes())))
    }
}

fn is_proxy(line: &str) -> bool {
    line.starts_with("GRANT PROXY ")
}

fn parse(line: &str) -> Option<Grant<'_>> {
    let (rights, rest) = line.strip_prefix("GRANT ")?.split_once(" ON ")?;
    let rest = ["PROCEDURE ", "FUNCTION ", "TABLE ", "PACKAGE ", "PACKAGE BODY "]
        .iter()
        .find_map(|kind| rest.strip_prefix(kind))
        .unwrap_or(rest);
    let (database, rest) = identifier(rest)?;
    let (table, _) = identifier(rest.strip_prefix('.')?)?;
    Some(Grant { rights: rights.split(',').map(str::trim).collect(), database, table })
}

/// `*`, or a name in backticks.
fn identifier(text: &str) -> Option<(String, &str)> {
    if let Some(rest) = text.strip_prefix('*') {
        return Some(("*".to_owned(), rest));
    }
    let mut name = String::new();
    let mut rest = text.strip_prefix('`')?;
    loop {
        let (part, after) = rest.split_once('`')?;
        name.push_str(part);
        match after.strip_prefix('`') {
            Some(more) => {
                name.push('`');
                rest = more;
            }
            None => return Some((name, after)),
        }
    }
}

/// SQL's `LIKE`, with `\` as the escape. Going back to the last `%` only keeps it from taking for ever.
fn like(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (pattern, name);
    let mut again: Option<(&[u8], &[u8])> = None;
    loop {
        match (p, n) {
            ([b'%', rest @ ..], _) => {
                again = Some((rest, n));
                p = rest;
                continue;
            }
            ([], []) => return true,
            ([b'_', rest @ ..], [_, tail @ ..]) => {
                (p, n) = (rest, tail);
                continue;
            }
            ([b'\\', own, rest @ ..] | [own, rest @ ..], [first, tail @ ..]) if own == first => {
                (p, n) = (rest, tail);
                continue;
            }
            _ => {}
        }
        let Some((rest, [_, tail @ ..])) = again else { return false };
        again = Some((rest, tail));
        (p, n) = (rest, tail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(grants: &[&str], database: &str) -> usize {
        let grants: Vec<_> = grants.iter().map(|line| (*line).to_owned()).collect();
        unseen(&grants, database).len()
    }

    #[test]
    fn enough() {
        for grants in [
            &["GRANT ALL PRIVILEGES ON *.* TO `root`@`localhost` WITH GRANT OPTION"][..],
            &["GRANT SELECT, TRIGGER ON *.* TO `u`@`%` IDENTIFIED BY PASSWORD '*D8 ON x'"],
            &["GRANT USAGE ON *.* TO `u`@`%`", "GRANT ALL PRIVILEGES ON `shop`.* TO `u`@`%`"],
            &["GRANT USAGE ON *.* TO `u`@`%`", "GRANT ALL PRIVILEGES ON `sh%`.* TO `u`@`%`"],
            &[
                "GRANT USAGE ON *.* TO `u`@`%`",
                "GRANT SELECT, SHOW VIEW, TRIGGER, EVENT ON `shop`.* TO `u`@`%`",
                "GRANT SELECT ON `mysql`.`proc` TO `u`@`%`",
            ],
            &["GRANT SELECT, TRIGGER, SHOW_ROUTINE ON *.* TO `u`@`%`"],
        ] {
            assert_eq!(missing(grants, "shop"), 0, "{grants:?}");
        }
    }

    #[test]
    fn too_little() {
        let usage = "GRANT USAGE ON *.* TO `u`@`%`";
        assert_eq!(missing(&[usage], "shop"), 3);
        assert_eq!(missing(&[usage, "GRANT SELECT ON `shop`.`t` TO `u`@`%`"], "shop"), 3);
        assert_eq!(
            missing(&[usage, "GRANT SELECT (`a`, `b`) ON `shop`.`t` TO `u`@`%`"], "shop"),
            3
        );
        assert_eq!(missing(&[usage, "GRANT SELECT ON `shop`.* TO `u`@`%`"], "shop"), 2);
        assert_eq!(missing(&[usage, "GRANT ALL PRIVILEGES ON `other`.* TO `u`@`%`"], "shop"), 3);
        assert_eq!(missing(&[usage, "GRANT ALL PRIVILEGES ON `shop`.* TO `u`@`%`"], ""), 3);
        assert_eq!(missing(&["GRANT SELECT ON *.* TO `u`@`%`"], ""), 1);
        assert_eq!(
            missing(&[usage, "GRANT ALL PRIVILEGES ON `a``b\\_c`.* TO `u`@`%`"], "a`b_c"),
            0
        );
        assert_eq!(missing(&[usage, "GRANT ALL PRIVILEGES ON `a\\_c`.* TO `u`@`%`"], "abc"), 3);
    }

    #[test]
    fn patterns() {
        let is = |pattern: &str, name: &str| like(pattern.as_bytes(), name.as_bytes());
        for (pattern, name) in [
            ("shop", "shop"),
            ("%", ""),
            ("s%p", "shop"),
            ("s%o%", "shop"),
            ("_hop", "shop"),
            (r"a\_b", "a_b"),
        ] {
            assert!(is(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("shop", "shop2"),
            ("shop", "sho"),
            ("s%x", "shop"),
            ("_", ""),
            (r"a\_b", "axb"),
            ("", "a"),
        ] {
            assert!(!is(pattern, name), "{pattern} {name}");
        }
        assert!(!is(&"%a".repeat(500), &"a".repeat(400)));
    }

    #[test]
    fn where_roles_may_give_more_nothing_is_said() {
        assert_eq!(missing(&["GRANT `r` TO `u`@`%`", "GRANT USAGE ON *.* TO `u`@`%`"], "shop"), 0);
        assert_eq!(missing(&[], "shop"), 0);
        let proxy = "GRANT PROXY ON ``@`%` TO `root`@`localhost` WITH GRANT OPTION";
        assert_eq!(missing(&[proxy, "GRANT USAGE ON *.* TO `u`@`%`"], "shop"), 3);
    }
}
