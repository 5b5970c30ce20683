//! Role: a client's stream at the gateway: its sessions, one after the other.
//! Invariants: a session lives on the worker that admitted its client · a lane or stream on which data
//! went before its session was refused serves nothing more · a refusal arrives: nothing is closed
//! before the peer has had the chance to read it · what may have reached a target is never refused as
//! if it had not · a client that never waits for an answer costs nobody else their turn.
//! See: ARCHITECTURE.md "Early data".

use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use futures_lite::future;
use narrowlink_proto::{
    ended::{Ended, Refused, Side, Why},
    id::SessionId,
    message::{Channel, EARLY_DATA_BYTES_MAX, Message, Open, Speaker},
    upgrade::Framing,
};

use crate::{
    gateway::{
        admit::{self, Asked, Dialling, Unopened},
        door::{Event, note_refused},
        lane::Lane,
        local::Local,
        parking,
        principal::Principal,
        table::{Kind, Seat},
        usage::Slot,
    },
    relay::{Gate, Traffic, relay_behind},
    run::timer::{sleep_until, timeout, timeout_at},
    tunnel::{
        conn::{CLOSE_RESET, Conn, ConnError},
        end::End,
        linger,
        settle::{settle, settled},
        watch::gone,
    },
};

/// How long a refusal may take to reach a client that is then cut off.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// A client's stream while it is served.
pub(crate) struct Visit {
    pub(crate) local: Rc<Local>,
    pub(crate) who: Arc<Principal>,
    pub(crate) peer_addr: SocketAddr,
    pub(crate) seat: Seat,
    /// Its place among the token's and the user's streams.
    pub(crate) _slot: Slot,
}

