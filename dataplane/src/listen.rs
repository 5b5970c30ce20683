//! Role: listening sockets, one per worker and service, and the connections that arrive there.
//! Invariants: no accept is ever in flight, so none can be lost: readiness first, then a direct
//! call · out of descriptors, the loop waits and says so once a second at most.

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    net::{SocketAddr, TcpListener as StdListener},
    os::fd::{AsFd, BorrowedFd},
    rc::Rc,
    time::Duration,
};

use async_channel::Sender;
use futures_lite::future;
use monoio::time::Instant;
use rustix::net::SocketFlags;
use socket2::{Domain, Protocol, Socket as RawSocket, Type};

use crate::{
    handover::Local,
    serve::{self, Service},
    socket::Socket,
    timer::sleep,
    worker::spawn,
};

/// Connections the kernel may hold for us before we accept them.
const BACKLOG: i32 = 4096;
/// Connections taken in one turn before others get theirs.
const BATCH: usize = 32;
/// How long a port of a process that has just ended is waited for, and how often it is tried.
const VACATE_TIMEOUT: Duration = Duration::from_secs(1);
const VACATE_TICK: Duration = Duration::from_millis(5);
/// How long accepting rests when descriptors or memory have run out.
const REST: Duration = Duration::from_millis(100);

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
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Whether `addr` could be bound. No connection comes here: a gateway of the same user that listens there keeps them all.
///
/// # Errors
/// The system's, as in [`bind`].
pub fn probe(addr: SocketAddr) -> io::Result<()> {
    let socket = RawSocket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&addr.into())
}

/// Binds an address that no other socket shares.
///
/// The kernel takes a dead process's rings apart some milliseconds after it has ended, and its
/// ports stay taken until then: so that a restart does not fail, this waits up to a second.
///
/// # Errors
/// The system's.
pub fn bind_alone(addr: SocketAddr) -> io::Result<StdListener> {
    let deadline = std::time::Instant::now() + VACATE_TIMEOUT;
    loop {
        match StdListener::bind(addr) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && std::time::Instant::now() < deadline => {
                std::thread::sleep(VACATE_TICK);
            }
            bound => return bound,
        }
    }
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
    pub async fn accept(&self) -> io::Result<Socket> {
        loop {
            match accept_now(self.socket.as_fd()) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.ready.readable(false).await?,
                // The peer was quicker to leave than we to accept.
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                other => return other,
            }
        }
    }
}

fn accept_now(listener: BorrowedFd<'_>) -> io::Result<Socket> {
    Socket::adopt(rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?)
}

/// Accepts for ever, handing each connection to `take`; rests when descriptors run out.
pub async fn accept_all(listener: &Listener, mut take: impl FnMut(Socket)) {
    let mut said_at: Option<Instant> = None;
    let mut taken = 0;
    loop {
        match listener.accept().await {
            Ok(socket) => {
                take(socket);
                taken += 1;
                if taken % BATCH == 0 {
                    // A turn of the ring (see the relay's pump), until there is one more to take.
                    let _ = listener.ready.readable(false).await;
                }
            }
            Err(e) => {
                if said_at.is_none_or(|at| at.elapsed() >= Duration::from_secs(1)) {
                    tracing::warn!("no connection can be accepted: {e}; trying again");
                    said_at = Some(Instant::now());
                }
                sleep(REST).await;
            }
        }
    }
}

/// The services that a worker listens for.
#[derive(Default)]
pub struct Listening {
    /// By the service's number; a listener ends when its channel does.
    ends: RefCell<HashMap<usize, Sender<()>>>,
}

impl Listening {
    /// Serves a service on this worker until that, or the worker, stops.
    pub(crate) fn begin(&self, local: &Rc<Local>, service: Service, socket: StdListener) {
        let listener = match Listener::adopt(socket) {
            Ok(listener) => listener,
            // Its socket is closed: the other workers get its share of the connections.
            Err(e) => {
                let (worker, service) = (local.index, service.index);
                return tracing::error!(worker, service, "a worker can't listen: {e}");
            }
        };
        let (end, ended) = async_channel::bounded(1);
        self.ends.borrow_mut().insert(service.index, end);
        let (local, service) = (local.clone(), Rc::new(service));
        spawn(async move {
            let accepting = accept_all(&listener, |socket| {
                spawn(serve::serve(local.clone(), service.clone(), socket));
            });
            let ended = async {
                // Nothing is ever sent: the end of the channel is the news.
                let _ = ended.recv().await;
            };
            future::or(future::or(local.stopped(), ended), accepting).await;
            // What the kernel has accepted for us already would be reset.
            while let Ok(socket) = accept_now(listener.socket.as_fd()) {
                spawn(serve::serve(local.clone(), service.clone(), socket));
            }
        });
    }

    /// Stops listening for a service.
    pub(crate) fn end(&self, service: usize) {
        self.ends.borrow_mut().remove(&service);
    }
}
