//! Role: answers of an origin to a GET.

use super::{
    Case, Row,
    Verdict::{Incomplete, Refused},
    case, form, refused,
};

const ANSWERS: &[Row] = &[
    (
        "an answer with a length",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        form("HTTP/1.1 200 OK\nContent-Length: 2"),
    ),
    (
        "an answer in chunks",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\n\r\n",
        form("HTTP/1.1 200 OK\nTransfer-Encoding: chunked"),
    ),
    (
        "an answer until the end",
        "HTTP/1.1 200 OK\r\n\r\nok",
        form("HTTP/1.1 200 OK\nTransfer-Encoding: chunked"),
    ),
    (
        "an answer of HTTP/1.0",
        "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        form("HTTP/1.1 200 OK\nContent-Length: 2"),
    ),
    (
        "an answer without a phrase",
        "HTTP/1.1 404\r\nContent-Length: 0\r\n\r\n",
        form("HTTP/1.1 404 Not Found\nContent-Length: 0"),
    ),
    (
        "an answer with an empty phrase",
        "HTTP/1.1 404 \r\nContent-Length: 0\r\n\r\n",
        form("HTTP/1.1 404 Not Found\nContent-Length: 0"),
    ),
    (
        "an answer with a phrase of its own",
        "HTTP/1.1 299 All is well \r\nContent-Length: 0\r\n\r\n",
        form("HTTP/1.1 299 All is well \nContent-Length: 0"),
    ),
    (
        "equal lengths in a list",
        "HTTP/1.1 200 OK\r\nContent-Length: 2, 02\r\n\r\nok",
        form("HTTP/1.1 200 OK\nContent-Length: 2"),
    ),
    (
        "equal lengths in two lines",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\ncontent-length: 2\r\n\r\nok",
        form("HTTP/1.1 200 OK\nContent-Length: 2"),
    ),
    (
        "a 204 with a length",
        "HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n",
        form("HTTP/1.1 204 No Content"),
    ),
    (
        "a 204 in chunks",
        "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
        form("HTTP/1.1 204 No Content"),
    ),
    (
        "a 304 with a length",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\nETag: x\r\n\r\n",
        form("HTTP/1.1 304 Not Modified\nETag: x\nContent-Length: 2"),
    ),
    ("a 100", "HTTP/1.1 100 Continue\r\n\r\n", form("HTTP/1.1 100 Continue")),
    ("a 103", "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", form("HTTP/1.1 103 Early Hints\nLink: </x>")),
    (
        "a 1xx with a length",
        "HTTP/1.1 102 Processing\r\nContent-Length: 5\r\n\r\n",
        form("HTTP/1.1 102 Processing"),
    ),
    (
        "a connection of the origin's own",
        "HTTP/1.1 200 OK\r\nConnection: close, X\r\nX: y\r\nKeep-Alive: z\r\nContent-Length: 0\r\n\r\n",
        form("HTTP/1.1 200 OK\nContent-Length: 0"),
    ),
    (
        "a connection that names an answer's length",
        "HTTP/1.1 200 OK\r\nConnection: Content-Length\r\nContent-Length: 0\r\n\r\n",
        form("HTTP/1.1 200 OK\nContent-Length: 0"),
    ),
    (
        "an offer of HTTP/2",
        "HTTP/1.1 200 OK\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n",
        form("HTTP/1.1 200 OK\nContent-Length: 0"),
    ),
    (
        "an origin's header of ours",
        "HTTP/1.1 200 OK\r\nNL-Refused: x\r\nnl_opened: y\r\nContent-Length: 0\r\n\r\n",
        form("HTTP/1.1 200 OK\nContent-Length: 0"),
    ),
    (
        "a proxy's authentication",
        "HTTP/1.1 407 X\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n",
        form("HTTP/1.1 407 X\nContent-Length: 0"),
    ),
    (
        "cookies",
        "HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nset-cookie: b\r\nContent-Length: 0\r\n\r\n",
        form("HTTP/1.1 200 OK\nSet-Cookie: a\nset-cookie: b\nContent-Length: 0"),
    ),
    (
        "the origin's server",
        "HTTP/1.1 200 OK\r\nServer: x/1\r\nContent-Length: 0\r\n\r\n",
        form("HTTP/1.1 200 OK\nServer: x/1\nContent-Length: 0"),
    ),
    (
        "bytes above ASCII in an answer",
        "HTTP/1.1 200 OK\r\nX: \u{e9}\r\nContent-Length: 0\r\n\r\n",
        form("HTTP/1.1 200 OK\nX: \u{e9}\nContent-Length: 0"),
    ),
    (
        "an answer behind an answer",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        form("HTTP/1.1 200 OK\nContent-Length: 0"),
    ),
    (
        "a length and chunks in an answer",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        Refused(502),
    ),
    ("different lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n", Refused(502)),
    ("different lengths in a list", "HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\n", Refused(502)),
    ("a list of lengths that ends early", "HTTP/1.1 200 OK\r\nContent-Length: 2,\r\n\r\n", Refused(502)),
    ("a length with a sign in an answer", "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\n", Refused(502)),
    ("an empty length in an answer", "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n", Refused(502)),
    (
        "a length above 64 bits in an answer",
        "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n\r\n",
        Refused(502),
    ),
    ("another coding in an answer", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", Refused(502)),
    ("two codings in an answer", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", Refused(502)),
    (
        "chunked twice in an answer",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        Refused(502),
    ),
    ("an empty coding in an answer", "HTTP/1.1 200 OK\r\nTransfer-Encoding:\r\n\r\n", Refused(502)),
    (
        "chunks in an answer of HTTP/1.0",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        Refused(502),
    ),
    (
        "chunks and a length in a 204",
        "HTTP/1.1 204 X\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        Refused(502),
    ),
    (
        "a 101 that nobody asked for",
        "HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        Refused(502),
    ),
    ("a 101 to nothing", "HTTP/1.1 101 X\r\n\r\n", Refused(502)),
    ("a folded line in an answer", "HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n", Refused(502)),
    ("a bare LF in an answer", "HTTP/1.1 200 OK\r\nX: y\nSet-Cookie: z\r\n\r\n", Refused(502)),
    ("a bare CR in an answer", "HTTP/1.1 200 OK\r\nX: y\rSet-Cookie: z\r\n\r\n", Refused(502)),
    ("an answer of LF alone", "HTTP/1.1 200 OK\n\n", Refused(502)),
    ("a blank before a colon in an answer", "HTTP/1.1 200 OK\r\nX : y\r\n\r\n", Refused(502)),
    ("a line without a colon in an answer", "HTTP/1.1 200 OK\r\nX\r\n\r\n", Refused(502)),
    ("an empty name in an answer", "HTTP/1.1 200 OK\r\n: y\r\n\r\n", Refused(502)),
    ("status 99", "HTTP/1.1 099 X\r\n\r\n", Refused(502)),
    ("status 600", "HTTP/1.1 600 X\r\n\r\n", Refused(502)),
    ("status 000", "HTTP/1.1 000 X\r\n\r\n", Refused(502)),
    ("a status of two digits", "HTTP/1.1 20 OK\r\n\r\n", Refused(502)),
    ("a status of four digits", "HTTP/1.1 2000 OK\r\n\r\n", Refused(502)),
    ("a status with a sign", "HTTP/1.1 +20 OK\r\n\r\n", Refused(502)),
    ("a status in letters", "HTTP/1.1 OK\r\n\r\n", Refused(502)),
    ("a status line without a status", "HTTP/1.1\r\n\r\n", Refused(502)),
    ("a status behind two blanks", "HTTP/1.1  200 OK\r\n\r\n", Refused(502)),
    ("an answer of HTTP/2", "HTTP/2 200\r\n\r\n", Refused(502)),
    ("an answer of HTTP/1.2", "HTTP/1.2 200 OK\r\n\r\n", Refused(502)),
    ("an answer in lower case", "http/1.1 200 OK\r\n\r\n", Refused(502)),
    ("an answer of Shoutcast", "ICY 200 OK\r\n\r\n", Refused(502)),
    ("an answer of SSH", "SSH-2.0-OpenSSH_9.6\r\n", Refused(502)),
    ("an answer that is only a page", "<html>\n", Refused(502)),
    ("an empty line before an answer", "\r\nHTTP/1.1 200 OK\r\n\r\n", Refused(502)),
    ("no byte of an answer", "", Incomplete),
    ("half a status line", "HTTP/1.1 20", Incomplete),
    ("half an answer's head", "HTTP/1.1 200 OK\r\nX: y\r\n", Incomplete),
];

/// All of them.
pub(super) fn cases() -> Vec<Case> {
    let mut cases: Vec<_> = ANSWERS.iter().map(case).collect();
    for byte in (0..=0x1f_u8).chain([0x7f]).filter(|byte| !b"\t\r\n".contains(byte)) {
        let sent = [b"HTTP/1.1 200 OK\r\nX: y".as_slice(), &[byte], b"\r\n\r\n"].concat();
        cases.push(refused(format!("the byte {byte:#04x} in an answer's value"), sent, 502));
    }
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(65));
    cases.push(refused("65 headers of an answer".into(), many, 502));
    let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "y".repeat(16 * 1024));
    cases.push(refused("an answer's head of 16 KiB".into(), long, 502));
    cases
}
