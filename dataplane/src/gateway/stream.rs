//! Role: a client's stream at the gateway: its sessions, one after the other.
//! Invariants: a stream on which data went before its session was refused serves nothing more · a refusal arrives:
//! nothing is closed before the peer has had the chance to read it · a client that never waits for an answer costs
//! nobody else their turn.
//! See: `session`; ARCHITECTURE.md "Early data".

use std::{
    future::Future,
    pin::Pin,
    rc::Rc,
    time::{Duration, Instant},
};

use futures_lite::future;
use narrowlink_proto::{
    ended::{Ended, RefusalCode, Refused, Side},
    id::SessionId,
    message::{Channel, Message, Open, Speaker},
    upgrade::Framing,
};

use crate::{
    gateway::{
        parking,
        session::{self, Answer, Dialling, Owner, Session, Telling, Unopened},
        table::Kind,
        usage::Slot,
    },
    relay::Gate,
    run::timer::{timeout, timeout_at},
    tunnel::{
        conn::{Conn, ConnError},
        end::End,
        linger,
        settle::settle,
        watch::gone,
    },
};

/// How long a refusal may take to reach a client that is then cut off.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// A client's stream while it is served.
pub(crate) struct Visit {
    pub(crate) owner: Rc<Owner>,
    /// Its place among the token's and the user's streams.
    pub(crate) _slot: Slot,
}

/// Serves the sessions of a stream, one after the other; `first` stands already.
///
/// Each step has a box of its own, so that a stream holds what its present step needs: while it waits,
/// nothing of a session; while a session stands, nothing of what led there.
#[expect(clippy::manual_async_fn, reason = "an async fn stores its arguments twice")]
pub(crate) fn serve(
    visit: Visit,
    mut conn: Box<Conn>,
    mut first: Option<Box<Session>>,
) -> impl Future<Output = ()> {
    async move {
        let mut last = None;
        loop {
            let step = match first.take() {
                Some(session) => visit.serve_session(conn, session, None),
                None => {
                    let open = match Box::pin(visit.next_open(&conn, last)).await {
                        Ok(open) => open,
                        Err((code, why)) => {
                            Box::pin(visit.refuse_unread(&conn)).await;
                            return conn.close(code, why);
                        }
                    };
                    last = Some(open.session);
                    match Box::pin(visit.dial(&conn, open)).await {
                        Ok(Ok(Dialling { session, answer })) => {
                            visit.serve_session(conn, session, Some(answer))
                        }
                        Ok(Err(refused)) => Box::pin(visit.refuse(conn, refused)),
                        Err(e) => {
                            conn.tell(&e);
                            return conn.hang_up();
                        }
                    }
                }
            };
            match step.await {
                Some(again) => conn = again,
                None => return,
            }
        }
    }
}

/// What gives the stream back when it can serve another session.
type Served<'a> = Pin<Box<dyn Future<Output = Option<Box<Conn>>> + 'a>>;

impl Visit {
    /// Decides about an Open and has it dialled, while its client still waits.
    async fn dial(&self, conn: &Conn, open: Box<Open>) -> Result<Result<Dialling, Refused>, ConnError> {
        let left = async {
            match conn.framing() {
                Framing::Framed => {
                    // What comes early is the session's: it stays where it is.
                    conn.attend().await?;
                    gone(conn, Side::Client).await;
                    Err(ConnError::Truncated)
                }
                // On a raw stream nothing is read ahead at all.
                Framing::Raw => future::pending().await,
            }
        };
        let dialling = async { Ok(self.owner.ask(*open).await) };
        future::or(left, dialling).await
    }

    /// Where this worker stops: says no to whatever may be on its way. What a client has sent behind an Open that nobody read
    /// went nowhere, and only a refusal tells it so: then it may ask another gateway, or this one's successor, with all of it.
    async fn refuse_unread(&self, conn: &Conn) {
        if self.owner.local.stopping.get() {
            let no = Refused::new(RefusalCode::Draining, "this gateway shuts down; try again in a moment");
            // Who takes nothing any more is not waited for.
            let _ = timeout(ANSWER_TIMEOUT, conn.send(&Message::Refused(no))).await;
        }
    }

    /// Says no; gives the stream back if it can serve on.
    async fn refuse(&self, conn: Box<Conn>, refused: Refused) -> Option<Box<Conn>> {
        self.owner.note_refused(&refused);
        let said = timeout(ANSWER_TIMEOUT, conn.send(&Message::Refused(refused))).await;
        if matches!(said, Ok(Ok(()))) && conn.framing() == Framing::Framed {
            // The next Open may be there, and the one behind it: others have their turn before, and the word
            // that this client must go is heard.
            conn.has_asked();
            return Some(conn);
        }
        conn.close_gently();
        None
    }

    /// The next Open on a stream that serves no session; else the close code and the words that it ends with.
    async fn next_open(
        &self,
        conn: &Conn,
        last: Option<SessionId>,
    ) -> Result<Box<Open>, (u16, &'static str)> {
        let stopped = async {
            self.owner.local.stopped().await;
            Err((1001, "the gateway shuts down"))
        };
        let dismissed = async {
            self.owner.seat.dismissed().await;
            Err((1008, "the token does not hold any more"))
        };
        let open = async {
            let open = self.hear_open(conn, last).await.map(Box::new);
            open.ok_or_else(|| match Instant::now() >= self.owner.who.expires_at {
                true => (1008, "the token has expired"),
                false => (1001, "nothing more is served on this stream"),
            })
        };
        // Who must go is not heard.
        future::or(future::or(stopped, dismissed), open).await
    }

