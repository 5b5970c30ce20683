//! Role: `narrowlink-gateway init`: a gateway, its first agent and its first client, from nothing.
//! Invariants: what a start would refuse is refused before anything is written · nothing that is there is overwritten · secrets
//! and keys are readable for their owner alone from their first byte on · what was made is read back as a start reads it,
//! before anybody is told that it is there.
//! See: `init/staged`, `authority`, `tickets`; docs/tickets.md.

mod staged;

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    slice,
};

use narrowlink_dataplane::run::{process::SYSTEM_DIR, service::Unit};
use narrowlink_proto::{
    pin::Pin,
    target::{Destination, Target, TargetError},
    ticket::{Program, Ticket},
    token::{Keys, Kind, Secret},
    when::date,
};
use serde_json::json;
use zeroize::Zeroizing;

use self::staged::Staged;
use crate::{
    args::Init,
    authority::{self, Authority, AuthorityError},
    certificate::Issuer,
    config::{Config, ConfigError, WrongOfPair, read_pair},
    gateway::claim,
    revocations::Revocations,
    tickets::{
        TicketError, Wanted,
        book::{self, Book, User, draw_uid},
    },
};

/// The gateway's file within its directory.
pub const CONFIG: &str = "gateway.yaml";
pub(crate) const SECRET: &str = "gateway.secret";
pub(crate) const CHAIN: &str = "gateway.pem";
pub(crate) const KEY: &str = "gateway.key";
const CA_KEY: &str = "authority.key";
pub(crate) const LIST: &str = "revoked.yaml";
const STATE: &str = "state";
/// Where a service keeps its own.
const SYSTEM_STATE: &str = "/var/lib/narrowlink";
/// For what is nobody else's business.
const PRIVATE: u32 = 0o600;
const PUBLIC: u32 = 0o644;
const PRIVATE_DIR: u32 = 0o700;
/// The port of HTTPS, which no firewall of an office refuses.
const PORT: u16 = 443;
/// What is suggested in its place: one that no right is needed for.
const OTHER_PORT: u16 = 8443;
/// The first user of a gateway.
const USER: &str = "main";

/// Why a certificate is refused that only its operator's machines could know, and the way out.
const UNKNOWN_ISSUER: &str = "its authority is none that machines know, and agents and clients would refuse it: append the \
                              authority's own certificate to this file, so that tickets carry its pin, or use a certificate \
                              of an authority that machines know";

/// Where the gateway's certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Certificate {
    /// From an authority of its own, which is made.
    Own,
    /// From a public one: the chain's file, and the key's.
    Files(PathBuf, PathBuf),
    /// None: what stands in front of the gateway ends TLS.
    InFront,
}

/// What its files say.
#[derive(Clone, Copy)]
pub(crate) struct Contents<'a> {
    /// What tokens are signed with.
    pub(crate) secret: &'a [u8],
    /// For whom its certificate is, if it gets one.
    pub(crate) names: &'a [Destination],
    /// The configuration.
    pub(crate) config: &'a str,
}

/// What a gateway is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Where its files go.
    pub dir: PathBuf,
    /// As agents and clients call it.
    pub host: Destination,
    /// The port that they come to.
    pub port: u16,
    /// Where it listens.
    pub listen_addr: SocketAddr,
    /// Whose word they take.
    pub certificate: Certificate,
    /// The first agent's name.
    pub agent: String,
    /// The first client's name.
    pub client: String,
    /// Whether systemd is to run it.
    pub is_service: bool,
}

/// What was made.
pub struct Made {
    /// The gateway's configuration.
    pub config: PathBuf,
    /// The first agent's ticket.
    pub agent: Ticket,
    /// The first client's ticket.
    pub client: Ticket,
}

