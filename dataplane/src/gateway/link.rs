//! Role: a link at the gateway: set-up, what an agent or a client asks on it, what it is told.
//! Invariants: a link that is down is said to be so everywhere · who must go is not heard.
//! See: `tunnel::link`; ARCHITECTURE.md "The wire".

use std::{
    future::Future,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use async_channel::Receiver;
use futures_lite::future;
use narrowlink_proto::{
    ended::Why,
    endpoint::SecretText,
    feature::{Feature, Features},
    id::{LinkId, Nonce},
    message::{Goodbye, GoodbyeCode, Message, Speaker, VERSION},
};
use tungstenite::protocol::{Role, frame::coding::CloseCode};

use crate::{
    gateway::{
        bucket::now_ns,
        directory::{AgentEntry, LinkOrder},
        door::{LinkGrant, LinkRequest},
        local::Local,
        mailbox::Note,
        principal::Principal,
        table::Seat,
        usage::Slot,
    },
    run::timer::{sleep_until, timeout},
    transport::wire::Wire,
    tunnel::link::{Heard, LinkError, LinkSocket},
};

/// What this gateway can do beyond the version.
const OWN: Features = Features::NONE.with(Feature::Measure).with(Feature::Publish);
/// How often a client that waits for agents has them counted: they come over within a fraction of a second.
const ARRIVAL_TICK: Duration = Duration::from_millis(200);
/// Agents in one message of a list: below 64 KiB with the longest names.
const AGENTS_PER_MESSAGE: usize = 100;
/// Orders that wait: lanes are asked for once until the agent is told, so is what has become of its hosts, and who says
/// goodbye says it once.
const ORDERS_MAX: usize = 4;
/// Publish tokens of one agent: a token has room for some forty hosts.
pub(crate) const PUBLISH_TOKENS_MAX: usize = 64;
const OUT_OF_PLACE: &str = "a message that has no place on this link";
/// Set-up of a link, each side.
const SET_UP_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves a link until it ends. Its sessions and lanes go on by themselves. (No `async fn`: one stores
/// its arguments twice.)
pub(crate) fn serve(
    local: Rc<Local>,
    wire: Wire,
    principal: Arc<Principal>,
    peer_addr: SocketAddr,
    (seat, slot): (Seat, Slot),
) -> impl Future<Output = ()> {
    let mut socket = Box::new(LinkSocket::new(wire, Role::Server, principal.speaker, &local.shared.limits()));
    async move {
        let _slot = slot;
        let (orders, taken) = async_channel::bounded(ORDERS_MAX);
        // Boxed, so that a link that stands holds nothing of it.
        let set_up = Box::pin(introduce(&local, &mut socket, &principal, peer_addr, orders));
        let grant = match timeout(SET_UP_TIMEOUT, set_up).await {
            Ok(Ok(grant)) => grant,
            Ok(Err(LinkError::Goodbye(goodbye))) => return socket.close(Some(goodbye), CloseCode::Policy),
            Ok(Err(e)) => {
                tracing::debug!(peer = %peer_addr, name = principal.name, "a link was not set up: {e}");
                return Box::pin(socket.end(e)).await;
            }
            Err(_) => return,
        };
        let LinkGrant { link, agent, .. } = grant;
        let mut up = Up { socket, agent };
        tracing::info!(peer = %peer_addr, uid = %principal.uid, name = principal.name, role = ?principal.speaker, "link up");
        let ended = Box::new(converse(&local, &mut up, &principal, &seat, &taken).await);
        tracing::info!(peer = %peer_addr, uid = %principal.uid, name = principal.name, "link down: {ended}");
        Box::pin(take_down(&local, up, link, ended)).await;
    }
}

/// A link that stands.
struct Up {
    socket: Box<LinkSocket>,
    /// At its other end, if that is an agent.
    agent: Option<Arc<AgentEntry>>,
}

impl Up {
    /// Publish tokens have come.
    fn publish(&self, local: &Local, tokens: Vec<SecretText>, more: bool) -> Result<(), LinkError> {
        let Some(agent) = &self.agent else { return Err(LinkError::Unexpected(OUT_OF_PLACE)) };
        let too_much = if agent.gather(tokens) > PUBLISH_TOKENS_MAX {
            Some(format!("an agent may send {PUBLISH_TOKENS_MAX} publish tokens; put more hosts into each"))
        } else if !more && !agent.may_publish(now_ns()) {
            Some("the publish tokens change too often".to_owned())
        } else {
            None
        };
        if let Some(reason) = too_much {
            return Err(LinkError::Goodbye(Goodbye { code: GoodbyeCode::Limited, reason }));
        }
        if !more {
            local.shared.door.publish(agent, agent.take_gathered());
        }
        Ok(())
    }
}

/// Says everywhere that a link is down, and to its peer why.
async fn take_down(local: &Local, up: Up, link: LinkId, ended: Box<LinkError>) {
    if let Some(agent) = up.agent {
        agent.set_link_down();
        if let LinkError::Silent(_) = *ended {
            // A process that hangs, while its kernel goes on answering for it.
            agent.principal.vanished.store(true, Ordering::Release);
            local.shared.mailboxes.tell_all_soon(|| Note::Lost(link)).await;
        } else {
            local.shared.mailboxes.tell_all_now(|| Note::LinkDown(link));
        }
    }
    local.shared.door.release_link(link);
    up.socket.end(*ended).await;
}

/// Hello, Present, Welcome.
async fn introduce(
    local: &Local,
    socket: &mut LinkSocket,
    principal: &Arc<Principal>,
    peer_addr: SocketAddr,
    orders: async_channel::Sender<LinkOrder>,
) -> Result<LinkGrant, LinkError> {
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce)?;
    let nonce = Nonce::from_bytes(nonce);
    socket.send(&Message::Hello { version: VERSION, features: OWN, nonce })?;
    let Message::Present { version, features, instance } = socket.recv().await? else {
        return Err(LinkError::Unexpected("something else where Present was due"));
    };
    if version != VERSION {
        return Err(LinkError::Goodbye(Goodbye {
            code: GoodbyeCode::Protocol,
            reason: format!("this gateway speaks version {VERSION} of the protocol, not {version}"),
        }));
    }
    let (answer, answered) = async_channel::bounded(1);
    let principal = principal.clone();
    let request = LinkRequest { principal, peer_addr, features, nonce, instance, orders, answer };
    local.shared.door.claim_link(request);
    let grant = answered.recv().await.map_err(|_| LinkError::Closed)?.map_err(LinkError::Goodbye)?;
    socket.send(&Message::Welcome { link: grant.link, secret: grant.secret.clone() })?;
    Ok(grant)
}

enum Next {
    Heard(Heard),
    Order(LinkOrder),
    /// It is time to look whether agents have come over.
    Look,
}

/// A client that has asked who is there, while agents come over from the gateway before this one. Small: each link has one.
#[derive(Default, Clone, Copy)]
struct Awaiting {
    /// How often it has asked.
    lists: u8,
    /// How many agents there were at the last look; more than that many are as good as all.
    seen: u8,
}

impl Awaiting {
    /// How many lists may be sent now: some agents are there, and no more have come since the last look, or all of them have had
    /// their time.
    fn take_lists(&mut self, local: &Local, principal: &Principal) -> u8 {
        if Instant::now() >= local.shared.agents_come_until() {
            return std::mem::take(self).lists;
        }
        let there = u8::try_from(local.shared.door.list(principal).len()).unwrap_or(u8::MAX);
        if there > 0 && there == self.seen {
            return std::mem::take(self).lists;
        }
        self.seen = there;
        0
    }
}

/// Serves until something ends the link; returns what.
async fn converse(
    local: &Local,
    up: &mut Up,
    principal: &Principal,
    seat: &Seat,
    orders: &Receiver<LinkOrder>,
) -> LinkError {
    let mut awaiting = Awaiting::default();
    loop {
        let next = {
            let heard = async { up.socket.hear().await.map(Next::Heard) };
            let order = async { orders.recv().await.map(Next::Order).map_err(|_| LinkError::Closed) };
            let is_awaiting = awaiting.lists > 0;
            let expiry = async move {
                let tick = Instant::now() + ARRIVAL_TICK;
                let wake = if is_awaiting { tick.min(principal.expires_at) } else { principal.expires_at };
                sleep_until(wake).await;
                match Instant::now() >= principal.expires_at {
                    true => Err(LinkError::Goodbye(farewell(Why::Expired))),
                    false => Ok(Next::Look),
                }
            };
            let dismissed = async { Err(LinkError::Goodbye(farewell(seat.dismissed().await))) };
            // Who must go is not heard.
            future::or(future::or(expiry, dismissed), future::or(order, heard)).await
        };
        let done = match next {
            Ok(Next::Heard(Heard::Answered(round_trip))) => {
                if let Some(agent) = &up.agent {
                    agent.set_ping_us(u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX));
                }
                Ok(())
            }
            Ok(Next::Heard(Heard::Message(Message::List))) if principal.speaker == Speaker::Client => {
                awaiting.lists = awaiting.lists.saturating_add(1);
                let due = awaiting.take_lists(local, principal);
                (0..due).try_for_each(|_| send_list(local, &mut up.socket, principal))
            }
            Ok(Next::Look) => {
                let due = awaiting.take_lists(local, principal);
                (0..due).try_for_each(|_| send_list(local, &mut up.socket, principal))
            }
            Ok(Next::Heard(Heard::Message(Message::Usage))) if principal.speaker == Speaker::Client => {
                let [token, user] = principal.usage.used();
                up.socket.send(&Message::Used { token, user })
            }
            Ok(Next::Heard(Heard::Message(Message::Publish { tokens, more }))) => {
                up.publish(local, tokens, more)
            }
            Ok(Next::Heard(Heard::Message(_))) => Err(LinkError::Unexpected(OUT_OF_PLACE)),
            Ok(Next::Order(LinkOrder::NeedLane)) => match &up.agent {
                Some(agent) => match agent.telling_need() {
                    0 => Ok(()),
                    count => up.socket.send(&Message::NeedLane { count }),
                },
                None => Ok(()),
            },
            Ok(Next::Order(LinkOrder::Published)) => {
                let news = up.agent.as_ref().map(|agent| agent.telling_claims()).unwrap_or_default();
                news.iter().try_for_each(|message| up.socket.send(message))
            }
            Ok(Next::Order(LinkOrder::Goodbye(goodbye))) => Err(LinkError::Goodbye(goodbye)),
            Err(e) => Err(e),
        };
        if let Err(e) = done {
            return e;
        }
    }
}

