//! A webhook: JSON from a template, by POST.
//!
//! The template is JSON with placeholders `{{title}}`, `{{text}}`, `{{status}}`, `{{name}}`, `{{run_id}}`, `{{error}}`,
//! `{{host}}`, `{{time}}` (RFC 3339) and `{{time_ms}}`. Their values are escaped as JSON wants it inside a text, so that
//! no error message can change what the JSON means. Whether the result is JSON is checked when the file is read.

use std::borrow::Cow;
use std::path::Path;

use super::event::{Failure, Message};
use super::http::Post;
use super::{DeliverError, Tools};
use crate::secret::Secret;

/// What a webhook without `template` gets.
pub const TEMPLATE: &str = concat!(
    r#"{"text":"{{title}}: {{text}}","title":"{{title}}","status":"{{status}}","name":"{{name}}","#,
    r#""run_id":"{{run_id}}","error":"{{error}}","host":"{{host}}","time":"{{time}}"}"#
);

/// Longest template.
const TEMPLATE_MAX: usize = 16 << 10;

/// Where it goes and what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// The URL, or a reference to it; a secret.
    pub url: Secret,
    /// Checked by [`check_template`].
    pub template: String,
    /// Names and values; a value is a reference.
    pub headers: Vec<(String, Secret)>,
    /// Plain HTTP to another machine is wanted.
    pub insecure_http: bool,
}

pub(super) fn deliver(
    hook: &Webhook,
    ca_file: Option<&Path>,
    message: &Message,
    tools: &Tools<'_>,
) -> Result<(), DeliverError> {
    let url = tools.secret(&hook.url)?;
    let body = fill(&hook.template, message).map_err(DeliverError::Setting)?;
    let mut headers = vec![(Cow::Borrowed("content-type"), "application/json".to_owned())];
    for (name, value) in &hook.headers {
        let value = tools.secret(value)?;
        if value.expose().chars().any(char::is_control) {
            return Err(DeliverError::Setting(format!(
                "the value of header {name} has a line end"
            )));
        }
        headers.push((Cow::Owned(name.clone()), value.expose().to_owned()));
    }
    let insecure_http = hook.insecure_http;
    Post { url: &url, insecure_http, ca_file, headers, body: body.as_bytes() }.send(tools)
}

/// Whether a template makes JSON, whatever the values are.
///
/// # Errors
/// What is wrong with it.
pub fn check_template(template: &str) -> Result<(), String> {
    if template.len() > TEMPLATE_MAX {
        return Err("is longer than 16 KiB".to_owned());
    }
    let nasty = "\"\\\n{{title}}\u{7}ä".to_owned();
    let what = Failure {
        name: nasty.clone(),
        run_id: nasty.clone(),
        status: nasty.clone(),
        error: nasty.clone(),
    };
    let message = Message { what, at_ms: 1, host: nasty, ..Message::default() };
    let filled = fill(template, &message)?;
    serde_json::from_str::<serde::de::IgnoredAny>(&filled)
        .map(drop)
        .map_err(|error| format!("is not JSON once it is filled in: {error}"))
}

/// The template with the values of a message.
fn fill(template: &str, message: &Message) -> Result<String, String> {
    let mut out = String::with_capacity(template.len() + 256);
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let (word, tail) = after.split_once("}}").ok_or("has a {{ without its }}")?;
        out.push_str(before);
        out.push_str(&escaped(&value(word.trim(), message)?));
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}

fn value(word: &str, message: &Message) -> Result<String, String> {
    let what = &message.what;
    Ok(match word {
        "title" => message.title(),
        "text" => message.text(),
        "status" => what.status.clone(),
        "name" => what.name.clone(),
        "run_id" => what.run_id.clone(),
        "error" => crate::redact::clean(&what.error),
        "host" => message.host.clone(),
        "time" => message.time(),
        "time_ms" => message.at_ms.to_string(),
        other => {
            let shown: String = other.chars().take(40).collect();
            return Err(format!(
                "has an unknown placeholder {{{{{shown}}}}}; known are title, text, status, name, run_id, error, \
                 host, time and time_ms"
            ));
        }
    })
}

/// As inside a JSON text, without its quotes.
fn escaped(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn message() -> Message {
        let what = Failure {
            name: "shop".into(),
            run_id: "r1".into(),
            status: "failed".into(),
            error: "no \"relation\" \\ ü {{host}}".into(),
        };
        Message { host: "web1".into(), at_ms: 1_700_000_000_000, what, ..Message::default() }
    }

    #[test]
    fn the_default_says_everything() {
        check_template(TEMPLATE).unwrap();
        let filled: Value = serde_json::from_str(&fill(TEMPLATE, &message()).unwrap()).unwrap();
        assert_eq!(
            filled,
            json!({
                "text": "backup shop failed on web1: no \"relation\" \\ ü {{host}} (run r1)",
                "title": "backup shop failed on web1", "status": "failed", "name": "shop",
                "run_id": "r1", "error": "no \"relation\" \\ ü {{host}}", "host": "web1",
                "time": "2023-11-14T22:13:20Z",
            })
        );
    }

    #[test]
    fn values_cannot_break_out_of_their_texts() {
        let template = r#"{"a":"{{ name }}","n":{{time_ms}}}"#;
        check_template(template).unwrap();
        let mut message = message();
        message.what.name = r#"x","admin":"yes"#.into();
        let filled: Value = serde_json::from_str(&fill(template, &message).unwrap()).unwrap();
        assert_eq!(filled, json!({"a": r#"x","admin":"yes"#, "n": 1_700_000_000_000_u64}));
    }

    #[test]
    fn a_template_that_is_none_is_refused() {
        for (template, why) in [
            (r#"{"a": {{name}}}"#, "not JSON"),
            (r#"{"a": [{{error}}]}"#, "not JSON"),
            (r#"{"a": [{{host}}]}"#, "not JSON"),
            (r#"{"a": "{{name}}""#, "not JSON"),
            (r#"{"a": "{{name""#, "without its"),
            (r#"{"a": "{{nmae}}"}"#, "unknown placeholder {{nmae}}"),
            ("", "not JSON"),
        ] {
            let error = check_template(template).unwrap_err();
            assert!(error.contains(why), "{template}: {error}");
        }
        assert!(check_template(&format!("\"{}\"", "x".repeat(TEMPLATE_MAX))).is_err());
    }
}
