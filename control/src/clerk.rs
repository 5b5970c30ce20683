//! Role: the control thread: hears of links from the workers and keeps the registry.
//! Invariants: workers never wait for it: a full queue refuses a claim, and a lost release is found within
//! a second, because the link's task is gone · nothing here waits for a peer.

use std::{
    io,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use async_channel::{Receiver, Sender, TrySendError};
use narrowlink_dataplane::gateway::{
    directory::{AgentEntry, LinkOrder},
    door::{LinkGrant, LinkRequest},
    mailbox::Note,
    principal::Principal,
    shared::Shared,
};
use narrowlink_proto::{
    ended::{RefusalCode, Refused},
    id::{LinkId, LinkSecret},
    limits::Limits,
    message::{Goodbye, GoodbyeCode},
};

use crate::{
    accounts::Accounts,
    clock::{Clock, Leaps},
    hosts::{Holding, Hosts, Own},
    registry::{Act, Registry},
};

/// Claims and releases that may wait: more links than this never come within the time that a claim
/// may take (each costs about 0.1 ms, most of it the instance key's signature).
const QUEUE: usize = 16 * 1024;
/// How often links are looked for whose task has ended without a word.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Claims to hosts are decided about at the latest after so many commands.
const SETTLE_AFTER: usize = 256;

/// A set of publish tokens, each with what it says, or why it is not taken.
type Tokens = Vec<Result<Holding, Refused>>;

/// What the control thread is told.
enum Command {
    Claim(Box<LinkRequest>),
    Release(LinkId),
    Publish(Box<(Arc<AgentEntry>, Tokens)>),
    /// From now on the gateway itself has these names and ports.
    SetOwn(Box<Own>),
    /// From now on these hold.
    SetLimits(Box<Limits>),
    /// The channel closes when the last link has ended.
    Drain(mpsc::Sender<()>),
}

/// Where workers and the supervisor leave word for the control thread.
#[derive(Clone)]
pub struct Counter {
    commands: Sender<Command>,
}

/// The far side of a [`Counter`], before its thread runs.
pub struct Inbox {
    commands: Receiver<Command>,
}

/// A counter and its inbox.
pub fn counter() -> (Counter, Inbox) {
    let (sender, commands) = async_channel::bounded(QUEUE);
    (Counter { commands: sender }, Inbox { commands })
}

impl Counter {
    /// A link wants to be known; the answer comes through the request.
    pub fn claim(&self, request: LinkRequest) {
        let (code, reason, unsent) = match self.commands.try_send(Command::Claim(Box::new(request))) {
            Ok(()) => return,
            Err(TrySendError::Full(unsent)) => {
                (GoodbyeCode::Limited, "has too many new links at once", unsent)
            }
            Err(TrySendError::Closed(unsent)) => (GoodbyeCode::Draining, "shuts down", unsent),
        };
        if let Command::Claim(request) = unsent {
            let reason = format!("this gateway {reason}; come back in a moment");
            // The link's task has just made room for one answer.
            let _ = request.answer.try_send(Err(Goodbye { code, reason }));
        }
    }

    /// A link is gone.
    pub fn release(&self, link: LinkId) {
        // If the queue is full, the next sweep finds it.
        let _ = self.commands.try_send(Command::Release(link));
    }

    /// An agent would publish what these tokens say. If so much waits already that this has no place, it is told so.
    pub(crate) fn publish(&self, entry: Arc<AgentEntry>, tokens: Tokens) {
        let unsent = match self.commands.try_send(Command::Publish(Box::new((entry, tokens)))) {
            Err(TrySendError::Full(Command::Publish(unsent))) => unsent,
            _ => return,
        };
        let (entry, tokens) = *unsent;
        let busy = Refused::new(RefusalCode::Limited, "this gateway has too much to do; connect again later");
        entry.tell_claims(Vec::new(), (0..tokens.len()).map(|at| (at, busy.clone())).collect());
    }

    /// From now on the gateway itself has these. Not to be called on a worker.
    pub fn set_own(&self, own: Own) {
        // Closed only when the gateway shuts down.
        let _ = self.commands.send_blocking(Command::SetOwn(Box::new(own)));
    }

    /// From now on these limits hold, for what begins from now on. Not to be called on a worker.
    pub fn set_limits(&self, limits: Limits) {
        // Closed only when the gateway shuts down.
        let _ = self.commands.send_blocking(Command::SetLimits(Box::new(limits)));
    }

    /// Every link is told that the gateway shuts down, and no new one is taken; returns when all have
    /// ended, or after `patience`. Not to be called on a worker.
    pub fn drain(&self, patience: Duration) {
        let (drained, watch) = mpsc::channel();
        if self.commands.send_blocking(Command::Drain(drained)).is_ok() {
            // Nothing is ever sent: the end of the channel is the news.
            let _ = watch.recv_timeout(patience);
        }
    }
}

impl Inbox {
    /// Starts the control thread. It ends when it has been told to drain and the last link has ended.
    ///
    /// # Errors
    /// The system's: no thread, or no event queue for its timers.
    pub fn serve(
        self,
        registry: Registry,
        shared: Arc<Shared>,
        accounts: Arc<Accounts>,
        clock: Clock,
    ) -> io::Result<JoinHandle<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let leaps = Leaps::new(clock(), Instant::now());
        let hosts = Hosts::default();
        let clerk = Clerk { registry, hosts, unsettled: 0, shared, accounts, clock, leaps, drained: None };
        std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || runtime.block_on(clerk.work(self.commands)))
    }
}

