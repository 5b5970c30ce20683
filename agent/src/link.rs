//! Role: an agent's hold on one gateway: joins, keeps lanes, and comes back whenever the link is lost.
//! Invariants: never gives up and never exits; the gateway's name and the token's file are read anew at
//! each try; the same trouble is logged once, not at every try; a lost link ends no session; a token that was
//! replaced in its file is taken up while the old link stands, so that no session waits for it; whatever its files have
//! become keeps nobody waiting, and is said once.
//! See: ARCHITECTURE.md "The wire".

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io::ErrorKind,
    path::PathBuf,
    sync::Arc,
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use futures_lite::future;
use narrowlink_dataplane::{
    peer::{Gateway, PeerLink, join},
    run::{aside::Aside, backoff::Backoff, file::Stamp, timer::sleep},
    tunnel::{LinkError, TunnelError},
};
use narrowlink_proto::{
    ended::{RefusalCode, Refused},
    endpoint::SelfHosted,
    feature::{Feature, Features},
    id::Nonce,
    message::{GoodbyeCode, Message},
    token::{Kind, peek_unverified},
};

use crate::{
    Shared,
    lanes::{Count, Lanes},
};

/// What this agent can do beyond the protocol's version.
const OWN: Features = Features::NONE.with(Feature::Measure);
/// For a link's connection, TLS, upgrade and welcome, each.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);
/// A link that stood for so long was a good one: the next outage starts with short pauses.
const STABLE_AFTER: Duration = Duration::from_secs(5);

/// How often the token's file is looked at.
const TOKEN_LOOK_EVERY: Duration = Duration::from_secs(2);

/// How soon a lost link is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// As an outage demands it.
    Soon,
    /// Somebody else has our place: 2.5 to 5 s.
    Patient,
    /// The token does not hold: 6 to 9 s, fewer than the ten failed logins a minute at which a gateway
    /// begins to punish everybody behind our address.
    Humble,
}

/// What is known of an outage.
#[derive(Default)]
struct Outage {
    backoff: Backoff,
    said: Option<String>,
}

/// How a link that stood came to its end.
enum Stood {
    /// The agent stops.
    Stopped,
    Lost(LinkError),
    /// Another link, by a newer token, has taken its place.
    Renewed(Arc<Gateway>, Box<PeerLink>),
}

/// What an endpoint's files say, read again while the agent runs.
#[derive(Default)]
struct Files {
    aside: Aside,
    /// What was wrong with them the last time.
    said: RefCell<Option<String>>,
}

impl Files {
    async fn gateway(&self, shared: &Shared, endpoint: &SelfHosted) -> Option<Gateway> {
        let (config, endpoint) = (shared.config.clone(), endpoint.clone());
        let read = move || {
            let gone =
                |file: &PathBuf| std::fs::metadata(file).is_err_and(|e| e.kind() == ErrorKind::NotFound);
            config.gateway_again(&endpoint).map_err(|e| match config.token_place(&endpoint).filter(gone) {
                // It was there, so that its path may be said.
                Some(file) => format!("the token file {} is gone", file.display()),
                None => e.to_string(),
            })
        };
        match self.aside.run(read).await.unwrap_or_else(|e| Err(e.to_string())) {
            Ok(gateway) => {
                self.said.take();
                Some(gateway)
            }
            Err(why) => {
                self.complain(why);
                None
            }
        }
    }

    /// `None`: the disk does not answer; `Some(None)`: there is no file.
    async fn stamp(&self, file: PathBuf) -> Option<Option<Stamp>> {
        let named = file.display().to_string();
        let looked = self.aside.run(move || Stamp::of(&file)).await;
        looked.map_err(|e| self.complain(format!("{named} can't be read: {e}"))).ok()
    }

    fn complain(&self, why: String) {
        if self.said.borrow().as_ref() != Some(&why) {
            tracing::warn!("{why}; going on with what was read before");
            self.said.replace(Some(why));
        }
    }
}