impl Made {
    /// For programs: one object, in one line.
    pub fn json(&self) -> String {
        let Self { config, agent, client } = self;
        let (agent, client) = (agent.encode(), client.encode());
        let config = config.display().to_string();
        format!("{}\n", json!({ "config": config, "agent": agent.expose(), "client": client.expose() }))
    }
}

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// Not a host.
    #[error(
        "HOST: {0}; a name or an address is expected, with :PORT if that is not 443: gw.example, 192.0.2.1:8443"
    )]
    Host(TargetError),
    /// As a browser has it.
    #[error(
        "HOST: this is the address of a web page; a name or an address is expected, with :PORT if that is not 443: \
         narrowlink-gateway init {0}"
    )]
    Url(String),
    /// No host was said, and none can be guessed.
    #[error("say under which name or address this machine is reached: narrowlink-gateway init HOST")]
    NoHost,
    /// There is one.
    #[error(
        "{} is there already, and nothing was changed; `narrowlink-gateway ticket` makes more tickets for that gateway (--renew in \
         place of lost ones), and --dir another gateway", .0.display()
    )]
    Exists(PathBuf),
    /// A file can't be made.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The certificate that there is, or its key, can't be used, or agents and clients would refuse it.
    #[error("{option} {}: {words}", path.display())]
    Given {
        /// Which option names it.
        option: &'static str,
        /// Where.
        path: PathBuf,
        /// Why, and what to do.
        words: String,
    },
    /// The gateway could not listen.
    #[error(
        "--listen {addr}: {source}. Or choose another port: narrowlink-gateway init {host}:{OTHER_PORT}, or --listen ADDR:PORT where only the local one differs"
    )]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// Under which name it was to be reached.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// No certificate.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// No ticket.
    #[error(transparent)]
    Ticket(#[from] TicketError),
    /// What was made can't be read: our own fault, or that of --cert and --key.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No randomness.
    #[error("the system's random source does not answer: {0}")]
    Random(getrandom::Error),
}

/// A host, and the port behind it if there is one.
///
/// # Errors
/// The operator's: not a host.
pub fn parse_host(text: &str) -> Result<(Destination, u16), InitError> {
    if let Some(bare) = without_url(text) {
        return Err(parse_host(bare).map_or_else(|e| e, |_| InitError::Url(bare.to_owned())));
    }
    match Target::parse_host_port(text) {
        Ok((host, port)) => Ok((Destination::parse(&host).map_err(InitError::Host)?, port)),
        Err(TargetError::NoPort) => {
            let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
            Ok((Destination::parse(bare).map_err(InitError::Host)?, PORT))
        }
        Err(why) => Err(InitError::Host(why)),
    }
}

/// What is left of a text that looks like the address of a web page.
fn without_url(text: &str) -> Option<&str> {
    let behind = text.split_once("://").map_or(text, |(_, behind)| behind);
    let bare = behind.split(['/', '?', '#']).next().unwrap_or_default();
    (bare != text).then_some(bare)
}

/// The address by which this machine speaks to others; nothing is sent for it.
pub fn guess_host() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // Reserved for documentation: a route to it is one to anywhere.
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified() && !ip.is_loopback()).then_some(ip)
}

/// Whether only a network of one's own leads there.
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            ip.is_private() || ip.is_link_local() || ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64
        }
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

/// Every address of this machine, of both families where it has both.
pub fn everywhere(port: u16) -> SocketAddr {
    let has_v6 = Path::new("/proc/net/if_inet6").exists();
    let ip = if has_v6 { IpAddr::from(Ipv6Addr::UNSPECIFIED) } else { Ipv4Addr::UNSPECIFIED.into() };
    SocketAddr::new(ip, port)
}

impl Plan {
    /// What `args` mean, in `dir`.
    ///
    /// # Errors
    /// No host that can be used.
    pub fn new(args: &Init, dir: PathBuf) -> Result<Self, InitError> {
        let (host, port) = match &args.host {
            Some(text) => parse_host(text)?,
            None => (Destination::Ip(guess_host().ok_or(InitError::NoHost)?), PORT),
        };
        let certificate = match (&args.cert, &args.key) {
            (Some(cert), Some(key)) => Certificate::Files(cert.clone(), key.clone()),
            _ => Certificate::Own,
        };
        Ok(Self {
            host,
            port,
            listen_addr: args.listen.unwrap_or_else(|| everywhere(port)),
            certificate,
            agent: args.agent.clone(),
            client: args.client.clone(),
            is_service: !args.no_service && dir == Path::new(SYSTEM_DIR) && Unit::can_be_installed(),
            dir,
        })
    }

