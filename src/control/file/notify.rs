//! The `[[notify]]` sections of the file: one channel each.

use std::collections::HashSet;

use super::backup::check_name;
use super::parse::{ELSEWHERE, absolute};
use super::reader::{At, Section};
use super::storage::is_literal;
use crate::control::notify::email::{Email, is_address};
use crate::control::notify::http::{check_url, is_loopback};
use crate::control::notify::telegram::{API, Telegram};
use crate::control::notify::webhook::{TEMPLATE, Webhook, check_template};
use crate::control::notify::{Channel, Topic, Way};
use crate::secret::Secret;

const CHANNELS_MAX: usize = 16;
const RECIPIENTS_MAX: usize = 50;
const HEADERS_MAX: usize = 20;
const REFERENCE: &str = "\"env:NAME\", \"file:/path\" or the secret itself";
const URL: &str = "\"https://…\", or \"env:NAME\" or \"file:/path\" that hold it";
const SERVER: &str = "\"smtps://USER@HOST:465\" or \"smtp://USER@HOST:587\"";
const TOPICS: &str = "a list of \"failure\", \"recovery\", \"missed\" and \"shrunk\"";

/// Names of the channels that have no section.
pub(super) const COMMAND: &str = "on_failure";
pub(super) const PINGS: &str = "pings";

pub(super) fn channels(top: &Section<'_, '_>) -> Vec<Channel> {
    let sections = top.sections("notify", "[[notify]]");
    if sections.len() > CHANNELS_MAX {
        let report = top.report();
        report.problem(
            &sections[CHANNELS_MAX].span,
            format_args!("more than {CHANNELS_MAX} [[notify]]"),
        );
        return Vec::new();
    }
    let mut names = HashSet::from([COMMAND.to_owned(), PINGS.to_owned()]);
    let mut channels = Vec::new();
    for section in sections {
        let report = section.report();
        let name = section.string("name", "a short name such as \"ops\"");
        if let Some(Err(message)) = name.as_ref().map(|name| check_name(&name.value)) {
            report.problem(&section.span, message);
        }
        let span = name.as_ref().map_or_else(|| section.span.clone(), |name| name.span.clone());
        let Some((way, topics)) = way(&section).zip(topics(&section)) else {
            section.finish(&ELSEWHERE);
            continue;
        };
        let ca_file = section.string("ca_file", "the absolute path of a PEM file");
        let ca_file = ca_file.and_then(|path| absolute(&section, "ca_file", path));
        let name = name.map_or_else(|| free_name(way.kind(), &names), |name| name.value);
        if !names.insert(name.to_lowercase()) {
            report.problem(&span, format_args!("the name {name:?} is taken"));
        }
        channels.push(Channel { name, topics, ca_file: ca_file.map(|at| at.value), way });
        section.finish(&ELSEWHERE);
    }
    channels
}

/// `webhook`, `webhook-2`, …
fn free_name(kind: &str, names: &HashSet<String>) -> String {
    let numbered = (2..).map(|number| format!("{kind}-{number}"));
    let mut candidates = std::iter::once(kind.to_owned()).chain(numbered);
    candidates.find(|name| !names.contains(name)).unwrap_or_default()
}

fn topics(section: &Section<'_, '_>) -> Option<Vec<Topic>> {
    let Some(place) = section.place("on") else { return Some(Topic::ALL.to_vec()) };
    let mut topics = Vec::new();
    for word in section.strings("on", TOPICS)? {
        match Topic::parse(&word.value) {
            Some(topic) => topics.push(topic),
            None => section.report().problem(&word.span, format_args!("`on` must be {TOPICS}")),
        }
    }
    if topics.is_empty() {
        section.report().problem(&place, "`on` is empty: this channel would never hear anything");
    }
    Some(topics)
}

fn way(section: &Section<'_, '_>) -> Option<Way> {
    let ways = ["webhook", "email", "telegram"];
    let named: Vec<_> = ways.into_iter().filter(|way| section.place(way).is_some()).collect();
    match named.as_slice() {
        ["webhook"] => webhook(section).map(Way::Webhook),
        ["email"] => email(section).map(Way::Email),
        ["telegram"] => telegram(section).map(Way::Telegram),
        _ => {
            // The keys of all of them are known.
            for key in ["template", "headers", "insecure_http", "on", "ca_file"] {
                let _ = section.place(key);
            }
            section.report().problem(
                &section.span,
                "[[notify]] needs one of webhook = \"https://…\", email = { … } and telegram = { … }",
            );
            None
        }
    }
}

