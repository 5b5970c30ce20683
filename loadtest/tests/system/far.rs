//! Role: client, gateway and agent with a long way between each two.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use narrowlink_agent::Agent;
use narrowlink_client::{Forward, Plan, start_forward};
use narrowlink_loadtest::{
    lab::{Lab, agent_config, client_config},
    site::Transport,
};
use narrowlink_proto::{target::Target, token::Kind};

use crate::delay::Delay;

/// How long anything may take that is not measured.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// One way between client and gateway, one between gateway and agent.
pub(crate) struct Far {
    pub(crate) lab: Lab,
    /// Between client and gateway.
    pub(crate) near: Delay,
    /// Between gateway and agent.
    pub(crate) far: Delay,
    transport: Transport,
    agent: Option<Agent>,
}

impl Far {
    /// `delay` is one way, on each of the two.
    pub(crate) fn start(client: Transport, agent: Transport, delay: Duration) -> Self {
        let mut way = Self::without_agent(client, agent, delay);
        way.start_agent();
        way
    }

    /// The same, before its agent comes.
    pub(crate) fn without_agent(client: Transport, agent: Transport, delay: Duration) -> Self {
        let lab = Lab::start(2).unwrap();
        let near = Delay::start(lab.entry(client), delay);
        let far = Delay::start(lab.entry(agent), delay);
        Self { lab, near, far, transport: agent, agent: None }
    }

    pub(crate) fn start_agent(&mut self) {
        let (site, transport) = (&self.lab.site, self.transport);
        let token = site.token(Kind::Agent, self.lab.uid, "far", None).unwrap();
        let extra = format!("state_dir: \"{}\"\n", site.dir().join("state-far").display());
        let path = site.endpoint_yaml("agent-far.yaml", self.far.addr, transport, &token, &extra).unwrap();
        let config = agent_config(&path).unwrap();
        let agent = self.agent.insert(narrowlink_agent::start(config).unwrap());
        agent.wait_ready(PATIENCE).unwrap();
    }

    /// The configuration of a client beyond the long way.
    pub(crate) fn client(&self, transport: Transport) -> narrowlink_client::config::Config {
        let token = self.lab.site.token(Kind::Client, self.lab.uid, "laptop", None).unwrap();
        let site = &self.lab.site;
        let path = site.endpoint_yaml("client-far.yaml", self.near.addr, transport, &token, "").unwrap();
        client_config(&path).unwrap()
    }

    /// A forwarded port to `target`.
    pub(crate) fn forward(&self, target: SocketAddr, transport: Transport) -> Forward {
        let target = Target::Tcp { host: target.ip().to_string(), port: target.port() };
        let plan = Plan { agent: "far".to_owned(), target, listen: "127.0.0.1:0".parse().unwrap() };
        start_forward(&self.client(transport), plan).unwrap()
    }
}

/// Waits for something that can be seen.
pub(crate) fn wait_until(what: &str, mut seen: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !seen() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        // The grain of the question, not a guess at the answer.
        std::thread::sleep(Duration::from_millis(1));
    }
}
