//! Role: a tunnel connection's bytes, plain or TLS, with what was read too early in front.
//! Invariants: as [`crate::net::plain`] and [`crate::tls`] · a read may come back short although more
//! is there: [`Wire::readable`] says yes at once then.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    net::SocketAddr,
    time::Duration,
};

use crate::{
    net::{
        buffer::BULK_READ_BYTES,
        memory::Memory,
        plain::{Plain, PlainParts},
        socket::Socket,
        stdio::Stdio,
    },
    run::{
        budget::{self, Account},
        timer::timeout,
    },
    tls::{Session, TlsStream},
    transport::pipe::Pipe,
};

/// What is thrown away at once.
const DISCARD_BYTES: usize = 2048;
/// How much of a head is read at once: nearly always all of it.
const HEAD_READ_BYTES: usize = 2048;

/// One connection's bytes.
pub struct Wire {
    io: Io,
    /// Seldom there.
    early: RefCell<Option<Box<Early>>>,
}

/// What a splice has brought.
pub(crate) struct Spliced {
    pub(crate) bytes: usize,
    /// As much as was asked for: there may be more.
    pub(crate) more: bool,
}

/// What was read too early: the next reads return it first.
#[derive(Default)]
struct Early {
    bytes: Vec<u8>,
    /// Those before were taken.
    at: usize,
}

impl Early {
    /// Puts bytes in front. Where as many were taken before, nothing else moves.
    fn put_back(&mut self, bytes: &[u8]) {
        match self.at.checked_sub(bytes.len()) {
            Some(at) => {
                self.bytes[at..self.at].copy_from_slice(bytes);
                self.at = at;
            }
            None => {
                self.bytes.splice(..self.at, bytes.iter().copied());
                self.at = 0;
            }
        }
    }

    fn take(&mut self, buf: &mut [u8]) -> usize {
        let waiting = &self.bytes[self.at..];
        let taken = waiting.len().min(buf.len());
        buf[..taken].copy_from_slice(&waiting[..taken]);
        self.at += taken;
        taken
    }

    fn is_over(&self) -> bool {
        self.at == self.bytes.len()
    }
}

enum Io {
    Plain(Plain),
    Tls(Box<TlsStream>),
}

/// A connection taken apart for its way to another thread. Nothing may be in flight on it.
pub struct WireParts {
    plain: PlainParts,
    tls: Option<Box<Session>>,
    early: Option<Box<Early>>,
}

impl From<Plain> for Wire {
    fn from(plain: Plain) -> Self {
        Io::Plain(plain).into()
    }
}

impl From<Memory> for Wire {
    fn from(memory: Memory) -> Self {
        Plain::from(memory).into()
    }
}

impl From<TlsStream> for Wire {
    fn from(tls: TlsStream) -> Self {
        Io::Tls(Box::new(tls)).into()
    }
}

impl From<Stdio> for Wire {
    fn from(stdio: Stdio) -> Self {
        Plain::from(stdio).into()
    }
}

impl From<Io> for Wire {
    fn from(io: Io) -> Self {
        Self { io, early: RefCell::default() }
    }
}

impl Wire {
    /// Whether the bytes are encrypted on their way.
    pub fn is_tls(&self) -> bool {
        matches!(self.io, Io::Tls(_))
    }

    /// Whether the kernel seals and opens the records.
    pub fn in_kernel(&self) -> bool {
        matches!(&self.io, Io::Tls(tls) if tls.in_kernel())
    }

    fn plain(&self) -> &Plain {
        match &self.io {
            Io::Plain(plain) => plain,
            Io::Tls(tls) => tls.plain(),
        }
    }

    /// The socket below, where there is one, for what only a descriptor can do.
    pub(crate) fn socket(&self) -> Option<&Socket> {
        self.plain().socket()
    }

    /// What this connection may cause before others have their turn.
    #[inline]
    pub(crate) fn account(&self) -> &Account {
        self.plain().account()
    }