fn webhook(section: &Section<'_, '_>) -> Option<Webhook> {
    let report = section.report();
    let insecure_http = section.boolean("insecure_http").is_some_and(|at| at.value);
    let url =
        section.string("webhook", URL).and_then(|at| url(section, "webhook", at, insecure_http));
    let template = match section.string("template", "JSON with placeholders such as {{text}}") {
        None => TEMPLATE.to_owned(),
        Some(At { value, span }) => {
            if let Err(why) = check_template(&value) {
                report.problem(&span, format_args!("`template` {why}"));
            }
            value
        }
    };
    let headers = section.texts("headers", "a table such as { Authorization = \"env:HOOK\" }");
    let headers = headers.unwrap_or_default();
    if headers.len() > HEADERS_MAX {
        report.problem(&section.span, format_args!("`headers` has more than {HEADERS_MAX}"));
    }
    let mut kept = Vec::new();
    for (name, value) in headers {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        let own = ["host", "content-length", "content-type", "transfer-encoding", "connection"];
        let lower = name.value.to_ascii_lowercase();
        if !name.value.chars().all(fits) || own.contains(&lower.as_str()) {
            let text = format_args!("`headers`: {:?} is no header to set here", name.value);
            report.problem(&name.span, text);
        }
        let value = reference(section, "headers", value);
        let secret = ["auth", "token", "key", "secret", "cookie"];
        if is_literal(&value.value) && secret.iter().any(|word| lower.contains(word)) {
            warn_clear(section, "headers", &value);
        }
        kept.push((name.value, value.value));
    }
    Some(Webhook { url: url?, template, headers: kept, insecure_http })
}

fn email(section: &Section<'_, '_>) -> Option<Email> {
    let table = section.section("email", "email", "a table with to, from and server")?;
    let report = table.report();
    let form = "an address such as \"ops@example.org\", or a list of them";
    let to = table.string_or_list("to", form);
    if table.place("to").is_none() {
        report.missing(&table.span, format_args!("email needs `to`: {form}"));
    }
    let from = table.required("from", "an address such as \"backupy@example.org\"");
    let addresses = to.iter().flatten().chain(&from);
    for address in addresses.filter(|address| !is_address(&address.value)) {
        report.problem(
            &address.span,
            "it must be a bare address such as \"ops@example.org\", in ASCII",
        );
    }
    if to.as_ref().is_some_and(|to| to.is_empty() || to.len() > RECIPIENTS_MAX) {
        let text = format_args!("`to` must have 1 to {RECIPIENTS_MAX} addresses");
        report.problem(&table.span, text);
    }
    let insecure = table.boolean("insecure").is_some_and(|at| at.value);
    let server = table.required("server", SERVER);
    let password = table.string("password", REFERENCE).map(|at| reference(&table, "password", at));
    if let Some(password) = password.as_ref().filter(|at| is_literal(&at.value)) {
        warn_clear(&table, "password", password);
    }
    let parsed = server.and_then(|At { value, span }| match smtp_server(&value) {
        Ok(server) => Some((server, span)),
        Err(why) => {
            report.problem(&span, format_args!("`server` {why}"));
            None
        }
    });
    if let Some((server, span)) = &parsed {
        if insecure && (server.implicit_tls || !is_loopback(&server.host)) {
            report.problem(span, "`insecure` is for smtp:// to this machine only: a mail in the clear is everybody's");
        }
        if server.user.is_empty() != password.is_none() {
            report.problem(
                span,
                "a user in `server` and a `password` go together: give both or neither",
            );
        }
    }
    table.finish(&[]);
    let (server, _) = parsed?;
    Some(Email {
        to: to?.into_iter().map(|at| at.value).collect(),
        from: from?.value,
        insecure,
        password: password.map_or_else(Secret::default, |at| at.value),
        ..server
    })
}