struct Clerk {
    registry: Registry,
    hosts: Hosts,
    /// So many commands have been heard since claims to hosts were decided about.
    unsettled: usize,
    shared: Arc<Shared>,
    accounts: Arc<Accounts>,
    clock: Clock,
    leaps: Leaps,
    /// Who waits for the last link to end.
    drained: Option<mpsc::Sender<()>>,
}

impl Clerk {
    async fn work(mut self, commands: Receiver<Command>) {
        let mut sweep_at = Instant::now() + SWEEP_EVERY;
        loop {
            let until = self.registry.poll_timeout().map_or(sweep_at, |at| at.min(sweep_at));
            match tokio::time::timeout_at(until.into(), commands.recv()).await {
                Ok(Ok(command)) => {
                    self.unsettled += 1;
                    self.handle(command);
                }
                Ok(Err(_)) => return,
                Err(_) => {}
            }
            let now = Instant::now();
            if now >= sweep_at {
                self.registry.release_silent(now);
                let wall = (self.clock)();
                self.shared.sweep(now);
                let (directory, door) = (&self.shared.directory, &self.shared.door);
                let holds = |who: &Principal| now < who.expires_at && door.standing(who).is_ok();
                self.hosts.sweep(now, |key| directory.find(key).is_some(), holds);
                self.accounts.sweep(wall.as_secs());
                if self.leaps.handle_tick(wall, now) {
                    tracing::info!(
                        "the clock was set, or this machine slept: every token's end is looked at again"
                    );
                    self.shared.mailboxes.tell_all(|| Note::Judge);
                }
                sweep_at = now + SWEEP_EVERY;
            }
            let acts = self.registry.handle_timeout(now);
            self.perform(acts);
            // Many agents may come at once: all of theirs is decided together.
            if self.hosts.is_dirty() && (commands.is_empty() || self.unsettled >= SETTLE_AFTER) {
                self.shared.routes.publish(self.hosts.settle(now));
                self.unsettled = 0;
            }
            if self.drained.is_some() && self.registry.links() == 0 {
                self.accounts.save();
                return;
            }
        }
    }

    fn handle(&mut self, command: Command) {
        let acts = match command {
            Command::Claim(request) => match draw() {
                Ok((link, secret)) => self.registry.claim(*request, link, secret),
                Err(e) => {
                    // The link's task sees its answer's channel close.
                    tracing::error!("no link can be taken: the system gives no random bytes: {e}");
                    return;
                }
            },
            Command::Release(link) => {
                self.registry.release(Instant::now(), link);
                return;
            }
            Command::Publish(said) => {
                let (entry, tokens) = *said;
                // One that has been replaced meanwhile says nothing any more.
                let holder = self.shared.directory.find(&entry.key);
                if holder.is_some_and(|holder| holder.link == entry.link) {
                    self.hosts.publish(entry, tokens);
                }
                return;
            }
            Command::SetOwn(own) => {
                self.hosts.set_own(*own);
                return;
            }
            Command::SetLimits(limits) => {
                self.registry.set_limits(*limits);
                return;
            }
            Command::Drain(drained) => {
                self.drained = Some(drained);
                self.registry.drain()
            }
        };
        self.perform(acts);
    }

    fn perform(&mut self, acts: Vec<Act>) {
        for act in acts {
            match act {
                Act::Publish(agents) => self.shared.directory.publish(agents),
                // Nobody there any more? Then its orders are closed, and the next sweep releases it.
                Act::Answer(answer, what) => {
                    if let Ok(LinkGrant { agent: Some(entry), .. }) = &*what {
                        self.hosts.came_back(Instant::now(), entry);
                    }
                    drop(answer.try_send(*what));
                }
                Act::Dismiss(orders, goodbye) => {
                    if orders.try_send(LinkOrder::Goodbye(goodbye)).is_err() {
                        // It does not even read its orders: it ends without a reason.
                        orders.close();
                    }
                }
                Act::Forget(link) => self.shared.mailboxes.tell_all(|| Note::Forget(link)),
            }
        }
    }
}

