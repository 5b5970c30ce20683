//! Role: listening sockets, one per worker and service, and the connections that arrive there.
//! Invariants: no accept is ever in flight, so none can be lost: readiness first, then a direct
//! call · out of descriptors, the loop waits and says so once a second at most.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Mutex,
    time::{Duration, Instant},
};

use rustix::{
    net::SocketFlags,
    process::{Resource, getrlimit},
};
use socket2::{Domain, Protocol, Socket as RawSocket, Type};

use crate::{
    net::plain::Plain,
    run::{descriptors, lock::lock, timer::sleep},
};

/// Connections the kernel may hold for us before we accept them.
const BACKLOG: i32 = 4096;
/// Connections taken in one turn before others get theirs.
const BATCH: usize = 32;
/// How long a port of a process that has just ended is waited for, and how often it is tried.
const VACATE_TIMEOUT: Duration = Duration::from_secs(1);
const VACATE_TICK: Duration = Duration::from_millis(5);
/// A longer wait is said: who sees nothing for a second takes it for a hang.
const VACATE_QUIET: Duration = Duration::from_millis(100);
/// How long accepting rests when descriptors or memory have run out: at first, as others may just be ending, ..
const REST_MIN: Duration = Duration::from_millis(5);
/// .. and, doubled each time, at the most. A try costs some system calls.
const REST_MAX: Duration = Duration::from_millis(100);
/// A rest of this length is said: the ones before have taken as long together.
const SAY_FROM: Duration = Duration::from_millis(80);
/// How often that is said.
const SAY_EVERY: Duration = Duration::from_secs(1);

/// Binds `addr` once per worker; with port 0 the first gets a port and the others join it.
///
/// # Errors
/// The system's: in use, not ours, not permitted.
pub fn bind(addr: SocketAddr, workers: usize) -> io::Result<(SocketAddr, Vec<StdListener>)> {
    let first = bind_one(addr)?;
    let bound = first.local_addr()?;
    let rest = (1..workers).map(|_| bind_one(bound));
    let all = [Ok(first)].into_iter().chain(rest).collect::<io::Result<_>>()?;
    Ok((bound, all))
}

fn bind_one(addr: SocketAddr) -> io::Result<StdListener> {
    let socket = RawSocket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&addr.into()).map_err(|e| explain(addr, e))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// What can be done about a port that may not be bound.
fn explain(addr: SocketAddr, error: io::Error) -> io::Error {
    const LOW_BELOW: u16 = 1024;
    if error.kind() != io::ErrorKind::PermissionDenied || addr.port() >= LOW_BELOW {
        return error;
    }
    let words = format!(
        "{error}: ports below {LOW_BELOW} are for root; give the program the right with `setcap \
         cap_net_bind_service=+ep FILE` or AmbientCapabilities=CAP_NET_BIND_SERVICE in its unit, or everybody with \
         `sysctl net.ipv4.ip_unprivileged_port_start={}`",
        addr.port()
    );
    io::Error::new(error.kind(), words)
}

/// Whether `addr` could be bound. No connection comes here: a gateway of the same user that listens there keeps them all.
///
/// # Errors
/// The system's, as in [`bind`].
pub fn probe(addr: SocketAddr) -> io::Result<()> {
    let socket = RawSocket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&addr.into()).map_err(|e| explain(addr, e))
}

/// Binds an address that no other socket shares.
///
/// The kernel takes a dead process's rings apart some milliseconds after it has ended, and its
/// ports stay taken until then: so that a restart does not fail, this waits up to a second.
///
/// `[::]` takes IPv4 connections as well, unless another socket has `0.0.0.0` with this port: then it
/// takes IPv6 alone, so that the two work together.
///
/// # Errors
/// The system's.
pub fn bind_alone(addr: SocketAddr) -> io::Result<StdListener> {
    let since = Instant::now();
    let mut is_said = false;
    loop {
        match bind_exclusive(addr, false) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && since.elapsed() < VACATE_TIMEOUT => {
                if !is_said && since.elapsed() >= VACATE_QUIET {
                    is_said = true;
                    tracing::info!(
                        "{addr} is in use: tried again for {} s, in which the port of a program that has just ended becomes free",
                        VACATE_TIMEOUT.as_secs()
                    );
                }
                std::thread::sleep(VACATE_TICK);
            }
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && takes_both_families(addr) => {
                return bind_exclusive(addr, true).map_err(|e| explain(addr, e));
            }
            bound => return bound.map_err(|e| explain(addr, e)),
        }
    }
}

