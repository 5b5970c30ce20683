//! Role: the registry against peers that come, go, restart and lie.

use super::*;
use async_channel::Receiver;
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use narrowlink_dataplane::gateway::principal::Principal;
use narrowlink_proto::{
    feature::Features,
    id::{Nonce, Uid},
    message::Instance,
};
use std::time::Duration;

/// A registry with its time and what became of its acts.
struct World {
    registry: Registry,
    now: Instant,
    next: u8,
    shown: Agents,
    forgotten: Vec<LinkId>,
}

/// The far side of a link.
struct Peer {
    orders: Receiver<LinkOrder>,
    answer: Result<LinkGrant, Goodbye>,
}

impl Peer {
    fn link(&self) -> LinkId {
        self.answer.as_ref().map_err(|goodbye| &goodbye.reason).unwrap().link
    }

    fn refusal(&self) -> GoodbyeCode {
        self.answer.as_ref().map(|grant| grant.link).unwrap_err().code
    }

    fn dismissed(&self) -> Option<GoodbyeCode> {
        match self.orders.try_recv() {
            Ok(LinkOrder::Goodbye(goodbye)) => Some(goodbye.code),
            _ => None,
        }
    }
}

impl World {
    fn new() -> Self {
        Self {
            registry: Registry::new(2, Limits::default()),
            now: Instant::now(),
            next: 0,
            shown: Agents::new(),
            forgotten: Vec::new(),
        }
    }

    fn perform(&mut self, acts: Vec<Act>) {
        for act in acts {
            match act {
                Act::Publish(agents) => self.shown = agents,
                Act::Answer(answer, what) => answer.try_send(*what).unwrap(),
                Act::Dismiss(orders, goodbye) => {
                    let _ = orders.try_send(LinkOrder::Goodbye(goodbye));
                }
                Act::Forget(link) => self.forgotten.push(link),
            }
        }
    }

    fn join(&mut self, speaker: Speaker, name: &str, key: Option<&Ed25519KeyPair>) -> Peer {
        let nonce = Nonce::from_bytes([9; 32]);
        let statement = instance_statement(&nonce, &Uid::nil(), name);
        let instance = key.map(|key| Instance {
            key: URL_SAFE_NO_PAD.encode(key.public_key()),
            signature: URL_SAFE_NO_PAD.encode(key.sign(&statement)),
        });
        self.join_with(speaker, name, instance)
    }

    fn join_with(&mut self, speaker: Speaker, name: &str, instance: Option<Instance>) -> Peer {
        let (orders, taken) = async_channel::bounded(4);
        let (answer, answered) = async_channel::bounded(1);
        let principal = Arc::new(Principal {
            token_id: format!("token of {name}"),
            ..Principal::new(speaker, Uid::nil(), name)
        });
        let request = LinkRequest {
            principal,
            peer_addr: "192.0.2.1:1000".parse().unwrap(),
            features: Features::NONE,
            nonce: Nonce::from_bytes([9; 32]),
            instance,
            orders,
            answer,
        };
        self.next += 1;
        let (link, secret) = (LinkId::from_bytes([self.next; 32]), LinkSecret::from_bytes([self.next; 32]));
        let acts = self.registry.claim(request, link, secret);
        self.perform(acts);
        Peer { orders: taken, answer: answered.try_recv().unwrap() }
    }

    fn release(&mut self, peer: &Peer) {
        self.registry.release(self.now, peer.link());
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        let acts = self.registry.handle_timeout(self.now);
        self.perform(acts);
    }

    /// The link that workers find under that name, and whether it is up.
    fn shown(&self, name: &str) -> Option<(LinkId, bool)> {
        let entry = self.shown.get(&AgentKey { uid: Uid::nil(), name: name.to_owned() })?;
        Some((entry.link, !entry.is_link_down()))
    }
}

fn key() -> Ed25519KeyPair {
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
    Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap()
}

