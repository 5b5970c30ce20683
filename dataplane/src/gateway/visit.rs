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
    Unserved(Box<(Wire, Seat, Refused)>),
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
            Tried::Unserved(unserved) => {
                let (again, left, refused) = *unserved;
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
            Tried::Unserved(Box::new((wire, seat, refused)))
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

#[cfg(test)]
mod tests {
    use std::io;

    use futures_lite::future::zip;
    use narrowlink_proto::{
        ended::Why,
        id::{AgentKey, SessionId},
        limits::Limits,
        message::{Dial, Message, Origin, Speaker},
        target::Target,
        token::{Allowance, PublishProtocol, ServiceName},
    };

    use super::*;
    use crate::{
        gateway::{
            kit::{self, FRAMINGS, PEER, Peer, Worker, until},
            principal::Principal,
        },
        net::memory::{Memory, Room},
        run::worker::spawn,
    };

    const HOUR: Duration = Duration::from_secs(3600);

    fn name() -> ServiceName {
        ServiceName { host: "app.example".into(), port: 0, path: String::new() }
    }

    fn service(members: &[(&str, Principal)]) -> Arc<Published> {
        let member = |(agent, who): &(&str, Principal)| Member {
            agent: AgentKey { uid: who.uid, name: (*agent).to_owned() },
            who: Arc::new(Principal {
                usage: who.usage.clone(),
                ..kit::who(Speaker::Agent, who.name.as_str(), HOUR)
            }),
        };
        let members = members.iter().map(member).collect();
        Arc::new(Published { name: name(), protocol: PublishProtocol::Tls, members })
    }

    fn home() -> Arc<Published> {
        service(&[("home", kit::who(Speaker::Agent, "home", HOUR))])
    }

    fn come(worker: &Worker, service: &Arc<Published>) -> Wire {
        let (ours, theirs) = Memory::pair(Room::default());
        let (local, seat) = (worker.local.clone(), Seat::for_stranger(&worker.local.table));
        spawn(serve(Visitor { local, peer_addr: PEER, seat }, ours.into(), service.clone()));
        theirs.into()
    }

    /// What comes back, and whether it ends cleanly.
    async fn rest(wire: &Wire) -> (Vec<u8>, bool) {
        let mut got = Vec::new();
        loop {
            match wire.read_onto(&mut got).await {
                Ok(0) => return (got, true),
                Ok(_) => {}
                Err(e) => {
                    assert_eq!(e.kind(), io::ErrorKind::ConnectionReset);
                    return (got, false);
                }
            }
        }
    }

    async fn dialled(lane: &Peer, dial: &Dial) {
        lane.say(&Message::Dialled { session: dial.session, e2ee: None }).await;
    }

    async fn end(lane: &Peer, session: SessionId, bytes: u64) {
        End::of(&lane.conn, session).finish_write(bytes).await.unwrap();
    }

    #[test]
    fn a_visitor_s_bytes_reach_the_agent_as_they_came_and_where_there_are_frames_at_once() {
        for framing in FRAMINGS {
            kit::run(async {
                let (worker, agent) = kit::setting(Limits::default());
                let lane = worker.park(&agent, framing);
                let visitor = come(&worker, &home());
                visitor.write_all(b"hello").await.unwrap();
                let dial = lane.dial().await;
                assert_eq!(dial.origin, Origin::Visitor { peer_addr: PEER, request: None });
                assert_eq!((dial.target.clone(), dial.rules.is_none()), (Target::Published(name()), true));
                if framing == Framing::Framed {
                    assert_eq!(lane.payload(dial.session, 5).await.unwrap(), b"hello", "before the answer");
                }
                dialled(&lane, &dial).await;
                if framing == Framing::Raw {
                    assert_eq!(lane.payload(dial.session, 5).await.unwrap(), b"hello");
                }
                lane.give(b"welcome").await;
                end(&lane, dial.session, 7).await;
                visitor.write_all(b"bye").await.unwrap();
                visitor.finish_write().await.unwrap();
                assert_eq!(rest(&visitor).await, (b"welcome".to_vec(), true));
                assert_eq!(lane.payload(dial.session, usize::MAX).await.unwrap(), b"bye");
                let number = dial.session.as_bytes()[0];
                assert_eq!(worker.door.event().await, format!("home opened {number} at home"));
                let ended = worker.door.event().await;
                assert_eq!(ended, format!("{number} ended: 8 up, 7 down, Here finished"));
                if framing == Framing::Framed {
                    lane.say(&Message::Ready { session: dial.session }).await;
                    let next = come(&worker, &home());
                    assert_ne!(lane.accept().await.session, dial.session, "the lane serves again");
                    drop(next);
                }
                drop(visitor);
            });
        }
    }

    #[test]
    fn where_one_agent_refuses_the_next_one_hears_the_same_and_the_visitor_hears_of_neither() {
        kit::run(async {
            let worker = kit::worker(Limits::default());
            let names = ["home", "shed"];
            let who = names.map(|name| Arc::new(kit::who(Speaker::Agent, name, HOUR)));
            let agents = who.each_ref().map(|who| worker.agent_as(who, Default::default()));
            let lanes = agents.each_ref().map(|agent| worker.park(agent, Framing::Framed));
            let both = service(&names.map(|name| (name, kit::who(Speaker::Agent, name, HOUR))));
            let visitor = come(&worker, &both);
            visitor.write_all(b"hello").await.unwrap();
            let [one, other] = &lanes;
            let refuse_or_serve = async |lane: &Peer, is_first: &std::cell::Cell<bool>| {
                let dial = lane.dial().await;
                assert_eq!(lane.payload(dial.session, 5).await.unwrap(), b"hello");
                if is_first.replace(false) {
                    lane.say(&Message::refused(dial.session, RefusalCode::TargetRefused, "down")).await;
                    assert_eq!(lane.close().await.0, 1000, "data of the session may be under way on it");
                } else {
                    dialled(lane, &dial).await;
                    lane.give(b"served").await;
                    end(lane, dial.session, 6).await;
                }
            };
            let is_first = std::cell::Cell::new(true);
            let served = zip(refuse_or_serve(one, &is_first), refuse_or_serve(other, &is_first));
            let heard = async {
                let mut got = [0; 6];
                assert_eq!(visitor.read(&mut got).await.unwrap(), 6);
                got
            };
            let (_, heard) = zip(served, heard).await;
            assert_eq!(&heard, b"served");
            assert!(worker.door.event().await.ends_with("refused: target_refused"));
        });
    }

    #[test]
    fn who_is_served_by_nobody_hears_one_alert_and_no_reason() {
        kit::run(async {
            let (worker, agent) = kit::setting(Limits::default());
            let lane = worker.park(&agent, Framing::Framed);
            let visitor = come(&worker, &home());
            visitor.write_all(b"hello").await.unwrap();
            let dial = lane.dial().await;
            lane.say(&Message::refused(dial.session, RefusalCode::TargetRefused, "secret words")).await;
            visitor.finish_write().await.unwrap();
            assert_eq!(rest(&visitor).await, (ALERT.to_vec(), true));
            // No agent at all, and a publisher who has as many visitors as there may be.
            let nobody = service(&[("away", kit::who(Speaker::Agent, "away", HOUR))]);
            let none = Allowance { streams: std::num::NonZeroU32::new(1), ..Allowance::default() };
            let full = Principal { usage: kit::usage(&none), ..kit::who(Speaker::Agent, "home", HOUR) };
            let _place = full.usage.visitor().unwrap();
            for service in [nobody, service(&[("home", full)])] {
                let visitor = come(&worker, &service);
                visitor.write_all(b"hello").await.unwrap();
                visitor.finish_write().await.unwrap();
                assert_eq!(rest(&visitor).await, (ALERT.to_vec(), true));
            }
            until(|| worker.count(Kind::Session) == 0).await;
            let refused: Vec<_> = worker.door.events();
            assert_eq!(refused.len(), 3, "{refused:?}");
            assert!(refused[1].contains("agent_not_found") && refused[2].contains("limited"), "{refused:?}");
        });
    }

    #[test]
    fn what_breaks_is_a_reset_for_the_visitor_and_for_the_agent() {
        kit::run(async {
            let (worker, agent) = kit::setting(Limits::default());
            let serve_one = async || {
                let lane = worker.park(&agent, Framing::Framed);
                let visitor = come(&worker, &home());
                let dial = lane.accept().await;
                lane.give(b"half").await;
                let mut got = [0; 4];
                assert_eq!(visitor.read(&mut got).await.unwrap(), 4);
                (lane, visitor, dial)
            };
            let (lane, visitor, _) = serve_one().await;
            drop(lane);
            assert!(!rest(&visitor).await.1, "the agent's connection broke");
            let (lane, visitor, _) = serve_one().await;
            drop(visitor);
            assert_eq!(lane.close().await.0, crate::tunnel::conn::CLOSE_RESET);
            // The publisher's token is revoked.
            let (lane, visitor, _) = serve_one().await;
            worker.expel("home", Why::Revoked);
            assert!(!rest(&visitor).await.1);
            drop(lane);
            until(|| worker.count(Kind::Session) == 0).await;
            let ends: Vec<_> =
                worker.door.events().into_iter().filter(|event| event.contains(" ended: ")).collect();
            assert!(ends.len() == 3 && ends[2].ends_with("Here revoked"), "{ends:?}");
        });
    }
}
