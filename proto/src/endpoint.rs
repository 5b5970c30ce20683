//! Role: the `endpoints:` list of agent.yaml and client.yaml: which gateways, with which token.
//! Invariants: a token never shows in `Debug` and is wiped when dropped. No I/O: who reads the files
//! named here is the caller.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer, de};
use zeroize::Zeroize;

use crate::{
    pin::Pin,
    target::{Destination, Target, TargetError},
    yaml::{self, Document, Fault, Outline, Spot, Step},
};

/// One gateway. A tag in YAML (`!SelfHosted`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub enum Endpoint {
    /// A gateway of one's own.
    SelfHosted(SelfHosted),
}

/// How to reach a gateway of one's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "SelfHostedInput")]
pub struct SelfHosted {
    /// Where it listens: `HOST:PORT`, with or without a scheme such as `wss://` in front.
    pub gateway: String,
    /// The token itself; or else `token_file`.
    pub token: Option<SecretText>,
    /// A file that holds the token and nothing else; or else `token`.
    pub token_file: Option<PathBuf>,
    /// What it speaks; TLS unless said otherwise.
    pub protocol: Protocol,
    /// An own certification authority (PEM) instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The key of an own certification authority, which the gateway shows; or else `ca_file`.
    pub ca_pin: Option<Pin>,
    /// The name for SNI, Host and certificate, if it is not that of `gateway`.
    pub domain: Option<String>,
    /// How streams and lanes carry data.
    pub framing: FramingChoice,
    /// Where it stands.
    pub outline: Outline,
}

/// As it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SelfHostedInput {
    gateway: String,
    #[serde(default)]
    token: Option<SecretText>,
    #[serde(default)]
    token_file: Option<PathBuf>,
    #[serde(default)]
    protocol: Option<Protocol>,
    #[serde(default)]
    ca_file: Option<PathBuf>,
    #[serde(default)]
    ca_pin: Option<Pin>,
    #[serde(default)]
    domain: Option<String>,
    #[serde(default)]
    framing: FramingChoice,
}

impl From<SelfHostedInput> for SelfHosted {
    /// Without `protocol`, a scheme in front of the gateway says it.
    fn from(input: SelfHostedInput) -> Self {
        let SelfHostedInput { gateway, token, token_file, protocol, ca_file, ca_pin, domain, framing } =
            input;
        let protocol = protocol.or_else(|| Self::protocol_by_scheme(&gateway)).unwrap_or_default();
        let outline = Outline::default();
        Self { gateway, token, token_file, protocol, ca_file, ca_pin, domain, framing, outline }
    }
}

/// What stands in front of a gateway that was copied from a browser or another program.
#[derive(Clone, Copy)]
struct Scheme {
    name: &'static str,
    protocol: Protocol,
    /// The port that it means where none is written.
    port: u16,
}

const SCHEMES: [Scheme; 4] = [
    Scheme { name: "wss", protocol: Protocol::Wss, port: 443 },
    Scheme { name: "https", protocol: Protocol::Wss, port: 443 },
    Scheme { name: "ws", protocol: Protocol::Ws, port: 80 },
    Scheme { name: "http", protocol: Protocol::Ws, port: 80 },
];

impl Scheme {
    /// The scheme of `gateway`, if it has one, and what stands behind it.
    fn of(gateway: &str) -> Option<(Self, &str)> {
        let (name, rest) = gateway.split_once("://")?;
        let scheme = SCHEMES.into_iter().find(|scheme| scheme.name.eq_ignore_ascii_case(name))?;
        Some((scheme, rest.strip_suffix('/').unwrap_or(rest)))
    }
}

/// What a gateway's listener speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize)]
pub enum Protocol {
    /// WebSocket over plain TCP: behind a CDN that ends TLS, or on nets that are trusted.
    Ws,
    /// WebSocket over TLS.
    #[default]
    Wss,
}

/// How streams and lanes carry data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FramingChoice {
    /// What fits the protocol best.
    #[default]
    Auto,
    /// WebSocket messages; works through any CDN.
    Framed,
    /// Plain bytes after the upgrade; only where nothing stands between.
    Raw,
}

/// A text that is nobody else's business.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(String);

