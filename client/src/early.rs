//! Role: a session on a stream that stands: what the local program says goes right behind the Open.
//! Invariants: no more than the protocol permits goes before the answer · what went without an answer
//! is never sent again: the target may have it · a refusal says that the target got nothing, so what
//! went is put back in front of the local connection, for another try.
//! See: ARCHITECTURE.md "Open".

use std::io;

use futures_lite::future;
use narrowlink_dataplane::{
    relay::{Gate, Traffic, relay_behind},
    run::timer::timeout,
    transport::wire::Wire,
    tunnel::{
        TunnelError,
        conn::ConnError,
        end::End,
        linger::{PATIENCE, reset_conn},
    },
};
use narrowlink_proto::{
    ended::{Ended, Refused, Side},
    id::SessionId,
    message::{Channel, EARLY_DATA_BYTES_MAX, Message, Open, Speaker},
};

use crate::{
    open::{OPEN_TIMEOUT, Session, close},
    routes::Route,
    stop::Stop,
    warm::Stream,
};

/// What came of a session that was asked for on a stream that stands.
pub(crate) enum Outcome {
    /// It opened, and has ended.
    Ended(Session, Result<(), Ended>),
    /// The gateway said no. The stream is there for another session, if nothing of this one went.
    Refused(Refused, Option<Stream>),
    /// There was no answer, and nothing of the session had gone: another stream may serve it.
    Unanswered(TunnelError),
    /// There was no answer, and the target may have got something: there must be no other try.
    Lost(TunnelError),
    /// The local program went away while it waited, or we stop.
    Left,
}

/// Why a session did not open, or did not end well.
enum Broken {
    Refused(Refused),
    Unanswered(TunnelError),
    Ended(Ended),
}

impl From<Ended> for Broken {
    fn from(ended: Ended) -> Self {
        Self::Ended(ended)
    }
}

impl From<ConnError> for Broken {
    fn from(e: ConnError) -> Self {
        Self::Unanswered(e.into())
    }
}

/// Asks for a session on `stream` and carries it to its end, or until we stop; `opened` is called in
/// between.
pub(crate) async fn carry(
    stream: Stream,
    open: Open,
    local: &Wire,
    stop: &Stop,
    opened: impl FnOnce(),
) -> Outcome {
    let Stream { conn, route } = stream;
    let (id, traffic, gate) = (open.session, Traffic::default(), Gate::keeping(EARLY_DATA_BYTES_MAX));
    let answer = async {
        let heard = timeout(OPEN_TIMEOUT, conn.recv(Speaker::Gateway, Channel::Stream)).await;
        answered(heard.map_err(|_| timed_out(&route))?, id)?;
        gate.open();
        opened();
        Ok(())
    };
    let carried = async {
        let sent = timeout(OPEN_TIMEOUT, conn.send(&Message::Open(open))).await;
        sent.map_err(|_| timed_out(&route))?.map_err(ConnError::from)?;
        relay_behind(End::raw(local), End::of(&conn, id), &traffic, &gate, answer).await
    };
    let stopped = async { Err(stop.shutdown().await.into()) };
    let ended = match future::or(carried, stopped).await {
        Ok(()) => Ok(()),
        Err(Broken::Ended(ended)) => Err(ended),
        Err(Broken::Refused(refused)) => {
            local.unread(&gate.take_kept());
            let again = spare(Stream { conn, route }, &gate);
            return Outcome::Refused(refused, again);
        }
        Err(Broken::Unanswered(e)) if gate.was_used() => return Outcome::Lost(e),
        Err(Broken::Unanswered(e)) => return Outcome::Unanswered(e),
    };
    match ended {
        ended if gate.is_open() => {
            say_ended(&traffic, ended);
            Outcome::Ended(Session { conn, id, route }, ended)
        }
        Err(Ended { by: Side::Target, .. }) if gate.was_used() => Outcome::Lost(broke()),
        Err(Ended { by: Side::Target, .. }) => Outcome::Unanswered(broke()),
        _ => {
            Box::pin(reset_conn(conn, "nobody waits for this session any more", PATIENCE)).await;
            Outcome::Left
        }
    }
}

/// For the log: what a session moved.
pub(crate) fn say_ended(traffic: &Traffic, ended: Result<(), Ended>) {
    let (up_bytes, down_bytes) = (traffic.up_bytes.get(), traffic.down_bytes.get());
    match ended {
        Ok(()) => tracing::debug!(up_bytes, down_bytes, "session finished"),
        Err(ended) => tracing::debug!(up_bytes, down_bytes, "session reset: {ended}"),
    }
}

