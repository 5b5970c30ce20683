//! Role: joins the two ends of a session until both directions have ended, or one breaks.
//! Invariants: knows no token, name or policy · half-close goes through in each direction by
//! itself · a direction ends cleanly only when its source said so in the way its framing has
//! (FIN, close_notify, a `Fin` message with the right count); anything else is a reset of both
//! ends · what a side said before it broke goes on first · before the answer nothing goes down, and no more up than the gate lets pass · no buffer is
//! held while nothing flows · dropping the relay loses no byte that counts.
//! See: ARCHITECTURE.md "Life of a byte".

mod batch;
mod chunk;
mod gate;
mod meter;
mod pump;

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    io::ErrorKind,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use futures_lite::future;
use monoio::time::Instant;
use narrowlink_proto::{
    ended::{Ended, Side, Why},
    id::SessionId,
    limits::QUIET_PING_INTERVAL,
    message::{Channel, Message, Speaker},
    upgrade::Framing,
};

use self::pump::{Joint, Pump};
pub use self::{
    gate::Gate,
    meter::{Meter, Room},
};
use crate::{
    run::timer::sleep,
    transport::wire::Wire,
    tunnel::{
        conn::{Ahead, Conn, ConnError, Role},
        linger::{PATIENCE, Stall},
    },
};

/// Listens to a side that has finished; boxed, so that a session holds it only then.
type Attending<'a> = Pin<Box<dyn Future<Output = Result<(), Ended>> + 'a>>;

/// A framed connection silent for so long is pinged: CDNs cut at 60 s.
const PING_AFTER: Duration = QUIET_PING_INTERVAL;
/// How often a session looks whether its peers are still there.
const WATCH_EVERY: Duration = Duration::from_secs(5);
/// A peer that owes an answer for so long is gone.
const VANISHED_AFTER: Duration = Duration::from_secs(8);
/// How often it is looked whether the rest of a broken session moves on.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A peer that has nothing to read but a ping, and does not answer it for so long, hangs.
const HUNG_AFTER: Duration = Duration::from_secs(10);
/// The same for a client at its gateway: a person may have stopped it for a while (Ctrl-Z).
const CLIENT_HUNG_AFTER: Duration = Duration::from_secs(300);

/// One end of a session.
#[derive(Clone, Copy)]
pub enum End<'a> {
    /// Plain bytes: a target, a local program, or a raw tunnel stream.
    Bare(&'a Wire),
    /// Bytes in WebSocket frames.
    Framed(&'a Conn, SessionId),
}

impl<'a> End<'a> {
    /// A tunnel connection, for this session.
    pub fn of(conn: &'a Conn, session: SessionId) -> Self {
        match conn.framing() {
            Framing::Raw => Self::Bare(conn.wire()),
            Framing::Framed => Self::Framed(conn, session),
        }
    }

    fn wire(&self) -> &'a Wire {
        match self {
            End::Bare(wire) => wire,
            End::Framed(conn, _) => conn.wire(),
        }
    }

    /// How a session ends when this end is reset: only plain bytes are a program's own.
    fn reset(&self) -> Why {
        match self {
            End::Bare(_) => Why::Reset,
            End::Framed(..) => Why::Cut,
        }
    }

    /// How a session ends when this end breaks so.
    fn broke(&self, error: &ConnError) -> Why {
        match (self, error) {
            (End::Bare(_), ConnError::Io(e)) if e.kind() == ErrorKind::UnexpectedEof => Why::Truncated,
            _ => match error.why() {
                Why::Cut => self.reset(),
                why => why,
            },
        }
    }
}

/// What a session moved, readable while it runs.
#[derive(Default)]
pub struct Traffic {
    /// Bytes from the client's side to the target's.
    pub up_bytes: Cell<u64>,
    /// Bytes from the target's side to the client's.
    pub down_bytes: Cell<u64>,
    /// Where they count against a limit.
    pub meter: Option<Arc<dyn Meter>>,
}