/// An endpoint that can't be used. The user's fault, and the text says what to write, without what was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Not `HOST:PORT`.
    #[error("{0}")]
    Gateway(TargetError),
    /// `tcp://` and the like.
    #[error("expected HOST:PORT; of schemes only wss://, https://, ws:// and http:// can stand in front")]
    Scheme,
    /// More than host and port.
    #[error("expected HOST:PORT without a path behind it: a gateway has none")]
    Path,
    /// Two keys that say two things.
    #[error(
        "`gateway` begins with {scheme}, and `protocol` says {protocol}: leave `protocol` out, or change one of them"
    )]
    Contradiction {
        /// What stands in front of the gateway.
        scheme: &'static str,
        /// What `protocol` says.
        protocol: Protocol,
    },
    /// Not a host.
    #[error("{0}")]
    Domain(TargetError),
    /// Neither.
    #[error("one of `token` and `token_file` is needed")]
    NoToken,
    /// Both.
    #[error("`token` and `token_file` exclude each other: keep one of them")]
    TwoTokens,
    /// Both.
    #[error("`ca_file` and `ca_pin` exclude each other: keep one of them")]
    TwoAuthorities,
    /// An empty text, or one that no header can carry.
    #[error("the token must be one line of printable ASCII")]
    BadToken,
}

impl EndpointError {
    /// The key that it is about; `None` for the endpoint as a whole.
    pub const fn key(&self) -> Option<&'static str> {
        match self {
            Self::Gateway(_) | Self::Scheme | Self::Path | Self::Contradiction { .. } => Some("gateway"),
            Self::Domain(_) => Some("domain"),
            Self::BadToken => Some("token"),
            Self::NoToken | Self::TwoTokens | Self::TwoAuthorities => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ws => "Ws",
            Self::Wss => "Wss",
        })
    }
}

/// Checks a whole `endpoints:` list that was read from `document`, the text of `file`; each of them knows then where it stands.
///
/// # Errors
/// The user's: the first thing that is wrong, and where.
pub fn settle(document: &Document, file: &Path, endpoints: Vec<Endpoint>) -> Result<Vec<SelfHosted>, Fault> {
    if endpoints.is_empty() {
        return Err(document.fault(&["endpoints".into()], "empty: name at least one gateway"));
    }
    let outline = document.outline(file);
    let endpoints = endpoints.into_iter().enumerate().map(|(index, Endpoint::SelfHosted(endpoint))| {
        let path = [Step::from("endpoints"), Step::from(index)];
        endpoint.validate().map_err(|why| {
            let path: Vec<_> = path.iter().cloned().chain(why.key().map(Step::from)).collect();
            document.fault(&path, why.to_string())
        })?;
        Ok(SelfHosted { outline: outline.within(&path), ..endpoint })
    });
    endpoints.collect()
}

impl SelfHosted {
    /// What a scheme in front of a gateway says that it speaks.
    pub fn protocol_by_scheme(gateway: &str) -> Option<Protocol> {
        Scheme::of(gateway).map(|(scheme, _)| scheme.protocol)
    }

    /// Checks what the types alone can't say.
    ///
    /// # Errors
    /// The user's: the first thing that is wrong.
    pub fn validate(&self) -> Result<(), EndpointError> {
        self.host_port()?;
        self.server_name()?;
        if let Some((scheme, _)) = Scheme::of(&self.gateway)
            && scheme.protocol != self.protocol
        {
            return Err(EndpointError::Contradiction { scheme: scheme.name, protocol: self.protocol });
        }
        if self.ca_file.is_some() && self.ca_pin.is_some() {
            return Err(EndpointError::TwoAuthorities);
        }
        match (&self.token, &self.token_file) {
            (None, None) => Err(EndpointError::NoToken),
            (Some(_), Some(_)) => Err(EndpointError::TwoTokens),
            (Some(token), None) if !token.is_one_word() => Err(EndpointError::BadToken),
            (Some(_), None) | (None, Some(_)) => Ok(()),
        }
    }

    /// Where to connect to: the host as written (IPv6 without brackets), and the port.
    ///
    /// # Errors
    /// The user's: not `HOST:PORT`.
    pub fn host_port(&self) -> Result<(String, u16), EndpointError> {
        let (place, port) = match Scheme::of(&self.gateway) {
            Some((scheme, place)) => (place, Some(scheme.port)),
            None if self.gateway.contains("://") => return Err(EndpointError::Scheme),
            None => (self.gateway.as_str(), None),
        };
        if place.contains('/') {
            return Err(EndpointError::Path);
        }
        match (Target::parse_host_port(place), port) {
            (Err(TargetError::NoPort), Some(port)) => Target::parse_host_port(&format!("{place}:{port}")),
            (parsed, _) => parsed,
        }
        .map_err(EndpointError::Gateway)
    }

