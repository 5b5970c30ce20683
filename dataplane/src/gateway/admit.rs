//! Role: "may it?": who a token says one is, and whether that one may have this session. The one
//! file that asks the door.
//! Invariants: every open is decided, whichever way it came · nothing is dialled for who has lost the right to
//! it while it waited · an id is used once · the client hears nothing of an agent but what it may hear.
//! See: ARCHITECTURE.md "Open".

use std::{cell::Cell, net::SocketAddr, rc::Rc, sync::Arc, time::Instant};

use futures_lite::future;
use narrowlink_proto::{
    ended::{Ended, RefusalCode, Refused},
    feature::Feature,
    id::{AgentKey, SessionId},
    message::{Channel, Dial, Message, Open, Speaker},
    printable::printable,
    target::Target,
    upgrade::{Framing, LaneProof, Opened},
};

use crate::{
    gateway::{
        claims::{Claim, ClaimError, Use},
        directory::AgentEntry,
        door::{self, Rejected},
        lane::Lane,
        local::Local,
        parking,
        principal::Principal,
        usage::Slot,
    },
    run::timer::timeout_at,
    tunnel::conn::Conn,
};

/// An agent's words that reach a client are no longer than this.
const REASON_CHARS_MAX: usize = 300;

/// What is repeated of a name that nobody has.
const NAME_CHARS_MAX: usize = 64;

/// Who holds this token.
pub(crate) fn login(local: &Local, channel: Channel, token: &str) -> Result<Arc<Principal>, Rejected> {
    if local.stopping.get() {
        return Err(
            Refused::new(RefusalCode::Draining, "this gateway shuts down; try again in a moment").into()
        );
    }
    local.shared.door.login(channel, token)
}

/// The agent whose lane this is, if its proof holds, and the lane's place among that agent's.
pub(crate) fn lane(
    local: &Local,
    who: &Principal,
    proof: &LaneProof,
) -> Result<(Arc<AgentEntry>, Slot), Refused> {
    let no = || Refused::new(RefusalCode::Unauthenticated, "this lane belongs to no link that stands");
    let key = AgentKey { uid: who.uid, name: who.name.clone() };
    let entry = local.shared.directory.find(&key).ok_or_else(no)?;
    if entry.link != proof.link || !entry.secret.permits_lane(&proof.link, &proof.lane, &proof.proof) {
        return Err(no());
    }
    let slot = who.usage.lane(&local.shared.limits())?;
    let id = (who.uid, Use::Lane, *proof.lane.as_bytes());
    let claim = local.shared.claims.claim(id, &who.token_id, Instant::now()).map_err(|e| match e {
        ClaimError::Used => no(),
        ClaimError::Full => Refused::new(RefusalCode::Limited, "too many lanes were opened just now"),
    })?;
    if claim.answer() { Ok((entry, slot)) } else { Err(no()) }
}

/// An agent that has been asked to dial; dropped, it never answers.
pub(crate) struct Dialling<'a> {
    claim: Claim<'a>,
    deadline: Instant,
    /// The answer is part of an end-to-end handshake.
    pub(crate) e2ee: bool,
}

/// What is left of an Open once it is dialled: a session that stands holds nothing else of it.
pub(crate) struct Asked {
    pub(crate) session: SessionId,
    pub(crate) agent: Box<str>,
    pub(crate) since: Instant,
    /// To be said when it opens.
    pub(crate) target: Cell<Option<Box<Target>>>,
}

impl From<Open> for Asked {
    fn from(open: Open) -> Self {
        let target = Cell::new(Some(Box::new(open.target)));
        Self { session: open.session, agent: open.agent.into(), since: Instant::now(), target }
    }
}

/// Why a session that was dialled did not open.
#[derive(Debug)]
pub(crate) enum Unopened {
    /// The agent refused: nothing of the session has reached a target.
    ByAgent(Refused),
    /// We did, without a word of the agent's.
    ByUs(Refused),
    /// The agent gave no answer that counts, and it may have dialled; why, for the client.
    Lost(String),
    /// It ended while it was dialled.
    Ended(Ended),
}

