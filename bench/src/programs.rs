//! Role: the programs at the two ends of a relayed session: they send chunks, and look at what arrives.
//! Invariants: every byte is compared with the one that was sent · no chunk is sent before its turn.
//! See: [`crate::path`].

use std::{io, os::fd::OwnedFd, sync::Arc};

use futures_lite::future;
use narrowlink_dataplane::{
    tls::TlsStream,
    transport::wire::Wire,
    tunnel::{
        conn::Role,
        deframe::{DATA_FRAME_BYTES_MAX, Deframer, Event},
    },
};
use narrowlink_proto::{
    frame::{self, Expect, HEADER_BYTES_MAX, Header, Opcode},
    upgrade::Framing,
};
use rustls::{ClientConfig, pki_types::ServerName};

use crate::path::{NAME, Outside, Side, adopt};

/// What a bulk chunk has: a whole bulk buffer of the relay.
const BULK_BYTES: usize = 256 * 1024;
/// What a chunk of a ping-pong has.
const PING_BYTES: usize = 1024;
/// A mask of the programs' frames; one that is not zero, so that there is something to undo.
const MASK: [u8; 4] = [0xa5, 0x5a, 0x3c, 0xc3];

/// How the programs use the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A chunk of 1 KiB goes up and its answer comes down before the next: both are chunks.
    PingPong,
    /// Chunks of 256 KiB go up as fast as they are taken.
    Bulk,
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

/// The programs at the ends of a session, and chunks of one shape for it.
pub struct Programs {
    shape: Shape,
    client: Program,
    target: Program,
}

impl Programs {
    /// Takes the descriptors into this thread's runtime; the relay must be running for TLS.
    ///
    /// # Panics
    /// A descriptor can't be registered, or a handshake fails.
    pub async fn meet(outside: Outside, shape: Shape) -> Self {
        let (client, target) = outside.path.sides();
        let chunk: Vec<u8> = (0..shape.chunk_bytes()).map(|n| (n % 251) as u8).collect();
        let wires =
            future::zip(connect(outside.client, outside.tls.clone()), connect(outside.target, outside.tls))
                .await;
        Self {
            shape,
            client: Program::new(wires.0, client, chunk.clone()),
            target: Program::new(wires.1, target, chunk),
        }
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

#[expect(clippy::expect_used, reason = "without its connections nothing can be measured")]
async fn connect(fd: OwnedFd, tls: Option<Arc<ClientConfig>>) -> Wire {
    let socket = adopt(fd);
    let Some(config) = tls else { return socket.into() };
    let name = ServerName::try_from(NAME).expect("a name that stands in a certificate");
    TlsStream::connect(socket, config, name).await.expect("both sides speak the same TLS").into()
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
                let mask = if side.tls { [0; 4] } else { MASK };
                (frames(&chunk, Some(mask)), Some(Deframer::new(Expect::Unmasked)))
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
                let Event::Data { range, .. } = event else {
                    return Err(io::Error::other(format!("{event:?}")));
                };
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
    use crate::path::{Path, session};
    use narrowlink_dataplane::run::worker::{run_on_epoll, spawn};

    #[test]
    fn every_chunk_arrives_on_every_path() {
        for path in Path::PLAIN.into_iter().chain(Path::TLS) {
            for shape in Shape::ALL {
                let (between, outside) = session(path).unwrap();
                run_on_epoll(|_| async {
                    spawn(async {
                        let _ = between.relay().await;
                    });
                    let mut programs = Programs::meet(outside, shape).await;
                    for chunks in [1, 2, 7] {
                        programs.exchange(chunks).await.unwrap();
                    }
                })
                .unwrap();
            }
        }
    }
}
