//! Role: one connection's plain bytes, whatever carries them, and the account from which every read of them is paid.
//! Invariants: no operation on bytes is ever in flight, so dropping any future here loses none · an empty account makes
//! the next read say `WouldBlock` (see `budget`) · only `Plain::socket` says what a descriptor alone can do: splicing, a
//! low-water mark and what TCP says of its peer are asked for there.
//! See: ARCHITECTURE.md "Readiness first".

use std::{
    cell::Cell,
    io::{self, IoSlice},
    net::SocketAddr,
    os::fd::OwnedFd,
    time::Duration,
};

use crate::{
    net::{
        memory::Memory,
        socket::{Socket, reset_on_close},
        stdio::Stdio,
    },
    run::{
        budget::{self, Account, Share},
        timer::sleep,
    },
};

/// So often in a row a connection may be readable without bringing anything: a read may come too early, or too late.
const FRUITLESS_MAX: u8 = 8;
/// How long it is left alone then.
const FRUITLESS_PAUSE: Duration = Duration::from_millis(50);

/// A connection's plain bytes.
#[derive(Debug)]
pub struct Plain {
    carrier: Carrier,
    account: Account,
    /// The last read filled its room: there may be more.
    full: Cell<bool>,
    /// How often in a row it was said to be readable, and nothing came of it.
    fruitless: Cell<u8>,
}

#[derive(Debug)]
enum Carrier {
    Socket(Socket),
    /// Boxed, as the next one is: hardly any connection is of these kinds.
    Memory(Box<Memory>),
    Stdio(Box<Stdio>),
}

/// A connection on its way to another thread.
pub struct PlainParts {
    carrier: Movable,
    share: Share,
}

enum Movable {
    Descriptor(OwnedFd),
    Memory(Memory),
}

impl From<OwnedFd> for PlainParts {
    /// A connected socket that no thread has adopted yet. Dropped from now on, it is reset.
    fn from(fd: OwnedFd) -> Self {
        reset_on_close(&fd);
        Self { carrier: Movable::Descriptor(fd), share: Share::OWN }
    }
}

impl From<Socket> for Plain {
    fn from(socket: Socket) -> Self {
        Self::over(Carrier::Socket(socket))
    }
}

impl From<Memory> for Plain {
    fn from(memory: Memory) -> Self {
        Self::over(Carrier::Memory(Box::new(memory)))
    }
}

impl From<Stdio> for Plain {
    fn from(stdio: Stdio) -> Self {
        Self::over(Carrier::Stdio(Box::new(stdio)))
    }
}

impl Plain {
    fn over(carrier: Carrier) -> Self {
        Self { carrier, account: Account::new(), full: Cell::new(false), fruitless: Cell::new(0) }
    }

