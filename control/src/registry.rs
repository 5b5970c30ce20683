//! Role: which links stand, and which agent each of them holds: claim, release, find, watch.
//! Invariants: an agent's name in a user space has one holder · a release of an old link never removes
//! a newer claim · an agent is in the directory before its link hears Welcome · no clock, socket or
//! random source in here: time and ids are parameters, what is to be done comes out as [`Act`]s.
//! See: `clerk`, which runs it.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::Instant,
};

use async_channel::Sender;
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use imbl::OrdMap;
use narrowlink_dataplane::gateway::{
    directory::{AgentEntry, LinkOrder},
    door::{LinkGrant, LinkRequest},
};
use narrowlink_proto::{
    id::{AgentKey, LinkId, LinkSecret, instance_statement},
    limits::Limits,
    message::{Goodbye, GoodbyeCode, Speaker},
};

/// Strangers that are remembered per agent, so that each is reported once.
const STRANGERS_MAX: usize = 16;

/// Every agent that can be reached.
pub type Agents = OrdMap<AgentKey, Arc<AgentEntry>>;

/// What the registry wants done, in this order.
pub enum Act {
    /// Show workers this set of agents.
    Publish(Agents),
    /// Answer a claim.
    Answer(Sender<Result<LinkGrant, Goodbye>>, Box<Result<LinkGrant, Goodbye>>),
    /// End a link.
    Dismiss(Sender<LinkOrder>, Goodbye),
    /// Tell workers that this link's parked lanes are of no use any more.
    Forget(LinkId),
}

/// All links of one gateway. One thread owns it.
pub struct Registry {
    workers: usize,
    limits: Limits,
    agents: Agents,
    holders: HashMap<AgentKey, Holder>,
    links: HashMap<LinkId, Link>,
    /// Agents whose link is away, by the moment they are given up.
    orphans: VecDeque<(Instant, AgentKey, LinkId)>,
    draining: bool,
}

/// Who holds an agent's name.
struct Holder {
    link: LinkId,
    /// The installation's public key, if it proved one.
    instance: Option<[u8; 32]>,
    entry: Arc<AgentEntry>,
    /// Who else wanted the name meanwhile.
    strangers: Vec<IpAddr>,
}

struct Link {
    agent: Option<AgentKey>,
    orders: Sender<LinkOrder>,
}

impl Registry {
    /// An empty registry of a gateway with `workers` workers.
    pub fn new(workers: usize, limits: Limits) -> Self {
        Self {
            workers,
            limits,
            agents: Agents::new(),
            holders: HashMap::new(),
            links: HashMap::new(),
            orphans: VecDeque::new(),
            draining: false,
        }
    }

    /// A link wants to be known; `link` and `secret` are fresh random bytes for it.
    pub fn claim(&mut self, request: LinkRequest, link: LinkId, secret: LinkSecret) -> Vec<Act> {
        let mut acts = Vec::new();
        let answer = self.decide(&request, link, secret, &mut acts);
        acts.push(Act::Answer(request.answer, Box::new(answer)));
        acts
    }

    fn decide(
        &mut self,
        request: &LinkRequest,
        link: LinkId,
        secret: LinkSecret,
        acts: &mut Vec<Act>,
    ) -> Result<LinkGrant, Goodbye> {
        if self.draining {
            return Err(goodbye(GoodbyeCode::Draining, "this gateway shuts down; come back in a moment"));
        }
        let agent = match request.principal.speaker {
            Speaker::Agent => Some(self.take_name(request, link, secret.clone(), acts)?),
            Speaker::Client | Speaker::Gateway => None,
        };
        let key = agent.as_ref().map(|entry| entry.key.clone());
        self.links.insert(link, Link { agent: key, orders: request.orders.clone() });
        Ok(LinkGrant { link, secret, agent })
    }

    /// Makes `link` the holder of its agent's name, or says why not.
    fn take_name(
        &mut self,
        request: &LinkRequest,
        link: LinkId,
        secret: LinkSecret,
        acts: &mut Vec<Act>,
    ) -> Result<Arc<AgentEntry>, Goodbye> {
        let instance = prove(request)?;
        let key = AgentKey { uid: request.principal.uid, name: request.principal.name.clone() };
        let mut older = Vec::new();
        if let Some(holder) = self.holders.get_mut(&key) {
            if holder.is_up() && (instance.is_none() || instance != holder.instance) {
                return Err(holder.turn_away(request));
            }
            if holder.is_up() {
                let reason = "the same installation has connected anew; this link is replaced";
                let orders = holder.entry.orders.clone();
                older.push(Act::Dismiss(orders, goodbye(GoodbyeCode::Replaced, reason)));
            }
            // Its link, when it ends, says that it is down: nobody finds this entry any more then.
            older.push(Act::Forget(holder.link));
        }
        let entry = Arc::new(AgentEntry::new(
            request.principal.clone(),
            link,
            secret,
            (request.peer_addr, request.features),
            request.orders.clone(),
            self.workers,
        ));
        self.agents.insert(key.clone(), entry.clone());
        self.holders.insert(key, Holder { link, instance, entry: entry.clone(), strangers: Vec::new() });
        // First: a session that waits at the older link looks for the newer one as soon as that goes.
        acts.push(Act::Publish(self.agents.clone()));
        acts.extend(older);
        Ok(entry)
    }

