//! Role: a connection in memory, in place of TCP: for tests and simulation.
//! Invariants: as TCP of Linux, as far as a relay can tell: each direction has bounded room and ends by itself · an end
//! that is dropped resets the other · bytes that arrived before a reset are read before it · a reset is reported once:
//! reads say the end from then on, writes `BrokenPipe`.
//! See: tcp(7); `socket`, whose calls these stand for.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io::{self, IoSlice, Read as _},
    sync::{Arc, Mutex, MutexGuard},
    task::{Poll, Waker},
};

use crate::run::lock::lock;

/// What a connection in memory can take.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// Bytes that one side may send before the other reads.
    pub bytes: usize,
    /// Bytes that one call moves at the most: below `bytes`, reads and writes are short.
    pub call_bytes: usize,
}

impl Default for Room {
    fn default() -> Self {
        Self { bytes: 256 * 1024, call_bytes: usize::MAX }
    }
}

/// One end of a connection in memory. Dropped, it resets the other end.
#[derive(Debug)]
pub struct Memory {
    link: Arc<Mutex<Link>>,
    side: usize,
}

#[derive(Debug)]
struct Link {
    room: Room,
    sides: [State; 2],
    /// Nothing arrives any more, and nobody is told.
    unplugged: bool,
}

/// What one end has sent, and what became of it.
#[derive(Debug, Default)]
struct State {
    /// Sent, and not read by the other end.
    sent: VecDeque<u8>,
    /// Its direction has ended.
    finished: bool,
    /// It is gone, without a reset.
    closed: bool,
    /// The connection was reset by the other end ..
    reset: bool,
    /// .. which no call has reported.
    unreported: bool,
    /// Its tasks that wait for an event.
    wakers: Vec<Waker>,
}

impl State {
    fn break_off(&mut self) {
        (self.reset, self.unreported) = (true, true);
        self.wake();
    }

    fn wake(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
    }

    /// The reset, if it is still to be reported.
    fn report(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.unreported) { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(()) }
    }
}

impl Link {
    /// One end's own state and the other's.
    fn ends(&mut self, side: usize) -> (&mut State, &mut State) {
        let [a, b] = &mut self.sides;
        if side == 0 { (a, b) } else { (b, a) }
    }
}

impl Memory {
    /// Both ends of a new connection.
    pub fn pair(room: Room) -> (Self, Self) {
        let link = Arc::new(Mutex::new(Link { room, sides: Default::default(), unplugged: false }));
        (Self { link: link.clone(), side: 0 }, Self { link, side: 1 })
    }

    /// A handle on the connection from outside.
    #[cfg(test)]
    pub(crate) fn cable(&self) -> Cable {
        Cable(self.link.clone())
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        lock(&self.link)
    }