/// Moves bytes between the two ends until both directions have ended.
///
/// # Errors
/// Who broke it, and how: then neither connection can be used again, and both are to be reset (see
/// [`crate::tunnel::linger`]: what they were sent before still has to arrive).
pub async fn relay(client: End<'_>, target: End<'_>, traffic: &Traffic) -> Result<(), Ended> {
    relay_behind(client, target, traffic, &Gate::opened(), async { Ok(()) }).await
}

/// As [`relay`], for a session that still waits for its `answer`: the way up begins at once, through
/// `gate`, which `answer` opens; the way down begins behind `answer`.
///
/// # Errors
/// As [`relay`], or the answer's.
pub async fn relay_behind<E: From<Ended>>(
    client: End<'_>,
    target: End<'_>,
    traffic: &Traffic,
    gate: &Gate,
    answer: impl Future<Output = Result<(), E>>,
) -> Result<(), E> {
    // What a session holds while it stands is counted in bytes: everything below borrows.
    let (client, target, joint, opened) = (&client, &target, Joint::default(), Gate::opened());
    let pump = |source, sink, source_side, moved, gate| {
        let (meter, at_rest) = (traffic.meter.as_deref(), Cell::new(true));
        Pump { source, sink, source_side, moved, gate, meter, joint: &joint, at_rest }
    };
    let up = pump(client, target, Side::Client, &traffic.up_bytes, gate);
    let down = pump(target, client, Side::Target, &traffic.down_bytes, &opened);
    // Each is there until it is over: one that nobody asks any more must not keep its place in a queue.
    let mut moving_up = pin!(Some(move_up(&up)));
    let mut moving_down = pin!(Some(async {
        // An answer that is half said must not be dropped.
        down.at_rest.set(false);
        answer.await?;
        down.at_rest.set(true);
        Ok::<(), E>(down.run().await?)
    }));
    let mut watching = pin!(watch(&up, &down));
    let mut attending: Option<Attending<'_>> = None;
    let broken = loop {
        let (over, ended) = poll_fn(|cx| {
            if let Some(up) = moving_up.as_mut().as_pin_mut()
                && let Poll::Ready(ended) = up.poll(cx)
            {
                moving_up.set(None);
                return Poll::Ready((Side::Client, ended.map_err(E::from)));
            }
            if let Some(down) = moving_down.as_mut().as_pin_mut()
                && let Poll::Ready(ended) = down.poll(cx)
            {
                moving_down.set(None);
                return Poll::Ready((Side::Target, ended));
            }
            if let Some(gone) = &mut attending
                && let Poll::Ready(ended) = gone.as_mut().poll(cx)
            {
                return Poll::Ready((Side::Here, ended.map_err(E::from)));
            }
            watching.as_mut().poll(cx).map(|ended| (Side::Here, Err(joint.break_off(ended).into())))
        })
        .await;
        match ended {
            Ok(()) if attending.is_some() => return Ok(()),
            // Whoever has finished may still vanish, or want its pings answered.
            Ok(()) => {
                let end = if over == Side::Client { client } else { target };
                attending = Some(Box::pin(attend(end, over)));
            }
            Err(broken) => break broken,
        }
    };
    // It may have a place in the queue of turns, which nobody would give up for it from here on.
    drop(attending);
    // What the broken side said before is still to be passed on, if that is not just what has ended.
    match joint.fault() {
        Some(Ended { by: Side::Client, .. }) if gate.is_open() => {
            moving_down.set(None);
            Box::pin(hear_out(moving_up, &up)).await;
        }
        Some(Ended { by: Side::Target, .. }) if gate.is_open() => {
            moving_up.set(None);
            Box::pin(hear_out(moving_down, &down)).await;
        }
        _ => {}
    }
    Err(broken)
}

