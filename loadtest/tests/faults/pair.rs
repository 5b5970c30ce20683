//! Role: a user's program and a target that talk through the tunnel and notice how it ends.
//! Invariants: every byte that arrives is the one that was sent; an end counts as a reset only when
//! the kernel said ECONNRESET.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::kit::{PATIENCE, data::Pattern, wait_for};

/// Who is sending when the fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Both,
    Down,
    /// Nobody: each has sent a little and waits.
    Idle,
    Up,
}

pub(crate) const SHAPES: [Shape; 4] = [Shape::Both, Shape::Down, Shape::Idle, Shape::Up];

/// Enough that every buffer on the way has been filled and emptied.
const BUSY_BYTES: u64 = 16 * 1024 * 1024;
const IDLE_BYTES: u64 = 1024 * 1024;

/// A user's connection and the one that the target got for it.
pub(crate) struct Pair {
    user: TcpStream,
    target: TcpStream,
}

impl Pair {
    /// Connects through a forward at `local` whose target is `listener`, as often as it takes.
    pub(crate) fn open(local: SocketAddr, listener: &TcpListener) -> Self {
        listener.set_nonblocking(true).expect("a listener can be set so");
        let mut attempt = 0_u64;
        wait_for("a session", PATIENCE, || {
            attempt += 1;
            Self::try_open(local, listener, attempt).ok()
        })
    }

    fn try_open(local: SocketAddr, listener: &TcpListener, attempt: u64) -> io::Result<Self> {
        let mut user = TcpStream::connect(local)?;
        user.write_all(&attempt.to_le_bytes())?;
        let deadline = Instant::now() + Duration::from_secs(3);
        while Instant::now() < deadline {
            match listener.accept() {
                Ok((mut target, _)) => {
                    target.set_nonblocking(false)?;
                    target.set_read_timeout(Some(Duration::from_secs(3)))?;
                    let mut name = [0; 8];
                    // A session of an attempt that was given up may come first.
                    if target.read_exact(&mut name).is_ok() && u64::from_le_bytes(name) == attempt {
                        target.set_read_timeout(None)?;
                        return Ok(Self { user, target });
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(1)),
                Err(e) => return Err(e),
            }
        }
        Err(ErrorKind::TimedOut.into())
    }

    /// Talks in `shape` until the talk is well under way, then calls `strike` and says how both ended.
    pub(crate) fn talk_until(self, shape: Shape, strike: impl FnOnce()) -> Endings {
        let (up, down) = match shape {
            Shape::Both => (u64::MAX, u64::MAX),
            Shape::Down => (0, u64::MAX),
            Shape::Idle => (IDLE_BYTES, IDLE_BYTES),
            Shape::Up => (u64::MAX, 0),
        };
        let user = Talker::start(self.user, up, UP_SEED, DOWN_SEED);
        let target = Talker::start(self.target, down, DOWN_SEED, UP_SEED);
        wait_for("the transfer to be under way", PATIENCE, || {
            let arrived =
                |talker: &Talker, sent: u64| talker.received.load(Ordering::Relaxed) >= sent.min(BUSY_BYTES);
            (arrived(&user, down) && arrived(&target, up)).then_some(())
        });
        strike();
        Endings { user: user.ending(), target: target.ending() }
    }
}

const UP_SEED: u64 = 1;
const DOWN_SEED: u64 = 2;

/// How a connection ended for one of the two programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// ECONNRESET.
    Reset,
    /// The end of the stream, as if all had been said.
    Clean,
    /// Another error.
    Other(ErrorKind),
}

/// How it ended for both.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Endings {
    pub(crate) user: Ending,
    pub(crate) target: Ending,
}

impl Endings {
    pub(crate) const RESET: Self = Self { user: Ending::Reset, target: Ending::Reset };
}

/// One end of a connection: a thread that writes and a thread that reads and compares.
struct Talker {
    writer: JoinHandle<Option<ErrorKind>>,
    reader: JoinHandle<Option<ErrorKind>>,
    received: Arc<AtomicU64>,
}

impl Talker {
    fn start(stream: TcpStream, bytes: u64, own_seed: u64, peer_seed: u64) -> Self {
        let received = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&received);
        let mut input = stream.try_clone().expect("a descriptor is free");
        let mut output = stream;
        Self {
            writer: thread::spawn(move || write(&mut output, bytes, own_seed).err().map(|e| e.kind())),
            reader: thread::spawn(move || compare(&mut input, peer_seed, &counter).err().map(|e| e.kind())),
            received,
        }
    }

    /// Waits for the end.
    fn ending(self) -> Ending {
        wait_for("the end to be noticed", PATIENCE, || {
            (self.reader.is_finished() && self.writer.is_finished()).then_some(())
        });
        let read = self.reader.join().expect("what arrived is what was sent");
        let written = self.writer.join().expect("writing does not panic");
        // The kernel tells ECONNRESET once, to whichever call comes first; after that a read gets 0.
        // After a FIN it never says ECONNRESET: a write is then answered with EPIPE.
        match (read, written) {
            (Some(ErrorKind::ConnectionReset), _) | (_, Some(ErrorKind::ConnectionReset)) => Ending::Reset,
            (None, _) => Ending::Clean,
            (Some(kind), _) => Ending::Other(kind),
        }
    }
}

fn write(output: &mut TcpStream, bytes: u64, seed: u64) -> io::Result<u64> {
    io::copy(&mut Pattern::new(seed).take(bytes), output)
}

/// Reads to the end; a byte that was not sent, or not there, panics.
fn compare(input: &mut TcpStream, seed: u64, received: &AtomicU64) -> io::Result<()> {
    let mut expected = Pattern::new(seed);
    let (mut got, mut want) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        let bytes = input.read(&mut got)?;
        if bytes == 0 {
            return Ok(());
        }
        expected.read_exact(&mut want[..bytes])?;
        let before = received.fetch_add(bytes as u64, Ordering::Relaxed);
        assert!(got[..bytes] == want[..bytes], "wrong bytes after {before}");
    }
}
