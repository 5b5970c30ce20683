//! Role: why there is no tunnel connection, in words that say what to do about it.
//! Invariants: each sentence names the gateway, the cause and the next step, which stands behind the last semicolon · a
//! stranger's words (its headers, its certificate's names) are cut short and printable, and never the next step.
//! See: docs/errors.md, which a test writes from what the programs say.

use std::{io, time::Duration};

use narrowlink_proto::{
    code::Code,
    ended::Refused,
    printable::printable,
    upgrade::{Between, HeadError, Stranger},
    when::show,
};
use rustls::{AlertDescription, CertificateError, InvalidMessage, pki_types::ServerName};

use crate::{
    net::{dial::Unconnected, resolve::ResolveError},
    tunnel::conn::ConnError,
};

/// Names of a certificate that are repeated.
const NAMES_MAX: usize = 4;
/// A stranger's words are repeated no longer than this.
const WORDS_CHARS_MAX: usize = 120;

/// For whoever does not speak TLS to a port that does.
const WRITE_WSS: &str = "write protocol: Wss (or https:// in place of http://)";

/// Why there is no tunnel connection.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The gateway's name has no address.
    #[error("the gateway's name can't be looked up: {0}; is it written right, and is this machine online?")]
    Resolve(#[from] ResolveError),
    /// Nobody answers there.
    #[error("the gateway {gateway} can't be reached: {source}; {}", unreached(source))]
    Connect {
        /// Host and port.
        gateway: String,
        /// Why.
        source: Unconnected,
    },
    /// TLS failed.
    #[error("TLS with the gateway {gateway} failed: {why}")]
    Tls {
        /// Host and port.
        gateway: String,
        /// Why, and what to do about it.
        why: String,
    },
    /// The gateway said no.
    #[error("{0}")]
    Refused(Refused),
    /// Something else answered.
    #[error("{gateway} answered with HTTP status {status}, not as a Narrowlink gateway: {why}")]
    NotAGateway {
        /// Host and port.
        gateway: String,
        /// What it answered.
        status: u16,
        /// What that most likely is, and what to do about it.
        why: String,
    },
    /// The connection broke before the upgrade was answered.
    #[error("the gateway {gateway} ended the connection before it answered: {source}{hint}")]
    Broke {
        /// Host and port.
        gateway: String,
        /// Why.
        source: io::Error,
        /// What may help.
        hint: &'static str,
    },
    /// What answered broke the protocol.
    #[error("{gateway} gave an answer that is no HTTP upgrade: {problem}")]
    Protocol {
        /// Host and port.
        gateway: String,
        /// What was wrong.
        problem: String,
    },
    /// Something stands between that makes a clean end of a cut connection.
    #[error("framing: raw can't be used with the gateway {gateway}: {between}")]
    NotDirect {
        /// Host and port.
        gateway: String,
        /// What it is.
        between: Between,
    },
    /// Nothing came in time.
    #[error("the gateway {gateway} did not answer within {} s", patience.as_secs())]
    TimedOut {
        /// Host and port.
        gateway: String,
        /// How long we waited.
        patience: Duration,
    },
    /// The connection broke later, in its first messages.
    #[error(transparent)]
    Conn(#[from] ConnError),
}

impl TunnelError {
    /// The kind of trouble.
    pub fn code(&self) -> Code {
        match self {
            Self::Resolve(_) => Code::Unresolved,
            Self::Connect { .. } | Self::Broke { .. } | Self::TimedOut { .. } | Self::Conn(_) => {
                Code::Unreachable
            }
            Self::Tls { .. } => Code::Tls,
            Self::Refused(refused) => refused.code.into(),
            Self::NotAGateway { .. } | Self::Protocol { .. } => Code::NotAGateway,
            Self::NotDirect { .. } => Code::NotDirect,
        }
    }
}

fn unreached(error: &Unconnected) -> &'static str {
    use io::ErrorKind as Kind;
    match error.telling().map(io::Error::kind) {
        Some(Kind::ConnectionRefused) => "is the gateway running, and the port right?",
        Some(Kind::TimedOut) => "is its host up, or a firewall between?",
        Some(Kind::HostUnreachable | Kind::NetworkUnreachable) => "is this machine online?",
        _ => "is the address right?",
    }
}