/// Lets one direction of a broken session come to its end, if it has not: until its source has nothing more, or
/// nothing moves any more.
async fn hear_out(mut moving: Pin<&mut Option<impl Future>>, pump: &Pump<'_>) {
    if moving.is_none() {
        return;
    }
    let rest = async {
        if pump.at_rest.get() {
            // It may wait for ever; another one begins by reading.
            moving.set(None);
            let _ = pump.run().await;
        } else if let Some(moving) = moving.as_pin_mut() {
            moving.await;
        }
    };
    let stalled = async {
        let mut stall = Stall::new(PATIENCE);
        loop {
            let waiting = pump.sink.wire().undelivered().unwrap_or_default() as u64;
            if stall.goes_on(pump.moved.get().wrapping_add(waiting << 32)) {
                return;
            }
            sleep(LOOK_EVERY).await;
        }
    };
    future::or(rest, stalled).await;
}

async fn move_up(pump: &Pump<'_>) -> Result<(), Ended> {
    if let (End::Framed(conn, _), false) = (pump.source, pump.gate.has_room()) {
        // Nothing may be read yet, but what is not payload can be heard.
        Box::pin(hear_until_open(conn, pump.gate)).await?;
    }
    let ended = pump.run().await;
    if ended.is_err_and(|ended| ended.by == Side::Target) {
        // The answer may lie in front of the break, and then it is the better word.
        pump.gate.wait_open().await;
    }
    ended
}

async fn hear_until_open(conn: &Conn, gate: &Gate) -> Result<(), Ended> {
    let left = async {
        match conn.attend().await {
            Ok(_) => future::pending().await,
            Err(e) => Err(Ended { by: Side::Client, why: e.why() }),
        }
    };
    let opened = async {
        gate.wait_open().await;
        Ok(())
    };
    future::or(opened, left).await
}

/// Listens to an end whose direction has finished; returns only when it breaks.
async fn attend(end: &End<'_>, by: Side) -> Result<(), Ended> {
    let End::Framed(conn, _) = end else { return future::pending().await };
    match conn.attend().await {
        // The word after the session: for whoever reads the connection next.
        Ok(Ahead::Message) => future::pending().await,
        Ok(Ahead::Data) => {
            let error = ConnError::Unexpected("data behind the end of its direction");
            conn.tell(&error);
            Err(Ended { by, why: error.why() })
        }
        Err(e) => Err(Ended { by, why: e.why() }),
    }
}

/// Returns when a peer is gone: never, while both are there.
async fn watch(up: &Pump<'_>, down: &Pump<'_>) -> Ended {
    loop {
        sleep(WATCH_EVERY).await;
        for pump in [up, down] {
            // What is in hand goes on first: a direction that is not at rest finds the reset by itself.
            let reset_counts = pump.at_rest.get();
            if let Err(ended) = look_at(pump.source, pump.source_side, reset_counts) {
                return ended;
            }
        }
    }
}

/// Returns when the peer of a connection is gone, as far as that shows without reading.
pub async fn gone(conn: &Conn, by: Side) -> Ended {
    loop {
        sleep(WATCH_EVERY).await;
        if let Err(ended) = stands(conn.wire(), by, Some(Why::Cut)) {
            return ended;
        }
    }
}

/// Whether the peer of a connection is still there, as its kernel says; what a `reset` is, where one counts.
fn stands(wire: &Wire, by: Side, reset: Option<Why>) -> Result<(), Ended> {
    if wire.peer_vanished(VANISHED_AFTER) {
        return Err(Ended { by, why: Why::Vanished });
    }
    // A reset that follows a FIN is no event for a direction that is not read any more.
    match reset {
        Some(why) if wire.is_reset() => Err(Ended { by, why }),
        _ => Ok(()),
    }
}

/// Whether the peer of one end is still there; pings it when it has been silent.
fn look_at(end: &End<'_>, by: Side, reset_counts: bool) -> Result<(), Ended> {
    stands(end.wire(), by, reset_counts.then(|| end.reset()))?;
    let End::Framed(conn, _) = end else { return Ok(()) };
    let a_person_s = by == Side::Client && conn.role() == Role::Gateway;
    let hung_after = if a_person_s { CLIENT_HUNG_AFTER } else { HUNG_AFTER };
    // What this side has not read may be the answer: its own sink may have paused.
    if conn.is_hung(hung_after) && !conn.wire().has_unread() {
        return Err(Ended { by, why: Why::Vanished });
    }
    let now = Instant::now();
    let silent = now.saturating_duration_since(conn.heard_at().max(conn.pinged_at()));
    let ok = if silent >= PING_AFTER { conn.ping() } else { conn.try_flush_control().map_err(Into::into) };
    ok.map_err(|e| Ended { by, why: e.why() })
}