/// `only_v6`: an IPv6 socket leaves the port's IPv4 half to another one.
fn bind_exclusive(addr: SocketAddr, only_v6: bool) -> io::Result<StdListener> {
    let socket = RawSocket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    // As std's listener has it: connections of an earlier process that linger don't keep the port.
    socket.set_reuse_address(true)?;
    if only_v6 {
        socket.set_only_v6(true)?;
    }
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Whether a socket at `addr` takes IPv4 connections, too: `[::]` does, and only when `0.0.0.0` has the port
/// already is it content with IPv6.
fn takes_both_families(addr: SocketAddr) -> bool {
    addr.is_ipv6() && addr.ip().is_unspecified()
}

/// Whether `addr` is taken because `[::]` has its port, and takes IPv4 connections as well.
pub fn is_taken_by_both_families(addr: SocketAddr) -> bool {
    if !(addr.is_ipv4() && addr.ip().is_unspecified()) {
        return false;
    }
    let v6 = SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), addr.port());
    // Without IPv4's half the IPv6 port alone decides: it is in use only if a socket has it.
    matches!(bind_exclusive(v6, true), Err(e) if e.kind() == io::ErrorKind::AddrInUse)
}

/// A listening socket in this thread's runtime.
pub struct Listener {
    /// The descriptor; the runtime's type below owns a second one for its readiness calls.
    socket: StdListener,
    ready: monoio::net::TcpListener,
}

impl Listener {
    /// Takes a bound socket into this thread's runtime.
    ///
    /// # Errors
    /// The system's.
    pub fn adopt(socket: StdListener) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let ready = monoio::net::TcpListener::from_std(socket.try_clone()?)?;
        Ok(Self { socket, ready })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// The next connection. Dropping the future loses none.
    ///
    /// # Errors
    /// Out of descriptors or memory: rest, and call again.
    pub async fn accept(&self) -> io::Result<Plain> {
        Plain::adopt(self.accept_if(&mut || Ok(())).await?.0)
    }

    /// One more of those that the kernel has accepted for us already.
    pub(crate) fn accept_left(&self) -> Option<Plain> {
        Plain::adopt(accept_now(self.socket.as_fd()).ok()?).ok()
    }

