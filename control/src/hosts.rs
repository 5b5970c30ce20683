//! Role: the book of published hosts: who claims which, whose each is, what visitors find.
//! Invariants: a host has one owner, the first user whose valid token claims it, for as long as one of the owner's agents is
//! there and [`KEPT_FOR`] beyond · nobody takes a name out of another's wildcard · who is refused is told, and again
//! when that changes · no clock, socket or random source in here: time is a parameter.
//! See: `clerk`, which runs it; `dataplane::gateway::routes`, what it makes; ARCHITECTURE.md "Published hosts".

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use narrowlink_dataplane::gateway::{
    directory::AgentEntry,
    principal::Principal,
    routes::{Member, Published, Table},
};
use narrowlink_proto::{
    ended::{RefusalCode, Refused},
    id::{AgentKey, Uid},
    message::Claimed,
    target::Destination,
    token::{PublishProtocol, ServiceName, Services},
};

/// A host stays its owner's for so long after the last of the owner's agents has left.
pub const KEPT_FOR: Duration = Duration::from_secs(600);
/// Services of one agent at the most.
const SERVICES_MAX: usize = 1024;
/// An agent that has come back says within this time what it publishes; else it publishes nothing any more.
const CONFIRM_WITHIN: Duration = Duration::from_secs(10);

/// A publish token that holds: whose it is, and what it claims.
pub(crate) type Holding = (Arc<Principal>, Services);

/// What the gateway has itself, so that nobody can publish it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Own {
    /// The names of its services.
    pub names: HashSet<String>,
    /// The ports that it listens on.
    pub ports: HashSet<u16>,
}

/// All claims of one gateway. One thread owns it.
#[derive(Default)]
pub struct Hosts {
    own: Own,
    /// By the host as it is claimed.
    owners: HashMap<String, Owner>,
    agents: BTreeMap<AgentKey, Agent>,
    /// How many claims there have been.
    claimed: u64,
    /// Something has changed since the last [`settle`](Self::settle).
    is_dirty: bool,
}

/// Whose a host is.
struct Owner {
    uid: Uid,
    /// It is given up then; `None` while one of the owner's agents claims it.
    until: Option<Instant>,
}

/// What one agent claims.
struct Agent {
    entry: Arc<AgentEntry>,
    claims: Vec<Claim>,
    /// It has come back, and has until then to say again what it publishes.
    confirm_until: Option<Instant>,
}

/// One service that an agent's token claims.
struct Claim {
    name: ServiceName,
    protocol: PublishProtocol,
    who: Arc<Principal>,
    /// Who came first: claims are numbered.
    number: u64,
    /// What the agent was told last.
    told: Option<Option<RefusalCode>>,
}

impl Own {
    /// What services with these names have, which listen on these ports.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a Destination>, ports: HashSet<u16>) -> Self {
        let name = |domain: &Destination| match domain {
            Destination::Name(name) => Some(name.clone()),
            Destination::Ip(_) | Destination::Unix(_) => None,
        };
        Self { names: names.into_iter().filter_map(name).collect(), ports }
    }
}

impl Hosts {
    /// From now on the gateway itself has these.
    pub fn set_own(&mut self, own: Own) {
        self.is_dirty |= own != self.own;
        self.own = own;
    }

    /// Whether there is something to [`settle`](Self::settle).
    pub fn is_dirty(&self) -> bool {
        self.is_dirty
    }