/// Holds a link to one gateway until the agent stops.
pub(crate) async fn hold(shared: Arc<Shared>, endpoint: SelfHosted, mut gateway: Arc<Gateway>) {
    let busy = Count::default();
    let mut outage = Outage::default();
    let (mut renewed, files) = (None, Files::default());
    loop {
        let stopped = async {
            shared.stop.wait().await;
            None
        };
        let joined = async {
            match renewed.take() {
                Some(link) => Some(Ok(link)),
                None => Some(join_as_agent(&shared, &gateway).await),
            }
        };
        let error = match future::or(stopped, joined).await {
            None => return,
            Some(Err(error)) => error,
            Some(Ok(link)) => {
                let stood = Instant::now();
                outage.said = None;
                let ended = stand(&shared, &endpoint, &gateway, link, (&busy, &files)).await;
                if stood.elapsed() >= STABLE_AFTER {
                    outage.backoff.reset();
                }
                match ended {
                    Stood::Stopped => return,
                    Stood::Lost(error) => error,
                    Stood::Renewed(newer, link) => {
                        (gateway, renewed) = (newer, Some(*link));
                        continue;
                    }
                }
            }
        };
        outage.say(&gateway, described(&error, &shared.config.next_token(&endpoint)));
        let again = async {
            outage.pause(pace(&error)).await;
            files.gateway(&shared, &endpoint).await
        };
        let stopped = async {
            shared.stop.wait().await;
            None
        };
        if let Some(fresh) = future::or(stopped, again).await {
            gateway = Arc::new(fresh);
        }
    }
}

async fn join_as_agent(shared: &Shared, gateway: &Gateway) -> Result<PeerLink, LinkError> {
    let peek = peek_unverified(gateway.token()).filter(|peek| peek.kind == Kind::Agent);
    // A token of another kind is the gateway's to refuse.
    match (&shared.identity, peek) {
        (Some(identity), Some(peek)) => {
            let sign = |nonce: &Nonce| identity.sign(nonce, &peek.uid, &peek.name);
            join(gateway, OWN, Some(&sign), JOIN_TIMEOUT).await
        }
        _ => join(gateway, OWN, None, JOIN_TIMEOUT).await,
    }
}

/// A link while it stands.
async fn stand(
    shared: &Arc<Shared>,
    endpoint: &SelfHosted,
    gateway: &Arc<Gateway>,
    mut link: PeerLink,
    (busy, files): (&Count, &Files),
) -> Stood {
    tracing::info!(gateway = gateway.describe(), "connected");
    let lanes = Lanes::new(shared.clone(), gateway.clone(), (link.link, link.secret.clone()), busy.clone());
    shared.ready.tell(gateway.describe());
    let stopped = async {
        shared.stop.wait().await;
        Stood::Stopped
    };
    let kept = async {
        lanes.keep().await;
        Stood::Stopped
    };
    // Before the conversation: the gateway ends this link as soon as the newer one stands.
    let renewal = Renewal::default();
    let renewed = async {
        let (newer, link) = renew(shared, endpoint, gateway, (&renewal, files)).await;
        Stood::Renewed(newer, Box::new(link))
    };
    let conversed = async {
        let error = converse(&mut link, &lanes).await;
        // The gateway may have ended it for the newer one, whose welcome is still on its way.
        renewal.is_over().await;
        Stood::Lost(error)
    };
    let ended = future::or(future::or(stopped, renewed), future::or(conversed, kept)).await;
    lanes.close();
    if !matches!(ended, Stood::Lost(_)) {
        link.close();
    }
    ended
}

/// Whether a link by a newer token is being set up.
#[derive(Default)]
struct Renewal {
    under_way: Cell<bool>,
    waiting: Cell<Option<Waker>>,
}

impl Renewal {
    fn set(&self, under_way: bool) {
        self.under_way.set(under_way);
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }

