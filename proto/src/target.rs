//! Role: what a session ends at, as the user wrote it.
//! Invariants: travels unchanged; verdicts are taken on, and connections made to, its [`Destination`].

mod destination;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{measure::Measure, token::ServiceName};

pub use destination::{Destination, HOST_BYTES_MAX, NAME_BYTES_MAX, behind_nat64};

/// A Unix socket's path at the most: `sun_path` less its NUL.
pub const PATH_BYTES_MAX: usize = 107;

/// What a client asks for, exactly as the user wrote it; normalised only for the verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// A TCP port.
    Tcp {
        /// A name or an address in any spelling.
        host: String,
        /// The port.
        port: u16,
    },
    /// A UDP port.
    Udp {
        /// A name or an address in any spelling.
        host: String,
        /// The port.
        port: u16,
    },
    /// A Unix socket on the agent's machine.
    Unix {
        /// Its absolute path.
        path: String,
    },
    /// Echo requests.
    Icmp {
        /// A name or an address in any spelling.
        host: String,
    },
    /// No target: the way to the agent is measured.
    Measure(Measure),
    /// What the agent has behind this service, as its own publish token says; no client asks for it.
    Published(ServiceName),
}

/// What carries a session beyond the agent, where a rule can name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// TCP, whatever is spoken on it.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP; has no ports.
    Icmp,
}

/// A target that names no place, or one that resolvers disagree about. Always the asker's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// No host.
    #[error("the host is empty")]
    Empty,
    /// Over [`HOST_BYTES_MAX`], [`NAME_BYTES_MAX`] or [`PATH_BYTES_MAX`].
    #[error("{bytes} bytes are too long; at most {max} are taken")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The limit it broke.
        max: usize,
    },
    /// Whitespace, control characters, or whatever else no host name holds.
    #[error("a host can't contain {0:?}")]
    Forbidden(char),
    /// `%eth0` and the like: an interface of which machine?
    #[error("zone ids (`%`) are not taken")]
    Zone,
    /// Brackets or colons, but no IPv6 address.
    #[error("not an IPv6 address")]
    NotIpv6,
    /// Ends in a number and is no address, such as `1.2.3.256`.
    #[error("looks like an IPv4 address but is none")]
    NotIpv4,
    /// A label is empty, longer than 63 bytes, or not valid in IDNA.
    #[error("not a host name")]
    NotAName,
    /// A Unix path that is not absolute, or contains NUL.
    #[error("a Unix socket is named by an absolute path")]
    NotAPath,
    /// `HOST:PORT` without its port.
    #[error("the port is missing: expected HOST:PORT, with an IPv6 address in brackets ([::1]:22)")]
    NoPort,
    /// A number and nothing else.
    #[error("a port alone; its host is missing: expected HOST:PORT, such as 127.0.0.1:22")]
    PortAlone,
    /// An end for measuring, or a published service, where a place was asked for.
    #[error("it names no place that could be dialled")]
    NoPlace,
    /// Another scheme than ours.
    #[error("expected tcp://HOST:PORT, udp://HOST:PORT, icmp://HOST or unix:///PATH")]
    Scheme,
    /// A port that is no number from 1 to 65535.
    #[error("the port must be a number from 1 to 65535")]
    BadPort,
}