fn smtp_server(text: &str) -> Result<Email, &'static str> {
    let form = "must be \"smtps://USER@HOST:465\" or \"smtp://USER@HOST:587\"";
    let (scheme, rest) = text.split_once("://").ok_or(form)?;
    let implicit_tls = match scheme {
        "smtps" => true,
        "smtp" => false,
        _ => return Err(form),
    };
    let (user, place) = rest.rsplit_once('@').unwrap_or(("", rest));
    if user.contains(':') {
        return Err(
            "carries a password: give it as `password` (and write a colon in the user as %3A)",
        );
    }
    let user = super::url::decode(user).map_err(|_| form)?;
    let (host, port) = super::url::host_and_port(place.trim_end_matches('/')).map_err(|_| form)?;
    if host.is_empty() {
        return Err(form);
    }
    let port = match u16::try_from(port) {
        Ok(0) | Err(_) => {
            if implicit_tls {
                465
            } else {
                587
            }
        }
        Ok(port) => port,
    };
    Ok(Email {
        to: Vec::new(),
        from: String::new(),
        host,
        port,
        implicit_tls,
        insecure: false,
        user,
        password: Secret::default(),
    })
}

fn telegram(section: &Section<'_, '_>) -> Option<Telegram> {
    let table = section.section("telegram", "telegram", "a table with token and chat")?;
    let report = table.report();
    let token = table.required("token", REFERENCE).map(|at| reference(&table, "token", at));
    if let Some(token) = token.as_ref().filter(|at| is_literal(&at.value)) {
        warn_clear(&table, "token", token);
    }
    let chat = table.required("chat", "a number in quotes such as \"-1001234\", or \"@channel\"");
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_@".contains(c);
    if let Some(chat) = chat.as_ref().filter(|chat| !chat.value.chars().all(fits)) {
        report.problem(&chat.span, "`chat` must be a number such as \"-1001234\", or \"@channel\"");
    }
    let insecure_http = table.boolean("insecure_http").is_some_and(|at| at.value);
    let api = table.string("api", "the URL of a Bot API server");
    if let Some(Err(why)) = api.as_ref().map(|api| check_url(&api.value, insecure_http)) {
        report.problem(&table.place("api").unwrap_or_default(), format_args!("`api` {why}"));
    }
    table.finish(&[]);
    let api = api.map_or_else(|| API.to_owned(), |at| at.value);
    Some(Telegram { token: token?.value, chat: chat?.value, api, insecure_http })
}

/// The address of a backup's pings.
pub(super) fn ping(section: &Section<'_, '_>) -> Option<Secret> {
    url(section, "ping", section.string("ping", URL)?, false)
}

/// A URL that is a secret, or a reference to one.
fn url(
    section: &Section<'_, '_>,
    key: &str,
    at: At<String>,
    insecure_http: bool,
) -> Option<Secret> {
    let url = reference(section, key, at);
    if is_literal(&url.value)
        && let Err(why) = check_url(url.value.expose(), insecure_http)
    {
        section.report().problem(&url.span, format_args!("`{key}`: the URL {why}"));
        return None;
    }
    Some(url.value)
}

fn reference(section: &Section<'_, '_>, key: &str, at: At<String>) -> At<Secret> {
    let report = section.report();
    if let Some(name) = at.value.strip_prefix("env:") {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(fits) {
            let text = "after env: stands the name of an environment variable";
            report.problem(&at.span, format_args!("`{key}`: {text}"));
        }
    } else if let Some(path) = at.value.strip_prefix("file:")
        && !path.starts_with('/')
    {
        report.problem(&at.span, format_args!("`{key}`: after file: stands an absolute path"));
    }
    At { value: Secret::new(at.value), span: at.span }
}

fn warn_clear(section: &Section<'_, '_>, key: &str, at: &At<Secret>) {
    section.report().warn(
        &at.span,
        format_args!("`{key}` is written in the clear; better is \"file:/path\" or \"env:NAME\""),
    );
}

#[cfg(test)]
mod tests {
    use super::super::{Problem, Settings, parse};
    use super::*;

    const BASE: &str = "[storage]\ndirectory = \"/b\"\n[[backup]]\nname = \"app\"\n\
                        database = \"sqlite:///a.db\"\nevery = \"1h\"\nkeep = { last = 1 }\n";

