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
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use futures_lite::future;
use narrowlink_proto::ended::{Ended, Side};

use self::pump::{Joint, Pump};
pub use self::{
    gate::Gate,
    meter::{Meter, Room},
};
use crate::{
    run::timer::sleep,
    tunnel::{
        conn::{Ahead, ConnError},
        end::End,
        linger::{PATIENCE, Stall},
        watch::{WATCH_EVERY, look_at},
    },
};

/// Listens to a side that has finished; boxed, so that a session holds it only then.
type Attending<'a> = Pin<Box<dyn Future<Output = Result<(), Ended>> + 'a>>;

/// How often it is looked whether the rest of a broken session moves on.
const LOOK_EVERY: Duration = Duration::from_secs(1);

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
    if !pump.gate.has_room() {
        // Nothing may be read yet, but what is not payload can be heard.
        Box::pin(hear_until_open(pump.source, pump.gate)).await?;
    }
    let ended = pump.run().await;
    if ended.is_err_and(|ended| ended.by == Side::Target) {
        // The answer may lie in front of the break, and then it is the better word.
        pump.gate.wait_open().await;
    }
    ended
}

async fn hear_until_open(source: &End<'_>, gate: &Gate) -> Result<(), Ended> {
    let left = async {
        match source.attend().await {
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
    match end.attend().await {
        // The word after the session: for whoever reads the connection next.
        Ok(Ahead::Message) => future::pending().await,
        Ok(Ahead::Data) => {
            let error = ConnError::Unexpected("data behind the end of its direction");
            end.tell(&error);
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

#[cfg(test)]
mod tests;