/// Whom TLS was to reach.
pub(crate) struct Expected<'a> {
    pub(crate) name: &'a ServerName<'static>,
    pub(crate) authority: Authority,
}

/// Whose word about a gateway counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Authority {
    /// That of the system's authorities.
    System,
    /// That of those in `ca_file`.
    File,
    /// That of the one with the key of `ca_pin`.
    Pin,
}

/// Why a handshake failed.
pub(crate) fn tls_words(error: &io::Error, expected: &Expected<'_>) -> String {
    let theirs = error.get_ref().and_then(|source| source.downcast_ref::<rustls::Error>());
    match theirs {
        Some(rustls::Error::InvalidCertificate(fault)) => certificate_words(fault, expected),
        Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => {
            "what answered does not speak TLS; write protocol: Ws (or http:// in place of https://) for a port of plain \
             WebSocket, else mend the port"
                .to_owned()
        }
        Some(rustls::Error::AlertReceived(AlertDescription::UnrecognisedName)) => no_certificate(expected.name),
        Some(rustls::Error::AlertReceived(
            AlertDescription::HandshakeFailure | AlertDescription::ProtocolVersion,
        )) => "it has no version of TLS, or no cipher, in common with this program, which takes TLS 1.2 and 1.3; is this the \
               gateway's port?"
            .to_owned(),
        Some(rustls::Error::AlertReceived(alert)) => {
            format!("it refused with the alert {alert:?}; is this the gateway's port?")
        }
        Some(other) => other.to_string(),
        None if is_end(error) => no_certificate(expected.name),
        None => error.to_string(),
    }
}

fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(error.kind(), Kind::UnexpectedEof | Kind::ConnectionReset | Kind::BrokenPipe)
}

/// A gateway ends the connection then: it shows no certificate to strangers.
fn no_certificate(name: &ServerName<'static>) -> String {
    match name {
        ServerName::DnsName(name) => format!(
            "it ended the connection without showing a certificate: it has none for {}, or this port does not speak TLS; \
             write the right name in gateway, or as domain, or for a plain port protocol: Ws",
            name.as_ref()
        ),
        _ => "it ended the connection without showing a certificate: it has none for a bare address; write the \
              gateway's name in place of the address, or as domain"
            .to_owned(),
    }
}

