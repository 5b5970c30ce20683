//! Role: one connected stream socket, used by readiness: wait through the ring, then a direct
//! non-blocking call on the caller's buffer.
//! Invariants: no operation on bytes is ever in flight, so dropping any future here loses none ·
//! SO_LINGER is {1, 0} from adoption until [`Socket::close_gently`], so that a killed process, a
//! panic or an early return is a reset for the peer and never looks like a clean end.
//! See: ARCHITECTURE.md "Readiness first".
#![expect(unsafe_code, reason = "asks the system what no library asks")]

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags},
    net::{RecvFlags, SendFlags},
};
use socket2::{SockRef, TcpKeepalive};

use crate::run::pollable::Pollable;

/// First keepalive probe after this much silence; with the two below a vanished peer of an idle
/// connection is noticed after 5 + 2 × 2 = 9 s, within the 10 s we promise.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_PROBES: u32 = 2;

/// The kernel's name for a connection that is over (`tcp_states.h`).
pub(crate) const TCP_CLOSE: u8 = 7;

/// A connected stream socket (TCP, or a local socket pair) of this thread's runtime.
#[derive(Debug)]
pub(crate) struct Socket(Pollable);

impl Socket {
    /// Takes a connected socket into this thread's runtime and sets what every socket of ours has:
    /// no Nagle delay, reset on close, keepalive, urgent bytes in their place, never blocking.
    ///
    /// # Errors
    /// The system's, when the descriptor can't be registered. The options are best effort: a
    /// socket pair has no TCP options, and a peer that is gone already shows at the first read.
    pub(crate) fn adopt(fd: OwnedFd) -> io::Result<Self> {
        reset_on_close(&fd);
        let sock = SockRef::from(&fd);
        let _ = sock.set_tcp_nodelay(true);
        // A byte that was sent as urgent is one of the stream like any other: none is lost, and none waits.
        let _ = sock.set_out_of_band_inline(true);
        // recv and send are told each time; splice asks the descriptor.
        sock.set_nonblocking(true)?;
        let _ = sock.set_tcp_keepalive(
            &TcpKeepalive::new()
                .with_time(KEEPALIVE_IDLE)
                .with_interval(KEEPALIVE_INTERVAL)
                .with_retries(KEEPALIVE_PROBES),
        );
        Pollable::adopt(fd).map(Self)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Waits until a read may bring something (data, end or error). A read may still say `WouldBlock` then.
    ///
    /// # Errors
    /// The runtime's.
    pub(crate) fn readable(&self) -> impl Future<Output = io::Result<()>> + '_ {
        self.0.readable()
    }

