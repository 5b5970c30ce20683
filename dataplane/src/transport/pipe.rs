//! Role: the pipes through which bulk goes from socket to socket without being copied, pooled per worker.
//! Invariants: a pipe is held only while bytes are in it or about to be · bytes left in a pipe die with it:
//! only an empty one goes back to the pool · no pipe, or only a small one, is no error: bulk is copied then.
//! See: splice(2); pipe(7), "pipe-user-pages-soft"; ARCHITECTURE.md "Relay".

use std::{
    cell::RefCell,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use crate::{net::socket::Socket, tls::TlsStream};

/// What a pipe holds while few are lent: two batches or more in one visit. On 8 and 64 connections a GiB costs
/// three quarters of what it costs through pipes of 256 KiB.
const LARGE_BYTES: usize = 1024 * 1024;
/// What one holds else. The kernel grants an unprivileged user 64 MiB in all: 16 large ones, and 192 of these.
pub(crate) const SMALL_BYTES: usize = 256 * 1024;
/// The kernel said no (`fs.pipe-user-pages-soft`). How long it isn't asked again.
const REFUSED_FOR: Duration = Duration::from_secs(1);

/// A pipe on loan from this worker's pool.
pub struct Pipe {
    /// There until it is dropped.
    ends: Option<Ends>,
    held: usize,
}

struct Ends {
    read: OwnedFd,
    write: OwnedFd,
    bytes: usize,
}

/// This worker's pipes: two descriptors each. Bulk beyond what they carry is copied.
struct Pool {
    large: Shelf,
    small: Shelf,
}

/// Its pipes of one size.
struct Shelf {
    bytes: usize,
    lent_max: usize,
    /// Kept for the next user when they come back.
    idle_max: usize,
    idle: Vec<Ends>,
    lent: usize,
    refused: Option<Instant>,
}

thread_local! {
    static POOL: RefCell<Pool> = const {
        RefCell::new(Pool { large: Shelf::new(LARGE_BYTES, 16, 4), small: Shelf::new(SMALL_BYTES, 240, 16) })
    };
}

impl Pool {
    fn take(&mut self) -> Option<Ends> {
        self.large.take().or_else(|| self.small.take())
    }

    fn give_back(&mut self, ends: Ends, is_empty: bool) {
        let shelf = if ends.bytes >= LARGE_BYTES { &mut self.large } else { &mut self.small };
        shelf.lent -= 1;
        if is_empty && shelf.idle.len() < shelf.idle_max {
            shelf.idle.push(ends);
        }
    }
}

impl Shelf {
    const fn new(bytes: usize, lent_max: usize, idle_max: usize) -> Self {
        Self { bytes, lent_max, idle_max, idle: Vec::new(), lent: 0, refused: None }
    }

    fn take(&mut self) -> Option<Ends> {
        let ends = self.idle.pop().or_else(|| self.make())?;
        self.lent += 1;
        Some(ends)
    }

    fn make(&mut self) -> Option<Ends> {
        if self.lent >= self.lent_max || self.refused.is_some_and(|at| at.elapsed() < REFUSED_FOR) {
            return None;
        }
        let made = Ends::new(self.bytes);
        self.refused = if made.is_some() { None } else { Some(Instant::now()) };
        made
    }
}

impl Ends {
    fn new(wanted: usize) -> Option<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        let bytes = fcntl_setpipe_size(&write, wanted).ok()?;
        (bytes >= wanted).then_some(Self { read, write, bytes })
    }
}

impl Pipe {
    /// Borrows an empty pipe, if one is to be had.
    pub fn take() -> Option<Self> {
        let ends = POOL.with_borrow_mut(Pool::take)?;
        Some(Self { ends: Some(ends), held: 0 })
    }

