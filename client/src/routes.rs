//! Role: the gateways of a configuration, in the order in which they are tried, each with the token that it is asked with.
//! Invariants: the one that answered last comes first; whoever answers ends the search, also with a
//! refusal, unless it is about to shut down · a token that has taken another's place gives it back when its gateway
//! refuses it, unless that one was refused as well.
//! See: `renewal`, which finds newer tokens.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use narrowlink_dataplane::{
    peer::{Gateway, PeerLink, join},
    run::lock::lock,
    tunnel::{LinkError, TunnelError},
};
use narrowlink_proto::{
    ended::{RefusalCode, Refused},
    endpoint::FramingChoice,
    feature::Features,
    message::GoodbyeCode,
    token::peek_unverified,
    upgrade::Framing,
    when::show_from,
};

use crate::{
    config::{Config, ConfigError},
    exit::Failure,
};

/// For a link's connection, TLS, upgrade and welcome, each.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

/// The gateways of a configuration.
pub(crate) struct Routes {
    slots: Vec<Mutex<Slot>>,
    first: AtomicUsize,
}

/// The place of one endpoint.
struct Slot {
    route: Arc<Route>,
    /// What `route` has replaced, until its gateway has taken it.
    before: Option<Arc<Route>>,
}

/// One gateway, asked with one token. Streams and sessions keep the one that they were opened by.
pub(crate) struct Route {
    /// Which endpoint this is, from 0.
    pub(crate) index: usize,
    pub(crate) gateway: Gateway,
    token_place: PathBuf,
    /// The gateway has refused the token, and has not taken it since.
    refused: AtomicBool,
}

impl Route {
    /// How the payload of a session travels there.
    pub(crate) fn framing(&self) -> Framing {
        match self.gateway.framing() {
            FramingChoice::Raw => Framing::Raw,
            FramingChoice::Auto | FramingChoice::Framed => Framing::Framed,
        }
    }

    /// The same gateway with another token, which is in use nowhere yet.
    pub(crate) fn with(&self, gateway: Gateway) -> Arc<Self> {
        let token_place = self.token_place.clone();
        Arc::new(Self { index: self.index, gateway, token_place, refused: AtomicBool::new(false) })
    }

    /// Where the token lies: its file, or the configuration.
    pub(crate) fn place(&self) -> &Path {
        &self.token_place
    }

    /// Whether the token does not hold, as far as is known.
    pub(crate) fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// The gateway says that the token does not hold, or holds no more.
    pub(crate) fn on_refused(&self) {
        self.refused.store(true, Ordering::Relaxed);
    }

    /// A link to this gateway.
    pub(crate) async fn join(self: &Arc<Self>) -> Result<PeerLink, JoinError> {
        let joined = join(&self.gateway, Features::NONE, None, JOIN_TIMEOUT).await;
        joined.map_err(|error| JoinError { route: self.clone(), error })
    }

    /// A refusal by this gateway, for the user.
    pub(crate) fn explain(&self, refused: &Refused) -> Failure {
        Failure::refused(refused, &self.token_trouble())
    }

    /// Why nothing came of what this gateway was asked, for the user.
    pub(crate) fn explain_failed(&self, error: TunnelError) -> Failure {
        match error {
            TunnelError::Refused(refused) => self.explain(&refused),
            other => other.into(),
        }
    }

    /// What is wrong with the token that the gateway has refused, and where it lies.
    fn token_trouble(&self) -> String {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        token_trouble(self.gateway.token(), &self.token_place, self.gateway.describe(), now.as_secs())
    }

    /// Says that this new token was refused, and that the one before stays.
    pub(crate) fn say_refused(&self) {
        tracing::warn!(
            gateway = self.gateway.describe(),
            "the new token does not work: {}; going on with the one before",
            self.token_trouble()
        );
    }
}

impl Routes {
    /// Reads what the endpoints of a configuration name.
    pub(crate) fn load(config: &Config) -> Result<Self, ConfigError> {
        Ok(Self::new(config, config.gateways()?))
    }

    /// The gateways that the endpoints of a configuration name, one for each.
    pub(crate) fn new(config: &Config, gateways: Vec<Gateway>) -> Self {
        let places = config.endpoints.iter().map(|endpoint| config.token_place(endpoint));
        let slots = gateways.into_iter().zip(places).enumerate().map(|(index, (gateway, token_place))| {
            let route = Arc::new(Route { index, gateway, token_place, refused: AtomicBool::new(false) });
            Mutex::new(Slot { route, before: None })
        });
        Self { slots: slots.collect(), first: AtomicUsize::new(0) }
    }