    /// Where its `key` stands, or else itself.
    pub fn spot(&self, key: Option<&'static str>) -> Spot {
        self.outline.spot(&key.map(Step::from).into_iter().collect::<Vec<_>>())
    }

    /// Where it says what its token is.
    pub fn token_spot(&self) -> Spot {
        self.spot(Some(if self.token_file.is_some() { "token_file" } else { "token" }))
    }

    /// Whom to ask for there, in SNI, Host and certificate: `domain`, or the host of `gateway`; a
    /// name in its normal form, or an address.
    ///
    /// # Errors
    /// The user's: not a host.
    pub fn server_name(&self) -> Result<Destination, EndpointError> {
        match &self.domain {
            Some(domain) => Destination::parse(domain).map_err(EndpointError::Domain),
            None => Destination::parse(&self.host_port()?.0).map_err(EndpointError::Gateway),
        }
    }
}

impl SecretText {
    /// Wraps a text, without the white space that a file puts around it.
    pub fn new(mut text: String) -> Self {
        let wrapped = Self(text.trim().to_owned());
        text.zeroize();
        wrapped
    }

    /// The text, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether a header can carry it.
    pub fn is_one_word(&self) -> bool {
        !self.0.is_empty() && self.0.bytes().all(|b| b.is_ascii_graphic())
    }
}

impl Drop for SecretText {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(..)")
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_newtype_struct(yaml::TOKEN, TokenVisitor)
    }
}

struct TokenVisitor;

