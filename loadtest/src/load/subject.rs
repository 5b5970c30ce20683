//! Role: what is measured: a process that forwards, started here or by somebody else, and the way through it.
//! Invariants: what was started here ends with its `Subject`, by its pid · every file of it lies in a
//! directory of its own, gone with it · ports are the kernel's choice.

#[cfg(test)]
mod fixture;
mod gateway;
mod haproxy;
mod nginx;
mod rathole;
mod running;

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context as _, Error, Result, bail};
use rustix::thread::{CpuSet, sched_getaffinity};

use self::running::Running;
pub use self::running::spawn_on;
use super::{
    plan::{FarTls, NearTls, Way},
    sample::{Softirq, family},
};
use crate::site::{DOMAIN, Site, Transport};

/// Targets have an address of their own, so that no port of a client's connection can be theirs.
const TARGETS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// A forwarder that can be started here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Ours.
    Gateway {
        /// The program; `None` is the one beside this program.
        program: Option<PathBuf>,
        /// Its workers.
        workers: usize,
    },
    /// HAProxy, mode tcp.
    Haproxy(haproxy::Flavour),
    /// nginx's stream module.
    Nginx,
    /// rathole, server and client.
    Rathole,
    /// Nothing in between: what the load alone can do.
    Direct,
}

/// A forwarder's name, as it is written and printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// What it is.
    pub kind: Kind,
    /// As it was written.
    pub name: String,
}

impl FromStr for Spec {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let gateway = |program, workers| Kind::Gateway { program, workers };
        let kind = match name {
            "gateway" => gateway(None, 1),
            "gateway-2" => gateway(None, 2),
            "haproxy" => Kind::Haproxy(haproxy::Flavour::Plain),
            "haproxy-splice" => Kind::Haproxy(haproxy::Flavour::Splice),
            "haproxy-256k" => Kind::Haproxy(haproxy::Flavour::LargeBuffers),
            "nginx" => Kind::Nginx,
            "rathole" => Kind::Rathole,
            "direct" => Kind::Direct,
            _ => match name.split_once('=') {
                Some(("gateway", program)) => gateway(Some(program.into()), 1),
                Some(("gateway-2", program)) => gateway(Some(program.into()), 2),
                _ => bail!(
                    "one of gateway, gateway-2 (two workers), gateway=PROGRAM, haproxy, haproxy-splice, \
                     haproxy-256k, nginx, rathole, direct (nothing in between)"
                ),
            },
        };
        Ok(Self { kind, name: name.to_owned() })
    }
}

/// What a subject is to be ready for.
#[derive(Debug, Clone)]
pub struct Setup {
    /// TLS on both sides, and how our gateway's payload travels.
    pub transport: Transport,
    /// Connections at the most.
    pub connections: usize,
    /// Load processes: each has a way of its own.
    pub ways: usize,
    /// Run as nobody.
    pub unprivileged: bool,
    /// Nobody is behind it: a web server's place, not a forwarder's.
    pub front_only: bool,
    /// The core that it runs on; with two workers the next one too.
    pub core: Option<usize>,
    /// Before everybody else's processes.
    pub urgent: bool,
}

impl Setup {
    fn cores(&self, workers: usize) -> Vec<usize> {
        self.core.map(|core| (core..core + workers).collect()).unwrap_or_default()
    }

    /// Those that it does not run on; none if it runs anywhere.
    fn other_cores(&self, workers: usize) -> Result<Vec<usize>> {
        let cores = self.cores(workers);
        if cores.is_empty() {
            return Ok(cores);
        }
        let allowed = sched_getaffinity(None)?;
        Ok((0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core) && !cores.contains(core)).collect())
    }
}

/// A process that forwards.
pub struct Subject {
    /// For tables.
    pub name: String,
    /// What is charged for the kernel's work.
    pub softirqs: Vec<Softirq>,
    process: Process,
    ways: Ways,
    /// The files of one without a process.
    _dir: Option<tempfile::TempDir>,
}

enum Process {
    Started(Running),
    Foreign(Option<i32>),
}

enum Ways {
    Fixed(Vec<Way>),
    Gateway(Box<gateway::Entry>),
}

