//! Role: what the name of a header decides about it on its way through a proxy.
//! Invariants: names are compared as a CGI variable would hold them, so that no other spelling of a name passes where
//! the name itself does not · what speaks for a visitor's address, scheme or certificate comes from trusted proxies alone.
//! See: RFC 9110 section 7.6.1; RFC 3875 section 4.1.18 (names of variables); httpoxy.org for `Proxy`.

/// The header of ours that names the subject of a visitor's certificate. Bytes that are not printable ASCII, and `%`,
/// stand as `%XX`.
pub const CLIENT_SUBJECT: &str = "NL-Client-Subject";

/// What becomes of a request's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// It is for this connection alone, or written anew from what was parsed.
    Dropped,
    /// Cookies of HTTP/2 come in crumbs and are joined.
    Cookie,
    /// `Trailer`: it stays where there are trailers.
    Trailer,
    /// It says what only a proxy knows: removed unless a trusted one says it.
    Claim,
    /// It says what the edge says too: extended or replaced.
    Ours,
    /// It is passed on.
    Other,
}

/// Longer names are in no list.
const NAME_BYTES_MAX: usize = 32;

/// A name in lower case, with `-` for whatever is neither letter nor digit.
struct Plain {
    bytes: [u8; NAME_BYTES_MAX],
    len: usize,
    /// It was written with something else than letters, digits and `-`.
    is_odd: bool,
}

impl Plain {
    fn of(name: &str) -> Self {
        let mut plain =
            Self { bytes: [0; NAME_BYTES_MAX], len: name.len().min(NAME_BYTES_MAX), is_odd: false };
        for (to, from) in plain.bytes.iter_mut().zip(name.bytes()) {
            *to = PLAIN[from as usize];
            plain.is_odd |= (*to == b'-') & (from != b'-');
        }
        plain
    }

    fn text(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

const fn plain_byte(byte: u8) -> u8 {
    if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' }
}

const PLAIN: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = plain_byte(byte as u8);
        byte += 1;
    }
    table
};

/// Whether two names are one, or become one as CGI variables.
pub(crate) fn is_same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).all(|(a, b)| plain_byte(a) == plain_byte(b))
}

/// What becomes of a request's header of this name.
pub(crate) fn of_request(name: &str) -> Class {
    let plain = Plain::of(name);
    let text = plain.text();
    let found = of_length(name.len()).iter().find(|(own, _)| *own == text);
    let class = match found {
        _ if is_reserved(text) => Class::Dropped,
        Some((_, class)) => *class,
        None if text.starts_with(b"x-forwarded-") => Class::Claim,
        None => Class::Other,
    };
    if plain.is_odd && class != Class::Other { Class::Dropped } else { class }
}

/// The names of that length.
fn of_length(len: usize) -> &'static [(&'static [u8], Class)] {
    match (STARTS.get(len), STARTS.get(len + 1)) {
        (Some(&start), Some(&end)) => &NAMES[start..end],
        _ => &[],
    }
}

/// Where the names of each length begin.
const STARTS: [usize; NAME_BYTES_MAX + 2] = {
    let mut starts = [NAMES.len(); NAME_BYTES_MAX + 2];
    let mut at = NAMES.len();
    while at > 0 {
        at -= 1;
        let mut len = NAMES[at].0.len();
        while starts[len] > at {
            starts[len] = at;
            if len == 0 {
                break;
            }
            len -= 1;
        }
    }
    starts
};

/// Whether an answer's header of this name stays on the origin's own connection.
pub(crate) fn is_dropped_from_response(name: &str) -> bool {
    let plain = Plain::of(name);
    let text = plain.text();
    // A browser takes no `_` for `-`, but what is ours goes out in no spelling.
    is_reserved(text)
        || !plain.is_odd
            && name.len() <= NAME_BYTES_MAX
            && (is_connections(text)
                || matches!(text, b"content-length" | b"proxy-authenticate" | b"proxy-authentication-info"))
}

/// Whether a trailer of this name may be passed on: it frames, routes, authenticates and describes nothing (RFC 9110
/// section 6.5.1).
pub(crate) fn is_trailer(name: &str) -> bool {
    let plain = Plain::of(name);
    let text = plain.text();
    let is_known = matches!(
        text,
        b"age"
            | b"allow"
            | b"authorization"
            | b"authentication-info"
            | b"cache-control"
            | b"content-encoding"
            | b"content-location"
            | b"content-range"
            | b"content-type"
            | b"cookie"
            | b"date"
            | b"expires"
            | b"location"
            | b"max-forwards"
            | b"pragma"
            | b"range"
            | b"retry-after"
            | b"set-cookie"
            | b"strict-transport-security"
            | b"vary"
            | b"warning"
            | b"www-authenticate"
            | b"proxy-authenticate"
            | b"proxy-authentication-info"
            | b"origin"
            | b"referer"
    );
    !is_known && !text.starts_with(b"if-") && of_request(name) == Class::Other && !plain.is_odd
}