impl From<Ended> for Unopened {
    fn from(ended: Ended) -> Self {
        Self::Ended(ended)
    }
}

/// Decides about an Open and asks the agent to dial.
///
/// # Errors
/// The refusal for the client.
pub(crate) async fn dial<'a>(
    local: &'a Rc<Local>,
    who: &Principal,
    open: &Open,
    peer_addr: SocketAddr,
) -> Result<((Lane, Slot), Dialling<'a>), Refused> {
    let session = open.session;
    let decided = async {
        who.usage.dial()?;
        let dial = local.shared.door.permit(who, open, peer_addr)?;
        let slot = who.usage.session()?;
        let id = (who.uid, Use::Session, *session.as_bytes());
        let claim = local.shared.claims.claim(id, &who.token_id, Instant::now());
        let claim = claim.map_err(|e| match e {
            ClaimError::Used => Refused::new(RefusalCode::Protocol, "this session id has been used already"),
            ClaimError::Full => Refused::new(RefusalCode::Limited, "too many sessions were opened just now"),
        })?;
        let newer = async {
            claim.superseded().await;
            Err(superseded())
        };
        let deadline = Instant::now() + local.shared.limits().dial_timeout;
        match future::or(newer, find_and_dial(local, who, open, dial, deadline)).await {
            Ok(lane) => Ok(((lane, slot), Dialling { claim, deadline, e2ee: open.e2ee.is_some() })),
            // Used up in any case: a refusal is an answer, too.
            Err(refused) => Err(if claim.answer() { refused } else { superseded() }),
        }
    };
    decided.await.map_err(|refused: Refused| refused.of(session))
}

/// As [`dial`], and waits for the agent's answer.
///
/// # Errors
/// As there.
pub(crate) async fn open(
    local: &Rc<Local>,
    who: &Principal,
    open: &Open,
    peer_addr: SocketAddr,
) -> Result<((Lane, Slot), Opened), Refused> {
    let ((lane, slot), dialling) = dial(local, who, open, peer_addr).await?;
    let lost = async {
        lane.seat.dismissed().await;
        Err(Unopened::ByUs(silent(&open.agent)))
    };
    match future::or(lost, dialling.answer(&lane.conn, open.session, &open.agent)).await {
        Ok(opened) => Ok(((lane, slot), opened)),
        Err(unopened) => Err(refusal(local, lane, unopened, open.session)),
    }
}

/// What a client is told of a session of which nothing went to the agent but the Dial. A lane whose
/// agent has answered serves on.
pub(crate) fn refusal(local: &Rc<Local>, lane: Lane, unopened: Unopened, session: SessionId) -> Refused {
    let refused = match unopened {
        Unopened::ByAgent(refused) => {
            if lane.conn.framing() == Framing::Framed
                && let Ok(idle) = lane.idle()
            {
                parking::park(local, idle);
            }
            refused
        }
        Unopened::ByUs(refused) => refused,
        Unopened::Lost(why) => Refused::new(RefusalCode::LaneLost, why),
        Unopened::Ended(ended) => Refused::new(RefusalCode::Other, ended.to_string()),
    };
    refused.of(session)
}

fn superseded() -> Refused {
    Refused::new(RefusalCode::Superseded, "a newer request for this session came")
}

async fn find_and_dial(
    local: &Rc<Local>,
    who: &Principal,
    open: &Open,
    dial: Dial,
    deadline: Instant,
) -> Result<Lane, Refused> {
    let key = AgentKey { uid: who.uid, name: open.agent.clone() };
    let Some(entry) = local.shared.directory.find(&key) else {
        let name = open.agent.chars().take(NAME_CHARS_MAX).collect::<String>();
        let reason = format!("no agent named {} is connected", name.escape_debug());
        return Err(Refused::new(RefusalCode::AgentNotFound, reason));
    };
    needed(open, &entry)?;
    let message = Message::Dial(dial);
    let mut entry = entry;
    loop {
        let lane = match parking::take(local, &entry, deadline).await {
            Ok(lane) => lane,
            Err(refused) => {
                // The agent has connected anew while this one waited: then its new link has lanes.
                let newer = local.shared.directory.find(&key).filter(|newer| newer.link != entry.link);
                entry = newer.ok_or(refused)?;
                continue;
            }
        };
        if let Err(refused) = still_stands(local, who) {
            if let Ok(idle) = lane.idle() {
                parking::park(local, idle);
            }
            return Err(refused);
        }
        match timeout_at(deadline, lane.conn.send(&message)).await {
            Ok(Ok(())) => return Ok(lane),
            // Dead before the Dial was written: nobody needs to know.
            Ok(Err(_)) => {}
            Err(_) => return Err(silent(&open.agent)),
        }
    }
}

