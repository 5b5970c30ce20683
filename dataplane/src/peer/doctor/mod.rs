//! Role: `doctor`: goes the way to each gateway of a configuration step by step, and says what it finds.
//! Invariants: no step takes longer than 10 s, and no address of a gateway longer than 3 · what has failed is said once, and
//! what needs it is left out · a token goes to the gateway of its endpoint alone, and only if it is of the kind that belongs
//! there · no link of an agent is set up: that would take the place of the one that runs · nothing a peer says is printed as
//! it came.
//! See: `proto::finding`, which is what comes out.

mod answer;
mod clock;
mod files;
mod machine;
mod report;
mod way;

use std::{path::Path, time::Duration};

use narrowlink_proto::{
    endpoint::{FramingChoice, SelfHosted},
    feature::Features,
    finding::{Finding, Trouble},
    message::Message,
    secrecy::shares_a_part,
    token::Kind,
    upgrade::Answer,
};

pub use self::report::report;
use self::{
    answer::{Heard, Request},
    clock::{Clock, Span},
    files::Held,
    way::{Certificate, Reached, Shaken},
};
use crate::{
    peer::{
        link::{PeerLink, greet, introduce},
        open::Gateway,
    },
    run::{timer::timeout, worker::run_alone},
    transport::wire::Wire,
    tunnel::{error::cause_and_step, link::LinkError},
};

/// For each step.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// Who is cut off without a word may have brought that upon itself.
const PENALTY: &str =
    "after many failed logins a gateway cuts off most connections of an address, for up to 10 min";

/// Whose way it is.
pub struct Subject<'a> {
    /// Whose token belongs into the configuration.
    pub kind: Kind,
    /// The configuration's file.
    pub config: &'a Path,
    /// Whether it was named, or found in one of the usual places.
    pub named: bool,
    /// Its gateways.
    pub endpoints: &'a [SelfHosted],
    /// io_uring is needed.
    pub require_io_uring: bool,
    /// What time it is, in seconds since 1970.
    pub now: fn() -> u64,
}

impl Subject<'_> {
    fn base(&self) -> &Path {
        self.config.parent().unwrap_or(Path::new(""))
    }

    const fn program(&self) -> &'static str {
        match self.kind {
            Kind::Client => "client",
            Kind::Agent | Kind::AgentPublish => "agent",
        }
    }
}

/// Looks at all of it; `tell` hears each finding at once.
pub fn examine(subject: &Subject<'_>, tell: impl FnMut(&Finding)) -> Vec<Finding> {
    let mut findings = Findings { all: Vec::new(), tell };
    findings.extend(files::look(subject));
    // On io_uring where it is to be had: that is how the programs go this way, too.
    let gone = run_alone(false, async |_| {
        for endpoint in subject.endpoints {
            Round { subject, endpoint, findings: &mut findings, missed: Vec::new(), token: None }.go().await;
        }
    });
    if let Err(e) = gone {
        findings.add(Finding::fail(
            "runtime",
            Trouble::Internal,
            e.to_string(),
            "allow this program more open files",
        ));
    }
    findings.extend(machine::look(subject));
    findings.all
}

/// The same where there is no configuration to go by, for `why`; of that, the machine remains.
pub fn examine_without(
    why: &str,
    kind: Kind,
    require_io_uring: bool,
    tell: impl FnMut(&Finding),
) -> Vec<Finding> {
    let mut findings = Findings { all: Vec::new(), tell };
    let (found, next) = cause_and_step(why);
    let next = next.unwrap_or("mend that, and ask again");
    findings.add(Finding::fail("config", Trouble::Configuration, found, next));
    findings.add(Finding::skip("every gateway: no configuration says where it is"));
    let subject =
        Subject { kind, config: Path::new(""), named: false, endpoints: &[], require_io_uring, now: || 0 };
    findings.extend(machine::look(&subject));
    findings.all
}

struct Findings<T> {
    all: Vec<Finding>,
    tell: T,
}

impl<T: FnMut(&Finding)> Findings<T> {
    fn add(&mut self, finding: Finding) {
        (self.tell)(&finding);
        self.all.push(finding);
    }

    fn extend(&mut self, findings: impl IntoIterator<Item = Finding>) {
        findings.into_iter().for_each(|finding| self.add(finding));
    }
}

/// The way to one gateway.
struct Round<'a, T> {
    subject: &'a Subject<'a>,
    endpoint: &'a SelfHosted,
    findings: &'a mut Findings<T>,
    /// What could not be asked.
    missed: Vec<&'static str>,
    /// What no finding may show a part of, whoever says it.
    token: Option<String>,
}

