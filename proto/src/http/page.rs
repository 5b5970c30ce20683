//! Role: the edge's own short answers, where an origin's is missing or refused.
//! Invariants: an answer says its status, one sentence and the request's id, and nothing of the program that wrote it ·
//! no cache keeps it · the answer to a HEAD has no body.
//! See: RFC 9110 sections 9.3.2, 10.2.3 and 15; RFC 9112 section 9.6.

use std::fmt::Write as _;

use super::{
    Version,
    head::{push, push_number},
    status::phrase,
};

/// An answer of the edge's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page<'a> {
    /// 400 to 599.
    pub status: u16,
    /// What people may do about it; [`sentence`] has one for each status.
    pub sentence: &'a str,
    /// The request's name in logs; empty where it has none.
    pub request_id: &'a str,
    /// When to come again, in seconds.
    pub retry_after_s: Option<u32>,
    /// Whether it is a page for a browser, or plain text.
    pub is_html: bool,
}

impl<'a> Page<'a> {
    /// The answer of a status with its own sentence, as a page for a browser.
    pub const fn of(status: u16, request_id: &'a str) -> Self {
        Self { status, sentence: sentence(status), request_id, retry_after_s: None, is_html: true }
    }

    /// The fields besides length and connection, in lower case: for HTTP/2.
    pub fn each_field(&self, mut take: impl FnMut(&str, &str)) {
        let kind = if self.is_html { "text/html; charset=utf-8" } else { "text/plain; charset=utf-8" };
        take("content-type", kind);
        take("cache-control", "no-store");
        if let Some(seconds) = self.retry_after_s {
            take("retry-after", &seconds.to_string());
        }
        if !self.request_id.is_empty() {
            take("x-request-id", self.request_id);
        }
    }

    /// The body, at most a few hundred bytes beside its sentence.
    pub fn body(&self) -> String {
        let title = format!("{} {}", self.status, phrase(self.status));
        let (sentence, id) = (escape(self.sentence), escape(self.request_id));
        let mut body = if self.is_html {
            format!(
                "<!DOCTYPE html>\n<html lang=\"en\">\n<head><title>{title}</title></head>\n<body>\n<h1>{title}</h1>\n\
                 <p>{sentence}</p>\n"
            )
        } else {
            format!("{title}\n{}\n", self.sentence)
        };
        // Writing to a String can't fail.
        let _ = match (self.is_html, self.request_id.is_empty()) {
            (true, true) => writeln!(body, "</body>\n</html>"),
            (true, false) => writeln!(body, "<p><small>Request {id}</small></p>\n</body>\n</html>"),
            (false, true) => Ok(()),
            (false, false) => writeln!(body, "Request {}", self.request_id),
        };
        body
    }
}

/// Appends the whole answer in HTTP/1. `method` is the request's; `keep_alive`: the connection may be used again.
pub fn write_page(out: &mut Vec<u8>, page: &Page<'_>, method: &str, version: Version, keep_alive: bool) {
    out.extend_from_slice(b"HTTP/1.1 ");
    push_number(out, page.status.into());
    out.push(b' ');
    out.extend_from_slice(phrase(page.status).as_bytes());
    out.extend_from_slice(b"\r\n");
    page.each_field(|name, value| push(out, name, value));
    match (keep_alive, version) {
        (false, _) => push(out, "connection", "close"),
        (true, Version::Http10) => push(out, "connection", "keep-alive"),
        (true, _) => {}
    }
    let body = page.body();
    push(out, "content-length", &body.len().to_string());
    out.extend_from_slice(b"\r\n");
    if method != "HEAD" {
        out.extend_from_slice(body.as_bytes());
    }
}

/// What a status means to whom reads it.
pub const fn sentence(status: u16) -> &'static str {
    match status {
        400 => "The request could not be understood.",
        401 => "You have to log in first.",
        403 => "You may not see this.",
        404 => "There is nothing at this address.",
        408 => "The request took too long to arrive.",
        413 => "The request is too large.",
        417 => "The request expects what is not offered here.",
        421 => "This connection is for another host.",
        426 => "This address speaks another protocol.",
        429 => "Too many requests: try again later.",
        431 => "The headers of the request are too large. Deleting this site's cookies may help.",
        500 => "Something went wrong here.",
        501 => "The request asks for something that is not offered here.",
        502 => "The service behind this address gave no valid answer.",
        503 => "The service behind this address can't be reached now: try again later.",
        504 => "The service behind this address did not answer in time.",
        505 => "The request's version of HTTP is not spoken here.",
        _ => "The request could not be served.",
    }
}

fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Body,
            response::{fixture::asked, parse_response},
        },
        *,
    };

    fn written(page: &Page<'_>, method: &str, version: Version, keep_alive: bool) -> (String, String) {
        let mut out = Vec::new();
        write_page(&mut out, page, method, version, keep_alive);
        let response = parse_response(&out, &asked(method == "HEAD")).unwrap().unwrap();
        assert_eq!(response.keep_alive, keep_alive);
        let (head, body) = out.split_at(response.head_bytes);
        assert_eq!(response.status, page.status);
        if method == "HEAD" {
            assert_eq!(response.length_said, Some(page.body().len() as u64));
        } else {
            assert_eq!(response.body, Body::Length(body.len() as u64));
        }
        (String::from_utf8(head.to_vec()).unwrap(), String::from_utf8(body.to_vec()).unwrap())
    }

    #[test]
    fn a_page_says_its_status_a_sentence_and_its_request() {
        for status in [400, 404, 413, 417, 421, 431, 501, 502, 503, 504, 505, 599] {
            let (head, body) = written(&Page::of(status, "id7"), "GET", Version::Http11, false);
            assert!(
                head.starts_with(&format!("HTTP/1.1 {status} ")) && head.contains("cache-control: no-store")
            );
            assert!(head.contains("connection: close\r\n") && head.contains("x-request-id: id7\r\n"));
            assert!(body.contains(&escape(sentence(status))) && body.contains("Request id7"), "{body}");
            let all = (head + &body).to_lowercase();
            assert!(!all.contains("narrowlink") && !all.contains("server:"), "{all}");
        }
    }

    #[test]
    fn a_page_is_as_its_request_has_it() {
        let page = Page { retry_after_s: Some(5), is_html: false, ..Page::of(503, "") };
        let (head, body) = written(&page, "GET", Version::Http11, true);
        assert!(
            head.contains("retry-after: 5\r\n")
                && !head.contains("connection")
                && !head.contains("x-request")
        );
        assert_eq!(body.lines().count(), 2, "{body}");
        let (head, body) = written(&page, "HEAD", Version::Http11, true);
        assert!(body.is_empty() && head.contains("content-length: "));
        let mut out = Vec::new();
        write_page(&mut out, &page, "GET", Version::Http10, true);
        assert!(out.windows(10).any(|part| part == b"keep-alive"));
    }

    #[test]
    fn no_foreign_word_becomes_a_line_or_a_tag() {
        let page = Page { sentence: "<b>&'\"", ..Page::of(502, "a\r\nX: <script>") };
        let (head, body) = written(&page, "GET", Version::Http11, false);
        assert!(head.contains("x-request-id: a??X: <script>\r\n"));
        assert!(
            !body.contains("<script>") && !body.contains("<b>") && body.contains("&lt;b&gt;&amp;&#39;&quot;")
        );
    }
}
