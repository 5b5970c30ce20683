//! Role: one relayed session between two programs over socket pairs, for each way in which its two sides
//! can be framed.
//! Invariants: whatever arrives is compared with what was sent · relay and programs may run on threads of
//! their own, so that one can be counted without the other.
//! See: `narrowlink_dataplane::relay`; narrowlink-count and tests/allocations.rs, which count.

use std::{io, os::fd::OwnedFd, os::unix::net::UnixStream};

use futures_lite::future;
use narrowlink_dataplane::{
    conn::{Conn, Role},
    deframe::{DATA_FRAME_BYTES_MAX, Deframer, Event},
    relay::{Traffic, relay},
    socket::Socket,
    wire::Wire,
};
use narrowlink_proto::{
    ended::Ended,
    frame::{self, Expect, HEADER_BYTES_MAX, Header, Opcode},
    id::SessionId,
    upgrade::Framing,
};
use socket2::SockRef;

/// What a bulk chunk has: a whole bulk buffer of the relay.
const BULK_BYTES: usize = 256 * 1024;
/// What a chunk of a ping-pong has.
const PING_BYTES: usize = 1024;
/// Asked for each socket; every kernel grants it (the default of `net.core.wmem_max`), so that a chunk
/// comes in as many reads everywhere.
const SOCKET_BYTES: usize = 212_992;
/// A mask of the programs' frames; one that is not zero, so that there is something to undo.
const MASK: [u8; 4] = [0xa5, 0x5a, 0x3c, 0xc3];

/// What the relay has on its two sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// The gateway between two raw streams.
    PlainPlain,
    /// The gateway between two framed ones: unmasks, and writes new headers.
    FramedFramed,
    /// The agent: from the gateway's frames to its target, and back in masked frames.
    FramedPlain,
    /// The client: from a local program into masked frames, and back.
    PlainFramed,
}

/// How the programs use the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A chunk of 1 KiB goes up and its answer comes down before the next: both are chunks.
    PingPong,
    /// Chunks of 256 KiB go up as fast as they are taken.
    Bulk,
}

/// One side of the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Side {
    framing: Framing,
    role: Role,
}

impl Path {
    /// Every path.
    pub const ALL: [Self; 4] = [Self::PlainPlain, Self::FramedFramed, Self::FramedPlain, Self::PlainFramed];

    /// As in records and on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PlainPlain => "plain-plain",
            Self::FramedFramed => "framed-framed",
            Self::FramedPlain => "framed-plain",
            Self::PlainFramed => "plain-framed",
        }
    }

    /// The client's side and the target's.
    const fn sides(self) -> (Side, Side) {
        let plain = Side { framing: Framing::Raw, role: Role::Gateway };
        let gateway = Side { framing: Framing::Framed, role: Role::Gateway };
        let peer = Side { framing: Framing::Framed, role: Role::Peer };
        match self {
            Self::PlainPlain => (plain, plain),
            Self::FramedFramed => (gateway, gateway),
            Self::FramedPlain => (peer, plain),
            Self::PlainFramed => (plain, peer),
        }
    }
}

impl Shape {
    /// Both shapes.
    pub const ALL: [Self; 2] = [Self::PingPong, Self::Bulk];

    /// As in records and on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PingPong => "ping-pong",
            Self::Bulk => "bulk",
        }
    }

    const fn chunk_bytes(self) -> usize {
        match self {
            Self::PingPong => PING_BYTES,
            Self::Bulk => BULK_BYTES,
        }
    }
}

/// The relay's two descriptors.
#[derive(Debug)]
pub struct Between {
    path: Path,
    client: OwnedFd,
    target: OwnedFd,
}

/// The programs' two descriptors, which may go to another thread.
#[derive(Debug)]
pub struct Outside {
    path: Path,
    client: OwnedFd,
    target: OwnedFd,
}

/// A new session: what the relay gets, and what the programs at its ends get.
///
/// # Errors
/// Out of descriptors.
pub fn session(path: Path) -> io::Result<(Between, Outside)> {
    let (client, near) = pair()?;
    let (target, far) = pair()?;
    Ok((Between { path, client: near, target: far }, Outside { path, client, target }))
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (one, other) = UnixStream::pair()?;
    for end in [&one, &other] {
        end.set_nonblocking(true)?;
        SockRef::from(end).set_send_buffer_size(SOCKET_BYTES)?;
    }
    Ok((one.into(), other.into()))
}

impl Between {
    /// Relays on this thread's runtime until the session ends.
    ///
    /// # Errors
    /// How it ended, if not cleanly.
    ///
    /// # Panics
    /// A descriptor can't be registered.
    pub async fn relay(self) -> Result<(), Ended> {
        let (client, target) = self.path.sides();
        let client = Conn::new(wire(self.client), client.framing, client.role, 1);
        let target = Conn::new(wire(self.target), target.framing, target.role, 1);
        let id = SessionId::from_bytes([9; 32]);
        relay(client.end(id), target.end(id), &Traffic::default()).await
    }
}