impl Target {
    /// Reads `HOST:PORT` or `[IPV6]:PORT`. The host comes back as it was written, less the brackets.
    ///
    /// # Errors
    /// The user's, and the text says what is wrong.
    pub fn parse_host_port(text: &str) -> Result<(String, u16), TargetError> {
        let is_port = || text.parse::<u16>().is_ok();
        let parts = text.rsplit_once(':');
        let (host, port) =
            parts.ok_or_else(|| if is_port() { TargetError::PortAlone } else { TargetError::NoPort })?;
        let bracketed = host.starts_with('[') && host.ends_with(']');
        // `::1` and `[::1]` have colons, but no port.
        if !bracketed && (host.contains(':') || host.starts_with('[')) {
            return Err(TargetError::NoPort);
        }
        Destination::parse(host)?;
        if !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(TargetError::BadPort);
        }
        let port = port.parse().ok().filter(|&port| port != 0).ok_or(TargetError::BadPort)?;
        let host = if bracketed { &host[1..host.len() - 1] } else { host };
        Ok((host.to_owned(), port))
    }

    /// The host in its normal form, for verdicts and for dialling: who decides on one text and dials
    /// another has decided nothing.
    ///
    /// # Errors
    /// The asker's: a host that is no host, a port 0, a path that is no path.
    pub fn destination(&self) -> Result<Destination, TargetError> {
        match self {
            Self::Tcp { port: 0, .. } | Self::Udp { port: 0, .. } => Err(TargetError::BadPort),
            Self::Tcp { host, .. } | Self::Udp { host, .. } | Self::Icmp { host } => Destination::parse(host),
            Self::Unix { path } if path.len() > PATH_BYTES_MAX => {
                Err(TargetError::TooLong { bytes: path.len(), max: PATH_BYTES_MAX })
            }
            Self::Unix { path } if !path.starts_with('/') || path.contains('\0') => {
                Err(TargetError::NotAPath)
            }
            Self::Unix { path } => Ok(Destination::Unix(path.clone())),
            Self::Measure(_) | Self::Published(_) => Err(TargetError::NoPlace),
        }
    }

    /// What carries it; a Unix socket has none, and neither has what is no target.
    pub const fn transport(&self) -> Option<Transport> {
        match self {
            Self::Tcp { .. } => Some(Transport::Tcp),
            Self::Udp { .. } => Some(Transport::Udp),
            Self::Icmp { .. } => Some(Transport::Icmp),
            Self::Unix { .. } | Self::Measure(_) | Self::Published(_) => None,
        }
    }

    /// Its port; 0 where there is none.
    pub const fn port(&self) -> u16 {
        match self {
            Self::Tcp { port, .. } | Self::Udp { port, .. } => *port,
            Self::Unix { .. } | Self::Icmp { .. } | Self::Measure(_) | Self::Published(_) => 0,
        }
    }
}

/// As [`Display`](fmt::Display) writes it, and `HOST:PORT` for TCP.
impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let target = match text.split_once("://") {
            None | Some(("tcp", _)) => {
                let place = text.strip_prefix("tcp://").unwrap_or(text);
                Self::parse_host_port(place).map(|(host, port)| Self::Tcp { host, port })?
            }
            Some(("udp", place)) => {
                Self::parse_host_port(place).map(|(host, port)| Self::Udp { host, port })?
            }
            Some(("icmp", host)) => Self::Icmp { host: host.to_owned() },
            Some(("unix", path)) => Self::Unix { path: path.to_owned() },
            Some(_) => return Err(TargetError::Scheme),
        };
        target.destination()?;
        Ok(target)
    }
}

