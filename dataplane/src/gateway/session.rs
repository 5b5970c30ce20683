//! Role: a session at the gateway: asked for, dialled, open, ended.
//! Invariants: it lives on the worker that admitted its owner · its lane is parked again only when the agent says that
//! all is delivered and its target closed · what may have reached a target is never refused as if it had not · that it
//! opened is noted once, and then, whatever becomes of it, how it ended.
//! See: `stream`, for its owner's connection; `admit`, which decides; ARCHITECTURE.md "Open".

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use futures_lite::future;
use narrowlink_proto::{
    ended::{Ended, RefusalCode, Refused, Side, Why},
    id::{AgentKey, SessionId},
    message::{Channel, Dial, EARLY_DATA_BYTES_MAX, Message, Open, Origin, Speaker},
    printable::printable,
    target::Target,
    token::ServiceName,
    upgrade::{Framing, Opened},
};

use crate::{
    gateway::{
        admit::{self, Admitted},
        claims::Claim,
        door::{Event, note_refused},
        lane::Lane,
        local::Local,
        parking,
        principal::Principal,
        table::Seat,
        usage::Slot,
    },
    relay::{Gate, Traffic, relay_behind},
    run::timer::{sleep_until, timeout_at},
    tunnel::{
        conn::{CLOSE_RESET, Conn},
        end::End,
        linger,
        settle::settled,
    },
};

/// An agent's words that reach a client are no longer than this.
const REASON_CHARS_MAX: usize = 300;

/// Whose sessions they are: for whom they are decided about, measured and noted.
pub(crate) struct Owner {
    /// The worker that has them.
    pub(crate) local: Rc<Local>,
    pub(crate) who: Arc<Principal>,
    pub(crate) peer_addr: SocketAddr,
    /// The place of their owner's connection.
    pub(crate) seat: Seat,
}

impl Owner {
    /// Has a session dialled, if it may be.
    ///
    /// # Errors
    /// The refusal.
    pub(crate) async fn ask(self: &Rc<Self>, open: Open) -> Result<Dialling, Refused> {
        let admitted = admit::dial(&self.local, &self.who, &open, self.peer_addr).await?;
        let Open { session: id, agent, target, e2ee } = open;
        Ok(self.begin(admitted, (id, agent, target), e2ee.is_some()))
    }

    /// Has a session dialled to a published service, through this agent of it.
    ///
    /// # Errors
    /// The refusal.
    pub(crate) async fn visit(
        self: &Rc<Self>,
        agent: &AgentKey,
        service: &ServiceName,
    ) -> Result<Dialling, Refused> {
        let mut id = [0; 32];
        getrandom::fill(&mut id).map_err(|e| {
            Refused::new(RefusalCode::Internal, format!("the system gives no random numbers: {e}"))
        })?;
        let (id, target) = (SessionId::from_bytes(id), Target::Published(service.clone()));
        let origin = Origin::Visitor { peer_addr: self.peer_addr, request: None };
        let dial = Dial { session: id, origin, target: target.clone(), rules: None, e2ee: None };
        let admitted = admit::visit(&self.local, (&self.who, agent), dial).await?;
        Ok(self.begin(admitted, (id, agent.name.clone(), target), false))
    }

    fn begin(
        self: &Rc<Self>,
        admitted: Admitted,
        (id, agent, target): (SessionId, String, Target),
        e2ee: bool,
    ) -> Dialling {
        let Admitted { lane, slot, claim, deadline } = admitted;
        let record = Record {
            owner: self.clone(),
            id,
            agent: agent.into(),
            since: Instant::now(),
            said: Cell::new(Said::Nothing(Box::new(target))),
            traffic: Traffic { meter: self.who.usage.meter(), ..Traffic::default() },
        };
        let session = Box::new(Session { lane, slot, record });
        Dialling { session, answer: Box::new(Answer { claim, deadline, e2ee }) }
    }

    /// A session was refused.
    pub(crate) fn note_refused(&self, refused: &Refused) {
        note_refused(&*self.local.shared.door, (Some(&self.who), self.peer_addr), refused, None);
    }
}

/// A session whose agent has been asked to dial.
pub(crate) struct Dialling {
    pub(crate) session: Box<Session>,
    /// What is still due.
    pub(crate) answer: Box<Answer>,
}