impl Subject {
    /// Starts one.
    ///
    /// # Errors
    /// It is not installed, or it does not start.
    pub fn start(spec: &Spec, setup: &Setup) -> Result<Self> {
        let started = match &spec.kind {
            Kind::Gateway { program, workers } => gateway::start(program.as_deref(), *workers, setup),
            Kind::Haproxy(flavour) => haproxy::start(*flavour, setup),
            Kind::Nginx => nginx::start(setup),
            Kind::Rathole => rathole::start(setup),
            Kind::Direct => return Self::direct(&spec.name, setup),
        };
        let (running, ways) = started.with_context(|| spec.name.clone())?;
        let workers = if let Kind::Gateway { workers, .. } = spec.kind { workers } else { 1 };
        let softirqs = Softirq::find(&setup.cores(workers));
        Ok(Self { name: spec.name.clone(), softirqs, process: Process::Started(running), ways, _dir: None })
    }

    fn direct(name: &str, setup: &Setup) -> Result<Self> {
        let (dir, _site) = directory()?;
        let mut ways = forwarder_ways(dir.path(), setup)?;
        for way in &mut ways {
            if let Way::Forwarder { listen, target, .. } = way {
                *listen = *target;
            }
        }
        Ok(Self { _dir: Some(dir), ..Self::foreign(name, None, ways) })
    }

    /// One that somebody else started; without `pid` its cost can't be seen.
    pub fn foreign(name: &str, pid: Option<i32>, ways: Vec<Way>) -> Self {
        let softirqs = Softirq::find(&pid.map(only_core).unwrap_or_default());
        let process = Process::Foreign(pid);
        Self { name: name.to_owned(), softirqs, process, ways: Ways::Fixed(ways), _dir: None }
    }

    /// Its processes; none when they are not known.
    pub fn pids(&self) -> Vec<i32> {
        match &self.process {
            Process::Started(running) => running.pids(),
            Process::Foreign(pid) => pid.map(family).unwrap_or_default(),
        }
    }

    /// The way through it for the nth load process of a round.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn way(&self, n: usize) -> Result<Way> {
        match &self.ways {
            Ways::Fixed(ways) => ways.get(n).cloned().context("more load processes than ways"),
            Ways::Gateway(entry) => entry.way(),
        }
    }
}

/// The core of a process that was pinned to one.
fn only_core(pid: i32) -> Vec<usize> {
    let mask = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let list = mask.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    list.and_then(|list| list.trim().parse().ok()).into_iter().collect()
}

fn directory() -> Result<(tempfile::TempDir, Site)> {
    let dir = tempfile::Builder::new().prefix("narrowlink-load-").tempdir()?;
    let site = Site::create(dir.path())?;
    Ok((dir, site))
}

/// A program of the system, or the command that installs it.
fn installed(name: &str, install: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.find_map(|dir| Some(dir.join(name)).filter(|path| path.is_file()))
        .with_context(|| format!("{name} is not installed: {install}"))
}

/// Ports that nobody has.
#[derive(Default)]
struct Free {
    /// Until all are chosen, so that none is chosen twice.
    held: Vec<TcpListener>,
}

impl Free {
    fn port(&mut self, ip: IpAddr) -> std::io::Result<SocketAddr> {
        let listener = TcpListener::bind(SocketAddr::new(ip, 0))?;
        let addr = listener.local_addr();
        self.held.push(listener);
        addr
    }
}

/// Addresses for a forwarder that can't choose its own, one way for each load process.
fn forwarder_ways(dir: &Path, setup: &Setup) -> Result<Vec<Way>> {
    let (near, far) = (setup.transport.tls, setup.transport.tls && !setup.front_only);
    let mut free = Free::default();
    let ways = (0..setup.ways).map(|_| {
        Ok(Way::Forwarder {
            listen: free.port(IpAddr::V4(Ipv4Addr::LOCALHOST))?,
            target: free.port(TARGETS)?,
            near_tls: near.then(|| NearTls { ca_file: dir.join("ca.pem"), name: DOMAIN.to_owned() }),
            far_tls: far.then(|| FarTls { cert_file: dir.join("gateway.pem") }),
        })
    });
    ways.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_named_as_they_are_written() {
        for name in [
            "gateway",
            "gateway-2",
            "haproxy",
            "haproxy-splice",
            "haproxy-256k",
            "nginx",
            "rathole",
            "direct",
        ] {
            assert_eq!(name.parse::<Spec>().unwrap().name, name);
        }
        let other = "gateway=/opt/old/narrowlink-gateway".parse::<Spec>().unwrap();
        let program = Some(PathBuf::from("/opt/old/narrowlink-gateway"));
        assert_eq!(other.kind, Kind::Gateway { program, workers: 1 });
        assert!("tinyproxy".parse::<Spec>().unwrap_err().to_string().contains("haproxy-splice"));
    }

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let error = installed("no-such-forwarder", "apt-get install such-a-package").unwrap_err().to_string();
        assert_eq!(error, "no-such-forwarder is not installed: apt-get install such-a-package");
    }
}
