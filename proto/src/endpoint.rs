//! Role: the `endpoints:` list of agent.yaml and client.yaml: which gateways, with which token.
//! Invariants: a token never shows in `Debug` and is wiped when dropped. No I/O: who reads the files
//! named here is the caller.

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Deserializer};
use zeroize::Zeroize;

use crate::target::{Destination, Target, TargetError};

/// One gateway. A tag in YAML (`!SelfHosted`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub enum Endpoint {
    /// A gateway of one's own.
    SelfHosted(SelfHosted),
}

/// How to reach a gateway of one's own.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelfHosted {
    /// Where it listens: `HOST:PORT`.
    pub gateway: String,
    /// The token itself; or else `token_file`.
    #[serde(default)]
    pub token: Option<SecretText>,
    /// A file that holds the token and nothing else; or else `token`.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// What it speaks; TLS unless said otherwise.
    #[serde(default)]
    pub protocol: Protocol,
    /// An own certification authority (PEM) instead of the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// The name for SNI, Host and certificate, if it is not that of `gateway`.
    #[serde(default)]
    pub domain: Option<String>,
    /// How streams and lanes carry data.
    #[serde(default)]
    pub framing: FramingChoice,
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

/// An endpoint that can't be used. The user's fault, and the text says what to write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// An empty list.
    #[error("endpoints is empty: name at least one gateway")]
    NoEndpoint,
    /// Not `HOST:PORT`.
    #[error("gateway {gateway:?}: {why}")]
    Gateway {
        /// What was written.
        gateway: String,
        /// What is wrong with it.
        why: TargetError,
    },
    /// Not a host.
    #[error("domain {domain:?}: {why}")]
    Domain {
        /// What was written.
        domain: String,
        /// What is wrong with it.
        why: TargetError,
    },
    /// Neither.
    #[error("gateway {gateway:?}: one of token and token_file is needed")]
    NoToken {
        /// Whose.
        gateway: String,
    },
    /// Both.
    #[error("gateway {gateway:?}: token and token_file exclude each other")]
    TwoTokens {
        /// Whose.
        gateway: String,
    },
    /// An empty text, or one that no header can carry.
    #[error("gateway {gateway:?}: the token must be one line of printable ASCII")]
    BadToken {
        /// Whose.
        gateway: String,
    },
}

/// What is wrong with a configuration file, place included: the YAML reader leaves the place out
/// where it is the very first (line 1, column 1), as with an unknown first key.
pub fn with_place(what: &impl fmt::Display, line_and_column: Option<(usize, usize)>) -> String {
    let what = what.to_string();
    match line_and_column {
        Some((line, column)) if !what.contains(" at line ") => {
            format!("{what} at line {line} column {column}")
        }
        _ => what,
    }
}

/// Checks a whole `endpoints:` list.
///
/// # Errors
/// The user's: the first thing that is wrong.
pub fn validate(endpoints: &[Endpoint]) -> Result<(), EndpointError> {
    if endpoints.is_empty() {
        return Err(EndpointError::NoEndpoint);
    }
    endpoints.iter().try_for_each(|Endpoint::SelfHosted(endpoint)| endpoint.validate())
}

impl SelfHosted {
    /// Checks what the types alone can't say.
    ///
    /// # Errors
    /// The user's: the first thing that is wrong.
    pub fn validate(&self) -> Result<(), EndpointError> {
        let gateway = || self.gateway.clone();
        self.host_port()?;
        self.server_name()?;
        match (&self.token, &self.token_file) {
            (None, None) => Err(EndpointError::NoToken { gateway: gateway() }),
            (Some(_), Some(_)) => Err(EndpointError::TwoTokens { gateway: gateway() }),
            (Some(token), None) if !token.is_one_word() => {
                Err(EndpointError::BadToken { gateway: gateway() })
            }
            (Some(_), None) | (None, Some(_)) => Ok(()),
        }
    }

    /// Where to connect to: the host as written (IPv6 without brackets), and the port.
    ///
    /// # Errors
    /// The user's: not `HOST:PORT`.
    pub fn host_port(&self) -> Result<(String, u16), EndpointError> {
        Target::parse_host_port(&self.gateway)
            .map_err(|why| EndpointError::Gateway { gateway: self.gateway.clone(), why })
    }

    /// Whom to ask for there, in SNI, Host and certificate: `domain`, or the host of `gateway`; a
    /// name in its normal form, or an address.
    ///
    /// # Errors
    /// The user's: not a host.
    pub fn server_name(&self) -> Result<Destination, EndpointError> {
        match &self.domain {
            Some(domain) => Destination::parse(domain)
                .map_err(|why| EndpointError::Domain { domain: domain.clone(), why }),
            None => Destination::parse(&self.host_port()?.0)
                .map_err(|why| EndpointError::Gateway { gateway: self.gateway.clone(), why }),
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
        String::deserialize(d).map(Self::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_always_has_its_place() {
        assert_eq!(with_place(&"unknown field", Some((1, 1))), "unknown field at line 1 column 1");
        assert_eq!(with_place(&"bad at line 2 column 3", Some((2, 3))), "bad at line 2 column 3");
        assert_eq!(with_place(&"end of file", None), "end of file");
    }

    fn read(yaml: &str) -> Result<Vec<Endpoint>, String> {
        serde_yaml::from_str(yaml).map_err(|e| e.to_string())
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
            ("- !SelfHosted { gatway: a }", "unknown field `gatway`"),
            ("- !Hosted { gateway: a }", "unknown variant `Hosted`, expected `SelfHosted`"),
            ("- !SelfHosted { gateway: a, protocol: ws }", "expected `Ws` or `Wss`"),
            ("- !SelfHosted { gateway: a, framing: none }", "expected one of `auto`, `framed`, `raw`"),
            ("- !SelfHosted { token: a }", "missing field `gateway`"),
        ] {
            let got = read(yaml).unwrap_err();
            assert!(got.contains(says), "{yaml}: {got}");
        }
    }

    #[test]
    fn what_cannot_work_is_said_in_the_users_words() {
        for (yaml, says) in [
            ("[]", "endpoints is empty"),
            ("- !SelfHosted { gateway: gw.example, token: a }", "the port is missing"),
            ("- !SelfHosted { gateway: 'gw.example:x', token: a }", "the port must be a number"),
            ("- !SelfHosted { gateway: 'https://gw.example', token: a }", "gateway \"https://gw.example\": "),
            ("- !SelfHosted { gateway: 'gw:1' }", "one of token and token_file is needed"),
            ("- !SelfHosted { gateway: 'gw:1', token: a, token_file: b }", "exclude each other"),
            ("- !SelfHosted { gateway: 'gw:1', token: ' ' }", "one line of printable ASCII"),
            ("- !SelfHosted { gateway: 'gw:1', token: \"a\\r\\nX: y\" }", "one line of printable ASCII"),
            ("- !SelfHosted { gateway: 'gw:1', token: a, domain: 'a b' }", "domain \"a b\""),
        ] {
            let got = validate(&read(yaml).unwrap()).unwrap_err().to_string();
            assert!(got.contains(says), "{yaml}: {got}");
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
