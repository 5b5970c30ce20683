//! Role: what an agent may publish, as its publish token lists it.
//! Invariants: a host is a name, or all names one label below one; no visitor could mean two services at once.

use std::{cmp::Reverse, fmt};

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::target::{Destination, TargetError};

/// A path of a service at the most.
const PATH_BYTES_MAX: usize = 256;

/// Published services, none of which is in another's way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Services(Vec<Published>);

/// One published service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// The name that visitors ask for; `*.app.example` is each name one label below.
    pub host: String,
    /// The gateway's port that they come to; 0 is each.
    #[serde(default, skip_serializing_if = "is_any")]
    pub port: u16,
    /// Of HTTP: the path below which requests are this service's, such as `/api`; the longest that fits is asked.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// What the agent connects to.
    pub addr: (String, u16),
    /// What visitors speak.
    pub protocol: PublishProtocol,
}

/// Which service is meant, in its one normal form: by what visitors ask for, not by what is behind it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceName {
    /// Lower case, ASCII, without a dot at its end; `*.` may stand before it.
    pub host: String,
    /// The gateway's port; 0 is each.
    #[serde(default, skip_serializing_if = "is_any")]
    pub port: u16,
    /// Below which path; empty is all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
}

/// What visitors of a published host speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum PublishProtocol {
    /// HTTP; what the agent connects to speaks it as it is.
    Http,
    /// HTTP; what the agent connects to speaks it within TLS.
    Https,
    /// TLS by its server name; the certificate is behind the agent.
    Tls,
    /// Whatever comes to a port of the gateway that is this service's alone; at a port where the gateway listens for others as
    /// well, as [`Tls`](Self::Tls).
    Tcp,
}

/// What can't be published. The operator's fault; hosts are escaped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// A host that is no name, or leads nowhere.
    #[error("`{host}`: {why}")]
    Place {
        /// The host.
        host: String,
        /// What is wrong with it or its address.
        why: TargetError,
    },
    /// A path that is none, or where none can be.
    #[error("`{host}`: {why}")]
    Path {
        /// The host.
        host: String,
        /// What is wrong.
        why: &'static str,
    },
    /// Twice on the same port of the gateway.
    #[error("`{host}` is published twice")]
    Twice {
        /// The host.
        host: String,
    },
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's shape")]
const fn is_any(port: &u16) -> bool {
    *port == 0
}

impl PublishProtocol {
    /// As tokens.yaml has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Https => "HTTPS",
            Self::Tls => "TLS",
            Self::Tcp => "TCP",
        }
    }

    /// Whether requests are read, so that a path and a host in them mean something.
    pub const fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Https)
    }
}

impl Services {
    /// Services that can be published side by side.
    ///
    /// # Errors
    /// The operator's.
    pub fn new(services: Vec<Published>) -> Result<Self, ServiceError> {
        for (index, service) in services.iter().enumerate() {
            service.check()?;
            if services[..index].iter().any(|other| other.clashes_with(service)) {
                return Err(ServiceError::Twice { host: escaped(&service.host) });
            }
        }
        Ok(Self(services))
    }

    /// One after the other, as they were written.
    pub fn iter(&self) -> std::slice::Iter<'_, Published> {
        self.0.iter()
    }
}

impl Published {
    /// Its name, by which gateway and agent speak of it.
    pub fn name(&self) -> ServiceName {
        // Checked when it was read.
        let host = normal(&self.host).unwrap_or_else(|_| self.host.clone());
        ServiceName { host, port: self.port, path: self.path.clone() }
    }

    fn check(&self) -> Result<(), ServiceError> {
        let wrong = |why| ServiceError::Place { host: escaped(&self.host), why };
        normal(&self.host).map_err(wrong)?;
        let (addr, port) = &self.addr;
        Destination::parse(addr).map_err(wrong)?;
        if *port == 0 {
            return Err(wrong(TargetError::BadPort));
        }
        let no_path = |why| Err(ServiceError::Path { host: escaped(&self.host), why });
        match (self.protocol.is_http(), &*self.path) {
            (_, "") => Ok(()),
            (false, _) => no_path("only HTTP and HTTPS have paths"),
            (true, path) if !is_path(path) => {
                no_path("a path begins with /, has no / at its end, and no `..`, `%`, `?` or blank")
            }
            (true, _) => Ok(()),
        }
    }

    fn clashes_with(&self, other: &Self) -> bool {
        let ports_meet = self.port == other.port || self.port == 0 || other.port == 0;
        // By the path requests can be told apart, and by nothing else.
        let paths_meet = self.path == other.path || !self.protocol.is_http() || !other.protocol.is_http();
        ports_meet && paths_meet && normal(&self.host) == normal(&other.host)
    }
}

impl ServiceName {
    /// Whether a request for `path`, which begins with a slash, is this service's.
    pub fn has(&self, path: &str) -> bool {
        path.strip_prefix(&*self.path)
            .is_some_and(|rest| self.path.is_empty() || rest.is_empty() || rest.starts_with(['/', '?']))
    }

    /// In the order in which services of one host are asked: what is for one port before what is for each, and the longest
    /// path first.
    pub fn precedence(&self) -> impl Ord + use<> {
        (self.port == 0, Reverse(self.path.len()))
    }
}

/// As people write it: `app.example`, `app.example:8443/api`.
impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escaped(&self.host))?;
        if self.port != 0 {
            write!(f, ":{}", self.port)?;
        }
        f.write_str(&escaped(&self.path))
    }
}