    /// An agent publishes what its tokens say, in the place of what it did before; those that don't hold are told apart, by
    /// their number.
    pub(crate) fn publish(&mut self, entry: Arc<AgentEntry>, tokens: Vec<Result<Holding, Refused>>) {
        let before = self.agents.remove(&entry.key).map(|agent| agent.claims).unwrap_or_default();
        let mut before: HashMap<_, _> =
            before.into_iter().map(|claim| ((claim.name.clone(), claim.protocol), claim)).collect();
        let (mut claims, mut refused, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
        for (number, token) in tokens.into_iter().enumerate() {
            let (who, services) = match token {
                Ok(holding) => holding,
                Err(why) => {
                    refused.push((number, why));
                    continue;
                }
            };
            if claims.len() + services.iter().len() > SERVICES_MAX {
                let reason = format!("an agent may publish {SERVICES_MAX} services; these are more");
                refused.push((number, Refused::new(RefusalCode::Limited, reason)));
                continue;
            }
            for service in services.iter() {
                let (name, protocol) = (service.name(), service.protocol);
                // The same in two of its tokens is one claim.
                if !seen.insert(name.clone()) {
                    continue;
                }
                let claim = match before.remove(&(name.clone(), protocol)) {
                    // It keeps its place, and is told again, for the agent may have been started anew.
                    Some(claim) => Claim { who: who.clone(), told: None, ..claim },
                    None => {
                        self.claimed += 1;
                        Claim { name, protocol, who: who.clone(), number: self.claimed, told: None }
                    }
                };
                claims.push(claim);
            }
        }
        if !refused.is_empty() {
            entry.tell_claims(Vec::new(), refused);
        }
        self.is_dirty = true;
        if !claims.is_empty() {
            self.agents.insert(entry.key.clone(), Agent { entry, claims, confirm_until: None });
        }
    }

    /// An agent has come back over a new link: what it published stays, until it has said anew what that is.
    pub(crate) fn came_back(&mut self, now: Instant, entry: &Arc<AgentEntry>) {
        if let Some(agent) = self.agents.get_mut(&entry.key) {
            agent.entry = entry.clone();
            agent.confirm_until = Some(now + CONFIRM_WITHIN);
        }
    }

    /// Gives up claims whose agent has left or whose token does not hold any more, and hosts that nobody has claimed for long.
    pub(crate) fn sweep(
        &mut self,
        now: Instant,
        is_there: impl Fn(&AgentKey) -> bool,
        holds: impl Fn(&Principal) -> bool,
    ) {
        let mut changed = false;
        self.agents.retain(|key, agent| {
            let before = agent.claims.len();
            let confirmed = agent.confirm_until.is_none_or(|until| now < until);
            if confirmed && is_there(key) {
                agent.claims.retain(|claim| holds(&claim.who));
            } else {
                agent.claims.clear();
            }
            changed |= agent.claims.len() != before;
            !agent.claims.is_empty()
        });
        let before = self.owners.len();
        self.owners.retain(|_, owner| owner.until.is_none_or(|until| now < until));
        changed |= self.owners.len() != before;
        self.is_dirty |= changed;
    }

    /// Decides about every claim; what visitors find from now on. Each agent is told what has changed for it.
    pub fn settle(&mut self, now: Instant) -> Table {
        self.is_dirty = false;
        let mut order: Vec<_> = self
            .agents
            .iter()
            .flat_map(|(key, agent)| agent.claims.iter().map(move |claim| (claim.number, key, claim)))
            .collect();
        order.sort_unstable_by_key(|(number, ..)| *number);
        let mut found: BTreeMap<&ServiceName, (PublishProtocol, Vec<Member>)> = BTreeMap::new();
        let mut verdicts = HashMap::new();
        for (number, key, claim) in order {
            let verdict = decide(&self.own, &mut self.owners, key.uid, claim).and_then(|()| {
                let (protocol, members) =
                    found.entry(&claim.name).or_insert_with(|| (claim.protocol, Vec::new()));
                if *protocol != claim.protocol {
                    let reason =
                        format!("another of your agents publishes it already, as {}", protocol.name());
                    return Err(Refused::new(RefusalCode::HostTaken, reason));
                }
                members.push(Member { agent: key.clone(), who: claim.who.clone() });
                Ok(())
            });
            verdicts.insert(number, verdict.err());
        }
        let mut by_host: BTreeMap<String, Vec<Arc<Published>>> = BTreeMap::new();
        for (name, (protocol, members)) in found {
            let service = Arc::new(Published { name: name.clone(), protocol, members });
            by_host.entry(name.host.clone()).or_default().push(service);
        }
        for (host, owner) in &mut self.owners {
            owner.until = match by_host.contains_key(host) {
                true => None,
                false => owner.until.or(Some(now + KEPT_FOR)),
            };
        }
        for agent in self.agents.values_mut() {
            agent.tell(&verdicts);
        }
        let table = by_host.into_iter().map(|(host, mut services)| {
            services.sort_by_key(|service| service.name.precedence());
            (host, Arc::from(services))
        });
        table.collect()
    }
}

impl Agent {
    /// Tells the agent what has changed.
    fn tell(&mut self, verdicts: &HashMap<u64, Option<Refused>>) {
        let mut news = Vec::new();
        for claim in &mut self.claims {
            let Some(verdict) = verdicts.get(&claim.number) else { continue };
            let code = verdict.as_ref().map(|refused| refused.code);
            if claim.told == Some(code) {
                continue;
            }
            claim.told = Some(code);
            let (agent, service) = (&self.entry.key, &claim.name);
            match verdict {
                None => tracing::info!(uid = %agent.uid, agent = agent.name, "published: {service}"),
                Some(refused) => {
                    tracing::warn!(uid = %agent.uid, agent = agent.name, "not published: {service}: {refused}");
                }
            }
            news.push(Claimed { service: claim.name.clone(), refused: verdict.clone() });
        }
        if !news.is_empty() {
            self.entry.tell_claims(news, Vec::new());
        }
    }
}

/// Whether a claim of `uid` is good; then the host is its from now on.
fn decide(own: &Own, owners: &mut HashMap<String, Owner>, uid: Uid, claim: &Claim) -> Result<(), Refused> {
    let Claim { name, protocol, .. } = claim;
    let refuse = |code, reason: String| Err(Refused::new(code, reason));
    let port = name.port;
    match protocol {
        PublishProtocol::Http | PublishProtocol::Https => {
            let reason = "this gateway passes TLS on by its server name (protocol: TLS), and does not serve HTTP for visitors yet";
            return refuse(RefusalCode::Unsupported, reason.to_owned());
        }
        PublishProtocol::Tls | PublishProtocol::Tcp if port != 0 && !own.ports.contains(&port) => {
            return refuse(RefusalCode::Unsupported, format!("this gateway does not listen on port {port}"));
        }
        PublishProtocol::Tls | PublishProtocol::Tcp if own.names.contains(&name.host) => {
            let reason = "the gateway itself has this name, and ends its TLS";
            return refuse(RefusalCode::HostTaken, reason.to_owned());
        }
        PublishProtocol::Tls | PublishProtocol::Tcp => {}
    }
    let owner = |host: &str| owners.get(host).map(|owner| owner.uid);
    let parent = name.host.split_once('.').map(|(_, parent)| format!("*.{parent}"));
    let of_wildcard = parent.filter(|_| !name.host.starts_with("*.")).and_then(|parent| owner(&parent));
    // What somebody has had before the wildcard came stays theirs.
    match owner(&name.host).or(of_wildcard) {
        Some(theirs) if theirs != uid => {
            refuse(RefusalCode::HostTaken, "another user has published it".to_owned())
        }
        _ => {
            owners.entry(name.host.clone()).or_insert(Owner { uid, until: None });
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests;
