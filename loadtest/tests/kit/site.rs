//! Role: one installation in a directory: certificates, tokens, configurations, and its programs.
//! Invariants: everything lies in one temporary directory; tokens come from narrowlink-tokengen; an
//! address that the gateway got once it keeps, so that it can come back to the same port.
//! See: docs/configuration.md.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use super::{
    PATIENCE, data, net,
    process::{Ear, Lines, Running, ours, run},
};

/// The gateway's name in certificates, SNI and Host.
const DOMAIN: &str = "gw.test";
/// The agent's name.
pub(crate) const AGENT: &str = "home";
/// The space that the agent and the clients belong to.
pub(crate) const UID: &str = "0d9c1a52-6d5f-4f0b-9c55-2f3c8b1e7a10";

/// What carries the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// Plain WebSocket.
    Ws,
    /// WebSocket over TLS.
    Wss,
}

impl Transport {
    const fn tag(self) -> &'static str {
        match self {
            Self::Ws => "Ws",
            Self::Wss => "Wss",
        }
    }
}

/// Whose token a client brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holder {
    /// A client that may do everything in its own space.
    Free,
    /// A client that may reach nothing.
    Barred,
    /// A client whose time has passed.
    Expired,
    /// A client whose token another gateway's secret signed.
    Stranger,
}

/// A directory with everything that the programs read.
pub(crate) struct Site {
    dir: TempDir,
    secret: String,
    ws_addr: SocketAddr,
    wss_addr: SocketAddr,
    /// Hears what its programs say.
    pub(crate) ear: Ear,
    raw: bool,
    /// What its gateway.yaml says besides.
    more: String,
    /// Of each forward.
    pub(crate) workers: usize,
}

impl Site {
    /// An installation whose gateway takes any free port at its first start.
    pub(crate) fn new() -> Self {
        let unbound = SocketAddr::new(net::private_ip(), 0);
        Self::with_addrs(unbound, unbound)
    }

    /// An installation whose gateway's ports are known before it has ever run.
    pub(crate) fn with_known_ports() -> Self {
        Self::with_addrs(net::free_addr(), net::free_addr())
    }

    fn with_addrs(ws_addr: SocketAddr, wss_addr: SocketAddr) -> Self {
        let dir = TempDir::with_prefix("narrowlink-test-").expect("a temporary directory can be made");
        let (secret, ear) = (random_secret(), Ear::Log);
        let site = Self { secret, dir, ws_addr, wss_addr, ear, raw: false, more: String::new(), workers: 1 };
        site.write_certificates();
        site.write_gateway_config();
        let [agent, free, barred, expired] = site.generate_tokens(&site.secret);
        let [_, stranger, ..] = site.generate_tokens(&random_secret());
        site.write_secret("agent.token", &agent);
        let clients = [
            (Holder::Free, free),
            (Holder::Barred, barred),
            (Holder::Expired, expired),
            (Holder::Stranger, stranger),
        ];
        for (holder, token) in clients {
            site.write_secret(&format!("{holder:?}.token"), &token);
        }
        site
    }

    /// The directory.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where the gateway listens for `transport`.
    pub(crate) const fn gateway_addr(&self, transport: Transport) -> SocketAddr {
        match transport {
            Transport::Ws => self.ws_addr,
            Transport::Wss => self.wss_addr,
        }
    }

    /// Starts the gateway and waits until it is ready; from then on its addresses stay.
    pub(crate) fn start_gateway(&mut self) -> Running {
        self.start_gateway_by(|command| command)
    }

