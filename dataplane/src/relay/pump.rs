//! Role: one direction of a session.
//! Invariants: a chunk is written before the next is read, so a stalled sink stops its source and
//! nothing grows · the wait for more holds no buffer · payload is never copied between the read
//! and the write.

use std::{cell::Cell, io, ops::Range};

use narrowlink_proto::{
    ended::{Ended, Side, Why},
    message::{Channel, Message, Speaker},
};

use super::{End, gate::Gate};
use crate::{
    buffer::Buffer,
    conn::{Conn, ConnError, PIECES_MAX},
    deframe::Event,
};

/// A read below this says: no bulk, a small buffer will do.
const BULK_ABOVE: usize = 4 * 1024;
/// Full reads in a row before other tasks get their turn although nobody waited.
const TURNS_MAX: u32 = 4;

pub(super) async fn pump(
    source: End<'_>,
    sink: End<'_>,
    source_side: Side,
    sink_side: Side,
    moved: &Cell<u64>,
    gate: &Gate,
) -> Result<(), Ended> {
    let from_source = |why| Ended { by: source_side, why };
    let from_sink = |e: io::Error| Ended { by: sink_side, why: ConnError::from(e).why() };
    let (mut bulk, mut turns) = (false, 0);
    loop {
        let room = gate.room().await;
        let mut buf = Buffer::take(bulk).await;
        let room = room.min(buf.len());
        let n = match source.wire().try_read(&mut buf[..room]) {
            Ok(0) => match source {
                End::Bare(_) => {
                    gate.passed(&[]);
                    return finish(sink, moved.get()).await.map_err(from_sink);
                }
                End::Framed(..) => return Err(from_source(Why::Truncated)),
            },
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                drop(buf);
                bulk = false;
                source.wire().readable().await.map_err(|e| from_source(ConnError::from(e).why()))?;
                continue;
            }
            Err(e) => return Err(from_source(ConnError::from(e).why())),
        };
        let full = source.wire().more_to_come();
        gate.passed(&buf[..n]);
        match source {
            End::Bare(_) => {
                write(sink, &mut buf, std::slice::from_ref(&(0..n))).await.map_err(from_sink)?;
                moved.set(moved.get() + n as u64);
            }
            End::Framed(conn, session) => match forward_frames(conn, sink, &mut buf[..n], moved).await {
                Ok(None) => {}
                Ok(Some(Message::Fin { session: ended, bytes }))
                    if ended == session && bytes == moved.get() =>
                {
                    return finish(sink, bytes).await.map_err(from_sink);
                }
                Ok(Some(_)) => {
                    let error =
                        ConnError::Unexpected("a message in a session that is no Fin with the right count");
                    conn.tell(&error);
                    return Err(from_source(error.why()));
                }
                Err(Broken::Source(e)) => {
                    conn.tell(&e);
                    return Err(from_source(e.why()));
                }
                Err(Broken::Sink(e)) => return Err(from_sink(e)),
            },
        }
        drop(buf);
        bulk = n >= BULK_ABOVE;
        if full {
            // More may be there already, decrypted even, so there is no event to wait for.
            turns += 1;
            if turns % TURNS_MAX == 0 {
                // A turn of the ring, not of the task queue: while tasks are ready, completions
                // of others may wait (IORING_SETUP_DEFER_TASKRUN).
                sink.wire().writable().await.map_err(from_sink)?;
            }
        } else {
            source.wire().readable().await.map_err(|e| from_source(ConnError::from(e).why()))?;
        }
    }
}

enum Broken {
    Source(ConnError),
    Sink(io::Error),
}

/// Hands the payload in `buf` on; returns the message that ended it, if one came.
async fn forward_frames(
    conn: &Conn,
    sink: End<'_>,
    buf: &mut [u8],
    moved: &Cell<u64>,
) -> Result<Option<Message>, Broken> {
    let mut at = 0;
    loop {
        let mut pieces: [Range<usize>; PIECES_MAX] = [const { 0..0 }; PIECES_MAX];
        let mut count = 0;
        let text = loop {
            if count == PIECES_MAX {
                break None;
            }
            match conn.next_event(buf, &mut at).map_err(Broken::Source)? {
                Some(Event::Data(range)) => {
                    pieces[count] = range;
                    count += 1;
                }
                Some(Event::Text(text)) => break Some(text),
                Some(_) => {}
                None => break None,
            }
        };
        if count > 0 {
            let pieces = &pieces[..count];
            write(sink, buf, pieces).await.map_err(Broken::Sink)?;
            moved.set(moved.get() + pieces.iter().map(|p| p.len() as u64).sum::<u64>());
        }
        if let Some(text) = text {
            conn.wire().unread(&buf[at..]);
            return message_in_session(&text).map(Some).map_err(Broken::Source);
        }
        if at == buf.len() && count < PIECES_MAX {
            return Ok(None);
        }
    }
}

/// Fin is the only message within a session, whoever says it.
fn message_in_session(text: &[u8]) -> Result<Message, ConnError> {
    Ok(Message::decode(text, Speaker::Client, Channel::Stream)?)
}

async fn write(sink: End<'_>, buf: &mut [u8], pieces: &[Range<usize>]) -> io::Result<()> {
    match sink {
        End::Framed(conn, _) => conn.send_data(buf, pieces).await,
        End::Bare(wire) => {
            let mut slices = [io::IoSlice::new(&[]); PIECES_MAX];
            for (slice, piece) in slices.iter_mut().zip(pieces) {
                *slice = io::IoSlice::new(&buf[piece.clone()]);
            }
            wire.write_pieces(&mut slices[..pieces.len()]).await
        }
    }
}

async fn finish(sink: End<'_>, bytes: u64) -> io::Result<()> {
    match sink {
        End::Bare(wire) => wire.finish_write().await,
        End::Framed(conn, session) => conn.send(&Message::Fin { session, bytes }).await,
    }
}