    pub(crate) fn at(&self, index: usize) -> Arc<Route> {
        lock(&self.slots[index]).route.clone()
    }

    /// The one that is tried first.
    pub(crate) fn first(&self) -> Arc<Route> {
        self.at(self.first.load(Ordering::Relaxed))
    }

    /// Whether this is the one that is tried first, with the same token.
    pub(crate) fn is_first(&self, route: &Arc<Route>) -> bool {
        let first = self.first.load(Ordering::Relaxed);
        Arc::ptr_eq(&lock(&self.slots[first]).route, route)
    }

    /// The next search begins with this one's gateway.
    pub(crate) fn prefer(&self, route: &Route) {
        self.first.store(route.index, Ordering::Relaxed);
    }

    /// Asks this one's gateway with its token from now on.
    pub(crate) fn replace(&self, newer: Arc<Route>) {
        let mut slot = lock(&self.slots[newer.index]);
        let older = std::mem::replace(&mut slot.route, newer);
        // One that nobody has tried yet is not worth going back to.
        let proven = slot.before.take().unwrap_or(older);
        slot.before = (!proven.is_refused()).then_some(proven);
    }

    /// This one's gateway has taken its token.
    pub(crate) fn on_taken(&self, route: &Arc<Route>) {
        route.refused.store(false, Ordering::Relaxed);
        let mut slot = lock(&self.slots[route.index]);
        if Arc::ptr_eq(&slot.route, route) {
            slot.before = None;
        }
    }

    /// This one's gateway has refused its token: whether it is asked with another one from now on, be it the one
    /// before, or a newer one.
    pub(crate) fn has_another(&self, refused: &Arc<Route>) -> bool {
        let mut slot = lock(&self.slots[refused.index]);
        if !Arc::ptr_eq(&slot.route, refused) {
            return true;
        }
        let Some(before) = slot.before.take() else { return false };
        slot.route = before;
        drop(slot);
        refused.say_refused();
        true
    }

    /// The indexes of the endpoints, in the order to try them; and whether it is the last.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = (usize, bool)> {
        let (first, count) = (self.first.load(Ordering::Relaxed), self.slots.len());
        let rest = (0..count).filter(move |&index| index != first);
        std::iter::once(first).chain(rest).enumerate().map(move |(n, index)| (index, n + 1 == count))
    }

    /// A link to the first gateway that answers.
    pub(crate) async fn join(&self) -> Result<(Arc<Route>, PeerLink), JoinError> {
        let mut in_order = self.in_order();
        loop {
            let Some((index, last)) = in_order.next() else { unreachable!("a configuration has endpoints") };
            match self.join_at(index).await {
                Ok(joined) => return Ok(joined),
                Err(failed) if last || is_answer(&failed.error) => return Err(failed),
                Err(failed) => {
                    tracing::debug!(gateway = failed.route.gateway.describe(), "no link: {}", failed.error);
                }
            }
        }
    }

    /// A link to one gateway, by the token before where a new one is refused.
    async fn join_at(&self, index: usize) -> Result<(Arc<Route>, PeerLink), JoinError> {
        loop {
            let route = self.at(index);
            match route.join().await {
                Ok(link) => {
                    self.on_taken(&route);
                    return Ok((route, link));
                }
                Err(failed) if !failed.is_about_the_token() => return Err(failed),
                Err(failed) => {
                    route.on_refused();
                    if !self.has_another(&route) {
                        return Err(failed);
                    }
                }
            }
        }
    }
}

/// Why there is no link, and whose.
pub(crate) struct JoinError {
    route: Arc<Route>,
    error: LinkError,
}

impl JoinError {
    /// For the user.
    pub(crate) fn explain(self) -> Failure {
        match self.error {
            LinkError::Tunnel(TunnelError::Refused(refused)) => self.route.explain(&refused),
            error => error.into(),
        }
    }

    /// Whether the token does not hold, so that trying again soon would only count as an attack.
    pub(crate) fn is_about_the_token(&self) -> bool {
        match &self.error {
            LinkError::Tunnel(TunnelError::Refused(refused)) => refused.code == RefusalCode::Unauthenticated,
            LinkError::Goodbye(goodbye) => goodbye.code == GoodbyeCode::Unauthenticated,
            _ => false,
        }
    }
}

