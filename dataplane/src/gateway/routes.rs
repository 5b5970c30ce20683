//! Role: the snapshot in which workers find what a visitor asks for: which published service, and through which agents.
//! Invariants: one writer (the operator's book of hosts); workers only read · what a host has of its own no wildcard adds
//! to, for it may be another user's · an agent is named, not held: whether it is there is asked when it is dialled.
//! See: ARCHITECTURE.md "Published hosts".

use std::sync::Arc;

use arc_swap::ArcSwap;
use imbl::HashMap;
use narrowlink_proto::{
    id::AgentKey,
    token::{PublishProtocol, ServiceName},
};

use crate::gateway::principal::Principal;

/// All published services, by host.
#[derive(Default)]
pub struct Routes {
    table: ArcSwap<Table>,
}

/// The services of each host, as it is claimed: `a.example`, or `*.a.example`.
pub type Table = HashMap<String, Arc<[Arc<Published>]>>;

/// A service that visitors come to.
pub struct Published {
    /// Its name, which its agents know it by.
    pub name: ServiceName,
    /// What visitors speak.
    pub protocol: PublishProtocol,
    /// Its agents; there is one at least.
    pub members: Vec<Member>,
}

/// An agent of a published service.
#[derive(Clone)]
pub struct Member {
    /// Which.
    pub agent: AgentKey,
    /// Whom its publish token names: for whom visitors are counted, and who must not be revoked.
    pub who: Arc<Principal>,
}

impl Routes {
    /// From now on these are published. The operator's book alone calls this.
    pub fn publish(&self, table: Table) {
        self.table.store(Arc::new(table));
    }

    /// What is published now.
    pub fn snapshot(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// The service whose TLS is passed on, for who asks port `port` of the gateway for `server_name`.
    pub(crate) fn by_server_name(&self, server_name: &str, port: u16) -> Option<Arc<Published>> {
        let table = self.table.load();
        if table.is_empty() {
            return None;
        }
        let host = server_name.strip_suffix('.').unwrap_or(server_name).to_ascii_lowercase();
        let at_port = |services: &Arc<[Arc<Published>]>| {
            let mut here = services.iter().filter(|one| one.name.port == 0 || one.name.port == port);
            here.next().cloned()
        };
        let services = match table.get(&host) {
            Some(own) => own,
            None => table.get(&format!("*.{}", host.split_once('.')?.1))?,
        };
        at_port(services).filter(|service| !service.protocol.is_http())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(host: &str, port: u16, protocol: PublishProtocol) -> Arc<Published> {
        let name = ServiceName { host: host.into(), port, path: String::new() };
        Arc::new(Published { name, protocol, members: Vec::new() })
    }

    fn routes(services: &[Arc<Published>]) -> Routes {
        let mut table = Table::new();
        for service in services {
            let mut of_host = table.get(&service.name.host).map(|all| all.to_vec()).unwrap_or_default();
            of_host.push(service.clone());
            of_host.sort_by_key(|service| service.name.precedence());
            table.insert(service.name.host.clone(), of_host.into());
        }
        let routes = Routes::default();
        routes.publish(table);
        routes
    }

    #[test]
    fn the_name_in_a_greeting_leads_to_the_service_that_fits_it_best() {
        let tls = PublishProtocol::Tls;
        let routes = routes(&[
            published("a.example", 0, tls),
            published("*.a.example", 0, tls),
            published("*.a.example", 8443, tls),
            published("own.a.example", 8443, tls),
            published("web.example", 0, PublishProtocol::Http),
            published("*.example", 0, tls),
        ]);
        for (asked, port, found) in [
            ("a.example", 443, Some("a.example")),
            ("A.Example.", 443, Some("a.example")),
            ("x.a.example", 443, Some("*.a.example")),
            ("x.a.example", 8443, Some("*.a.example:8443")),
            ("own.a.example", 8443, Some("own.a.example:8443")),
            ("own.a.example", 443, None),
            ("x.y.a.example", 443, None),
            ("web.example", 443, None),
            ("b.example", 443, Some("*.example")),
            ("example", 443, None),
            ("", 443, None),
            (".", 443, None),
        ] {
            let got = routes.by_server_name(asked, port).map(|service| service.name.to_string());
            assert_eq!(got.as_deref(), found, "{asked} {port}");
        }
        assert!(Routes::default().by_server_name("a.example", 443).is_none());
    }
}