    /// As [`Socket::recv`](super::socket::Socket::recv).
    pub(crate) fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        let mut link = self.link();
        let (most, unplugged) = (link.room.call_bytes.min(buf.len()), link.unplugged);
        let (own, other) = link.ends(self.side);
        if unplugged {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if !other.sent.is_empty() {
            let n = other.sent.read(&mut buf[..most])?;
            other.wake();
            return Ok(n);
        }
        own.report()?;
        if own.reset || other.finished { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) }
    }

    /// As [`Socket::send`](super::socket::Socket::send).
    pub(crate) fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut link = self.link();
        let room = link.room;
        let (own, other) = link.ends(self.side);
        own.report()?;
        if own.reset || own.finished {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if other.closed {
            // The peer's host answers with a reset, which a later call reports.
            own.break_off();
            return Ok(bufs.iter().map(|buf| buf.len()).sum());
        }
        let most = room.bytes.saturating_sub(own.sent.len()).min(room.call_bytes);
        let before = own.sent.len();
        for buf in bufs {
            let left = most - (own.sent.len() - before);
            own.sent.extend(&buf[..left.min(buf.len())]);
        }
        let n = own.sent.len() - before;
        if n == 0 && bufs.iter().any(|buf| !buf.is_empty()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        other.wake();
        Ok(n)
    }

    /// As [`Socket::readable`](super::socket::Socket::readable).
    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.wait(|link, side| {
            let unplugged = link.unplugged;
            let (own, other) = link.ends(side);
            !unplugged && (!other.sent.is_empty() || other.finished || own.reset)
        })
        .await;
        Ok(())
    }

    /// As [`Socket::writable`](super::socket::Socket::writable).
    pub(crate) async fn writable(&self) -> io::Result<()> {
        self.wait(|link, side| {
            let bytes = link.room.bytes;
            let (own, _) = link.ends(side);
            own.sent.len() < bytes || own.finished || own.reset
        })
        .await;
        Ok(())
    }

    async fn wait(&self, is_ready: impl Fn(&mut Link, usize) -> bool) {
        poll_fn(|cx| {
            let mut link = self.link();
            if is_ready(&mut link, self.side) {
                return Poll::Ready(());
            }
            let wakers = &mut link.sides[self.side].wakers;
            if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                wakers.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    /// As [`Socket::finish_write`](super::socket::Socket::finish_write).
    pub(crate) fn finish_write(&self) -> io::Result<()> {
        let mut link = self.link();
        let (own, other) = link.ends(self.side);
        if own.reset {
            return Err(io::ErrorKind::NotConnected.into());
        }
        own.finished = true;
        other.wake();
        Ok(())
    }

    /// As [`Socket::close_gently`](super::socket::Socket::close_gently): bytes that were not read make it a reset all
    /// the same.
    pub(crate) fn close_gently(self) {
        let mut link = self.link();
        let (own, other) = link.ends(self.side);
        if other.sent.is_empty() {
            (own.finished, own.closed) = (true, true);
            other.wake();
        }
    }

    /// As [`Socket::is_reset`](super::socket::Socket::is_reset).
    pub(crate) fn is_reset(&self) -> bool {
        self.link().sides[self.side].unreported
    }

    /// As [`Socket::has_left`](super::socket::Socket::has_left).
    pub(crate) fn has_left(&self) -> bool {
        let mut link = self.link();
        let (own, other) = link.ends(self.side);
        own.unreported || (other.sent.is_empty() && (other.finished || own.reset))
    }

    /// As [`Socket::has_unread`](super::socket::Socket::has_unread).
    pub(crate) fn has_unread(&self) -> bool {
        let mut link = self.link();
        let (_, other) = link.ends(self.side);
        !other.sent.is_empty()
    }

    /// As [`Socket::undelivered`](super::socket::Socket::undelivered): bytes that were sent are with the other end's
    /// host at once, unless there is no room for more, or the cable is pulled.
    pub(crate) fn undelivered(&self) -> Option<usize> {
        let mut link = self.link();
        let (room, unplugged) = (link.room.bytes, link.unplugged);
        let (own, _) = link.ends(self.side);
        match own.reset {
            true => None,
            false if unplugged || own.sent.len() >= room => Some(own.sent.len()),
            false => Some(0),
        }
    }

    /// As [`Socket::peer_vanished`](super::socket::Socket::peer_vanished), at once.
    pub(crate) fn peer_vanished(&self) -> bool {
        self.link().unplugged
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let mut link = self.link();
        let (own, other) = link.ends(self.side);
        if !own.closed {
            other.break_off();
        }
    }
}

/// The way between the two ends.
#[cfg(test)]
pub(crate) struct Cable(Arc<Mutex<Link>>);

#[cfg(test)]
impl Cable {
    /// Nothing arrives from now on, and neither end is told: as when a cable is pulled.
    pub(crate) fn unplug(&self) {
        lock(&self.0).unplugged = true;
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_lite::future::{block_on, poll_once, zip};

    use super::*;

    fn say(end: &Memory, text: &[u8]) -> io::Result<usize> {
        end.send(&[IoSlice::new(text)])
    }

    fn hear(end: &Memory) -> Result<Vec<u8>, io::ErrorKind> {
        let mut buf = [0; 64];
        end.recv(&mut buf).map(|n| buf[..n].to_vec()).map_err(|e| e.kind())
    }

    #[test]
    fn each_direction_has_its_room_and_ends_by_itself() {
        let (a, b) = Memory::pair(Room { bytes: 8, call_bytes: 3 });
        assert_eq!(hear(&b), Err(io::ErrorKind::WouldBlock));
        assert_eq!(a.send(&[IoSlice::new(b"he"), IoSlice::new(b"llo")]).unwrap(), 3);
        assert_eq!((say(&a, b"lo, yo").unwrap(), say(&a, b"yo").unwrap()), (3, 2));
        assert_eq!(say(&a, b"u").unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(a.undelivered(), Some(8), "the other end takes no more");
        let reading = async {
            assert_eq!(hear(&b).unwrap(), b"hel");
        };
        block_on(zip(async { a.writable().await.unwrap() }, reading));
        assert_eq!(a.undelivered(), Some(0));
        a.finish_write().unwrap();
        assert_eq!(say(&a, b"more").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert!(!b.has_left());
        assert_eq!((hear(&b).unwrap(), hear(&b).unwrap()), (b"lo,".to_vec(), b"yo".to_vec()));
        assert_eq!((hear(&b).unwrap(), b.has_left()), (Vec::new(), true));
        say(&b, b"bye").unwrap();
        assert_eq!(hear(&a).unwrap(), b"bye");
    }

    #[test]
    fn an_end_that_is_dropped_resets_the_other_behind_what_it_sent() {
        let (a, b) = Memory::pair(Room::default());
        let mut waiting = pin!(a.readable());
        assert!(block_on(poll_once(waiting.as_mut())).is_none());
        say(&b, b"last").unwrap();
        drop(b);
        block_on(waiting).unwrap();
        assert!(a.is_reset() && a.undelivered().is_none());
        assert_eq!(hear(&a).unwrap(), b"last");
        assert_eq!(hear(&a), Err(io::ErrorKind::ConnectionReset));
        assert_eq!((hear(&a).unwrap(), a.is_reset()), (Vec::new(), false), "it is reported once");
        assert_eq!(say(&a, b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(a.finish_write().unwrap_err().kind(), io::ErrorKind::NotConnected);
    }

    #[test]
    fn a_gentle_close_is_an_end_unless_something_was_not_read() {
        let (a, b) = Memory::pair(Room::default());
        say(&b, b"bye").unwrap();
        b.close_gently();
        assert_eq!((hear(&a).unwrap(), hear(&a).unwrap()), (b"bye".to_vec(), Vec::new()));
        assert_eq!(say(&a, b"too late").unwrap(), 8);
        assert_eq!(say(&a, b"x").unwrap_err().kind(), io::ErrorKind::ConnectionReset);

        let (a, b) = Memory::pair(Room::default());
        say(&a, b"unread").unwrap();
        assert!(b.has_unread());
        b.close_gently();
        assert_eq!(hear(&a), Err(io::ErrorKind::ConnectionReset));
    }

    #[test]
    fn a_cable_that_is_pulled_tells_neither_end() {
        let (a, b) = Memory::pair(Room::default());
        say(&a, b"lost").unwrap();
        a.cable().unplug();
        assert_eq!(hear(&b), Err(io::ErrorKind::WouldBlock));
        assert!(block_on(poll_once(pin!(b.readable()))).is_none());
        assert_eq!((say(&a, b"more").unwrap(), a.undelivered()), (4, Some(8)));
        assert!(a.peer_vanished() && !a.is_reset());
    }
}
