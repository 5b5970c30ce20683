//! Role: a session to an end that answers measurements.
//! Invariants: it travels as any session does, through the same relay and in the same frames · what breaks it is said in the words of a
//! session that was reset.
//! See: `narrowlink_dataplane::tunnel::measure`, for that end.

use std::{
    future::Future,
    io,
    time::{Duration, Instant},
};

use async_channel::Receiver;
use narrowlink_dataplane::{
    net::memory::{Memory, Room},
    relay::{Traffic, relay},
    run::{timer::timeout, worker::spawn},
    transport::wire::Wire,
    tunnel::{
        end::End,
        linger::{PATIENCE, reset_conn},
        measure::{BLOCK_BYTES, block},
    },
};
use narrowlink_proto::{measure::Measure, target::Target};

use crate::{
    exit::{Exit, Failure},
    open::{Opener, Session},
};

/// For one round trip.
const ECHO_TIMEOUT: Duration = Duration::from_secs(10);
/// For what is under way when enough was measured. A slow link may hold much of it.
const REST_TIMEOUT: Duration = Duration::from_secs(30);
/// For a target to end its side once we have.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(300);
/// Of an echo.
const ECHO_BYTES: usize = 16;

/// Such a session. Dropped, it is reset.
pub(super) struct Probe {
    wire: Wire,
    ended: Receiver<Result<(), Failure>>,
}

impl Probe {
    /// Opens one.
    pub(super) async fn open(opener: &Opener, agent: &str, measure: Measure) -> Result<Self, Failure> {
        Ok(Self::of(opener.open_patiently(agent, &Target::Measure(measure)).await?))
    }

    fn of(session: Session) -> Self {
        let (near, far) = Memory::pair(Room::default());
        let (end, ended) = async_channel::bounded(1);
        spawn(async move {
            // Nobody may ask any more.
            let _ = end.try_send(carry(session, far.into()).await);
        });
        Self { wire: near.into(), ended }
    }

    /// How long an echo takes.
    pub(super) async fn round_trip(&self) -> Result<Duration, Failure> {
        let began = Instant::now();
        let echo = async {
            self.wire.write_all(&[0; ECHO_BYTES]).await?;
            let mut left = ECHO_BYTES;
            while left > 0 {
                match self.wire.read(&mut [0; ECHO_BYTES][..left]).await? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    bytes => left -= bytes,
                }
            }
            Ok(())
        };
        self.or_why(ECHO_TIMEOUT, echo).await?;
        Ok(began.elapsed())
    }

    /// Sends for so long, and waits until all of it is there; bytes a second.
    pub(super) async fn send_for(self, time: Duration) -> Result<f64, Failure> {
        let (block, began, mut sent) = (block(), Instant::now(), 0);
        let sending = async {
            while began.elapsed() < time {
                self.wire.write_all(block).await?;
                sent += block.len();
            }
            Ok(())
        };
        self.or_why(time + REST_TIMEOUT, sending).await?;
        self.finish().await?;
        Ok(sent as f64 / began.elapsed().as_secs_f64())
    }

    /// Reads for so long; bytes a second.
    pub(super) async fn read_for(self, time: Duration) -> Result<f64, Failure> {
        let (mut block, began, mut got) = (vec![0; BLOCK_BYTES], Instant::now(), 0);
        let reading = async {
            while began.elapsed() < time {
                match self.wire.read(&mut block).await? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    bytes => got += bytes,
                }
            }
            Ok(())
        };
        self.or_why(time + REST_TIMEOUT, reading).await?;
        let rate = got as f64 / began.elapsed().as_secs_f64();
        self.finish().await?;
        Ok(rate)
    }

    /// Ends it, once all that is under way has arrived.
    pub(super) async fn finish(self) -> Result<(), Failure> {
        let rest = async {
            self.wire.finish_write().await?;
            let mut block = vec![0; BLOCK_BYTES];
            while self.wire.read(&mut block).await? > 0 {}
            Ok(())
        };
        self.or_why(REST_TIMEOUT, rest).await?;
        // Its connection is told, and only then has all been delivered.
        let ended = self.ended.clone();
        self.wire.close_gently();
        timeout(REST_TIMEOUT, ended.recv()).await.ok().and_then(Result::ok).unwrap_or_else(|| Err(silent()))
    }

    /// The answer, or in the session's words why there is none.
    async fn or_why<T>(
        &self,
        patience: Duration,
        answer: impl Future<Output = io::Result<T>>,
    ) -> Result<T, Failure> {
        match timeout(patience, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(e)) => match timeout(LEAVE_TIMEOUT, self.ended.recv()).await {
                Ok(Ok(Err(failure))) => Err(failure),
                _ => Err(Failure::new(Exit::Reset, format!("the measurement broke: {e}"))),
            },
            Err(_) => Err(silent()),
        }
    }
}

fn silent() -> Failure {
    Failure::new(Exit::Reset, "the other end of the measurement does not answer any more; try again")
}

/// Joins a session with its local end.
async fn carry(session: Session, local: Wire) -> Result<(), Failure> {
    let traffic = Traffic::default();
    let ended = relay(End::raw(&local), End::of(&session.conn, session.id), &traffic).await;
    match ended {
        Ok(()) => {
            local.close_gently();
            session.finish().await
        }
        Err(ended) => {
            let failure = Failure::reset(ended, session.conn.farewell().as_deref());
            drop(local);
            reset_conn(session.conn, &failure.message, PATIENCE).await;
            Err(failure)
        }
    }
}

/// Leaves a session of which nothing is wanted: gently, if its target ends it at once.
pub(super) async fn leave(session: Session) {
    let probe = Probe::of(session);
    let _ = timeout(LEAVE_TIMEOUT, probe.finish()).await;
}

#[cfg(test)]
mod tests {
    use futures_lite::future::zip;
    use narrowlink_dataplane::tunnel::settle::settle;
    use narrowlink_proto::{ended::Side, message::Message};

    use super::*;
    use crate::fixture::{exchange, id, opener, run, stream};

    #[test]
    fn an_echo_is_timed_and_the_session_ends_when_all_was_delivered() {
        run(async || {
            let opener = opener(&["gw.example:80"]);
            let (crate::warm::Stream { conn, route }, gateway) = stream(&opener, 0);
            let probe = Probe::of(Session { conn, id: id(1), route });
            let measuring = async {
                let took = probe.round_trip().await.unwrap();
                assert!(took < ECHO_TIMEOUT);
                probe.finish().await
            };
            let answering = async {
                exchange(&gateway, id(1), &[0; ECHO_BYTES]).await.unwrap();
                settle(&gateway, id(1), Side::Client).await.unwrap();
            };
            let (finished, ()) = zip(measuring, answering).await;
            finished.unwrap();
        });
    }

    #[test]
    fn a_session_that_breaks_says_why_in_the_gateway_s_words() {
        run(async || {
            let opener = opener(&["gw.example:80"]);
            for ends in ["before its end", "closes"] {
                let (crate::warm::Stream { conn, route }, gateway) = stream(&opener, 0);
                let probe = Probe::of(Session { conn, id: id(1), route });
                match ends {
                    "closes" => gateway.close(4000, "the token was revoked"),
                    // A clean end of the echo, where one was due.
                    _ => gateway.send(&Message::Fin { session: id(1), bytes: 0 }).await.unwrap(),
                }
                let failure = probe.round_trip().await.unwrap_err();
                assert_eq!(failure.exit, Exit::Reset);
                let says = if ends == "closes" { "the token was revoked" } else { "the measurement broke" };
                assert!(failure.message.contains(says), "{ends}: {failure}");
            }
        });
    }
}
