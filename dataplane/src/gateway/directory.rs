//! Role: the snapshot that workers find agents in, and what all workers know of one agent.
//! Invariants: one writer (the operator's registry); workers only read · an agent more or less
//! costs O(log n), not a copy of all · the gauges are hints: whoever acts on one checks again.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use async_channel::Sender;
use imbl::OrdMap;
use narrowlink_proto::{
    ended::Refused,
    endpoint::SecretText,
    feature::Features,
    id::{AgentKey, LinkId, LinkSecret, Uid},
    message::{AgentInfo, Claimed, Goodbye, Message},
    token::ServiceName,
};

use crate::{
    gateway::{bucket::Bucket, principal::Principal},
    run::lock::lock,
};

/// How many sets of publish tokens an agent may send a second; those of some seconds may come at once.
const PUBLISHES_PER_S: u64 = 1;
/// How many of them.
const PUBLISHES_BURST: Duration = Duration::from_secs(10);
/// Services in one message: below 64 KiB with the longest names and reasons, and those of all tokens of a set.
const CLAIMS_PER_MESSAGE: usize = 40;

/// All agents that can be reached, by user space and name.
#[derive(Default)]
pub struct Directory {
    agents: ArcSwap<OrdMap<AgentKey, Arc<AgentEntry>>>,
}

/// One agent's link and lanes, as every worker sees them.
pub struct AgentEntry {
    /// Whose.
    pub key: AgentKey,
    /// As whom its link came in.
    pub principal: Arc<Principal>,
    /// The link that brought it here.
    pub link: LinkId,
    /// What its lanes prove themselves with.
    pub secret: LinkSecret,
    /// Where its link comes from.
    pub address: SocketAddr,
    /// What its program can do beyond the version.
    pub features: Features,
    /// Since when.
    pub since: Instant,
    /// Where its link takes orders.
    pub orders: Sender<LinkOrder>,
    gauges: Box<[LaneGauge]>,
    link_down: AtomicBool,
    need_asked: AtomicBool,
    ping_us: AtomicU64,
    news: Mutex<News>,
    /// Of a set of publish tokens, while more of it is to come.
    gathered: Mutex<Vec<SecretText>>,
    publishes: Bucket,
}

/// What has become of what an agent would publish, and it has not been told yet.
#[derive(Default)]
struct News {
    claims: BTreeMap<ServiceName, Option<Refused>>,
    refused: Vec<(usize, Refused)>,
    /// Its link has been told to look.
    is_said: bool,
}

/// What a link is told to do.
#[derive(Debug, Clone)]
pub enum LinkOrder {
    /// Ask the agent for as many lanes as sessions wait for.
    NeedLane,
    /// Tell the agent what has become of the hosts that it claims.
    Published,
    /// Say goodbye and end.
    Goodbye(Goodbye),
}

/// One worker's lanes of one agent.
#[derive(Default)]
struct LaneGauge {
    parked: AtomicU32,
    waiting: AtomicU32,
}

impl Directory {
    /// The agent of that name, if it is there.
    pub fn find(&self, key: &AgentKey) -> Option<Arc<AgentEntry>> {
        self.agents.load().get(key).cloned()
    }

    /// The agents of one user space, by name.
    pub fn of(&self, uid: Uid) -> Vec<Arc<AgentEntry>> {
        let agents = self.agents.load();
        let first = AgentKey { uid, name: String::new() };
        agents.range(first..).take_while(|(key, _)| key.uid == uid).map(|(_, entry)| entry.clone()).collect()
    }

    /// Publishes a new set. The registry alone calls this.
    pub fn publish(&self, agents: OrdMap<AgentKey, Arc<AgentEntry>>) {
        self.agents.store(Arc::new(agents));
    }

    /// The set as it is now.
    pub fn snapshot(&self) -> Arc<OrdMap<AgentKey, Arc<AgentEntry>>> {
        self.agents.load_full()
    }
}

impl AgentEntry {
    /// A new agent on a gateway of `workers` workers.
    pub fn new(
        principal: Arc<Principal>,
        link: LinkId,
        secret: LinkSecret,
        (address, features): (SocketAddr, Features),
        orders: Sender<LinkOrder>,
        workers: usize,
    ) -> Self {
        Self {
            key: AgentKey { uid: principal.uid, name: principal.name.clone() },
            principal,
            link,
            secret,
            address,
            features,
            since: Instant::now(),
            orders,
            gauges: (0..workers).map(|_| LaneGauge::default()).collect(),
            link_down: AtomicBool::new(false),
            need_asked: AtomicBool::new(false),
            ping_us: AtomicU64::new(0),
            news: Mutex::default(),
            gathered: Mutex::default(),
            publishes: Bucket::default(),
        }
    }

