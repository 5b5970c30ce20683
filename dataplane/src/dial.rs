//! Role: outgoing TCP connections.
//! Invariants: never blocks the worker · SO_LINGER is {1, 0} from the socket's creation · a
//! dropped future closes its socket.

use std::{io, net::SocketAddr, os::fd::OwnedFd, time::Duration};

use socket2::{Domain, Protocol, SockRef, Socket as RawSocket, Type};

use crate::{socket::Socket, timer::timeout};

/// Connects to one address.
///
/// # Errors
/// The system's; `TimedOut` after `patience`.
pub async fn connect(addr: SocketAddr, patience: Duration) -> io::Result<Socket> {
    let raw = RawSocket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    raw.set_linger(Some(Duration::ZERO))?;
    let pending = match raw.connect(&addr.into()) {
        Ok(()) => false,
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => true,
        Err(e) => return Err(e),
    };
    let socket = Socket::adopt(OwnedFd::from(raw))?;
    if pending {
        timeout(patience, socket.writable())
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer"))??;
        if let Some(error) = SockRef::from(&socket).take_error()? {
            return Err(error);
        }
    }
    Ok(socket)
}

/// Connects to the first of several addresses that answers, in order; `patience` is for all of
/// them together, shared evenly among those still untried.
///
/// # Errors
/// The last address's.
pub async fn connect_first(addrs: &[SocketAddr], patience: Duration) -> io::Result<Socket> {
    let started = monoio::time::Instant::now();
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "no address to connect to");
    for (tried, addr) in addrs.iter().enumerate() {
        let left = patience.saturating_sub(started.elapsed());
        #[expect(clippy::cast_possible_truncation, reason = "a resolver gives dozens at most")]
        let share = left / (addrs.len() - tried) as u32;
        match connect(*addr, share).await {
            Ok(socket) => return Ok(socket),
            Err(e) => failed = e,
        }
    }
    Err(failed)
}
