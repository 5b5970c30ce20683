//! Role: "may it?": who a token says one is, and whether that one may have this session.
//! Invariants: every open is decided, whichever way it came · nothing is dialled for who has lost the right to
//! it while it waited · an id is used once.
//! See: ARCHITECTURE.md "Open".

use std::{
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use narrowlink_proto::{
    ended::{RefusalCode, Refused},
    feature::Feature,
    id::AgentKey,
    measure::{Measure, Station},
    message::{Channel, Dial, Message, Open},
    target::Target,
    upgrade::LaneProof,
};

use crate::{
    gateway::{
        claims::{Claim, ClaimError, Use},
        directory::AgentEntry,
        door::{self, Rejected},
        lane::Lane,
        local::Local,
        measure, parking,
        principal::Principal,
        usage::Slot,
    },
    run::timer::{sleep, timeout_at},
};

/// How often an agent that is to come is looked for.
const ARRIVAL_TICK: Duration = Duration::from_millis(5);
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

/// What a session that may be has: its agent has been asked to dial.
pub(crate) struct Admitted {
    pub(crate) lane: Lane,
    /// Its place among the token's and the user's sessions.
    pub(crate) slot: Slot,
    /// Its id, while there is no answer; none where nobody else could have drawn it.
    pub(crate) claim: Option<Claim>,
    /// When the agent must have answered.
    pub(crate) deadline: Instant,
}

/// Decides about an Open and asks the agent to dial.
///
/// # Errors
/// The refusal for the client.
pub(crate) async fn dial(
    local: &Rc<Local>,
    who: &Principal,
    open: &Open,
    peer_addr: SocketAddr,
) -> Result<Admitted, Refused> {
    let session = open.session;
    let decided = async {
        who.usage.dial()?;
        let dial = local.shared.door.permit(who, open, peer_addr)?;
        let slot = match open.target {
            Target::Measure(_) => who.usage.measurement()?,
            _ => who.usage.session()?,
        };
        let id = (who.uid, Use::Session, *session.as_bytes());
        let claim = local.shared.claims.claim(id, &who.token_id, Instant::now());
        let claim = claim.map_err(|e| match e {
            ClaimError::Used => Refused::new(RefusalCode::Protocol, "this session id has been used already"),
            ClaimError::Full => Refused::new(RefusalCode::Limited, "too many sessions were opened just now"),
        })?;
        let deadline = Instant::now() + local.shared.limits().dial_timeout;
        let key = AgentKey { uid: who.uid, name: open.agent.clone() };
        match claim.unless_superseded(find_and_dial(local, who, key, dial, deadline)).await {
            Some(Ok(lane)) => Ok(Admitted { lane, slot, claim: Some(claim), deadline }),
            // Used up in any case: a refusal is an answer, too.
            Some(Err(refused)) if claim.answer() => Err(refused),
            _ => Err(superseded()),
        }
    };
    decided.await.map_err(|refused: Refused| refused.of(session))
}

/// Asks an agent to dial what it has published, for a visitor.
///
/// # Errors
/// The refusal. The visitor is not told it.
pub(crate) async fn visit(
    local: &Rc<Local>,
    (who, agent): (&Principal, &AgentKey),
    dial: Dial,
) -> Result<Admitted, Refused> {
    let session = dial.session;
    let decided = async {
        who.usage.dial()?;
        let slot = who.usage.session()?;
        let deadline = Instant::now() + local.shared.limits().dial_timeout;
        let lane = find_and_dial(local, who, agent.clone(), dial, deadline).await?;
        Ok(Admitted { lane, slot, claim: None, deadline })
    };
    decided.await.map_err(|refused: Refused| refused.of(session))
}

pub(crate) fn superseded() -> Refused {
    Refused::new(RefusalCode::Superseded, "a newer request for this session came")
}

async fn find_and_dial(
    local: &Rc<Local>,
    who: &Principal,
    key: AgentKey,
    dial: Dial,
    deadline: Instant,
) -> Result<Lane, Refused> {
    let Some(entry) = find(local, &key).await else {
        let name = key.name.chars().take(NAME_CHARS_MAX).collect::<String>();
        let reason = format!("no agent named {} is connected", name.escape_debug());
        return Err(Refused::new(RefusalCode::AgentNotFound, reason));
    };
    needed(&dial, &entry)?;
    let here = match dial.target {
        Target::Measure(Measure { at: Station::Gateway, how }) => Some(how),
        _ => None,
    };
    let message = Message::Dial(dial);
    let mut entry = entry;
    loop {
        let lane = match here {
            Some(how) => Ok(measure::lane(local, &entry, how)),
            None => parking::take(local, &entry, deadline).await,
        };
        let lane = match lane {
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
            Err(_) => return Err(silent(&key.name)),
        }
    }
}

/// The agent of this name. Where this gateway goes on in another one's place, agents come over from there, and who asks for
/// one is given the time for it.
async fn find(local: &Local, key: &AgentKey) -> Option<Arc<AgentEntry>> {
    loop {
        let found = local.shared.directory.find(key);
        if found.is_some() || Instant::now() >= local.shared.agents_come_until() {
            return found;
        }
        sleep(ARRIVAL_TICK).await;
    }
}

/// Whether an agent can do what is asked of it.
fn needed(dial: &Dial, agent: &AgentEntry) -> Result<(), Refused> {
    if dial.e2ee.is_some() && !agent.features.has(Feature::EndToEnd) {
        let reason = format!("the agent {} has no end-to-end encryption; update it", agent.key.name);
        return Err(Refused::new(RefusalCode::Unsupported, reason));
    }
    if matches!(dial.target, Target::Measure(_)) && !agent.features.has(Feature::Measure) {
        let reason = format!("the agent {} answers no measurements; update it", agent.key.name);
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

pub(crate) fn silent(agent: &str) -> Refused {
    Refused::new(RefusalCode::AgentTimeout, format!("the agent {agent} is connected but does not answer"))
}

#[cfg(test)]
mod tests {
    use futures_lite::future::{poll_once, zip};
    use imbl::OrdMap;
    use narrowlink_proto::{
        ended::Why,
        feature::Features,
        id::{LaneId, LinkId, Uid},
        limits::Limits,
        message::Speaker,
        token::Allowance,
        upgrade::Framing,
    };

    use super::*;
    use crate::gateway::kit::{self, session};

    const SOON: Duration = Duration::from_millis(30);

    #[test]
    fn an_id_is_used_once_whether_its_session_opened_or_was_refused_and_users_have_ids_of_their_own() {
        kit::run(async {
            let (worker, agent) = kit::setting(Limits::default());
            let lane = worker.park(&agent, Framing::Framed);
            let (_first, dial) = zip(worker.asked(1), lane.accept()).await;
            assert_eq!(dial.session, session(1));
            let lane = worker.park(&agent, Framing::Framed);
            let no = async {
                let dial = lane.dial().await;
                lane.say(&Message::refused(dial.session, RefusalCode::TargetTimeout, "no")).await;
            };
            assert_eq!(worker.refused(2, no).await.code, RefusalCode::TargetTimeout);
            for n in [1, 2] {
                let used = worker.refused(n, async {}).await;
                assert_eq!(used.code, RefusalCode::Protocol);
                assert!(used.reason.contains("used already"), "{used}");
            }
            let other = Principal { uid: Uid::from_u128(9), ..kit::who(Speaker::Client, "laptop", SOON) };
            let other = Arc::new(other);
            let not_mine = worker.ask(&other, kit::open(1)).await.err().unwrap();
            assert_eq!(not_mine.code, RefusalCode::AgentNotFound, "nobody finds out about another's");
        });
    }

    #[test]
    fn an_agent_that_comes_over_from_another_gateway_is_waited_for_but_not_long() {
        kit::run(async {
            let (worker, agent) = kit::setting(Limits::default());
            worker.shared.directory.publish(OrdMap::new());
            worker.shared.await_agents(Duration::from_secs(60));
            let mut asked = Box::pin(worker.asked(1));
            assert!(poll_once(&mut asked).await.is_none(), "it is not here yet");
            worker.shared.directory.publish(OrdMap::unit(agent.entry.key.clone(), agent.entry.clone()));
            let lane = worker.park(&agent, Framing::Framed);
            let (got, _) = zip(asked, lane.accept()).await;
            assert!(got.is_ok());
            worker.shared.directory.publish(OrdMap::new());
            worker.shared.await_agents(SOON);
            assert_eq!(worker.refused(2, async {}).await.code, RefusalCode::AgentNotFound);
        });
    }

    #[test]
    fn a_request_that_is_repeated_takes_the_place_of_the_one_that_waits_and_only_its_own() {
        kit::run(async {
            let (worker, agent) = kit::setting(Limits::default());
            let mut first = Box::pin(worker.asked(1));
            assert!(poll_once(&mut first).await.is_none());
            let guest = Arc::new(kit::who(Speaker::Client, "guest", Duration::from_secs(60)));
            let stolen = worker.ask(&guest, kit::open(1)).await.err().unwrap();
            assert_eq!(stolen.code, RefusalCode::Protocol, "another token's");
            let mut second = Box::pin(worker.asked(1));
            assert!(poll_once(&mut second).await.is_none());
            assert_eq!(first.await.err().unwrap().code, RefusalCode::Superseded);
            // The same, once the agent has been asked.
            let lanes = [(); 2].map(|()| worker.park(&agent, Framing::Framed));
            let (waiting, dial) = zip(poll_once(&mut second), lanes[0].dial()).await;
            assert!(waiting.is_none() && dial.session == session(1));
            let third = worker.asked(1);
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
            let (worker, agent) = kit::setting(Limits::default());
            let lane = worker.park(&agent, Framing::Framed);
            let refused = worker.ask(&worker.laptop, sealed(1)).await.err().unwrap();
            assert_eq!(refused.code, RefusalCode::Unsupported);
            assert!(refused.reason.contains("the agent home has no end-to-end encryption"), "{refused}");
            let (got, dial) = zip(worker.asked(2), lane.accept()).await;
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
            let (got, ()) = zip(worker.ask(&worker.laptop, sealed), answer).await;
            assert_eq!(got.ok().unwrap().1.e2ee.as_deref(), Some("other half"));
        });
    }

    #[test]
    fn nothing_is_dialled_for_who_has_lost_the_right_to_it_while_it_waited() {
        kit::run(async {
            let (worker, agent) = kit::setting(Limits::default());
            let mut waiting = Box::pin(worker.asked(1));
            assert!(poll_once(&mut waiting).await.is_none());
            worker.door.known().expelled.insert("laptop", Why::Revoked);
            let lane = worker.park(&agent, Framing::Framed);
            assert_eq!(waiting.await.err().unwrap().code, RefusalCode::Unauthenticated);
            worker.door.known().expelled.clear();
            let (_got, dial) = zip(worker.asked(2), lane.accept()).await;
            assert_eq!(dial.session, session(2), "the lane serves another, and has heard of nobody else");
        });
    }

    #[test]
    fn a_lane_found_dead_before_its_dial_is_replaced_and_nobody_notices() {
        kit::run(async {
            let (worker, agent) = kit::setting(Limits::default());
            let [alive, dead] = [(); 2].map(|()| worker.park(&agent, Framing::Framed));
            // The worker has had no turn in which to hear of it.
            drop(dead);
            let (got, dial) = zip(worker.asked(1), alive.accept()).await;
            assert!(got.is_ok() && dial.session == session(1));
        });
    }

    #[test]
    fn an_agent_that_has_come_back_serves_who_waited_for_it() {
        kit::run(async {
            let (worker, before) = kit::setting(Limits::default());
            let mut waiting = Box::pin(worker.asked(1));
            assert!(poll_once(&mut waiting).await.is_none());
            let lane = worker.park(&worker.agent(), Framing::Framed);
            worker.local.lanes.borrow_mut().dismiss_waiting(before.entry.link);
            let (got, _) = zip(waiting, lane.accept()).await;
            assert!(got.is_ok());
        });
    }

    #[test]
    fn who_asks_for_nobody_or_too_much_hears_so_and_what_it_repeats_is_bounded() {
        kit::run(async {
            let (worker, agent) = kit::setting(Limits::default());
            let nobody = Open { agent: "\u{202e}x".repeat(99), ..kit::open(1) };
            let refused = worker.ask(&worker.laptop, nobody).await.err().unwrap();
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
            let one = Arc::new(one);
            let lanes = [(); 2].map(|()| worker.park(&agent, Framing::Framed));
            let ask = async |n| worker.ask(&one, kit::open(n)).await;
            let (stands, _) = zip(ask(2), lanes[1].accept()).await;
            assert_eq!(ask(3).await.err().unwrap().code, RefusalCode::Limited);
            drop(stands);
            assert!(zip(ask(4), lanes[0].accept()).await.0.is_ok());
        });
    }

    #[test]
    fn a_lane_is_taken_from_whom_its_link_s_secret_proves_and_once() {
        let (worker, agent) = kit::setting(Limits::default());
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
        let (worker, _) = kit::setting(Limits::default());
        assert!(login(&worker.local, Channel::Stream, "client").is_ok());
        worker.local.stop();
        let rejected = login(&worker.local, Channel::Stream, "client").err().unwrap();
        assert_eq!(rejected.refused.code, RefusalCode::Draining);
    }
}