    /// The peer's address.
    ///
    /// # Errors
    /// The peer is gone already, or this is no TCP socket.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.plain().peer_addr()
    }

    /// Our address.
    ///
    /// # Errors
    /// The system's, or this is no TCP socket.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.plain().local_addr()
    }

    /// Puts bytes back: the next read returns them first.
    pub fn unread(&self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.early.borrow_mut().get_or_insert_default().put_back(bytes);
        }
    }

    /// Whether something waits in front of the socket, so that [`Wire::readable`] says yes at once.
    pub(crate) fn has_early(&self) -> bool {
        self.early.borrow().is_some()
    }

    /// Reads what is there, without waiting. `Ok(0)` is the clean end of the peer's direction.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there, or when this connection has to wait for its turn, which
    /// [`Wire::readable`] does; `UnexpectedEof` when TLS ended without close_notify, else the
    /// connection's end.
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        if self.account().is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut early = self.early.borrow_mut();
        if let Some(waiting) = &mut *early {
            // A reset is reported once: it must not be met while there is good news to tell. So
            // what came early is told by itself, and the rest at the next call.
            let taken = waiting.take(buf);
            if waiting.is_over() {
                *early = None;
            }
            return Ok(taken);
        }
        match &self.io {
            Io::Plain(plain) => plain.try_read(buf),
            Io::Tls(tls) => tls.try_read(buf),
        }
    }

    /// Whether a read may have something to tell at once, without any event on the socket: bytes
    /// that were read already, an end, or what the last read had no room for.
    pub fn more_to_come(&self) -> bool {
        self.has_early()
            || match &self.io {
                Io::Plain(plain) => plain.came_full(),
                Io::Tls(tls) => tls.more_to_come(),
            }
    }

    /// Plain bytes flow here, and much of them: whether the kernel may come to move them unseen (see
    /// [`Wire::is_spliceable`]). TLS asks the kernel to seal and open from now on.
    pub(crate) fn offer_to_kernel(&self) -> bool {
        self.socket().is_some()
            && match &self.io {
                Io::Plain(_) => true,
                Io::Tls(tls) => tls.enter_kernel(),
            }
    }

    /// Whether the kernel can move what comes and goes next.
    pub(crate) fn is_spliceable(&self) -> bool {
        !self.has_early()
            && match &self.io {
                Io::Plain(plain) => plain.socket().is_some(),
                Io::Tls(tls) => tls.in_kernel(),
            }
    }

    /// Moves what is there into an empty pipe, at most `max` bytes. `None` when only reading tells what is next.
    ///
    /// # Errors
    /// As [`Pipe::fill`].
    pub(crate) fn splice_out(&self, pipe: &mut Pipe, max: usize) -> io::Result<Option<Spliced>> {
        let (max, moved, cost) = match &self.io {
            Io::Plain(plain) => {
                let max = max.min(pipe.capacity());
                (max, pipe.fill(plain.expect_socket()?, max).map(drop), pipe.held() / budget::SPLICED)
            }
            // The kernel opens it: that is the work that it is for us.
            Io::Tls(tls) => {
                let max = max.min(BULK_READ_BYTES);
                (max, splice_records(tls, pipe, max), pipe.held())
            }
        };
        self.account().spend(budget::CALL + cost);
        let bytes = pipe.held();
        self.plain().has_brought(bytes);
        moved.map(|()| (bytes > 0).then_some(Spliced { bytes, more: bytes >= max }))
    }

    /// Moves a pipe's bytes on; whether it is empty, and all is with the kernel.
    ///
    /// # Errors
    /// As [`Pipe::drain`].
    pub(crate) fn splice_in(&self, pipe: &mut Pipe) -> io::Result<bool> {
        match &self.io {
            Io::Plain(plain) => pipe.drain(plain.expect_socket()?),
            Io::Tls(tls) => pipe.drain_sealed(tls),
        }
    }

    /// Waits until a read would not block.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn readable(&self) -> io::Result<()> {
        match &self.io {
            _ if self.has_early() => {
                self.account().breathe().await;
                Ok(())
            }
            Io::Plain(plain) => plain.readable().await,
            Io::Tls(tls) => tls.readable().await,
        }
    }

    /// As [`Wire::try_read`], for who only counts what comes: what `scratch` holds then has no meaning. Plain bytes are
    /// thrown away by the kernel (see [`Plain::try_discard`]).
    ///
    /// # Errors
    /// As there.
    pub fn try_discard(&self, scratch: &mut [u8]) -> io::Result<usize> {
        match &self.io {
            Io::Plain(plain) if !self.has_early() => plain.try_discard(scratch),
            _ => self.try_read(scratch),
        }
    }

    /// Waits until a write would not block.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn writable(&self) -> io::Result<()> {
        self.plain().writable().await
    }

    /// Hands what was accepted to the kernel; whether all of it went.
    ///
    /// # Errors
    /// The connection's end.
    pub fn try_flush(&self) -> io::Result<bool> {
        match &self.io {
            Io::Plain(_) => Ok(true),
            Io::Tls(tls) => tls.try_flush(),
        }
    }

    /// Reads at least one byte, waiting for it. `Ok(0)` is the clean end of the peer's direction.
    ///
    /// # Errors
    /// As [`Wire::try_read`], but for `WouldBlock`.
    pub async fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.try_read(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.readable().await?,
                other => return other,
            }
        }
    }

    /// Appends what is there to `got`, waiting for it; `Ok(0)` is the end. The buffer lies on the stack: who waits for a
    /// head holds none.
    ///
    /// # Errors
    /// As [`Wire::read`].
    pub(crate) async fn read_onto(&self, got: &mut Vec<u8>) -> io::Result<usize> {
        loop {
            match self.try_read_onto(got) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.readable().await?,
                read => return read,
            }
        }
    }

    fn try_read_onto(&self, got: &mut Vec<u8>) -> io::Result<usize> {
        let mut buf = [0; HEAD_READ_BYTES];
        let bytes = self.try_read(&mut buf)?;
        got.extend_from_slice(&buf[..bytes]);
        Ok(bytes)
    }

    /// Writes what can be taken now.
    ///
    /// # Errors
    /// `WouldBlock` when nothing can be taken; else the connection's end.
    pub fn try_write(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match &self.io {
            Io::Plain(plain) => plain.try_write(bufs),
            Io::Tls(tls) => tls.try_write(bufs),
        }
    }

    /// Writes everything and hands it to the kernel.
    ///
    /// # Errors
    /// The connection's end.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.try_write(&[IoSlice::new(bytes)]) {
                Ok(n) => bytes = &bytes[n..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.plain().writable().await?,
                Err(e) => return Err(e),
            }
        }
        self.flush().await
    }

    /// Waits until everything accepted is with the kernel.
    ///
    /// # Errors
    /// The connection's end.
    pub async fn flush(&self) -> io::Result<()> {
        match &self.io {
            Io::Plain(_) => Ok(()),
            Io::Tls(tls) => tls.flush().await,
        }
    }

    /// Ends our direction: FIN or close_notify. The other direction goes on.
    ///
    /// # Errors
    /// The connection's end.
    pub async fn finish_write(&self) -> io::Result<()> {
        match &self.io {
            Io::Plain(plain) => plain.finish_write(),
            Io::Tls(tls) => {
                tls.finish_write();
                tls.flush().await
            }
        }
    }

    /// Ends our direction, then reads what still comes and throws it away, until the peer closes, `bytes_max`
    /// have come or `patience` is over: what was said last arrives then, which a close with bytes unread would
    /// overtake with a reset.
    pub(crate) async fn hear_out(&self, bytes_max: usize, patience: Duration) {
        let rest = async {
            if self.finish_write().await.is_ok() {
                self.discard(bytes_max).await;
            }
        };
        let _ = timeout(patience, rest).await;
    }

    /// Reads what still comes and throws it away, until the connection ends or `bytes_max` have come; whether the
    /// peer ended its direction cleanly.
    pub(crate) async fn discard(&self, bytes_max: usize) -> bool {
        let mut bytes = 0;
        while bytes < bytes_max {
            // The buffer lies on the stack: a connection that waits holds none.
            let read = self.try_read(&mut [0; DISCARD_BYTES]);
            match read {
                Ok(0) => return true,
                Ok(n) => bytes = bytes.saturating_add(n),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if self.readable().await.is_err() {
                        return false;
                    }
                }
                Err(_) => return false,
            }
        }
        false
    }

    /// Closes without a reset (see [`Plain::close_gently`]); over TLS with close_notify.
    pub fn close_gently(self) {
        match self.io {
            Io::Plain(plain) => plain.close_gently(),
            Io::Tls(tls) => {
                tls.finish_write();
                let _ = tls.try_flush();
                tls.into_parts().0.close_gently();
            }
        }
    }

    /// Whether the peer has stopped answering at all (see [`Plain::peer_vanished`]).
    pub(crate) fn peer_vanished(&self, patience: Duration) -> bool {
        self.plain().peer_vanished(patience)
    }

    /// Whether the peer of a plain connection has left, and nothing that it said waits here (see
    /// [`Plain::has_left`]).
    pub fn has_left(&self) -> bool {
        self.is_reset() || (!self.has_early() && self.plain().has_left())
    }

    /// Whether a reset has arrived that no call has reported yet (see [`Plain::is_reset`]).
    pub fn is_reset(&self) -> bool {
        self.plain().is_reset()
    }

    /// Whether bytes have come that were not read yet.
    pub(crate) fn has_unread(&self) -> bool {
        self.more_to_come() || self.plain().has_unread()
    }

    /// What was sent and not delivered (see [`Plain::undelivered`]).
    pub(crate) fn undelivered(&self) -> Option<usize> {
        self.plain().undelivered()
    }

    /// Takes the connection apart for its way to another thread.
    ///
    /// # Errors
    /// Out of descriptors; the connection is lost then.
    pub fn into_parts(self) -> io::Result<WireParts> {
        let early = self.early.into_inner();
        let (plain, tls) = match self.io {
            Io::Plain(plain) => (plain, None),
            Io::Tls(tls) => {
                let (plain, session) = tls.into_parts();
                (plain, Some(Box::new(session)))
            }
        };
        Ok(WireParts { plain: plain.into_parts()?, tls, early })
    }

    /// Puts a connection together that came from another thread.
    ///
    /// # Errors
    /// As [`Plain::adopt`].
    pub fn from_parts(parts: WireParts) -> io::Result<Self> {
        let plain = Plain::from_parts(parts.plain)?;
        let io = match parts.tls {
            None => Io::Plain(plain),
            Some(session) => Io::Tls(Box::new(TlsStream::from_parts(plain, *session))),
        };
        Ok(Self { io, early: RefCell::new(parts.early) })
    }
}

