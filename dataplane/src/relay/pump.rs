//! Role: one direction of a session: what carries its bytes, and when.
//! Invariants: what was read is with the kernel before more is read, so a stalled sink stops its source
//! and nothing grows · the wait for more holds neither buffer nor pipe · payload is never copied between
//! the read and the write, and bulk between two plain sockets is never in this process at all · bulk
//! moves in turns · what was read in front of a fault has gone on before the fault counts · after a fault
//! of the session, only an end that was surely said before it is passed on.
//! See: ARCHITECTURE.md "Relay".

use std::{cell::Cell, io, time::Duration};

use narrowlink_proto::ended::{Ended, Side, Why};

use super::{
    batch::Batching,
    chunk::{Chunk, Found},
    gate::Gate,
    meter::{Meter, Room},
};
use crate::{
    run::{
        budget::CALL,
        timer::{sleep, timeout},
    },
    transport::{
        pipe::{Pipe, SMALL_BYTES},
        wire::{Spliced, Wire},
    },
    tunnel::{conn::ConnError, end::End},
};

/// A read below this is little.
const LITTLE_BELOW: usize = 4 * 1024;
/// So often little in a row says: no bulk any more. Once is what was left of the bulk's last.
const LITTLE_TIMES: u32 = 4;
/// How long a broken session's side is waited for that may have said more: all that its kernel has is there
/// at once.
const LAST_WAIT: Duration = Duration::from_millis(500);

/// What the two directions of a session know of each other.
#[derive(Default)]
pub(super) struct Joint {
    /// The first fault: the session will be reset.
    fault: Cell<Option<Ended>>,
    /// The side that broke had ended its direction before.
    ended_before: Cell<bool>,
}

impl Joint {
    pub(super) fn fault(&self) -> Option<Ended> {
        self.fault.get()
    }

    /// The session is broken, if it was not yet.
    pub(super) fn break_off(&self, ended: Ended) -> Ended {
        self.fault.set(self.fault.get().or(Some(ended)));
        ended
    }
}

/// One direction.
pub(super) struct Pump<'a> {
    pub(super) source: &'a End<'a>,
    pub(super) sink: &'a End<'a>,
    pub(super) source_side: Side,
    pub(super) moved: &'a Cell<u64>,
    pub(super) gate: &'a Gate,
    /// Where its bytes are counted and limited, if they are.
    pub(super) meter: Option<&'a dyn Meter>,
    pub(super) joint: &'a Joint,
    /// Nothing is in hand: what runs may be dropped, and run anew.
    pub(super) at_rest: Cell<bool>,
}

/// What came of an attempt to move something.
enum Step {
    /// Nothing was there.
    Nothing,
    /// So much went on; more may be there already, decrypted even, so that no event would tell.
    Moved { bytes: usize, more: bool },
    /// The source has ended its direction.
    Ended,
    /// It is a buffer's turn.
    Buffer,
}

/// Whether the kernel is asked to move bulk by itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Splice {
    NotYet,
    Yes,
    Never,
}

