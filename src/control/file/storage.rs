//! The `[storage]` section: a directory, or a bucket.

use std::path::{Path, PathBuf};

use super::StorageSettings;
use super::parse::{ELSEWHERE, absolute};
use super::reader::{At, Section};
use crate::control::storage::s3::Raw;
use crate::secret::Secret;

const FORM: &str =
    "a table: [storage] with directory = \"/var/backups/db\", or s3 = { bucket = … }";

pub(super) fn storage(top: &Section<'_, '_>) -> Option<At<StorageSettings>> {
    if top.place("storage").is_none() {
        top.report().missing(&top.span, format_args!("the file needs `storage`: {FORM}"));
    }
    let section = top.section("storage", "[storage]", FORM)?;
    let report = section.report();
    let storage = match (section.place("directory"), section.place("s3")) {
        (Some(_), Some(s3)) => {
            report.problem(&s3, "both `directory` and `s3`: the backups go to one place");
            None
        }
        (Some(_), None) => directory(&section),
        (None, Some(_)) => bucket(&section),
        (None, None) => {
            report.missing(
                &section.span,
                "[storage] needs `directory` (the absolute path where the backups go) or `s3` (a table such as \
                 { bucket = \"backups\", region = \"eu-west-1\", access_key = \"env:S3_KEY\", secret_key = \
                 \"file:/etc/backupy/s3\" })",
            );
            None
        }
    };
    section.finish(&ELSEWHERE);
    storage
}

fn directory(section: &Section<'_, '_>) -> Option<At<StorageSettings>> {
    let path = section.string("directory", "the absolute path where the backups go")?;
    let At { value, span } = absolute(section, "directory", path)?;
    if value == Path::new("/") {
        section.report().problem(&span, "`directory` is the root of the file system");
        return None;
    }
    Some(At { value: StorageSettings::Directory(value), span })
}

fn bucket(storage: &Section<'_, '_>) -> Option<At<StorageSettings>> {
    let section = storage.section("s3", "[storage.s3]", "a table with bucket and keys")?;
    let report = section.report();
    let text = |key, form| section.string(key, form).map(|at| at.value);
    let required = |key, form| section.required(key, form).map(|at| Secret::new(at.value));
    let form = "\"env:NAME\", \"file:/path\" or the key itself";
    let (access_key, secret_key) = (required("access_key", form), required("secret_key", form));
    let ca_file = section.string("ca_file", "the absolute path of a PEM file");
    let ca_file: Option<PathBuf> =
        ca_file.and_then(|path| absolute(&section, "ca_file", path)).map(|at| at.value);
    let bucket = section.required("bucket", "the name of the bucket");
    let complete = bucket.is_some() && access_key.is_some() && secret_key.is_some();
    let raw = Raw {
        endpoint: text("endpoint", "a URL such as \"https://s3.example.com\""),
        // What is missing has been said; the rest can still be checked.
        bucket: bucket.map_or_else(|| "x".to_owned(), |at| at.value),
        region: text("region", "a word such as \"eu-west-1\""),
        prefix: text("prefix", "a path such as \"backups/web1\""),
        path_style: section.boolean("path_style").map(|at| at.value),
        insecure_http: section.boolean("insecure_http").is_some_and(|at| at.value),
        ca_file,
        access_key: access_key.unwrap_or_default(),
        secret_key: secret_key.unwrap_or_default(),
        session_token: None,
    };
    let place = |key: &'static str| section.place(key).unwrap_or_else(|| section.span.clone());
    if is_literal(&raw.secret_key) {
        report.warn(
            &place("secret_key"),
            "`secret_key` is written in the clear; better is \"file:/path\" or \"env:NAME\"",
        );
    }
    let checked = raw.check();
    for (key, why) in checked.as_ref().err().into_iter().flatten() {
        report.problem(&place(key), why);
    }
    if let Ok(settings) = &checked
        && settings.insecure_http
        && settings.endpoint.starts_with("http:")
    {
        report.warn(
            &place("insecure_http"),
            "plain HTTP: whoever is on the way can use the signatures as long as they are good",
        );
    }
    let span = section.span.clone();
    section.finish(&ELSEWHERE);
    let settings = checked.ok().filter(|_| complete)?;
    Some(At { value: StorageSettings::S3(Box::new(settings)), span })
}

pub(super) fn is_literal(reference: &Secret) -> bool {
    let text = reference.expose();
    !text.is_empty() && !text.starts_with("env:") && !text.starts_with("file:")
}
