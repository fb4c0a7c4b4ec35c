//! The head of a request: parsed by httparse, then judged strictly, because a head that two parsers
//! read differently is how requests are smuggled.

use std::fmt;

use crate::secret::Secret;

/// A status code with its usual words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status(pub u16);

impl Status {
    /// 200
    pub const OK: Self = Self(200);
    /// 201
    pub const CREATED: Self = Self(201);
    /// 400
    pub const BAD_REQUEST: Self = Self(400);
    /// 401
    pub const UNAUTHORIZED: Self = Self(401);
    /// 403
    pub const FORBIDDEN: Self = Self(403);
    /// 404
    pub const NOT_FOUND: Self = Self(404);
    /// 405
    pub const METHOD_NOT_ALLOWED: Self = Self(405);
    /// 408
    pub const TIMEOUT: Self = Self(408);
    /// 409
    pub const CONFLICT: Self = Self(409);
    /// 411
    pub const LENGTH_REQUIRED: Self = Self(411);
    /// 413
    pub const TOO_LARGE: Self = Self(413);
    /// 426
    pub const UPGRADE_REQUIRED: Self = Self(426);
    /// 431
    pub const HEAD_TOO_LARGE: Self = Self(431);
    /// 500
    pub const INTERNAL: Self = Self(500);
    /// 501
    pub const NOT_IMPLEMENTED: Self = Self(501);
    /// 503
    pub const UNAVAILABLE: Self = Self(503);
    /// 505
    pub const VERSION: Self = Self(505);
    /// 507
    pub const NO_STORAGE: Self = Self(507);

    /// The reason phrase.
    pub fn reason(self) -> &'static str {
        match self.0 {
            200 => "OK",
            201 => "Created",
            400 => "Bad Request",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "Not Found",
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            409 => "Conflict",
            411 => "Length Required",
            413 => "Content Too Large",
            426 => "Upgrade Required",
            431 => "Request Header Fields Too Large",
            501 => "Not Implemented",
            503 => "Service Unavailable",
            505 => "HTTP Version Not Supported",
            507 => "Insufficient Storage",
            _ => "Internal Server Error",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.0, self.reason())
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// GET
    Get,
    /// HEAD
    Head,
    /// PUT
    Put,
    /// POST
    Post,
    /// DELETE
    Delete,
    /// One that no route of ours answers.
    Other,
}

/// A request's head.
#[derive(Debug, Clone)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// The path as it was sent, `/` first, never decoded: no name of ours needs an escape.
    pub path: String,
    /// What follows the `?`; signatures are in here.
    pub query: Secret,
    headers: Vec<(String, Secret)>,
}

impl Request {
    /// The value of a header that occurs once.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        match (found.next(), found.next()) {
            (Some((_, value)), None) => Some(value.expose()),
            _ => None,
        }
    }

    /// Whether a comma-separated header has this word.
    pub fn header_has(&self, name: &str, word: &str) -> bool {
        self.headers
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .flat_map(|(_, value)| value.expose().split(','))
            .any(|part| part.trim().eq_ignore_ascii_case(word))
    }

    /// The declared length of the body.
    pub fn content_length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }

    fn count(&self, name: &str) -> usize {
        self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).count()
    }
}

/// A head that is not one of ours, and the answer to it.
pub(super) type Refusal = (Status, &'static str);

/// Reads a head. `None`: not all of it is here yet.
pub(super) fn parse(bytes: &[u8], max_headers: usize) -> Result<Option<(Request, usize)>, Refusal> {
    let mut headers = vec![httparse::EMPTY_HEADER; max_headers];
    let mut parsed = httparse::Request::new(&mut headers);
    let used = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(used)) => used,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => {
            return Err((Status::HEAD_TOO_LARGE, "too many headers"));
        }
        Err(httparse::Error::Version) => return Err((Status::VERSION, "only HTTP/1.1 is spoken")),
        Err(_) => return Err((Status::BAD_REQUEST, "this is not an HTTP request")),
    };
    if parsed.version != Some(1) {
        return Err((Status::VERSION, "only HTTP/1.1 is spoken"));
    }
    let request = take(&parsed)?;
    judge(&request)?;
    Ok(Some((request, used)))
}

fn take(parsed: &httparse::Request<'_, '_>) -> Result<Request, Refusal> {
    let target = parsed.path.unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut headers = Vec::with_capacity(parsed.headers.len());
    for header in parsed.headers.iter() {
        let value = std::str::from_utf8(header.value)
            .map_err(|_| (Status::BAD_REQUEST, "a header is not text"))?;
        headers.push((header.name.to_owned(), Secret::new(value.trim())));
    }
    Ok(Request {
        method: method(parsed.method.unwrap_or_default()),
        path: path.to_owned(),
        query: Secret::new(query),
        headers,
    })
}

fn method(word: &str) -> Method {
    match word {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "PUT" => Method::Put,
        "POST" => Method::Post,
        "DELETE" => Method::Delete,
        _ => Method::Other,
    }
}

fn judge(request: &Request) -> Result<(), Refusal> {
    if !request.path.starts_with('/') || request.path.contains('#') {
        return Err((Status::BAD_REQUEST, "the target is not a path"));
    }
    if request.count("host") != 1 {
        return Err((Status::BAD_REQUEST, "one Host header is needed"));
    }
    if request.count("transfer-encoding") > 0 {
        return Err((Status::LENGTH_REQUIRED, "a body needs a Content-Length here"));
    }
    if request.count("content-length") > 1 {
        return Err((Status::BAD_REQUEST, "more than one Content-Length"));
    }
    if let Some(length) = request.header("content-length")
        && (length.is_empty() || !length.bytes().all(|b| b.is_ascii_digit()) || length.len() > 18)
    {
        return Err((Status::BAD_REQUEST, "the Content-Length is not a number"));
    }
    Ok(())
}
