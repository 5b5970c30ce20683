//! Role: the gateways of a configuration, in the order in which they are tried.
//! Invariants: the one that answered last comes first; whoever answers ends the search, also with a
//! refusal, unless it is about to shut down.

use std::{
    cell::Cell,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use narrowlink_dataplane::{
    link::{LinkError, PeerLink, join},
    tunnel::{Gateway, TunnelError},
};
use narrowlink_proto::{
    ended::{RefusalCode, Refused},
    endpoint::FramingChoice,
    message::GoodbyeCode,
    token::peek_unverified,
    upgrade::Framing,
    when::date,
};

use crate::{
    config::{Config, ConfigError},
    exit::Failure,
};

/// For a link's connection, TLS, upgrade and welcome, each.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

/// The gateways of a configuration.
pub(crate) struct Routes {
    routes: Vec<Route>,
    first: Cell<usize>,
}

/// One gateway.
pub(crate) struct Route {
    pub(crate) gateway: Gateway,
    token_place: PathBuf,
}

impl Route {
    /// How the payload of a session travels there.
    pub(crate) fn framing(&self) -> Framing {
        match self.gateway.framing() {
            FramingChoice::Raw => Framing::Raw,
            FramingChoice::Auto | FramingChoice::Framed => Framing::Framed,
        }
    }
}

impl Routes {
    /// Reads what the endpoints of a configuration name.
    pub(crate) fn load(config: &Config) -> Result<Self, ConfigError> {
        let places = config.endpoints.iter().map(|endpoint| config.token_place(endpoint));
        let routes = config.gateways()?.into_iter().zip(places);
        let routes = routes.map(|(gateway, token_place)| Route { gateway, token_place });
        Ok(Self { routes: routes.collect(), first: Cell::new(0) })
    }

    pub(crate) fn at(&self, index: usize) -> &Route {
        &self.routes[index]
    }

    /// The token for the one that is tried first.
    pub(crate) fn token(&self) -> &str {
        self.at(self.first()).gateway.token()
    }

    /// The one that is tried first.
    pub(crate) fn first(&self) -> usize {
        self.first.get()
    }

    /// The next search begins with this one.
    pub(crate) fn prefer(&self, index: usize) {
        self.first.set(index);
    }

    /// Their indexes, in the order to try them; and whether it is the last.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = (usize, bool)> {
        let (first, count) = (self.first.get(), self.routes.len());
        let rest = (0..count).filter(move |&index| index != first);
        std::iter::once(first).chain(rest).enumerate().map(move |(n, index)| (index, n + 1 == count))
    }

    /// A link to the first gateway that answers.
    pub(crate) async fn join(&self) -> Result<(usize, PeerLink), JoinError> {
        let mut in_order = self.in_order();
        loop {
            let Some((index, last)) = in_order.next() else { unreachable!("a configuration has endpoints") };
            match join(&self.at(index).gateway, None, JOIN_TIMEOUT).await {
                Ok(link) => return Ok((index, link)),
                Err(error) if last || is_answer(&error) => return Err(JoinError { index, error }),
                Err(error) => {
                    tracing::debug!(gateway = self.at(index).gateway.describe(), "no link: {error}");
                }
            }
        }
    }

    /// Why there is no link, for the user.
    pub(crate) fn explain(&self, failed: JoinError) -> Failure {
        match failed.error {
            LinkError::Tunnel(TunnelError::Refused(refused)) => self.refused(failed.index, &refused),
            error => error.into(),
        }
    }

    /// A refusal by one of the gateways, for the user.
    pub(crate) fn refused(&self, index: usize, refused: &Refused) -> Failure {
        let Route { gateway, token_place } = self.at(index);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let token = token_trouble(gateway.token(), token_place, gateway.describe(), now.as_secs());
        Failure::refused(refused, &token)
    }
}

/// Why there is no link, and whose.
#[derive(Debug)]
pub(crate) struct JoinError {
    index: usize,
    error: LinkError,
}

impl JoinError {
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
            format!("the token in {place} expired on {}; ask for a new one", date(peek.exp))
        }
        Some(peek) if peek.nbf.is_some_and(|nbf| nbf > now) => {
            format!("the token in {place} is valid only from {}", date(peek.nbf.unwrap_or_default()))
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
    use narrowlink_proto::{
        message::Goodbye,
        token::{Claims, Keys},
    };

    use super::*;

    #[test]
    fn the_one_that_answered_last_is_tried_first() {
        let text = "endpoints:
  - !SelfHosted { gateway: 'a:1', token: x, protocol: Ws }
  - !SelfHosted { gateway: 'b:1', token: x, protocol: Ws }
  - !SelfHosted { gateway: 'c:1', token: x, protocol: Ws }
";
        let routes = Routes::load(&Config::parse(text, Path::new("client.yaml")).unwrap()).unwrap();
        let order = |routes: &Routes| routes.in_order().collect::<Vec<_>>();
        assert_eq!(order(&routes), [(0, false), (1, false), (2, true)]);
        routes.prefer(2);
        assert_eq!(order(&routes), [(2, false), (0, false), (1, true)]);
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
        assert_eq!(say(&expired), "the token in client.yaml expired on 2026-11-20; ask for a new one");
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
        let about = |error| JoinError { index: 0, error }.is_about_the_token();
        assert!(about(refused(RefusalCode::Unauthenticated)));
        assert!(!about(refused(RefusalCode::Limited)));
    }
}
