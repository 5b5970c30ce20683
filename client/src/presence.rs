//! Role: whether a gateway is there: holds a link, so that all workers of a forward know at once when it comes back.
//! Invariants: never gives up; who waits for the gateway is woken when it is back, on whichever worker; the same trouble is
//! said once, not at every try; a token that does not hold is not offered again in a hurry, and a newer one as soon
//! as it is there; a link by a newer token takes the place of one that stands without a gap.
//! See: ARCHITECTURE.md "Life of a byte"; `renewal` for where newer tokens come from.

use std::{
    convert::Infallible,
    ops::ControlFlow,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_channel::{Receiver, Sender};
use futures_lite::future;
use narrowlink_dataplane::{
    peer::PeerLink,
    run::{
        backoff::Backoff,
        bell::Event,
        lock::lock,
        timer::{sleep, sleep_until},
    },
    tunnel::LinkError,
};
use narrowlink_proto::message::{AgentInfo, Goodbye, GoodbyeCode, Message};

use crate::{
    exit::Failure,
    renewal::Renewal,
    routes::{Route, Routes},
};

/// A gateway that has just come back does not know its agents yet: they come within a second or two.
pub(crate) const AGENT_GRACE: Duration = Duration::from_secs(3);
/// Agents that are heard of in one roll call.
const AGENTS_MAX: usize = 100_000;
/// A link that stood for so long was a good one: the next outage starts with short pauses.
const STABLE_AFTER: Duration = Duration::from_secs(5);
/// Between two tries at the least, however many connections ask for one.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// After the token was refused: below the ten failed logins a minute at which a gateway begins to punish
/// everybody behind our address.
const TOKEN_PAUSE: Duration = Duration::from_secs(8);

/// Whether a gateway is there.
pub(crate) struct Presence {
    since: Mutex<Option<Instant>>,
    /// Set while the gateway is there.
    back: Event,
    /// Set while it is away, from the first link on.
    gone: Event,
    /// Pulsed when a link by a newer token has taken the place of another.
    renewed: Event,
    poke: (Sender<()>, Receiver<()>),
    /// The token does not hold; until another try says otherwise.
    locked_out: Mutex<Option<Failure>>,
    /// Who wants to hear once which agents are there.
    roll_call: Mutex<Option<RollCall>>,
}

/// How soon the gateway is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pause {
    /// As an outage demands it, or when somebody waits.
    Soon,
    /// After [`TOKEN_PAUSE`].
    Humble,
}

/// Hears which agents a gateway shows, until it has heard enough.
pub(crate) type RollCall = Box<dyn FnMut(&[AgentInfo]) -> ControlFlow<()> + Send>;

impl Presence {
    /// `roll_call` hears which agents are there as soon as a gateway is, and again after [`AGENT_GRACE`] if it
    /// wants to.
    pub(crate) fn new(roll_call: RollCall) -> Arc<Self> {
        Arc::new(Self {
            roll_call: Mutex::new(Some(roll_call)),
            since: Mutex::default(),
            back: Event::default(),
            gone: Event::default(),
            renewed: Event::default(),
            poke: async_channel::bounded(1),
            locked_out: Mutex::default(),
        })
    }

    /// Since when the gateway has been there; `None` while it is not.
    pub(crate) fn since(&self) -> Option<Instant> {
        *lock(&self.since)
    }

    /// Why there is no point in asking: the gateway has just refused the token.
    pub(crate) fn locked_out(&self) -> Option<Failure> {
        lock(&self.locked_out).clone()
    }

    /// Waits until the gateway is there.
    pub(crate) fn back(&self) -> impl Future<Output = ()> + use<> {
        self.back.wait()
    }

    /// Waits until the gateway is away; only while it is there.
    pub(crate) fn gone(&self) -> impl Future<Output = ()> + use<> {
        self.gone.wait()
    }