fn certificate_words(fault: &CertificateError, expected: &Expected<'_>) -> String {
    use CertificateError as Fault;
    let clock = |now: u64| format!("this machine's clock says {}", show(now));
    match fault {
        Fault::UnknownIssuer => match expected.authority {
            Authority::File => {
                "its certificate is not from the authority in ca_file; if it is \
                 from another one, or a public one, mend or remove ca_file"
            }
            Authority::Pin => {
                "its certificate is not from the authority that ca_pin names, or it does not show that one's beside \
                 its own; if the gateway has a new authority, ask for a new ticket, and if a public one, remove ca_pin"
            }
            Authority::System => {
                "its certificate is from an authority that this machine does not know; if this \
                 gateway has a CA of its own, name its file with ca_file"
            }
        }
        .to_owned(),
        // Two authorities of one name may have keys of two kinds. A weak key is found as late as its signature.
        Fault::BadSignature | Fault::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "its certificate names an authority that is known here but was not signed by it: that was made anew, or another \
             one has the same name, or a key is too weak (RSA below 2048 bits); bring ca_file up to date, or make a new key"
                .to_owned()
        }
        Fault::UnsupportedSignatureAlgorithmContext { .. } => {
            "its certificate, or that of its authority, is signed in a way that is not taken any more (SHA-1, MD5) or not known here; make \
             the gateway's certificate anew, signed with SHA-256"
                .to_owned()
        }
        Fault::InvalidPurpose | Fault::InvalidPurposeContext { .. } => {
            "its certificate is not for servers: its extendedKeyUsage lacks serverAuth; make one that has it, or none at all"
                .to_owned()
        }
        Fault::UnhandledCriticalExtension => {
            "its certificate has a critical extension that is not known here; make the gateway's certificate without it"
                .to_owned()
        }
        Fault::BadEncoding => {
            "its certificate, or that of its authority, is not written as X.509 has it; make the gateway's certificate anew"
                .to_owned()
        }
        Fault::Revoked => "its certificate was revoked by its authority; get a new one for the gateway".to_owned(),
        Fault::ExpiredContext { time, not_after } => format!(
            "its certificate expired on {}, and {}; renew it at the gateway, or set the clock if that is wrong",
            show(not_after.as_secs()),
            clock(time.as_secs())
        ),
        Fault::NotValidYetContext { time, not_before } => format!(
            "its certificate is valid only from {}, and {}; set the clock if that is wrong, or mend the certificate \
             at the gateway",
            show(not_before.as_secs()),
            clock(time.as_secs())
        ),
        Fault::NotValidForNameContext { presented, .. } if presented.is_empty() => format!(
            "its certificate has no names: subjectAltName is missing, and CN does not count; make one for the gateway with \
             {} as subjectAltName",
            expected.name.to_str()
        ),
        Fault::NotValidForNameContext { presented, .. } => wrong_name(expected.name, presented),
        Fault::NotValidForName => wrong_name(expected.name, &[]),
        Fault::Other(other) => odd_certificate(&other.to_string()),
        other => format!("its certificate does not hold: {other}"),
    }
}

/// What rustls passes on of its verifier as it is; known by its name there.
fn odd_certificate(name: &str) -> String {
    let why = match name.split(['(', ' ']).next().unwrap_or_default() {
        "CaUsedAsEndEntity" => {
            "its certificate is that of an authority (CA:TRUE); let the gateway show one that was made by it, with \
             basicConstraints CA:FALSE and the gateway's name as subjectAltName, and name the authority's with ca_file"
        }
        "EndEntityUsedAsCa" => {
            "its certificate was signed by one that is no authority's (CA:FALSE); sign it with the authority's key, whose \
             certificate says CA:TRUE, and name that with ca_file"
        }
        "UnsupportedCertVersion" => {
            "its certificate, or that of its authority, is of an old version of X.509; make it anew as version 3 (openssl x509 \
             -req needs -extfile with subjectAltName for that)"
        }
        "NameConstraintViolation" => {
            "its authority may not sign for this name (nameConstraints); get a certificate from another one"
        }
        "PathLenConstraintViolated" => {
            "there are more authorities in its chain than the first of them allows (pathlen); sign it with one nearer to \
             that in ca_file"
        }
        name if name.starts_with("Maximum") => {
            "its chain is too long or too tangled; let the gateway show its own certificate and its issuers', each once"
        }
        _ => return format!("its certificate does not hold: {name}"),
    };
    why.to_owned()
}

fn wrong_name(asked: &ServerName<'static>, presented: &[String]) -> String {
    let mut names: Vec<_> = presented.iter().take(NAMES_MAX).map(|name| bare_name(name)).collect();
    if presented.len() > NAMES_MAX {
        names.push(format!("{} more", presented.len() - NAMES_MAX));
    }
    let holds =
        if names.is_empty() { "for other names".to_owned() } else { format!("for {}", names.join(", ")) };
    let (asked, what) = match asked {
        ServerName::IpAddress(_) => (asked.to_str(), "the address "),
        _ => (asked.to_str(), ""),
    };
    format!(
        "its certificate is {holds}, not for {what}{asked}; write a name that it has in gateway, or as domain"
    )
}

