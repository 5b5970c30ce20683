//! Promise: with 100,000 agents a worker finds the one it wants in ns, and one more or less costs O(log n),
//! not a copy of all.
#![expect(clippy::unwrap_used, reason = "a benchmark")]

mod kit;

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use async_channel::{Receiver, Sender};
use criterion::{Criterion, criterion_group, criterion_main};
use narrowlink_control::registry::{Act, Registry};
use narrowlink_dataplane::gateway::{
    directory::{Directory, LinkOrder},
    door::LinkRequest,
    principal::Principal,
};
use narrowlink_proto::{
    feature::Features,
    id::{AgentKey, LinkId, LinkSecret, Nonce, Uid},
    limits::Limits,
    message::Speaker,
};

const AGENTS: u32 = 100_000;
/// Agents in one user's space.
const SPACE: u32 = 10;

fn key(n: u32) -> AgentKey {
    // Spread as random uids are.
    let uid = u128::from(n / SPACE).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    AgentKey { uid: Uid::from_u128(uid), name: format!("agent-{}", n % SPACE) }
}

fn link(n: u32) -> LinkId {
    let mut id = [0; 32];
    id[..4].copy_from_slice(&n.to_be_bytes());
    LinkId::from_bytes(id)
}

/// A gateway's registry and the directory that its workers read.
struct Links {
    registry: Registry,
    directory: Directory,
    orders: (Sender<LinkOrder>, Receiver<LinkOrder>),
}

impl Links {
    fn of(agents: u32) -> Self {
        let registry = Registry::new(2, Limits::default());
        let mut links = Self { registry, directory: Directory::default(), orders: async_channel::bounded(1) };
        for n in 0..agents {
            let request = links.request(n);
            links.claim(n, request);
        }
        links
    }

    fn request(&self, n: u32) -> LinkRequest {
        let AgentKey { uid, name } = key(n);
        let principal = Principal { token_id: n.to_string(), ..Principal::new(Speaker::Agent, uid, &name) };
        LinkRequest {
            principal: Arc::new(principal),
            peer_addr: "192.0.2.1:1".parse().unwrap(),
            features: Features::NONE,
            nonce: Nonce::from_bytes([0; 32]),
            instance: None,
            orders: self.orders.0.clone(),
            answer: async_channel::bounded(1).0,
        }
    }

    /// As the control thread does it; the signature of an instance key comes on top.
    fn claim(&mut self, n: u32, request: LinkRequest) {
        let acts = self.registry.claim(request, link(n), LinkSecret::from_bytes([0; 32]));
        self.perform(acts);
    }

    fn perform(&self, acts: Vec<Act>) {
        for act in acts {
            if let Act::Publish(agents) = act {
                self.directory.publish(agents);
            }
        }
    }

    fn remove(&mut self, n: u32) {
        let now = Instant::now();
        self.registry.release(now, link(n));
        let acts = self.registry.handle_timeout(now + Duration::from_secs(60));
        self.perform(acts);
    }
}

fn find(c: &mut Criterion) {
    let links = Links::of(AGENTS);
    let directory = &links.directory;
    assert_eq!(directory.snapshot().len(), AGENTS as usize);
    let present: Vec<_> = (0..1024).map(|n| key(n * (AGENTS / 1024))).collect();
    let absent: Vec<_> =
        present.iter().map(|key| AgentKey { name: "nobody".to_owned(), ..key.clone() }).collect();
    assert!(present.iter().all(|key| directory.find(key).is_some_and(|entry| entry.key == *key)));
    assert!(absent.iter().all(|key| directory.find(key).is_none()));
    assert_eq!(directory.of(present[7].uid).len(), SPACE as usize);

    let mut group = c.benchmark_group("directory of 100,000");
    for (what, keys) in [("find one that is there", &present), ("find one that is not", &absent)] {
        let mut wanted = keys.iter().cycle();
        group.bench_function(what, |b| b.iter(|| directory.find(black_box(wanted.next().unwrap()))));
    }
    let mut wanted = present.iter().cycle();
    group.bench_function("list a space of 10", |b| b.iter(|| directory.of(wanted.next().unwrap().uid)));
    group.finish();
}

fn insert(c: &mut Criterion) {
    let mut links = Links::of(AGENTS);
    let request = links.request(AGENTS);
    links.claim(AGENTS, request);
    assert!(links.directory.find(&key(AGENTS)).is_some());
    links.remove(AGENTS);
    assert!(links.directory.find(&key(AGENTS)).is_none());
    assert_eq!(links.directory.snapshot().len(), AGENTS as usize);

    c.bench_function("directory of 100,000/claim and publish one more", |b| {
        b.iter_custom(|rounds| {
            let mut took = Duration::ZERO;
            for round in 0..rounds {
                // Anywhere in the order, under a name that nobody has; taken out again untimed.
                let n = AGENTS + (round as u32).wrapping_mul(7919) % AGENTS;
                let request = links.request(n);
                let begun = Instant::now();
                links.claim(n, request);
                took += begun.elapsed();
                links.remove(n);
            }
            took
        });
    });
}

criterion_group! {
    name = benches;
    config = kit::criterion();
    targets = find, insert
}
criterion_main!(benches);
