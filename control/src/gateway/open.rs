//! Role: what a gateway listens on.
//! Invariants: a service keeps its number as long as its address is listened on; no number is given twice.
//! See: `dataplane::net::listen`.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd as _, BorrowedFd},
    sync::Arc,
};

use narrowlink_dataplane::{
    gateway::service::Service,
    net::{inherited::Inherited, listen},
};

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
    /// What it is listened on with, for who goes on in this process's place.
    sockets: Arc<[TcpListener]>,
}

impl Open {
    /// Binds a service's address, for every worker; `index` is its place in `config`. What others have opened there
    /// is taken as it is; else, with `alone`, nobody else may listen there, be it this process. What comes out are the
    /// sockets of each worker.
    pub(super) fn seat(
        &mut self,
        index: usize,
        config: &Config,
        workers: usize,
        (inherited, alone): (&mut Inherited, bool),
    ) -> Result<(Seated, Vec<Vec<TcpListener>>), StartError> {
        let service = &config.services[index];
        let addr = service.listen_addr;
        let listen = |source| StartError::Listen { service: index, addr, source };
        let given = inherited.take(addr);
        let (bound, sockets) = match given.is_empty() {
            true => bind(addr, workers, alone).map_err(listen)?,
            false => (addr, given),
        };
        let shares = share_out(&sockets, workers).map_err(listen)?;
        let number = self.next_number;
        self.next_number += 1;
        let seated = Seated {
            number,
            service: service.clone(),
            bound,
            held: held(config, index),
            sockets: sockets.into(),
        };
        Ok((seated, shares))
    }

    /// Every socket that is listened on, with the name under which it is kept.
    pub(super) fn sockets(&self) -> Vec<(String, Vec<BorrowedFd<'_>>)> {
        self.services.iter().map(Seated::sockets).collect()
    }

    /// Keeps no socket any more: those of the workers alone are left.
    pub(super) fn let_go(&mut self) {
        for seated in &mut self.services {
            seated.sockets = Arc::default();
        }
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
        Self { number: self.number, service, bound: self.bound, held, sockets: self.sockets.clone() }
    }

    fn sockets(&self) -> (String, Vec<BorrowedFd<'_>>) {
        (socket_name(self.bound), self.sockets.iter().map(|socket| socket.as_fd()).collect())
    }

    pub(super) fn for_workers(&self) -> Service {
        Service { index: self.number, port: self.bound.port(), tls: self.service.tls.is_some() }
    }

    /// Whether it can go on as `service` without listening anew.
    pub(super) fn can_become(&self, service: &config::Service) -> bool {
        // An address whose port the system chose may be written down by now.
        let same = self.service.listen_addr == service.listen_addr || self.bound == service.listen_addr;
        same && self.service.kind() == service.kind()
    }
}

/// Each worker's share of these sockets: every socket is some worker's, and every worker has one.
fn share_out(sockets: &[TcpListener], workers: usize) -> io::Result<Vec<Vec<TcpListener>>> {
    let mut shares: Vec<_> = (0..workers).map(|_| Vec::new()).collect();
    for index in 0..workers.max(sockets.len()) {
        shares[index % workers].push(sockets[index % sockets.len()].try_clone()?);
    }
    Ok(shares)
}

/// What a service manager calls the sockets of an address: it takes no colons.
pub(crate) fn socket_name(addr: SocketAddr) -> String {
    addr.to_string().replace(':', "_")
}

/// Listening sockets, one per worker.
fn bind(addr: SocketAddr, workers: usize, alone: bool) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    if alone && addr.port() != 0 {
        // The workers' sockets share their address, and would share it with a second gateway of the same
        // user as well, each getting some of the connections. A socket that does not share finds out.
        claim(addr)?;
    }
    listen::bind(addr, workers)
}

/// Whether a gateway that is begun now could listen there, and nobody else does.
///
/// # Errors
/// Why not, and what to do.
pub(crate) fn claim(addr: SocketAddr) -> io::Result<()> {
    listen::bind_alone(addr).map(drop).map_err(|e| explain(addr, e))
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
