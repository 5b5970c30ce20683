//! Role: signs of life on one connection: when its peer was heard and pinged, and frames that show nothing else.
//! Invariants: a peer whose program has paused reads nothing, pings neither, so its silence proves nothing · a peer that
//! has answered a ping behind all that was sent has nothing else to read · frames that bring neither data nor a message
//! are counted by the second, and bounded.
//! See: RFC 6455 §5.5.2.

use std::{cell::Cell, time::Duration};

use rustix::time::{ClockId, clock_gettime};

/// Frames that bring neither data nor a message: pings, pongs, frames without payload. So many may come in a
/// second; those that arrive together after a stall, one every 25 s, fit in.
pub(crate) const IDLE_FRAMES_PER_S_MAX: u32 = 100;

/// What the answer to a ping shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// Payload was sent that no ping has followed.
    NotYet,
    /// A ping follows all payload, and has no answer yet.
    BehindPayload,
    /// All payload has been read: a ping behind it was answered.
    Answered,
    /// A ping that follows nothing has no answer.
    BehindNothing,
}

/// When the peer of a connection gave a sign of life, and what it was asked for.
pub(crate) struct Liveness {
    heard_ms: Cell<u32>,
    pinged_ms: Cell<u32>,
    asked: Cell<Asked>,
}

impl Liveness {
    pub(crate) fn new() -> Self {
        let now_ms = clock_ms();
        Self { heard_ms: Cell::new(now_ms), pinged_ms: Cell::new(now_ms), asked: Cell::new(Asked::Answered) }
    }

    /// How long ago the peer was last heard.
    pub(crate) fn silence(&self) -> Duration {
        since(self.heard_ms.get())
    }

    /// How long ago it was last heard or pinged.
    pub(crate) fn rest(&self) -> Duration {
        self.silence().min(since(self.pinged_ms.get()))
    }

    /// Something was read.
    pub(crate) fn on_heard(&self) {
        self.heard_ms.set(clock_ms());
    }

    /// Payload goes out.
    pub(crate) fn on_payload(&self) {
        self.asked.set(Asked::NotYet);
    }

    /// A ping goes out.
    pub(crate) fn on_ping(&self) {
        self.pinged_ms.set(clock_ms());
        self.asked.set(match self.asked.get() {
            Asked::NotYet | Asked::BehindPayload => Asked::BehindPayload,
            Asked::Answered | Asked::BehindNothing => Asked::BehindNothing,
        });
    }

    /// A pong has come.
    pub(crate) fn on_pong(&self) {
        if self.asked.get() != Asked::NotYet {
            self.asked.set(Asked::Answered);
        }
    }

    /// Whether the peer's program has read nothing for `patience` although it has nothing but a ping to read.
    pub(crate) fn is_hung(&self, patience: Duration) -> bool {
        self.asked.get() == Asked::BehindNothing
            && self.silence() > since(self.pinged_ms.get())
            && since(self.pinged_ms.get()) >= patience
    }
}

/// The peer sends more frames without data than any program needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer floods the connection with frames that bring nothing")]
pub struct Flood;

/// The frames of one peer that bring neither data nor a message, counted by the second.
pub(crate) struct IdleFrames {
    count: Cell<u32>,
    since_ms: Cell<u32>,
}

impl IdleFrames {
    pub(crate) fn new() -> Self {
        Self { count: Cell::new(0), since_ms: Cell::new(clock_ms()) }
    }

    /// Counts one more.
    ///
    /// # Errors
    /// There are more of them than any program needs.
    pub(crate) fn count(&self) -> Result<(), Flood> {
        let now_ms = clock_ms();
        if now_ms.wrapping_sub(self.since_ms.get()) >= 1000 {
            self.since_ms.set(now_ms);
            self.count.set(0);
        }
        self.count.set(self.count.get() + 1);
        if self.count.get() > IDLE_FRAMES_PER_S_MAX { Err(Flood) } else { Ok(()) }
    }
}

fn since(ms: u32) -> Duration {
    Duration::from_millis(clock_ms().wrapping_sub(ms).into())
}

/// Milliseconds of the system's running clock, which begin anew every 49 days: for short spans, in a
/// quarter of the room.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "only the low bits count")]
fn clock_ms() -> u32 {
    let now = clock_gettime(ClockId::Monotonic);
    (now.tv_sec as u32).wrapping_mul(1000).wrapping_add(now.tv_nsec as u32 / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As if the last ping had gone out so long ago, and nothing had been heard since.
    fn pinged_ago(live: &Liveness, ago: Duration) {
        let ms = u32::try_from(ago.as_millis()).unwrap();
        live.pinged_ms.set(clock_ms().wrapping_sub(ms));
        live.heard_ms.set(clock_ms().wrapping_sub(ms + 1000));
    }

    #[test]
    fn a_peer_is_hung_only_if_it_has_nothing_but_a_ping_to_read() {
        let patience = Duration::from_secs(10);
        let live = Liveness::new();
        live.on_payload();
        live.on_ping();
        pinged_ago(&live, patience);
        assert!(!live.is_hung(patience), "it may have paused in front of the payload");
        live.on_pong();
        live.on_ping();
        pinged_ago(&live, patience - Duration::from_millis(500));
        assert!(!live.is_hung(patience), "not yet");
        pinged_ago(&live, patience);
        assert!(live.is_hung(patience));
        assert!(live.rest() >= patience && live.silence() > patience);
        live.on_heard();
        assert!(!live.is_hung(patience), "it has been heard since");
        assert!(live.rest() < patience);
    }

    #[test]
    fn a_pong_from_before_the_payload_proves_nothing() {
        let live = Liveness::new();
        live.on_ping();
        live.on_payload();
        live.on_pong();
        live.on_ping();
        pinged_ago(&live, Duration::from_secs(60));
        assert!(!live.is_hung(Duration::from_secs(10)));
    }

    #[test]
    fn idle_frames_are_bounded_by_the_second() {
        let frames = IdleFrames::new();
        for _ in 0..IDLE_FRAMES_PER_S_MAX {
            frames.count().unwrap();
        }
        assert_eq!(frames.count(), Err(Flood));
        frames.since_ms.set(clock_ms().wrapping_sub(1000));
        frames.count().unwrap();
    }
}