    /// What would be made, for who is asked.
    pub fn describe(&self) -> String {
        let certificate = match &self.certificate {
            Certificate::Own => "with an authority of its own, whose pin is in the tickets".to_owned(),
            Certificate::Files(cert, _) => format!("with the certificate {}", cert.display()),
            Certificate::InFront => "where something in front of it ends TLS".to_owned(),
        };
        let note = match &self.host {
            Destination::Ip(ip) if is_private(*ip) => {
                "\nThat address is private: others reach it from the same network alone; else say a public name or address"
            }
            _ => "",
        };
        let run = if self.is_service { ", run by systemd" } else { "" };
        format!(
            "A gateway in {}, reached at {}, {certificate}{run}.{note}",
            self.dir.display(),
            self.address()
        )
    }

    /// What was made, and what to type next; whether it runs as a service already.
    pub fn next(&self, made: &Made, is_running: bool) -> String {
        let Made { config, agent, client } = made;
        let (agent_ticket, client_ticket) = (agent.encode(), client.encode());
        format!(
            "\
{}

1. Here:
   {}

2. On the machine that is to be reached (the agent {}):
   {} {}

3. On yours (the client {}):
   {} {}

Whoever has a ticket is that agent or client. More of them: narrowlink-gateway ticket --help
",
            self.describe(),
            match is_running {
                true =>
                    "nothing is left to do: it is a service (narrowlink-gateway service status)".to_owned(),
                false if self.is_service => {
                    "narrowlink-gateway service install (what is in its way is said below)".to_owned()
                }
                false => format!("narrowlink-gateway -c {}", config.display()),
            },
            self.agent,
            Program::AGENT.typed(),
            agent_ticket.expose(),
            self.client,
            Program::CLIENT.typed(),
            client_ticket.expose(),
        )
    }

