//! Telegram: `sendMessage` of a bot. The token stands in the path of the URL, so that no URL is ever shown.

use std::borrow::Cow;
use std::path::Path;

use serde_json::{Value, json};

use super::event::Message;
use super::http::Post;
use super::{DeliverError, Tools};
use crate::secret::Secret;

/// Where Telegram's bots live.
pub const API: &str = "https://api.telegram.org";

/// Longest text that Telegram takes, in characters.
const TEXT_MAX: usize = 4096;

/// A bot and whom it writes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Telegram {
    /// Reference to the bot's token.
    pub token: Secret,
    /// A number, or `@channel`.
    pub chat: String,
    /// [`API`], or a server of one's own.
    pub api: String,
    /// Plain HTTP to another machine is wanted.
    pub insecure_http: bool,
}

pub(super) fn deliver(
    bot: &Telegram,
    ca_file: Option<&Path>,
    message: &Message,
    tools: &Tools<'_>,
) -> Result<(), DeliverError> {
    let token = tools.secret(&bot.token)?;
    let fits = |c: char| c.is_ascii_alphanumeric() || ":-_".contains(c);
    if token.is_empty() || !token.expose().chars().all(fits) {
        let why = "the bot's token is not one; it looks like 123456:ABC-DEF…";
        return Err(DeliverError::Setting(why.to_owned()));
    }
    let url = format!("{}/bot{}/sendMessage", bot.api.trim_end_matches('/'), token.expose());
    let url = Secret::new(url);
    let text = format!("{}\n{}\n{}", message.title(), message.text(), message.time());
    let text: String = text.chars().take(TEXT_MAX).collect();
    let body = json!({
        "chat_id": bot.chat, "text": text, "link_preview_options": {"is_disabled": true},
    });
    let body = body.to_string();
    let headers = vec![(Cow::Borrowed("content-type"), "application/json".to_owned())];
    let insecure_http = bot.insecure_http;
    let post = Post { url: &url, insecure_http, ca_file, headers, body: body.as_bytes() };
    let (host, answer) = post.answer(tools)?;
    let said: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    if answer.head.is_success() && said["ok"] == json!(true) {
        return Ok(());
    }
    let why = said["description"].as_str().unwrap_or("it is no answer of Telegram's");
    // What is a success by its status and none by its words is not worth another try.
    let status = said["error_code"].as_u64().and_then(|code| u16::try_from(code).ok());
    let status = status.filter(|_| answer.head.is_success()).unwrap_or(answer.head.status);
    Err(DeliverError::refused(&host, status, why, &[token.expose()]))
}
