//! Role: requests, chunks and answers as attackers, old programs and strict ones send them, each with what becomes of it.
//! Invariants: a case has one verdict, however its bytes are split · what is passed on has one normal form.
//! See: RFC 9110, RFC 9112; SECURITY.md.

mod answers;
mod chunks;
mod forms;
mod refused;

use std::borrow::Cow;

use self::Verdict::{Forwarded, Refused};

/// What becomes of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is answered with this status and passed on to nobody; of an answer, its visitor hears 502.
    Refused(u16),
    /// It is passed on in this form: [`normal_form`] of a head, of chunks the payload and a line for each trailer.
    Forwarded(Cow<'static, str>),
    /// More bytes are due: nothing is passed on.
    Incomplete,
}

/// Bytes that one side sends, and what becomes of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// What it tries; no two cases have the same.
    pub name: String,
    /// The bytes: a request with its body, a body in chunks, or an answer to a GET.
    pub sent: Vec<u8>,
    /// What becomes of them.
    pub verdict: Verdict,
}

/// A row of a table: name, bytes, verdict.
type Row = (&'static str, &'static str, Verdict);

/// What the edge adds to every request; no part of a normal form.
pub const ADDED: [&str; 6] = [
    "X-Forwarded-For",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "Forwarded",
    "X-Request-Id",
];

/// A request that must never arrive: cases that try to hide one carry it, and its path tells.
pub const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// The head before the bodies of [`chunks`].
pub const CHUNKED_HEAD: &str = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

/// Requests of a visitor that is not trusted, to the host `a`.
pub fn requests() -> Vec<Case> {
    let mut cases = refused::cases();
    cases.extend(forms::cases());
    cases
}

/// Bodies in chunks, from their first size on.
pub fn chunks() -> Vec<Case> {
    chunks::cases()
}

/// Answers to a GET that asked for no upgrade; their normal form has no `Date`.
pub fn answers() -> Vec<Case> {
    answers::cases()
}

/// The lines of a head, without its end and without those that the edge adds.
pub fn normal_form(head: &[u8]) -> String {
    let text = String::from_utf8_lossy(head);
    let is_added =
        |line: &str| line.split_once(": ").is_some_and(|(name, _)| ADDED.contains(&name) || name == "Date");
    text.lines().filter(|line| !line.is_empty() && !is_added(line)).collect::<Vec<_>>().join("\n")
}

fn refused(name: String, sent: impl Into<Vec<u8>>, status: u16) -> Case {
    Case { name, sent: sent.into(), verdict: Refused(status) }
}

fn forwarded(name: String, sent: impl Into<Vec<u8>>, form: impl Into<Cow<'static, str>>) -> Case {
    Case { name, sent: sent.into(), verdict: Forwarded(form.into()) }
}

fn case((name, sent, verdict): &Row) -> Case {
    Case { name: (*name).to_owned(), sent: sent.as_bytes().to_vec(), verdict: verdict.clone() }
}

const fn form(text: &'static str) -> Verdict {
    Forwarded(Cow::Borrowed(text))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{
        super::{
            HeadError, Version,
            chunked::{self, ChunkError},
            forward::{Rewriting, Visitor, write_request},
            reply::{Toward, write_response},
            request, response,
            rules::HeaderRules,
        },
        Verdict::Incomplete,
        *,
    };

    fn request_verdict(sent: &[u8]) -> Verdict {
        let request = match request::fixture::check(sent).map_err(HeadError::http_status) {
            Ok(Some(request)) => request,
            Ok(None) => return Incomplete,
            Err(status) => return Refused(status),
        };
        let visitor = Visitor {
            addr: [192, 0, 2, 1].into(),
            port: 443,
            by_tls: true,
            is_trusted: false,
            request_id: "1",
            certificate_subject: None,
        };
        let (mut out, rules) = (Vec::new(), HeaderRules::default());
        write_request(&mut out, &request, &visitor, &Rewriting { host: None, rules: &rules, is_last: false });
        Forwarded(normal_form(&out).into())
    }

    fn chunks_verdict(sent: &[u8]) -> Verdict {
        let whole = chunked::fixture::decode(sent, &[]);
        let each: Vec<_> = (0..sent.len()).collect();
        assert_eq!(chunked::fixture::decode(sent, &each), whole, "{}", sent.escape_ascii());
        match whole.map_err(ChunkError::http_status) {
            Ok(Some((mut payload, trailers, _))) => {
                let lines = String::from_utf8_lossy(&trailers).into_owned();
                for line in lines.lines().skip(1).filter(|line| !line.is_empty()) {
                    payload.push(b'\n');
                    payload.extend_from_slice(line.as_bytes());
                }
                Forwarded(String::from_utf8_lossy(&payload).into_owned().into())
            }
            Ok(None) => Incomplete,
            Err(status) => Refused(status),
        }
    }

    fn answer_verdict(sent: &[u8]) -> Verdict {
        match response::fixture::check(sent, &response::fixture::asked(false)) {
            Ok(Some(response)) => {
                let (mut out, rules) = (Vec::new(), HeaderRules::default());
                let toward = Toward {
                    version: Version::Http11,
                    keep_alive: true,
                    rules: &rules,
                    hsts: None,
                    date: "now",
                };
                write_response(&mut out, &response, &toward);
                Forwarded(normal_form(&out).into())
            }
            Ok(None) => Incomplete,
            Err(_) => Refused(502),
        }
    }

    #[test]
    fn every_case_has_its_verdict_at_once_and_byte_by_byte() {
        for (cases, verdict) in [
            (requests(), request_verdict as fn(&[u8]) -> Verdict),
            (chunks(), chunks_verdict),
            (answers(), answer_verdict),
        ] {
            let wrong: Vec<_> = cases
                .iter()
                .map(|case| (case, verdict(&case.sent)))
                .filter(|(case, got)| case.verdict != *got)
                .map(|(case, got)| format!("{}: {got:?}, not {:?}", case.name, case.verdict))
                .collect();
            assert!(wrong.is_empty(), "{wrong:#?}");
        }
    }

    #[test]
    fn the_corpus_is_large_and_no_name_stands_twice() {
        let all = [requests(), chunks(), answers()].concat();
        let names: BTreeSet<_> = all.iter().map(|case| &case.name).collect();
        assert_eq!(names.len(), all.len());
        assert!(all.len() >= 300, "{}", all.len());
        let refused = all.iter().filter(|case| matches!(case.verdict, Refused(_))).count();
        assert!(refused >= 200 && all.len() - refused >= 80, "{refused} of {} are refused", all.len());
    }

    #[test]
    fn no_normal_form_holds_a_request_that_was_hidden() {
        for case in requests() {
            if let Forwarded(form) = &case.verdict {
                assert!(!form.contains("/smuggled"), "{}", case.name);
            }
        }
    }
}
