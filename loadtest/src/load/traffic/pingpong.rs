//! Role: one message in flight on each connection, echoed at the other end.
//! Invariants: a message counts when all of its bytes are back.

use std::{convert::Infallible, io, sync::Arc, time::Instant};

use anyhow::{Result, bail};
use narrowlink_dataplane::transport::wire::Wire;

use super::keep_going;
use crate::load::{
    gauge::Gauge,
    peer::{End, Ends, Frames, Got},
};

/// An end that messages are exchanged on.
enum Talker {
    Bare(Wire, Vec<u8>),
    Framed(Box<Frames>),
}

impl Talker {
    fn new(End { wire, framed, channel }: End, bytes: usize) -> Self {
        if framed {
            Self::Framed(Box::new(Frames::new(wire, channel)))
        } else {
            Self::Bare(wire, vec![0; bytes.max(1)])
        }
    }

    async fn send(&mut self, payload: &[u8]) -> io::Result<()> {
        match self {
            Self::Bare(wire, _) => wire.write_all(payload).await,
            Self::Framed(frames) => {
                frames.put_data(payload);
                frames.flush().await
            }
        }
    }

    /// Takes some payload; says how much.
    async fn take(&mut self) -> Result<usize> {
        match self {
            Self::Bare(wire, buf) => match wire.read(buf).await? {
                0 => bail!("the other side has ended it"),
                n => Ok(n),
            },
            Self::Framed(frames) => match frames.next().await? {
                Got::Data(bytes) => Ok(bytes),
                Got::Message(message) => bail!("the gateway said {}", message.name()),
            },
        }
    }

    /// One round: there and back.
    async fn call(&mut self, payload: &[u8]) -> Result<()> {
        self.send(payload).await?;
        let mut back = 0;
        while back < payload.len() {
            back += self.take().await?;
        }
        Ok(())
    }

    /// One piece of a message, back as it came.
    async fn echo(&mut self, payload: &[u8]) -> Result<()> {
        let n = self.take().await?;
        Ok(self.send(&payload[..n]).await?)
    }
}

pub(super) fn flow(from: Vec<End>, to: Vec<End>, bytes: usize, gauge: &Arc<Gauge>) {
    let payload: Arc<[u8]> = vec![0x5a; bytes.max(1)].into();
    for end in to {
        keep_going("a connection that echoes", echoes(Talker::new(end, bytes), payload.clone()));
    }
    for end in from {
        let caller = Talker::new(end, bytes);
        keep_going("a connection that calls", calls(caller, payload.clone(), gauge.clone()));
    }
}

async fn echoes(mut talker: Talker, payload: Arc<[u8]>) -> Result<Infallible> {
    loop {
        talker.echo(&payload).await?;
    }
}

async fn calls(mut talker: Talker, payload: Arc<[u8]>, gauge: Arc<Gauge>) -> Result<Infallible> {
    loop {
        let began = Instant::now();
        talker.call(&payload).await?;
        gauge.add_event(u64::try_from(began.elapsed().as_nanos())?);
        gauge.add_bytes(payload.len());
    }
}

/// One byte and its echo on each connection; then they are handed back, and stand.
pub(super) async fn once(ends: Ends) -> Result<impl Sized> {
    let Ends { near, far } = ends;
    let mut far: Vec<_> = far.into_iter().map(|end| Talker::new(end, 1)).collect();
    let mut near: Vec<_> = near.into_iter().map(|end| Talker::new(end, 1)).collect();
    for talker in &mut near {
        talker.send(b"x").await?;
    }
    for talker in &mut far {
        talker.echo(b"x").await?;
    }
    for talker in &mut near {
        talker.take().await?;
    }
    Ok((near, far))
}