    /// The next connection, and what `room` gave for it; where that fails, none is taken. Dropping the future
    /// loses none.
    ///
    /// # Errors
    /// Out of descriptors or memory: rest, and call again.
    async fn accept_if<R>(&self, room: &mut impl FnMut() -> io::Result<R>) -> io::Result<(OwnedFd, R)> {
        loop {
            let taken = room()?;
            match accept_now(self.socket.as_fd()) {
                Ok(socket) => return Ok((socket, taken)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    drop(taken);
                    self.ready.readable(false).await?;
                }
                // The peer was quicker to leave than we to accept.
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

fn accept_now(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?)
}

/// Accepts for ever, handing each connection to `take`; rests when descriptors run out.
pub async fn accept_all(listener: &Listener, mut take: impl FnMut(Plain)) {
    accept_in_turns(listener, || Ok(()), async |socket, ()| take(socket)).await;
}

/// As [`accept_all`], as long as `room` gives each connection what it needs besides its own descriptor. A connection
/// comes before any thread has adopted it: `take` does it, or makes [`PlainParts`] of it for another thread, before
/// anything else.
///
/// [`PlainParts`]: crate::net::plain::PlainParts
pub async fn accept_all_with<R>(
    listener: &Listener,
    room: impl FnMut() -> io::Result<R>,
    mut take: impl FnMut(OwnedFd, R) -> io::Result<()>,
) {
    accept_descriptors(listener, room, async |fd, room| take(fd, room)).await;
}

/// As [`accept_all`], with `room` as in [`accept_all_with`]; `take` may let others go first before the next connection
/// is taken.
pub(crate) async fn accept_in_turns<R>(
    listener: &Listener,
    room: impl FnMut() -> io::Result<R>,
    mut take: impl AsyncFnMut(Plain, R),
) {
    accept_descriptors(listener, room, async |fd, room| {
        take(Plain::adopt(fd)?, room).await;
        Ok(())
    })
    .await;
}

async fn accept_descriptors<R>(
    listener: &Listener,
    mut room: impl FnMut() -> io::Result<R>,
    mut take: impl AsyncFnMut(OwnedFd, R) -> io::Result<()>,
) {
    let (mut taken, mut rest) = (0, REST_MIN);
    loop {
        let accepted = async {
            let (fd, room) = listener.accept_if(&mut room).await?;
            take(fd, room).await
        };
        match accepted.await {
            Ok(()) => {
                rest = REST_MIN;
                taken += 1;
                if taken % BATCH == 0 {
                    // A turn of the ring (see `budget`), until there is one more to take.
                    let _ = listener.ready.readable(false).await;
                }
            }
            Err(e) => {
                // What was dropped is closed in a turn of its worker's ring: a moment is no trouble.
                if rest >= SAY_FROM {
                    say_once_a_second(&e);
                }
                sleep(rest).await;
                rest = (rest * 2).min(REST_MAX);
            }
        }
    }
}

/// Over all listeners of the process: they run out together.
fn say_once_a_second(e: &io::Error) {
    static SAID_AT: Mutex<Option<Instant>> = Mutex::new(None);
    let mut said_at = lock(&SAID_AT);
    if said_at.is_some_and(|at| at.elapsed() < SAY_EVERY) {
        return;
    }
    *said_at = Some(Instant::now());
    if descriptors::ran_out(e) {
        let max = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        tracing::warn!(
            "no connection can be accepted: the {max} descriptors of this process are in use; those that come \
             wait until others end (`ulimit -n`, or systemd's LimitNOFILE, allows more)"
        );
    } else {
        tracing::warn!("no connection can be accepted: {e}; trying again");
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, TcpStream};

    use super::*;

    #[test]
    fn a_low_port_that_may_not_be_bound_says_how_it_may() {
        let said = |port: u16, code| {
            let error =
                explain(SocketAddr::new([127, 0, 0, 1].into(), port), io::Error::from_raw_os_error(code));
            (error.kind(), error.to_string())
        };
        let (kind, low) = said(443, libc::EACCES);
        assert_eq!(kind, io::ErrorKind::PermissionDenied);
        for words in ["setcap", "CAP_NET_BIND_SERVICE", "ip_unprivileged_port_start=443"] {
            assert!(low.contains(words), "{low}");
        }
        assert!(!said(8443, libc::EACCES).1.contains("setcap"));
        assert!(!said(443, libc::EADDRINUSE).1.contains("setcap"));
    }

    #[test]
    fn all_addresses_of_ipv6_are_content_with_ipv6_where_ipv4_is_taken() {
        let v4 = bind_alone((Ipv4Addr::UNSPECIFIED, 0).into()).unwrap();
        let port = v4.local_addr().unwrap().port();
        let addr = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
        let Ok(v6) = bind_alone(addr) else {
            // A machine without IPv6 has nothing to share.
            return assert!(bind_alone((Ipv6Addr::UNSPECIFIED, 0).into()).is_err());
        };
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        v4.set_nonblocking(true).unwrap();
        v6.set_nonblocking(true).unwrap();
        assert!(v4.accept().is_ok() && v6.accept().is_err(), "each has its own family");
        assert!(!is_taken_by_both_families(addr));
        drop((v4, v6));
        let both = bind_alone((Ipv6Addr::UNSPECIFIED, 0).into()).unwrap();
        let port = both.local_addr().unwrap().port();
        assert!(is_taken_by_both_families((Ipv4Addr::UNSPECIFIED, port).into()));
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        assert!(both.accept().is_ok());
    }
}
