//! Role: requests that are passed on, each in its normal form, and heads of which more is due.

use super::{Case, Row, Verdict::Incomplete, case, form, forwarded};

/// Whole requests.
const REQUESTS: &[Row] = &[
    ("a GET", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", form("GET / HTTP/1.1\nHost: a")),
    ("a GET of HTTP/1.0", "GET / HTTP/1.0\r\nHost: a\r\n\r\n", form("GET / HTTP/1.1\nHost: a")),
    ("a query", "GET /x?y=z&&%00 HTTP/1.1\r\nHost: a\r\n\r\n", form("GET /x?y=z&&%00 HTTP/1.1\nHost: a")),
    (
        "a path of dots",
        "GET /../%2e%2e//x HTTP/1.1\r\nHost: a\r\n\r\n",
        form("GET /../%2e%2e//x HTTP/1.1\nHost: a"),
    ),
    (
        "a path that looks like a host",
        "GET //b/x HTTP/1.1\r\nHost: a\r\n\r\n",
        form("GET //b/x HTTP/1.1\nHost: a"),
    ),
    (
        "a path with a URL",
        "GET /http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
        form("GET /http://b/ HTTP/1.1\nHost: a"),
    ),
    (
        "an absolute target",
        "GET http://a/x?y HTTP/1.1\r\nHost: a\r\n\r\n",
        form("GET /x?y HTTP/1.1\nHost: a"),
    ),
    (
        "an absolute target in capitals",
        "GET HTTP://A/x HTTP/1.1\r\nHost: a\r\n\r\n",
        form("GET /x HTTP/1.1\nHost: a"),
    ),
    (
        "an absolute target without a path",
        "GET https://a HTTP/1.1\r\nHost: a\r\n\r\n",
        form("GET / HTTP/1.1\nHost: a"),
    ),
    ("a star", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", form("OPTIONS * HTTP/1.1\nHost: a")),
    ("an absolute star", "OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n", form("OPTIONS * HTTP/1.1\nHost: a")),
    (
        "a method that nobody knows",
        "M-SEARCH / HTTP/1.1\r\nHost: a\r\n\r\n",
        form("M-SEARCH / HTTP/1.1\nHost: a"),
    ),
    ("a method in lower case", "get / HTTP/1.1\r\nHost: a\r\n\r\n", form("get / HTTP/1.1\nHost: a")),
    (
        "Host as the last line",
        "GET / HTTP/1.1\r\nX: y\r\nhOST:a\r\n\r\n",
        form("GET / HTTP/1.1\nHost: a\nX: y"),
    ),
    ("Host with a port", "GET / HTTP/1.1\r\nHost: A:080\r\n\r\n", form("GET / HTTP/1.1\nHost: A:080")),
    ("Host in brackets", "GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", form("GET / HTTP/1.1\nHost: [::1]:80")),
    ("Host between blanks", "GET / HTTP/1.1\r\nHost: \t a \t\r\n\r\n", form("GET / HTTP/1.1\nHost: a")),
    (
        "values between blanks",
        "GET / HTTP/1.1\r\nHost: a\r\nX:\t y\tz \t\r\nY:\r\n\r\n",
        form("GET / HTTP/1.1\nHost: a\nX: y\tz\nY: "),
    ),
    (
        "bytes above ASCII in a value",
        "GET / HTTP/1.1\r\nHost: a\r\nX: \u{e9}\u{202e}\r\n\r\n",
        form("GET / HTTP/1.1\nHost: a\nX: \u{e9}\u{202e}"),
    ),
    (
        "a value with a colon",
        "GET / HTTP/1.1\r\nHost: a\r\nX: : y: z\r\n\r\n",
        form("GET / HTTP/1.1\nHost: a\nX: : y: z"),
    ),
    (
        "a name of all signs",
        "GET / HTTP/1.1\r\nHost: a\r\n!#$%&'*+-.^_`|~9: y\r\n\r\n",
        form("GET / HTTP/1.1\nHost: a\n!#$%&'*+-.^_`|~9: y"),
    ),
    (
        "a header twice",
        "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\nx: 2\r\n\r\n",
        form("GET / HTTP/1.1\nHost: a\nX: 1\nx: 2"),
    ),
    (
        "cookies in two lines",
        "GET / HTTP/1.1\r\nHost: a\r\nCookie: a=b\r\nX: y\r\ncookie: c\r\n\r\n",
        form("GET / HTTP/1.1\nHost: a\nCookie: a=b; c\nX: y"),
    ),
    (
        "a length",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        form("POST / HTTP/1.1\nHost: a\nContent-Length: 5"),
    ),
    (
        "a length with noughts before it",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 00005\r\n\r\nhello",
        form("POST / HTTP/1.1\nHost: a\nContent-Length: 5"),
    ),
    (
        "a length between blanks",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \t5 \r\n\r\nhello",
        form("POST / HTTP/1.1\nHost: a\nContent-Length: 5"),
    ),
    (
        "the greatest length",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551615\r\n\r\n",
        form("POST / HTTP/1.1\nHost: a\nContent-Length: 18446744073709551615"),
    ),
    (
        "a GET with a body",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        form("GET / HTTP/1.1\nHost: a\nContent-Length: 5"),
    ),
    (
        "a GET with a body of nothing",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        form("GET / HTTP/1.1\nHost: a\nContent-Length: 0"),
    ),
    (
        "a POST without a length",
        "POST / HTTP/1.1\r\nHost: a\r\n\r\n",
        form("POST / HTTP/1.1\nHost: a\nContent-Length: 0"),
    ),
    ("a DELETE without a length", "DELETE / HTTP/1.1\r\nHost: a\r\n\r\n", form("DELETE / HTTP/1.1\nHost: a")),
    (
        "chunks",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        form("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked"),
    ),
    (
        "chunks in capitals",
        "POST / HTTP/1.1\r\nHost: a\r\nTRANSFER-ENCODING:CHUNKED\t\r\n\r\n0\r\n\r\n",
        form("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked"),
    ),
    (
        "a length with an underscore",
        "POST / HTTP/1.1\r\nHost: a\r\nContent_Length: 5\r\n\r\n",
        form("POST / HTTP/1.1\nHost: a\nContent-Length: 0"),
    ),
    (
        "a coding with an underscore",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer_Encoding: chunked\r\n\r\n",
        form("POST / HTTP/1.1\nHost: a\nContent-Length: 0"),
    ),
    (
        "a hidden request in a body",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 35\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
        form("POST / HTTP/1.1\nHost: a\nContent-Length: 35"),
    ),
    (
        "a 100 that is waited for",
        "PUT / HTTP/1.1\r\nHost: a\r\nexpect: 100-CONTINUE\r\nContent-Length: 1\r\n\r\nx",
        form("PUT / HTTP/1.1\nHost: a\nExpect: 100-continue\nContent-Length: 1"),
    ),
    (
        "a 100 without a body",
        "GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n",
        form("GET / HTTP/1.1\nHost: a"),
    ),
    (
        "a 100 in HTTP/1.0",
        "PUT / HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
        form("PUT / HTTP/1.1\nHost: a\nContent-Length: 1"),
    ),
    (
        "trailers announced",
        "PUT / HTTP/1.1\r\nHost: a\r\nTrailer: X\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n",
        form("PUT / HTTP/1.1\nHost: a\nTrailer: X\nTransfer-Encoding: chunked"),
    ),
    (
        "trailers announced without chunks",
        "GET / HTTP/1.1\r\nHost: a\r\nTrailer: X\r\n\r\n",
        form("GET / HTTP/1.1\nHost: a"),
    ),
    (
        "trailers read",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: TE\r\nTE: gzip, trailers\r\n\r\n",
        form("GET / HTTP/1.1\nHost: a\nConnection: TE\nTE: trailers"),
    ),
    (
        "codings read",
        "GET / HTTP/1.1\r\nHost: a\r\nTE: gzip;q=1\r\nConnection: TE\r\n\r\n",
        form("GET / HTTP/1.1\nHost: a"),
    ),
    (
        "a connection that ends",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        form("GET / HTTP/1.1\nHost: a"),
    ),
    (
        "a connection that stays",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\nProxy-Connection: x\r\n\r\n",
        form("GET / HTTP/1.1\nHost: a"),
    ),
    (
        "a header of the connection",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: X\r\nx: 1\r\nX: 2\r\nY: 3\r\n\r\n",
        form("GET / HTTP/1.1\nHost: a\nY: 3"),
    ),
    (
        "a header of the connection, named later",
        "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\nConnection: ,, close\r\nconnection: y,x\r\n\r\n",
        form("GET / HTTP/1.1\nHost: a"),
    ),
    (
        "a connection that names Host",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: Host\r\n\r\n",
        form("GET / HTTP/1.1\nHost: a"),
    ),
    (
        "a connection that names the length",
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: Content-Length\r\nContent-Length: 5\r\n\r\nhello",
        form("POST / HTTP/1.1\nHost: a\nContent-Length: 5"),
    ),
    (
        "a connection that names the coding",
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        form("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked"),
    ),
    (
        "a connection that names what is added",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: X-Forwarded-For, X-Request-Id\r\nX-Forwarded-For: 1\r\n\r\n",
        form("GET / HTTP/1.1\nHost: a"),
    ),
    (
        "a WebSocket",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n",
        form("GET / HTTP/1.1\nHost: a\nConnection: Upgrade\nUpgrade: websocket"),
    ),
    (
        "an upgrade by POST",
        "POST /ts2021 HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: tailscale-control-protocol\r\n\r\n",
        form("POST /ts2021 HTTP/1.1\nHost: a\nConnection: Upgrade\nUpgrade: tailscale-control-protocol"),
    ),
    (
        "an upgrade with a body",
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n\r\nx",
        form("POST / HTTP/1.1\nHost: a\nContent-Length: 1"),
    ),
    (
        "an upgrade without its option",
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
        form("GET / HTTP/1.1\nHost: a"),
    ),
    (
        "an upgrade of HTTP/1.0",
        "GET / HTTP/1.0\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        form("GET / HTTP/1.1\nHost: a"),
    ),
    (
        "an upgrade to HTTP/2",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n",
        form("GET / HTTP/1.1\nHost: a"),
    ),
    (
        "an upgrade to HTTP/2 beside WebSocket",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket, H2C\r\n\r\n",
        form("GET / HTTP/1.1\nHost: a\nConnection: Upgrade\nUpgrade: websocket"),
    ),
    (
        "pipelined requests",
        "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
        form("GET /1 HTTP/1.1\nHost: a"),
    ),
    (
        "a request behind a GET with a length",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 35\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
        form("GET / HTTP/1.1\nHost: a\nContent-Length: 35"),
    ),
    (
        "authorization",
        "GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Basic x\r\nProxy-Authorization: y\r\n\r\n",
        form("GET / HTTP/1.1\nHost: a\nAuthorization: Basic x"),
    ),
    ("no bytes", "", Incomplete),
    ("half a method", "GE", Incomplete),
    ("a first line", "GET / HTTP/1.1\r\n", Incomplete),
    ("a CR", "GET / HTTP/1.1\r\nHost: a\r\n\r", Incomplete),
];

/// What a stranger may not say; each is left out of the head.
const CLAIMS: &[&str] = &[
    "X-Forwarded-For",
    "x-forwarded-for",
    "X_Forwarded_For",
    "X-Forwarded_For",
    "X.Forwarded.For",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "X-Forwarded-Server",
    "X-Forwarded-Prefix",
    "X-Forwarded-User",
    "X-Forwarded-Client-Cert",
    "X-Forwarded",
    "Forwarded",
    "FORWARDED",
    "Forwarded-For",
    "X-Real-IP",
    "X_Real_IP",
    "x_real-ip",
    "CF-Connecting-IP",
    "CF_Connecting_IP",
    "CF-Connecting-IPv6",
    "True-Client-IP",
    "True_Client_IP",
    "Client-IP",
    "X-Client-IP",
    "X-Cluster-Client-IP",
    "Fastly-Client-IP",
    "X-Originating-IP",
    "X-Remote-IP",
    "X-Remote-Addr",
    "X-Envoy-External-Address",
    "X-Azure-ClientIP",
    "Fly-Client-IP",
    "X-Original-URL",
    "X-Rewrite-URL",
    "X-Original-Host",
    "X-Host",
    "X-Scheme",
    "Front-End-Https",
    "X-SSL-Client-Verify",
    "Client-Cert",
    "NL-Client-Subject",
    "nl_client_subject",
    "NL-Open",
    "NL-Lane",
    "NL-Anything",
    "Proxy",
    "PROXY",
    "X-Request-Id",
    "X_Request_Id",
];

/// All of them.
pub(super) fn cases() -> Vec<Case> {
    let mut cases: Vec<_> = REQUESTS.iter().map(case).collect();
    for name in CLAIMS {
        cases.push(forwarded(
            format!("a stranger's {name}"),
            format!("GET / HTTP/1.1\r\nHost: a\r\n{name}: 10.0.0.1\r\nX: y\r\n\r\n"),
            "GET / HTTP/1.1\nHost: a\nX: y",
        ));
    }
    let most = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(63));
    cases.push(forwarded(
        "64 headers".into(),
        most,
        format!("GET / HTTP/1.1\nHost: a{}", "\nX: y".repeat(63)),
    ));
    cases
}