impl<'de> de::Visitor<'de> for TokenVisitor {
    type Value = SecretText;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a token")
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, d: D) -> Result<SecretText, D::Error> {
        d.deserialize_str(self)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<SecretText, E> {
        Ok(SecretText::new(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(yaml: &str) -> Result<Vec<Endpoint>, String> {
        yaml::read(yaml).map_err(|e| e.to_string())
    }

    fn one(yaml: &str) -> SelfHosted {
        let Endpoint::SelfHosted(endpoint) = read(yaml).unwrap().remove(0);
        endpoint
    }

    #[test]
    fn the_shortest_endpoint_has_sensible_defaults() {
        let e = one("- !SelfHosted { gateway: \"GW.example:443\", token: eyJ.a.b }");
        assert_eq!(e.validate(), Ok(()));
        assert_eq!((e.protocol, e.framing), (Protocol::Wss, FramingChoice::Auto));
        assert_eq!(e.host_port(), Ok(("GW.example".into(), 443)));
        assert_eq!(e.server_name(), Ok(Destination::Name("gw.example".into())));
        assert_eq!(e.token.as_ref().map(SecretText::expose), Some("eyJ.a.b"));
        assert!(!format!("{e:?}").contains("eyJ"));
    }

    #[test]
    fn every_key_is_taken_and_others_are_named() {
        let e = one("
            - !SelfHosted
              gateway: '[::1]:8443'
              token_file: /run/token
              protocol: Ws
              ca_file: ca.pem
              domain: Gw.Example.
              framing: raw");
        assert_eq!(e.validate(), Ok(()));
        assert_eq!((e.protocol, e.framing), (Protocol::Ws, FramingChoice::Raw));
        assert_eq!(e.host_port(), Ok(("::1".into(), 8443)));
        assert_eq!(e.server_name(), Ok(Destination::Name("gw.example".into())));
        assert_eq!(e.token_file, Some("/run/token".into()));
        for (yaml, says) in [
            ("- !SelfHosted { gatway: a }", "line 1 column 17: [0]: unknown key, did you mean `gateway`?"),
            ("- !Hosted { gateway: a }", "[0]: unknown tag; expected `!SelfHosted`"),
            (
                "- !SelfHosted { gateway: a, protocol: ws }",
                "[0].protocol: unknown word, did you mean `Ws`? Expected `Ws` or `Wss`",
            ),
            (
                "- !SelfHosted { gateway: a, framing: none }",
                "unknown word; expected `auto`, `framed` or `raw`",
            ),
            ("- !SelfHosted { token: a }", "`gateway` is missing"),
        ] {
            let got = read(yaml).unwrap_err();
            assert!(got.contains(says), "{yaml}: {got}");
        }
    }

    #[test]
    fn what_cannot_work_is_said_in_the_users_words() {
        for (yaml, says) in [
            ("[]", "line 1 column 12: endpoints: empty"),
            ("- !SelfHosted { gateway: gw.example, token: a }", "[0].gateway: the port is missing"),
            ("- !SelfHosted { gateway: 'gw.example:x', token: a }", "the port must be a number"),
            (
                "- !SelfHosted { gateway: 'tcp://gw.example:1', token: a }",
                "only wss://, https://, ws:// and http://",
            ),
            ("- !SelfHosted { gateway: 'https://gw.example/a', token: a }", "without a path"),
            (
                "- !SelfHosted { gateway: 'https://gw.example', protocol: Ws, token: a }",
                "begins with https, and `protocol` says Ws",
            ),
            (
                "- !SelfHosted { gateway: 'ws://gw.example', protocol: Wss, token: a }",
                "begins with ws, and `protocol` says Wss",
            ),
            ("- !SelfHosted { gateway: 'gw:1' }", "endpoints[0]: one of `token` and `token_file` is needed"),
            ("- !SelfHosted { gateway: 'gw:1', token: a, token_file: b }", "exclude each other"),
            ("- !SelfHosted { gateway: 'gw:1', token: ' ' }", "one line of printable ASCII"),
            ("- !SelfHosted { gateway: 'gw:1', token: \"a\\r\\nX: y\" }", "one line of printable ASCII"),
            (
                "- !SelfHosted { gateway: 'gw:1', token: a, domain: 'a b' }",
                "[0].domain: a host can't contain",
            ),
        ] {
            let got = check(yaml).unwrap_err();
            assert!(got.contains(says), "{yaml}: {got}");
        }
    }

    /// The list alone, behind its key.
    fn check(yaml: &str) -> Result<(), String> {
        #[derive(Deserialize)]
        struct File {
            endpoints: Vec<Endpoint>,
        }
        let document = Document::parse(&format!("endpoints: {}{yaml}", if yaml == "[]" { "" } else { "\n" }));
        let document = document.map_err(|e| e.to_string())?;
        let File { endpoints } = document.read().map_err(|e| e.to_string())?;
        settle(&document, Path::new("agent.yaml"), endpoints).map(drop).map_err(|e| e.to_string())
    }

    #[test]
    fn a_scheme_may_stand_in_front_of_the_gateway_and_says_the_protocol() {
        for (gateway, protocol, host, port) in [
            ("wss://gw.example", Protocol::Wss, "gw.example", 443),
            ("https://gw.example/", Protocol::Wss, "gw.example", 443),
            ("HTTPS://gw.example:8443", Protocol::Wss, "gw.example", 8443),
            ("ws://gw.example", Protocol::Ws, "gw.example", 80),
            ("http://[::1]", Protocol::Ws, "::1", 80),
            ("http://[::1]:8080/", Protocol::Ws, "::1", 8080),
        ] {
            for more in [String::new(), format!(", protocol: {protocol}")] {
                let e = one(&format!("- !SelfHosted {{ gateway: '{gateway}', token: a{more} }}"));
                assert_eq!((e.validate(), e.protocol), (Ok(()), protocol), "{gateway}");
                assert_eq!(e.host_port(), Ok((host.to_owned(), port)), "{gateway}");
            }
        }
    }

    #[test]
    fn a_token_a_path_and_a_secret_are_told_apart() {
        let token = "eyJhbGciOiJIUzI1NiJ9.eyJraW5kIjoiYWdlbnQifQ.c2lnbmF0dXJl";
        for (keys, says) in [
            (
                format!("token_file: {token}"),
                "[0].token_file: a token stands here; expected a path; did you mean `token:`?",
            ),
            (format!("ca_file: {token}"), "a token belongs to `token:`"),
            (format!("token: a, domain: {token}"), "a token stands here; expected a text"),
            ("token: /run/agent.token".to_owned(), "did you mean `token_file:`?"),
            ("token: hex:00112233445566".to_owned(), "[0].token: a secret stands here; expected a token"),
            ("token_file: hex:00112233445566".to_owned(), "a secret stands here; expected a path"),
            ("token: [a]".to_owned(), "expected a token, found a list"),
            (format!("{token}: a"), "a token stands here; expected a key"),
        ] {
            let got = read(&format!("- !SelfHosted {{ gateway: 'gw:1', {keys} }}")).unwrap_err();
            assert!(got.contains(says) && !got.contains(token) && !got.contains("0011"), "{keys}: {got}");
        }
    }

    #[test]
    fn a_secret_text_loses_the_space_around_it_and_never_shows() {
        let text = SecretText::new(" eyJ.a.b\n".into());
        assert_eq!(text.expose(), "eyJ.a.b");
        assert!(text.is_one_word());
        assert_eq!(format!("{text:?}"), "SecretText(..)");
    }
}