    fn with(text: &str) -> Result<Settings, Vec<Problem>> {
        parse(&format!("{BASE}{text}"))
    }

    #[test]
    fn every_kind_of_channel() {
        let settings = with(
            r#"
ping = "https://hc.example/uuid"
shrink_alarm = "30%"
[[notify]]
webhook = "https://hooks.example/T0/s3cret"
template = '{"text": "{{title}}: {{text}}"}'
headers = { Authorization = "env:HOOK" }
on = ["failure", "shrunk"]
[[notify]]
webhook = "file:/etc/backupy/hook"
[[notify]]
name = "ops"
ca_file = "/etc/ca.pem"
email = { to = "ops@example.org", from = "b@example.org", server = "smtps://us%40er@mail.example", password = "env:SMTP" }
[[notify]]
email = { to = ["a@b", "c@d"], from = "b@example.org", server = "smtp://[::1]:25", insecure = true }
[[notify]]
telegram = { token = "file:/etc/backupy/token", chat = "-1001" }
"#,
        )
        .unwrap();
        assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
        let channels = settings.channels();
        let names: Vec<&str> = channels.iter().map(|channel| channel.name.as_str()).collect();
        assert_eq!(names, ["webhook", "webhook-2", "ops", "email", "telegram", "pings"]);
        assert_eq!(channels[0].topics, [Topic::Failure, Topic::Shrunk]);
        assert_eq!(channels[1].topics, Topic::ALL);
        let Way::Email(mail) = &channels[2].way else { panic!("{channels:?}") };
        assert_eq!((mail.host.as_str(), mail.port, mail.implicit_tls), ("mail.example", 465, true));
        assert_eq!((mail.user.as_str(), mail.password.expose()), ("us@er", "env:SMTP"));
        let Way::Email(mail) = &channels[3].way else { panic!("{channels:?}") };
        assert_eq!((mail.host.as_str(), mail.port, mail.to.len()), ("::1", 25, 2));
        let Way::Telegram(bot) = &channels[4].way else { panic!("{channels:?}") };
        assert_eq!((bot.api.as_str(), bot.chat.as_str()), (API, "-1001"));
        let app = settings.backup("app").unwrap();
        assert_eq!(app.shrink_alarm, Some(30));
        let shown = format!(
            "{settings:?} {:?}",
            channels.iter().map(|c| c.way.place()).collect::<Vec<_>>()
        );
        assert!(!shown.contains("s3cret") && !shown.contains("uuid"), "{shown}");
    }

    #[test]
    fn what_is_not_said_is_the_usual() {
        let settings = with("").unwrap();
        assert!(settings.channels().is_empty());
        assert_eq!(settings.backup("app").unwrap().shrink_alarm, Some(50));
        let off = with("shrink_alarm = false\n").unwrap();
        assert_eq!(off.backup("app").unwrap().shrink_alarm, None);
    }

    #[test]
    fn the_command_does_not_see_the_channels_secrets() {
        let text = "ping = \"env:PING\"\n[[notify]]\nwebhook = \"env:HOOK\"\nheaders = { A = \"env:HEAD\" }\n\
                    [[notify]]\ntelegram = { token = \"env:TOKEN\", chat = \"1\" }\n";
        let settings = parse(&format!("on_failure = \"true\"\n{BASE}{text}")).unwrap();
        let Way::Command(hook, _) = &settings.channels()[0].way else { panic!() };
        let mut hidden = hook.hidden.clone();
        hidden.sort();
        assert_eq!(hidden, ["HEAD", "HOOK", "PING", "TOKEN"]);
    }

    #[test]
    fn secrets_in_the_clear_are_warned_of_and_never_shown() {
        let settings = with(
            "[[notify]]\nwebhook = \"https://h.example/x\"\nheaders = { X-Token = \"hunter2\", X-Title = \"t\" }\n\
             [[notify]]\ntelegram = { token = \"1:hunter2\", chat = \"1\" }\n\
             [[notify]]\nemail = { to = \"a@b\", from = \"a@b\", server = \"smtps://u@h\", password = \"hunter2\" }\n",
        )
        .unwrap();
        let lines: Vec<usize> = settings.warnings.iter().map(|warning| warning.line).collect();
        assert_eq!(lines, [10, 12, 14]);
        assert!(!format!("{settings:?}").contains("hunter2"));
    }