    /// The same, by what `dress` makes of its command.
    pub(crate) fn start_gateway_by(&mut self, dress: impl FnOnce(Command) -> Command) -> Running {
        let ready_file = self.fresh_path("gateway.ready");
        let mut command = self.command("narrowlink-gateway");
        command.arg("-c").arg(self.path("gateway.yaml")).arg("--ready-file").arg(&ready_file);
        let mut gateway = self.run("gateway", dress(command), None);
        let ready: serde_json::Value = gateway.wait_for("the gateway's ready file", PATIENCE, || {
            let text = fs::read(&ready_file).ok()?;
            Some(serde_json::from_slice(&text).expect("a ready file is whole as soon as it is there"))
        });
        let address = |i: usize, kind: &str| -> SocketAddr {
            let service = &ready["services"][i];
            assert_eq!(service["kind"], kind, "in the ready file: {ready}");
            let address = service["address"].as_str().and_then(|text| text.parse().ok());
            address.unwrap_or_else(|| panic!("no address in the ready file: {ready}"))
        };
        (self.wss_addr, self.ws_addr) = (address(0, "wss"), address(1, "ws"));
        self.write_gateway_config();
        gateway
    }

    fn run(&self, name: &str, command: Command, lines: Option<Lines>) -> Running {
        Running::start_heard(name, self.dir(), command, lines, self.ear)
    }

    /// Starts the agent without waiting for anything.
    pub(crate) fn spawn_agent(&self, transport: Transport) -> (Running, PathBuf) {
        let (command, ready_file) = self.ready_agent_command(transport);
        (self.run("agent", command, None), ready_file)
    }

    /// What starts the agent, and the file that it writes when the gateway has welcomed it.
    pub(crate) fn ready_agent_command(&self, transport: Transport) -> (Command, PathBuf) {
        let ready_file = self.fresh_path("agent.ready");
        let mut command = self.agent_command(transport);
        command.arg("--ready-file").arg(&ready_file);
        (command, ready_file)
    }

    /// `narrowlink-agent -c FILE`.
    pub(crate) fn agent_command(&self, transport: Transport) -> Command {
        let config = self.endpoint_config("agent.yaml", transport, "agent.token");
        let state_dir = self.path("agent-state");
        fs::create_dir_all(&state_dir).expect("the test's directory can be written");
        let mut file = OpenOptions::new().append(true).open(&config).expect("just written");
        writeln!(file, "state_dir: {}", state_dir.display()).expect("the test's directory has room");
        let mut command = self.command("narrowlink-agent");
        command.arg("-c").arg(config);
        command
    }

    /// Starts the agent and waits until the gateway has welcomed it.
    pub(crate) fn start_agent(&self, transport: Transport) -> Running {
        let (mut agent, ready_file) = self.spawn_agent(transport);
        agent.wait_for("the agent's ready file", PATIENCE, || ready_file.exists().then_some(()));
        agent
    }

    /// Starts an agent of another name at a gateway that speaks `ws` there, with `more` in its configuration, and
    /// waits until it is welcome.
    pub(crate) fn start_agent_at(&self, gateway: SocketAddr, name: &str, token: &str, more: &str) -> Running {
        // A name server of the test's own answers, and is asked once.
        self.start_agent_by(&gateway.to_string(), name, token, more, "timeout:4 attempts:1")
    }

    /// The same, at a gateway that may have a name; `resolver`: how the system looks names up (resolv.conf(5), RES_OPTIONS).
    pub(crate) fn start_agent_by(
        &self,
        gateway: &str,
        name: &str,
        token: &str,
        more: &str,
        resolver: &str,
    ) -> Running {
        let ready_file = self.fresh_path(&format!("{name}.ready"));
        self.write_secret(&format!("{name}.token"), token);
        let state_dir = self.path(&format!("{name}-state"));
        fs::create_dir_all(&state_dir).expect("the test's directory can be written");
        let mut text = self.endpoints(gateway, Transport::Ws, &format!("{name}.token"));
        text += &format!("state_dir: {}\n{more}", state_dir.display());
        let config = self.write_secret(&format!("{name}.yaml"), &text);
        let mut command = self.command("narrowlink-agent");
        command.arg("-c").arg(config).arg("--ready-file").arg(&ready_file);
        command.env("RES_OPTIONS", resolver);
        let mut agent = Running::start(name, self.dir(), command, None);
        agent.wait_for("the agent's ready file", PATIENCE, || ready_file.exists().then_some(()));
        agent
    }