/// A new link's name and secret.
fn draw() -> Result<(LinkId, LinkSecret), getrandom::Error> {
    let (mut link, mut secret) = ([0; 32], [0; 32]);
    getrandom::fill(&mut link)?;
    getrandom::fill(&mut secret)?;
    Ok((LinkId::from_bytes(link), LinkSecret::from_bytes(secret)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::since_1970;
    use crate::{
        accounts::Allowances,
        audit::Audit,
        auth::{Rules, Warden},
        certificate::served::Served,
        revocations::Revocations,
    };
    use narrowlink_dataplane::gateway::directory::Directory;
    use narrowlink_proto::{
        feature::Features,
        id::{AgentKey, Nonce, Uid},
        limits::Limits,
        message::Speaker,
        token::Secret,
    };

    const PATIENCE: Duration = Duration::from_secs(10);

    struct Asked {
        orders: Receiver<LinkOrder>,
        answer: Receiver<Result<LinkGrant, Goodbye>>,
    }

    fn ask(counter: &Counter, name: &str) -> Asked {
        let (orders, taken) = async_channel::bounded(4);
        let (answer, answered) = async_channel::bounded(1);
        let principal = Arc::new(Principal {
            token_id: name.to_owned(),
            ..Principal::new(Speaker::Agent, Uid::nil(), name)
        });
        let peer_addr = "192.0.2.1:1".parse().unwrap();
        let nonce = Nonce::from_bytes([0; 32]);
        let features = Features::NONE;
        counter.claim(LinkRequest { principal, peer_addr, features, nonce, instance: None, orders, answer });
        Asked { orders: taken, answer: answered }
    }

    fn accounts() -> Arc<Accounts> {
        Arc::new(Accounts::open(Allowances::default(), None, 0))
    }

    fn shared(counter: &Counter) -> Arc<Shared> {
        let directory = Arc::new(Directory::default());
        let secret = Secret::from_bytes(vec![7; 32]).unwrap();
        let rules = Rules::new(&[secret], Revocations::default()).unwrap();
        let warden = Arc::new(Warden::new(
            rules,
            Served::default(),
            directory.clone(),
            counter.clone(),
            accounts(),
            Audit::none(),
        ));
        Arc::new(Shared::new(warden, directory, Limits::default(), 1))
    }

    #[test]
    fn a_link_is_granted_and_ends_when_the_gateway_drains() {
        let (counter, inbox) = counter();
        let shared = shared(&counter);
        let control =
            inbox.serve(Registry::new(1, Limits::default()), shared.clone(), accounts(), since_1970).unwrap();
        let asked = ask(&counter, "home");
        let grant = asked.answer.recv_blocking().unwrap().map_err(|goodbye| goodbye.reason).unwrap();
        let key = AgentKey { uid: Uid::nil(), name: "home".to_owned() };
        assert_eq!(shared.directory.find(&key).map(|entry| entry.link), Some(grant.link));
        // The link's task hears of it, and ends.
        let Asked { orders, .. } = asked;
        let release = counter.clone();
        let task = std::thread::spawn(move || {
            let order = orders.recv_blocking();
            release.release(grant.link);
            order
        });
        counter.drain(PATIENCE);
        assert!(
            matches!(task.join().unwrap(), Ok(LinkOrder::Goodbye(goodbye)) if goodbye.code == GoodbyeCode::Draining)
        );
        control.join().unwrap();
        let late = ask(&counter, "home").answer.try_recv().unwrap();
        assert_eq!(late.map(|grant| grant.link).unwrap_err().code, GoodbyeCode::Draining);
    }

    #[test]
    fn a_link_that_ends_without_a_word_is_found() {
        let (counter, inbox) = counter();
        let shared = shared(&counter);
        let control =
            inbox.serve(Registry::new(1, Limits::default()), shared.clone(), accounts(), since_1970).unwrap();
        let Asked { orders, answer } = ask(&counter, "home");
        let entry = answer.recv_blocking().unwrap().map_err(|goodbye| goodbye.reason).unwrap().agent.unwrap();
        drop(orders);
        let asked_at = Instant::now();
        while !entry.is_link_down() {
            assert!(asked_at.elapsed() < PATIENCE, "the sweep does not find it");
            std::thread::yield_now();
        }
        counter.drain(PATIENCE);
        control.join().unwrap();
    }

    #[test]
    fn a_full_queue_refuses_claims_and_holds_nobody_up() {
        let (counter, _inbox) = counter();
        for n in 0..QUEUE {
            assert!(ask(&counter, &n.to_string()).answer.try_recv().is_err());
        }
        let refused = ask(&counter, "home").answer.try_recv().unwrap();
        assert_eq!(refused.map(|grant| grant.link).unwrap_err().code, GoodbyeCode::Limited);
        counter.release(LinkId::from_bytes([0; 32]));
    }
}