    #[test]
    fn every_mistake_has_its_message() {
        let mail = |table: &str| {
            format!("[[notify]]\nemail = {{ from = \"a@b\", to = \"a@b\", {table} }}\n")
        };
        for (text, part) in [
            ("[[notify]]\n".to_owned(), "needs one of webhook"),
            ("[[notify]]\nwebhook = \"https://h/\"\ntelegram = {}\n".into(), "needs one of"),
            ("[[notify]]\nwebhook = \"http://hunter2.example/\"\n".into(), "plain http"),
            ("[[notify]]\nwebhook = \"https://u:hunter2@h/\"\n".into(), "has a user"),
            ("[[notify]]\nwebhook = \"env:A-B\"\n".into(), "after env:"),
            ("[[notify]]\nwebhook = \"file:x\"\n".into(), "after file:"),
            ("[[notify]]\nwebhook = \"https://h/\"\ntemplate = '{'\n".into(), "`template` is not JSON"),
            ("[[notify]]\nwebhook = \"https://h/\"\non = []\n".into(), "`on` is empty"),
            ("[[notify]]\nwebhook = \"https://h/\"\non = [\"all\"]\n".into(), "`on` must be"),
            ("[[notify]]\nwebhook = \"https://h/\"\nheaders = { Host = \"x\" }\n".into(), "no header"),
            ("[[notify]]\nwebhook = \"https://h/\"\ntemplte = \"x\"\n".into(), "did you mean `template`"),
            ("[[notify]]\nname = \"pings\"\nwebhook = \"https://h/\"\n".into(), "is taken"),
            ("[[notify]]\nname = \"a b\"\nwebhook = \"https://h/\"\n".into(), "`name` may have"),
            (mail("server = \"smtp://u:hunter2@h\""), "carries a password"),
            (mail("server = \"http://h\""), "must be \"smtps://"),
            (mail("server = \"smtps://u@h\""), "go together"),
            (mail("server = \"smtps://h\", password = \"env:X\""), "go together"),
            (mail("server = \"smtp://mail.example\", insecure = true"), "this machine only"),
            (mail("server = \"smtps://127.0.0.1\", insecure = true"), "this machine only"),
            (mail("to2 = 1"), "email needs `server`"),
            ("[[notify]]\nemail = { from = \"A <a@b>\", to = \"a@b\", server = \"smtps://h\" }\n".into(), "bare address"),
            ("[[notify]]\nemail = { from = \"a@b\", to = [], server = \"smtps://h\" }\n".into(), "1 to 50"),
            ("[[notify]]\nemail = { from = \"a@b\", server = \"smtps://h\" }\n".into(), "email needs `to`"),
            ("[[notify]]\ntelegram = { chat = \"1\" }\n".into(), "telegram needs `token`"),
            ("[[notify]]\ntelegram = { token = \"env:T\", chat = \"a b\" }\n".into(), "`chat` must be"),
            ("[[notify]]\ntelegram = { token = \"env:T\", chat = \"1\", api = \"http://h.example\" }\n".into(), "`api` is plain http"),
            ("ping = \"http://h.example/uuid\"\n".into(), "plain http"),
            ("shrink_alarm = \"half\"\n".into(), "`shrink_alarm` must be"),
            ("shrink_alarm = \"100%\"\n".into(), "`shrink_alarm` must be"),
            ("shrink_alarm = true\n".into(), "`shrink_alarm` must be"),
            ("webhook = \"https://h/\"\n".into(), "it belongs under [[notify]]"),
            ("[[notify]]\nwebhook = \"https://h/\"\n".repeat(CHANNELS_MAX + 1), "more than 16"),
        ] {
            let found = with(&text).unwrap_err();
            assert!(found.iter().any(|p| p.message.contains(part)), "{part}: {found:?}");
            assert!(found.iter().all(|p| !p.message.contains("hunter2")), "{found:?}");
            assert!(found.iter().all(|p| p.line > 7), "{found:?}");
        }
    }
}