/// Whether a rule of a host may not set or remove it: the head is framed and routed by it.
pub(crate) fn is_framing(name: &str) -> bool {
    let plain = Plain::of(name);
    is_reserved(plain.text())
        || name.len() <= NAME_BYTES_MAX
            && (is_connections(plain.text())
                || matches!(plain.text(), b"host" | b"content-length" | b"expect"))
}

/// Names of ours: they pass neither in nor out on published traffic.
fn is_reserved(text: &[u8]) -> bool {
    text.starts_with(b"nl-")
}

/// Whether a header is for one connection alone.
pub(crate) fn is_connections(text: &[u8]) -> bool {
    matches!(
        text,
        b"connection"
            | b"keep-alive"
            | b"proxy-connection"
            | b"te"
            | b"transfer-encoding"
            | b"upgrade"
            | b"http2-settings"
    )
}

/// The names that are not passed on as they are, by their length and then their bytes; the prefixes beside them are
/// `nl-` and `x-forwarded-`.
#[rustfmt::skip]
const NAMES: &[(&[u8], Class)] = &[
    (b"te", Class::Dropped),
    (b"host", Class::Dropped),
    (b"proxy", Class::Dropped),
    (b"cookie", Class::Cookie),
    (b"expect", Class::Dropped),
    (b"via-ip", Class::Claim),
    (b"x-host", Class::Claim),
    (b"real-ip", Class::Claim),
    (b"trailer", Class::Trailer),
    (b"upgrade", Class::Dropped),
    (b"x-scheme", Class::Claim),
    (b"client-ip", Class::Claim),
    (b"forwarded", Class::Ours),
    (b"x-arr-ssl", Class::Claim),
    (b"x-real-ip", Class::Claim),
    (b"cdn-src-ip", Class::Claim),
    (b"cf-visitor", Class::Claim),
    (b"connection", Class::Dropped),
    (b"fastly-ssl", Class::Claim),
    (b"keep-alive", Class::Dropped),
    (b"x-ssl-cert", Class::Claim),
    (b"cdn-loop-ip", Class::Claim),
    (b"client-cert", Class::Claim),
    (b"coming-from", Class::Claim),
    (b"remote-addr", Class::Claim),
    (b"remote-host", Class::Claim),
    (b"remote-user", Class::Claim),
    (b"x-client-dn", Class::Claim),
    (b"x-client-ip", Class::Claim),
    (b"x-forwarded", Class::Claim),
    (b"x-real-port", Class::Claim),
    (b"x-remote-ip", Class::Claim),
    (b"cf-ipcountry", Class::Claim),
    (b"wl-proxy-ssl", Class::Claim),
    (b"x-request-id", Class::Dropped),
    (b"x-url-scheme", Class::Claim),
    (b"fastly-client", Class::Claim),
    (b"fly-client-ip", Class::Claim),
    (b"forwarded-for", Class::Claim),
    (b"x-client-cert", Class::Claim),
    (b"x-client-port", Class::Claim),
    (b"x-coming-from", Class::Claim),
    (b"x-remote-addr", Class::Claim),
    (b"x-remote-user", Class::Claim),
    (b"x-rewrite-url", Class::Claim),
    (b"cf-pseudo-ipv4", Class::Claim),
    (b"content-length", Class::Dropped),
    (b"http2-settings", Class::Dropped),
    (b"true-client-ip", Class::Claim),
    (b"x-original-uri", Class::Claim),
    (b"x-original-url", Class::Claim),
    (b"x-proxyuser-ip", Class::Claim),
    (b"ali-cdn-real-ip", Class::Claim),
    (b"forwarded-proto", Class::Claim),
    (b"front-end-https", Class::Claim),
    (b"incap-client-ip", Class::Claim),
    (b"proxy-client-ip", Class::Claim),
    (b"ssl-client-cert", Class::Claim),
    (b"x-client-verify", Class::Claim),
    (b"x-forwarded-for", Class::Ours),
    (b"x-original-host", Class::Claim),
    (b"x-ssl-client-dn", Class::Claim),
    (b"akamai-client-ip", Class::Claim),
    (b"cf-connecting-ip", Class::Claim),
    (b"do-connecting-ip", Class::Claim),
    (b"fastly-client-ip", Class::Claim),
    (b"proxy-connection", Class::Dropped),
    (b"x-arr-clientcert", Class::Claim),
    (b"x-azure-clientip", Class::Claim),
    (b"x-azure-socketip", Class::Claim),
    (b"x-envoy-internal", Class::Claim),
    (b"x-forwarded-host", Class::Ours),
    (b"x-forwarded-port", Class::Ours),
    (b"x-originating-ip", Class::Claim),
    (b"client-cert-chain", Class::Claim),
    (b"ssl-client-verify", Class::Claim),
    (b"transfer-encoding", Class::Dropped),
    (b"x-forwarded-proto", Class::Ours),
    (b"x-ssl-client-cert", Class::Claim),
    (b"x-ssl-client-s-dn", Class::Claim),
    (b"x-sucuri-clientip", Class::Claim),
    (b"cf-connecting-ipv6", Class::Claim),
    (b"fly-forwarded-port", Class::Claim),
    (b"wl-proxy-client-ip", Class::Claim),
    (b"x-akamai-client-ip", Class::Claim),
    (b"proxy-authorization", Class::Dropped),
    (b"x-appengine-user-ip", Class::Claim),
    (b"x-cluster-client-ip", Class::Claim),
    (b"x-ssl-client-verify", Class::Claim),
    (b"ssl-client-subject-dn", Class::Claim),
    (b"x-envoy-original-path", Class::Claim),
    (b"x-amzn-mtls-clientcert", Class::Claim),
    (b"x-original-remote-addr", Class::Claim),
    (b"x-vercel-forwarded-for", Class::Claim),
    (b"x-appengine-remote-addr", Class::Claim),
    (b"x-envoy-external-address", Class::Claim),
    (b"x-original-forwarded-for", Class::Claim),
    (b"x-nf-client-connection-ip", Class::Claim),
    (b"x-amzn-mtls-clientcert-subject", Class::Claim),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_that_speaks_for_an_address_is_known_in_every_spelling() {
        for name in [
            "X-Real-IP",
            "CF-Connecting-IP",
            "True-Client-IP",
            "Client-IP",
            "X-Client-IP",
            "X-Cluster-Client-IP",
            "Fastly-Client-IP",
            "X-Forwarded-Client-Cert",
            "x-forwarded-anything-at-all-however-long-it-may-be",
            "X-Forwarded-Server",
            "X-ORIGINAL-URL",
            "Client-Cert",
            "Wl-Proxy-Client-Ip",
        ] {
            assert_eq!(of_request(name), Class::Claim, "{name}");
            for odd in ["_", ".", "~"] {
                assert_eq!(of_request(&name.replace('-', odd)), Class::Dropped, "{name} with {odd}");
            }
        }
        for name in ["X-Forwarded-For", "Forwarded", "x-forwarded-PROTO"] {
            assert_eq!(of_request(name), Class::Ours, "{name}");
        }
        for name in [
            "X_Forwarded_For",
            "X-Forwarded_For",
            "X.Forwarded.For",
            "NL-Lane",
            "nl-anything",
            "nl_client_subject",
            "NL-Client-Subject",
            "Proxy",
            "proxy",
            "Content_Length",
            "Transfer_Encoding",
            "X-Request-Id",
            "Keep-Alive",
            "Proxy-Connection",
            "HTTP2-Settings",
            "TE",
            "Host",
        ] {
            assert_eq!(of_request(name), Class::Dropped, "{name}");
        }
        for name in [
            "Accept",
            "X",
            "X_Y",
            "X-Forwarded2",
            "NL",
            "Nlx",
            "Authorization",
            "Proxy2",
            "Content_Type",
            "a-name-that-is-much-longer-than-any-that-stands-in-a-list",
        ] {
            assert_eq!(of_request(name), Class::Other, "{name}");
        }
    }

    #[test]
    fn trailers_frame_route_and_authenticate_nothing() {
        for name in [
            "Content-Length",
            "Transfer-Encoding",
            "Host",
            "Authorization",
            "Cookie",
            "Set-Cookie",
            "Trailer",
            "TE",
            "X-Forwarded-For",
            "X_Forwarded_For",
            "NL-Open",
            "If-Match",
            "Content-Type",
            "Expect",
            "Connection",
        ] {
            assert!(!is_trailer(name), "{name}");
        }
        for name in ["grpc-status", "Digest", "Server-Timing", "X-Checksum", "ETag", "Content-Digest"] {
            assert!(is_trailer(name), "{name}");
        }
    }

    #[test]
    fn an_answers_own_names_pass_and_those_of_its_connection_do_not() {
        for (name, is_dropped) in [
            ("Server", false),
            ("Set-Cookie", false),
            ("keep_alive", false),
            ("Connection", true),
            ("NL-X", true),
            ("nl_x", true),
            ("Content-Length", true),
            ("Upgrade", true),
            ("Proxy-Authenticate", true),
            ("Date", false),
        ] {
            assert_eq!(is_dropped_from_response(name), is_dropped, "{name}");
        }
    }

    #[test]
    fn names_are_found_by_their_order_and_none_is_longer_than_what_is_compared() {
        assert!(NAMES.is_sorted_by_key(|(name, _)| (name.len(), *name)));
        for (name, class) in NAMES {
            assert!(name.len() <= NAME_BYTES_MAX);
            assert_eq!(of_request(str::from_utf8(name).unwrap()), *class);
        }
        assert!(
            CLIENT_SUBJECT.len() <= NAME_BYTES_MAX
                && "x-amzn-mtls-clientcert-subject".len() <= NAME_BYTES_MAX
        );
    }
}