    /// How many bytes must have come for [`Socket::readable`]; the end, an error and a full receive buffer
    /// do without.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn set_low_water(&self, bytes: usize) -> io::Result<()> {
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
    pub(crate) fn writable(&self) -> impl Future<Output = io::Result<()>> + '_ {
        self.0.writable()
    }

    /// Reads what is there. `Ok(0)` is the peer's FIN.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; else the connection's end.
    #[inline]
    pub(crate) fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.receive(buf, RecvFlags::DONTWAIT)
    }

    /// As [`Socket::recv`], but the kernel throws away what it would give (tcp(7), `MSG_TRUNC`): as much as has room
    /// in `scratch`, which stays as it is.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn discard(&self, scratch: &mut [u8]) -> io::Result<usize> {
        self.receive(scratch, RecvFlags::DONTWAIT | RecvFlags::TRUNC)
    }

    #[inline]
    fn receive(&self, buf: &mut [u8], flags: RecvFlags) -> io::Result<usize> {
        loop {
            match rustix::net::recv(self.fd(), &mut *buf, flags) {
                Err(rustix::io::Errno::INTR) => {}
                // Bytes that the kernel throws away are counted by the second number only.
                other => return Ok(other?.1),
            }
        }
    }

    /// Writes what the kernel takes, from several pieces in one call.
    ///
    /// # Errors
    /// `WouldBlock` when the kernel takes nothing; else the connection's end.
    #[inline]
    pub(crate) fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
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
    pub(crate) fn finish_write(&self) -> io::Result<()> {
        Ok(rustix::net::shutdown(self.fd(), rustix::net::Shutdown::Write)?)
    }

    /// Closes without a reset: what was written is still delivered. Only for a connection whose
    /// two directions have both ended cleanly, or to say why it ends.
    pub(crate) fn close_gently(self) {
        let _ = SockRef::from(&self.fd()).set_linger(None);
    }

    /// The peer's address, in its plain form: a socket of IPv6 that takes IPv4 as well hears of
    /// `::ffff:192.0.2.1`, which is 192.0.2.1 to everything that limits, lists, writes down or shows it.
    ///
    /// # Errors
    /// The peer is gone already, or this is no TCP socket.
    pub(crate) fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.0.peer_addr().map(|addr| SocketAddr::new(addr.ip().to_canonical(), addr.port()))
    }

    /// Our address.
    ///
    /// # Errors
    /// The system's, or this is no TCP socket.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// A second descriptor of the same connection, to go on with on another thread; this one is
    /// to be dropped. (A readiness wait that was just cancelled may hold this one for a moment.)
    ///
    /// # Errors
    /// Out of descriptors.
    pub(crate) fn detach(&self) -> io::Result<OwnedFd> {
        self.fd().try_clone_to_owned()
    }

    /// Whether the peer owes us a sign of life: something we sent is on its way, was retransmitted
    /// and nothing at all came back for `patience`. A peer that reads slowly keeps answering, and
    /// is never counted as gone.
    pub(crate) fn peer_vanished(&self, patience: Duration) -> bool {
        tcp_info(self.fd()).is_some_and(|info| {
            let silent = Duration::from_millis(u64::from(info.tcpi_last_ack_recv)) >= patience;
            let owed = (info.tcpi_unacked > 0 && info.tcpi_retransmits > 0) || info.tcpi_probes >= 3;
            silent && owed
        })
    }

    /// Whether bytes wait in the kernel to be read.
    pub(crate) fn has_unread(&self) -> bool {
        rustix::io::ioctl_fionread(self.fd()).is_ok_and(|bytes| bytes > 0)
    }

    /// How much of what was sent the peer's host has not taken yet, the end of our direction counted as one.
    /// `None` when it will take nothing any more: the connection is dead, and what the kernel still holds of
    /// it goes nowhere.
    pub(crate) fn undelivered(&self) -> Option<usize> {
        if self.tcp_info().is_some_and(|info| info.tcpi_state == TCP_CLOSE) {
            return None;
        }
        let mut bytes: libc::c_int = 0;
        // SAFETY: the kernel writes one `c_int` to where it stands.
        let asked = unsafe { libc::ioctl(self.fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
        if asked == 0 { usize::try_from(bytes).ok() } else { None }
    }

    /// Whether a reset has arrived that no call has reported yet. (Both directions having ended is
    /// none: the kernel counts such a socket as closed while its last bytes still wait to be read.)
    pub(crate) fn is_reset(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.fd(), PollFlags::empty())];
        let now = rustix::event::Timespec::default();
        matches!(rustix::event::poll(&mut fds, Some(&now)), Ok(1..))
            && fds[0].revents().contains(PollFlags::ERR)
    }
}

impl Socket {
    /// Whether the peer has left without having said anything that waits here: it was reset, or its end is
    /// the first thing to read. Reads nothing.
    pub(crate) fn has_left(&self) -> bool {
        if self.is_reset() {
            return true;
        }
        let peeked = rustix::net::recv(self.fd(), &mut [0; 1], RecvFlags::DONTWAIT | RecvFlags::PEEK);
        matches!(peeked, Ok((0, _)))
    }

    /// What the kernel knows about the connection.
    pub(crate) fn tcp_info(&self) -> Option<libc::tcp_info> {
        tcp_info(self.fd())
    }
}

