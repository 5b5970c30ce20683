//! Role: the arguments of everything that is measured by load processes.
//! Invariants: what can't be measured is said before anything is started.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Result, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use narrowlink_loadtest::{
    load::{
        compare::{Comparison, alone},
        conditions::Conditions,
        network::Network,
        plan::{Direction, FarTls, NearTls, Way},
        scenario::Scenario,
        subject::{Setup, Spec, Subject},
        urgency::Urgency,
    },
    site::{DOMAIN, Transport},
};
use rustix::thread::{CpuSet, sched_getaffinity};

#[derive(Subcommand)]
pub(crate) enum Load {
    /// As many bytes as go through: GB/s, and CPU seconds per GiB of the process under test.
    Throughput(Alone),
    /// One message in flight on each connection: round trips, and CPU time per message.
    Pingpong(Alone),
    /// New sessions: how many a second, and CPU time per session.
    Churn(Alone),
    /// Connections that stand and say nothing: memory for each.
    Idle(Alone),
    /// One interactive connection beside bulk ones: its round trips.
    Mixed(Alone),
    /// Starts our gateway and others on loopback, and measures them against each other, in turns.
    Compare(Compare),
}

impl Load {
    pub(crate) fn run(self) -> Result<()> {
        let (what, alone) = match self {
            Self::Compare(compare) => return compare.run(),
            Self::Throughput(alone) => (What::Throughput, alone),
            Self::Pingpong(alone) => (What::Pingpong, alone),
            Self::Churn(alone) => (What::Churn, alone),
            Self::Idle(alone) => (What::Idle, alone),
            Self::Mixed(alone) => (What::Mixed, alone),
        };
        alone.run(what)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// As many bytes as go through.
    Throughput,
    /// One message in flight on each connection.
    Pingpong,
    /// New sessions.
    Churn,
    /// Relayed pairs that stand and say nothing.
    Idle,
    /// Control links that stand and say nothing; to others TLS connections that do the same.
    Links,
    /// One interactive connection beside bulk ones.
    Mixed,
}

impl What {
    const fn scenario(self, bytes: usize, direction: Direction) -> Scenario {
        match self {
            Self::Throughput => Scenario::Throughput { direction },
            Self::Pingpong => Scenario::Pingpong { bytes, direction },
            Self::Churn => Scenario::Churn,
            Self::Idle => Scenario::Idle,
            Self::Links => Scenario::Links,
            Self::Mixed => Scenario::Mixed { direction },
        }
    }

    /// One for each direction that is asked for, or that users see; one where there is none.
    fn scenarios(self, bytes: usize, asked: &[Towards]) -> Result<Vec<Scenario>> {
        let directed = self.scenario(bytes, Direction::Up).direction().is_some();
        ensure!(directed || asked.is_empty(), "this has no --direction: it goes both ways, or none");
        let directions = match (asked, self) {
            ([], Self::Pingpong | Self::Mixed) => vec![Direction::Up, Direction::Down],
            ([], _) => vec![Direction::Up],
            (asked, _) => asked.iter().map(|towards| towards.direction()).collect(),
        };
        Ok(directions.into_iter().map(|direction| self.scenario(bytes, direction)).collect())
    }

    /// How payload travels unless said otherwise: as users get it, but where bytes are all that is measured.
    const fn framing(self) -> Framing {
        match self {
            Self::Pingpong | Self::Churn | Self::Mixed => Framing::Framed,
            Self::Throughput | Self::Idle | Self::Links => Framing::Raw,
        }
    }

    /// Unless said otherwise.
    fn connections(self) -> Vec<usize> {
        match self {
            Self::Throughput => vec![1, 8, 64],
            Self::Pingpong => vec![64],
            Self::Churn => vec![16],
            // What one user gets of 20,000 descriptors: see docs/configuration.md "Descriptors".
            Self::Idle => vec![6_000],
            Self::Links => vec![10_000],
            Self::Mixed => vec![8],
        }
    }

    /// Whom our gateway is held against unless said otherwise.
    fn rivals(self, transport: Transport) -> &'static [&'static str] {
        match self {
            Self::Throughput if transport.tls || !transport.raw => &["haproxy", "haproxy-256k"],
            Self::Throughput => &["haproxy", "haproxy-splice"],
            _ => &["haproxy"],
        }
    }
}

/// Which way bytes go.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Towards {
    /// From client to target.
    Up,
    /// From target to client.
    Down,
}

impl Towards {
    const fn direction(self) -> Direction {
        match self {
            Self::Up => Direction::Up,
            Self::Down => Direction::Down,
        }
    }
}

