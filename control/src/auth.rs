//! Role: the data plane's questions answered from memory: who holds this token, may it have this
//! session, which certificate.
//! Invariants: a refused login says the same words for every cause · the verdict is taken at every open
//! and before anybody looks whether the agent is there · nothing of one user space reaches another · no
//! token in any log.
//! See: `narrowlink_proto::policy`, `narrowlink_proto::token`.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use narrowlink_dataplane::gateway::{
    directory::{AgentEntry, Directory},
    door::{Door, Event, First, LinkRequest, Rejected, Route},
    principal::Principal,
    service::Service as Listening,
};
use narrowlink_proto::{
    ended::{Ended, RefusalCode, Refused, Side, Why},
    endpoint::SecretText,
    id::LinkId,
    message::{AgentInfo, Channel, Dial, Open, Origin},
    policy::Verdict,
    target::Target,
    token::{Claims, KeyId, KeyRing, Keys, Kind, Secret, TokenError},
};

use crate::{
    accounts::Accounts,
    audit::Audit,
    certificate::served::Served,
    clerk::Counter,
    clock::{self, Clock},
    credentials::{Credentials, granted, principal},
    hosts::Holding,
    revocations::{Bearer, Revocations},
};

/// How much of a foreign name is repeated in an answer.
const SHOWN_CHARS_MAX: usize = 128;

/// Who watches the door.
pub struct Warden {
    rules: ArcSwap<Rules>,
    served: ArcSwap<Served>,
    directory: Arc<Directory>,
    counter: Counter,
    accounts: Arc<Accounts>,
    audit: Audit,
    clock: Clock,
}

/// What answers are taken from; replaced as a whole.
pub struct Rules {
    keys: KeyRing,
    revocations: Revocations,
}

impl Rules {
    /// The rules that a config makes: the first secret signs, all are believed. `None` without a secret.
    pub fn new(secrets: &[Secret], revocations: Revocations) -> Option<Self> {
        let mut keys = secrets.iter().map(|secret| Keys::new(secret.as_bytes()));
        Some(Self { keys: KeyRing::new(keys.next()?, keys.collect()), revocations })
    }

    /// The claims of a token that is good for `channel`, and what it is signed with.
    fn verify(&self, channel: Channel, token: &str, now_s: u64) -> Result<(Claims, KeyId), TokenError> {
        let kinds: &[Kind] = match channel {
            Channel::Link => &[Kind::Client, Kind::Agent],
            Channel::Lane => &[Kind::Agent],
            Channel::Stream => &[Kind::Client],
        };
        let mut refused = TokenError::Signature;
        for kind in kinds {
            match self.keys.verify_and_name(token, *kind, now_s) {
                // Each kind has its own key: it may be the next one's.
                Err(e @ TokenError::Signature) => refused = e,
                decided => return decided,
            }
        }
        Err(refused)
    }

    /// Whether somebody who was let in with a token may stay: nobody has revoked it, the secret that signed it is
    /// still believed, and it has not expired by the wall clock, which may have been set since.
    fn standing(&self, who: &Principal, since_1970: Duration) -> Result<(), Why> {
        // Nobody else's principals come here.
        let Some(Credentials { iat, key, ends_s, .. }) = who.grant.downcast_ref() else {
            return Err(Why::Internal);
        };
        if since_1970.as_secs() >= *ends_s {
            return Err(Why::Expired);
        }
        let bearer = Bearer { jti: &who.token_id, uid: who.uid, name: &who.name, iat: *iat };
        match (self.keys.knows(*key), self.revocations.revoke(bearer)) {
            (true, false) => Ok(()),
            (false, false) => Err(Why::SecretRetired),
            (_, true) => Err(Why::Revoked),
        }
    }

    /// Why a token is refused, for the operator: a signature says no by itself which of its reasons it has.
    fn cause(&self, channel: Channel, token: &str, now_s: u64, why: &TokenError) -> String {
        if !matches!(why, TokenError::Signature) {
            return why.to_string();
        }
        let kinds = [
            (Kind::Client, "a client's"),
            (Kind::Agent, "an agent's"),
            (Kind::AgentPublish, "a publisher's"),
        ];
        let other = kinds.into_iter().find_map(|(kind, whose)| {
            let (claims, _) = self.keys.verify_and_name(token, kind, now_s).ok()?;
            let opened = match channel {
                Channel::Link => "a link",
                Channel::Lane => "a lane",
                Channel::Stream => "a stream",
            };
            Some(format!("the token {} is {whose}, which may not open {opened}", claims.jti.escape_debug()))
        });
        other.unwrap_or_else(|| {
            "the token is signed with a secret that this gateway does not have, or was altered".to_owned()
        })
    }
}