    /// Starts a forward to `target` and waits until it has said its local address.
    pub(crate) fn start_forward(&self, transport: Transport, target: SocketAddr) -> Forward {
        self.start_forward_at(transport, SocketAddr::new(net::private_ip(), 0), target)
    }

    /// The same, at a local address of the caller's choice.
    pub(crate) fn start_forward_at(
        &self,
        transport: Transport,
        local: SocketAddr,
        target: SocketAddr,
    ) -> Forward {
        let (lines, said) = Lines::channel();
        let mut command = self.client(transport, Holder::Free);
        command.args(["forward", "-n", AGENT, "-l", &local.to_string(), &target.to_string()]);
        let mut running = self.run("forward", command, Some(lines));
        let line = running.wait_for("the forward's local address", PATIENCE, || said.try_recv().ok());
        let local = line.parse().unwrap_or_else(|_| panic!("the forward's first line is {line:?}"));
        Forward { running, local }
    }

    /// `narrowlink -c FILE`, to be told what to do.
    pub(crate) fn client(&self, transport: Transport, holder: Holder) -> Command {
        let name = format!("client-{}-{holder:?}.yaml", transport.tag());
        let gateway = self.gateway_addr(transport).to_string();
        let mut text = self.endpoints(&gateway, transport, &format!("{holder:?}.token"));
        text += &format!("workers: {}\n", self.workers);
        let config = self.write_secret(&name, &text);
        let mut command = self.command("narrowlink");
        command.arg("-c").arg(config);
        command
    }