#[test]
fn an_agent_is_shown_to_workers_before_it_is_welcomed() {
    let mut registry = Registry::new(1, Limits::default());
    let mut world = World::new();
    let agent = world.join(Speaker::Agent, "home", None);
    assert_eq!(world.shown("home"), Some((agent.link(), true)));
    let (answer, answered) = async_channel::bounded(1);
    let request = LinkRequest {
        principal: Arc::new(Principal::new(Speaker::Agent, Uid::nil(), "home")),
        peer_addr: "192.0.2.1:1000".parse().unwrap(),
        features: Features::NONE,
        nonce: Nonce::from_bytes([0; 32]),
        instance: None,
        orders: async_channel::bounded(1).0,
        answer,
    };
    let acts = registry.claim(request, LinkId::from_bytes([1; 32]), LinkSecret::from_bytes([1; 32]));
    assert!(matches!(acts[..], [Act::Publish(_), Act::Answer(..)]));
    assert!(answered.is_empty());
}

#[test]
fn a_restart_of_the_same_installation_takes_over() {
    let (mut world, key) = (World::new(), key());
    let old = world.join(Speaker::Agent, "home", Some(&key));
    let new = world.join(Speaker::Agent, "home", Some(&key));
    assert_eq!(old.dismissed(), Some(GoodbyeCode::Replaced));
    assert_eq!(world.forgotten, [old.link()]);
    assert_eq!(world.shown("home"), Some((new.link(), true)));
    assert_eq!(new.dismissed(), None);
}

#[test]
fn a_stranger_with_a_copy_of_the_token_is_refused_while_the_holder_stands() {
    let (mut world, own, foreign) = (World::new(), key(), key());
    let holder = world.join(Speaker::Agent, "home", Some(&own));
    for other in [Some(&foreign), None] {
        assert_eq!(world.join(Speaker::Agent, "home", other).refusal(), GoodbyeCode::NameTaken);
    }
    assert_eq!(holder.dismissed(), None);
    assert_eq!(world.shown("home"), Some((holder.link(), true)));
    assert!(world.forgotten.is_empty());
    // Another name is nobody's yet.
    world.join(Speaker::Agent, "office", Some(&foreign)).link();
}

#[test]
fn two_agents_that_prove_nothing_are_strangers_to_each_other() {
    let mut world = World::new();
    let first = world.join(Speaker::Agent, "home", None);
    assert_eq!(world.join(Speaker::Agent, "home", None).refusal(), GoodbyeCode::NameTaken);
    world.release(&first);
    let second = world.join(Speaker::Agent, "home", None);
    assert_eq!(world.shown("home"), Some((second.link(), true)));
    assert_eq!(world.forgotten, [first.link()]);
}

#[test]
fn a_proof_that_does_not_hold_is_refused_even_where_the_name_is_free() {
    let (mut world, key) = (World::new(), key());
    let sign = |statement: &[u8]| Instance {
        key: URL_SAFE_NO_PAD.encode(key.public_key()),
        signature: URL_SAFE_NO_PAD.encode(key.sign(statement)),
    };
    let other_name = sign(&instance_statement(&Nonce::from_bytes([9; 32]), &Uid::nil(), "office"));
    let other_nonce = sign(&instance_statement(&Nonce::from_bytes([8; 32]), &Uid::nil(), "home"));
    let short = Instance { key: "AAAA".into(), signature: "AAAA".into() };
    let garbled = Instance { key: "?".into(), signature: String::new() };
    for bad in [other_name, other_nonce, short, garbled] {
        let peer = world.join_with(Speaker::Agent, "home", Some(bad));
        assert_eq!(peer.refusal(), GoodbyeCode::Protocol);
    }
    assert_eq!(world.shown("home"), None);
    assert_eq!(world.registry.links(), 0);
}

#[test]
fn a_late_release_of_an_old_link_does_not_remove_the_new_claim() {
    let (mut world, key) = (World::new(), key());
    let old = world.join(Speaker::Agent, "home", Some(&key));
    let new = world.join(Speaker::Agent, "home", Some(&key));
    world.release(&old);
    world.release(&old);
    world.pass(60);
    assert_eq!(world.shown("home"), Some((new.link(), true)));
    assert_eq!(world.registry.poll_timeout(), None);
    assert_eq!(world.registry.links(), 1);
}

