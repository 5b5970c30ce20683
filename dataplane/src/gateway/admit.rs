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
    use super::*;

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
