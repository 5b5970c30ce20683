//! Role: requests that are passed on to nobody.

use super::{Case, Row, SMUGGLED, Verdict::Refused, case, refused};

/// Whole heads.
const HEADS: &[Row] = &[
    ("an empty first line", "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
    ("a bare LF as first line", "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
    ("HTTP/0.9", "GET /\r\n\r\n", Refused(400)),
    ("no version", "GET / \r\nHost: a\r\n\r\n", Refused(400)),
    ("no target", "GET HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
    ("no method", " / HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
    ("two blanks before the target", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
    ("two blanks before the version", "GET /  HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
    ("a blank behind the version", "GET / HTTP/1.1 \r\nHost: a\r\n\r\n", Refused(400)),
    ("tabs between the words", "GET\t/\tHTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
    (
        "a second request in the target",
        "GET / HTTP/1.1 GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
        Refused(400),
    ),
    ("a version in lower case", "GET / http/1.1\r\nHost: a\r\n\r\n", Refused(400)),
    ("another protocol", "GET / HTTPS/1.1\r\nHost: a\r\n\r\n", Refused(400)),
    ("a version without a minor one", "GET / HTTP/1\r\nHost: a\r\n\r\n", Refused(400)),
    ("a version of three digits", "GET / HTTP/1.10\r\nHost: a\r\n\r\n", Refused(400)),
    ("a version with a sign", "GET / HTTP/+1.1\r\nHost: a\r\n\r\n", Refused(400)),
    ("version 0.9", "GET / HTTP/0.9\r\nHost: a\r\n\r\n", Refused(505)),
    ("version 1.2", "GET / HTTP/1.2\r\nHost: a\r\n\r\n", Refused(505)),
    ("version 2.0", "GET / HTTP/2.0\r\nHost: a\r\n\r\n", Refused(505)),
    ("version 9.9", "GET / HTTP/9.9\r\nHost: a\r\n\r\n", Refused(505)),
    ("the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Refused(505)),
    ("lines that end in LF", "GET / HTTP/1.1\nHost: a\n\n", Refused(400)),
    ("one line that ends in LF", "GET / HTTP/1.1\r\nX: y\nHost: a\r\n\r\n", Refused(400)),
    ("a head that ends in LF", "GET / HTTP/1.1\r\nHost: a\r\n\n", Refused(400)),
    ("a head that ends in LF LF", "GET / HTTP/1.1\r\nHost: a\n\n", Refused(400)),
    ("a line that ends in CR CR LF", "GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", Refused(400)),
    ("a head that ends in CR CR LF", "GET / HTTP/1.1\r\nHost: a\r\n\r\r\n", Refused(400)),
    ("a bare CR in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: y\rZ: 1\r\n\r\n", Refused(400)),
    ("a bare CR in the target", "GET /\rx HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
    ("a folded line", "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n", Refused(400)),
    ("a folded line with a tab", "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\tz\r\n\r\n", Refused(400)),
    ("a folded line that is empty", "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n \r\n\r\n", Refused(400)),
    ("a fold behind the first line", "GET / HTTP/1.1\r\n Host: a\r\nHost: a\r\n\r\n", Refused(400)),
    (
        "a folded Transfer-Encoding",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n",
        Refused(400),
    ),
    ("a blank before a colon", "GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n", Refused(400)),
    ("a tab before a colon", "GET / HTTP/1.1\r\nHost: a\r\nX\t: y\r\n\r\n", Refused(400)),
    ("a blank before the colon of Host", "GET / HTTP/1.1\r\nHost : a\r\n\r\n", Refused(400)),
    ("an empty name", "GET / HTTP/1.1\r\nHost: a\r\n: y\r\n\r\n", Refused(400)),
    ("a line without a colon", "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", Refused(400)),
    ("a name of letters that are not ASCII", "GET / HTTP/1.1\r\nHost: a\r\n\u{e9}: y\r\n\r\n", Refused(400)),
    ("a method of letters that are not ASCII", "G\u{c9}T / HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
    ("a method with a slash", "GET/ / HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
    ("a method in quotes", "\"GET\" / HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
    ("a TRACE with a body", "TRACE / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx", Refused(400)),
    (
        "another expectation",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: money\r\n\r\nx",
        Refused(417),
    ),
    (
        "two expectations",
        "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue, money\r\nContent-Length: 0\r\n\r\n",
        Refused(417),
    ),
    ("a TLS hello", "\u{16}\u{3}\u{1}", Refused(400)),
];

/// Request targets of a GET.
const TARGETS: &[(&str, u16)] = &[
    ("x", 400),
    ("*", 400),
    ("?x", 400),
    ("//a/\u{e9}", 400),
    ("/#fragment", 400),
    ("/?x#fragment", 400),
    ("a:80", 400),
    ("http://b/", 400),
    ("http://a:80/", 400),
    ("http://a./", 400),
    ("http://u@a/", 400),
    ("http://a@b/", 400),
    ("http://a?x", 400),
    ("http:///", 400),
    ("http://", 400),
    ("http:/a/", 400),
    ("http://a\\@b/", 400),
    ("ftp://a/", 400),
    ("file:///etc/passwd", 400),
    ("javascript://a/", 400),
    ("\\x", 400),
    ("%2f", 400),
];

/// Values of Host.
const HOSTS: &[&str] = &[
    "",
    " ",
    "a b",
    "a,b",
    "a, a",
    "u@a",
    "u:p@a",
    "@a",
    "a@",
    "a/",
    "a/b",
    "a?b",
    "a#b",
    "a\\b",
    "a%00",
    "a%2eb",
    "a:",
    "a:x",
    "a:-1",
    "a:+80",
    "a:80:80",
    "a:65536",
    "a:99999999999",
    ":80",
    "http://a",
    "[::1",
    "::1",
    "[::1]x",
    "[::1]:",
    "[::1%25lo]",
    "[::1%lo]",
    "[a]",
    "[]",
    "[127.0.0.1]",
    "\"a\"",
    "a;b",
    "a|b",
    "<a>",
    "a\u{e9}",
    "*",
    "a=b",
    "$a",
    "{a}",
];

/// Values of Content-Length, behind which a hidden request stands.
const LENGTHS: &[(&str, u16)] = &[
    ("", 400),
    ("-1", 400),
    ("+1", 400),
    ("1.0", 400),
    ("1e1", 400),
    ("0x0", 400),
    ("1_0", 400),
    ("1 1", 400),
    ("1,1", 400),
    ("1, 1", 400),
    ("0, 0", 400),
    (",0", 400),
    ("0,", 400),
    ("0;", 400),
    ("\"0\"", 400),
    ("a", 400),
    ("chunked", 400),
    ("\u{661}", 400),
    ("0 chunked", 400),
    ("18446744073709551616", 413),
    ("99999999999999999999999999", 413),
];

/// Values of Transfer-Encoding, behind which a hidden request stands.
const CODINGS: &[(&str, u16)] = &[
    ("", 400),
    (",", 400),
    ("identity", 501),
    ("gzip", 501),
    ("deflate", 501),
    ("compress", 501),
    ("x-gzip", 501),
    ("xchunked", 501),
    ("chunkedx", 501),
    ("chunke", 501),
    ("gzip, chunked", 400),
    ("chunked, gzip", 400),
    ("chunked, chunked", 400),
    ("chunked,", 400),
    (",chunked", 400),
    ("identity, chunked", 400),
    ("chunked, identity", 400),
    ("chunked;q=1", 400),
    ("chunked; a=b", 400),
    ("\"chunked\"", 400),
    ("'chunked'", 400),
    ("chun\u{e9}ked", 400),
    ("chunked chunked", 400),
    ("\u{a0}chunked", 400),
    ("chunked\u{a0}", 400),
    ("[chunked]", 400),
];

/// Headers that disagree about the body's end, or about the host.
const CONFLICTS: &[Row] = &[
    ("two equal lengths", "Content-Length: 0\r\nContent-Length: 0\r\n", Refused(400)),
    ("two lengths", "Content-Length: 0\r\nContent-Length: 35\r\n", Refused(400)),
    ("two lengths in two cases", "content-length: 0\r\nCONTENT-LENGTH: 35\r\n", Refused(400)),
    ("a length and chunks", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", Refused(400)),
    ("chunks and a length", "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", Refused(400)),
    ("chunks and a length of 0", "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", Refused(400)),
    ("a length and another coding", "Content-Length: 4\r\nTransfer-Encoding: gzip\r\n", Refused(400)),
    ("a length and no coding", "Content-Length: 4\r\nTransfer-Encoding:\r\n", Refused(400)),
    ("chunked twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Refused(400)),
    ("chunked, then identity", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", Refused(400)),
    ("identity, then chunked", "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n", Refused(400)),
    ("chunked, then nonsense", "Transfer-Encoding: chunked\r\nTransfer-Encoding: cow\r\n", Refused(400)),
    ("a coding with a blank in its name", "Transfer Encoding: chunked\r\n", Refused(400)),
    ("a coding with a blank before its colon", "Transfer-Encoding : chunked\r\n", Refused(400)),
    ("a length with a blank before its colon", "Content-Length : 35\r\n", Refused(400)),
    ("a coding behind a vertical tab", "Transfer-Encoding: \u{b}chunked\r\n", Refused(400)),
    ("a coding before a form feed", "Transfer-Encoding: chunked\u{c}\r\n", Refused(400)),
    ("a coding behind a bare LF", "X: y\nTransfer-Encoding: chunked\r\n", Refused(400)),
    ("a coding behind a bare CR", "X: y\rTransfer-Encoding: chunked\r\n", Refused(400)),
    ("a coding in a folded line", "X: y\r\n Transfer-Encoding: chunked\r\n", Refused(400)),
    ("a second Host", "Host: a\r\n", Refused(400)),
    ("another second Host", "host: b\r\n", Refused(400)),
    ("an empty second Host", "Host:\r\n", Refused(400)),
];

/// All of them.
pub(super) fn cases() -> Vec<Case> {
    let mut cases: Vec<_> = HEADS.iter().map(case).collect();
    for (target, status) in TARGETS {
        cases.push(refused(
            format!("the target {target:?}"),
            format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"),
            *status,
        ));
    }
    for host in HOSTS {
        cases.push(refused(
            format!("the host {host:?}"),
            format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"),
            400,
        ));
    }
    for version in ["1.1", "1.0"] {
        cases.push(refused(
            format!("no host in {version}"),
            format!("GET / HTTP/{version}\r\nX: y\r\n\r\n"),
            400,
        ));
        let chunked = format!("POST / HTTP/{version}\r\nHost: a\r\nTransfer-Encoding: cow\r\n\r\n");
        cases.push(refused(
            format!("an unknown coding in {version}"),
            chunked,
            if version == "1.0" { 400 } else { 501 },
        ));
    }
    let old = format!("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}");
    cases.push(refused("chunks in HTTP/1.0".into(), old, 400));
    for target in ["a:443", "b:22", "/", "*", "http://a/"] {
        let sent = format!("CONNECT {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        cases.push(refused(format!("a CONNECT to {target}"), sent, 501));
    }
    cases.extend(bodies());
    cases.extend(bytes());
    cases.extend(sizes());
    cases
}

/// What a body may hide.
fn bodies() -> Vec<Case> {
    let post = |lines: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n0\r\n\r\n{SMUGGLED}");
    let lengths = LENGTHS.iter().map(|(value, status)| {
        refused(format!("the length {value:?}"), post(&format!("Content-Length: {value}\r\n")), *status)
    });
    let codings = CODINGS.iter().map(|(value, status)| {
        refused(format!("the coding {value:?}"), post(&format!("Transfer-Encoding: {value}\r\n")), *status)
    });
    let conflicts = CONFLICTS.iter().map(|(name, lines, verdict)| Case {
        name: (*name).to_owned(),
        sent: post(lines).into_bytes(),
        verdict: verdict.clone(),
    });
    lengths.chain(codings).chain(conflicts).collect()
}

/// Bytes that stand where none of them may.
fn bytes() -> Vec<Case> {
    let mut cases = Vec::new();
    let controls = (0..=0x1f_u8).chain([0x7f]).filter(|byte| !b"\t\r\n".contains(byte));
    for byte in controls {
        for (place, before, behind) in [
            ("the method", "G", "T / HTTP/1.1\r\nHost: a\r\n\r\n"),
            ("the target", "GET /", " HTTP/1.1\r\nHost: a\r\n\r\n"),
            ("a name", "GET / HTTP/1.1\r\nHost: a\r\nX", "Y: z\r\n\r\n"),
            ("a value", "GET / HTTP/1.1\r\nHost: a\r\nX: y", "\r\n\r\n"),
        ] {
            let sent = [before.as_bytes(), &[byte], behind.as_bytes()].concat();
            cases.push(refused(format!("the byte {byte:#04x} in {place}"), sent, 400));
        }
    }
    for byte in *b"\"(),/;<=>?@[\\]{}" {
        let sent = format!("GET / HTTP/1.1\r\nHost: a\r\nX{}Y: z\r\n\r\n", char::from(byte));
        cases.push(refused(format!("the separator {:?} in a name", char::from(byte)), sent, 400));
    }
    cases
}

/// More than is held.
fn sizes() -> Vec<Case> {
    let head = |lines: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
    vec![
        refused("65 headers".into(), head(&"X: y\r\n".repeat(64)), 431),
        refused("a thousand headers".into(), head(&"X: y\r\n".repeat(1000)), 431),
        refused("a header of 16 KiB".into(), head(&format!("X: {}\r\n", "y".repeat(16 * 1024))), 431),
        refused("a target of 16 KiB".into(), format!("GET /{} HTTP/1.1\r\n", "x".repeat(16 * 1024)), 431),
        refused("a head that never ends".into(), "x".repeat(17 * 1024), 431),
        refused("65 connection options".into(), head(&format!("Connection: {}\r\n", "x,".repeat(65))), 400),
        refused(
            "a host of 254 bytes".into(),
            format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", "a".repeat(254)),
            400,
        ),
    ]
}