    fn ends(&self) -> io::Result<&Ends> {
        self.ends.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// What one fill can bring.
    pub(crate) fn capacity(&self) -> usize {
        self.ends.as_ref().map_or(0, |ends| ends.bytes)
    }

    /// What is in it.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Takes what `source` has, at most `max` bytes. `Ok(0)` is the peer's FIN.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; `InvalidInput`, `Unsupported` or `PermissionDenied` where the
    /// kernel does not splice from this; else the connection's end.
    pub(crate) fn fill(&mut self, source: &Socket, max: usize) -> io::Result<usize> {
        let n = retried(source, &self.ends()?.write, max)?;
        self.held += n;
        Ok(n)
    }

    /// As `fill`, from a connection that the kernel opens; `None` when only reading tells what is
    /// next.
    ///
    /// # Errors
    /// As [`TlsStream::try_splice_out`].
    pub(crate) fn fill_opened(&mut self, source: &TlsStream, max: usize) -> io::Result<Option<usize>> {
        let filled = source.try_splice_out(self.ends()?.write.as_fd(), max)?;
        self.held += filled.unwrap_or_default();
        Ok(filled)
    }

    /// Gives `sink` what it takes; whether the pipe is empty now.
    ///
    /// # Errors
    /// The connection's end.
    pub(crate) fn drain(&mut self, sink: &Socket) -> io::Result<bool> {
        self.drain_by(|pipe, held| retried(pipe, sink, held))
    }

    /// As `drain`, into a connection that the kernel seals, as [`TlsStream::in_kernel`] says.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn drain_sealed(&mut self, sink: &TlsStream) -> io::Result<bool> {
        self.drain_by(|pipe, held| {
            sink.try_splice_in(pipe, held)?.ok_or_else(|| io::ErrorKind::Unsupported.into())
        })
    }