/// How long, and how often.
#[derive(Args)]
struct Measure {
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Seconds of traffic before each.
    #[arg(long, default_value_t = 0.5)]
    warmup: f64,
    /// Measurements of each; the median counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Let what is started here go before everybody else's processes (needs root): for a machine that is not
    /// yours alone. Others are slowed down meanwhile.
    #[arg(long)]
    urgent: bool,
    /// Bytes of a message (pingpong).
    #[arg(long, default_value_t = 1)]
    bytes: usize,
    /// Which way bytes go (of pingpong: who calls; of mixed: the bulk), one table each. Unless said otherwise pingpong
    /// and mixed are measured both ways, throughput up.
    #[arg(long, value_enum, value_delimiter = ',')]
    direction: Vec<Towards>,
}

impl Measure {
    fn urgency(&self) -> Result<Option<Urgency>> {
        self.urgent.then(Urgency::take).transpose()
    }

    fn conditions(&self, cores: Vec<usize>) -> Result<Conditions> {
        ensure!(self.rounds > 0 && self.bytes > 0, "at least one round, and one byte");
        let warmup = Duration::try_from_secs_f64(self.warmup)?;
        let window = Duration::try_from_secs_f64(self.seconds)?;
        ensure!(!window.is_zero(), "a measurement takes time");
        let program = std::env::current_exe()?;
        Ok(Conditions { program, warmup, window, cores, urgent: self.urgent })
    }
}

#[derive(Args)]
pub(crate) struct Alone {
    /// Where the forwarder listens: we connect there.
    #[arg(long, requires = "target", conflicts_with = "agent")]
    listen: Vec<SocketAddr>,
    /// Where the forwarder connects to: we listen there.
    #[arg(long, requires = "listen")]
    target: Vec<SocketAddr>,
    /// Speak TLS to the forwarder; this PEM file signed its certificate.
    #[arg(long, requires = "listen")]
    ca_file: Option<PathBuf>,
    /// The name in the forwarder's certificate.
    #[arg(long, default_value = DOMAIN)]
    name: String,
    /// Expect TLS of the forwarder; certificates and key of ours.
    #[arg(long, requires = "listen")]
    cert_file: Option<PathBuf>,
    /// Instead of a forwarder: a Narrowlink gateway, as the agent of this agent.yaml (one for each load
    /// process) ..
    #[arg(long, requires = "client")]
    agent: Vec<PathBuf>,
    /// .. and the client of this client.yaml; protocol and framing are theirs.
    #[arg(long, requires = "agent")]
    client: Option<PathBuf>,
    /// The process under test, for its CPU time and memory.
    #[arg(long)]
    pid: Option<i32>,
    /// How many connections (of churn: at a time; of mixed: bulk ones).
    #[arg(long)]
    connections: Option<usize>,
    /// The cores that the load runs on: as in 1,2.
    #[arg(long, value_delimiter = ',')]
    pin: Vec<usize>,
    #[command(flatten)]
    measure: Measure,
}

impl Alone {
    fn run(self, what: What) -> Result<()> {
        let towards = self.measure.direction.first().map_or(Direction::Up, |towards| towards.direction());
        ensure!(self.measure.direction.len() <= 1, "one --direction at a time");
        what.scenarios(self.measure.bytes, &self.measure.direction)?;
        let scenario = what.scenario(self.measure.bytes, towards);
        let connections = self.connections.unwrap_or_else(|| what.connections()[0]).max(1);
        let ways = self.ways(scenario.parts(connections).len())?;
        let subject = Subject::foreign("it", self.pid, ways);
        let conditions = self.measure.conditions(self.pin)?;
        let _urgency = self.measure.urgency()?;
        let all = alone(&subject, scenario, connections, self.measure.rounds, &conditions)?;
        println!("{all}");
        Ok(())
    }