    /// More publish tokens of a set have come; how many there are.
    pub(crate) fn gather(&self, tokens: Vec<SecretText>) -> usize {
        let mut gathered = lock(&self.gathered);
        gathered.extend(tokens);
        gathered.len()
    }

    /// The set, which is whole.
    pub(crate) fn take_gathered(&self) -> Vec<SecretText> {
        std::mem::take(&mut *lock(&self.gathered))
    }

    /// Whether the agent may send another set of publish tokens now.
    pub(crate) fn may_publish(&self, now_ns: u64) -> bool {
        self.publishes.set(PUBLISHES_PER_S);
        self.publishes.take(now_ns, 1, PUBLISHES_BURST).is_ok()
    }

    /// The agent is to be told what has become of these services, and of these tokens, by their number in its set.
    pub fn tell_claims(&self, claims: Vec<Claimed>, refused: Vec<(usize, Refused)>) {
        let mut news = lock(&self.news);
        news.claims.extend(claims.into_iter().map(|claimed| (claimed.service, claimed.refused)));
        news.refused.extend(refused);
        if !news.is_said {
            // A link that has no room for it has other things to say first, or has ended; the next news is said with this.
            news.is_said = self.orders.try_send(LinkOrder::Published).is_ok();
        }
    }

    /// All that the agent is to be told now; it counts as told.
    pub fn take_claims(&self) -> (Vec<Claimed>, Vec<(usize, Refused)>) {
        let News { claims, refused, .. } = std::mem::take(&mut *lock(&self.news));
        let claims = claims.into_iter().map(|(service, refused)| Claimed { service, refused });
        (claims.collect(), refused)
    }

    /// The same, in messages that are short enough.
    pub(crate) fn telling_claims(&self) -> Vec<Message> {
        let (claims, mut refused) = self.take_claims();
        let mut messages: Vec<_> = claims
            .chunks(CLAIMS_PER_MESSAGE)
            .map(|claims| Message::Published {
                claims: claims.to_vec(),
                refused: std::mem::take(&mut refused),
            })
            .collect();
        if !refused.is_empty() {
            messages.push(Message::Published { claims: Vec::new(), refused });
        }
        messages
    }

    /// What a client's list says of it.
    pub fn info(&self) -> AgentInfo {
        let ping_us = self.ping_us.load(Ordering::Relaxed);
        AgentInfo {
            name: self.key.name.clone(),
            address: self.address,
            ping_us: (ping_us > 0).then_some(ping_us),
            connected_s: self.since.elapsed().as_secs(),
        }
    }

    /// Notes a measured round trip.
    pub(crate) fn set_ping_us(&self, us: u64) {
        self.ping_us.store(us.max(1), Ordering::Relaxed);
    }

    /// Whether the link is away: lanes that stand still serve, new ones can't be asked for.
    pub fn is_link_down(&self) -> bool {
        self.link_down.load(Ordering::Acquire)
    }

    /// The link is away.
    pub fn set_link_down(&self) {
        self.link_down.store(true, Ordering::Release);
    }

    // The order of these two pairs matters: a session counts itself as waiting before it looks for
    // parked lanes, a lane counts itself as parked before it looks for waiting sessions. With
    // sequential consistency at least one of them sees the other.