/// A session and what it has of the agent.
pub(crate) struct Session {
    pub(crate) lane: Lane,
    pub(crate) asked: Asked,
    /// Its place among the token's and the user's sessions.
    pub(crate) slot: Slot,
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
                        Err((code, why)) => return conn.close(code, why),
                    };
                    last = Some(open.session);
                    match Box::pin(visit.dial(&conn, open)).await {
                        Ok(Ok((session, dialling))) => visit.serve_session(conn, session, Some(dialling)),
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
    async fn dial(
        &self,
        conn: &Conn,
        open: Box<Open>,
    ) -> Result<Result<(Box<Session>, Box<Dialling<'_>>), Refused>, ConnError> {
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
        let dialling = async { Ok(admit::dial(&self.local, &self.who, &open, self.peer_addr).await) };
        let dialled = future::or(left, dialling).await?;
        Ok(dialled.map(|(lane, dialling)| {
            let (lane, slot) = lane;
            (Box::new(Session { lane, asked: Asked::from(*open), slot }), Box::new(dialling))
        }))
    }

    /// Says no; gives the stream back if it can serve on.
    async fn refuse(&self, conn: Box<Conn>, refused: Refused) -> Option<Box<Conn>> {
        note_refused(&*self.local.shared.door, (Some(&self.who), self.peer_addr), &refused, None);
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
            self.local.stopped().await;
            Err((1001, "the gateway shuts down"))
        };
        let dismissed = async {
            self.seat.dismissed().await;
            Err((1008, "the token does not hold any more"))
        };
        let open = async {
            let open = self.hear_open(conn, last).await.map(Box::new);
            open.ok_or_else(|| match Instant::now() >= self.who.expires_at {
                true => (1008, "the token has expired"),
                false => (1001, "nothing more is served on this stream"),
            })
        };
        // Who must go is not heard.
        future::or(future::or(stopped, dismissed), open).await
    }

    async fn hear_open(&self, conn: &Conn, last: Option<SessionId>) -> Option<Open> {
        let interval = self.local.shared.limits().quiet_ping_interval;
        let expiry = self.who.expires_at;
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
                Err(_) if conn.heard_at().elapsed() >= interval * 2 => return None,
                Err(_) => conn.ping().ok()?,
            }
        }
    }

    /// Relays one session, whose answer is still due if it is `dialling`.
    fn serve_session<'a>(
        &'a self,
        stream: Box<Conn>,
        standing: Box<Session>,
        dialling: Option<Box<Dialling<'a>>>,
    ) -> Served<'a> {
        Box::pin(async move {
            self.seat.becomes(Kind::Session);
            let lane = &standing.lane.conn;
            let traffic = Traffic { meter: self.who.usage.meter(), ..Traffic::default() };
            let session = standing.asked.session;
            let gate = match &dialling {
                None => {
                    self.say_opened(&standing.asked);
                    Gate::opened()
                }
                Some(dialling) => Gate::closed(early_bytes_max(&stream, lane, dialling)),
            };
            let ended = {
                // Boxed, so that a session that stands holds nothing of it.
                let answer = dialling
                    .map(|dialling| Box::pin(self.pass_on_answer(dialling, &stream, &standing, &gate)));
                let answer = async {
                    match answer {
                        Some(answer) => answer.await,
                        None => Ok(()),
                    }
                };
                let over = async { Err(self.over(&standing.lane).await.into()) };
                let moving =
                    relay_behind(End::of(&stream, session), End::of(lane, session), &traffic, &gate, answer);
                future::or(moving, over).await
            };
            match ended {
                Ok(()) => self.say_ended(&standing.asked, &traffic, Ok(())),
                Err(Unopened::Ended(ended)) => self.say_ended(&standing.asked, &traffic, Err(ended)),
                Err(_) => {}
            }
            Box::pin(self.end_session(stream, standing, ended, gate.was_used())).await
        })
    }

    /// Returns when a session must end because of who its sides are: a token has expired, its bearer was
    /// dismissed, or the agent answers no more.
    async fn over(&self, lane: &Lane) -> Ended {
        let first = self.who.expires_at.min(lane.entry.principal.expires_at);
        let mut expired = pin!(sleep_until(first));
        // By hand: a session that stands holds this, and combinators would be twice as large.
        poll_fn(|cx| {
            let why = if let Poll::Ready(why) = self.seat.poll_dismissed(cx) {
                why
            } else if let Poll::Ready(why) = lane.seat.poll_dismissed(cx) {
                why
            } else {
                std::task::ready!(expired.as_mut().poll(cx));
                Why::Expired
            };
            let by = if why == Why::Vanished { Side::Target } else { Side::Here };
            Poll::Ready(Ended { by, why })
        })
        .await
    }

    /// Waits for the agent's answer and tells the client.
    async fn pass_on_answer(
        &self,
        dialling: Box<Dialling<'_>>,
        stream: &Conn,
        standing: &Session,
        gate: &Gate,
    ) -> Result<(), Unopened> {
        let Session { lane, asked, .. } = standing;
        let opened = dialling.answer(&lane.conn, asked.session, &asked.agent).await?;
        gate.open();
        self.say_opened(asked);
        let opened = Message::Opened { session: asked.session, e2ee: opened.e2ee };
        let sent = stream.send(&opened).await;
        sent.map_err(|e| Ended { by: Side::Client, why: ConnError::from(e).why() }.into())
    }

    /// What a session leaves: its lane parked or gone, its stream given back if it can serve another.
    async fn end_session(
        &self,
        stream: Box<Conn>,
        standing: Box<Session>,
        ended: Result<(), Unopened>,
        used: bool,
    ) -> Option<Box<Conn>> {
        let Session { lane, asked, slot } = *standing;
        let ended = match ended {
            Ok(()) => {
                drop(slot);
                self.retire(lane, asked.session).await
            }
            Err(Unopened::Ended(ended)) => {
                // It counts as a session until both sides have what they were sent.
                let (words, patience) = (ended.by_name("the gateway"), linger::patience(ended));
                let lane = linger::reset_conn(*lane.conn, &words, patience);
                future::zip(lane, linger::reset_conn(*stream, &words, patience)).await;
                return None;
            }
            Err(unopened) => {
                drop(slot);
                self.seat.becomes(Kind::Stream);
                return self.unopened(stream, lane, unopened, asked.session, used).await;
            }
        };
        self.finish(stream, asked.session, ended).await
    }

    fn say_opened(&self, asked: &Asked) {
        let Some(target) = asked.target.take() else { return };
        self.local.shared.door.note(&Event::Opened {
            who: &self.who,
            peer_addr: self.peer_addr,
            session: asked.session,
            agent: &asked.agent,
            target: &target,
        });
    }

    fn say_ended(&self, asked: &Asked, traffic: &Traffic, ended: Result<(), Ended>) {
        let ended = ended.err().unwrap_or(Ended { by: Side::Here, why: Why::Finished });
        if asked.target.take().is_some() {
            // It never opened.
            return;
        }
        self.local.shared.door.note(&Event::Closed {
            who: &self.who,
            peer_addr: self.peer_addr,
            session: asked.session,
            agent: &asked.agent,
            up_bytes: traffic.up_bytes.get(),
            down_bytes: traffic.down_bytes.get(),
            lasted: asked.since.elapsed(),
            ended,
        });
        tracing::debug!(
            session = ?asked.session,
            client = self.who.name,
            agent = &*asked.agent,
            up_bytes = traffic.up_bytes.get(),
            down_bytes = traffic.down_bytes.get(),
            "session ended: {ended}"
        );
    }

    /// A lane after a session that went through cleanly: parked again once the agent says that all is
    /// delivered and its target closed.
    async fn retire(&self, lane: Lane, session: SessionId) -> Result<(), Ended> {
        if lane.conn.framing() == Framing::Raw {
            lane.conn.close_gently();
            return Ok(());
        }
        let over = async { Err(self.over(&lane).await) };
        let settled = future::or(settled(&lane.conn, session, Speaker::Agent, Side::Target), over).await;
        match settled {
            Ok(()) => match lane.idle() {
                Ok(idle) => parking::park(&self.local, idle),
                Err(lane) => lane.conn.close(1002, "half a message behind a session"),
            },
            Err(ended) => lane.conn.close(CLOSE_RESET, &ended.by_name("the gateway")),
        }
        settled
    }

    async fn finish(
        &self,
        stream: Box<Conn>,
        session: SessionId,
        ended: Result<(), Ended>,
    ) -> Option<Box<Conn>> {
        match (ended, stream.framing()) {
            (Ok(()), Framing::Framed) => {
                self.seat.becomes(Kind::Stream);
                let dismissed = async {
                    let why = self.seat.dismissed().await;
                    Err(Ended { by: Side::Here, why })
                };
                let settling = settle(&stream, session, Side::Client);
                match Box::pin(future::or(settling, dismissed)).await {
                    Ok(()) => Some(stream),
                    Err(ended) => {
                        linger::reset_conn(*stream, &ended.by_name("the gateway"), linger::patience(ended))
                            .await;
                        None
                    }
                }
            }
            (Ok(()), Framing::Raw) => {
                stream.close_gently();
                None
            }
            (Err(ended), _) => {
                linger::reset_conn(*stream, &ended.by_name("the gateway"), linger::patience(ended)).await;
                None
            }
        }
    }

    /// A session that was dialled and did not open. Connections on which early data has passed serve
    /// nothing more: bytes of that session may still be on their way there.
    async fn unopened(
        &self,
        stream: Box<Conn>,
        lane: Lane,
        unopened: Unopened,
        session: SessionId,
        used: bool,
    ) -> Option<Box<Conn>> {
        let refused = match unopened {
            unopened if !used => {
                let refused = admit::refusal(&self.local, lane, unopened, session);
                return self.refuse(stream, refused).await;
            }
            // Nobody knows what the target got: the client must not think that it was nothing.
            Unopened::Lost(why) => {
                tracing::info!(peer = %self.peer_addr, "session reset: {why}");
                linger::reset_conn(*stream, &why, linger::PATIENCE).await;
                return None;
            }
            Unopened::Ended(ended) => {
                linger::reset_conn(*stream, &ended.by_name("the gateway"), linger::patience(ended)).await;
                return None;
            }
            Unopened::ByAgent(refused) => {
                lane.conn.close(1000, "this lane has served a session that was refused");
                refused
            }
            Unopened::ByUs(refused) => refused,
        };
        let stream = self.refuse(stream, refused.of(session)).await?;
        stream.drain().await;
        stream.close(1000, "this stream has served a session that was refused");
        None
    }
}

/// How much a client may send behind its Open. Only frames can tell data from an answer, and who
/// encrypts end to end needs the answer first; what a client sends all the same waits unread.
fn early_bytes_max(stream: &Conn, lane: &Conn, dialling: &Dialling<'_>) -> usize {
    let framed = stream.framing() == Framing::Framed && lane.framing() == Framing::Framed;
    if framed && !dialling.e2ee { EARLY_DATA_BYTES_MAX } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn future_bytes<A, F>(_: impl FnOnce(A) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_stream_s_own_task_is_small() {
        let bytes = future_bytes(|(visit, conn, first)| serve(visit, conn, first));
        assert!(bytes <= 256, "{bytes}");
    }
}