    /// Takes a connected socket into this thread's runtime and sets what every socket of ours has:
    /// no Nagle delay, reset on close, keepalive, urgent bytes in their place, never blocking.
    ///
    /// # Errors
    /// The system's, when the descriptor can't be registered. The options are best effort: a
    /// socket pair has no TCP options, and a peer that is gone already shows at the first read.
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        Socket::adopt(fd).map(Self::from)
    }

    /// The socket below, where there is one, for what only a descriptor can do.
    #[inline]
    pub(crate) fn socket(&self) -> Option<&Socket> {
        match &self.carrier {
            Carrier::Socket(socket) => Some(socket),
            Carrier::Memory(_) | Carrier::Stdio(_) => None,
        }
    }

    /// As [`Plain::socket`].
    ///
    /// # Errors
    /// `Unsupported` where there is none.
    pub(crate) fn expect_socket(&self) -> io::Result<&Socket> {
        self.socket().ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// What this connection may cause before others have their turn.
    #[inline]
    pub(crate) fn account(&self) -> &Account {
        &self.account
    }

    /// Waits until a read may bring something (data, end or error): for the kernel, or for this connection's
    /// turn where it has used its share of the present one. A read may still say `WouldBlock` then. Where the
    /// kernel said so some times in a row and no read brought anything, it is asked once in 50 ms only: whatever the
    /// reason, no loop spins.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn readable(&self) -> io::Result<()> {
        if self.account.is_empty() {
            self.account.breathe().await;
            return Ok(());
        }
        if self.fruitless.get() >= FRUITLESS_MAX {
            Box::pin(self.pause()).await;
        }
        // Boxed but for sockets: a wait for one holds nothing of the others.
        match &self.carrier {
            Carrier::Socket(socket) => self.account.wait(socket.readable()).await,
            // Its other end may be this thread's own work: only a turn fills the account then.
            Carrier::Memory(memory) => Box::pin(memory.readable()).await,
            Carrier::Stdio(stdio) => self.account.wait(Box::pin(stdio.readable())).await,
        }?;
        self.fruitless.set(self.fruitless.get().saturating_add(1));
        Ok(())
    }

    async fn pause(&self) {
        if self.fruitless.get() == FRUITLESS_MAX {
            tracing::warn!(
                peer = ?self.peer_addr().ok(),
                "a socket is readable, but no read brings anything: it is looked at less often from now on"
            );
        }
        sleep(FRUITLESS_PAUSE).await;
    }

    /// Something has come, or nothing.
    #[inline]
    pub(crate) fn has_brought(&self, bytes: usize) {
        if bytes > 0 {
            self.fruitless.set(0);
        }
    }

    /// Waits until a write would not block.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn writable(&self) -> io::Result<()> {
        match &self.carrier {
            Carrier::Socket(socket) => self.account.wait(socket.writable()).await,
            Carrier::Memory(memory) => Box::pin(memory.writable()).await,
            Carrier::Stdio(stdio) => self.account.wait(Box::pin(stdio.writable())).await,
        }
    }

    /// Reads what is there. `Ok(0)` is the end of the peer's direction.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there, or when this connection has to wait for its turn, which
    /// [`Plain::readable`] does; else the connection's end.
    #[inline]
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.pay(buf.len(), |carrier| match carrier {
            Carrier::Socket(socket) => socket.recv(buf),
            Carrier::Memory(memory) => memory.recv(buf),
            Carrier::Stdio(stdio) => stdio.recv(buf),
        })
    }

    /// As [`Plain::try_read`], for a caller that only counts the bytes: what `scratch` holds then has no meaning. The
    /// kernel throws away what comes over a socket.
    ///
    /// # Errors
    /// As there.
    pub fn try_discard(&self, scratch: &mut [u8]) -> io::Result<usize> {
        self.pay(scratch.len(), |carrier| match carrier {
            Carrier::Socket(socket) => socket.discard(scratch),
            Carrier::Memory(memory) => memory.recv(scratch),
            Carrier::Stdio(stdio) => stdio.recv(scratch),
        })
    }

    /// A read for which there was so much room, paid for.
    #[inline]
    fn pay(&self, room: usize, read: impl FnOnce(&Carrier) -> io::Result<usize>) -> io::Result<usize> {
        if self.account.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let read = read(&self.carrier);
        let bytes = *read.as_ref().unwrap_or(&0);
        self.has_brought(bytes);
        self.full.set(read.is_ok() && bytes == room);
        self.account.spend(budget::CALL + bytes);
        read
    }

    /// Whether the last read filled its room: there may be more.
    pub(crate) fn came_full(&self) -> bool {
        self.full.get()
    }

    /// Writes what is taken, from several pieces in one call.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is taken; else the connection's end.
    #[inline]
    pub fn try_write(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.account.spend(budget::CALL);
        match &self.carrier {
            Carrier::Socket(socket) => socket.send(bufs),
            Carrier::Memory(memory) => memory.send(bufs),
            Carrier::Stdio(stdio) => stdio.send(bufs),
        }
    }

    /// Ends our direction, the other goes on.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn finish_write(&self) -> io::Result<()> {
        match &self.carrier {
            Carrier::Socket(socket) => socket.finish_write(),
            Carrier::Memory(memory) => memory.finish_write(),
            Carrier::Stdio(stdio) => stdio.finish_write(),
        }
    }

    /// Closes without a reset: what was written is still delivered. Only for a connection whose
    /// two directions have both ended cleanly, or to say why it ends.
    pub fn close_gently(self) {
        match self.carrier {
            Carrier::Socket(socket) => socket.close_gently(),
            Carrier::Memory(memory) => memory.close_gently(),
            Carrier::Stdio(stdio) => drop(stdio),
        }
    }

    /// The peer's address, in its plain form (see `Socket::peer_addr`).
    ///
    /// # Errors
    /// The peer is gone already, or this is no TCP socket.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.expect_socket()?.peer_addr()
    }

    /// Our address.
    ///
    /// # Errors
    /// The system's, or this is no TCP socket.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.expect_socket()?.local_addr()
    }

    /// Whether the peer owes us a sign of life and has given none for `patience`. A peer that reads slowly keeps
    /// answering, and is never counted as gone.
    pub(crate) fn peer_vanished(&self, patience: Duration) -> bool {
        match &self.carrier {
            Carrier::Socket(socket) => socket.peer_vanished(patience),
            Carrier::Memory(memory) => memory.peer_vanished(),
            Carrier::Stdio(_) => false,
        }
    }

    /// Whether bytes have come that were not read.
    pub(crate) fn has_unread(&self) -> bool {
        match &self.carrier {
            Carrier::Socket(socket) => socket.has_unread(),
            Carrier::Memory(memory) => memory.has_unread(),
            Carrier::Stdio(_) => false,
        }
    }

    /// How much of what was sent the peer's host has not taken yet, the end of our direction counted as one.
    /// `None` when it will take nothing any more.
    pub(crate) fn undelivered(&self) -> Option<usize> {
        match &self.carrier {
            Carrier::Socket(socket) => socket.undelivered(),
            Carrier::Memory(memory) => memory.undelivered(),
            Carrier::Stdio(stdio) => stdio.undelivered(),
        }
    }

    /// Whether a reset has arrived that no call has reported yet.
    pub fn is_reset(&self) -> bool {
        match &self.carrier {
            Carrier::Socket(socket) => socket.is_reset(),
            Carrier::Memory(memory) => memory.is_reset(),
            Carrier::Stdio(stdio) => stdio.is_reset(),
        }
    }

    /// Whether the peer has left without having said anything that waits here: it was reset, or its end is
    /// the first thing to read. Reads nothing.
    pub fn has_left(&self) -> bool {
        match &self.carrier {
            Carrier::Socket(socket) => socket.has_left(),
            Carrier::Memory(memory) => memory.has_left(),
            Carrier::Stdio(stdio) => stdio.is_reset(),
        }
    }

    /// Takes the connection out of this thread's runtime, to go on with on another thread.
    ///
    /// # Errors
    /// Out of descriptors, or the connection is this process's own; it is lost then.
    pub fn into_parts(self) -> io::Result<PlainParts> {
        let share = self.account.share();
        let carrier = match self.carrier {
            Carrier::Socket(socket) => Movable::Descriptor(socket.detach()?),
            Carrier::Memory(memory) => Movable::Memory(*memory),
            Carrier::Stdio(_) => return Err(io::ErrorKind::Unsupported.into()),
        };
        Ok(PlainParts { carrier, share })
    }

    /// Goes on with a connection that came from another thread.
    ///
    /// # Errors
    /// As [`Plain::adopt`].
    pub fn from_parts(parts: PlainParts) -> io::Result<Self> {
        let plain = match parts.carrier {
            Movable::Descriptor(fd) => Self::adopt(fd)?,
            Movable::Memory(memory) => memory.into(),
        };
        plain.account.belongs_to(parts.share);
        Ok(plain)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read as _,
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::{net::memory::Room, run::worker::run_alone};

    #[test]
    fn a_connection_that_is_readable_for_nothing_is_looked_at_less_often() {
        let (ours, peer) = Memory::pair(Room::default());
        let say = move |text: &[u8]| peer.send(&[IoSlice::new(text)]).unwrap();
        run_alone(false, |_| async move {
            let plain = Plain::from(ours);
            say(b"!");
            let begun = std::time::Instant::now();
            // As a loop that finds no way to read what is there.
            for _ in 0..FRUITLESS_MAX + 3 {
                plain.readable().await.unwrap();
            }
            assert!(begun.elapsed() >= FRUITLESS_PAUSE * 3);
            plain.try_read(&mut [0; 1]).unwrap();
            say(b"!");
            let begun = std::time::Instant::now();
            plain.readable().await.unwrap();
            assert!(begun.elapsed() < FRUITLESS_PAUSE, "it has brought something");
        })
        .unwrap();
    }

    #[test]
    fn every_read_is_paid_for_and_an_empty_account_waits_for_its_turn() {
        run_alone(false, |_| async {
            let (ours, peer) = Memory::pair(Room::default());
            let plain = Plain::from(ours);
            peer.send(&[IoSlice::new(&[7; 200_000])]).unwrap();
            let (mut buf, mut bytes) = (vec![0; 40_000], 0);
            let refused = loop {
                match plain.try_read(&mut buf) {
                    Ok(n) => bytes += n,
                    Err(e) => break e,
                }
            };
            assert_eq!((refused.kind(), bytes), (io::ErrorKind::WouldBlock, 80_000), "the account is empty");
            assert!(plain.came_full() && plain.has_unread());
            plain.readable().await.unwrap();
            assert_eq!(plain.try_read(&mut buf).unwrap(), 40_000);
        })
        .unwrap();
    }

    #[test]
    fn a_connection_that_no_thread_has_adopted_yet_is_reset_when_it_is_dropped() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        drop(PlainParts::from(OwnedFd::from(listener.accept().unwrap().0)));
        assert_eq!(peer.read(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn what_only_a_descriptor_can_do_is_asked_for() {
        run_alone(false, |_| async {
            let (ours, peer) = Memory::pair(Room::default());
            let plain = Plain::from(ours);
            assert!(plain.socket().is_none());
            assert_eq!(plain.peer_addr().unwrap_err().kind(), io::ErrorKind::Unsupported);
            // A connection in memory may go to another thread.
            let parts = plain.into_parts().unwrap();
            let elsewhere = std::thread::spawn(move || {
                run_alone(false, |_| async {
                    Plain::from_parts(parts).unwrap().try_write(&[IoSlice::new(b"hi")])
                })
            });
            assert_eq!(elsewhere.join().unwrap().unwrap().unwrap(), 2);
            let mut buf = [0; 8];
            assert_eq!(peer.recv(&mut buf).unwrap(), 2);
        })
        .unwrap();
    }
}