impl Warden {
    /// A warden with these rules and certificates.
    pub fn new(
        rules: Rules,
        served: Served,
        directory: Arc<Directory>,
        counter: Counter,
        accounts: Arc<Accounts>,
        audit: Audit,
    ) -> Self {
        let clock = clock::since_1970;
        let (rules, served) = (ArcSwap::from_pointee(rules), ArcSwap::from_pointee(served));
        Self { rules, served, directory, counter, accounts, audit, clock }
    }

    /// The same by another clock.
    #[must_use]
    pub fn by(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }

    /// From now on these certificates are shown.
    pub fn show(&self, served: Served) {
        self.served.store(Arc::new(served));
    }

    /// From now on these rules hold.
    pub fn replace(&self, rules: Rules) {
        let rules = Arc::new(rules);
        let before = self.rules.swap(rules.clone());
        self.audit.note_revocations(&before.revocations, &rules.revocations);
        if !before.keys.ids().eq(rules.keys.ids()) {
            tracing::info!("tokens are signed with {}", say_ids(rules.keys.ids()));
        }
    }
}

impl Warden {
    /// What a publish token says that `agent` has sent, if it holds and is this agent's.
    fn holding(&self, agent: &Principal, token: &str) -> Result<Holding, Refused> {
        let since_1970 = (self.clock)();
        let rules = self.rules.load();
        let refuse = |cause: &str| {
            tracing::info!(uid = %agent.uid, agent = agent.name, "a publish token is not taken: {cause}");
            let reason = "the publish token was not accepted: it may be expired or revoked, not valid yet, of another kind, of another agent, or of another gateway";
            Err(Refused::new(RefusalCode::Unauthenticated, reason))
        };
        let (claims, key) = match rules.keys.verify_and_name(token, Kind::AgentPublish, since_1970.as_secs())
        {
            Ok(verified) => verified,
            Err(why) => return refuse(&why.to_string()),
        };
        if (claims.uid, &claims.name) != (agent.uid, &agent.name) {
            return refuse(&format!("the token {} is another agent's", claims.jti.escape_debug()));
        }
        let Some(services) = claims.connect.clone() else { return refuse("it publishes nothing") };
        let said = claims.limits;
        let principal = principal(claims, key, since_1970, Instant::now());
        if let Err(why) = rules.standing(&principal, since_1970) {
            let words = Ended { by: Side::Here, why }.by_name("this gateway");
            return refuse(&format!("the token {}: {words}", principal.token_id.escape_debug()));
        }
        let usage = self.accounts.usage(principal.uid, &principal.token_id, said);
        Ok((Arc::new(Principal { usage, ..principal }), services))
    }
}

impl Door for Warden {
    fn route(&self, service: &Listening, first: &First) -> Route {
        match first {
            First::Tls(hello) if service.tls => {
                let found = self.served.load().find(service.index, hello.server_name.as_deref());
                found.map_or(Route::Nothing, Route::Terminate)
            }
            First::Http if !service.tls => Route::Http,
            First::Tls(_) | First::Http => Route::Misplaced,
        }
    }

    fn login(&self, channel: Channel, token: &str) -> Result<Arc<Principal>, Rejected> {
        let since_1970 = (self.clock)();
        let rules = self.rules.load();
        let cause = match rules.verify(channel, token, since_1970.as_secs()) {
            Ok((claims, key)) => {
                let said = claims.limits;
                let principal = principal(claims, key, since_1970, Instant::now());
                let Err(why) = rules.standing(&principal, since_1970) else {
                    // An agent's counts its links and lanes; what it carries is its clients'.
                    let usage = self.accounts.usage(principal.uid, &principal.token_id, said);
                    return Ok(Arc::new(Principal { usage, ..principal }));
                };
                let ended = Ended { by: Side::Here, why };
                let (jti, words) = (principal.token_id.escape_debug(), ended.by_name("this gateway"));
                format!("the token {jti} is not taken: {words}")
            }
            Err(why) => rules.cause(channel, token, since_1970.as_secs(), &why),
        };
        let refused = Refused::new(
            RefusalCode::Unauthenticated,
            "the token was not accepted: it may be expired or revoked, not valid yet, of another kind, or of another gateway",
        );
        Err(Rejected { refused, cause: Some(cause) })
    }