/// For people and logs: what can't be printed is escaped.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, place) = match self {
            Self::Tcp { host, .. } => ("tcp", host),
            Self::Udp { host, .. } => ("udp", host),
            Self::Icmp { host } => ("icmp", host),
            Self::Unix { path } => ("unix", path),
            Self::Measure(measure) => return measure.fmt(f),
            Self::Published(name) => return write!(f, "published://{name}"),
        };
        let bare_ipv6 = self.transport().is_some() && place.contains(':') && !place.starts_with('[');
        let (open, close) = if bare_ipv6 { ("[", "]") } else { ("", "") };
        write!(f, "{scheme}://{open}{}{close}", place.escape_debug())?;
        match self {
            Self::Tcp { port, .. } | Self::Udp { port, .. } => write!(f, ":{port}"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_are_told_apart() {
        let table = [
            ("localhost:22", Ok(("localhost", 22))),
            ("Narrow.Host.:443", Ok(("Narrow.Host.", 443))),
            ("[::1]:22", Ok(("::1", 22))),
            ("127.1:65535", Ok(("127.1", 65535))),
            ("localhost", Err(TargetError::NoPort)),
            ("::1", Err(TargetError::NoPort)),
            ("::1:22", Err(TargetError::NoPort)),
            ("[::1]", Err(TargetError::NoPort)),
            ("", Err(TargetError::NoPort)),
            ("22", Err(TargetError::PortAlone)),
            ("65536", Err(TargetError::NoPort)),
            (":22", Err(TargetError::Empty)),
            ("a:", Err(TargetError::BadPort)),
            ("a:0", Err(TargetError::BadPort)),
            ("a:65536", Err(TargetError::BadPort)),
            ("a:+22", Err(TargetError::BadPort)),
            ("a:ssh", Err(TargetError::BadPort)),
            ("a b:22", Err(TargetError::Forbidden(' '))),
            ("[::1%lo]:22", Err(TargetError::Zone)),
            ("[a]:22", Err(TargetError::NotIpv6)),
        ];
        for (text, want) in table {
            let want = want.map(|(host, port)| (host.to_owned(), port));
            assert_eq!(Target::parse_host_port(text), want, "{text}");
        }
    }

    #[test]
    fn targets_print_as_urls_and_escape_what_could_forge_a_log_line() {
        let tcp = |host: &str| Target::Tcp { host: host.into(), port: 22 };
        assert_eq!(tcp("a").to_string(), "tcp://a:22");
        assert_eq!(tcp("::1").to_string(), "tcp://[::1]:22");
        assert_eq!(tcp("[::1]").to_string(), "tcp://[::1]:22");
        assert_eq!(tcp("a\nb").to_string(), "tcp://a\\nb:22");
        assert_eq!(Target::Udp { host: "a".into(), port: 53 }.to_string(), "udp://a:53");
        assert_eq!(Target::Icmp { host: "::1".into() }.to_string(), "icmp://[::1]");
        assert_eq!(Target::Unix { path: "/run/a:b".into() }.to_string(), "unix:///run/a:b");
        let name = ServiceName { host: "*.a\n".into(), port: 8443, path: "/b".into() };
        assert_eq!(Target::Published(name).to_string(), "published://*.a\\n:8443/b");
    }

    #[test]
    fn what_is_printed_reads_back() {
        let host = || "narrow.host".to_owned();
        for target in [
            Target::Tcp { host: host(), port: 22 },
            Target::Tcp { host: "::1".to_owned(), port: 22 },
            Target::Udp { host: host(), port: 53 },
            Target::Unix { path: "/run/a:b".to_owned() },
        ] {
            assert_eq!(target.to_string().parse(), Ok(target));
        }
        assert_eq!("a:22".parse(), Ok(Target::Tcp { host: "a".to_owned(), port: 22 }));
        for (bad, why) in [
            ("http://a:80", TargetError::Scheme),
            ("tcp://a", TargetError::NoPort),
            ("icmp://", TargetError::Empty),
            ("unix://run/x", TargetError::NotAPath),
        ] {
            assert_eq!(bad.parse::<Target>(), Err(why), "{bad}");
        }
    }

    #[test]
    fn a_target_without_a_place_has_no_destination() {
        let unix = |path: &str| Target::Unix { path: path.into() }.destination();
        assert_eq!(unix("/run/x.sock"), Ok(Destination::Unix("/run/x.sock".into())));
        for bad in ["", "run/x.sock", "@abstract", "/run/\0"] {
            assert_eq!(unix(bad), Err(TargetError::NotAPath), "{bad:?}");
        }
        assert_eq!(
            unix(&format!("/{}", "a".repeat(107))),
            Err(TargetError::TooLong { bytes: 108, max: 107 })
        );
        assert_eq!(Target::Udp { host: "a".into(), port: 0 }.destination(), Err(TargetError::BadPort));
        assert_eq!(Target::Icmp { host: "127.1".into() }.destination(), Destination::parse("127.0.0.1"));
    }

    #[test]
    fn who_measures_or_visits_names_no_place_and_neither_is_a_target_for_people() {
        let name = ServiceName { host: "a".into(), port: 0, path: String::new() };
        let visited = Target::Published(name);
        assert_eq!(visited.destination(), Err(TargetError::NoPlace));
        assert_eq!((visited.port(), visited.transport()), (0, None));
        assert_eq!(visited.to_string().parse::<Target>(), Err(TargetError::Scheme));
        assert_eq!(serde_json::to_string(&visited).unwrap(), r#"{"published":{"host":"a"}}"#);
    }

    #[test]
    fn targets_are_tagged_on_the_wire() {
        let text = r#"{"tcp":{"host":"127.1","port":22}}"#;
        let target: Target = serde_json::from_str(text).unwrap();
        assert_eq!(target, Target::Tcp { host: "127.1".into(), port: 22 });
        assert_eq!(serde_json::to_string(&target).unwrap(), text);
        assert!(serde_json::from_str::<Target>(r#"{"sctp":{"host":"a","port":1}}"#).is_err());
    }

    proptest::proptest! {
        #[test]
        fn bent_bytes_never_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..80)) {
            let text = String::from_utf8_lossy(&bytes);
            let _ = text.parse::<Target>();
            let _ = Target::Unix { path: text.into_owned() }.to_string();
        }
    }
}