/// The normal form of a host that can be published.
fn normal(host: &str) -> Result<String, TargetError> {
    let (below, name) = match host.strip_prefix("*.") {
        Some(name) => ("*.", name),
        None => ("", host),
    };
    match Destination::parse(name)? {
        Destination::Name(name) => Ok(format!("{below}{name}")),
        Destination::Ip(_) | Destination::Unix(_) => Err(TargetError::NotAName),
    }
}

/// A path that has but one spelling.
fn is_path(path: &str) -> bool {
    let Some(rest) = path.strip_prefix('/') else { return false };
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'%' | b'?' | b'#' | b'\\');
    let is_segment = |segment: &str| !matches!(segment, "" | "." | "..") && segment.bytes().all(is_plain);
    path.len() <= PATH_BYTES_MAX && rest.split('/').all(is_segment)
}

fn escaped(host: &str) -> String {
    host.escape_debug().to_string()
}

impl<'de> Deserialize<'de> for Services {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::new(Vec::deserialize(d)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(host: &str, port: u16, addr: &str, addr_port: u16) -> Published {
        let addr = (addr.to_owned(), addr_port);
        let path = String::new();
        Published { host: host.to_owned(), port, path, addr, protocol: PublishProtocol::Http }
    }

    #[test]
    fn only_names_are_published_and_they_lead_somewhere() {
        for (host, addr, port) in [
            ("127.0.0.1", "a", 1),
            ("", "a", 1),
            ("a b", "a", 1),
            ("*", "a", 1),
            ("*.", "a", 1),
            ("*.127.0.0.1", "a", 1),
            ("**.a", "a", 1),
            ("a.*.b", "a", 1),
            ("a", "", 1),
            ("a", "b", 0),
            ("a", "1.2.3", 0),
        ] {
            let got = Services::new(vec![published(host, 0, addr, port)]);
            assert!(matches!(got, Err(ServiceError::Place { .. })), "{host} {addr} {port}: {got:?}");
        }
    }

    #[test]
    fn a_host_is_published_once_on_each_port() {
        for (host, port, taken) in [
            ("a.example", 80, true),
            ("b.example", 443, true),
            ("*.a.example", 443, true),
            ("a.example", 443, false),
            ("A.example.", 443, false),
            ("a.example", 0, false),
        ] {
            let both = vec![published("a.example", 443, "x", 1), published(host, port, "x", 1)];
            let got = Services::new(both);
            assert_eq!(got.is_ok(), taken, "{host} {port}: {got:?}");
        }
    }

    #[test]
    fn by_its_path_a_host_of_http_may_be_published_again() {
        let at = |path: &str, protocol| Published {
            path: path.to_owned(),
            protocol,
            ..published("a.example", 0, "x", 1)
        };
        let http = PublishProtocol::Http;
        for (first, second, taken) in [
            (at("", http), at("/api", http), true),
            (at("/api", http), at("/api/v2", PublishProtocol::Https), true),
            (at("/api", http), at("/api", PublishProtocol::Https), false),
            (at("/api", http), at("", PublishProtocol::Tls), false),
        ] {
            let got = Services::new(vec![first, second]);
            assert_eq!(got.is_ok(), taken, "{got:?}");
        }
        for bad in
            ["api", "/", "/a/", "//a", "/a//b", "/a/../b", "/.", "/%61", "/a?b", "/a b", "/\u{fc}", "/a\\b"]
        {
            let got = Services::new(vec![at(bad, http)]);
            assert!(matches!(got, Err(ServiceError::Path { .. })), "{bad}: {got:?}");
        }
        let by_name = Services::new(vec![at("/a", PublishProtocol::Tls)]);
        assert!(by_name.unwrap_err().to_string().contains("only HTTP and HTTPS have paths"));
        assert!(Services::new(vec![at(&format!("/{}", "a".repeat(255)), http)]).is_ok());
        assert!(Services::new(vec![at(&format!("/{}", "a".repeat(256)), http)]).is_err());
    }

    #[test]
    fn a_path_has_what_is_below_it_and_the_longest_is_asked_first() {
        let name = |port, path: &str| ServiceName { host: "a".into(), port, path: path.into() };
        for (path, asked, is_its) in [
            ("", "/", true),
            ("", "*", true),
            ("/api", "/api", true),
            ("/api", "/api/x", true),
            ("/api", "/api?x", true),
            ("/api", "/apix", false),
            ("/api", "/", false),
            ("/api", "/API", false),
        ] {
            assert_eq!(name(0, path).has(asked), is_its, "{path} {asked}");
        }
        let mut names = [name(0, ""), name(0, "/api"), name(443, ""), name(443, "/b")];
        names.sort_by_key(ServiceName::precedence);
        assert_eq!(names.map(|name| name.to_string()), ["a:443/b", "a:443", "a/api", "a"]);
    }

    #[test]
    fn a_service_has_one_name_however_its_host_is_written() {
        for (host, name) in [
            ("A.Example.", "a.example"),
            ("*.A.example", "*.a.example"),
            ("m\u{fc}nchen.de", "xn--mnchen-3ya.de"),
        ] {
            assert_eq!(published(host, 0, "x", 1).name().host, name);
        }
    }

    #[test]
    fn a_port_of_the_gateway_is_written_where_it_matters() {
        let services = Services::new(vec![published("a", 0, "x", 1), published("b", 443, "y", 2)]).unwrap();
        let json = serde_json::to_string(&services).unwrap();
        assert_eq!(
            json,
            r#"[{"host":"a","addr":["x",1],"protocol":"HTTP"},{"host":"b","port":443,"addr":["y",2],"protocol":"HTTP"}]"#
        );
        assert_eq!(serde_json::from_str::<Services>(&json).unwrap(), services);
    }
}