    fn standing(&self, who: &Principal) -> Result<(), Why> {
        self.rules.load().standing(who, (self.clock)())
    }

    fn permit(&self, who: &Principal, open: &Open, peer_addr: SocketAddr) -> Result<Dial, Refused> {
        let grant = granted(who)?;
        let (verdict, reason) = match &open.target {
            Target::Tcp { .. } => {
                let decision = grant.permit(&open.agent, &open.target);
                let unreadable =
                    |e| Refused::new(RefusalCode::Protocol, format!("{}: {e}", shown(&open.target)));
                let decision = decision.map_err(unreadable)?;
                (decision.verdict, Some(decision.reason))
            }
            // Nothing is dialled. Who may reach anything there may know how far it is.
            Target::Measure(_) if grant.may_see(&open.agent) => (Verdict::Allow, None),
            Target::Measure(_) => (Verdict::Deny, None),
            _ => {
                let reason = format!("{}: this gateway serves TCP targets only", shown(&open.target));
                return Err(Refused::new(RefusalCode::Unsupported, reason));
            }
        };
        let rules = match verdict {
            Verdict::Allow => None,
            Verdict::Depends => Some(grant.address_rules(&open.agent, &open.target)),
            Verdict::Deny => {
                let (target, agent) = (shown(&open.target), shown(&open.agent.escape_debug()));
                tracing::debug!(
                    uid = %who.uid, client = who.name, agent, target, ?reason, peer = %peer_addr,
                    "refused by policy"
                );
                let reason = format!("the policy of this token does not allow {target} on agent {agent}");
                return Err(Refused::new(RefusalCode::Policy, reason));
            }
        };
        Ok(Dial {
            session: open.session,
            origin: Origin::Client { name: who.name.clone(), peer_addr },
            target: open.target.clone(),
            rules,
            e2ee: open.e2ee.clone(),
        })
    }

    fn note(&self, event: &Event<'_>) {
        self.audit.note(event);
    }

    fn list(&self, who: &Principal) -> Vec<AgentInfo> {
        let Ok(grant) = granted(who) else { return Vec::new() };
        let agents = self.directory.of(who.uid).into_iter();
        agents
            .filter(|agent| !agent.is_link_down() && grant.may_see(&agent.key.name))
            .map(|agent| agent.info())
            .collect()
    }

    fn claim_link(&self, request: LinkRequest) {
        self.counter.claim(request);
    }

    fn release_link(&self, link: LinkId) {
        self.counter.release(link);
    }

    fn publish(&self, agent: &Arc<AgentEntry>, tokens: Vec<SecretText>) {
        let tokens = tokens.iter().map(|token| self.holding(&agent.principal, token.expose()));
        self.counter.publish(agent.clone(), tokens.collect());
    }
}

/// The secrets of a config by their ids: the one in force, then the old ones.
pub fn say_secrets(secrets: &[Secret]) -> String {
    say_ids(secrets.iter().map(|secret| Keys::new(secret.as_bytes()).id()))
}

fn say_ids(ids: impl Iterator<Item = KeyId>) -> String {
    let mut ids = ids.map(|id| id.to_string());
    let first = format!("the secret of id {}", ids.next().unwrap_or_default());
    ids.fold(first, |words, id| words + ", formerly with " + &id)
}