    /// Waits until a link by a newer token takes the place of one that stands, the next time from this call on.
    pub(crate) fn renewed(&self) -> impl Future<Output = ()> + use<> {
        self.renewed.wait()
    }

    /// Somebody waits: try now.
    pub(crate) fn poke(&self) {
        let _ = self.poke.0.try_send(());
    }

    /// A link by a newer token has taken the place of another.
    pub(crate) fn renew(&self) {
        self.renewed.pulse();
    }

    /// Holds a link for ever.
    pub(crate) async fn hold(&self, routes: &Routes, renewal: &Renewal) -> Infallible {
        let mut backoff = Backoff::default();
        let mut said: Option<String> = None;
        loop {
            let pause = match routes.join().await {
                Ok((route, link)) => {
                    routes.prefer(&route);
                    tracing::info!(gateway = route.gateway.describe(), "connected");
                    (said, *lock(&self.locked_out)) = (None, None);
                    let stood = self.stand((route, link), routes, renewal).await;
                    if stood >= STABLE_AFTER {
                        backoff.reset();
                    }
                    Pause::Soon
                }
                Err(failed) => {
                    let about_the_token = failed.is_about_the_token();
                    let failure = failed.explain();
                    if said.as_ref() != Some(&failure.message) {
                        tracing::warn!("not connected: {failure}; trying again");
                        said = Some(failure.message.clone());
                    }
                    *lock(&self.locked_out) = about_the_token.then_some(failure);
                    if about_the_token { Pause::Humble } else { Pause::Soon }
                }
            };
            if self.pause(pause, &mut backoff, routes, renewal).await {
                // Another token is another matter.
                (said, *lock(&self.locked_out)) = (None, None);
            }
        }
    }

    /// Waits before the next try; a newer token ends the pause. Whether there is one.
    async fn pause(&self, pause: Pause, backoff: &mut Backoff, routes: &Routes, renewal: &Renewal) -> bool {
        let pausing = async {
            match pause {
                Pause::Humble => sleep(TOKEN_PAUSE).await,
                Pause::Soon => {
                    let poked = async {
                        sleep(PAUSE_MIN).await;
                        let _ = self.poke.1.recv().await;
                    };
                    future::or(backoff.wait(), poked).await;
                }
            }
            renewal.catch_up(routes).await
        };
        let renewed = async {
            renewal.take_up(routes, renewal.newer(routes).await);
            true
        };
        future::or(pausing, renewed).await
    }

    /// A link while it, or one by a newer token in its place, stands; for how long that was.
    async fn stand(
        &self,
        (mut route, mut link): (Arc<Route>, PeerLink),
        routes: &Routes,
        renewal: &Renewal,
    ) -> Duration {
        let since = Instant::now();
        *lock(&self.since) = Some(since);
        self.gone.clear();
        self.back.set();
        let error = loop {
            let logged_in = async { Ok(renewal.log_in(routes, route.index).await) };
            let conversed = async { Err(self.converse(&mut link).await) };
            match future::or(logged_in, conversed).await {
                Ok((newer, newer_link)) => {
                    std::mem::replace(&mut link, newer_link).close();
                    route = newer;
                    self.renew();
                }
                Err(error) => break error,
            }
        };
        match &error {
            LinkError::Goodbye(Goodbye { code: GoodbyeCode::Unauthenticated, reason }) => {
                tracing::warn!("the gateway has sent us away: {reason}");
                route.on_refused();
            }
            error => tracing::warn!("the gateway is away: {error}"),
        }
        *lock(&self.since) = None;
        self.back.clear();
        self.gone.set();
        since.elapsed()
    }
}

