//! Role: sessions, one after the other on each of some connections: open, one byte, its echo, end.
//! Invariants: through a gateway the streams and lanes stand (that is what they are for); through any other
//! forwarder each session is a new TCP connection on both sides.

use std::{convert::Infallible, rc::Rc, sync::Arc, time::Instant};

use anyhow::{Result, bail, ensure};
use narrowlink_dataplane::{run::worker::spawn, transport::wire::Wire};
use narrowlink_proto::{
    id::SessionId,
    message::{Channel, Message},
    upgrade::Framing,
};

use super::keep_going;
use crate::load::{
    gauge::Gauge,
    peer::{Forwarder, Frames, Got, Tunnel, bare},
    word::fail,
};

/// Streams and lanes that stand.
pub(super) struct Warm {
    tunnel: Rc<Tunnel>,
    streams: Vec<Frames>,
    lanes: Vec<Frames>,
}

pub(super) async fn warm(tunnel: Tunnel, count: usize) -> Result<Warm> {
    ensure!(tunnel.framing() == Framing::Framed, "only framed connections serve one session after the other");
    let mut warm = Warm { tunnel: Rc::new(tunnel), streams: Vec::new(), lanes: Vec::new() };
    for _ in 0..count {
        let lane = bare(warm.tunnel.lane().await?)?;
        warm.lanes.push(Frames::new(lane, Channel::Lane));
        let stream = bare(warm.tunnel.stream(false).await?)?;
        warm.streams.push(Frames::new(stream, Channel::Stream));
    }
    Ok(warm)
}

impl Warm {
    pub(super) fn flow(self, gauge: &Arc<Gauge>) {
        for lane in self.lanes {
            keep_going("a lane", serve_all(lane));
        }
        for stream in self.streams {
            keep_going("a stream", ask_all(self.tunnel.clone(), stream, gauge.clone()));
        }
    }
}

async fn serve_all(mut lane: Frames) -> Result<Infallible> {
    loop {
        serve(&mut lane).await?;
    }
}

async fn ask_all(tunnel: Rc<Tunnel>, mut stream: Frames, gauge: Arc<Gauge>) -> Result<Infallible> {
    loop {
        let began = Instant::now();
        session(&tunnel, &mut stream).await?;
        gauge.add_event(u64::try_from(began.elapsed().as_nanos())?);
    }
}

/// A client's side of one session.
async fn session(tunnel: &Tunnel, stream: &mut Frames) -> Result<()> {
    let open = tunnel.ask()?;
    let session = open.session;
    stream.put(&Message::Open(open));
    stream.flush().await?;
    match stream.next().await? {
        Got::Message(Message::Opened { session: opened, .. }) if opened == session => {}
        other => bail!("{other:?} where Opened was due"),
    }
    stream.put_data(b"x");
    stream.flush().await?;
    let Got::Data(1) = stream.next().await? else { bail!("no echo") };
    stream.put(&Message::Fin { session, bytes: 1 });
    stream.flush().await?;
    fin(stream, session).await?;
    match stream.next().await? {
        Got::Message(Message::Ready { session: ended }) if ended == session => Ok(()),
        other => bail!("{other:?} where Ready was due"),
    }
}

/// An agent's side of one session.
async fn serve(lane: &mut Frames) -> Result<()> {
    let Got::Message(Message::Dial(dial)) = lane.next().await? else { bail!("no Dial where one was due") };
    let session = dial.session;
    lane.put(&Message::Dialled { session, e2ee: None });
    lane.flush().await?;
    let Got::Data(1) = lane.next().await? else { bail!("no byte to echo") };
    lane.put_data(b"x");
    lane.flush().await?;
    fin(lane, session).await?;
    lane.put(&Message::Fin { session, bytes: 1 });
    lane.put(&Message::Ready { session });
    Ok(lane.flush().await?)
}

async fn fin(frames: &mut Frames, session: SessionId) -> Result<()> {
    match frames.next().await? {
        Got::Message(Message::Fin { session: ended, bytes: 1 }) if ended == session => Ok(()),
        other => bail!("{other:?} where Fin was due"),
    }
}

/// Through a forwarder: so many at a time.
pub(super) fn through(forwarder: &Rc<Forwarder>, count: usize, gauge: &Arc<Gauge>) {
    for _ in 0..count {
        keep_going("a session", connect_all(forwarder.clone(), gauge.clone()));
    }
    keep_going("the target", accept_all(forwarder.clone()));
}

async fn connect_all(forwarder: Rc<Forwarder>, gauge: Arc<Gauge>) -> Result<Infallible> {
    loop {
        let began = Instant::now();
        let wire = forwarder.near().await?;
        wire.write_all(b"x").await?;
        ensure!(wire.read(&mut [0]).await? == 1, "the forwarder ended it before the echo");
        ensure!(wire.read(&mut [0]).await? == 0, "more bytes than were sent");
        wire.finish_write().await?;
        wire.close_gently();
        gauge.add_event(u64::try_from(began.elapsed().as_nanos())?);
    }
}

async fn accept_all(forwarder: Rc<Forwarder>) -> Result<Infallible> {
    loop {
        let wire = forwarder.far().await?;
        spawn(async move {
            if let Err(e) = echo(&wire).await {
                fail(&e.context("a target's connection"));
            }
            wire.close_gently();
        });
    }
}

/// The target's side of one session. It ends first, as a web server does: a port stays taken for a while at
/// whoever ends first, and the forwarder's own, of which it needs a new one each time, would soon run out.
async fn echo(wire: &Wire) -> Result<()> {
    let mut byte = [0];
    ensure!(wire.read(&mut byte).await? == 1, "a session without its byte");
    wire.write_all(&byte).await?;
    wire.finish_write().await?;
    ensure!(wire.read(&mut byte).await? == 0, "more bytes than were sent");
    Ok(())
}