/// Whether an agent can do what is asked of it.
fn needed(open: &Open, agent: &AgentEntry) -> Result<(), Refused> {
    if open.e2ee.is_some() && !agent.features.has(Feature::EndToEnd) {
        let reason = format!("the agent {} has no end-to-end encryption; update it", agent.key.name);
        return Err(Refused::new(RefusalCode::Unsupported, reason));
    }
    Ok(())
}

/// Whether `who` may still be here, after a wait for a lane.
fn still_stands(local: &Local, who: &Principal) -> Result<(), Refused> {
    if Instant::now() < who.expires_at && door::standing(&*local.shared.door, who).is_ok() {
        return Ok(());
    }
    let reason = "the token does not hold any more: it has expired, or was revoked";
    Err(Refused::new(RefusalCode::Unauthenticated, reason))
}

fn silent(agent: &str) -> Refused {
    Refused::new(RefusalCode::AgentTimeout, format!("the agent {agent} is connected but does not answer"))
}

impl Dialling<'_> {
    /// Waits for the agent's answer on its lane.
    ///
    /// # Errors
    /// Why there is no session.
    pub(crate) async fn answer(
        self,
        lane: &Conn,
        session: SessionId,
        agent: &str,
    ) -> Result<Opened, Unopened> {
        let Self { claim, deadline, .. } = self;
        let newer = async {
            claim.superseded().await;
            Err(Unopened::ByUs(superseded()))
        };
        let answer = future::or(newer, heard(lane, session, agent, deadline)).await;
        // Used up in any case: a refusal is an answer, too.
        if claim.answer() { answer } else { Err(Unopened::ByUs(superseded())) }
    }
}

