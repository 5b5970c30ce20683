//! Role: as much as goes through, one way.
//! Invariants: the load costs as little as can be: one fixed buffer is sent over and over, and plain bytes
//! that arrive are discarded by the kernel and never copied · every connection gets its turn.

use std::{
    cell::RefCell,
    convert::Infallible,
    io::{self, IoSlice},
    rc::Rc,
    sync::Arc,
};

use anyhow::{Result, bail};
use narrowlink_dataplane::transport::wire::Wire;

use super::{SCRATCH_BYTES, Scratch, keep_going};
use crate::load::{
    gauge::Gauge,
    peer::{End, whole_frames},
};

/// Sent at a time.
const CHUNK_BYTES: usize = 256 * 1024;
/// Calls on one connection before the others get their turn.
const CALLS_A_TURN: usize = 4;

pub(super) fn flow(from: Vec<End>, to: Vec<End>, gauge: &Arc<Gauge>) {
    let scratch: Scratch = Rc::new(RefCell::new(vec![0; SCRATCH_BYTES]));
    let mut chunk: Option<Rc<[u8]>> = None;
    for end in to {
        let (gauge, scratch) = (gauge.clone(), scratch.clone());
        keep_going("a connection that takes", async move { drain(&end.wire, &gauge, &scratch).await });
    }
    for End { wire, framed, .. } in from {
        // All connections of a process are alike, so one buffer serves all.
        let chunk = chunk.get_or_insert_with(|| {
            if framed { whole_frames(&wire, CHUNK_BYTES) } else { vec![0x5a; CHUNK_BYTES] }.into()
        });
        let chunk = chunk.clone();
        keep_going("a connection that sends", async move { pour(&wire, &chunk).await });
    }
}

async fn pour(wire: &Wire, chunk: &[u8]) -> Result<Infallible> {
    let mut at = 0;
    loop {
        for _ in 0..CALLS_A_TURN {
            match wire.try_write(&[IoSlice::new(&chunk[at..])]) {
                Ok(n) => at = (at + n) % chunk.len(),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e.into()),
            }
        }
        wire.writable().await?;
    }
}

async fn drain(wire: &Wire, gauge: &Gauge, scratch: &Scratch) -> Result<Infallible> {
    loop {
        for _ in 0..CALLS_A_TURN {
            match wire.try_discard(&mut scratch.borrow_mut()) {
                Ok(0) => bail!("it ended"),
                Ok(n) => gauge.add_bytes(n),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e.into()),
            }
        }
        wire.readable().await?;
    }
}