/// The library writes `DnsName("gw.example")` and `IpAddress(192.0.2.1)`.
fn bare_name(presented: &str) -> String {
    let inner = presented.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(presented);
    printable(inner.trim_matches('"'), WORDS_CHARS_MAX)
}

/// What most likely answered in the gateway's place; `tls`: whether TLS was spoken to it.
pub(crate) fn status_words(status: u16, from: &Stranger, tls: bool) -> String {
    let server = match &from.server {
        Some(server) => format!(" (it calls itself {})", printable(server, WORDS_CHARS_MAX)),
        None => String::new(),
    };
    match status {
        300..400 => {
            let place = from.location.as_deref().unwrap_or("another place");
            format!(
                "it sends us on to {}{server}; is there a captive portal to sign in to, or is the gateway behind \
                 another name or port?",
                printable(place, WORDS_CHARS_MAX)
            )
        }
        400 if !tls => format!(
            "this port may speak TLS{server}, or a proxy between drops the Upgrade header; {WRITE_WSS}, or have the \
             proxy pass WebSocket on"
        ),
        401 | 403 | 407 => format!("a proxy or firewall between forbids the way{server}; ask who runs it"),
        200 | 400 | 404 | 405 | 426 => format!(
            "another server answers there{server}, or a proxy between drops the Upgrade and Connection headers; check \
             host and port, and that the proxy passes WebSocket on"
        ),
        408 | 429 => format!("it is too busy{server}; try again later"),
        500 | 502..=504 => {
            format!(
                "a proxy answers in the gateway's place{server} and can't reach it; is the gateway running?"
            )
        }
        _ => format!("another kind of server answers there{server}; check host, port and protocol"),
    }
}

/// What came in place of an answer of HTTP.
pub(crate) fn garbage_words(got: &[u8], error: HeadError, tls: bool) -> String {
    if !tls && matches!(got, [0x15 | 0x16, 3, ..]) {
        return format!("this port speaks TLS; {WRITE_WSS}");
    }
    let first = got.split(|byte| *byte == b'\r' || *byte == b'\n').next().unwrap_or_default();
    let first = printable(&String::from_utf8_lossy(first), WORDS_CHARS_MAX / 2);
    match error {
        HeadError::Malformed(_) if !first.starts_with("HTTP/") => {
            format!("it says {first:?}, which is not HTTP; is this the gateway's port?")
        }
        other => other.to_string(),
    }
}

/// A sentence taken apart: what is the matter, and what to do about it, where it says so.
pub(crate) fn cause_and_step(sentence: &str) -> (&str, Option<&str>) {
    match sentence.rsplit_once("; ") {
        Some((cause, step)) => (cause, Some(step)),
        None => (sentence, None),
    }
}