/// What a peer that has to go is told.
fn farewell(why: Why) -> Goodbye {
    let (code, reason) = match why {
        Why::Expired => (GoodbyeCode::Unauthenticated, "the token has expired"),
        Why::SecretRetired => {
            (GoodbyeCode::Unauthenticated, "the secret that signed the token is in use no more")
        }
        Why::Revoked => (GoodbyeCode::Unauthenticated, "the token was revoked"),
        Why::Shutdown => (GoodbyeCode::Draining, "this gateway shuts down; come back in a moment"),
        _ => (GoodbyeCode::Other, "this gateway has ended the link"),
    };
    Goodbye { code, reason: reason.to_owned() }
}

fn send_list(local: &Local, socket: &mut LinkSocket, principal: &Principal) -> Result<(), LinkError> {
    let agents = local.shared.door.list(principal);
    let mut rest = agents.as_slice();
    loop {
        let (now, later) = rest.split_at(rest.len().min(AGENTS_PER_MESSAGE));
        socket.send(&Message::Agents { agents: now.to_vec(), more: !later.is_empty() })?;
        if later.is_empty() {
            return Ok(());
        }
        rest = later;
    }
}

#[cfg(test)]
mod tests {
    use narrowlink_proto::{
        ended::{RefusalCode, Refused},
        feature::Feature,
        id::{AgentKey, LaneId, LinkSecret},
        limits::Limits,
        message::{AgentInfo, Claimed, Instance},
        token::ServiceName,
    };

