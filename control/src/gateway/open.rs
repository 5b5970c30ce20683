//! Role: what a gateway listens on.
//! Invariants: a service keeps its number as long as its address is listened on; no number is given twice.
//! See: `dataplane::net::listen`.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use narrowlink_dataplane::{gateway::service::Service, net::listen};

use super::StartError;
use crate::{
    certificate::Held,
    config::{self, Config},
};

/// The services that are listened for.
#[derive(Default)]
pub(super) struct Open {
    pub(super) services: Vec<Seated>,
    next_number: usize,
}

/// A service and its number, which it keeps as long as its address is listened on.
pub(super) struct Seated {
    pub(super) number: usize,
    pub(super) service: config::Service,
    pub(super) bound: SocketAddr,
    /// How the certificate that it shows stands; its place is that in the config.
    pub(super) held: Option<Held>,
}

impl Open {
    /// Binds a service's address, for every worker; `index` is its place in `config`. `alone`: nobody else
    /// may listen there, be it this process.
    pub(super) fn seat(
        &mut self,
        index: usize,
        config: &Config,
        workers: usize,
        alone: bool,
    ) -> Result<(Seated, Vec<TcpListener>), StartError> {
        let service = &config.services[index];
        let addr = service.listen_addr;
        let listen = |source| StartError::Listen { service: index, addr, source };
        let (bound, sockets) = bind(addr, workers, alone).map_err(listen)?;
        let number = self.next_number;
        self.next_number += 1;
        Ok((Seated { number, service: service.clone(), bound, held: held(config, index) }, sockets))
    }
}

/// How the certificate of a service stands.
pub(super) fn held(config: &Config, index: usize) -> Option<Held> {
    config.certificates.iter().find(|held| held.service == index).cloned()
}

impl Seated {
    /// It, as the service at `index` of `config`, on the same sockets. A certificate that clients take is not given
    /// up for one that they refuse.
    pub(super) fn become_service(&self, config: &Config, index: usize, now: u64) -> Self {
        let mut service = config.services[index].clone();
        let mut held = held(config, index);
        let faults =
            |held: &Option<Held>| held.as_ref().map(|held| held.standing.faults(now)).unwrap_or_default();
        let new_faults = faults(&held);
        let place = held.as_ref().map(|held| held.place.clone()).unwrap_or_default();
        if !new_faults.is_empty() && self.held.is_some() && faults(&self.held).is_empty() {
            tracing::error!(
                "{place}services[{index}].tls_config: the new certificate was not taken, the old one stays: {}",
                new_faults.join("; ")
            );
            service.tls.clone_from(&self.service.tls);
            held = self.held.clone().map(|held| Held { service: index, place, ..held });
        }
        Self { number: self.number, service, bound: self.bound, held }
    }

    pub(super) fn for_workers(&self) -> Service {
        Service { index: self.number, tls: self.service.tls.is_some() }
    }

    /// Whether it can go on as `service` without listening anew.
    pub(super) fn can_become(&self, service: &config::Service) -> bool {
        // An address whose port the system chose may be written down by now.
        let same = self.service.listen_addr == service.listen_addr || self.bound == service.listen_addr;
        same && self.service.kind() == service.kind()
    }
}

/// Listening sockets, one per worker.
fn bind(addr: SocketAddr, workers: usize, alone: bool) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    if alone && addr.port() != 0 {
        // The workers' sockets share their address, and would share it with a second gateway of the same
        // user as well, each getting some of the connections. A socket that does not share finds out.
        drop(listen::bind_alone(addr).map_err(|e| explain(addr, e))?);
    }
    listen::bind(addr, workers)
}

/// Says who has the port, or how to find out; or that the address is somebody else's.
pub(super) fn explain(addr: SocketAddr, e: io::Error) -> io::Error {
    let port = addr.port();
    let words = match e.kind() {
        io::ErrorKind::AddrInUse if listen::is_taken_by_both_families(addr) => {
            format!("[::]:{port} is listened on, and takes IPv4 connections as well: name {addr} before it")
        }
        io::ErrorKind::AddrInUse => format!(
            "{e}: another program listens there, or this gateway runs already; `ss -ltnp 'sport = :{port}'` shows which"
        ),
        io::ErrorKind::AddrNotAvailable => {
            format!(
                "{e}: this machine has none such; `ip addr` shows what it has, and 0.0.0.0 or [::] is all of them"
            )
        }
        _ => return e,
    };
    io::Error::new(e.kind(), words)
}