    /// Returns when none is being set up: at once, if none is. One that succeeds never comes to this.
    async fn is_over(&self) {
        poll_fn(|cx| {
            if !self.under_way.get() {
                return Poll::Ready(());
            }
            self.waiting.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

/// Waits until the token's file holds another token with which the gateway takes this agent.
async fn renew(
    shared: &Shared,
    endpoint: &SelfHosted,
    gateway: &Gateway,
    (renewal, files): (&Renewal, &Files),
) -> (Arc<Gateway>, PeerLink) {
    let Some(file) = shared.config.token_place(endpoint) else { return future::pending().await };
    // Whatever the file was when this link was asked for, it is looked at once.
    let (mut seen, mut again, mut outage) = (None, false, Outage::default());
    loop {
        sleep(TOKEN_LOOK_EVERY).await;
        let Some(now) = files.stamp(file.clone()).await else {
            // Read once it answers, so that the next time it doesn't is news.
            again = true;
            continue;
        };
        if seen == Some(now) && !again {
            continue;
        }
        if seen != Some(now) {
            outage = Outage::default();
        }
        (seen, again) = (Some(now), false);
        let fresh = match files.gateway(shared, endpoint).await {
            Some(fresh) if fresh.token() == gateway.token() => continue,
            Some(fresh) => Arc::new(fresh),
            None => {
                again = true;
                continue;
            }
        };
        renewal.set(true);
        let joined = join_as_agent(shared, &fresh).await;
        if joined.is_err() {
            renewal.set(false);
        }
        match joined {
            Ok(link) => {
                tracing::info!(
                    gateway = fresh.describe(),
                    "the token in {} is new: logged in anew",
                    file.display()
                );
                return (fresh, link);
            }
            Err(e) => {
                if let Some(reason) = outage.news(described(&e, &shared.config.next_token(endpoint))) {
                    tracing::warn!(
                        gateway = fresh.describe(),
                        "the new token in {} does not work: {reason}; going on with the one before",
                        file.display()
                    );
                }
                // A token that isn't taken is tried again when its file changes, or the link is lost.
                let pace = pace(&e);
                again = pace != Pace::Humble;
                if again {
                    outage.pause(pace).await;
                }
            }
        }
    }
}

async fn converse(link: &mut PeerLink, lanes: &Lanes) -> LinkError {
    loop {
        match link.next().await {
            Ok(Message::NeedLane { count }) => lanes.need(count),
            Ok(_) => return LinkError::Unexpected("a message that has no place on an agent's link"),
            Err(e) => return e,
        }
    }
}

impl Outage {
    fn say(&mut self, gateway: &Gateway, reason: String) {
        if let Some(reason) = self.news(reason) {
            tracing::warn!(gateway = gateway.describe(), "not connected: {reason}; trying again");
        }
    }

    /// A reason that is not the one said last.
    fn news(&mut self, reason: String) -> Option<String> {
        if self.said.as_ref() == Some(&reason) {
            return None;
        }
        self.said = Some(reason.clone());
        Some(reason)
    }

    async fn pause(&mut self, pace: Pace) {
        // Without randomness all wait the longest: no jitter, but no spinning either.
        let random = getrandom::u32().unwrap_or(u32::MAX);
        match pace {
            Pace::Soon => self.backoff.wait().await,
            Pace::Patient => sleep(between(2_500, 5_000, random)).await,
            Pace::Humble => sleep(between(6_000, 9_000, random)).await,
        }
    }
}

fn between(from_ms: u64, to_ms: u64, random: u32) -> Duration {
    Duration::from_millis(from_ms + (((to_ms - from_ms) * u64::from(random)) >> 32))
}

fn pace(error: &LinkError) -> Pace {
    match error {
        LinkError::Tunnel(TunnelError::Refused(Refused { code, .. })) => match code {
            RefusalCode::Unauthenticated => Pace::Humble,
            RefusalCode::Draining | RefusalCode::Internal => Pace::Soon,
            _ => Pace::Patient,
        },
        LinkError::Goodbye(goodbye) => match goodbye.code {
            GoodbyeCode::Unauthenticated => Pace::Humble,
            GoodbyeCode::Draining => Pace::Soon,
            _ => Pace::Patient,
        },
        _ => Pace::Soon,
    }
}

/// An error, and what the user can do; `next_token` says how there will be another token.
fn described(error: &LinkError, next_token: &str) -> String {
    match advice(error, next_token) {
        Some(advice) => format!("{error}; {advice}"),
        None => error.to_string(),
    }
}

/// What the user can do, where that does not show.
fn advice(error: &LinkError, next_token: &str) -> Option<String> {
    match error {
        LinkError::Tunnel(TunnelError::Refused(refused)) => match refused.code {
            // What may be wrong with it the gateway has said.
            RefusalCode::Unauthenticated => Some(next_token.to_owned()),
            _ => None,
        },
        LinkError::Goodbye(goodbye) => match goodbye.code {
            GoodbyeCode::Replaced => {
                Some("another agent with this token runs on this installation".to_owned())
            }
            GoodbyeCode::Unauthenticated => Some(next_token.to_owned()),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, rc::Rc};

    use futures_lite::future::zip;
    use narrowlink_dataplane::{run::worker::spawn, tunnel::conn::Conn};
    use narrowlink_proto::{
        id::LinkSecret,
        message::{Goodbye, Speaker},
        upgrade::Request,
    };

    use super::*;
    use crate::{
        config::LaneRange,
        fixture::{Fixture, Port, heard, run, token},
    };

    fn refused(code: RefusalCode) -> LinkError {
        TunnelError::Refused(Refused::new(code, "no")).into()
    }

    fn goodbye(code: GoodbyeCode) -> LinkError {
        LinkError::Goodbye(Goodbye { code, reason: "bye".to_owned() })
    }

    #[test]
    fn who_is_not_wanted_comes_back_slowly_and_who_is_lost_soon() {
        assert_eq!(pace(&LinkError::Closed), Pace::Soon);
        assert_eq!(pace(&LinkError::Silent(JOIN_TIMEOUT)), Pace::Soon);
        assert_eq!(pace(&refused(RefusalCode::Draining)), Pace::Soon);
        assert_eq!(pace(&refused(RefusalCode::Unauthenticated)), Pace::Humble);
        assert_eq!(pace(&refused(RefusalCode::Limited)), Pace::Patient);
        assert_eq!(pace(&goodbye(GoodbyeCode::Draining)), Pace::Soon);
        assert_eq!(pace(&goodbye(GoodbyeCode::Replaced)), Pace::Patient);
        assert_eq!(pace(&goodbye(GoodbyeCode::NameTaken)), Pace::Patient);
        assert_eq!(pace(&goodbye(GoodbyeCode::Unauthenticated)), Pace::Humble);
    }

    #[test]
    fn a_pause_lies_within_its_bounds() {
        assert_eq!(between(6_000, 9_000, 0), Duration::from_secs(6));
        assert!(between(6_000, 9_000, u32::MAX) <= Duration::from_secs(9));
        assert_eq!(between(2_500, 5_000, 1 << 31), Duration::from_millis(3_750));
    }

    #[test]
    fn trouble_with_the_token_or_the_name_comes_with_advice() {
        let next = "ask for a new one";
        assert_eq!(described(&goodbye(GoodbyeCode::Unauthenticated), next), "bye; ask for a new one");
        assert_eq!(described(&refused(RefusalCode::Unauthenticated), next), "no; ask for a new one");
        assert!(advice(&goodbye(GoodbyeCode::Replaced), next).is_some());
        assert!(advice(&LinkError::Closed, next).is_none());
    }

    #[test]
    fn a_gateway_of_another_version_is_named_with_both_and_a_later_ones_reason_is_passed_on() {
        let said = described(&LinkError::Version { theirs: 2 }, "");
        assert!(
            said.contains("version 2 ") && said.contains("version 1:") && said.contains("update"),
            "{said}"
        );
        assert_eq!(described(&goodbye(GoodbyeCode::Other), ""), "bye");
        assert_eq!(pace(&goodbye(GoodbyeCode::Other)), Pace::Patient);
    }

    #[test]
    fn the_same_trouble_is_said_once_and_another_one_at_once() {
        let mut outage = Outage::default();
        let said: Vec<_> =
            ["away", "away", "no", "no", "away"].iter().map(|why| outage.news((*why).to_owned())).collect();
        let news = |why: &str| Some(why.to_owned());
        assert_eq!(said, [news("away"), None, news("no"), None, news("away")]);
    }

    #[test]
    fn a_lost_link_waits_for_a_renewal_only_while_one_is_under_way() {
        run(async || {
            let renewal = Renewal::default();
            renewal.is_over().await;
            renewal.set(true);
            let mut waiting = std::pin::pin!(renewal.is_over());
            assert!(future::poll_once(waiting.as_mut()).await.is_none());
            renewal.set(false);
            waiting.await;
        });
    }

    #[test]
    fn a_token_file_that_went_bad_is_complained_of_until_it_is_mended() {
        run(async || {
            let (at, files) = (Fixture::new(), Files::default());
            let read = || files.gateway(&at.shared, &at.endpoint);
            assert_eq!(read().await.unwrap().token(), token("first"));
            for (text, says) in
                [(Some("two words"), "one token"), (Some("hunter2"), "is no token"), (None, "is gone")]
            {
                match text {
                    Some(text) => fs::write(at.token_file(), text).unwrap(),
                    None => fs::remove_file(at.token_file()).unwrap(),
                }
                assert!(read().await.is_none());
                let said = files.said.borrow().clone().unwrap();
                assert!(said.contains(says) && !said.contains("hunter2"), "{said}");
            }
            assert_eq!(files.stamp(at.token_file()).await, Some(None), "the disk answers that there is none");
            fs::write(at.token_file(), token("second")).unwrap();
            assert_eq!(read().await.unwrap().token(), token("second"));
            assert_eq!(*files.said.borrow(), None);
        });
    }

    /// Welcomes the agent to a link.
    async fn welcome(port: &Port, secret: &LinkSecret) -> Conn {
        let (conn, request, present) = port.link(Speaker::Agent, secret.clone()).await;
        assert_eq!(request.token, token("first"));
        assert!(matches!(present, Message::Present { version: 1, instance: Some(_), .. }), "{present:?}");
        conn
    }

    /// A lane of that link.
    async fn lane(port: &Port, secret: &LinkSecret) -> Conn {
        let (conn, Request { lane, .. }) = port.upgrade().await;
        let proof = lane.expect("a lane");
        assert!(secret.permits_lane(&proof.link, &proof.lane, &proof.proof));
        conn
    }

    #[test]
    fn an_agent_opens_the_lanes_that_it_is_asked_for_and_comes_back_when_its_gateway_is_restarted() {
        run(async || {
            let port = Port::listen();
            let mut at =
                Fixture::with(port.addr.to_string(), |config| config.lanes = LaneRange { min: 0, max: 9 });
            spawn(at.to_begin.clone().run(Rc::new(())));
            let holding = hold(at.shared.clone(), at.endpoint.clone(), at.gateway());
            let stop = at.stop.take();
            let playing = async {
                let secret = LinkSecret::from_bytes([2; 32]);
                let link = welcome(&port, &secret).await;
                assert_eq!(at.shared.ready.wait(Duration::ZERO), None, "it has yet to hear of it");
                link.send(&Message::NeedLane { count: 2 }).await.unwrap();
                let lanes = [lane(&port, &secret).await, lane(&port, &secret).await];
                assert_eq!(at.shared.ready.wait(Duration::ZERO), Some(port.addr.to_string()));
                let bye = Goodbye { code: GoodbyeCode::Draining, reason: "back soon".to_owned() };
                link.send(&Message::Goodbye(bye)).await.unwrap();
                for lane in lanes {
                    assert!(matches!(heard(&lane).await, Ok(Message::Retire)));
                    lane.close(1001, "");
                }
                let _link = welcome(&port, &secret).await;
                drop(stop);
            };
            zip(holding, playing).await;
            at.shared.tasks.done().await;
        });
    }

    #[test]
    fn an_agent_asks_a_gateway_that_breaks_off_again_and_again_until_it_is_told_to_stop() {
        run(async || {
            let port = Port::listen();
            let mut at = Fixture::with(port.addr.to_string(), |_| {});
            let holding = hold(at.shared.clone(), at.endpoint.clone(), at.gateway());
            let stop = at.stop.take();
            let breaking = async {
                for _ in 0..4 {
                    drop(port.accept().await);
                }
                drop(stop);
            };
            zip(holding, breaking).await;
        });
    }
}