    fn ways(&self, parts: usize) -> Result<Vec<Way>> {
        if let Some(client) = &self.client {
            ensure!(self.agent.len() == parts, "this takes {parts} of --agent: one for each load process");
            let way = |agent: &PathBuf| Way::Tunnel { agent: agent.clone(), client: client.clone() };
            return Ok(self.agent.iter().map(way).collect());
        }
        if self.listen.len() != parts || self.target.len() != parts {
            bail!("this takes {parts} of --listen and --target: one for each load process");
        }
        let near_tls = self
            .ca_file
            .as_ref()
            .map(|ca_file| NearTls { ca_file: ca_file.clone(), name: self.name.clone() });
        let far_tls = self.cert_file.as_ref().map(|cert_file| FarTls { cert_file: cert_file.clone() });
        let way = |(&listen, &target)| Way::Forwarder {
            listen,
            target,
            near_tls: near_tls.clone(),
            far_tls: far_tls.clone(),
        };
        Ok(self.listen.iter().zip(&self.target).map(way).collect())
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Protocol {
    Ws,
    Wss,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Framing {
    Raw,
    Framed,
}

#[derive(Args)]
pub(crate) struct Compare {
    /// What is measured.
    #[arg(value_enum)]
    what: What,
    /// What is held against the others: gateway, gateway-2 (two workers), gateway=PROGRAM.
    #[arg(long, default_value = "gateway")]
    subject: Spec,
    /// Against what: haproxy, haproxy-splice, haproxy-256k, nginx, rathole, direct (nothing in between: what
    /// the load can do), or a gateway; none with "".
    #[arg(long, value_delimiter = ',')]
    against: Option<Vec<String>>,
    /// Of the gateway; with wss the others end TLS and begin it anew.
    #[arg(long, value_enum, default_value = "ws")]
    transport: Protocol,
    /// Of the gateway: framed, which users get, for pingpong, mixed and churn; raw otherwise.
    #[arg(long, value_enum)]
    framing: Option<Framing>,
    /// Congestion controls, one after the other: as in reno,bbr. Unless said otherwise cubic, or reno where the kernel
    /// has no cubic; without a network namespace of our own (which needs root) the host's.
    #[arg(long, value_delimiter = ',')]
    congestion: Vec<String>,
    /// How many connections (of churn: at a time; of mixed: bulk ones), one table each.
    #[arg(long, value_delimiter = ',')]
    connections: Option<Vec<usize>>,
    /// Run what is measured as nobody (needs root).
    #[arg(long)]
    unprivileged: bool,
    /// The core of what is measured; the load runs on the others.
    #[arg(long, default_value_t = 0)]
    core: usize,
    /// Let everything run anywhere.
    #[arg(long)]
    no_pin: bool,
    #[command(flatten)]
    measure: Measure,
}

impl Compare {
    fn run(self) -> Result<()> {
        let raw = self.framing.unwrap_or(self.what.framing()) == Framing::Raw;
        let tls = self.transport == Protocol::Wss || self.what == What::Links;
        let transport = Transport { tls, raw };
        ensure!(self.what != What::Churn || !raw, "warm connections are framed");
        let scenarios = self.what.scenarios(self.measure.bytes, &self.measure.direction)?;
        let subjects = self.subjects(transport)?;
        let connections = self.connections.clone().unwrap_or_else(|| self.what.connections());
        ensure!(connections.iter().all(|count| *count > 0), "at least one connection");
        let most = connections.iter().copied().max().unwrap_or(1);
        let setup = Setup {
            transport,
            connections: most,
            ways: scenarios.iter().map(|scenario| scenario.parts(most).len()).max().unwrap_or(1),
            unprivileged: self.unprivileged,
            front_only: self.what == What::Links,
            core: (!self.no_pin).then_some(self.core),
            urgent: self.measure.urgent,
        };
        let cores = if self.no_pin { Vec::new() } else { other_cores(self.core)? };
        let conditions = self.measure.conditions(cores)?;
        let rounds = self.measure.rounds;
        // Before anything is started, so that everything goes along.
        let network = Network::enter()?;
        let congestions = network.choose(&self.congestion)?;
        let _urgency = self.measure.urgency()?;
        let comparison = Comparison { scenarios, subjects, setup, connections, rounds, network, congestions };
        println!("{}", comparison.run(&conditions)?);
        Ok(())
    }

    fn subjects(&self, transport: Transport) -> Result<Vec<Spec>> {
        let rivals: Vec<&str> = match &self.against {
            Some(names) => names.iter().map(String::as_str).filter(|name| !name.is_empty()).collect(),
            None => self.what.rivals(transport).to_vec(),
        };
        let rivals = rivals.into_iter().map(str::parse);
        [Ok(self.subject.clone())].into_iter().chain(rivals).collect()
    }
}

/// The cores that this process may use, but for one.
fn other_cores(core: usize) -> Result<Vec<usize>> {
    let allowed = sched_getaffinity(None)?;
    let others: Vec<_> = (0..CpuSet::MAX_CPU).filter(|&n| n != core && allowed.is_set(n)).collect();
    ensure!(allowed.is_set(core), "core {core} is not ours to use: see --core");
    ensure!(!others.is_empty(), "there is one core only: --no-pin measures on it, for what that is worth");
    Ok(others)
}
