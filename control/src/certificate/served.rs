//! Role: which certificate answers to which name at which service.
//! Invariants: looked up in one step · replaced as a whole, apart from the rules about tokens: a certificate that changes
//! touches nobody's session.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use narrowlink_proto::target::Destination;
use rustls::ServerConfig;

use crate::config::Service;

/// What the services of a gateway show.
#[derive(Default)]
pub struct Served(BTreeMap<usize, Names>);

/// One service's.
#[derive(Default)]
struct Names {
    by_name: HashMap<String, Arc<ServerConfig>>,
    /// For a client that connects to an address, which it doesn't name: the address is among the service's domains.
    by_address: Option<Arc<ServerConfig>>,
}

impl Served {
    /// The certificates of services, by their numbers.
    pub fn of<'a>(services: impl IntoIterator<Item = (usize, &'a Service)>) -> Self {
        let with_tls = |(number, service): (usize, &'a Service)| {
            let settings = service.tls.as_ref()?;
            let mut names = Names::default();
            for domain in &service.domains {
                match domain {
                    Destination::Name(name) => {
                        names.by_name.insert(name.to_ascii_lowercase(), settings.clone());
                    }
                    Destination::Ip(_) => names.by_address = Some(settings.clone()),
                    Destination::Unix(_) => {}
                }
            }
            Some((number, names))
        };
        Self(services.into_iter().filter_map(with_tls).collect())
    }

    /// The settings for a client that asks service `service` for `name`.
    pub fn find(&self, service: usize, name: Option<&str>) -> Option<Arc<ServerConfig>> {
        let names = self.0.get(&service)?;
        match name {
            Some(name) => {
                names.by_name.get(&name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()).cloned()
            }
            None => names.by_address.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(domains: &[&str], tls: bool) -> Service {
        let settings = || {
            let made = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
            let pem = made.cert.pem() + &made.signing_key.serialize_pem();
            crate::certificate::Certificate::from_pem(pem.as_bytes()).unwrap().into_settings().unwrap()
        };
        Service {
            domains: domains.iter().map(|name| Destination::parse(name).unwrap()).collect(),
            listen_addr: "127.0.0.1:0".parse().unwrap(),
            tls: tls.then(settings),
        }
    }

    #[test]
    fn a_certificate_is_shown_to_a_client_that_asks_for_its_name() {
        let services = [
            service(&["a.example", "B.Example"], true),
            service(&["c.example", "10.0.0.1"], true),
            service(&["a.example"], false),
        ];
        let served = Served::of(services.iter().enumerate());
        let shows = |number, name| served.find(number, name).is_some();
        for name in ["a.example", "A.EXAMPLE", "a.example.", "b.example"] {
            assert!(shows(0, Some(name)), "{name}");
        }
        assert!(shows(1, None), "a client that connects to an address of its domains names nobody");
        for (number, name) in [
            (0, None),
            (0, Some("c.example")),
            (0, Some("a.example..")),
            (0, Some("")),
            (1, Some("10.0.0.1")),
            (2, Some("a.example")),
            (9, Some("a.example")),
        ] {
            assert!(!shows(number, name), "{number} {name:?}");
        }
    }
}