#[test]
fn a_lost_link_leaves_its_lanes_ten_seconds() {
    let mut world = World::new();
    let agent = world.join(Speaker::Agent, "home", None);
    world.release(&agent);
    assert_eq!(world.shown("home"), Some((agent.link(), false)));
    assert_eq!(world.registry.poll_timeout(), Some(world.now + Duration::from_secs(10)));
    world.pass(9);
    assert_eq!(world.shown("home"), Some((agent.link(), false)));
    world.pass(1);
    assert_eq!(world.shown("home"), None);
    assert_eq!(world.forgotten, [agent.link()]);
    assert_eq!(world.registry.poll_timeout(), None);
}

#[test]
fn an_agent_that_comes_back_in_time_is_not_given_up_for_its_old_link() {
    let mut world = World::new();
    let old = world.join(Speaker::Agent, "home", None);
    world.release(&old);
    world.pass(5);
    let new = world.join(Speaker::Agent, "home", None);
    assert_eq!(world.forgotten, [old.link()]);
    world.pass(60);
    assert_eq!(world.shown("home"), Some((new.link(), true)));
    assert_eq!(world.forgotten, [old.link()]);
}

#[test]
fn a_link_whose_task_ended_without_a_word_is_released() {
    let (mut world, stranger) = (World::new(), key());
    let agent = world.join(Speaker::Agent, "home", None);
    let link = agent.link();
    drop(agent.orders);
    // Somebody else need not even wait for that to be noticed.
    let client = world.join(Speaker::Client, "laptop", None);
    world.registry.release_silent(world.now);
    assert_eq!(world.shown("home"), Some((link, false)));
    assert_eq!(world.registry.links(), 1);
    assert_eq!(client.dismissed(), None);
    world.join(Speaker::Agent, "home", Some(&stranger)).link();
}

#[test]
fn a_draining_gateway_dismisses_every_link_and_takes_none() {
    let mut world = World::new();
    let agent = world.join(Speaker::Agent, "home", None);
    let client = world.join(Speaker::Client, "laptop", None);
    let acts = world.registry.drain();
    world.perform(acts);
    assert_eq!(agent.dismissed(), Some(GoodbyeCode::Draining));
    assert_eq!(client.dismissed(), Some(GoodbyeCode::Draining));
    assert_eq!(world.join(Speaker::Client, "laptop", None).refusal(), GoodbyeCode::Draining);
    world.release(&agent);
    assert_eq!(world.registry.poll_timeout(), None);
}

proptest::proptest! {
        /// Whatever comes in whatever order, who was granted a name last holds it until it is released.
        #[test]
        fn a_name_belongs_to_its_last_grant(
            ops in proptest::collection::vec((0u8..4, 0usize..3, 0usize..3, 0usize..200), 0..100)
        ) {
            let keys = [Some(key()), Some(key()), None];
            let mut world = World::new();
            let mut peers: Vec<Peer> = Vec::new();
            let mut holders: [Option<LinkId>; 3] = [None; 3];
            let names = ["a", "b", "c"];
            for (op, name, key, which) in ops {
                match op {
                    0 | 1 => {
                        let peer = world.join(Speaker::Agent, names[name], keys[key].as_ref());
                        if let Ok(grant) = &peer.answer {
                            holders[name] = Some(grant.link);
                            peers.push(peer);
                        }
                    }
                    2 if !peers.is_empty() => {
                        let peer = peers.swap_remove(which % peers.len());
                        world.release(&peer);
                        let held = holders.iter_mut().find(|held| **held == Some(peer.link()));
                        if let Some(held) = held {
    *held = None;
}
                    }
                    _ => world.pass(which as u64 % 12),
                }
                for (name, holder) in names.iter().zip(&holders) {
                    let up = world.shown(name).filter(|(_, up)| *up).map(|(link, _)| link);
                    proptest::prop_assert_eq!(up, *holder);
                }
            }
            for peer in peers {
                world.release(&peer);
            }
            world.pass(60);
            proptest::prop_assert!(world.shown.is_empty() && world.registry.links() == 0);
            proptest::prop_assert_eq!((world.registry.links(), world.registry.poll_timeout()), (0, None));
        }
    }