/// The kernel gives a record at a time: as many as there are, so that they leave together.
fn splice_records(tls: &TlsStream, pipe: &mut Pipe, max: usize) -> io::Result<()> {
    while pipe.held() < max {
        match pipe.fill_opened(tls, max) {
            Ok(Some(_)) => {}
            Ok(None) => break,
            // The next call meets it again.
            Err(_) if pipe.held() > 0 => break,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::run::worker::run_alone;

    #[test]
    fn what_is_put_back_comes_first_and_what_follows_stays_where_it_is() {
        let mut early = Early::default();
        early.put_back(b"message one, message two");
        let at = early.bytes.as_ptr();
        let mut buf = [0; 16];
        assert_eq!((early.take(&mut buf), &buf), (16, b"message one, mes"));
        early.put_back(b"mes");
        assert_eq!((early.bytes.as_ptr(), early.at), (at, 13));
        early.put_back(b"message one, and more in front: ");
        let mut all = [0; 99];
        let taken = early.take(&mut all);
        assert_eq!(&all[..taken], b"message one, and more in front: message two");
        assert!(early.is_over());
    }

    #[test]
    fn more_may_come_behind_early_bytes_and_behind_a_read_that_filled_its_room() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let ours = listener.accept().unwrap().0;
        run_alone(false, |_| async move {
            let wire = Wire::from(Plain::adopt(ours.into()).unwrap());
            let mut buf = [0; 5];
            wire.unread(b"hi");
            assert!(wire.more_to_come());
            assert_eq!((wire.try_read(&mut buf).unwrap(), wire.more_to_come()), (2, false));
            peer.write_all(b"hello, you").unwrap();
            wire.readable().await.unwrap();
            assert_eq!((wire.try_read(&mut buf).unwrap(), wire.more_to_come()), (5, true));
            assert_eq!((wire.try_read(&mut buf).unwrap(), wire.more_to_come()), (5, true));
            assert_eq!(wire.try_read(&mut buf).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            assert!(!wire.more_to_come());
        })
        .unwrap();
    }
}
