//! Role: bodies in chunks.

use super::{
    Case, Row, SMUGGLED,
    Verdict::{Incomplete, Refused},
    case, form, forwarded, refused,
};

const BODIES: &[Row] = &[
    ("an empty body", "0\r\n\r\n", form("")),
    ("a chunk", "5\r\nhello\r\n0\r\n\r\n", form("hello")),
    ("two chunks", "5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", form("hello!")),
    ("a size in capitals", "A\r\n0123456789\r\n0\r\n\r\n", form("0123456789")),
    ("a size in lower case", "a\r\n0123456789\r\n0\r\n\r\n", form("0123456789")),
    ("a size with noughts before it", "0000000000000001\r\na\r\n0\r\n\r\n", form("a")),
    ("a last size of many noughts", "0000000000000000\r\n\r\n", form("")),
    ("an extension", "1;a=b\r\nx\r\n0\r\n\r\n", form("x")),
    ("an extension in quotes", "1;a=\"b;c\"\r\nx\r\n0;z\r\n\r\n", form("x")),
    ("an extension behind a blank", "1; a = b\r\nx\r\n0\r\n\r\n", form("x")),
    ("an empty extension", "1;\r\nx\r\n0\r\n\r\n", form("x")),
    ("an extension above ASCII", "1;\u{e9}\r\nx\r\n0\r\n\r\n", form("x")),
    ("payload of line ends", "4\r\n\r\n\r\n\r\n0\r\n\r\n", form("\r\n\r\n")),
    ("payload that looks like the end", "5\r\n0\r\n\r\n\r\n0\r\n\r\n", form("0\r\n\r\n")),
    ("bytes behind the end", "1\r\na\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n", form("a")),
    ("a trailer", "0\r\nX-Sum: 1\r\n\r\n", form("\nX-Sum: 1")),
    (
        "a trailer of gRPC",
        "1\r\na\r\n0\r\ngrpc-status: 0\r\ngrpc-message:\r\n\r\n",
        form("a\ngrpc-status: 0\ngrpc-message: "),
    ),
    ("a trailer with a length", "0\r\nContent-Length: 5\r\nX: y\r\n\r\n", form("\nX: y")),
    ("a trailer with a coding", "0\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n", form("\nX: y")),
    ("a trailer with a host", "0\r\nHost: b\r\n\r\n", form("")),
    ("a trailer with credentials", "0\r\nAuthorization: x\r\nCookie: y\r\nSet-Cookie: z\r\n\r\n", form("")),
    (
        "a trailer with an address",
        "0\r\nX-Forwarded-For: 1\r\nX-Real-IP: 1\r\nX_Forwarded_For: 1\r\n\r\n",
        form(""),
    ),
    ("a trailer of ours", "0\r\nNL-Client-Subject: x\r\nnl_open: y\r\n\r\n", form("")),
    ("a trailer of the connection", "0\r\nConnection: close\r\nUpgrade: h2c\r\nTE: x\r\n\r\n", form("")),
    (
        "a trailer about the content",
        "0\r\nContent-Type: x\r\nContent-Encoding: y\r\nContent-Range: z\r\n\r\n",
        form(""),
    ),
    ("a trailer with a condition", "0\r\nIf-Match: x\r\nRange: y\r\nExpect: z\r\n\r\n", form("")),
    ("no size", "\r\n", Refused(400)),
    ("no size, but payload", "\r\nhello\r\n", Refused(400)),
    ("a size that is none", "x\r\n", Refused(400)),
    ("a size with a sign", "+1\r\na\r\n0\r\n\r\n", Refused(400)),
    ("a size below nothing", "-1\r\na\r\n0\r\n\r\n", Refused(400)),
    ("a size with 0x", "0x1\r\na\r\n0\r\n\r\n", Refused(400)),
    ("a size with an underscore", "1_0\r\n", Refused(400)),
    ("a size with a point", "1.0\r\n", Refused(400)),
    ("a blank before a size", " 1\r\na\r\n0\r\n\r\n", Refused(400)),
    ("a tab before a size", "\t1\r\na\r\n0\r\n\r\n", Refused(400)),
    ("a blank behind a size", "1 \r\na\r\n0\r\n\r\n", Refused(400)),
    ("a blank before an extension", "1 ;a\r\na\r\n0\r\n\r\n", Refused(400)),
    ("two sizes", "1 1\r\na\r\n0\r\n\r\n", Refused(400)),
    ("a size in quotes", "\"1\"\r\na\r\n0\r\n\r\n", Refused(400)),
    ("an extension without a size", ";a\r\n", Refused(400)),
    ("17 digits", "00000000000000001\r\na\r\n0\r\n\r\n", Refused(400)),
    ("a size above 64 bits", "10000000000000000\r\n", Refused(400)),
    ("a size that wraps to 5", "10000000000000005\r\nhello\r\n0\r\n\r\n", Refused(400)),
    ("a size that ends in LF", "1\na\r\n0\r\n\r\n", Refused(400)),
    ("a size that ends in CR", "1\ra\r\n0\r\n\r\n", Refused(400)),
    ("a size that ends in CR CR LF", "1\r\r\na\r\n0\r\n\r\n", Refused(400)),
    ("a last size that ends in LF", "0\n\r\n", Refused(400)),
    ("an extension that ends in LF", "1;a\nb\r\n0\r\n\r\n", Refused(400)),
    ("an extension that ends in CR", "1;a\rb\r\n0\r\n\r\n", Refused(400)),
    ("an extension with a NUL", "1;a\0\r\nx\r\n0\r\n\r\n", Refused(400)),
    ("an extension with a line in quotes", "1;a=\"\n\"\r\nx\r\n0\r\n\r\n", Refused(400)),
    ("a chunk that is longer than its size", "1\r\nab\r\n0\r\n\r\n", Refused(400)),
    ("a chunk without an end", "1\r\na0\r\n\r\n", Refused(400)),
    ("a chunk that ends in LF", "1\r\na\n0\r\n\r\n", Refused(400)),
    ("a chunk that ends in CR", "1\r\na\r0\r\n\r\n", Refused(400)),
    ("a chunk that is shorter than its size", "3\r\na\r\n0\r\n\r\n", Refused(400)),
    ("an end in LF LF", "0\n\n", Refused(400)),
    ("an end in CR LF LF", "0\r\n\n", Refused(400)),
    ("an end in CR CR", "0\r\n\r\r", Refused(400)),
    ("an end with something else behind CR", "0\r\n\rX", Refused(400)),
    ("a folded trailer", "0\r\nX: y\r\n z\r\n\r\n", Refused(400)),
    ("a trailer that begins with a fold", "0\r\n X: y\r\n\r\n", Refused(400)),
    ("a trailer with a blank before its colon", "0\r\nX : y\r\n\r\n", Refused(400)),
    ("a trailer without a name", "0\r\n: y\r\n\r\n", Refused(400)),
    ("a trailer without a colon", "0\r\nX\r\n\r\n", Refused(400)),
    ("a trailer that ends in LF", "0\r\nX: y\n\r\n", Refused(400)),
    ("a trailer with a CR", "0\r\nX: y\rZ: 1\r\n\r\n", Refused(400)),
    ("a trailer with a NUL", "0\r\nX: \0\r\n\r\n", Refused(400)),
    ("a request where trailers are due", "0\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
    ("no chunk", "", Incomplete),
    ("half a size", "1", Incomplete),
    ("half a line", "1\r", Incomplete),
    ("a size without payload", "5\r\n", Incomplete),
    ("half a payload", "5\r\nhel", Incomplete),
    ("payload without its end", "5\r\nhello", Incomplete),
    ("a chunk without a last one", "5\r\nhello\r\n", Incomplete),
    ("a last size alone", "0\r\n", Incomplete),
    ("half an end", "0\r\n\r", Incomplete),
    ("half a trailer", "0\r\nX: y\r\n", Incomplete),
    ("the greatest size", "ffffffffffffffff\r\nx", Incomplete),
];

/// All of them.
pub(super) fn cases() -> Vec<Case> {
    let mut cases: Vec<_> = BODIES.iter().map(case).collect();
    for byte in (0..=0x1f_u8).chain([0x7f]).filter(|byte| !b"\t\r\n".contains(byte)) {
        let sent = [b"1;a".as_slice(), &[byte], b"\r\nx\r\n0\r\n\r\n"].concat();
        cases.push(refused(format!("the byte {byte:#04x} in an extension"), sent, 400));
    }
    let extension = |bytes: usize| format!("1;{}\r\nx\r\n0\r\n\r\n", "a".repeat(bytes - 1));
    cases.push(forwarded("an extension of 256 bytes".into(), extension(256), "x"));
    cases.push(refused("an extension of 257 bytes".into(), extension(257), 400));
    cases.push(refused(
        "an extension on each of many chunks".into(),
        "1;0123456789abcdef\r\nx\r\n".repeat(1000),
        400,
    ));
    let trailers = |count: usize| format!("0\r\n{}\r\n", "X: y\r\n".repeat(count));
    cases.push(forwarded("32 trailers".into(), trailers(32), "\nX: y".repeat(32)));
    cases.push(refused("33 trailers".into(), trailers(33), 431));
    cases.push(refused("trailers of 8 KiB".into(), format!("0\r\nX: {}\r\n\r\n", "y".repeat(8192)), 431));
    cases.push(refused("a hidden request without a last chunk".into(), format!("1\r\na\r\n{SMUGGLED}"), 400));
    cases
}