/// Waits for the word that a finished session's connection is ready for its next: `by` has
/// delivered everything then. However slowly that goes, it is waited for while the peer is there.
///
/// # Errors
/// The connection broke, or something else was said: nobody knows whether all was delivered.
pub async fn settled(conn: &Conn, session: SessionId, speaker: Speaker, by: Side) -> Result<(), Ended> {
    let channel = if speaker == Speaker::Agent { Channel::Lane } else { Channel::Stream };
    let word = async {
        match conn.recv(speaker, channel).await {
            Ok(Message::Ready { session: ended }) if ended == session && conn.is_quiet() => Ok(()),
            Ok(_) => Err(Ended { by, why: Why::Protocol }),
            Err(e) => Err(Ended { by, why: e.why() }),
        }
    };
    future::or(word, lost(conn, session, by)).await
}

/// Says this word, behind all that the peer has still to take: however slowly that goes, while the peer is there.
///
/// # Errors
/// The connection broke: nobody knows whether all was delivered.
pub async fn settle(conn: &Conn, session: SessionId, by: Side) -> Result<(), Ended> {
    let word = Message::Ready { session }.encode();
    let said = async {
        let said = conn.send_text(&word).await;
        said.map_err(|e| Ended { by, why: ConnError::from(e).why() })
    };
    future::or(said, lost(conn, session, by)).await
}

/// Returns when the peer of a finished session's connection is gone.
async fn lost(conn: &Conn, session: SessionId, by: Side) -> Result<(), Ended> {
    loop {
        sleep(WATCH_EVERY).await;
        look_at(&End::Framed(conn, session), by, true)?;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{IoSlice, Read as _},
        os::unix::net::UnixStream,
    };

    use super::*;
    use crate::{net::socket::Socket, run::worker::run_alone};

    #[test]
    fn the_last_word_of_a_session_waits_for_a_peer_that_has_paused() {
        run_alone(false, |_| async {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let conn =
                Conn::new(Socket::adopt(ours.into()).unwrap().into(), Framing::Framed, Role::Gateway, 0);
            let (session, mut sent) = (SessionId::from_bytes([7; 32]), 0);
            while let Ok(n) = conn.wire().try_write(&[IoSlice::new(&[0; 512])]) {
                sent += n;
            }
            {
                let mut settling = pin!(settle(&conn, session, Side::Client));
                assert!(future::poll_once(settling.as_mut()).await.is_none(), "there is no room for it");
                theirs.read_exact(&mut vec![0; sent]).unwrap();
                assert_eq!(settling.await, Ok(()));
            }
            drop(conn);
            // A descriptor is closed in a turn of the ring.
            let reading = std::thread::spawn(move || {
                let mut word = Vec::new();
                theirs.read_to_end(&mut word).unwrap();
                word
            });
            while !reading.is_finished() {
                sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(reading.join().unwrap()[2..], Message::Ready { session }.encode());
        })
        .unwrap();
    }

    #[test]
    fn a_session_that_stands_is_small() {
        run_alone(false, |_| async {
            let (ours, _theirs) = UnixStream::pair().unwrap();
            let wire = Wire::from(Socket::adopt(ours.into()).unwrap());
            let (end, traffic, gate) = (End::Bare(&wire), Traffic::default(), Gate::opened());
            let answer = async { Ok::<(), Ended>(()) };
            let bytes = size_of_val(&relay_behind(end, end, &traffic, &gate, answer));
            assert!(bytes <= 1536, "{bytes} bytes");
            assert!(size_of::<Conn>() <= 320, "{} bytes", size_of::<Conn>());
        })
        .unwrap();
    }
}