    /// Whether it could be made and begun at `now` (seconds since 1970). What an earlier try has left unfinished is taken
    /// away.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, now: u64) -> Result<(), InitError> {
        self.check_files(now)?;
        self.claim()
    }

    /// The same, whoever listens there now; the pin of the authority of the certificate that there is, if tickets need it.
    fn check_files(&self, now: u64) -> Result<Option<Pin>, InitError> {
        staged::clear(&self.dir)?;
        for name in [CONFIG, SECRET, LIST, book::FILE] {
            let path = self.dir.join(name);
            if path.exists() {
                return Err(InitError::Exists(path));
            }
        }
        match &self.certificate {
            Certificate::Files(cert, key) => self.look_at(cert, key, now),
            Certificate::Own | Certificate::InFront => Ok(None),
        }
    }

    fn claim(&self) -> Result<(), InitError> {
        claim(self.listen_addr).map_err(|source| InitError::Listen {
            addr: self.listen_addr,
            host: self.host.to_string(),
            source,
        })
    }

    /// Whether agents and clients would take the certificate that there is, and with which pin.
    fn look_at(&self, cert: &Path, key: &Path, now: u64) -> Result<Option<Pin>, InitError> {
        let given = |option, path: &Path, words| InitError::Given { option, path: path.to_owned(), words };
        let shown = read_pair(cert, key).map_err(|wrong| match wrong {
            WrongOfPair::Chain(words) => given("--cert", cert, on_command_line(&words)),
            WrongOfPair::Key(words) => given("--key", key, on_command_line(&words)),
        })?;
        let refused = |words| given("--cert", cert, words);
        let host = self.host.to_string();
        if !shown.covers(&host) {
            let names = shown.names();
            let (those, next) = match names.first() {
                Some(first) => (
                    format!("it is for {}", names.join(", ")),
                    format!("narrowlink-gateway init {first}, or "),
                ),
                None => ("it has no name".to_owned(), String::new()),
            };
            return Err(refused(format!(
                "the certificate is not for {host} ({those}), and agents and clients would refuse it: {next}one for {host}"
            )));
        }
        let faults = shown.standing(&[host]).map_err(|e| refused(e.to_string()))?.faults(now);
        if !faults.is_empty() {
            return Err(refused(faults.join("; ")));
        }
        match shown.issuer() {
            Issuer::Known => Ok(None),
            Issuer::Own(pin) => Ok(Some(pin)),
            Issuer::Unknown => Err(refused(UNKNOWN_ISSUER.to_owned())),
        }
    }

    /// Makes it, at `now` (seconds since 1970).
    ///
    /// # Errors
    /// See [`InitError`]; nothing is left behind then.
    pub fn make(&self, now: u64) -> Result<Made, InitError> {
        self.make_in_steps(now, &|| {})
    }

    /// The same, and `step` is told of each change of the disk.
    fn make_in_steps(&self, now: u64, step: &dyn Fn()) -> Result<Made, InitError> {
        self.check(now)?;
        let (secret, names, config) = (draw_secret()?, slice::from_ref(&self.host), self.config(now));
        self.make_of(&Contents { secret: &secret[..], names, config: &config }, now, step)
    }

    /// Makes it of these; whether it can listen is not asked.
    pub(crate) fn make_of(
        &self,
        contents: &Contents<'_>,
        now: u64,
        step: &dyn Fn(),
    ) -> Result<Made, InitError> {
        let given_pin = self.check_files(now)?;
        let Contents { secret, names, config } = *contents;
        let mut files = Staged::begin(&self.dir, step)?;
        files.file(SECRET, &format!("{}\n", *Secret::spell(secret)), PRIVATE)?;
        let ca_pin = self.certify(&mut files, names, now)?.or(given_pin);
        let mut book = Book {
            gateways: vec![self.address()],
            domain: None,
            ca_pin,
            users: vec![User { name: USER.to_owned(), uid: draw_uid().map_err(InitError::Random)? }],
            tickets: Vec::new(),
        };
        let keys = Keys::new(secret);
        let mut ticket = |kind, name: &str| {
            let wanted = Wanted {
                user: None,
                kind,
                name: name.to_owned(),
                allow: vec![],
                expires: None,
                renew: false,
            };
            wanted.make(&mut book, &keys, &Revocations::default(), now)
        };
        let (agent, client) = (ticket(Kind::Agent, &self.agent)?, ticket(Kind::Client, &self.client)?);
        files.file(
            LIST,
            "# Tokens that are taken no more; written by narrowlink-gateway revoke.\n[]\n",
            PUBLIC,
        )?;
        files.file(book::FILE, &book.text(), PRIVATE)?;
        // Last: a gateway that finds it finds the rest.
        files.file(CONFIG, config, PUBLIC)?;
        Config::load(&files.path(CONFIG))?;
        // The system's is made by who first needs it, who may be another user.
        let state = (self.state() == Path::new(STATE)).then_some((STATE, PRIVATE_DIR));
        files.settle(state)?;
        Ok(Made { config: self.dir.join(CONFIG), agent, client })
    }

    /// Makes a certificate, if none is there; its authority's pin then.
    fn certify(
        &self,
        files: &mut Staged<'_>,
        names: &[Destination],
        now: u64,
    ) -> Result<Option<Pin>, InitError> {
        if self.certificate != Certificate::Own {
            return Ok(None);
        }
        let Authority { certificate, key, pin, chain, chain_key } = Authority::new(names, now)?;
        files.file(authority::FILE, &certificate, PUBLIC)?;
        files.file(CA_KEY, &key, PRIVATE)?;
        files.file(CHAIN, &chain, PUBLIC)?;
        files.file(KEY, &chain_key, PRIVATE)?;
        Ok(Some(pin))
    }

    /// Where agents and clients reach it.
    pub fn address(&self) -> String {
        match &self.host {
            Destination::Ip(IpAddr::V6(ip)) => format!("[{ip}]:{}", self.port),
            host => format!("{host}:{}", self.port),
        }
    }

    /// Where the gateway keeps what it counts: beside its configuration, but a service writes nothing in /etc.
    pub(crate) fn state(&self) -> &Path {
        if self.dir == Path::new(SYSTEM_DIR) { Path::new(SYSTEM_STATE) } else { Path::new(STATE) }
    }

    fn config(&self, now: u64) -> String {
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let absolute = |path: &Path| {
            let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
            quoted(&path.display().to_string())
        };
        let (cert, key) = match &self.certificate {
            Certificate::Own | Certificate::InFront => (CHAIN.to_owned(), KEY.to_owned()),
            Certificate::Files(cert, key) => (absolute(cert), absolute(key)),
        };
        let host = quoted(&self.host.to_string());
        format!(
            "\
# Made by narrowlink-gateway init on {date}. A running gateway follows changes of it; what is wrong in it changes nothing.
# Paths are relative to this file.
name: {host}
secret: !File {SECRET}
services:
  - !Wss
    domains: [{host}]
    listen_addr: {listen:?}
    tls_config: !File {{ cert_path: {cert}, key_path: {key} }}
revocations: {LIST}
state_dir: {state}
",
            date = date(now),
            state = quoted(&self.state().display().to_string()),
            listen = self.listen_addr.to_string(),
        )
    }
}