    pub(crate) fn add_parked(&self, worker: usize) {
        self.gauges[worker].parked.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn sub_parked(&self, worker: usize) {
        self.gauges[worker].parked.fetch_sub(1, Ordering::SeqCst);
    }

    pub(crate) fn add_waiting(&self, worker: usize) {
        self.gauges[worker].waiting.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn sub_waiting(&self, worker: usize) {
        self.gauges[worker].waiting.fetch_sub(1, Ordering::SeqCst);
    }

    /// How many sessions wait for a lane, on all workers.
    pub(crate) fn waiting(&self) -> u32 {
        self.gauges.iter().map(|g| g.waiting.load(Ordering::SeqCst)).sum()
    }

    /// Another worker that has lanes parked: the one with most.
    pub(crate) fn richest_but(&self, worker: usize) -> Option<usize> {
        self.others(worker)
            .map(|(n, gauge)| (gauge.parked.load(Ordering::SeqCst), n))
            .filter(|(parked, _)| *parked > 0)
            .max()
            .map(|(_, n)| n)
    }

    /// Another worker on which sessions wait.
    pub(crate) fn waiting_but(&self, worker: usize) -> Option<usize> {
        self.others(worker).find(|(_, gauge)| gauge.waiting.load(Ordering::SeqCst) > 0).map(|(n, _)| n)
    }

    /// The worker with fewest parked lanes, if it has fewer than `worker`.
    pub(crate) fn poorer_than(&self, worker: usize) -> Option<usize> {
        let mine = self.gauges[worker].parked.load(Ordering::SeqCst);
        self.others(worker)
            .map(|(n, gauge)| (gauge.parked.load(Ordering::SeqCst), n))
            .filter(|(parked, _)| *parked < mine)
            .min()
            .map(|(_, n)| n)
    }

    fn others(&self, worker: usize) -> impl Iterator<Item = (usize, &LaneGauge)> {
        self.gauges.iter().enumerate().filter(move |(n, _)| *n != worker)
    }

    /// Asks the agent for lanes over its link, unless it has been asked and not yet told.
    pub(crate) fn ask_for_lanes(&self) {
        if !self.need_asked.swap(true, Ordering::SeqCst) && self.orders.try_send(LinkOrder::NeedLane).is_err()
        {
            self.need_asked.store(false, Ordering::SeqCst);
        }
    }

    /// The link tells the agent now: what comes to wait later asks again.
    pub(crate) fn telling_need(&self) -> u32 {
        self.need_asked.store(false, Ordering::SeqCst);
        self.waiting()
    }
}

#[cfg(test)]
mod tests {
    use narrowlink_proto::message::Speaker;

    use super::*;

    fn entry(uid: u128, name: &str) -> (AgentKey, Arc<AgentEntry>) {
        let principal = Arc::new(Principal::new(Speaker::Agent, Uid::from_u128(uid), name));
        let (orders, _) = async_channel::bounded(1);
        let (link, secret) = (LinkId::from_bytes([0; 32]), LinkSecret::from_bytes([0; 32]));
        let entry = AgentEntry::new(
            principal,
            link,
            secret,
            ("127.0.0.1:1".parse().unwrap(), Features::NONE),
            orders,
            3,
        );
        (entry.key.clone(), Arc::new(entry))
    }

    #[test]
    fn a_space_lists_its_own_agents_and_no_others() {
        let directory = Directory::default();
        directory.publish([entry(1, "b"), entry(1, "a"), entry(0, "z"), entry(2, "")].into_iter().collect());
        let names: Vec<_> = directory.of(Uid::from_u128(1)).iter().map(|e| e.key.name.clone()).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(directory.of(Uid::from_u128(3)).is_empty());
    }

    #[test]
    fn gauges_point_to_the_richest_and_the_poorest_other_worker() {
        let (_, entry) = entry(1, "a");
        assert_eq!(entry.richest_but(0), None);
        entry.add_parked(0);
        entry.add_parked(0);
        entry.add_parked(2);
        assert_eq!((entry.richest_but(0), entry.richest_but(1)), (Some(2), Some(0)));
        assert_eq!((entry.poorer_than(0), entry.poorer_than(1)), (Some(1), None));
        entry.add_waiting(1);
        assert_eq!((entry.waiting_but(0), entry.waiting_but(1), entry.waiting()), (Some(1), None, 1));
    }

    #[test]
    fn lanes_are_asked_for_once_until_the_agent_is_told() {
        let (orders, taken) = async_channel::bounded(4);
        let principal = Arc::new(Principal::new(Speaker::Agent, Uid::nil(), "a"));
        let (link, secret) = (LinkId::from_bytes([0; 32]), LinkSecret::from_bytes([0; 32]));
        let entry = AgentEntry::new(
            principal,
            link,
            secret,
            ("127.0.0.1:1".parse().unwrap(), Features::NONE),
            orders,
            1,
        );
        entry.add_waiting(0);
        entry.ask_for_lanes();
        entry.ask_for_lanes();
        assert_eq!(taken.len(), 1);
        assert_eq!(entry.telling_need(), 1);
        entry.ask_for_lanes();
        assert_eq!(taken.len(), 2);
    }
}
