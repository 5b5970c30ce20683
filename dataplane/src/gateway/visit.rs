//! Role: a visitor of a published service whose bytes are passed on as they are: an agent of it is found, what came first goes
//! along with the question, and the rest is relayed.
//! Invariants: a visitor is never told why · another agent is asked only where nothing has reached a target · what a visitor's
//! connection takes is its publisher's: its places, its turns, its bytes.
//! See: `routes`, where the service was found; `session`; ARCHITECTURE.md "Published hosts".

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use narrowlink_proto::{
    ended::{RefusalCode, Refused},
    upgrade::Framing,
};

use crate::{
    gateway::{
        door::note_refused,
        local::Local,
        routes::{Member, Published},
        session::{Dialling, Owner, Telling, Unopened},
        table::{Kind, Seat},
        usage::Slot,
    },
    relay::Gate,
    run::{budget::Share, timer::timeout},
    transport::wire::Wire,
    tunnel::{end::End, linger},
};

/// What a TLS server says that can't go on (RFC 8446, 6.2: a fatal `internal_error`), which is all that a visitor hears.
const ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];
/// How long it may take to reach a visitor.
const ALERT_TIMEOUT: Duration = Duration::from_secs(2);
/// Of what a visitor still sends then, so much is read and thrown away: a greeting, and what it has for early data.
const UNHEARD_BYTES_MAX: usize = 64 * 1024;

/// Somebody who visits.
pub(crate) struct Visitor {
    /// The worker that has the connection.
    pub(crate) local: Rc<Local>,
    pub(crate) peer_addr: SocketAddr,
    pub(crate) seat: Seat,
}

/// What has become of a try with one agent.
enum Tried {
    /// There was a session, or nobody is left who could have one.
    Over,
    /// Nothing has reached a target: another agent may be asked.
    Unserved(Wire, Seat, Refused),
}

/// Serves a visitor until its session is over.
pub(crate) async fn serve(visitor: Visitor, mut wire: Wire, service: Arc<Published>) {
    let Visitor { local, peer_addr, mut seat } = visitor;
    seat.becomes(Kind::Session);
    for member in shuffled(&service.members) {
        let Some(place) = place(&local, peer_addr, &wire, &member) else { continue };
        seat.belongs_to(&member.who);
        let owner = Owner { local: local.clone(), who: member.who.clone(), peer_addr, seat };
        match Box::pin(pass(Rc::new(owner), wire, &member, &service)).await {
            Tried::Over => return,
            Tried::Unserved(again, left, refused) => {
                tracing::debug!(peer = %peer_addr, agent = member.agent.name, "not served: {refused}");
                (wire, seat) = (again, left);
            }
        }
        drop(place);
    }
    let said = async {
        wire.write_all(&ALERT).await?;
        wire.hear_out(UNHEARD_BYTES_MAX, ALERT_TIMEOUT).await;
        Ok::<(), std::io::Error>(())
    };
    // One that takes nothing is not waited for.
    let _ = timeout(ALERT_TIMEOUT, said).await;
    wire.close_gently();
}

/// The visitor's place among those of this publisher.
fn place(local: &Local, peer_addr: SocketAddr, wire: &Wire, member: &Member) -> Option<Slot> {
    wire.account().belongs_to(Share::of(member.who.uid));
    let taken = member.who.usage.visitor();
    let who = (Some(&*member.who), peer_addr);
    taken.inspect_err(|refused| note_refused(&*local.shared.door, who, refused, None)).ok()
}

/// Tries one agent.
async fn pass(owner: Rc<Owner>, wire: Wire, member: &Member, service: &Published) -> Tried {
    let refused = match owner.visit(&member.agent, &service.name).await {
        Ok(Dialling { session, answer }) => {
            // Nobody but us could take a byte for an answer here.
            let gate = Gate::keeping(session.early_bytes_max(Framing::Framed, &answer));
            let ended = {
                let answer = Box::pin(async {
                    answer.heard(&session).await?;
                    gate.open();
                    session.opened();
                    Ok(())
                });
                session.relay(End::raw(&wire), &gate, answer).await
            };
            let unopened = match ended {
                Ok(()) => {
                    wire.close_gently();
                    // What the agent says now is about its lane.
                    let _ = session.finish().await;
                    return Tried::Over;
                }
                Err(Unopened::Ended(ended)) => {
                    let reset = linger::reset(wire, linger::patience(ended));
                    session.break_off(reset, ended).await;
                    return Tried::Over;
                }
                Err(unopened) => unopened,
            };
            let sent = gate.take_kept();
            match session.give_up(unopened, gate.was_used()) {
                Telling::Refusal(refused) => {
                    wire.unread(&sent);
                    refused
                }
                Telling::Reset(words, patience) => {
                    tracing::info!(peer = %owner.peer_addr, service = %service.name, "session reset: {words}");
                    linger::reset(wire, patience).await;
                    return Tried::Over;
                }
            }
        }
        Err(refused) => refused,
    };
    owner.note_refused(&refused);
    // The session is gone, and nobody else has a hold on its owner.
    match Rc::into_inner(owner) {
        Some(Owner { seat, .. }) if refused.code != RefusalCode::Draining => {
            Tried::Unserved(wire, seat, refused)
        }
        _ => Tried::Over,
    }
}

/// The agents in an order that nobody knows beforehand: each gets its part of the visitors.
fn shuffled(members: &[Member]) -> Vec<Member> {
    let mut order = members.to_vec();
    for at in (1..order.len()).rev() {
        // Without randomness the first is asked first.
        let random = getrandom::u32().unwrap_or_default() as usize;
        order.swap(at, random % (at + 1));
    }
    order
}