    /// One of our programs, at home in the directory and deaf to the developer's settings.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(ours(program));
        command.current_dir(self.dir()).env("HOME", self.dir());
        command.env_remove("RUST_LOG").env_remove("XDG_CONFIG_HOME");
        // A machine without a name server says so at once.
        command.env("RES_OPTIONS", "timeout:1 attempts:1");
        command
    }

    /// A path in the directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// Writes a file that only its owner may read.
    pub(crate) fn write_secret(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes()))
            .expect("the test's directory can be written");
        path
    }

    /// The text of the gateway's configuration.
    pub(crate) fn gateway_config(&self) -> String {
        let Self { secret, ws_addr, wss_addr, more, .. } = self;
        format!(
            "name: test-gateway
secret: \"hex:{secret}\"
services:
  - !Wss {{ domains: [{DOMAIN}], listen_addr: \"{wss_addr}\", tls_config: !File {{ domains: [{DOMAIN}], cert_path: gateway.pem }} }}
  - !Ws {{ domains: [{DOMAIN}], listen_addr: \"{ws_addr}\" }}
workers: 2
limits: {{ token: {{ sessions: 10000, streams: 10000, dials_per_s: 100000 }} }}
{more}"
        )
    }

    /// Has its gateway.yaml say these lines as well, from now on.
    pub(crate) fn configure_gateway(&mut self, more: &str) {
        more.clone_into(&mut self.more);
        self.write_gateway_config();
    }

    fn write_gateway_config(&self) {
        self.write_secret("gateway.yaml", &self.gateway_config());
    }

    fn endpoint_config(&self, name: &str, transport: Transport, token_file: &str) -> PathBuf {
        self.write_secret(
            name,
            &self.endpoints(&self.gateway_addr(transport).to_string(), transport, token_file),
        )
    }

    fn endpoints(&self, gateway: &str, transport: Transport, token_file: &str) -> String {
        let (token_file, ca_file) = (self.path(token_file), self.path("ca.pem"));
        format!(
            "endpoints:
  - !SelfHosted
    gateway: \"{gateway}\"
    domain: {DOMAIN}
    protocol: {}
    token_file: {}
    ca_file: {}
    framing: {}
",
            transport.tag(),
            token_file.display(),
            ca_file.display(),
            if self.raw { "raw" } else { "auto" }
        )
    }

    /// A path where nothing is yet.
    fn fresh_path(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let _ = fs::remove_file(&path);
        path
    }

    fn write_certificates(&self) {
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate().expect("a key can be made");
        let ca_cert = ca.self_signed(&ca_key).expect("a CA signs itself");
        let issuer = Issuer::new(ca, ca_key);
        let key = KeyPair::generate().expect("a key can be made");
        let params = CertificateParams::new([DOMAIN.to_owned()]).expect("the name is a DNS name");
        let cert = params.signed_by(&key, &issuer).expect("the CA signs");
        self.write_secret("ca.pem", &ca_cert.pem());
        self.write_secret("gateway.pem", &format!("{}{}", cert.pem(), key.serialize_pem()));
    }

    /// Tokens of the agent and of the three clients that this gateway's secret can sign.
    fn generate_tokens(&self, secret: &str) -> [String; 4] {
        let client =
            |name: &str, exp: &str| format!("  - !Client {{ uid: {UID}, name: {name}, exp: {exp} }}\n");
        let items = format!(
            "  - !Agent {{ uid: {UID}, name: {AGENT}, exp: 30d }}
{}  - !Client {{ uid: {UID}, name: barred, exp: 30d, policies: {{ permit: true, policies: [] }} }}
{}",
            client("free", "30d"),
            client("expired", "1000000000"),
        );
        let tokens = self.sign(secret, &items);
        tokens.try_into().expect("one for each item")
    }

    /// Tokens of this gateway, by the items of a tokens.yaml.
    pub(crate) fn tokens(&self, items: &str) -> Vec<String> {
        self.sign(&self.secret, items)
    }

    fn sign(&self, secret: &str, items: &str) -> Vec<String> {
        let text = format!("secret: \"hex:{secret}\"\ntokens:\n{items}");
        let path = self.write_secret("tokens.yaml", &text);
        let mut command = self.command("narrowlink-tokengen");
        command.arg("-c").arg(path).arg("--json");
        let printed = run(command, b"", PATIENCE).succeeded();
        let tokens: Vec<serde_json::Value> = serde_json::from_slice(&printed).expect("--json prints JSON");
        let token = |one: &serde_json::Value| one["token"].as_str().map(str::to_owned);
        tokens.iter().map(|one| token(one).expect("each has a token")).collect()
    }
}

fn random_secret() -> String {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).expect("the system has randomness");
    data::hex(&secret)
}

/// A running `narrowlink forward`.
pub(crate) struct Forward {
    /// The process.
    pub(crate) running: Running,
    /// Where users connect.
    pub(crate) local: SocketAddr,
}

/// A gateway and an agent that is linked to it. Fields are dropped in order: the directory goes last.
pub(crate) struct Tunnel {
    /// The agent.
    pub(crate) agent: Running,
    /// The gateway.
    pub(crate) gateway: Running,
    /// What carries it.
    pub(crate) transport: Transport,
    /// Where it lives.
    pub(crate) site: Site,
}

impl Tunnel {
    /// Starts both.
    pub(crate) fn start(transport: Transport) -> Self {
        Self::start_at(Site::new(), transport)
    }

    /// The same, for payload without frames.
    pub(crate) fn start_raw(transport: Transport) -> Self {
        Self::start_at(Site { raw: true, ..Site::new() }, transport)
    }

    fn start_at(mut site: Site, transport: Transport) -> Self {
        let gateway = site.start_gateway();
        let agent = site.start_agent(transport);
        Self { agent, gateway, transport, site }
    }

    /// Starts a forward to `target`.
    pub(crate) fn forward(&self, target: SocketAddr) -> Forward {
        self.site.start_forward(self.transport, target)
    }
}