/// What may help where a plain connection ends without a word.
pub(crate) const fn end_hint(tls: bool) -> &'static str {
    if tls { "" } else { "; if this port speaks TLS, write protocol: Wss (or https:// in place of http://)" }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{client::danger::ServerCertVerifier as _, pki_types::UnixTime};

    use super::*;

    fn name(text: &str) -> ServerName<'static> {
        ServerName::try_from(text.to_owned()).unwrap()
    }

    fn say(error: rustls::Error, asked: &str, authority: Authority) -> String {
        let error = io::Error::new(io::ErrorKind::InvalidData, error);
        tls_words(&error, &Expected { name: &name(asked), authority })
    }

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    #[test]
    fn a_certificate_that_does_not_hold_says_why_and_what_to_do() {
        use CertificateError as Fault;
        let expired = Fault::ExpiredContext { time: at(1_795_200_000), not_after: at(1_795_132_800) };
        let early = Fault::NotValidYetContext { time: at(0), not_before: at(1_795_132_800) };
        let presented = vec!["DnsName(\"gw.example\")".to_owned(), "IpAddress(192.0.2.1)".to_owned()];
        let other = |asked: &str| Fault::NotValidForNameContext {
            expected: name(asked),
            presented: presented.clone(),
        };
        let nameless = Fault::NotValidForNameContext { expected: name("gw.test"), presented: vec![] };
        let odd = Fault::Other(rustls::OtherError(Arc::new(io::Error::other("odd"))));
        for (fault, asked, authority, words) in [
            (Fault::BadSignature, "gw.test", Authority::File, &["bring ca_file up to date"][..]),
            (
                Fault::UnknownIssuer,
                "gw.test",
                Authority::System,
                &["a CA of its own, name its file with ca_file"][..],
            ),
            (Fault::UnknownIssuer, "gw.test", Authority::File, &["not from the authority in ca_file"]),
            (Fault::UnknownIssuer, "gw.test", Authority::Pin, &["the authority that ca_pin names"]),
            (
                expired,
                "gw.test",
                Authority::System,
                &["expired on 2026-11-20 00:00:00 UTC", "clock says 2026-11-20 18:40:00"],
            ),
            (
                early,
                "gw.test",
                Authority::System,
                &["only from 2026-11-20", "clock says 1970-01-01", "set the clock"],
            ),
            (
                other("gw.test"),
                "gw.test",
                Authority::System,
                &["is for gw.example, 192.0.2.1, not for gw.test;", "domain"],
            ),
            (other("10.0.0.1"), "10.0.0.1", Authority::System, &["not for the address 10.0.0.1;"]),
            (
                nameless,
                "gw.test",
                Authority::File,
                &["subjectAltName is missing", "with gw.test as subjectAltName"],
            ),
            (odd, "gw.test", Authority::System, &["does not hold: "]),
            (Fault::InvalidPurpose, "gw.test", Authority::File, &["lacks serverAuth"]),
        ] {
            let said = say(rustls::Error::InvalidCertificate(fault), asked, authority);
            words.iter().for_each(|words| assert!(said.contains(words), "{words:?} is not in {said:?}"));
        }
    }

    /// What a verifier that trusts `root` says of a gateway that shows `shown`.
    fn verify(root: &rcgen::Certificate, shown: &rcgen::Certificate) -> String {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(root.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        let asked = name("gw.test");
        let now = at(1_795_200_000);
        let fault =
            verifier.build().unwrap().verify_server_cert(shown.der(), &[], &asked, &[], now).unwrap_err();
        let said = say(fault, "gw.test", Authority::File);
        assert!(!said.contains("does not hold"), "{said}");
        said
    }

    fn params(is_ca: rcgen::IsCa) -> rcgen::CertificateParams {
        let mut params = rcgen::CertificateParams::new(["gw.test".to_owned()]).unwrap();
        params.is_ca = is_ca;
        params
    }

    #[test]
    fn what_an_own_authority_does_wrong_is_said_in_words_of_its_maker() {
        use rcgen::{BasicConstraints, IsCa, Issuer, KeyPair};
        let authority = || params(IsCa::Ca(BasicConstraints::Unconstrained));
        let key = |kind| KeyPair::generate_for(kind).unwrap();
        let (p256, p384) = (&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384);
        let (root_key, own_key) = (key(p256), key(p256));
        let root = authority().self_signed(&root_key).unwrap();
        assert!(verify(&root, &root).contains("CA:FALSE and the gateway's name as subjectAltName"));

        let issuer = Issuer::new(authority(), root_key);
        let own = params(IsCa::ExplicitNoCa).signed_by(&own_key, &issuer).unwrap();
        for kind in [p256, p384, &rcgen::PKCS_ED25519] {
            let namesake = authority().self_signed(&key(kind)).unwrap();
            assert!(verify(&namesake, &own).contains("another one has the same name"), "{kind:?}");
        }

        let mut for_clients = params(IsCa::ExplicitNoCa);
        for_clients.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let for_clients = for_clients.signed_by(&own_key, &issuer).unwrap();
        assert!(verify(&root, &for_clients).contains("lacks serverAuth"));
    }

    #[test]
    fn each_name_of_a_verifier_s_fault_is_put_into_words() {
        for (name, words) in [
            ("UnsupportedCertVersion", "version 3"),
            ("EndEntityUsedAsCa", "signed by one that is no authority's"),
            ("NameConstraintViolation", "nameConstraints"),
            ("PathLenConstraintViolated", "pathlen"),
            ("MaximumPathDepthExceeded", "too long"),
        ] {
            assert!(odd_certificate(name).contains(words), "{name}");
        }
    }

    #[test]
    fn a_stranger_s_names_are_few_short_and_printable() {
        let presented: Vec<_> =
            (0..99).map(|n| format!("DnsName(\"{n}\u{202e}{}\")", "x".repeat(999))).collect();
        let said = wrong_name(&name("gw.test"), &presented);
        assert!(said.len() < 800 && said.contains("95 more") && !said.contains('\u{202e}'), "{said}");
        let from =
            Stranger { server: Some("a\u{9b}b".repeat(99)), location: Some("http://\u{202e}".repeat(99)) };
        for status in [200, 302, 400, 403, 404, 407, 418, 429, 502] {
            let said = status_words(status, &from, status == 400);
            assert!(said.chars().count() < 500 && !said.contains(['\u{202e}', '\u{9b}']), "{said}");
        }
    }

    #[test]
    fn what_to_do_stands_behind_the_last_semicolon_and_is_never_a_stranger_s_word() {
        assert_eq!(cause_and_step("no answer"), ("no answer", None));
        let presented = ["DnsName(\"x; run this\")".to_owned()];
        let said = wrong_name(&name("gw.test"), &presented);
        assert!(cause_and_step(&said).1.is_some_and(|step| step.starts_with("write a name that it has")));
        let from =
            Stranger { server: Some("x; run this".to_owned()), location: Some("y; run this".to_owned()) };
        for status in [200, 302, 400, 403, 404, 407, 418, 429, 502] {
            for tls in [true, false] {
                let said = status_words(status, &from, tls);
                let step = cause_and_step(&said).1.unwrap_or_default();
                assert!(!step.is_empty() && !step.contains("run this"), "{said}");
            }
        }
        for tls in [true, false] {
            let said = garbage_words(b"x; run this\r\n", HeadError::Malformed("no answer"), tls);
            assert_eq!(cause_and_step(&said).1, Some("is this the gateway's port?"));
        }
    }

    #[test]
    fn an_end_in_the_handshake_depends_on_what_was_asked_for() {
        for (asked, words) in [("gw.test", "none for gw.test"), ("192.0.2.1", "none for a bare address")] {
            let end = io::Error::from(io::ErrorKind::UnexpectedEof);
            let said = tls_words(&end, &Expected { name: &name(asked), authority: Authority::System });
            assert!(said.contains(words) && said.contains("domain"), "{said}");
        }
        let plain = say(
            rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType),
            "gw.test",
            Authority::System,
        );
        assert!(plain.contains("protocol: Ws (or http://"), "{plain}");
    }

    #[test]
    fn what_is_no_http_is_quoted_and_tls_is_known_by_its_first_bytes() {
        let odd = HeadError::Malformed("not an answer of HTTP/1");
        assert!(garbage_words(b"\x15\x03\x01\0\x02\x02\x46", odd, false).contains("write protocol: Wss"));
        let ssh = garbage_words(b"SSH-2.0-OpenSSH_9.6\x1b[2J\r\n", odd, false);
        assert_eq!(ssh, "it says \"SSH-2.0-OpenSSH_9.6[2J\", which is not HTTP; is this the gateway's port?");
        assert_eq!(garbage_words(b"HTTP/1.1 ", HeadError::TooLong, true), HeadError::TooLong.to_string());
    }
}