/// Foreign words in our own sentence: no longer than a sentence.
fn shown(words: &impl ToString) -> String {
    let words = words.to_string();
    match words.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}..", &words[..end]),
        None => words,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Service;
    use crate::{accounts::Allowances, clerk, clock::seconds_since_1970 as now_s};
    use narrowlink_proto::{
        feature::Features,
        id::{LinkSecret, SessionId, Uid},
        message::Speaker,
        sniff::{Alpn, ClientHello},
        target::Destination,
        token::{PublishProtocol, Published, Services},
    };

    const SECRET: [u8; 32] = [7; 32];

    fn warden_of(secrets: &[Secret]) -> (Warden, clerk::Inbox) {
        let (counter, inbox) = clerk::counter();
        let rules = Rules::new(secrets, Revocations::default()).unwrap();
        let served = Served::of([(1, &tls_service())]);
        let accounts = Arc::new(Accounts::open(Allowances::default(), None, now_s()));
        let directory = Arc::new(Directory::default());
        (Warden::new(rules, served, directory, counter, accounts, Audit::none()), inbox)
    }

    fn tls_service() -> Service {
        let made = rcgen::generate_simple_self_signed(vec!["tls.example".to_owned()]).unwrap();
        let pem = made.cert.pem() + &made.signing_key.serialize_pem();
        let certificate = crate::certificate::Certificate::from_pem(pem.as_bytes()).unwrap();
        Service {
            domains: vec![Destination::parse("tls.example").unwrap()],
            listen_addr: "127.0.0.1:0".parse().unwrap(),
            tls: Some(certificate.into_settings().unwrap()),
        }
    }

    fn warden() -> (Warden, clerk::Inbox) {
        warden_of(&[Secret::from_bytes(SECRET.to_vec()).unwrap()])
    }

    fn claims(kind: Kind) -> Claims {
        let claims = Claims::new(kind, Uid::from_u128(1), "laptop", now_s() + 3600, "t1");
        let published = Published {
            host: "a.example".to_owned(),
            port: 0,
            path: String::new(),
            addr: ("127.0.0.1".to_owned(), 80),
            protocol: PublishProtocol::Http,
        };
        let connect = (kind == Kind::AgentPublish).then(|| Services::new(vec![published]).unwrap());
        Claims { connect, ..claims }
    }

    fn token(claims: &Claims) -> String {
        Keys::new(&SECRET).sign(claims).unwrap()
    }

    #[test]
    fn each_kind_of_token_works_in_its_own_roles_only() {
        let (warden, _inbox) = warden();
        let table = [
            (Kind::Client, Channel::Link, true),
            (Kind::Client, Channel::Stream, true),
            (Kind::Client, Channel::Lane, false),
            (Kind::Agent, Channel::Link, true),
            (Kind::Agent, Channel::Lane, true),
            (Kind::Agent, Channel::Stream, false),
            (Kind::AgentPublish, Channel::Link, false),
            (Kind::AgentPublish, Channel::Lane, false),
            (Kind::AgentPublish, Channel::Stream, false),
        ];
        for (kind, channel, taken) in table {
            let login = warden.login(channel, &token(&claims(kind)));
            assert_eq!(login.is_ok(), taken, "{kind:?} on {channel:?}");
        }
        let agent = warden.login(Channel::Link, &token(&claims(Kind::Agent))).unwrap();
        assert_eq!((agent.speaker, agent.name.as_str()), (Speaker::Agent, "laptop"));
    }

    #[test]
    fn every_refused_login_says_the_same() {
        let (warden, _inbox) = warden();
        let expired = Claims { exp: now_s() - 60, ..claims(Kind::Client) };
        let early = Claims { nbf: Some(now_s() + 60), ..claims(Kind::Client) };
        let good = token(&claims(Kind::Client));
        let tokens = [
            token(&expired),
            token(&early),
            Keys::new(&[8; 32]).sign(&claims(Kind::Client)).unwrap(),
            good[..good.len() - 1].to_owned(),
            token(&claims(Kind::Agent)),
            String::new(),
            "a".repeat(20_000),
        ];
        let words: Vec<_> =
            tokens.iter().map(|token| warden.login(Channel::Stream, token).err().unwrap().refused).collect();
        assert!(words.iter().all(|refused| refused.code == RefusalCode::Unauthenticated));
        assert!(words.iter().all(|refused| *refused == words[0]));
    }

    #[test]
    fn the_operator_hears_why_a_login_was_refused() {
        let (warden, _inbox) = warden();
        let expired = Claims { exp: 1_000_000_000, ..claims(Kind::Client) };
        let good = token(&claims(Kind::Client));
        let other = if good.as_bytes()[good.len() - 2] == b'A' { 'B' } else { 'A' };
        let table = [
            (token(&expired), "the token expired at 2001-09-09 01:46:40 UTC"),
            (
                Keys::new(&[8; 32]).sign(&claims(Kind::Client)).unwrap(),
                "a secret that this gateway does not have",
            ),
            (format!("{}{other}{}", &good[..good.len() - 2], &good[good.len() - 1..]), "or was altered"),
            (token(&claims(Kind::Agent)), "the token t1 is an agent's, which may not open a stream"),
            ("x".to_owned(), "not a token"),
        ];
        for (token, cause) in table {
            let rejected = warden.login(Channel::Stream, &token).err().unwrap();
            let said = rejected.cause.unwrap();
            assert!(said.contains(cause), "{said}");
            assert!(!rejected.refused.reason.contains(cause));
        }
    }

    #[test]
    fn an_old_secret_is_still_believed() {
        let secrets = [vec![9; 32], SECRET.to_vec()].map(|bytes| Secret::from_bytes(bytes).unwrap());
        let (warden, _inbox) = warden_of(&secrets);
        let who = warden.login(Channel::Stream, &token(&claims(Kind::Client))).unwrap();
        assert_eq!(warden.standing(&who), Ok(()));
        warden.replace(Rules::new(&secrets[..1], Revocations::default()).unwrap());
        assert!(warden.login(Channel::Stream, &token(&claims(Kind::Client))).is_err());
        // Who came in with it goes, too, and is not told that somebody revoked it.
        assert_eq!(warden.standing(&who), Err(Why::SecretRetired));
        assert!(Rules::new(&[], Revocations::default()).is_none());
    }

    #[test]
    fn a_revoked_token_is_refused_like_any_other_and_ends_what_it_began() {
        let (warden, _inbox) = warden();
        let good = token(&claims(Kind::Client));
        let other = token(&Claims { jti: "t2".to_owned(), ..claims(Kind::Client) });
        let bad = token(&claims(Kind::Agent));
        let (who, stays) =
            (warden.login(Channel::Stream, &good).unwrap(), warden.login(Channel::Stream, &other).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("revoked.yaml");
        std::fs::write(&path, "[{jti: t1}]").unwrap();
        let revocations = Revocations::load(&path).unwrap().unwrap();
        let secrets = [Secret::from_bytes(SECRET.to_vec()).unwrap()];
        warden.replace(Rules::new(&secrets, revocations).unwrap());
        assert_eq!(warden.standing(&who), Err(Why::Revoked));
        assert_eq!(warden.standing(&stays), Ok(()));
        let words = |token| warden.login(Channel::Stream, token).err().map(|rejected| rejected.refused);
        assert_eq!(words(&good), words(&bad));
        assert!(words(&other).is_none());
    }

    fn client(policies: Option<&str>) -> Principal {
        let policies = policies.map(|json| serde_json::from_str(json).unwrap()).unwrap_or_default();
        let claims = Claims { policies, ..claims(Kind::Client) };
        principal(claims, key(), Duration::from_secs(now_s()), Instant::now())
    }

    fn key() -> KeyId {
        Keys::new(&SECRET).id()
    }

    fn open(agent: &str, target: Target) -> Open {
        Open { session: SessionId::from_bytes([1; 32]), agent: agent.to_owned(), target, e2ee: None }
    }

    fn tcp(host: &str, port: u16) -> Target {
        Target::Tcp { host: host.to_owned(), port }
    }

    #[test]
    fn the_verdict_is_that_of_the_tokens_policy() {
        let (warden, _inbox) = warden();
        let peer: SocketAddr = "192.0.2.1:5".parse().unwrap();
        let who = client(Some(r#"{"permit":true,"policies":[{"Ip":["home","10.0.0.0/8",22,"TCP"]}]}"#));
        let dial = warden.permit(&who, &open("home", tcp("10.1.2.3", 22)), peer).unwrap();
        assert_eq!(dial.origin, Origin::Client { name: "laptop".to_owned(), peer_addr: peer });
        assert_eq!(dial.rules, None);
        // A name depends on its addresses: the agent gets the rules.
        assert!(warden.permit(&who, &open("home", tcp("db", 22)), peer).unwrap().rules.is_some());
        let refused = warden.permit(&who, &open("home", tcp("10.1.2.3", 23)), peer).unwrap_err();
        assert_eq!(refused.code, RefusalCode::Policy);
        assert_eq!(refused.reason, "the policy of this token does not allow tcp://10.1.2.3:23 on agent home");
        let free = client(None);
        assert!(warden.permit(&free, &open("home", tcp("127.1", 1)), peer).is_ok());
    }

    #[test]
    fn what_can_not_be_asked_for_is_refused_in_words_of_bounded_length() {
        let (warden, _inbox) = warden();
        let peer: SocketAddr = "192.0.2.1:5".parse().unwrap();
        let who = client(None);
        let code = |who: &Principal, open: &Open| warden.permit(who, open, peer).unwrap_err().code;
        let udp = Target::Udp { host: "a".to_owned(), port: 53 };
        assert_eq!(code(&who, &open("home", udp)), RefusalCode::Unsupported);
        assert_eq!(code(&who, &open("home", tcp("", 1))), RefusalCode::Protocol);
        assert_eq!(code(&who, &open("home", tcp("a", 0))), RefusalCode::Protocol);
        let agent = principal(claims(Kind::Agent), key(), Duration::ZERO, Instant::now());
        assert_eq!(code(&agent, &open("home", tcp("a", 1))), RefusalCode::Policy);
        let nobody = client(Some(r#"{"permit":true,"policies":[]}"#));
        let long = open(&"x\n".repeat(20_000), tcp("a", 1));
        let refused = warden.permit(&nobody, &long, peer).unwrap_err();
        assert!(refused.reason.len() < 400 && !refused.reason.contains('\n'));
    }

    #[test]
    fn a_list_shows_the_own_spaces_agents_that_the_policy_does_not_hide() {
        let (warden, _inbox) = warden();
        let entry = |uid, name: &str| {
            let principal = Arc::new(Principal::new(Speaker::Agent, Uid::from_u128(uid), name));
            let (orders, _) = async_channel::bounded(1);
            let (link, secret) = (LinkId::from_bytes([0; 32]), LinkSecret::from_bytes([0; 32]));
            let addr = "192.0.2.9:9".parse().unwrap();
            let entry = AgentEntry::new(principal, link, secret, (addr, Features::NONE), orders, 1);
            (entry.key.clone(), Arc::new(entry))
        };
        let agents = [entry(1, "home"), entry(1, "office"), entry(1, "lost"), entry(2, "foreign")];
        agents[2].1.set_link_down();
        warden.directory.publish(agents.into_iter().collect());
        let names =
            |who: &Principal| -> Vec<_> { warden.list(who).into_iter().map(|agent| agent.name).collect() };
        assert_eq!(names(&client(None)), ["home", "office"]);
        let hidden = r#"{"permit":false,"policies":[{"Any":["office",false]}]}"#;
        assert_eq!(names(&client(Some(hidden))), ["home"]);
        assert!(names(&principal(claims(Kind::Agent), key(), Duration::ZERO, Instant::now())).is_empty());
    }

    #[test]
    fn a_connection_goes_where_its_first_bytes_belong() {
        let (warden, _inbox) = warden();
        let (plain, secured) =
            (Listening { index: 0, port: 80, tls: false }, Listening { index: 1, port: 443, tls: true });
        let hello =
            |name: Option<&str>| ClientHello { server_name: name.map(str::to_owned), alpn: Alpn::default() };
        let route = |service, name| warden.route(service, &First::Tls(Box::new(hello(name))));
        assert!(matches!(route(&secured, Some("tls.example")), Route::Terminate(_)));
        assert!(matches!(route(&secured, Some("gw.example")), Route::Nothing));
        assert!(matches!(route(&secured, None), Route::Nothing));
        assert!(matches!(route(&plain, Some("tls.example")), Route::Misplaced));
        assert!(matches!(warden.route(&plain, &First::Http), Route::Http));
        assert!(matches!(warden.route(&secured, &First::Http), Route::Misplaced));
        warden.show(Served::default());
        assert!(matches!(route(&secured, Some("tls.example")), Route::Nothing));
    }
}