    /// A link is gone. Its agent stays for a while: parked lanes still serve, and it may come back.
    pub fn release(&mut self, now: Instant, link: LinkId) {
        let Some(Link { agent, .. }) = self.links.remove(&link) else { return };
        let Some(key) = agent else { return };
        let Some(holder) = self.holders.get(&key).filter(|holder| holder.link == link) else { return };
        holder.entry.set_link_down();
        // A gateway that shuts down lets workers end in peace.
        if self.draining {
            return;
        }
        self.orphans.push_back((now + self.limits.orphan_lane_timeout, key, link));
    }

    /// Releases links whose task has ended without saying so: it was never told of its grant, or it
    /// panicked, or the word was lost in a full queue.
    pub(crate) fn release_silent(&mut self, now: Instant) {
        let gone = self.links.iter().filter(|(_, link)| link.orders.is_closed());
        let gone: Vec<_> = gone.map(|(link, _)| *link).collect();
        for link in gone {
            self.release(now, link);
        }
    }

    /// Gives up the agents whose link has been away for long enough.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Act> {
        let mut acts = Vec::new();
        while self.orphans.front().is_some_and(|(at, ..)| *at <= now) {
            let Some((_, key, link)) = self.orphans.pop_front() else { break };
            if self.holders.get(&key).is_some_and(|holder| holder.link == link) {
                self.holders.remove(&key);
                self.agents.remove(&key);
                acts.push(Act::Forget(link));
            }
        }
        if !acts.is_empty() {
            acts.insert(0, Act::Publish(self.agents.clone()));
        }
        acts
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do next.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.orphans.front().map(|(at, ..)| *at)
    }

    /// The gateway shuts down: every link is told, no new one is taken.
    pub fn drain(&mut self) -> Vec<Act> {
        self.draining = true;
        self.orphans.clear();
        let reason = "this gateway shuts down; come back in a moment";
        let links = self.links.values().map(|link| link.orders.clone());
        links.map(|orders| Act::Dismiss(orders, goodbye(GoodbyeCode::Draining, reason))).collect()
    }

    /// From now on these hold, for what begins from now on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// How many links stand.
    pub fn links(&self) -> usize {
        self.links.len()
    }
}

impl Holder {
    /// Whether its link stands, as far as anybody here has heard.
    fn is_up(&self) -> bool {
        !self.entry.is_link_down() && !self.entry.orders.is_closed()
    }

    /// The answer to somebody else who wants the name.
    fn turn_away(&mut self, request: &LinkRequest) -> Goodbye {
        let AgentKey { uid, name } = &self.entry.key;
        let stranger = request.peer_addr.ip();
        // It will try again for ever: one line for each is enough.
        if self.strangers.len() < STRANGERS_MAX && !self.strangers.contains(&stranger) {
            self.strangers.push(stranger);
            tracing::warn!(
                %uid, name, holder = %self.entry.address, stranger = %request.peer_addr,
                "another installation uses the token of an agent that is connected; it was refused: if it was not \
                 you, make a new token"
            );
        }
        let reason = format!(
            "another installation is connected as {name}: stop it, or use a token with another name (if you moved \
             this agent, it can connect once the old one is gone)"
        );
        goodbye(GoodbyeCode::NameTaken, reason)
    }
}

/// The key of the installation behind a link, if it has shown one.
fn prove(request: &LinkRequest) -> Result<Option<[u8; 32]>, Goodbye> {
    let Some(instance) = &request.instance else { return Ok(None) };
    let bad = || goodbye(GoodbyeCode::Protocol, "the signature of the instance key does not hold");
    let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| bad());
    let key: [u8; 32] = decode(&instance.key)?.try_into().map_err(|_| bad())?;
    let statement = instance_statement(&request.nonce, &request.principal.uid, &request.principal.name);
    let verified = UnparsedPublicKey::new(&ED25519, key).verify(&statement, &decode(&instance.signature)?);
    verified.map(|()| Some(key)).map_err(|_| bad())
}

fn goodbye(code: GoodbyeCode, reason: impl Into<String>) -> Goodbye {
    Goodbye { code, reason: reason.into() }
}

#[cfg(test)]
mod tests;