/// An agent's answer that is due; dropped, it never counts.
pub(crate) struct Answer {
    claim: Option<Claim>,
    deadline: Instant,
    /// It is part of an end-to-end handshake.
    e2ee: bool,
}

/// Why a session that was dialled did not open, or how one that did has ended.
#[derive(Debug)]
pub(crate) enum Unopened {
    /// The agent refused: nothing of the session has reached a target.
    ByAgent(Refused),
    /// We did, without a word of the agent's.
    ByUs(Refused),
    /// The agent gave no answer that counts, and it may have dialled; why, for the client.
    Lost(String),
    /// It ended.
    Ended(Ended),
}

impl From<Ended> for Unopened {
    fn from(ended: Ended) -> Self {
        Self::Ended(ended)
    }
}

/// What the owner of a session that did not open is told.
pub(crate) enum Telling {
    /// That it was refused.
    Refusal(Refused),
    /// Nothing that it could mistake for a refusal: its connection is reset, with these words, once it has what it was
    /// sent or after so long.
    Reset(String, Duration),
}

/// A session that has a lane; open, as soon as its agent has answered.
pub(crate) struct Session {
    lane: Lane,
    /// Its place among the token's and the user's sessions.
    slot: Slot,
    record: Record,
}

impl Dialling {
    /// Waits for the agent's answer, for an owner who sends nothing before it.
    ///
    /// # Errors
    /// The refusal.
    pub(crate) async fn answered(self) -> Result<(Box<Session>, Opened), Refused> {
        let Self { session, answer } = self;
        let lost = async {
            session.lane.seat.dismissed().await;
            Err(Unopened::ByUs(admit::silent(&session.record.agent)))
        };
        let opened = future::or(lost, answer.heard(&session)).await;
        match opened {
            Ok(opened) => Ok((session, opened)),
            Err(unopened) => Err(session.refuse(unopened)),
        }
    }
}

impl Answer {
    /// Waits for the agent's answer on its lane.
    ///
    /// # Errors
    /// Why there is no session.
    pub(crate) async fn heard(self: Box<Self>, session: &Session) -> Result<Opened, Unopened> {
        let Self { claim, deadline, .. } = *self;
        let Some(claim) = claim else { return session.hear_answer(deadline).await };
        match claim.unless_superseded(session.hear_answer(deadline)).await {
            // Used up in any case: a refusal is an answer, too.
            Some(answer) if claim.answer() => answer,
            _ => Err(Unopened::ByUs(admit::superseded())),
        }
    }
}

impl Session {
    pub(crate) fn id(&self) -> SessionId {
        self.record.id
    }

    /// How much its owner may send before the answer. Only frames can tell data from an answer, and who encrypts end
    /// to end needs the answer first; what is sent all the same waits unread.
    pub(crate) fn early_bytes_max(&self, framing: Framing, answer: &Answer) -> usize {
        let framed = framing == Framing::Framed && self.lane.conn.framing() == Framing::Framed;
        if framed && !answer.e2ee { EARLY_DATA_BYTES_MAX } else { 0 }
    }

    async fn hear_answer(&self, deadline: Instant) -> Result<Opened, Unopened> {
        let (lane, agent) = (&*self.lane.conn, &self.record.agent);
        let mut answer = timeout_at(deadline, lane.recv(Speaker::Agent, Channel::Lane)).await;
        if matches!(answer, Ok(Ok(Message::Retire))) {
            // It crossed the Dial: the agent serves it all the same. One such word may come, not two.
            answer = timeout_at(deadline, lane.recv(Speaker::Agent, Channel::Lane)).await;
        }
        let Ok(answer) = answer else { return Err(Unopened::ByUs(admit::silent(agent))) };
        match answer {
            Ok(Message::Dialled { session, e2ee }) if session == self.id() => Ok(Opened { session, e2ee }),
            Ok(Message::Refused(refused)) => Err(Unopened::ByAgent(from_agent(refused))),
            Ok(other) => Err(Unopened::Lost(format!("the agent answered {} to a dial", other.name()))),
            Err(e) => {
                let why = format!("the connection to the agent {agent} was lost while it dialled: {e}");
                Err(Unopened::Lost(why))
            }
        }
    }

    /// It is open.
    pub(crate) fn opened(&self) {
        self.record.opened();
    }