/// Whether a gateway has answered: then no other is asked.
fn is_answer(error: &LinkError) -> bool {
    match error {
        LinkError::Tunnel(TunnelError::Refused(refused)) => refused.code != RefusalCode::Draining,
        LinkError::Goodbye(goodbye) => goodbye.code != GoodbyeCode::Draining,
        _ => false,
    }
}

/// What is wrong with a token that a gateway refused, as far as its bearer can tell. The gateway tells
/// nobody why.
fn token_trouble(token: &str, place: &Path, gateway: &str, now: u64) -> String {
    let place = place.display();
    match peek_unverified(token) {
        None => format!(
            "{place} holds no token where one belongs: three parts joined by dots, of which the first begins with ey; was \
             it cut off when it was copied?"
        ),
        Some(peek) if peek.exp <= now => {
            format!("the token in {place} expired on {}; ask for a new one", show_from(peek.exp, now))
        }
        Some(peek) if peek.nbf.is_some_and(|nbf| nbf > now) => {
            let from = show_from(peek.nbf.unwrap_or_default(), now);
            format!("the token in {place} is valid only from {from}")
        }
        Some(_) => {
            format!(
                "the gateway {gateway} does not accept the token in {place}: it is another gateway's, or was revoked; ask \
                 for a new one"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::{poll_once, zip};
    use narrowlink_proto::{
        id::LinkSecret,
        message::{Goodbye, Speaker},
        token::{Claims, Keys},
    };

    use super::*;
    use crate::fixture::{self, Port, deaf, no, renew, run};

    fn routes(text: &str) -> Routes {
        Routes::load(&Config::parse(text, Path::new("client.yaml")).unwrap()).unwrap()
    }

    #[test]
    fn the_one_that_answered_last_is_tried_first() {
        let text = "endpoints:
  - !SelfHosted { gateway: 'a:1', token: x, protocol: Ws }
  - !SelfHosted { gateway: 'b:1', token: x, protocol: Ws }
  - !SelfHosted { gateway: 'c:1', token: x, protocol: Ws }
";
        let routes = routes(text);
        let order = |routes: &Routes| routes.in_order().collect::<Vec<_>>();
        assert_eq!(order(&routes), [(0, false), (1, false), (2, true)]);
        routes.prefer(&routes.at(2));
        assert_eq!(order(&routes), [(2, false), (0, false), (1, true)]);
    }

    const ONE: &str = "endpoints: [!SelfHosted { gateway: 'a:1', token: x, protocol: Ws }]";

    #[test]
    fn a_new_token_that_is_refused_gives_its_place_back_once() {
        let routes = routes(ONE);
        let old = routes.first();
        let newer = renew(&routes, "y");
        assert!(routes.is_first(&newer) && !routes.is_first(&old));
        assert!(routes.has_another(&old), "who came with the old one may try the new one");
        assert!(routes.has_another(&newer) && routes.is_first(&old));
        assert!(!routes.has_another(&old), "there is no third one");
    }

    #[test]
    fn a_new_token_that_was_taken_once_is_the_only_one() {
        let routes = routes(ONE);
        let newer = renew(&routes, "y");
        routes.on_taken(&newer);
        assert!(!routes.has_another(&newer) && routes.is_first(&newer));
    }

    #[test]
    fn a_token_goes_back_neither_to_one_that_was_refused_nor_to_one_that_nobody_tried() {
        let routes = routes(ONE);
        let first = routes.first();
        let untried = renew(&routes, "y");
        let third = renew(&routes, "z");
        assert!(routes.has_another(&third) && routes.is_first(&first) && !routes.is_first(&untried));
        first.on_refused();
        let fourth = renew(&routes, "z");
        assert!(!routes.has_another(&fourth) && routes.is_first(&fourth));
    }

    #[test]
    fn an_agents_token_is_refused_before_anybody_is_asked() {
        let claims =
            r#"{"kind":"agent","uid":"0d9c1a52-6d5f-4f0b-9c55-2f3c8b1e7a10","name":"n","jti":"j","exp":9}"#;
        let token = Keys::new(&[7; 32]).sign(&serde_json::from_str::<Claims>(claims).unwrap()).unwrap();
        let text = format!("endpoints: [!SelfHosted {{ gateway: 'a:1', token: {token}, protocol: Ws }}]");
        let refused = Routes::load(&Config::parse(&text, Path::new("client.yaml")).unwrap()).err().unwrap();
        assert!(
            refused.to_string().contains("endpoints[0].token: this token is not a client's"),
            "{refused}"
        );
    }

    #[test]
    fn a_refused_token_is_explained_as_far_as_it_can_be() {
        let keys = Keys::new(&[7; 32]);
        let token = |times: &str| {
            let claims = format!(
                r#"{{"kind":"client","uid":"0d9c1a52-6d5f-4f0b-9c55-2f3c8b1e7a10","name":"n","jti":"j",{times}}}"#
            );
            keys.sign(&serde_json::from_str::<Claims>(&claims).unwrap()).unwrap()
        };
        let say = |token: &str| token_trouble(token, Path::new("client.yaml"), "gw:443", 1_795_200_000);
        assert!(say("xyz").starts_with("client.yaml holds no token where one belongs: "), "{}", say("xyz"));
        let expired = token(r#""exp":1795132800"#);
        let said =
            "the token in client.yaml expired on 2026-11-20 00:00:00 UTC (18 hours ago); ask for a new one";
        assert_eq!(say(&expired), said);
        let early = token(r#""exp":1900000000,"nbf":1800000000"#);
        assert!(say(&early).contains("only from 2027-01-15"));
        let unknown = say(&token(r#""exp":1900000000"#));
        assert!(unknown.contains("gw:443 does not accept the token"), "{unknown}");
        assert!(unknown.contains("another gateway's, or was revoked"), "{unknown}");
    }

    #[test]
    fn a_gateway_that_answers_ends_the_search_unless_it_is_leaving() {
        let refused = |code| LinkError::Tunnel(TunnelError::Refused(Refused::new(code, "no")));
        let goodbye = |code| LinkError::Goodbye(Goodbye { code, reason: String::new() });
        assert!(is_answer(&refused(RefusalCode::Unauthenticated)));
        assert!(is_answer(&goodbye(GoodbyeCode::Limited)));
        assert!(!is_answer(&refused(RefusalCode::Draining)));
        assert!(!is_answer(&goodbye(GoodbyeCode::Draining)));
        assert!(!is_answer(&LinkError::Closed));
        let route = routes(ONE).first();
        let about = |error| JoinError { route: route.clone(), error }.is_about_the_token();
        assert!(about(refused(RefusalCode::Unauthenticated)));
        assert!(!about(refused(RefusalCode::Limited)));
    }

    #[test]
    fn a_link_is_asked_of_one_gateway_after_the_other_until_one_answers() {
        run(async || {
            let ((_held, away), (first, second)) = (deaf(), (Port::listen(), Port::listen()));
            let gateways = [away, first.addr.to_string(), second.addr.to_string()];
            let routes = fixture::routes(&gateways.each_ref().map(String::as_str));
            let serving = async {
                first.refuse(&no(RefusalCode::Draining)).await;
                second.link(Speaker::Client, LinkSecret::from_bytes([2; 32])).await
            };
            let (joined, _link) = zip(routes.join(), serving).await;
            assert_eq!(joined.ok().unwrap().0.index, 2);
            let (joined, _) = zip(routes.join(), first.refuse(&no(RefusalCode::Limited))).await;
            assert!(joined.is_err());
            assert!(poll_once(second.accept()).await.is_none(), "an answer ends the search");
        });
    }

    #[test]
    fn a_new_token_that_is_refused_leaves_the_link_to_the_one_before() {
        run(async || {
            let port = Port::listen();
            let routes = fixture::routes(&[&port.addr.to_string()]);
            let newer = renew(&routes, "y");
            let serving = async {
                let new = port.refuse(&no(RefusalCode::Unauthenticated)).await.token;
                let (link, request, _) = port.link(Speaker::Client, LinkSecret::from_bytes([2; 32])).await;
                (new, request.token, link)
            };
            let (joined, (new, before, _link)) = zip(routes.join(), serving).await;
            assert_eq!((new.as_str(), before.as_str()), ("y", "x"));
            assert!(routes.is_first(&joined.ok().unwrap().0) && newer.is_refused());
        });
    }
}
