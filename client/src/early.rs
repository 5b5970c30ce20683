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