impl Pump<'_> {
    /// Moves bytes until the source ends its direction.
    pub(super) async fn run(&self) -> Result<(), Ended> {
        let (mut bulk, mut little, mut waited, mut splice) = (false, 0, true, Splice::NotYet);
        let batching = Batching::new(self.source.wire());
        loop {
            let mut room = self.gate.room().await;
            if let Some(meter) = self.meter {
                room = room.min(match meter.room() {
                    Room::Now(bytes) => bytes,
                    _ => Box::pin(self.wait_for(meter)).await?,
                });
            }
            if bulk {
                self.source.wire().account().turn().await;
            }
            self.at_rest.set(false);
            let mut step = Step::Buffer;
            if bulk && splice == Splice::Yes && room >= SMALL_BYTES && self.is_spliceable() {
                step = self.through_pipe(&mut splice, waited, room).await?;
            }
            if let Step::Buffer = step {
                step = self.through_buffer(bulk, room).await?;
            }
            self.at_rest.set(true);
            let more = match step {
                Step::Moved { bytes, more } => {
                    little = if bytes < LITTLE_BELOW { little + 1 } else { 0 };
                    if bulk {
                        batching.flowed();
                    }
                    if little >= LITTLE_TIMES {
                        bulk = false;
                        batching.ended();
                    } else if more {
                        // It came full: there may be a lot of it.
                        bulk = true;
                        if splice == Splice::NotYet && self.gate.is_open() {
                            splice = self.offer_to_kernel();
                        }
                    }
                    more
                }
                Step::Nothing => {
                    if waited {
                        batching.paused();
                    }
                    false
                }
                Step::Buffer => true,
                Step::Ended => return self.finish().await,
            };
            waited = !more;
            if waited && bulk {
                // Its next read takes a turn in any case: only for what comes is it to wait here.
                self.source.wire().account().fill();
            }
            if waited && let Some(fault) = self.joint.fault() {
                self.source_says_more().await.ok_or(fault)?;
            } else if waited {
                batching.readable().await.map_err(|e| self.source_broke(&e.into()))?;
            }
        }
    }

    /// Waits for what a source may still say whose session is broken; `None` when nothing comes.
    async fn source_says_more(&self) -> Option<()> {
        Box::pin(timeout(LAST_WAIT, self.source.wire().readable())).await.ok()?.ok()
    }

    /// Waits until there is room again; says how much.
    async fn wait_for(&self, meter: &dyn Meter) -> Result<usize, Ended> {
        loop {
            match meter.room() {
                Room::Now(bytes) => return Ok(bytes),
                Room::Later(wait) => sleep(wait).await,
                Room::UsedUp => return Err(Ended { by: Side::Here, why: Why::UsedUp }),
            }
        }
    }

    fn offer_to_kernel(&self) -> Splice {
        match (self.source.bare(), self.sink.bare()) {
            (Some(source), Some(sink)) if source.offer_to_kernel() && sink.offer_to_kernel() => Splice::Yes,
            _ => Splice::Never,
        }
    }

    fn is_spliceable(&self) -> bool {
        self.source.wire().is_spliceable() && self.sink.wire().is_spliceable()
    }

    async fn through_pipe(&self, splice: &mut Splice, waited: bool, room: usize) -> Result<Step, Ended> {
        let Some(mut pipe) = Pipe::take() else { return Ok(Step::Buffer) };
        let Spliced { bytes, more } = match self.source.wire().splice_out(&mut pipe, room) {
            Ok(Some(spliced)) => spliced,
            // An end, or a word of TLS's.
            Ok(None) => return Ok(Step::Buffer),
            // Nothing is there; or, where the kernel has just said that something is, an urgent byte, which stops
            // splice(2) for ever and no read.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                return Ok(if waited { Step::Buffer } else { Step::Nothing });
            }
            Err(e) if cannot_splice(&e) => {
                *splice = Splice::Never;
                return Ok(Step::Buffer);
            }
            Err(e) => return Err(self.source_broke(&e.into())),
        };
        while !self.sink.wire().splice_in(&mut pipe).map_err(|e| self.splice_broke(e))? {
            self.sink_takes_more().await?;
        }
        self.add_moved(bytes);
        Ok(Step::Moved { bytes, more })
    }

    async fn through_buffer(&self, bulk: bool, room: usize) -> Result<Step, Ended> {
        let mut chunk = Chunk::take(bulk).await;
        let wire = self.source.wire();
        let bytes = match chunk.fill(wire, room) {
            Ok(0) => return self.source_ended(),
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Step::Nothing),
            Err(e) => return Err(self.source_broke(&e.into())),
        };
        let more = wire.more_to_come();
        self.gate.passed(chunk.read());
        self.source.on_heard();
        loop {
            let found = chunk.sort(self.source, self.sink);
            while !chunk.push(self.sink).map_err(|e| self.sink_broke(e))? {
                self.sink_takes_more().await?;
            }
            self.add_moved(chunk.payload_bytes());
            wire.account().spend(CALL);
            match found {
                Found::End => return Ok(Step::Moved { bytes, more }),
                // Many short frames: each list of them has cost a call.
                Found::More => wire.account().breathe().await,
                Found::Fin { bytes } => return self.source_finished(bytes),
                Found::Fault(e) => return Err(self.blame(&e)),
            }
        }
    }

    async fn sink_takes_more(&self) -> Result<(), Ended> {
        self.sink.wire().writable().await.map_err(|e| self.sink_broke(e))
    }

    fn source_ended(&self) -> Result<Step, Ended> {
        if self.source.ends_with_transport() && self.is_end(self.source.wire()) {
            self.gate.passed(&[]);
            return Ok(Step::Ended);
        }
        Err(self.joint.break_off(Ended { by: self.source_side, why: self.source.reset() }))
    }

    /// Whether what reads as an end is one. A reset is told once: where a write heard of it, a read says 0.
    fn is_end(&self, source: &Wire) -> bool {
        self.joint.fault().is_none() || source.is_tls() || self.joint.ended_before.get()
    }

    /// The source says that its direction has ended, after so many bytes.
    fn source_finished(&self, bytes: u64) -> Result<Step, Ended> {
        if bytes == self.moved.get() {
            return Ok(Step::Ended);
        }
        Err(self.blame(&ConnError::Unexpected("a Fin that does not count what came before it")))
    }

    /// The source's fault: it is told, and the session ends.
    fn blame(&self, error: &ConnError) -> Ended {
        self.source.tell(error);
        self.source_broke(error)
    }

    fn source_broke(&self, error: &ConnError) -> Ended {
        self.joint.break_off(Ended { by: self.source_side, why: self.source.broke(error) })
    }

    fn sink_broke(&self, error: io::Error) -> Ended {
        if self.joint.fault().is_none() && error.kind() == io::ErrorKind::BrokenPipe {
            // The kernel's word for a reset of what had ended before, and for a peer that hears nothing.
            self.joint.ended_before.set(true);
        }
        self.splice_broke(error)
    }

    /// As [`sink_broke`](Self::sink_broke), without trust in the kernel's word: a splice of several pieces drops the
    /// error of a later one, and the next call says EPIPE for what was a reset.
    fn splice_broke(&self, error: io::Error) -> Ended {
        let by = if self.source_side == Side::Client { Side::Target } else { Side::Client };
        self.joint.break_off(Ended { by, why: self.sink.broke(&error.into()) })
    }

    fn add_moved(&self, bytes: usize) {
        self.moved.set(self.moved.get() + bytes as u64);
        if let Some(meter) = self.meter {
            meter.spend(bytes);
        }
    }

    async fn finish(&self) -> Result<(), Ended> {
        self.sink.finish_write(self.moved.get()).await.map_err(|e| self.sink_broke(e))
    }
}

/// The kernel, or whatever filters our calls, does not splice these sockets; copying works as ever.
fn cannot_splice(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(error.kind(), Kind::InvalidInput | Kind::Unsupported | Kind::PermissionDenied)
}

#[cfg(test)]
mod tests;