    fn drain_by(
        &mut self,
        move_on: impl FnOnce(BorrowedFd<'_>, usize) -> io::Result<usize>,
    ) -> io::Result<bool> {
        if self.held > 0 {
            match move_on(self.ends()?.read.as_fd(), self.held) {
                Ok(n) => self.held -= n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
        // A sink that took a part is full: it isn't asked again before it says so.
        Ok(self.held == 0)
    }
}

fn retried(from: impl AsFd, to: impl AsFd, max: usize) -> io::Result<usize> {
    loop {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        match splice(from.as_fd(), None, to.as_fd(), None, max, flags) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        if let Some(ends) = self.ends.take() {
            // A pipe that outlives its thread's pool (at thread exit) is simply closed.
            let _ = POOL.try_with(|pool| pool.borrow_mut().give_back(ends, self.held == 0));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
        os::unix::net::UnixStream,
    };

    use super::*;
    use crate::run::worker::run_alone;

    fn idle() -> usize {
        POOL.with_borrow(|pool| pool.large.idle.len() + pool.small.idle.len())
    }

    #[test]
    fn bytes_go_through_a_pipe_and_only_an_empty_one_comes_back() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let near = listener.accept().unwrap().0;
        let (far, mut target) = UnixStream::pair().unwrap();
        run_alone(false, |_| async move {
            let source = Socket::adopt(near.into()).unwrap();
            let sink = Socket::adopt(far.into()).unwrap();
            let mut pipe = Pipe::take().unwrap();
            assert!(pipe.capacity() >= SMALL_BYTES);
            assert_eq!(pipe.fill(&source, 99).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            peer.write_all(b"hello, you").unwrap();
            source.readable().await.unwrap();
            assert_eq!(pipe.fill(&source, 5).unwrap(), 5);
            assert_eq!(pipe.fill(&source, 99).unwrap(), 5);
            assert!(pipe.drain(&sink).unwrap());
            let mut got = [0; 10];
            target.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"hello, you");
            let before = idle();
            drop(pipe);
            assert_eq!(idle(), before + 1);

            let mut pipe = Pipe::take().unwrap();
            peer.write_all(b"lost").unwrap();
            source.readable().await.unwrap();
            assert_eq!(pipe.fill(&source, 99).unwrap(), 4);
            drop(pipe);
            assert_eq!(idle(), before);
            drop(peer);
            source.readable().await.unwrap();
            assert_eq!(Pipe::take().unwrap().fill(&source, 99).unwrap(), 0);
        })
        .unwrap();
    }

    #[test]
    fn a_sink_that_is_full_leaves_the_rest_in_the_pipe() {
        let (mut peer, near) = UnixStream::pair().unwrap();
        let (far, mut target) = UnixStream::pair().unwrap();
        run_alone(false, |_| async move {
            let source = Socket::adopt(near.into()).unwrap();
            let sink = Socket::adopt(far.into()).unwrap();
            peer.set_nonblocking(true).unwrap();
            target.set_nonblocking(true).unwrap();
            let mut pipe = Pipe::take().unwrap();
            let (mut sent, mut got, mut stuck) = (0_usize, 0, false);
            while !stuck {
                let chunk: Vec<u8> = (sent..sent + 1000).map(|n| (n % 251) as u8).collect();
                peer.write_all(&chunk).unwrap();
                sent += chunk.len();
                pipe.fill(&source, 1000).unwrap();
                stuck = !pipe.drain(&sink).unwrap();
            }
            let mut buf = [0; 4096];
            while got < sent {
                let _ = pipe.drain(&sink).unwrap();
                let n = target.read(&mut buf).unwrap();
                assert!(buf[..n].iter().enumerate().all(|(at, byte)| *byte == ((got + at) % 251) as u8));
                got += n;
            }
            assert_eq!((got, pipe.held), (sent, 0));
        })
        .unwrap();
    }

    /// Stands in for so many that are lent: descriptors are few where tests run.
    fn lend_all_but(large: usize, small: usize) {
        POOL.with_borrow_mut(|pool| {
            pool.large.lent = pool.large.lent_max - large;
            pool.small.lent = pool.small.lent_max - small;
        });
    }

    #[test]
    fn pipes_are_large_while_few_are_lent_and_there_are_only_so_many() {
        lend_all_but(1, 1);
        let large = Pipe::take().unwrap();
        let small = Pipe::take().unwrap();
        assert!(large.capacity() >= LARGE_BYTES || !may_have_large_pipes(), "{}", large.capacity());
        assert!((SMALL_BYTES..LARGE_BYTES).contains(&small.capacity()));
        assert!(Pipe::take().is_none());
        drop(small);
        assert!(Pipe::take().unwrap().capacity() < LARGE_BYTES);
        drop(large);
        assert!(Pipe::take().unwrap().capacity() >= LARGE_BYTES || !may_have_large_pipes());
        lend_all_but(0, 0);
        POOL.with_borrow_mut(|pool| pool.large.idle.clear());
        POOL.with_borrow_mut(|pool| pool.small.idle.clear());
        assert!(Pipe::take().is_none());
        lend_all_but(4, 4);
    }

    /// An unprivileged user who has many pipes, in other tests perhaps, may not.
    fn may_have_large_pipes() -> bool {
        Ends::new(LARGE_BYTES).is_some()
    }

    #[test]
    fn where_the_kernel_refuses_large_pipes_small_ones_serve_and_it_is_not_asked_again_at_once() {
        let refuse = |large, small| {
            POOL.with_borrow_mut(|pool| {
                let now = Some(Instant::now());
                for (shelf, is_refused) in [(&mut pool.large, large), (&mut pool.small, small)] {
                    shelf.idle.clear();
                    shelf.refused = now.filter(|_| is_refused);
                }
            });
            Pipe::take()
        };
        assert!(refuse(true, false).unwrap().capacity() < LARGE_BYTES);
        assert!(refuse(true, true).is_none());
        POOL.with_borrow_mut(|pool| pool.small.bytes = usize::MAX);
        assert!(refuse(true, false).is_none(), "the kernel has no such pipes");
        assert!(POOL.with_borrow(|pool| pool.small.refused.is_some()));
    }
}
