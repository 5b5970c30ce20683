//! Role: what an agent may publish, as its publish token lists it.
//! Invariants: a host is a name; no visitor could mean two of them.

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::target::{Destination, TargetError};

/// Published services, none of which is in another's way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Services(Vec<Published>);

/// One published service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// The name that visitors ask for.
    pub host: String,
    /// The gateway's port that they come to; 0 is each.
    #[serde(default, skip_serializing_if = "is_any")]
    pub port: u16,
    /// What the agent connects to.
    pub addr: (String, u16),
    /// What visitors speak.
    pub protocol: PublishProtocol,
}

/// What visitors of a published host speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum PublishProtocol {
    /// HTTP.
    Http,
    /// HTTPS; the gateway holds the certificate.
    Https,
    /// TLS by its server name; the certificate is behind the agent.
    Tls,
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
    fn check(&self) -> Result<(), ServiceError> {
        let wrong = |why| ServiceError::Place { host: escaped(&self.host), why };
        let Destination::Name(_) = Destination::parse(&self.host).map_err(wrong)? else {
            return Err(wrong(TargetError::NotAName));
        };
        let (addr, port) = &self.addr;
        Destination::parse(addr).map_err(wrong)?;
        if *port == 0 { Err(wrong(TargetError::BadPort)) } else { Ok(()) }
    }

    fn clashes_with(&self, other: &Self) -> bool {
        let ports_meet = self.port == other.port || self.port == 0 || other.port == 0;
        ports_meet && Destination::parse(&self.host) == Destination::parse(&other.host)
    }
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
        Published { host: host.to_owned(), port, addr, protocol: PublishProtocol::Http }
    }

    #[test]
    fn only_names_are_published_and_they_lead_somewhere() {
        for (host, addr, port) in [
            ("127.0.0.1", "a", 1),
            ("", "a", 1),
            ("a b", "a", 1),
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