impl Presence {
    /// Until the link ends. A client's link has little to say: what a newer gateway adds is not for us.
    async fn converse(&self, link: &mut PeerLink) -> LinkError {
        let mut call_at = Some(Instant::now());
        let mut heard = Vec::new();
        loop {
            let calling = async {
                match call_at {
                    Some(at) => sleep_until(at).await,
                    None => future::pending().await,
                }
                None
            };
            match future::or(async { Some(link.next().await) }, calling).await {
                None => {
                    call_at = None;
                    if lock(&self.roll_call).is_none() {
                        continue;
                    }
                    if let Err(e) = link.send(&Message::List) {
                        break e;
                    }
                }
                Some(Ok(Message::Agents { agents, more })) => {
                    // A gateway lists what it has; that one has no end, nobody needs.
                    if heard.len() < AGENTS_MAX {
                        heard.extend(agents);
                    }
                    let roll_call = if more { None } else { lock(&self.roll_call).take() };
                    let Some(mut roll_call) = roll_call else { continue };
                    if roll_call(&std::mem::take(&mut heard)).is_continue() {
                        *lock(&self.roll_call) = Some(roll_call);
                        call_at = Some(Instant::now() + AGENT_GRACE);
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(e)) => break e,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use narrowlink_dataplane::run::{timer::timeout, worker::spawn};
    use narrowlink_proto::{
        ended::RefusalCode,
        id::{LinkSecret, Uid},
        message::{Channel, Speaker},
        token::{Claims, Keys, Kind},
    };

    use super::*;
    use crate::{
        config::Config,
        exit::Exit,
        fixture::{Port, config, no, routes, run},
    };

    #[test]
    fn who_waits_is_woken_when_the_gateway_is_back() {
        let woken = run(async || {
            let presence = Presence::new(Box::new(|_| ControlFlow::Break(())));
            let (woken, told) = async_channel::bounded(3);
            for _ in 0..3 {
                let (presence, woken) = (presence.clone(), woken.clone());
                spawn(async move {
                    presence.back().await;
                    let _ = woken.try_send(());
                });
            }
            assert!(future::poll_once(presence.back()).await.is_none());
            presence.back.set();
            for _ in 0..3 {
                told.recv().await.unwrap();
            }
            presence.back().await;
            presence.back.clear();
            future::poll_once(presence.back()).await.is_none()
        });
        assert!(woken, "a new outage is waited for anew");
    }
    fn secret() -> LinkSecret {
        LinkSecret::from_bytes([2; 32])
    }

    fn one(name: &str) -> AgentInfo {
        let address = "192.0.2.1:5".parse().unwrap();
        AgentInfo { name: name.to_owned(), address, ping_us: None, connected_s: 1 }
    }

    /// A link is held to a gateway that a test plays.
    fn test(roll_call: RollCall, main: impl AsyncFnOnce(&Presence, &Routes, Port)) {
        run(async || {
            let port = Port::listen();
            let gateway = port.addr.to_string();
            let (routes, renewal) = (routes(&[&gateway]), Renewal::new(&config(&[&gateway])));
            let presence = Presence::new(roll_call);
            let holding = async { match presence.hold(&routes, &renewal).await {} };
            future::or(holding, main(&presence, &routes, port)).await;
        });
    }

    #[test]
    fn a_gateway_that_goes_away_is_missed_at_once_and_found_again_however_often() {
        test(Box::new(|_| ControlFlow::Break(())), async |presence, _, port| {
            for _ in 0..3 {
                assert!(presence.since().is_none());
                presence.poke();
                let (link, ..) = port.link(Speaker::Client, secret()).await;
                presence.back().await;
                assert!(presence.since().is_some());
                assert!(future::poll_once(presence.gone()).await.is_none());
                drop(link);
                presence.gone().await;
                assert!(future::poll_once(presence.back()).await.is_none());
            }
        });
    }

    #[test]
    fn the_agents_of_a_long_list_are_heard_as_one_and_asked_for_no_more_than_wanted() {
        let (tell, told) = async_channel::unbounded();
        let roll_call = move |agents: &[AgentInfo]| {
            let names: Vec<_> = agents.iter().map(|agent| agent.name.clone()).collect();
            tell.try_send(names).unwrap();
            ControlFlow::Break(())
        };
        test(Box::new(roll_call), async |presence, _, port| {
            let (link, ..) = port.link(Speaker::Client, secret()).await;
            let asked = link.recv(Speaker::Client, Channel::Link).await.unwrap();
            assert!(matches!(asked, Message::List), "{}", asked.name());
            for (name, more) in [("home", true), ("office", false)] {
                link.send(&Message::Agents { agents: vec![one(name)], more }).await.unwrap();
            }
            assert_eq!(told.recv().await.unwrap(), ["home", "office"]);
            drop(link);
            presence.gone().await;
            let (link, ..) = port.link(Speaker::Client, secret()).await;
            presence.back().await;
            let silent = timeout(Duration::from_millis(50), link.recv(Speaker::Client, Channel::Link)).await;
            assert!(silent.is_err(), "the outlook was said");
        });
    }

    #[test]
    fn a_token_that_is_refused_locks_out_until_it_is_taken_and_is_not_offered_in_a_hurry() {
        test(Box::new(|_| ControlFlow::Break(())), async |presence, _, port| {
            port.refuse(&no(RefusalCode::Unauthenticated)).await;
            while presence.locked_out().is_none() {
                sleep(PAUSE_MIN / 50).await;
            }
            assert_eq!(presence.locked_out().unwrap().exit, Exit::Authentication);
            presence.poke();
            // Somebody waits: any other trouble would be tried again after 50 ms.
            assert!(timeout(PAUSE_MIN * 4, port.request()).await.is_err());
        });
    }

    #[test]
    fn a_gateway_that_sends_us_away_for_our_token_is_remembered_for_that() {
        test(Box::new(|_| ControlFlow::Break(())), async |presence, routes, port| {
            let (link, ..) = port.link(Speaker::Client, secret()).await;
            presence.back().await;
            let reason = "the token was revoked".to_owned();
            let goodbye = Goodbye { code: GoodbyeCode::Unauthenticated, reason };
            link.send(&Message::Goodbye(goodbye)).await.unwrap();
            presence.gone().await;
            assert!(routes.first().is_refused());
        });
    }

    #[test]
    fn a_link_by_a_newer_token_takes_the_place_of_the_one_that_stands_and_all_who_wait_hear_of_it() {
        run(async || {
            let (port, dir) = (Port::listen(), tempfile::tempdir().unwrap());
            let token = |jti| {
                Keys::new(&[7; 32]).sign(&Claims::new(Kind::Client, Uid::nil(), "n", 4_000_000_000, jti))
            };
            let write = |jti| std::fs::write(dir.path().join("token"), token(jti).unwrap()).unwrap();
            write("older");
            let text = format!(
                "endpoints: [!SelfHosted {{ gateway: '{}', token_file: token, protocol: Ws }}]",
                port.addr
            );
            let config = Config::parse(&text, &dir.path().join("client.yaml")).unwrap();
            let (routes, renewal) = (Routes::load(&config).unwrap(), Renewal::new(&config));
            let presence = Presence::new(Box::new(|_| ControlFlow::Break(())));
            let holding = async { match presence.hold(&routes, &renewal).await {} };
            let renewing = async {
                let (older, ..) = port.link(Speaker::Client, secret()).await;
                presence.back().await;
                let renewed = [presence.renewed(), presence.renewed()];
                write("newer");
                let (_newer, request, _) = port.link(Speaker::Client, secret()).await;
                assert_eq!(request.token, token("newer").unwrap());
                for renewed in renewed {
                    renewed.await;
                }
                assert_eq!(
                    routes.first().gateway.token(),
                    request.token,
                    "it is in use before they hear of it"
                );
                assert!(future::poll_once(presence.gone()).await.is_none());
                // The question for the agents comes first.
                while older.recv(Speaker::Client, Channel::Link).await.is_ok() {}
            };
            future::or(holding, renewing).await;
        });
    }
}