    async fn hear_open(&self, conn: &Conn, last: Option<SessionId>) -> Option<Open> {
        let interval = self.owner.local.shared.limits().quiet_ping_interval;
        let expiry = self.owner.who.expires_at;
        loop {
            let now = Instant::now();
            if now >= expiry {
                return None;
            }
            let due = (now + interval).min(expiry);
            let heard = async {
                match last {
                    Some(last) => conn.recv_after(last, Speaker::Client, Channel::Stream).await,
                    None => conn.recv(Speaker::Client, Channel::Stream).await.map(Some),
                }
            };
            match timeout_at(due, heard).await {
                Ok(Ok(Some(Message::Open(open)))) => return Some(open),
                Ok(Ok(Some(_))) => {
                    conn.tell(&ConnError::Unexpected("a message where Open was due"));
                    return None;
                }
                // Broken, or the rest of a session that was refused.
                Ok(Err(_) | Ok(None)) => return None,
                // A raw stream must say what it wants within one interval.
                Err(_) if conn.framing() == Framing::Raw => return None,
                Err(_) if due == expiry => return None,
                Err(_) if parking::gave_no_answer(conn, interval) => return None,
                Err(_) => conn.ping().ok()?,
            }
        }
    }

    /// Relays one session, to which an answer may still be due.
    fn serve_session(
        &self,
        stream: Box<Conn>,
        session: Box<Session>,
        due: Option<Box<Answer>>,
    ) -> Served<'_> {
        Box::pin(async move {
            self.owner.seat.becomes(Kind::Session);
            let gate = match &due {
                None => Gate::opened(),
                Some(answer) => Gate::closed(session.early_bytes_max(stream.framing(), answer)),
            };
            let ended = {
                // Boxed, so that a session that stands holds nothing of it.
                let answer = due.map(|due| Box::pin(pass_on(due, &stream, &session, &gate)));
                let answer = async {
                    match answer {
                        Some(answer) => answer.await,
                        None => {
                            session.opened();
                            Ok(())
                        }
                    }
                };
                session.relay(End::of(&stream, session.id()), &gate, answer).await
            };
            Box::pin(self.end_session(stream, session, ended, gate.was_used())).await
        })
    }

    /// What a session leaves: its stream, if it can serve another.
    async fn end_session(
        &self,
        stream: Box<Conn>,
        session: Box<Session>,
        ended: Result<(), Unopened>,
        early_data: bool,
    ) -> Option<Box<Conn>> {
        match ended {
            Ok(()) => {
                let id = session.id();
                let finished = session.finish().await;
                self.finish(stream, id, finished).await
            }
            Err(Unopened::Ended(ended)) => {
                session.break_off(session::reset(*stream, ended), ended).await;
                None
            }
            Err(unopened) => {
                self.owner.seat.becomes(Kind::Stream);
                self.tell(stream, session.give_up(unopened, early_data), early_data).await
            }
        }
    }

    /// A stream behind a session that went through.
    async fn finish(
        &self,
        stream: Box<Conn>,
        session: SessionId,
        finished: Result<(), Ended>,
    ) -> Option<Box<Conn>> {
        let settled = match (finished, stream.framing()) {
            (Ok(()), Framing::Raw) => {
                stream.close_gently();
                return None;
            }
            (Ok(()), Framing::Framed) => {
                self.owner.seat.becomes(Kind::Stream);
                let dismissed = async {
                    let why = self.owner.seat.dismissed().await;
                    Err(Ended { by: Side::Here, why })
                };
                Box::pin(future::or(settle(&stream, session, Side::Client), dismissed)).await
            }
            (Err(ended), _) => Err(ended),
        };
        match settled {
            Ok(()) => Some(stream),
            Err(ended) => {
                session::reset(*stream, ended).await;
                None
            }
        }
    }

    /// Tells a client that its session did not open. A stream on which data of it may be under way serves nothing
    /// more.
    async fn tell(&self, stream: Box<Conn>, telling: Telling, early_data: bool) -> Option<Box<Conn>> {
        match telling {
            Telling::Refusal(refused) if !early_data => self.refuse(stream, refused).await,
            Telling::Refusal(refused) => {
                let stream = self.refuse(stream, refused).await?;
                stream.drain().await;
                stream.close(1000, "this stream has served a session that was refused");
                None
            }
            Telling::Reset(words, patience) => {
                tracing::info!(peer = %self.owner.peer_addr, "session reset: {words}");
                linger::reset_conn(*stream, &words, patience).await;
                None
            }
        }
    }
}

/// Waits for the agent's answer, and tells the client that its session is open.
async fn pass_on(answer: Box<Answer>, stream: &Conn, session: &Session, gate: &Gate) -> Result<(), Unopened> {
    let opened = answer.heard(session).await?;
    gate.open();
    session.opened();
    let opened = Message::Opened { session: opened.session, e2ee: opened.e2ee };
    let sent = stream.send(&opened).await;
    sent.map_err(|e| Ended { by: Side::Client, why: ConnError::from(e).why() }.into())
}

#[cfg(test)]
mod tests;