    use super::*;
    use crate::gateway::{
        kit::{self, PEER, Peer, Worker, until},
        table::Kind,
    };

    fn future_bytes<A, F>(_: impl FnOnce(A) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_link_s_task_is_small() {
        let bytes = future_bytes(|(local, wire, principal, peer_addr, seat)| {
            serve(local, wire, principal, peer_addr, seat)
        });
        let socket = size_of::<LinkSocket>();
        // With the runtime's header, of a task: the allocator's classes are 512, 640, 768, 896, 1,024.
        assert!(bytes <= 896 && socket <= 512, "{bytes}, {socket}");
    }

    const SOON: Duration = Duration::from_millis(30);

    fn worker() -> Worker {
        kit::worker(Limits::default())
    }

    async fn hello(peer: &Peer) -> Nonce {
        match peer.hear().await {
            Ok(Message::Hello { version: VERSION, nonce, .. }) => nonce,
            other => panic!("{other:?}"),
        }
    }

    async fn present(peer: &Peer, version: u32) {
        peer.say(&Message::Present { version, features: Features::NONE, instance: None }).await;
    }

    async fn welcome(peer: &Peer) -> (LinkId, LinkSecret) {
        match peer.hear().await {
            Ok(Message::Welcome { link, secret }) => (link, secret),
            other => panic!("{other:?}"),
        }
    }

    /// A link that stands.
    async fn up(worker: &Worker, who: &Arc<Principal>) -> Peer {
        let peer = worker.link(who);
        hello(&peer).await;
        present(&peer, VERSION).await;
        welcome(&peer).await;
        peer
    }

    async fn goodbye(peer: &Peer) -> Goodbye {
        match peer.hear().await {
            Ok(Message::Goodbye(goodbye)) => goodbye,
            other => panic!("{other:?}"),
        }
    }

    fn entry(worker: &Worker) -> Arc<AgentEntry> {
        let key = AgentKey { uid: worker.home.uid, name: "home".into() };
        worker.shared.directory.find(&key).unwrap()
    }

    #[test]
    fn an_agent_is_known_to_every_worker_by_the_time_it_is_welcome_and_its_lanes_are_believed() {
        kit::run(async {
            let worker = worker();
            let peer = worker.link(&worker.home);
            let nonce = hello(&peer).await;
            let instance = Some(Instance { key: "k".into(), signature: "s".into() });
            let features = Features::NONE.with(Feature::EndToEnd);
            peer.say(&Message::Present { version: VERSION, features, instance: instance.clone() }).await;
            let (link, secret) = welcome(&peer).await;
            let entry = entry(&worker);
            assert_eq!((entry.link, entry.address, entry.features), (link, PEER, features));
            let lane = LaneId::from_bytes([1; 32]);
            assert!(entry.secret.permits_lane(&link, &lane, &secret.prove_lane(&link, &lane)));
            assert_eq!(worker.door.known().presented, Some((features, instance)));
            assert_ne!(hello(&worker.link(&worker.home)).await, nonce, "nobody signs the same twice");
        });
    }

    #[test]
    fn who_speaks_another_version_hears_which_two_there_are() {
        kit::run(async {
            let worker = worker();
            let peer = worker.link(&worker.laptop);
            hello(&peer).await;
            present(&peer, VERSION + 8).await;
            let goodbye = goodbye(&peer).await;
            assert_eq!(goodbye.code, GoodbyeCode::Protocol);
            assert!(
                goodbye.reason.contains("version 1 ") && goodbye.reason.ends_with(" not 9"),
                "{goodbye:?}"
            );
            assert_eq!(peer.close().await, (1008, String::new()));
            until(|| worker.count(Kind::Link) == 0).await;
            assert!(worker.door.known().presented.is_none(), "the door was not asked");
        });
    }

    #[test]
    fn who_is_not_let_in_hears_why_and_a_link_that_never_stood_is_not_taken_down() {
        kit::run(async {
            let worker = worker();
            let taken = Goodbye { code: GoodbyeCode::NameTaken, reason: "another one has it".into() };
            worker.door.known().goodbye = Some(taken.clone());
            let peer = worker.link(&worker.home);
            hello(&peer).await;
            present(&peer, VERSION).await;
            assert_eq!(goodbye(&peer).await, taken);
            assert_eq!(peer.close().await.0, 1008);
            let peer = worker.link(&worker.laptop);
            hello(&peer).await;
            peer.say(&Message::List).await;
            assert_eq!(peer.close().await.0, 1002, "Present is due");
            drop(peer);
            drop(worker.link(&worker.home));
            until(|| worker.count(Kind::Link) == 0).await;
            assert!(worker.door.events().is_empty());
        });
    }

    #[test]
    fn words_of_a_later_version_are_passed_over_but_not_without_end() {
        kit::run(async {
            let worker = worker();
            let peer = up(&worker, &worker.laptop).await;
            peer.conn.send_text(br#"{"type":"sing","song":7}"#).await.unwrap();
            peer.say(&Message::List).await;
            let list = peer.hear().await;
            assert!(matches!(list, Ok(Message::Agents { more: false, .. })), "{list:?}");
            for _ in 0..250 {
                peer.conn.send_text(br#"{"type":"sing"}"#).await.unwrap();
            }
            assert_eq!(peer.close().await.0, 1008);
            assert_eq!(worker.door.event().await, "link 1 released");
        });
    }

    #[test]
    fn what_an_agent_would_publish_is_asked_of_the_door_as_one_set_and_it_hears_what_became_of_it() {
        let publish = |tokens: &[&str], more| Message::Publish {
            tokens: tokens.iter().map(|token| SecretText::new((*token).to_owned())).collect(),
            more,
        };
        let claimed = |host: &str, refused| Claimed {
            service: ServiceName { host: host.into(), port: 0, path: String::new() },
            refused,
        };
        let taken = || Refused::new(RefusalCode::HostTaken, "taken");
        kit::run(async {
            let worker = worker();
            let peer = up(&worker, &worker.home).await;
            peer.say(&publish(&["a", "b"], true)).await;
            peer.say(&publish(&["c"], false)).await;
            assert_eq!(worker.door.event().await, "home publishes a, b, c");
            let entry = entry(&worker);
            entry.tell_claims(vec![claimed("a.example", None)], vec![(1, taken())]);
            // What has changed before it was said is said as it is.
            entry.tell_claims(vec![claimed("a.example", Some(taken())), claimed("b.example", None)], vec![]);
            match peer.hear().await {
                Ok(Message::Published { claims, refused }) => {
                    assert_eq!(refused, [(1, taken())]);
                    assert_eq!(claims, [claimed("a.example", Some(taken())), claimed("b.example", None)]);
                }
                other => panic!("{other:?}"),
            }
            let many = (0..100).map(|n| claimed(&format!("{n}.example"), Some(taken()))).collect();
            entry.tell_claims(many, vec![]);
            let mut heard = 0;
            while heard < 100 {
                match peer.hear().await {
                    Ok(Message::Published { claims, .. }) => heard += claims.len(),
                    other => panic!("{other:?}"),
                }
            }
            // An empty set is one, too.
            peer.say(&publish(&[], false)).await;
            assert_eq!(worker.door.event().await, "home publishes ");
        });
    }

    #[test]
    fn who_sends_too_many_publish_tokens_or_too_often_or_is_no_agent_has_to_go() {
        let tokens = |count: usize, more| Message::Publish {
            tokens: (0..count).map(|_| SecretText::new("t".into())).collect(),
            more,
        };
        kit::run(async {
            let worker = worker();
            let peer = up(&worker, &worker.home).await;
            peer.say(&tokens(PUBLISH_TOKENS_MAX, true)).await;
            peer.say(&tokens(1, false)).await;
            assert_eq!(goodbye(&peer).await.code, GoodbyeCode::Limited);
            let peer = up(&worker, &worker.home).await;
            for _ in 0..20 {
                peer.say(&tokens(1, false)).await;
            }
            let goodbye = goodbye(&peer).await;
            assert_eq!(goodbye.code, GoodbyeCode::Limited);
            assert!(goodbye.reason.contains("too often"), "{goodbye:?}");
            let published = worker.door.events().iter().filter(|event| event.contains("publishes")).count();
            assert!((10..=12).contains(&published), "{published}");
            let client = up(&worker, &worker.laptop).await;
            client.conn.send(&tokens(1, false)).await.unwrap();
            assert_eq!(client.close().await.0, 1002);
        });
    }

    #[test]
    fn what_has_no_place_on_a_link_ends_it_and_its_peer_learns_that_it_is_at_fault() {
        let present =
            Message::Present { version: VERSION, features: Features::NONE, instance: None }.encode();
        kit::run(async {
            let worker = worker();
            // Data, half of JSON, and a frame without a mask.
            for bad in [&[0x82, 0x81, 0, 0, 0, 0, 7][..], &[0x81, 0x81, 0, 0, 0, 0, b'{'], &[0x81, 0]] {
                let peer = up(&worker, &worker.laptop).await;
                peer.write(bad).await;
                assert_eq!(peer.close().await.0, 1002, "{bad:x?}");
            }
            let list = Message::List.encode();
            for (who, words) in [(&worker.laptop, &present), (&worker.home, &list)] {
                let peer = up(&worker, who).await;
                peer.conn.send_text(words).await.unwrap();
                assert_eq!(peer.close().await.0, 1002, "{}", words.escape_ascii());
            }
        });
    }

    #[test]
    fn a_list_comes_a_hundred_at_a_time_and_an_empty_one_comes_too() {
        let agent = |n| AgentInfo { name: format!("{n}"), address: PEER, ping_us: None, connected_s: n };
        kit::run(async {
            let worker = worker();
            let peer = up(&worker, &worker.laptop).await;
            for (count, pages) in [(0, vec![0]), (100, vec![100]), (250, vec![100, 100, 50])] {
                worker.door.known().agents = (0..count).map(agent).collect();
                peer.say(&Message::List).await;
                let mut got = Vec::new();
                for page in &pages {
                    let Ok(Message::Agents { agents, more }) = peer.hear().await else { panic!("no page") };
                    assert_eq!(agents.len(), *page);
                    got.extend(agents);
                    assert_eq!(more, got.len() < count as usize);
                }
                assert_eq!(got, worker.door.known().agents);
            }
        });
    }

    #[test]
    fn who_asks_for_a_list_while_agents_come_over_gets_it_when_they_have() {
        let agent = |n| AgentInfo { name: format!("{n}"), address: PEER, ping_us: None, connected_s: n };
        kit::run(async {
            let worker = worker();
            let peer = up(&worker, &worker.laptop).await;
            worker.shared.await_agents(Duration::from_secs(60));
            peer.say(&Message::List).await;
            let early = timeout(2 * ARRIVAL_TICK, peer.hear()).await;
            assert!(early.is_err(), "it is not complete yet: {early:?}");
            worker.door.known().agents = vec![agent(1)];
            let list = peer.hear().await;
            assert!(
                matches!(&list, Ok(Message::Agents { agents, more: false }) if agents.len() == 1),
                "{list:?}"
            );
            // Nobody comes, and the time is over.
            worker.door.known().agents.clear();
            worker.shared.await_agents(ARRIVAL_TICK);
            peer.say(&Message::List).await;
            let list = peer.hear().await;
            assert!(matches!(&list, Ok(Message::Agents { agents, .. }) if agents.is_empty()), "{list:?}");
        });
    }

    #[test]
    fn an_agent_is_told_once_for_how_many_sessions_it_is_to_bring_lanes() {
        kit::run(async {
            let worker = worker();
            let peer = up(&worker, &worker.home).await;
            let entry = entry(&worker);
            for _ in 0..3 {
                entry.add_waiting(0);
                entry.ask_for_lanes();
            }
            let told = peer.hear().await;
            assert!(matches!(told, Ok(Message::NeedLane { count: 3 })), "{told:?}");
            // By now nobody waits: nothing is said.
            (0..3).for_each(|_| entry.sub_waiting(0));
            entry.ask_for_lanes();
            let replaced = Goodbye { code: GoodbyeCode::Replaced, reason: "a newer link".into() };
            entry.orders.try_send(LinkOrder::Goodbye(replaced.clone())).unwrap();
            assert_eq!(goodbye(&peer).await, replaced);
            assert_eq!(peer.close().await.0, 1001);
        });
    }

    #[test]
    fn a_round_trip_is_measured_and_shown() {
        kit::run(async {
            let worker = worker();
            let peer = up(&worker, &worker.home).await;
            let entry = entry(&worker);
            let listening = async { panic!("nothing is due: {:?}", peer.hear().await) };
            future::or(until(|| entry.info().ping_us.is_some()), listening).await;
        });
    }

    #[test]
    fn who_must_go_hears_why_and_is_not_heard() {
        kit::run(async {
            let gone = GoodbyeCode::Unauthenticated;
            for (why, code, reason) in [
                (Why::Revoked, gone, "the token was revoked"),
                (Why::SecretRetired, gone, "the secret that signed the token is in use no more"),
                (Why::Expired, gone, "the token has expired"),
                (Why::Shutdown, GoodbyeCode::Draining, "this gateway shuts down; come back in a moment"),
                (Why::Reset, GoodbyeCode::Other, "this gateway has ended the link"),
            ] {
                let worker = worker();
                let peer = up(&worker, &worker.laptop).await;
                peer.say(&Message::List).await;
                worker.expel("laptop", why);
                let goodbye = goodbye(&peer).await;
                assert_eq!((goodbye.code, &*goodbye.reason), (code, reason));
                assert_eq!(peer.close().await.0, 1001);
            }
        });
    }

    #[test]
    fn a_link_ends_with_its_token() {
        kit::run(async {
            let worker = worker();
            let who = Arc::new(kit::who(Speaker::Client, "guest", SOON));
            let peer = up(&worker, &who).await;
            assert_eq!(goodbye(&peer).await.reason, "the token has expired");
            assert!(Instant::now() >= who.expires_at);
        });
    }

    #[test]
    fn a_link_that_is_gone_is_said_to_be_so_everywhere() {
        kit::run(async {
            let worker = worker();
            let peer = up(&worker, &worker.home).await;
            let entry = entry(&worker);
            drop(peer);
            assert_eq!(worker.door.event().await, "link 1 released");
            assert!(entry.is_link_down() && !worker.home.vanished.load(Ordering::Acquire));
            let note = worker.shared.mailboxes.of(0).try_recv().ok();
            assert!(matches!(note, Some(Note::LinkDown(link)) if link == entry.link));
        });
    }

    #[test]
    fn an_agent_that_answers_no_more_although_its_connection_stands_is_lost_with_all_it_has() {
        let limits = Limits { ping_interval: SOON, pong_timeout: SOON, ..Limits::default() };
        kit::run(async {
            let (worker, begun) = (kit::worker(limits), Instant::now());
            let peer = up(&worker, &worker.home).await;
            let entry = entry(&worker);
            assert_eq!(worker.door.event().await, "link 1 released");
            assert!(begun.elapsed() >= SOON * 2);
            assert!(entry.is_link_down() && worker.home.vanished.load(Ordering::Acquire));
            let note = worker.shared.mailboxes.of(0).try_recv().ok();
            assert!(matches!(note, Some(Note::Lost(link)) if link == entry.link));
            assert!(peer.hear().await.is_err(), "without a word");
        });
    }
}