fn answered(heard: Result<Message, ConnError>, id: SessionId) -> Result<(), Broken> {
    match heard? {
        Message::Opened { session, .. } if session == id => Ok(()),
        Message::Refused(refused) => Err(Broken::Refused(refused)),
        _ => Err(ConnError::Unexpected("no answer to what was asked").into()),
    }
}

/// After a refusal: the gateway reads what went behind the Open, and waits for us to close.
fn spare(stream: Stream, gate: &Gate) -> Option<Stream> {
    if gate.was_used() {
        close(stream.conn);
        return None;
    }
    Some(stream)
}

fn timed_out(route: &Route) -> Broken {
    let gateway = route.gateway.describe().to_owned();
    Broken::Unanswered(TunnelError::TimedOut { gateway, patience: OPEN_TIMEOUT })
}

fn broke() -> TunnelError {
    ConnError::Io(io::ErrorKind::ConnectionReset.into()).into()
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, convert::Infallible, pin::pin, time::Duration};

    use futures_lite::future::zip;
    use narrowlink_dataplane::{
        run::timer::sleep,
        tunnel::conn::{Ahead, Conn},
    };
    use narrowlink_proto::{
        ended::RefusalCode,
        frame::{self, Expect, Opcode},
    };

    use super::*;
    use crate::{
        fixture::{
            accept, asked, exchange, heard, id, no, opener, plain_ends, read_all, refuse, run, stream, tcp,
        },
        open::ask_for,
    };

    /// A local connection, its program's end, and the gateway's end of a stream.
    struct Try {
        gateway: Conn,
        local: Wire,
        program: Wire,
        opened: Cell<bool>,
        stop: Stop,
        held: async_channel::Sender<Infallible>,
    }

    impl Try {
        /// Carries the session on this stream.
        async fn carry(&self, stream: Stream) -> Outcome {
            let open = ask_for("home", &tcp("db", 1)).unwrap();
            carry(stream, open, &self.local, &self.stop, || self.opened.set(true)).await
        }
    }

    /// Runs a test on a runtime of its own, with a stream that stands.
    fn test(main: impl AsyncFnOnce(Try, Stream)) {
        run(async || {
            let (stream, gateway) = stream(&opener(&["gw.example:80"]), 0);
            let ((local, program), (held, stop)) = (plain_ends(), Stop::new());
            main(Try { gateway, local, program, opened: Cell::new(false), stop, held }, stream).await;
        });
    }

    #[test]
    fn what_a_program_says_at_once_goes_behind_the_open_and_its_answer_comes_back() {
        test(async |at, stream| {
            at.program.write_all(b"hello").await.unwrap();
            at.program.finish_write().await.unwrap();
            let serving = async {
                let session = asked(&at.gateway).await;
                assert_eq!(at.gateway.attend().await.unwrap(), Ahead::Data, "before any answer");
                accept(&at.gateway, session).await;
                exchange(&at.gateway, session, b"hello, you").await.unwrap()
            };
            let (outcome, heard) = zip(at.carry(stream), serving).await;
            assert!(matches!(outcome, Outcome::Ended(_, Ok(()))) && at.opened.get());
            assert_eq!(heard, b"hello");
            assert_eq!(read_all(&at.program).await.unwrap(), b"hello, you");
        });
    }

    #[test]
    fn what_went_before_a_refusal_is_there_for_another_try_and_its_stream_is_not() {
        test(async |at, stream| {
            at.program.write_all(b"hello").await.unwrap();
            at.program.finish_write().await.unwrap();
            let refusing = async {
                let session = asked(&at.gateway).await;
                assert_eq!(at.gateway.attend().await.unwrap(), Ahead::Data);
                refuse(&at.gateway, session, no(RefusalCode::AgentNotFound)).await;
            };
            let (outcome, ()) = zip(at.carry(stream), refusing).await;
            assert!(
                matches!(outcome, Outcome::Refused(refused, None) if refused.code == RefusalCode::AgentNotFound)
            );
            assert!(!at.opened.get());
            assert_eq!(read_all(&at.local).await.unwrap(), b"hello");
            at.gateway.drain().await;
        });
    }

    #[test]
    fn a_stream_on_which_nothing_went_serves_another_session_after_a_refusal() {
        test(async |at, stream| {
            let refusing = async {
                let session = asked(&at.gateway).await;
                refuse(&at.gateway, session, no(RefusalCode::Policy)).await;
            };
            let (outcome, ()) = zip(at.carry(stream), refusing).await;
            let Outcome::Refused(_, Some(again)) = outcome else { panic!("the stream is gone") };
            let serving = async {
                let session = asked(&at.gateway).await;
                accept(&at.gateway, session).await;
                at.program.finish_write().await.unwrap();
                exchange(&at.gateway, session, b"").await.unwrap()
            };
            let (outcome, heard) = zip(at.carry(again), serving).await;
            assert!(matches!(outcome, Outcome::Ended(_, Ok(()))) && heard.is_empty());
        });
    }

    #[test]
    fn without_an_answer_another_try_is_made_only_if_nothing_went_not_even_an_end() {
        for (said, ends, again) in [("", false, true), ("hello", false, false), ("", true, false)] {
            test(async |at, stream| {
                at.program.write_all(said.as_bytes()).await.unwrap();
                if ends {
                    at.program.finish_write().await.unwrap();
                }
                let Try { gateway, local, stop, .. } = at;
                let breaking = async move {
                    asked(&gateway).await;
                    if ends || !said.is_empty() {
                        gateway.attend().await.unwrap();
                    }
                    drop(gateway);
                };
                let open = ask_for("home", &tcp("db", 1)).unwrap();
                let carrying = carry(stream, open, &local, &stop, || {});
                let (outcome, ()) = zip(carrying, breaking).await;
                match outcome {
                    Outcome::Unanswered(_) => assert!(again, "{said:?} {ends}"),
                    Outcome::Lost(_) => assert!(!again, "{said:?} {ends}"),
                    _ => panic!("{said:?} {ends}"),
                }
            });
        }
    }

    #[test]
    fn no_more_goes_before_the_answer_than_the_protocol_permits() {
        test(async |at, stream| {
            at.program.write_all(&[7; 200_000]).await.unwrap();
            let mut carrying = pin!(at.carry(stream));
            let (mut got, mut buf) = (Vec::new(), [0; 4096]);
            loop {
                let carried = async {
                    carrying.as_mut().await;
                    panic!("there was no answer")
                };
                let reading = async { at.gateway.wire().read(&mut buf).await.unwrap() };
                // As many turns of the ring as anything here may have to wait for its own.
                let stalled = async {
                    for _ in 0..20 {
                        sleep(Duration::from_millis(1)).await;
                    }
                    0
                };
                let n = future::or(carried, future::or(reading, stalled)).await;
                if n == 0 {
                    break;
                }
                got.extend_from_slice(&buf[..n]);
            }
            assert_eq!(payload_bytes(&got), EARLY_DATA_BYTES_MAX);
        });
    }

    /// Of all data frames.
    fn payload_bytes(mut frames: &[u8]) -> usize {
        let mut data = 0;
        while let Some((header, at)) = frame::decode(frames, Expect::Masked, u64::MAX).unwrap() {
            let bytes = usize::try_from(header.payload_bytes).unwrap();
            if header.opcode == Opcode::Binary {
                data += bytes;
            }
            frames = &frames[at + bytes..];
        }
        data
    }

    #[test]
    fn who_leaves_while_it_waits_takes_the_session_along() {
        for stops in [false, true] {
            test(async |at, stream| {
                let Try { gateway, local, program, stop, held, .. } = at;
                let open = ask_for("home", &tcp("db", 1)).unwrap();
                let leaving = async move {
                    asked(&gateway).await;
                    match stops {
                        true => drop(held),
                        false => drop(program),
                    }
                    let Err(ConnError::Closed { code: 4000, why }) = heard(&gateway).await else {
                        panic!("the gateway is not told")
                    };
                    assert_eq!(why, "nobody waits for this session any more");
                    drop(gateway);
                };
                let (outcome, ()) = zip(carry(stream, open, &local, &stop, || {}), leaving).await;
                assert!(matches!(outcome, Outcome::Left));
            });
        }
    }

    #[test]
    fn an_answer_to_something_else_opens_nothing() {
        test(async |at, stream| {
            let answering = async {
                asked(&at.gateway).await;
                accept(&at.gateway, id(9)).await;
            };
            let (outcome, ()) = zip(at.carry(stream), answering).await;
            let Outcome::Unanswered(e) = outcome else { panic!("it is taken for an answer") };
            assert!(e.to_string().contains("no answer to what was asked"), "{e}");
            assert!(!at.opened.get());
        });
    }
}