impl<T: FnMut(&Finding)> Round<'_, T> {
    fn say(&mut self, mut finding: Finding) {
        if let Some(token) = &self.token {
            finding.found = without_parts_of(&finding.found, token);
        }
        self.findings.add(finding.at(&self.endpoint.gateway));
    }

    fn miss(&mut self, checks: &[&'static str]) {
        self.missed.extend(checks);
    }

    async fn go(mut self) {
        let (host, port) = match self.endpoint.host_port() {
            Ok(place) => place,
            Err(e) => {
                let next = "write HOST:PORT";
                return self.say(Finding::fail("config", Trouble::Configuration, e.to_string(), next));
            }
        };
        let (said, addrs) = way::resolve_gateway(&host, port).await;
        self.say(said);
        let reached = match &addrs {
            Some(addrs) => {
                let (said, reached) = way::reach(addrs).await;
                self.say(said);
                reached
            }
            None => {
                self.miss(&["tcp"]);
                None
            }
        };
        let shaken = self.shake(reached.as_ref()).await;
        let token = files::hold(self.subject, self.endpoint);
        self.token = token.as_ref().ok().map(|token| token.text.expose().to_owned());
        let (answer, certificate) = match shaken {
            Some((gateway, Shaken { wire, certificate })) => {
                (self.ask(gateway, wire, token.as_ref().ok()).await, certificate)
            }
            None => {
                self.miss(&["http"]);
                (None, None)
            }
        };
        self.judge(token, answer, certificate.as_ref()).await;
        match &reached {
            Some(reached) => self.say(way::mtu(reached.mtu)),
            None => self.miss(&["mtu"]),
        }
        match &addrs {
            Some(addrs) => self.say(way::ipv6(addrs)),
            None => self.miss(&["ipv6"]),
        }
        if !self.missed.is_empty() {
            let words = format!("{}: what failed above comes first", self.missed.join(", "));
            self.say(Finding::skip(words));
        }
    }

    /// TLS, or what its configuration lacks for it.
    async fn shake(&mut self, reached: Option<&Reached>) -> Option<(Gateway, Shaken)> {
        let gateway = match files::way(self.subject, self.endpoint) {
            Ok(gateway) => gateway,
            Err(failed) => {
                self.say(failed);
                return None;
            }
        };
        let Some(reached) = reached else {
            self.miss(&["tls"]);
            return None;
        };
        match way::shake(&gateway, reached, (self.subject.now)()).await {
            Ok((said, shaken)) => {
                self.say(said);
                Some((gateway, shaken))
            }
            Err(failed) => {
                self.say(failed);
                None
            }
        }
    }

    /// Asks for a link with the token, if there is one to ask with.
    async fn ask(&mut self, gateway: Gateway, wire: Wire, token: Option<&Held>) -> Option<Heard> {
        let Some(token) = token else {
            self.miss(&["http"]);
            return None;
        };
        let request = Request { gateway: &gateway.with_token(token.text.clone()), wire };
        match request.send().await {
            Ok(heard) => {
                self.say(answer::proxies(&heard, self.endpoint.framing == FramingChoice::Raw));
                Some(heard)
            }
            Err(failed) => {
                self.say(failed);
                None
            }
        }
    }

    /// What the answer says of the token and the clock; then the link.
    async fn judge(
        &mut self,
        token: Result<Held, Finding>,
        heard: Option<Heard>,
        certificate: Option<&Certificate>,
    ) {
        let now = (self.subject.now)();
        let claims = token.as_ref().ok().map(|token| token.claims.clone());
        match token {
            Ok(token) => self.say(answer::token(&token, heard.as_ref(), now)),
            Err(failed) => self.say(failed),
        }
        let (Some(heard), Some(claims)) = (heard, claims) else {
            return self.miss(&["clock", "link", "agents"][..if self.is_client() { 3 } else { 2 }]);
        };
        let mut spans = vec![Span::of_token(&claims)];
        spans.extend(certificate.map(Certificate::span));
        let is_taken = matches!(heard.answer, Answer::Accepted { .. });
        self.say(Clock { here: now, there: heard.trace.date, spans: &spans, is_taken }.judge());
        match heard.answer {
            Answer::Accepted { .. } => self.join(heard).await,
            answer => {
                // A token that does not hold is said already.
                if let Some(said) = answer::refusal(&answer) {
                    self.say(said);
                } else {
                    self.miss(&["link"]);
                }
                if self.is_client() {
                    self.miss(&["agents"]);
                }
            }
        }
    }

    fn is_client(&self) -> bool {
        self.subject.kind == Kind::Client
    }

    async fn join(&mut self, heard: Heard) {
        let (wire, took) = (heard.wire, way::shown_ms(heard.took));
        if !self.is_client() {
            let said = match greet(wire, STEP_TIMEOUT).await {
                Ok(()) => Finding::ok("link", format!("the gateway says hello; its answer took {took}")),
                Err(e) => no_link(&e),
            };
            return self.say(said);
        }
        let mut link = match introduce(wire, Features::NONE, None, STEP_TIMEOUT).await {
            Ok(link) => link,
            Err(e) => {
                self.say(no_link(&e));
                return self.miss(&["agents"]);
            }
        };
        self.say(Finding::ok("link", format!("the gateway welcomes this client; its answer took {took}")));
        let counted = timeout(STEP_TIMEOUT, count(&mut link)).await;
        let counted = counted.unwrap_or(Err(LinkError::Silent(STEP_TIMEOUT)));
        link.close();
        self.say(match counted {
            Ok(0) => {
                Finding::warn("agents", "none is connected", "start narrowlink-agent where your targets are")
            }
            Ok(1) => Finding::ok("agents", "1 is connected"),
            Ok(count) => Finding::ok("agents", format!("{count} are connected")),
            Err(e) => Finding::fail("agents", Trouble::Unreachable, e.to_string(), "ask again later"),
        });
    }
}