/// What is said of a pair that a config names, of one that a command line names.
fn on_command_line(words: &str) -> String {
    [
        ("the config's directory", "the current directory"),
        ("`key_path`", "--key"),
        (", or set allow_readable_secrets: true", ""),
    ]
    .iter()
    .fold(words.to_owned(), |words, (of_config, of_line)| words.replace(of_config, of_line))
}

/// A secret that nobody can guess.
pub(crate) fn draw_secret() -> Result<Zeroizing<[u8; 32]>, InitError> {
    let mut secret = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *secret).map_err(InitError::Random)?;
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use narrowlink_dataplane::run::process::dir_mode;

    use super::*;

    const NOW: u64 = 1_795_219_200;

    fn plan(dir: &Path) -> Plan {
        Plan {
            dir: dir.join("etc/narrowlink"),
            host: Destination::parse("gw.example").unwrap(),
            port: 443,
            listen_addr: "127.0.0.1:0".parse().unwrap(),
            certificate: Certificate::Own,
            agent: "home".to_owned(),
            client: "laptop".to_owned(),
            is_service: false,
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_gateway_from_nothing_has_what_it_needs_and_its_tickets_hold() {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(dir.path());
        let made = plan.make(NOW).unwrap();
        let config = Config::load(&made.config).unwrap();
        assert_eq!((config.name.as_str(), config.services.len()), ("gw.example", 1));
        assert!(config.services[0].tls.is_some());
        let keys = Keys::new(config.secrets[0].as_bytes());
        for (ticket, kind, name) in
            [(&made.agent, Kind::Agent, "home"), (&made.client, Kind::Client, "laptop")]
        {
            let claims = keys.verify(ticket.token.expose(), kind, NOW).unwrap();
            assert_eq!(claims.name, name);
            assert_eq!(ticket.gateways, ["gw.example:443"]);
            assert!(ticket.pin.is_some());
        }
        for (name, wanted) in [
            (SECRET, PRIVATE),
            (KEY, PRIVATE),
            (CA_KEY, PRIVATE),
            (book::FILE, PRIVATE),
            (CHAIN, PUBLIC),
            (CONFIG, PUBLIC),
            (STATE, PRIVATE_DIR),
            ("", dir_mode()),
        ] {
            assert_eq!(mode(&plan.dir.join(name)), wanted, "{name}");
        }
        let token = made.agent.token.expose();
        for file in fs::read_dir(&plan.dir).unwrap().flatten().filter(|file| file.path().is_file()) {
            assert!(!fs::read_to_string(file.path()).unwrap().contains(token), "{file:?}");
        }
    }

    #[test]
    fn a_gateway_may_be_reached_by_its_address() {
        let dir = tempfile::tempdir().unwrap();
        let plan = Plan { host: Destination::parse("192.0.2.7").unwrap(), ..plan(dir.path()) };
        let made = plan.make(NOW).unwrap();
        let config = Config::load(&made.config).unwrap();
        assert!(config.services[0].domains.contains(&plan.host));
        assert_eq!(made.agent.gateways, ["192.0.2.7:443"]);
    }

    #[test]
    fn what_is_there_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(dir.path());
        plan.make(NOW).unwrap();
        let secret = fs::read(plan.dir.join(SECRET)).unwrap();
        let said = plan.make(NOW).err().unwrap().to_string();
        assert!(said.contains("gateway.yaml is there already"), "{said}");
        assert_eq!(fs::read(plan.dir.join(SECRET)).unwrap(), secret);
        // One alone is enough: a key is never lost.
        fs::remove_file(plan.dir.join(CONFIG)).unwrap();
        assert!(matches!(plan.make(NOW), Err(InitError::Exists(_))));
    }

    /// A certificate for `name` and behind it that of its authority, and its key.
    fn files(dir: &Path, name: &str) -> Certificate {
        let made = Authority::new(&[Destination::parse(name).unwrap()], NOW).unwrap();
        let (cert, key) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
        fs::write(&cert, made.chain).unwrap();
        fs::write(&key, &*made.chain_key).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(PRIVATE)).unwrap();
        Certificate::Files(cert, key)
    }

    #[test]
    fn what_a_start_would_refuse_is_said_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(&dir.path().join("machine"));
        let (good, other) = (files(dir.path(), "gw.example"), files(dir.path(), "other.example"));
        let path = |name: &str| dir.path().join(name);
        let mixed = Certificate::Files(path("gw.example.pem"), path("other.example.key"));
        let swapped = Certificate::Files(path("gw.example.key"), path("gw.example.pem"));
        let none = Certificate::Files(path("no.pem"), path("no.key"));
        fs::copy(path("gw.example.key"), path("open.key")).unwrap();
        fs::set_permissions(path("open.key"), fs::Permissions::from_mode(0o644)).unwrap();
        let open = Certificate::Files(path("gw.example.pem"), path("open.key"));
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let holder = std::net::TcpListener::bind(taken).unwrap();
        let with = |certificate: &Certificate| Plan { certificate: certificate.clone(), ..plan.clone() };
        for (plan, says) in [
            (
                with(&other),
                "other.example.pem: the certificate is not for gw.example (it is for other.example)",
            ),
            (with(&other), "narrowlink-gateway init other.example, or one for gw.example"),
            (with(&mixed), "--cert "),
            (with(&mixed), "the private key belongs to another certificate"),
            (with(&swapped), "--key "),
            (with(&none), "no.pem: this file can't be read"),
            (
                with(&open),
                "open.key: everybody on this machine can read or change this file (mode 0644): chmod 640 it",
            ),
            (Plan { listen_addr: taken, ..plan.clone() }, "ss -ltnp"),
            (
                Plan { listen_addr: taken, ..plan.clone() },
                "narrowlink-gateway init gw.example:8443, or --listen",
            ),
            (
                Plan { listen_addr: "192.0.2.1:8443".parse().unwrap(), ..plan.clone() },
                "--listen 192.0.2.1:8443: ",
            ),
        ] {
            let said = plan.check(NOW).unwrap_err().to_string();
            assert!(said.contains(says), "{said}");
            assert_eq!(plan.make(NOW).err().unwrap().to_string(), said);
            assert!(!path("machine").exists(), "{said}");
        }
        drop(holder);
        // The same, once each is as it should be.
        Plan { listen_addr: taken, ..with(&good) }.make(NOW).unwrap();
    }

    #[test]
    fn the_pin_of_an_authority_of_ones_own_is_in_the_tickets_and_without_it_nothing_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let certificate = files(dir.path(), "gw.example");
        let Certificate::Files(cert, key) = &certificate else { panic!("files") };
        let plan = Plan { certificate: certificate.clone(), ..plan(&dir.path().join("machine")) };
        let chain = fs::read_to_string(cert).unwrap();
        let first = chain.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap();
        let lonely = rcgen::generate_simple_self_signed(vec!["gw.example".to_owned()]).unwrap();
        let lonely_key = lonely.signing_key.serialize_pem();
        let chain_key = fs::read_to_string(key).unwrap();
        for (shown, its_key) in [(first, &chain_key), (&lonely.cert.pem(), &lonely_key)] {
            fs::write(cert, shown).unwrap();
            fs::write(key, its_key).unwrap();
            let said = plan.make(NOW).err().unwrap().to_string();
            assert!(said.contains("gw.example.pem: its authority is none that machines know"), "{said}");
            assert!(said.contains("append the authority's own certificate to this file"), "{said}");
            assert!(!dir.path().join("machine").exists());
        }
        fs::write(cert, &chain).unwrap();
        fs::write(key, &chain_key).unwrap();
        let made = plan.make(NOW).unwrap();
        let pin = made.agent.pin.unwrap();
        assert_eq!(made.client.pin, Some(pin));
        assert_eq!(Book::read(&plan.dir.join(book::FILE)).unwrap().ca_pin, Some(pin));
    }

    #[test]
    fn a_certificate_on_the_command_line_is_spoken_of_in_the_terms_of_the_command_line() {
        let dir = tempfile::tempdir().unwrap();
        let Certificate::Files(cert, key) = files(dir.path(), "gw.example") else { panic!("files") };
        let open = dir.path().join("open.key");
        fs::copy(&key, &open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
        for (cert, key, says) in [
            (Path::new("no.pem"), key.as_path(), "the current directory"),
            (&cert, &cert, "name the key's file with --key"),
            (&cert, &open, "(mode 0644): chmod 640 it"),
        ] {
            let certificate = Certificate::Files(cert.to_owned(), key.to_owned());
            let plan = Plan { certificate, ..plan(&dir.path().join("machine")) };
            let said = plan.check(NOW).unwrap_err().to_string();
            assert!(said.contains(says), "{said}");
            for words in ["config", "key_path", "allow_readable_secrets"] {
                assert!(!said.contains(words), "{said}");
            }
        }
    }

    #[test]
    fn what_can_t_be_finished_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(dir.path());
        // A key of an authority of somebody else's.
        fs::create_dir_all(&plan.dir).unwrap();
        fs::write(plan.dir.join(CA_KEY), "mine").unwrap();
        assert!(matches!(plan.make(NOW), Err(InitError::Exists(_))));
        let left: Vec<_> = fs::read_dir(&plan.dir).unwrap().flatten().map(|file| file.file_name()).collect();
        assert_eq!(left, [CA_KEY]);
        assert_eq!(fs::read_to_string(plan.dir.join(CA_KEY)).unwrap(), "mine");
    }

    /// In the environment of a process that is to be killed: the directory, and behind which step.
    const KILLED: [&str; 2] = ["NARROWLINK_TEST_INIT_DIR", "NARROWLINK_TEST_INIT_STEP"];

    #[test]
    fn a_try_that_is_killed_at_any_step_is_in_nobody_s_way() {
        if let [Some(dir), Some(step)] = KILLED.map(std::env::var_os) {
            let left = std::cell::Cell::new(step.to_str().unwrap().parse::<usize>().unwrap());
            let step = || match left.get() {
                0 => rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
                    .unwrap(),
                more => left.set(more - 1),
            };
            plan(Path::new(&dir)).make_in_steps(NOW, &step).unwrap();
            return;
        }
        let mut finished = 0;
        for step in 0.. {
            let dir = tempfile::tempdir().unwrap();
            let plan = plan(dir.path());
            let test = "init::tests::a_try_that_is_killed_at_any_step_is_in_nobody_s_way";
            let ended = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", test])
                .envs([(KILLED[0], dir.path().as_os_str()), (KILLED[1], step.to_string().as_ref())])
                .output()
                .unwrap();
            let is_whole = plan.dir.join(CONFIG).exists();
            if is_whole {
                // All had its name already: it is a gateway.
                let said = plan.make(NOW).err().unwrap().to_string();
                assert!(said.contains("gateway.yaml is there already"), "{step}: {said}");
                finished += 1;
            } else {
                assert!(!ended.status.success(), "{step}");
                plan.make(NOW).unwrap_or_else(|e| panic!("killed at step {step}: {e}"));
            }
            Config::load(&plan.dir.join(CONFIG)).unwrap();
            let mut there: Vec<_> =
                fs::read_dir(&plan.dir).unwrap().flatten().map(|file| file.file_name()).collect();
            there.sort();
            let all = [CA_KEY, authority::FILE, KEY, CHAIN, SECRET, CONFIG, LIST, STATE, book::FILE];
            assert_eq!(there, all, "{step}");
            if ended.status.success() {
                assert!(step > 2 * (all.len() - 1), "each file was written, and got its name");
                break;
            }
        }
        assert!(finished >= 1);
    }

    #[test]
    fn what_lies_where_an_unfinished_try_was_is_not_taken_for_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(dir.path());
        let stage = plan.dir.join(".init");
        fs::create_dir_all(&stage).unwrap();
        fs::write(stage.join(SECRET), "unfinished").unwrap();
        fs::write(plan.dir.join(SECRET), "mine").unwrap();
        assert!(matches!(plan.make(NOW), Err(InitError::Exists(_))));
        assert_eq!(fs::read_to_string(plan.dir.join(SECRET)).unwrap(), "mine");
        assert!(!stage.exists());
    }

    #[test]
    fn of_several_at_once_one_makes_it_and_none_takes_anything_from_it() {
        for round in 0..10 {
            let dir = tempfile::tempdir().unwrap();
            let plan = plan(&dir.path().join("new/dir"));
            if round % 2 == 0 {
                fs::create_dir_all(&plan.dir).unwrap();
            }
            let made: usize = std::thread::scope(|scope| {
                let at_once: Vec<_> = (0..4)
                    .map(|n| {
                        let plan = &plan;
                        // Some only look.
                        scope.spawn(move || {
                            if n < 2 {
                                plan.make(NOW).is_ok()
                            } else {
                                let _ = plan.check(NOW);
                                false
                            }
                        })
                    })
                    .collect();
                at_once.into_iter().map(|one| usize::from(one.join().unwrap())).sum()
            });
            assert_eq!(made, 1, "{round}");
            Config::load(&plan.dir.join(CONFIG)).unwrap();
            assert_eq!(fs::read_dir(&plan.dir).unwrap().count(), 9, "{round}");
        }
    }

    #[test]
    fn a_host_is_a_name_or_an_address_with_a_port_or_without() {
        for (text, host, port) in [
            ("gw.example", "gw.example", 443),
            ("GW.example:8443", "gw.example", 8443),
            ("192.0.2.1", "192.0.2.1", 443),
            ("[2001:db8::1]:8443", "2001:db8::1", 8443),
            ("[2001:db8::1]", "2001:db8::1", 443),
        ] {
            assert_eq!(parse_host(text).unwrap(), (Destination::parse(host).unwrap(), port), "{text}");
        }
        for (text, says) in [
            ("", "HOST: the host is empty; a name or an address is expected"),
            ("a b", "with :PORT if that is not 443"),
            ("gw.example:", "the port must be a number"),
            ("gw.example:99999", "the port must be a number"),
            ("https://gw.example/", "narrowlink-gateway init gw.example"),
            ("http://gw.example", "narrowlink-gateway init gw.example"),
            ("wss://gw.example:8443/x?y", "narrowlink-gateway init gw.example:8443"),
            ("gw.example/", "narrowlink-gateway init gw.example"),
            ("https://[2001:db8::1]/", "narrowlink-gateway init [2001:db8::1]"),
            ("https://", "the host is empty"),
            ("https://a b/", "HOST: a host can't contain"),
        ] {
            let said = parse_host(text).unwrap_err().to_string();
            assert!(said.contains(says), "{text}: {said}");
        }
    }
}