#[expect(clippy::expect_used, reason = "without its sockets nothing can be measured")]
fn wire(fd: OwnedFd) -> Wire {
    Socket::adopt(fd).expect("a socket pair can be waited for").into()
}

/// The programs at the ends of a session, and chunks of one shape for it.
pub struct Programs {
    shape: Shape,
    client: Program,
    target: Program,
}

impl Programs {
    /// Takes the descriptors into this thread's runtime.
    ///
    /// # Panics
    /// A descriptor can't be registered.
    pub fn new(outside: Outside, shape: Shape) -> Self {
        let (client, target) = outside.path.sides();
        let chunk: Vec<u8> = (0..shape.chunk_bytes()).map(|n| (n % 251) as u8).collect();
        let program = |fd, side| Program::new(wire(fd), side, chunk.clone());
        Self { shape, client: program(outside.client, client), target: program(outside.target, target) }
    }

    /// Sends so many chunks through the relay; returns when all of them have arrived.
    ///
    /// # Errors
    /// The session ended.
    ///
    /// # Panics
    /// Something else arrived than was sent.
    pub async fn exchange(&mut self, chunks: usize) -> io::Result<()> {
        let (client, target) = (&mut self.client, &mut self.target);
        match self.shape {
            Shape::PingPong => {
                for n in 0..chunks {
                    let (from, to) =
                        if n % 2 == 0 { (&*client, &mut *target) } else { (&*target, &mut *client) };
                    from.send().await?;
                    to.expect_chunks(1).await?;
                }
                Ok(())
            }
            Shape::Bulk => {
                let sending = async {
                    for _ in 0..chunks {
                        client.send().await?;
                    }
                    Ok(())
                };
                let (sent, arrived) = future::zip(sending, target.expect_chunks(chunks)).await;
                sent.and(arrived)
            }
        }
    }
}

/// A program at one end of the relay.
struct Program {
    wire: Wire,
    /// One chunk, as payload and as it travels to the relay.
    chunk: Vec<u8>,
    encoded: Vec<u8>,
    deframer: Option<Deframer>,
    buf: Vec<u8>,
}

impl Program {
    /// At the other end of `side`.
    fn new(wire: Wire, side: Side, chunk: Vec<u8>) -> Self {
        let (encoded, deframer) = match (side.framing, side.role) {
            (Framing::Raw, _) => (chunk.clone(), None),
            (Framing::Framed, Role::Gateway) => {
                (frames(&chunk, Some(MASK)), Some(Deframer::new(Expect::Unmasked)))
            }
            (Framing::Framed, Role::Peer) => (frames(&chunk, None), Some(Deframer::new(Expect::Masked))),
        };
        Self { wire, chunk, encoded, deframer, buf: vec![0; BULK_BYTES] }
    }

    async fn send(&self) -> io::Result<()> {
        self.wire.write_all(&self.encoded).await
    }

    /// Reads until so many chunks have arrived, and nothing else.
    async fn expect_chunks(&mut self, chunks: usize) -> io::Result<()> {
        let Self { wire, chunk, deframer, buf, .. } = self;
        let (mut arrived, all) = (0, chunks * chunk.len());
        let mut take = |payload: &[u8]| {
            let mut rest = payload;
            while !rest.is_empty() {
                let expected = &chunk[arrived % chunk.len()..];
                let (now, later) = rest.split_at(rest.len().min(expected.len()));
                assert!(now == &expected[..now.len()], "wrong bytes at {arrived}");
                arrived += now.len();
                rest = later;
            }
            arrived
        };
        let mut done = 0;
        while done < all {
            let n = wire.read(buf).await?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let Some(deframer) = deframer else {
                done = take(&buf[..n]);
                continue;
            };
            let mut at = 0;
            while let Some(event) = deframer.next(&mut buf[..n], &mut at).map_err(io::Error::other)? {
                let Event::Data(range) = event else { return Err(io::Error::other(format!("{event:?}"))) };
                done = take(&buf[range]);
            }
        }
        assert_eq!(done, all, "more arrived than was sent");
        Ok(())
    }
}

/// Payload in as few frames as may be.
fn frames(payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in payload.chunks(DATA_FRAME_BYTES_MAX as usize) {
        let mut head = [0; HEADER_BYTES_MAX];
        let header = Header { fin: true, opcode: Opcode::Binary, mask, payload_bytes: piece.len() as u64 };
        let len = frame::encode(&header, &mut head);
        bytes.extend_from_slice(&head[..len]);
        let start = bytes.len();
        bytes.extend_from_slice(piece);
        frame::mask(&mut bytes[start..], mask.unwrap_or_default(), 0);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowlink_dataplane::worker::{run_on_epoll, spawn};

    #[test]
    fn every_chunk_arrives_on_every_path() {
        for path in Path::ALL {
            for shape in Shape::ALL {
                let (between, outside) = session(path).unwrap();
                run_on_epoll(|_| async {
                    spawn(async {
                        let _ = between.relay().await;
                    });
                    let mut programs = Programs::new(outside, shape);
                    for chunks in [1, 2, 7] {
                        programs.exchange(chunks).await.unwrap();
                    }
                })
                .unwrap();
            }
        }
    }
}