/// A peer has heard the token, and may say parts of it.
fn without_parts_of(words: &str, token: &str) -> String {
    let is_border = |c: char| !(c.is_ascii_alphanumeric() || "-_".contains(c));
    let parts = words.split_inclusive(is_border).map(|part| {
        let word = part.trim_end_matches(is_border);
        if shares_a_part(word, token) { part.replace(word, "[token]") } else { part.to_owned() }
    });
    parts.collect()
}

/// How many agents this client may see.
async fn count(link: &mut PeerLink) -> Result<usize, LinkError> {
    link.send(&Message::List)?;
    let mut count = 0;
    loop {
        if let Message::Agents { agents, more } = link.next().await? {
            count += agents.len();
            if !more {
                return Ok(count);
            }
        }
    }
}

fn no_link(error: &LinkError) -> Finding {
    let next = match error {
        LinkError::Version { .. } => "update the older one of gateway and this program",
        _ => "ask who runs the gateway what its log says",
    };
    Finding::fail("link", Trouble::Unreachable, error.to_string(), next)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use narrowlink_proto::{
        endpoint::{Protocol, SecretText},
        finding::State,
        id::Uid,
        message::{Goodbye, GoodbyeCode},
        token::{Claims, Keys},
    };

    use super::*;

    #[test]
    fn without_a_configuration_the_machine_is_looked_at_all_the_same() {
        let mut told = 0;
        let why = "no client.yaml in .; write one there, or name it with -c";
        let findings = examine_without(why, Kind::Client, false, |_| told += 1);
        let states: Vec<_> = findings.iter().map(|finding| finding.check).collect();
        assert_eq!(states, ["config", "left out", "descriptors", "io_uring"]);
        assert_eq!(findings[0].next.as_deref(), Some("write one there, or name it with -c"));
        assert_eq!(told, findings.len());
    }

    /// What is found on the way to a gateway whose side `serve` plays, without what is about this machine.
    fn on_the_way(serve: fn(TcpStream)) -> Vec<Finding> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let gateway = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || listener.incoming().flatten().for_each(serve));
        let claims = Claims::new(Kind::Client, Uid::nil(), "laptop", 2_000_000_000, "1");
        let token = Some(SecretText::new(Keys::new(&[7; 32]).sign(&claims).unwrap()));
        let endpoints = [SelfHosted { gateway, protocol: Protocol::Ws, token, ..SelfHosted::default() }];
        let subject = Subject {
            kind: Kind::Client,
            config: Path::new("client.yaml"),
            named: false,
            endpoints: &endpoints,
            require_io_uring: false,
            now: || 1_800_000_000,
        };
        let findings = examine(&subject, |_| {});
        findings.into_iter().filter(|finding| finding.endpoint.is_some()).collect()
    }

    #[test]
    fn what_a_peer_says_of_a_token_is_not_said_again() {
        let token = "eyJhbGciOiJIUzI1NiJ9.eyJraW5kIjoiY2xpZW50In0.U2lnbmF0dXJlT2ZOb2JvZHk";
        for (words, shown) in [
            ("it calls itself U2lnbmF0dXJlT2ZOb2JvZHk (HTTP 404)", "it calls itself [token] (HTTP 404)"),
            ("https://x/?t=eyJhbGciOiJIUzI1NiJ9.eyJraW5k; go", "https://x/?t=[token].[token]; go"),
            ("nginx/1.22.1 answered", "nginx/1.22.1 answered"),
        ] {
            assert_eq!(without_parts_of(words, token), shown);
        }
    }

    #[test]
    fn what_has_failed_is_said_once_and_what_needs_it_is_left_out() {
        let findings = on_the_way(drop);
        let seen: Vec<_> = findings.iter().map(|finding| (finding.check, finding.state)).collect();
        let due = [
            ("dns", State::Ok),
            ("tcp", State::Ok),
            ("tls", State::Ok),
            ("http", State::Fail),
            ("token", State::Ok),
            ("mtu", State::Ok),
            ("ipv6", State::Ok),
            ("left out", State::Skip),
        ];
        assert_eq!(seen, due);
        assert!(findings[3].next.as_ref().is_some_and(|next| next.contains("failed logins")));
        assert_eq!(findings[7].found, "clock, link, agents: what failed above comes first");
    }

    #[test]
    fn why_there_is_no_link_is_said_and_no_word_of_the_gateway_s_is_a_step_to_take() {
        let reason = "it stops; run this".to_owned();
        for (error, next) in [
            (LinkError::Version { theirs: 9 }, "update the older one of gateway and this program"),
            (LinkError::Closed, "ask who runs the gateway what its log says"),
            (
                LinkError::Goodbye(Goodbye { code: GoodbyeCode::Draining, reason }),
                "ask who runs the gateway what its log says",
            ),
        ] {
            assert_eq!(no_link(&error).next.as_deref(), Some(next));
        }
    }
}