async fn heard(lane: &Conn, asked: SessionId, agent: &str, deadline: Instant) -> Result<Opened, Unopened> {
    let mut answer = timeout_at(deadline, lane.recv(Speaker::Agent, Channel::Lane)).await;
    if matches!(answer, Ok(Ok(Message::Retire))) {
        // It crossed the Dial: the agent serves it all the same. One such word may come, not two.
        answer = timeout_at(deadline, lane.recv(Speaker::Agent, Channel::Lane)).await;
    }
    let Ok(answer) = answer else { return Err(Unopened::ByUs(silent(agent))) };
    match answer {
        Ok(Message::Dialled { session, e2ee }) if session == asked => Ok(Opened { session, e2ee }),
        Ok(Message::Refused(refused)) => Err(Unopened::ByAgent(from_agent(refused))),
        Ok(other) => Err(Unopened::Lost(format!("the agent answered {} to a dial", other.name()))),
        Err(e) => {
            Err(Unopened::Lost(format!("the connection to the agent {agent} was lost while it dialled: {e}")))
        }
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
    use std::time::Duration;

    use futures_lite::future::{poll_once, zip};
    use narrowlink_proto::{
        ended::Why,
        feature::Features,
        id::{LaneId, LinkId, Uid},
        limits::Limits,
        token::Allowance,
    };

    use super::*;
    use crate::gateway::{
        kit::{self, Agent, PEER, Worker, session},
        table::Kind,
    };

    const SOON: Duration = Duration::from_millis(30);

    /// What a session has once it is open.
    type Got = ((Lane, Slot), Opened);

    fn setting() -> (Worker, Agent) {
        let worker = kit::worker(Limits::default());
        let agent = worker.agent();
        (worker, agent)
    }

    async fn asked(worker: &Worker, n: u8) -> Result<Got, Refused> {
        open(&worker.local, &worker.laptop, &kit::open(n), PEER).await
    }

    /// The refusal of a session for which nothing is dialled, or which the lane's end meets as `answer` does.
    async fn refused(worker: &Worker, n: u8, answer: impl Future<Output = ()>) -> Refused {
        let (got, ()) = zip(asked(worker, n), answer).await;
        let refused = got.err().unwrap();
        assert_eq!(refused.session, Some(session(n)), "a refusal says of what");
        refused
    }

    #[test]
    fn an_id_is_used_once_whether_its_session_opened_or_was_refused_and_users_have_ids_of_their_own() {
        kit::run(async {
            let (worker, agent) = setting();
            let lane = worker.park(&agent, Framing::Framed);
            let (_first, dial) = zip(asked(&worker, 1), lane.accept()).await;
            assert_eq!(dial.session, session(1));
            let lane = worker.park(&agent, Framing::Framed);
            let no = async {
                let dial = lane.dial().await;
                lane.say(&Message::refused(dial.session, RefusalCode::TargetTimeout, "no")).await;
            };
            assert_eq!(refused(&worker, 2, no).await.code, RefusalCode::TargetTimeout);
            for n in [1, 2] {
                let used = refused(&worker, n, async {}).await;
                assert_eq!(used.code, RefusalCode::Protocol);
                assert!(used.reason.contains("used already"), "{used}");
            }
            let other = Principal { uid: Uid::from_u128(9), ..kit::who(Speaker::Client, "laptop", SOON) };
            let not_mine = open(&worker.local, &other, &kit::open(1), PEER).await.err().unwrap();
            assert_eq!(not_mine.code, RefusalCode::AgentNotFound, "nobody finds out about another's");
        });
    }

    #[test]
    fn a_request_that_is_repeated_takes_the_place_of_the_one_that_waits_and_only_its_own() {
        kit::run(async {
            let (worker, agent) = setting();
            let mut first = Box::pin(asked(&worker, 1));
            assert!(poll_once(&mut first).await.is_none());
            let guest = kit::who(Speaker::Client, "guest", Duration::from_secs(60));
            let stolen = open(&worker.local, &guest, &kit::open(1), PEER).await.err().unwrap();
            assert_eq!(stolen.code, RefusalCode::Protocol, "another token's");
            let mut second = Box::pin(asked(&worker, 1));
            assert!(poll_once(&mut second).await.is_none());
            assert_eq!(first.await.err().unwrap().code, RefusalCode::Superseded);
            // The same, once the agent has been asked.
            let lanes = [(); 2].map(|()| worker.park(&agent, Framing::Framed));
            let (waiting, dial) = zip(poll_once(&mut second), lanes[0].dial()).await;
            assert!(waiting.is_none() && dial.session == session(1));
            let third = asked(&worker, 1);
            let (third, _) = zip(third, lanes[1].accept()).await;
            assert_eq!(second.await.err().unwrap().code, RefusalCode::Superseded);
            assert!(third.is_ok());
            lanes[0].cut().await;
        });
    }

    #[test]
    fn an_agent_that_can_not_encrypt_end_to_end_is_not_dialled_for_who_asks_for_it() {
        let sealed = |n| Open { e2ee: Some("half".into()), ..kit::open(n) };
        kit::run(async {
            let (worker, agent) = setting();
            let lane = worker.park(&agent, Framing::Framed);
            let refused = open(&worker.local, &worker.laptop, &sealed(1), PEER).await.err().unwrap();
            assert_eq!(refused.code, RefusalCode::Unsupported);
            assert!(refused.reason.contains("the agent home has no end-to-end encryption"), "{refused}");
            let (got, dial) = zip(asked(&worker, 2), lane.accept()).await;
            assert!(got.is_ok() && dial.session == session(2), "the first never came to it");

            let agent = worker.agent_as(&worker.home, Features::NONE.with(Feature::EndToEnd));
            let lane = worker.park(&agent, Framing::Framed);
            let answer = async {
                let dial = lane.dial().await;
                assert_eq!(dial.e2ee.as_deref(), Some("half"));
                let e2ee = Some("other half".to_owned());
                lane.say(&Message::Dialled { session: dial.session, e2ee }).await;
            };
            let sealed = sealed(3);
            let (got, ()) = zip(open(&worker.local, &worker.laptop, &sealed, PEER), answer).await;
            assert_eq!(got.ok().unwrap().1.e2ee.as_deref(), Some("other half"));
        });
    }

    #[test]
    fn nothing_is_dialled_for_who_has_lost_the_right_to_it_while_it_waited() {
        kit::run(async {
            let (worker, agent) = setting();
            let mut waiting = Box::pin(asked(&worker, 1));
            assert!(poll_once(&mut waiting).await.is_none());
            worker.door.known().expelled.insert("laptop", Why::Revoked);
            let lane = worker.park(&agent, Framing::Framed);
            assert_eq!(waiting.await.err().unwrap().code, RefusalCode::Unauthenticated);
            worker.door.known().expelled.clear();
            let (_got, dial) = zip(asked(&worker, 2), lane.accept()).await;
            assert_eq!(dial.session, session(2), "the lane serves another, and has heard of nobody else");
        });
    }

    #[test]
    fn a_lane_found_dead_before_its_dial_is_replaced_and_nobody_notices() {
        kit::run(async {
            let (worker, agent) = setting();
            let [alive, dead] = [(); 2].map(|()| worker.park(&agent, Framing::Framed));
            // The worker has had no turn in which to hear of it.
            drop(dead);
            let (got, dial) = zip(asked(&worker, 1), alive.accept()).await;
            assert!(got.is_ok() && dial.session == session(1));
        });
    }

    #[test]
    fn an_agent_that_has_come_back_serves_who_waited_for_it() {
        kit::run(async {
            let (worker, before) = setting();
            let mut waiting = Box::pin(asked(&worker, 1));
            assert!(poll_once(&mut waiting).await.is_none());
            let lane = worker.park(&worker.agent(), Framing::Framed);
            worker.local.lanes.borrow_mut().dismiss_waiting(before.entry.link);
            let (got, _) = zip(waiting, lane.accept()).await;
            assert!(got.is_ok());
        });
    }

    #[test]
    fn an_agent_s_word_of_retirement_may_cross_one_dial_and_no_more() {
        kit::run(async {
            let (worker, agent) = setting();
            let lane = worker.park(&agent, Framing::Framed);
            let crossed = async {
                let dial = lane.dial().await;
                lane.say(&Message::Retire).await;
                lane.say(&Message::Dialled { session: dial.session, e2ee: None }).await;
            };
            assert!(zip(asked(&worker, 1), crossed).await.0.is_ok());
            let lane = worker.park(&agent, Framing::Framed);
            let twice = async {
                lane.dial().await;
                lane.say(&Message::Retire).await;
                lane.say(&Message::Retire).await;
            };
            let lost = refused(&worker, 2, twice).await;
            assert_eq!(lost.code, RefusalCode::LaneLost);
            assert!(lost.reason.contains("answered retire to a dial"), "{lost}");
        });
    }

    #[test]
    fn an_answer_that_does_not_count_is_a_lost_lane() {
        kit::run(async {
            let (worker, agent) = setting();
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
                assert_eq!(refused(&worker, n, answering).await.code, RefusalCode::LaneLost);
            }
            let lane = worker.park(&agent, Framing::Framed);
            let gone = async move { drop(lane.dial().await) };
            assert_eq!(refused(&worker, 3, gone).await.code, RefusalCode::LaneLost);
            assert_eq!(worker.count(Kind::Lane), 0);
        });
    }

    #[test]
    fn an_agent_that_does_not_answer_or_must_go_while_it_dials_is_waited_for_no_longer() {
        kit::run(async {
            let worker = kit::worker(Limits { dial_timeout: SOON, ..Limits::default() });
            let agent = worker.agent();
            let lane = worker.park(&agent, Framing::Framed);
            let silent = refused(&worker, 1, async { drop(lane.dial().await) }).await;
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
            assert_eq!(refused(&worker, 2, expelled).await.code, RefusalCode::AgentTimeout);
            assert!(begun.elapsed() < Limits::default().dial_timeout / 2);
            lane.cut().await;
        });
    }

    #[test]
    fn an_agent_may_say_no_in_its_own_words_and_its_lane_serves_on() {
        kit::run(async {
            let (worker, agent) = setting();
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
                let refused = refused(&worker, n, answer).await;
                assert_eq!((refused.code, &*refused.reason), (heard, "because"));
            }
            let raw = worker.park(&agent, Framing::Raw);
            let answer = async {
                let dial = raw.dial().await;
                raw.say(&Message::refused(dial.session, RefusalCode::Limited, "busy")).await;
            };
            assert_eq!(refused(&worker, 5, answer).await.code, RefusalCode::Limited);
            raw.cut().await;
        });
    }

    #[test]
    fn who_asks_for_nobody_or_too_much_hears_so_and_what_it_repeats_is_bounded() {
        kit::run(async {
            let (worker, agent) = setting();
            let nobody = Open { agent: "\u{202e}x".repeat(99), ..kit::open(1) };
            let refused = open(&worker.local, &worker.laptop, &nobody, PEER).await.err().unwrap();
            assert_eq!(refused.code, RefusalCode::AgentNotFound);
            assert!(
                refused.reason.matches("\\u{202e}x").count() == 32 && refused.reason.is_ascii(),
                "{refused}"
            );
            let allowed = Allowance { sessions: std::num::NonZeroU32::new(1), ..Allowance::default() };
            let one = Principal {
                usage: kit::usage(&allowed),
                ..kit::who(Speaker::Client, "laptop", Duration::from_secs(60))
            };
            let lanes = [(); 2].map(|()| worker.park(&agent, Framing::Framed));
            let ask = async |n| open(&worker.local, &one, &kit::open(n), PEER).await;
            let (stands, _) = zip(ask(2), lanes[1].accept()).await;
            assert_eq!(ask(3).await.err().unwrap().code, RefusalCode::Limited);
            drop(stands);
            assert!(zip(ask(4), lanes[0].accept()).await.0.is_ok());
        });
    }

    #[test]
    fn a_lane_is_taken_from_whom_its_link_s_secret_proves_and_once() {
        let (worker, agent) = setting();
        let entry = &agent.entry;
        let proof = |n, link| {
            let lane = LaneId::from_bytes([n; 32]);
            LaneProof { link, lane, proof: entry.secret.prove_lane(&entry.link, &lane) }
        };
        let taken = |who: &Principal, proof: &LaneProof| match lane(&worker.local, who, proof) {
            Ok((theirs, _)) => theirs.link == entry.link,
            Err(refused) => {
                assert_eq!(refused.code, RefusalCode::Unauthenticated);
                assert_eq!(refused.reason, "this lane belongs to no link that stands");
                false
            }
        };
        let forged = LaneProof { proof: [0; 32], ..proof(1, entry.link) };
        assert!(!taken(&worker.home, &forged));
        assert!(!taken(&worker.home, &proof(1, LinkId::from_bytes([9; 32]))), "another link's");
        let other = kit::who(Speaker::Agent, "other", SOON);
        assert!(!taken(&other, &proof(1, entry.link)), "another agent's");
        assert!(taken(&worker.home, &proof(1, entry.link)));
        assert!(!taken(&worker.home, &proof(1, entry.link)), "a second time");
        let newer = worker.agent();
        assert!(!taken(&worker.home, &proof(2, entry.link)), "a link that has been replaced");
        drop(newer);
    }

    #[test]
    fn nobody_logs_in_at_a_gateway_that_stops() {
        let (worker, _) = setting();
        assert!(login(&worker.local, Channel::Stream, "client").is_ok());
        worker.local.stop();
        let rejected = login(&worker.local, Channel::Stream, "client").err().unwrap();
        assert_eq!(rejected.refused.code, RefusalCode::Draining);
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
