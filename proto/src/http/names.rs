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
            *to = plain_byte(from);
            plain.is_odd |= *to == b'-' && from != b'-';
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

/// Whether two names are one, or become one as CGI variables.
pub(crate) fn is_same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).all(|(a, b)| plain_byte(a) == plain_byte(b))
}

/// What becomes of a request's header of this name.
pub(crate) fn of_request(name: &str) -> Class {
    let plain = Plain::of(name);
    let class = match plain.text() {
        _ if is_reserved(plain.text()) => Class::Dropped,
        _ if name.len() > NAME_BYTES_MAX && !plain.text().starts_with(b"x-forwarded-") => Class::Other,
        text if is_connections(text) => Class::Dropped,
        b"host" | b"content-length" | b"expect" | b"proxy" | b"proxy-authorization" | b"x-request-id" => {
            Class::Dropped
        }
        b"x-forwarded-for" | b"x-forwarded-proto" | b"x-forwarded-host" | b"x-forwarded-port"
        | b"forwarded" => Class::Ours,
        text if is_claim(text) => Class::Claim,
        b"cookie" => Class::Cookie,
        b"trailer" => Class::Trailer,
        _ => Class::Other,
    };
    if plain.is_odd && class != Class::Other { Class::Dropped } else { class }
}

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

fn is_claim(text: &[u8]) -> bool {
    text.starts_with(b"x-forwarded-")
        || matches!(
            text,
            b"x-forwarded"
                | b"forwarded-for"
                | b"forwarded-proto"
                | b"x-original-forwarded-for"
                | b"x-real-ip"
                | b"x-real-port"
                | b"real-ip"
                | b"cf-connecting-ip"
                | b"cf-connecting-ipv6"
                | b"cf-pseudo-ipv4"
                | b"cf-ipcountry"
                | b"cf-visitor"
                | b"true-client-ip"
                | b"client-ip"
                | b"x-client-ip"
                | b"x-client-port"
                | b"x-cluster-client-ip"
                | b"x-originating-ip"
                | b"x-remote-ip"
                | b"x-remote-addr"
                | b"remote-addr"
                | b"remote-host"
                | b"remote-user"
                | b"x-remote-user"
                | b"x-proxyuser-ip"
                | b"proxy-client-ip"
                | b"wl-proxy-client-ip"
                | b"wl-proxy-ssl"
                | b"via-ip"
                | b"fastly-client-ip"
                | b"fastly-client"
                | b"fastly-ssl"
                | b"fly-client-ip"
                | b"fly-forwarded-port"
                | b"do-connecting-ip"
                | b"x-azure-clientip"
                | b"x-azure-socketip"
                | b"x-appengine-user-ip"
                | b"x-appengine-remote-addr"
                | b"x-envoy-external-address"
                | b"x-envoy-internal"
                | b"x-envoy-original-path"
                | b"incap-client-ip"
                | b"x-sucuri-clientip"
                | b"x-vercel-forwarded-for"
                | b"x-nf-client-connection-ip"
                | b"x-akamai-client-ip"
                | b"akamai-client-ip"
                | b"ali-cdn-real-ip"
                | b"cdn-src-ip"
                | b"cdn-loop-ip"
                | b"x-coming-from"
                | b"coming-from"
                | b"x-host"
                | b"x-original-host"
                | b"x-original-url"
                | b"x-original-uri"
                | b"x-original-remote-addr"
                | b"x-rewrite-url"
                | b"x-scheme"
                | b"x-url-scheme"
                | b"front-end-https"
                | b"x-arr-ssl"
                | b"x-arr-clientcert"
                | b"x-client-cert"
                | b"x-client-verify"
                | b"x-client-dn"
                | b"x-ssl-cert"
                | b"x-ssl-client-cert"
                | b"x-ssl-client-dn"
                | b"x-ssl-client-s-dn"
                | b"x-ssl-client-verify"
                | b"ssl-client-cert"
                | b"ssl-client-verify"
                | b"ssl-client-subject-dn"
                | b"client-cert"
                | b"client-cert-chain"
                | b"x-amzn-mtls-clientcert-subject"
                | b"x-amzn-mtls-clientcert"
        )
}

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
    fn no_list_holds_a_name_that_is_longer_than_what_is_compared() {
        assert!(
            CLIENT_SUBJECT.len() <= NAME_BYTES_MAX
                && "x-amzn-mtls-clientcert-subject".len() <= NAME_BYTES_MAX
        );
    }
}
