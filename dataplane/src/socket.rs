//! Role: one connected stream socket, used by readiness: wait through the ring, then a direct
//! non-blocking call on the caller's buffer.
//! Invariants: no operation on bytes is ever in flight, so dropping any future here loses none ·
//! SO_LINGER is {1, 0} from adoption until [`Socket::close_gently`], so that a killed process, a
//! panic or an early return is a reset for the peer and never looks like a clean end.
//! See: ARCHITECTURE.md "Readiness first".
#![expect(unsafe_code, reason = "borrows the descriptor that monoio owns")]

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use monoio::net::TcpStream;
use rustix::{
    event::{PollFd, PollFlags},
    net::{RecvFlags, SendFlags},
};
use socket2::{SockRef, TcpKeepalive};

/// First keepalive probe after this much silence; with the two below a vanished peer of an idle
/// connection is noticed after 5 + 2 × 2 = 9 s, within the 10 s we promise.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_PROBES: u32 = 2;

/// A connected stream socket (TCP, or a local socket pair) of this thread's runtime.
#[derive(Debug)]
pub struct Socket {
    /// monoio's type serves any pollable descriptor here: of it we use only the readiness calls.
    stream: TcpStream,
}

impl Socket {
    /// Takes a connected socket into this thread's runtime and sets what every socket of ours has:
    /// no Nagle delay, reset on close, keepalive, never blocking.
    ///
    /// # Errors
    /// The system's, when the descriptor can't be registered. The options are best effort: a
    /// socket pair has no TCP options, and a peer that is gone already shows at the first read.
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        let sock = SockRef::from(&fd);
        let _ = sock.set_linger(Some(Duration::ZERO));
        let _ = sock.set_tcp_nodelay(true);
        // recv and send are told each time; splice asks the descriptor.
        sock.set_nonblocking(true)?;
        let _ = sock.set_tcp_keepalive(
            &TcpKeepalive::new()
                .with_time(KEEPALIVE_IDLE)
                .with_interval(KEEPALIVE_INTERVAL)
                .with_retries(KEEPALIVE_PROBES),
        );
        Ok(Self { stream: TcpStream::from_std(fd.into())? })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: `stream` owns the descriptor and lives as long as the borrow of `self`.
        unsafe { BorrowedFd::borrow_raw(self.stream.as_raw_fd()) }
    }

    /// Waits until a read would not block (data, end or error).
    ///
    /// # Errors
    /// The runtime's.
    pub async fn readable(&self) -> io::Result<()> {
        self.stream.readable(false).await
    }

    /// How many bytes must have come for [`Socket::readable`]; the end, an error and a full receive buffer
    /// do without.
    ///
    /// # Errors
    /// The system's.
    pub fn set_low_water(&self, bytes: usize) -> io::Result<()> {
        let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
        let len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the kernel reads one `c_int` from where it stands.
        let done = unsafe {
            let (level, option) = (libc::SOL_SOCKET, libc::SO_RCVLOWAT);
            libc::setsockopt(self.fd().as_raw_fd(), level, option, (&raw const bytes).cast(), len)
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Waits until a write would not block.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn writable(&self) -> io::Result<()> {
        self.stream.writable(false).await
    }

    /// Reads what is there. `Ok(0)` is the peer's FIN.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; else the connection's end.
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match rustix::net::recv(self.fd(), &mut *buf, RecvFlags::DONTWAIT) {
                Err(rustix::io::Errno::INTR) => {}
                Ok((n, _)) => return Ok(n),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Writes what the kernel takes, from several pieces in one call.
    ///
    /// # Errors
    /// `WouldBlock` when the kernel takes nothing; else the connection's end.
    pub fn try_write(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        loop {
            let sent = match bufs {
                [one] => rustix::net::send(self.fd(), one, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
                many => rustix::net::sendmsg(
                    self.fd(),
                    many,
                    &mut rustix::net::SendAncillaryBuffer::default(),
                    SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
                ),
            };
            match sent {
                Err(rustix::io::Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }

    /// Sends FIN: this direction has ended, the other goes on.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn finish_write(&self) -> io::Result<()> {
        Ok(rustix::net::shutdown(self.fd(), rustix::net::Shutdown::Write)?)
    }

    /// Closes without a reset: what was written is still delivered. Only for a connection whose
    /// two directions have both ended cleanly, or to say why it ends.
    pub fn close_gently(self) {
        let _ = SockRef::from(&self.fd()).set_linger(None);
    }

    /// The peer's address, in its plain form: a socket of IPv6 that takes IPv4 as well hears of
    /// `::ffff:192.0.2.1`, which is 192.0.2.1 to everything that limits, lists, writes down or shows it.
    ///
    /// # Errors
    /// The peer is gone already, or this is no TCP socket.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr().map(|addr| SocketAddr::new(addr.ip().to_canonical(), addr.port()))
    }

    /// Our address.
    ///
    /// # Errors
    /// The system's, or this is no TCP socket.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    /// A second descriptor of the same connection, to go on with on another thread; this one is
    /// to be dropped. (A readiness wait that was just cancelled may hold this one for a moment.)
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn detach(&self) -> io::Result<OwnedFd> {
        self.fd().try_clone_to_owned()
    }

    /// Whether the peer owes us a sign of life: something we sent is on its way, was retransmitted
    /// and nothing at all came back for `patience`. A peer that reads slowly keeps answering, and
    /// is never counted as gone.
    pub fn peer_vanished(&self, patience: Duration) -> bool {
        tcp_info(self.fd()).is_some_and(|info| {
            let silent = Duration::from_millis(u64::from(info.tcpi_last_ack_recv)) >= patience;
            let owed = (info.tcpi_unacked > 0 && info.tcpi_retransmits > 0) || info.tcpi_probes >= 3;
            silent && owed
        })
    }

    /// Whether a reset has arrived that no call has reported yet. (Both directions having ended is
    /// none: the kernel counts such a socket as closed while its last bytes still wait to be read.)
    pub fn is_reset(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.fd(), PollFlags::empty())];
        let now = rustix::event::Timespec::default();
        matches!(rustix::event::poll(&mut fds, Some(&now)), Ok(1..))
            && fds[0].revents().contains(PollFlags::ERR)
    }
}

impl Socket {
    /// What the kernel knows about the connection.
    pub(crate) fn tcp_info(&self) -> Option<libc::tcp_info> {
        tcp_info(self.fd())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd()
    }
}

fn tcp_info(fd: BorrowedFd<'_>) -> Option<libc::tcp_info> {
    let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes into `info`, which is that large and zeroed;
    // every bit pattern is a valid `tcp_info`.
    let got = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    // SAFETY: initialised by `zeroed`, whatever the kernel wrote.
    (got == 0).then(|| unsafe { info.assume_init() })
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{Shutdown, TcpListener, TcpStream},
        os::fd::OwnedFd,
    };

    use super::*;
    use crate::worker::run_alone;

    fn pair() -> (TcpStream, OwnedFd) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0.into())
    }

    #[test]
    fn a_mapped_address_is_a_plain_one() {
        let listener = TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let near = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let ours: OwnedFd = listener.accept().unwrap().0.into();
        let seen = run_alone(false, |_| async { Socket::adopt(ours).unwrap().peer_addr().unwrap() }).unwrap();
        assert_eq!(seen, near.local_addr().unwrap());
    }

    #[test]
    fn bytes_that_wait_behind_two_clean_ends_are_no_reset() {
        let (mut peer, ours) = pair();
        let read = run_alone(false, |_| async move {
            let socket = Socket::adopt(ours).unwrap();
            socket.finish_write().unwrap();
            assert_eq!(peer.read(&mut [0; 1]).unwrap(), 0);
            peer.write_all(b"the last words").unwrap();
            peer.shutdown(Shutdown::Write).unwrap();
            drop(peer);
            socket.readable().await.unwrap();
            assert!(!socket.is_reset());
            let mut buf = [0; 64];
            socket.try_read(&mut buf).unwrap()
        });
        assert_eq!(read.unwrap(), 14);
    }

    #[test]
    fn a_reset_after_a_clean_end_is_seen_without_reading() {
        let (peer, ours) = pair();
        run_alone(false, |_| async move {
            let socket = Socket::adopt(ours).unwrap();
            peer.shutdown(Shutdown::Write).unwrap();
            socket.readable().await.unwrap();
            assert_eq!(socket.try_read(&mut [0; 1]).unwrap(), 0);
            assert!(!socket.is_reset());
            SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
            drop(peer);
            assert!(socket.is_reset());
        })
        .unwrap();
    }
}
