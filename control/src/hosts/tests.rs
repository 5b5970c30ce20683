use narrowlink_dataplane::gateway::directory::LinkOrder;
use narrowlink_proto::{
    feature::Features,
    id::{LinkId, LinkSecret},
    message::Speaker,
};

use super::*;

const TLS: PublishProtocol = PublishProtocol::Tls;

/// A gateway's book, and what its agents have been told.
struct Book {
    hosts: Hosts,
    now: Instant,
}

struct Peer {
    entry: Arc<AgentEntry>,
    orders: async_channel::Receiver<LinkOrder>,
}

fn peer(uid: u128, name: &str) -> Peer {
    let principal = Arc::new(Principal::new(Speaker::Agent, Uid::from_u128(uid), name));
    let (sender, orders) = async_channel::bounded(4);
    let (link, secret) = (LinkId::from_bytes([1; 32]), LinkSecret::from_bytes([2; 32]));
    let at = ("127.0.0.1:1".parse().unwrap(), Features::NONE);
    Peer { entry: Arc::new(AgentEntry::new(principal, link, secret, at, sender, 1)), orders }
}

fn token(peer: &Peer, jti: &str, services: &[(&str, u16, PublishProtocol)]) -> Result<Holding, Refused> {
    let AgentKey { uid, name } = &peer.entry.key;
    let who = Principal { token_id: jti.to_owned(), ..Principal::new(Speaker::Agent, *uid, name) };
    let services = services.iter().map(|(host, port, protocol)| narrowlink_proto::token::Published {
        host: (*host).to_owned(),
        port: *port,
        path: String::new(),
        addr: ("127.0.0.1".to_owned(), 8443),
        protocol: *protocol,
    });
    Ok((Arc::new(who), Services::new(services.collect()).unwrap()))
}

impl Book {
    fn new() -> Self {
        let mut hosts = Hosts::default();
        hosts.set_own(Own::new(&[Destination::Name("gw.example".to_owned())], [443].into()));
        Self { hosts, now: Instant::now() }
    }

    fn publish(&mut self, peer: &Peer, hosts: &[&str]) {
        let services: Vec<_> = hosts.iter().map(|host| (*host, 0, TLS)).collect();
        self.hosts.publish(peer.entry.clone(), vec![token(peer, "t", &services)]);
    }

    /// What visitors find: each host, and the agents that serve it.
    fn found(&mut self) -> Vec<String> {
        let table = self.hosts.settle(self.now);
        let mut found: Vec<_> = table
            .values()
            .flat_map(|services| services.iter())
            .map(|service| {
                let members: Vec<_> = service.members.iter().map(|member| &*member.agent.name).collect();
                format!("{} {}", service.name, members.join("+"))
            })
            .collect();
        found.sort();
        found
    }

    fn later(&mut self, by: Duration, there: &[&Peer]) {
        self.now += by;
        let is_there = |key: &AgentKey| there.iter().any(|peer| peer.entry.key == *key);
        self.hosts.sweep(self.now, is_there, |who| who.token_id != "revoked");
    }
}

impl Peer {
    /// What it has heard since it was asked last.
    fn heard(&self) -> Vec<String> {
        if self.orders.try_recv().is_err() {
            return Vec::new();
        }
        let (claims, refused) = self.entry.take_claims();
        let claims = claims.into_iter().map(|Claimed { service, refused }| match refused {
            None => format!("{service}"),
            Some(refused) => format!("{service}: {}", refused.code.name()),
        });
        let refused = refused.into_iter().map(|(at, refused)| format!("token {at}: {}", refused.code.name()));
        claims.chain(refused).collect()
    }
}

#[test]
fn a_host_is_the_first_user_s_and_the_other_hears_so_until_it_is_free() {
    let mut book = Book::new();
    let [first, second] = [peer(1, "home"), peer(2, "office")];
    book.publish(&first, &["a.example"]);
    book.publish(&second, &["a.example", "b.example"]);
    assert_eq!(book.found(), ["a.example home", "b.example office"]);
    assert_eq!(first.heard(), ["a.example"]);
    assert_eq!(second.heard(), ["a.example: host_taken", "b.example"]);
    // The owner's agent leaves: the host is kept for it.
    book.later(Duration::from_secs(1), &[&second]);
    assert_eq!(book.found(), ["b.example office"]);
    book.later(KEPT_FOR - Duration::from_secs(1), &[&second]);
    assert!(!book.hosts.is_dirty() && second.heard().is_empty());
    book.later(Duration::from_secs(2), &[&second]);
    assert!(book.hosts.is_dirty(), "it is free");
    assert_eq!(book.found(), ["a.example office", "b.example office"]);
    assert_eq!(second.heard(), ["a.example"]);
    book.publish(&first, &["a.example"]);
    assert_eq!(book.found(), ["a.example office", "b.example office"]);
    assert_eq!(first.heard(), ["a.example: host_taken"]);
}

#[test]
fn an_owner_that_comes_back_in_time_has_its_host_whoever_asked_meanwhile() {
    let mut book = Book::new();
    let [first, second] = [peer(1, "home"), peer(2, "office")];
    book.publish(&first, &["a.example"]);
    book.found();
    book.later(Duration::from_secs(1), &[]);
    assert!(book.found().is_empty());
    book.publish(&second, &["a.example"]);
    assert!(book.found().is_empty());
    book.publish(&first, &["a.example"]);
    assert_eq!(book.found(), ["a.example home"]);
    book.later(KEPT_FOR * 2, &[&first, &second]);
    assert_eq!(book.found(), ["a.example home"], "its time counts while nobody is there, and then anew");
}

