//! Role: gateway, agents and clients in this process, on loopback and free ports.
//! Invariants: everything is started through the same files and loaders as the real programs ·
//! every lab has a directory of its own, gone with it.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroUsize,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use narrowlink_agent::Agent;
use narrowlink_client::{Forward, Plan, start_forward};
use narrowlink_control::{
    clock::{self, Clock},
    config::Config as GatewayConfig,
    gateway::{self, Gateway},
};
use narrowlink_proto::{id::Uid, policy::Policies, target::Target, token::Kind};

use crate::site::{Site, Transport};

/// How long a program may take to get ready on loopback: far more than it needs, so that only a hang meets it.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// A running gateway and the directory that programs for it are configured in.
pub struct Lab {
    /// Where the files lie.
    pub site: Site,
    /// The space that agents and clients belong to unless said otherwise.
    pub uid: Uid,
    gateway: Gateway,
    workers: usize,
    // Last: removed after everything that reads it.
    _dir: tempfile::TempDir,
}

impl Lab {
    /// Starts a gateway with `workers` workers.
    ///
    /// # Errors
    /// The system's.
    pub fn start(workers: usize) -> Result<Self> {
        Self::start_by(workers, clock::since_1970)
    }

    /// As [`Lab::start`], with a gateway that keeps an audit log.
    ///
    /// # Errors
    /// As there.
    pub fn start_audited(workers: usize) -> Result<Self> {
        Self::start_as(workers, clock::since_1970, |config, dir| config.audit = Some(dir.join("audit.log")))
    }

    /// As [`Lab::start`], with a gateway that goes by another clock.
    ///
    /// # Errors
    /// As there.
    pub fn start_by(workers: usize, clock: Clock) -> Result<Self> {
        Self::start_as(workers, clock, |_, _| {})
    }

    fn start_as(workers: usize, clock: Clock, set: impl FnOnce(&mut GatewayConfig, &Path)) -> Result<Self> {
        narrowlink_dataplane::tls::install_crypto();
        let dir = tempfile::Builder::new().prefix("narrowlink-").tempdir()?;
        let site = Site::create(dir.path())?;
        let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        let mut config = GatewayConfig::load(&site.gateway_yaml(any, any, workers)?)?;
        set(&mut config, dir.path());
        let gateway = gateway::start_by(config, clock)?;
        // For programs started by hand: the ports that this gateway got.
        site.gateway_yaml(gateway.addresses()[0], gateway.addresses()[1], workers)?;
        Ok(Self { site, uid: Uid::from_u128(7), gateway, workers, _dir: dir })
    }

    /// The configuration that the gateway was started with, read anew.
    ///
    /// # Errors
    /// The system's.
    pub fn config(&self) -> Result<GatewayConfig> {
        let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        let config = GatewayConfig::load(&self.site.gateway_yaml(any, any, self.workers)?)?;
        let addresses = self.gateway.addresses();
        self.site.gateway_yaml(addresses[0], addresses[1], self.workers)?;
        Ok(config)
    }

    /// The running gateway.
    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// Where programs with this transport connect to.
    pub fn entry(&self, transport: Transport) -> SocketAddr {
        self.gateway.addresses()[usize::from(!transport.tls)]
    }

    /// Starts an agent and waits until the gateway has welcomed it.
    ///
    /// # Errors
    /// The system's, or the agent was not welcomed in time.
    pub fn agent(&self, name: &str, transport: Transport) -> Result<Agent> {
        self.agent_with(self.uid, name, transport, "")
    }

    /// As [`Lab::agent`], in the space `uid`; `extra` is appended to agent.yaml.
    ///
    /// # Errors
    /// As there.
    pub fn agent_with(&self, uid: Uid, name: &str, transport: Transport, extra: &str) -> Result<Agent> {
        let token = self.site.token(Kind::Agent, uid, name, None)?;
        self.agent_by(&token, name, transport, extra)
    }

    /// As [`Lab::agent_with`], with a token of one's own.
    ///
    /// # Errors
    /// As there.
    pub fn agent_by(&self, token: &str, name: &str, transport: Transport, extra: &str) -> Result<Agent> {
        let state = self.site.dir().join(format!("state-{name}"));
        let extra = format!("state_dir: \"{}\"\n{extra}", state.display());
        let file = format!("agent-{name}.yaml");
        let path = self.site.endpoint_yaml(&file, self.entry(transport), transport, token, &extra)?;
        let agent = narrowlink_agent::start(agent_config(&path)?)?;
        agent.wait_ready(READY_TIMEOUT).ok_or_else(|| anyhow!("agent {name} was not welcomed"))?;
        Ok(agent)
    }

    /// The configuration of a client named `name`.
    ///
    /// # Errors
    /// The system's.
    pub fn client(
        &self,
        uid: Uid,
        name: &str,
        transport: Transport,
        policies: Option<Policies>,
    ) -> Result<narrowlink_client::config::Config> {
        let token = self.site.token(Kind::Client, uid, name, policies)?;
        let file = format!("client-{name}.yaml");
        let path = self.site.endpoint_yaml(&file, self.entry(transport), transport, &token, "")?;
        client_config(&path)
    }

    /// Starts a forwarded port to `target` beyond `agent`.
    ///
    /// # Errors
    /// The system's.
    pub fn forward(&self, agent: &str, target: SocketAddr, transport: Transport) -> Result<Forward> {
        let config = self.client(self.uid, "laptop", transport, None)?;
        Self::forward_by(&config, agent, target)
    }

    /// As [`Lab::forward`], with a token of one's own.
    ///
    /// # Errors
    /// As there.
    pub fn forward_as(
        &self,
        token: &str,
        agent: &str,
        target: SocketAddr,
        transport: Transport,
    ) -> Result<Forward> {
        let file = format!("client-{}.yaml", getrandom::u64()?);
        let path = self.site.endpoint_yaml(&file, self.entry(transport), transport, token, "")?;
        Self::forward_by(&client_config(&path)?, agent, target)
    }

    /// As [`Lab::forward`], of a client that is configured so.
    ///
    /// # Errors
    /// As there.
    pub fn forward_by(
        config: &narrowlink_client::config::Config,
        agent: &str,
        target: SocketAddr,
    ) -> Result<Forward> {
        let listen = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        let target = Target::Tcp { host: target.ip().to_string(), port: target.port() };
        let plan = Plan { agent: agent.to_owned(), target, listen };
        start_forward(config, plan).context("the forwarded port")
    }
}

/// An agent's configuration; `NARROWLINK_WORKERS` says how many workers it has, where the file does not.
///
/// # Errors
/// The file's, or the variable holds no number above zero.
pub fn agent_config(path: &Path) -> Result<narrowlink_agent::config::Config> {
    let mut config = narrowlink_agent::config::Config::load(path)?;
    config.workers = workers(config.workers)?;
    Ok(config)
}

/// As [`agent_config`], a client's.
///
/// # Errors
/// As there.
pub fn client_config(path: &Path) -> Result<narrowlink_client::config::Config> {
    let mut config = narrowlink_client::config::Config::load(path)?;
    config.workers = workers(config.workers)?;
    Ok(config)
}

fn workers(in_file: Option<NonZeroUsize>) -> Result<Option<NonZeroUsize>> {
    let Ok(workers) = std::env::var("NARROWLINK_WORKERS") else { return Ok(in_file) };
    let parsed = workers.parse().with_context(|| format!("NARROWLINK_WORKERS is {workers:?}"))?;
    Ok(in_file.or(Some(parsed)))
}