/// A close of this socket is a reset, until [`Socket::close_gently`].
pub(crate) fn reset_on_close(fd: &OwnedFd) {
    let _ = SockRef::from(fd).set_linger(Some(Duration::ZERO));
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
    use crate::run::worker::run_alone;

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
            assert!(!socket.is_reset() && !socket.has_left());
            let mut buf = [0; 64];
            socket.recv(&mut buf).unwrap()
        });
        assert_eq!(read.unwrap(), 14);
    }

    /// What Linux does, and `relay` counts on: what came before a reset can be read behind it. But the reset
    /// itself is told once, to a write too, and from then on a read says 0, as if the peer had ended cleanly.
    #[test]
    fn a_reset_is_told_behind_what_came_before_it_and_only_once() {
        let reset_behind_data = || {
            let (mut peer, ours) = pair();
            let socket = Socket::adopt(ours).unwrap();
            assert_eq!(socket.send(&[IoSlice::new(b"unread")]).unwrap(), 6);
            peer.write_all(&[1; 60_000]).unwrap();
            // With bytes unread, a close is a reset.
            drop(peer);
            while socket.undelivered().is_some() {
                std::thread::yield_now();
            }
            socket
        };
        let read_all = async |socket: &Socket| {
            let (mut buf, mut bytes) = (vec![0; 100_000], 0);
            loop {
                match socket.recv(&mut buf) {
                    Ok(n) if n > 0 => bytes += n,
                    end => return (bytes, end.map_err(|e| e.kind())),
                }
            }
        };
        run_alone(false, |_| async move {
            let socket = reset_behind_data();
            assert_eq!(read_all(&socket).await, (60_000, Err(io::ErrorKind::ConnectionReset)));
            assert_eq!(read_all(&socket).await, (0, Ok(0)));

            let socket = reset_behind_data();
            let write = || socket.send(&[IoSlice::new(b"!")]).map_err(|e| e.kind());
            assert_eq!(write(), Err(io::ErrorKind::ConnectionReset));
            assert_eq!(write(), Err(io::ErrorKind::BrokenPipe));
            assert_eq!(read_all(&socket).await, (60_000, Ok(0)), "no end, although it looks like one");
        })
        .unwrap();
    }

    #[test]
    fn a_reset_behind_an_end_is_told_to_a_write_as_a_broken_pipe() {
        let (mut peer, ours) = pair();
        run_alone(false, |_| async move {
            let socket = Socket::adopt(ours).unwrap();
            peer.write_all(b"all").unwrap();
            peer.shutdown(Shutdown::Write).unwrap();
            SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
            drop(peer);
            while socket.undelivered().is_some() {
                std::thread::yield_now();
            }
            let written = socket.send(&[IoSlice::new(b"!")]);
            assert_eq!(written.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
            let mut buf = [0; 9];
            assert_eq!(socket.recv(&mut buf).unwrap(), 3);
            assert_eq!(socket.recv(&mut buf).unwrap(), 0);
        })
        .unwrap();
    }

    #[test]
    fn an_urgent_byte_is_read_in_its_place() {
        let (peer, ours) = pair();
        run_alone(false, |_| async move {
            let socket = Socket::adopt(ours).unwrap();
            for (bytes, flags) in
                [(b"ab", SendFlags::empty()), (b"cd", SendFlags::OOB), (b"ef", SendFlags::empty())]
            {
                rustix::net::send(&peer, bytes, flags).unwrap();
            }
            let mut got = Vec::new();
            while got.len() < 6 {
                socket.readable().await.unwrap();
                let mut buf = [0; 9];
                if let Ok(n) = socket.recv(&mut buf) {
                    got.extend_from_slice(&buf[..n]);
                }
            }
            assert_eq!(got, b"abcdef");
        })
        .unwrap();
    }

    #[test]
    fn what_a_peer_has_not_taken_is_counted() {
        let (mut peer, ours) = pair();
        run_alone(false, |_| async move {
            let socket = Socket::adopt(ours).unwrap();
            let chunk = [7; 65_536];
            let mut sent = 0;
            while let Ok(n) = socket.send(&[IoSlice::new(&chunk)]) {
                sent += n;
            }
            assert!(socket.undelivered().unwrap() > 0);
            peer.read_exact(&mut vec![0; sent]).unwrap();
            while socket.undelivered() != Some(0) {
                std::thread::yield_now();
            }
        })
        .unwrap();
    }

    #[test]
    fn a_reset_after_a_clean_end_is_seen_without_reading() {
        let (peer, ours) = pair();
        run_alone(false, |_| async move {
            let socket = Socket::adopt(ours).unwrap();
            assert!(!socket.has_left());
            peer.shutdown(Shutdown::Write).unwrap();
            socket.readable().await.unwrap();
            assert!(socket.has_left(), "an end and nothing before it");
            assert_eq!(socket.recv(&mut [0; 1]).unwrap(), 0);
            assert!(!socket.is_reset());
            SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
            drop(peer);
            assert!(socket.is_reset());
        })
        .unwrap();
    }
}