    /// Moves its bytes between its owner's end and the agent's until it is over; what goes up before `answer` passes
    /// `gate`.
    ///
    /// # Errors
    /// Who broke it, or why it did not open.
    pub(crate) fn relay<'a>(
        &'a self,
        end: End<'a>,
        gate: &'a Gate,
        answer: impl Future<Output = Result<(), Unopened>> + 'a,
    ) -> impl Future<Output = Result<(), Unopened>> + 'a {
        let over = async { Err(over(&self.record.owner, &self.lane).await.into()) };
        let lane = End::of(&self.lane.conn, self.id());
        future::or(relay_behind(end, lane, &self.record.traffic, gate, answer), over)
    }

    /// Ends one that went through: its lane is parked again once the agent says that all is delivered and its target
    /// closed.
    ///
    /// # Errors
    /// The agent did not say so.
    pub(crate) async fn finish(self: Box<Self>) -> Result<(), Ended> {
        let Self { lane, slot, record } = *self;
        record.ended(Ended { by: Side::Here, why: Why::Finished });
        drop(slot);
        if lane.conn.framing() == Framing::Raw {
            lane.conn.close_gently();
            return Ok(());
        }
        let over = async { Err(over(&record.owner, &lane).await) };
        let settled = future::or(settled(&lane.conn, record.id, Speaker::Agent, Side::Target), over).await;
        match settled {
            Ok(()) => match lane.idle() {
                Ok(idle) => parking::park(&record.owner.local, idle),
                Err(lane) => lane.conn.close(1002, "half a message behind a session"),
            },
            Err(ended) => lane.conn.close(CLOSE_RESET, &ended.by_name("the gateway")),
        }
        settled
    }

    /// Ends one that broke, together with its owner's connection, which `reset_owner` ends. It counts as a session until both
    /// sides have what they were sent.
    pub(crate) async fn break_off(self: Box<Self>, reset_owner: impl Future<Output = ()>, ended: Ended) {
        let Self { lane, slot: _slot, record } = *self;
        record.ended(ended);
        future::zip(reset(*lane.conn, ended), reset_owner).await;
    }

    /// Ends one that did not open. A lane on which data of it may be under way serves nothing more.
    pub(crate) fn give_up(self, unopened: Unopened, early_data: bool) -> Telling {
        if !early_data {
            return Telling::Refusal(self.refuse(unopened));
        }
        let id = self.id();
        match unopened {
            // Nobody knows what the target got: its owner must not think that it was nothing.
            Unopened::Lost(why) => Telling::Reset(why, linger::PATIENCE),
            Unopened::Ended(ended) => Telling::Reset(ended.by_name("the gateway"), linger::patience(ended)),
            Unopened::ByAgent(refused) => {
                self.lane.conn.close(1000, "this lane has served a session that was refused");
                Telling::Refusal(refused.of(id))
            }
            Unopened::ByUs(refused) => Telling::Refusal(refused.of(id)),
        }
    }

    /// The refusal of a session of which nothing went to the agent but the Dial. A lane whose agent has answered serves
    /// on.
    fn refuse(self, unopened: Unopened) -> Refused {
        let Self { lane, record, .. } = self;
        let refused = match unopened {
            Unopened::ByAgent(refused) => {
                if lane.conn.framing() == Framing::Framed
                    && let Ok(idle) = lane.idle()
                {
                    parking::park(&record.owner.local, idle);
                }
                refused
            }
            Unopened::ByUs(refused) => refused,
            Unopened::Lost(why) => Refused::new(RefusalCode::LaneLost, why),
            Unopened::Ended(ended) => Refused::new(RefusalCode::Other, ended.to_string()),
        };
        refused.of(record.id)
    }
}

/// Resets one side's connection of a session that ended so, behind everything that was sent.
pub(crate) async fn reset(conn: Conn, ended: Ended) {
    linger::reset_conn(conn, &ended.by_name("the gateway"), linger::patience(ended)).await;
}