#[test]
fn nobody_takes_a_name_out_of_another_s_wildcard_and_a_wildcard_takes_nothing_that_was_there() {
    let mut book = Book::new();
    let [first, second] = [peer(1, "home"), peer(2, "office")];
    book.publish(&first, &["*.a.example"]);
    book.publish(&second, &["x.a.example", "x.y.a.example", "*.b.example"]);
    assert_eq!(book.found(), ["*.a.example home", "*.b.example office", "x.y.a.example office"]);
    assert_eq!(second.heard(), ["*.b.example", "x.a.example: host_taken", "x.y.a.example"]);
    book.publish(&first, &["*.a.example", "x.a.example", "*.y.a.example"]);
    assert_eq!(
        book.found().len(),
        5,
        "one's own may be beside one's wildcard, and a wildcard around another's name"
    );
    assert!(first.heard().iter().all(|heard| !heard.contains(':')));
}

#[test]
fn agents_of_one_user_that_publish_the_same_serve_it_together() {
    let mut book = Book::new();
    let [home, shed] = [peer(1, "home"), peer(1, "shed")];
    book.publish(&home, &["a.example"]);
    book.publish(&shed, &["a.example"]);
    assert_eq!(book.found(), ["a.example home+shed"]);
    book.later(Duration::from_secs(1), &[&shed]);
    assert_eq!(book.found(), ["a.example shed"]);
    // But not as something else.
    let other = token(&home, "t", &[("a.example", 0, PublishProtocol::Tcp)]);
    book.hosts.publish(home.entry.clone(), vec![other]);
    assert_eq!(book.found(), ["a.example shed"]);
    assert_eq!(home.heard().last().unwrap(), "a.example: host_taken");
}

#[test]
fn what_the_gateway_has_itself_or_does_not_serve_is_refused_with_words() {
    let mut book = Book::new();
    let home = peer(1, "home");
    let services = [
        ("gw.example", 0, TLS),
        ("a.example", 8443, TLS),
        ("b.example", 443, PublishProtocol::Tcp),
        ("c.example", 0, PublishProtocol::Http),
    ];
    let unheld = Err(Refused::new(RefusalCode::Unauthenticated, "no"));
    book.hosts.publish(home.entry.clone(), vec![unheld, token(&home, "t", &services)]);
    assert_eq!(book.found(), ["b.example:443 home"]);
    assert_eq!(
        home.heard(),
        [
            "a.example:8443: unsupported",
            "b.example:443",
            "c.example: unsupported",
            "gw.example: host_taken",
            "token 0: unauthenticated"
        ]
    );
    // What is refused comes to be when the gateway changes.
    book.hosts.set_own(Own::new(&[], [443, 8443].into()));
    assert!(book.hosts.is_dirty());
    assert_eq!(book.found(), ["a.example:8443 home", "b.example:443 home", "gw.example home"]);
    assert_eq!(home.heard(), ["a.example:8443", "gw.example"]);
}

#[test]
fn a_token_that_holds_no_more_publishes_nothing_and_the_rest_stays() {
    let mut book = Book::new();
    let home = peer(1, "home");
    let both = vec![
        token(&home, "revoked", &[("a.example", 0, TLS)]),
        token(&home, "t", &[("b.example", 0, TLS), ("a.example", 0, TLS)]),
    ];
    book.hosts.publish(home.entry.clone(), both);
    assert_eq!(book.found(), ["a.example home", "b.example home"]);
    book.later(Duration::from_secs(1), &[&home]);
    assert_eq!(book.found(), ["b.example home"]);
    // A new set takes the place of all.
    book.publish(&home, &["c.example"]);
    assert_eq!(book.found(), ["c.example home"]);
    book.hosts.publish(home.entry.clone(), Vec::new());
    assert!(book.found().is_empty());
}

#[test]
fn an_agent_that_comes_back_publishes_on_while_it_says_what() {
    let mut book = Book::new();
    let home = peer(1, "home");
    book.publish(&home, &["a.example"]);
    book.found();
    let again = peer(1, "home");
    book.hosts.came_back(book.now, &again.entry);
    book.later(CONFIRM_WITHIN / 2, &[&again]);
    assert_eq!(book.found(), ["a.example home"]);
    book.publish(&again, &["a.example"]);
    assert_eq!(book.found(), ["a.example home"]);
    assert_eq!(again.heard(), ["a.example"], "it is told anew");
    book.later(CONFIRM_WITHIN * 2, &[&again]);
    assert_eq!(book.found(), ["a.example home"]);
    // One that says nothing publishes nothing.
    book.hosts.came_back(book.now, &again.entry);
    book.later(CONFIRM_WITHIN, &[&again]);
    assert!(book.found().is_empty());
}

#[test]
fn an_agent_publishes_so_many_services_and_no_more() {
    let mut book = Book::new();
    let home = peer(1, "home");
    let names: Vec<_> = (0..SERVICES_MAX + 1).map(|n| format!("h{n}.example")).collect();
    let tokens = names.chunks(205).map(|names| {
        let services: Vec<_> = names.iter().map(|name| (&**name, 0, TLS)).collect();
        token(&home, "t", &services)
    });
    book.hosts.publish(home.entry.clone(), tokens.collect());
    assert_eq!(book.found().len(), 820, "all tokens but the one that goes beyond");
    assert_eq!(home.heard().last().unwrap(), "token 4: limited");
}