/// Returns when a session must end because of who its sides are: a token has expired, its bearer was dismissed, or the
/// agent answers no more.
async fn over(owner: &Owner, lane: &Lane) -> Ended {
    let first = owner.who.expires_at.min(lane.entry.principal.expires_at);
    let mut expired = pin!(sleep_until(first));
    // By hand: a session that stands holds this, and combinators would be twice as large.
    poll_fn(|cx| {
        let why = if let Poll::Ready(why) = owner.seat.poll_dismissed(cx) {
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

/// What is said of a session, and what it moved.
struct Record {
    owner: Rc<Owner>,
    id: SessionId,
    agent: Box<str>,
    since: Instant,
    said: Cell<Said>,
    traffic: Traffic,
}

/// What has been noted of a session.
enum Said {
    /// Nothing: it has not opened, to this.
    Nothing(Box<Target>),
    /// That it opened.
    Opened,
    /// That it ended, or that it never opened.
    All,
}

impl Record {
    fn opened(&self) {
        let Said::Nothing(target) = self.said.replace(Said::Opened) else { return };
        let Owner { local, who, peer_addr, .. } = &*self.owner;
        local.shared.door.note(&Event::Opened {
            who,
            peer_addr: *peer_addr,
            session: self.id,
            agent: &self.agent,
            target: &target,
        });
    }

    fn ended(&self, ended: Ended) {
        let Said::Opened = self.said.replace(Said::All) else { return };
        let Owner { local, who, peer_addr, .. } = &*self.owner;
        let (up_bytes, down_bytes) = (self.traffic.up_bytes.get(), self.traffic.down_bytes.get());
        local.shared.door.note(&Event::Closed {
            who,
            peer_addr: *peer_addr,
            session: self.id,
            agent: &self.agent,
            up_bytes,
            down_bytes,
            lasted: self.since.elapsed(),
            ended,
        });
        tracing::debug!(
            session = ?self.id,
            client = who.name,
            agent = &*self.agent,
            up_bytes,
            down_bytes,
            "session ended: {ended}"
        );
    }
}

impl Drop for Record {
    /// One that nobody has ended goes with its worker, or with a task that failed.
    fn drop(&mut self) {
        let why = if self.owner.local.stopping.get() { Why::Shutdown } else { Why::Internal };
        self.ended(Ended { by: Side::Here, why });
    }
}

/// An agent may say why it could not dial; it may not speak for the gateway.
fn from_agent(refused: Refused) -> Refused {
    use RefusalCode as Code;
    let code = match refused.code {
        code @ (Code::Policy
        | Code::DeniedByAgent
        | Code::Limited
        | Code::TargetRefused
        | Code::TargetUnresolvable
        | Code::TargetUnreachable
        | Code::TargetTimeout
        | Code::Unsupported) => code,
        _ => Code::Other,
    };
    Refused::new(code, printable(&refused.reason, REASON_CHARS_MAX))
}

#[cfg(test)]
mod tests {
    use futures_lite::future::zip;
    use narrowlink_proto::limits::Limits;

    use super::*;
    use crate::gateway::{
        kit::{self, session, until},
        table::Kind,
    };

    const SOON: Duration = Duration::from_millis(30);

    #[test]
    fn whatever_becomes_of_a_session_that_opened_its_end_is_noted_once() {
        kit::run(async {
            let (worker, agent) = kit::setting(Limits::default());
            let open = async |n| {
                let lane = worker.park(&agent, Framing::Framed);
                let (got, _) = zip(worker.asked(n), lane.accept()).await;
                (got.ok().unwrap().0, lane)
            };
            let (never, _lane) = open(1).await;
            drop(never);
            assert!(worker.door.events().is_empty(), "it never opened");
            let (failed, _lane) = open(2).await;
            failed.opened();
            failed.opened();
            drop(failed);
            let noted = ["laptop opened 2 at home", "2 ended: 0 up, 0 down, Here internal"];
            assert_eq!(worker.door.events(), noted);
            let (late, lane) = open(3).await;
            late.opened();
            let finishing = async {
                until(|| worker.count(Kind::Session) == 0).await;
                lane.say(&Message::Ready { session: session(3) }).await;
            };
            assert_eq!(zip(late.finish(), finishing).await.0, Ok(()));
            let noted = ["laptop opened 3 at home", "3 ended: 0 up, 0 down, Here finished"];
            assert_eq!(worker.door.events(), noted);
            let (left, _lane) = open(4).await;
            left.opened();
            worker.local.stop();
            drop(left);
            assert_eq!(worker.door.events()[1], "4 ended: 0 up, 0 down, Here shutdown");
        });
    }

    #[test]
    fn an_agent_s_word_of_retirement_may_cross_one_dial_and_no_more() {
        kit::run(async {
            let (worker, agent) = kit::setting(Limits::default());
            let lane = worker.park(&agent, Framing::Framed);
            let crossed = async {
                let dial = lane.dial().await;
                lane.say(&Message::Retire).await;
                lane.say(&Message::Dialled { session: dial.session, e2ee: None }).await;
            };
            assert!(zip(worker.asked(1), crossed).await.0.is_ok());
            let lane = worker.park(&agent, Framing::Framed);
            let twice = async {
                lane.dial().await;
                lane.say(&Message::Retire).await;
                lane.say(&Message::Retire).await;
            };
            let lost = worker.refused(2, twice).await;
            assert_eq!(lost.code, RefusalCode::LaneLost);
            assert!(lost.reason.contains("answered retire to a dial"), "{lost}");
        });
    }

    #[test]
    fn an_answer_that_does_not_count_is_a_lost_lane() {
        kit::run(async {
            let (worker, agent) = kit::setting(Limits::default());
            let other = Message::Dialled { session: session(9), e2ee: None };
            for (n, answer) in [(1, Some(other)), (2, None)] {
                let lane = worker.park(&agent, Framing::Framed);
                let answering = async {
                    lane.dial().await;
                    if let Some(answer) = &answer {
                        lane.say(answer).await;
                    } else {
                        lane.write(&[0xFF]).await;
                    }
                };
                assert_eq!(worker.refused(n, answering).await.code, RefusalCode::LaneLost);
            }
            let lane = worker.park(&agent, Framing::Framed);
            let gone = async move { drop(lane.dial().await) };
            assert_eq!(worker.refused(3, gone).await.code, RefusalCode::LaneLost);
            assert_eq!(worker.count(Kind::Lane), 0);
        });
    }

    #[test]
    fn an_agent_that_does_not_answer_or_must_go_while_it_dials_is_waited_for_no_longer() {
        kit::run(async {
            let worker = kit::worker(Limits { dial_timeout: SOON, ..Limits::default() });
            let agent = worker.agent();
            let lane = worker.park(&agent, Framing::Framed);
            let silent = worker.refused(1, async { drop(lane.dial().await) }).await;
            assert_eq!(silent.code, RefusalCode::AgentTimeout);
            assert!(silent.reason.contains("does not answer"), "{silent}");
            lane.cut().await;
            worker.shared.set_limits(Limits::default());
            let begun = Instant::now();
            let lane = worker.park(&agent, Framing::Framed);
            let expelled = async {
                lane.dial().await;
                worker.expel("home", Why::Revoked);
            };
            assert_eq!(worker.refused(2, expelled).await.code, RefusalCode::AgentTimeout);
            assert!(begun.elapsed() < Limits::default().dial_timeout / 2);
            lane.cut().await;
        });
    }

    #[test]
    fn an_agent_may_say_no_in_its_own_words_and_its_lane_serves_on() {
        kit::run(async {
            let (worker, agent) = kit::setting(Limits::default());
            let lane = worker.park(&agent, Framing::Framed);
            for (n, said, heard) in [
                (1, RefusalCode::TargetRefused, RefusalCode::TargetRefused),
                (2, RefusalCode::DeniedByAgent, RefusalCode::DeniedByAgent),
                (3, RefusalCode::Unauthenticated, RefusalCode::Other),
                (4, RefusalCode::Superseded, RefusalCode::Other),
            ] {
                let answer = async {
                    let dial = lane.dial().await;
                    lane.say(&Message::refused(dial.session, said, "because")).await;
                };
                let refused = worker.refused(n, answer).await;
                assert_eq!((refused.code, &*refused.reason), (heard, "because"));
            }
            let raw = worker.park(&agent, Framing::Raw);
            let answer = async {
                let dial = raw.dial().await;
                raw.say(&Message::refused(dial.session, RefusalCode::Limited, "busy")).await;
            };
            assert_eq!(worker.refused(5, answer).await.code, RefusalCode::Limited);
            raw.cut().await;
        });
    }

    #[test]
    fn an_agent_can_not_speak_for_the_gateway() {
        for code in [RefusalCode::Unauthenticated, RefusalCode::AgentNotFound, RefusalCode::Draining] {
            assert_eq!(from_agent(Refused::new(code, "x")).code, RefusalCode::Other);
        }
        let words = format!("no\r\n\u{202e}w\u{2066}ay{}", "!".repeat(999));
        let told = from_agent(Refused::new(RefusalCode::TargetRefused, words));
        assert_eq!(told.code, RefusalCode::TargetRefused);
        assert!(told.reason.starts_with("noway!") && told.reason.len() == REASON_CHARS_MAX);
    }
}
