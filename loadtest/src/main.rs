//! Role: `narrowlink-loadtest`: measures a forwarder, forwarders against each other, and the whole chain
//! against the same thing without it.
//! Invariants: what is compared runs in the same run, alternating, several rounds, median · what is started
//! here stays on loopback.

mod args;
mod chain;
mod open;

use std::{net::SocketAddr, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};
use narrowlink_loadtest::load::{hand, network::Network};
use open::Speaks;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures TCP forwarders: Narrowlink, others, and one against the other in one run.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// One stream through client, gateway and agent, against direct iperf3 (which must be installed).
    Chain {
        /// Rounds; the median counts.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Seconds of each measurement.
        #[arg(long, default_value_t = 3)]
        seconds: u32,
        /// The congestion control: cubic, or reno, unless said otherwise; as not root the host's.
        #[arg(long)]
        congestion: Option<String>,
    },
    /// New connections through a warm tunnel: connect to first byte of the answer.
    Open {
        /// How many, one after the other.
        #[arg(long, default_value_t = 2000)]
        count: usize,
        /// Measure this address, whatever forwards there, instead of a whole chain on loopback.
        #[arg(long)]
        connect: Option<SocketAddr>,
        /// Its target speaks first, as SSH and SMTP do: send nothing.
        #[arg(long, requires = "connect")]
        server_first: bool,
        /// Its target answers: send one byte at once (the default).
        #[arg(long, requires = "connect", conflicts_with = "server_first")]
        client_first: bool,
        /// The congestion control of a chain on loopback: cubic, or reno, unless said otherwise; as not root the host's.
        #[arg(long, conflicts_with = "connect")]
        congestion: Option<String>,
    },
    #[command(flatten)]
    Load(Box<args::Load>),
    /// One load process, told by its standard input what to do.
    #[command(name = "load", hide = true)]
    Hand,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("narrowlink-loadtest: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Goes where a chain on loopback is measured, before any of it is started, and says where that is.
fn enter(congestion: Option<String>) -> Result<()> {
    let network = Network::enter()?;
    for congestion in network.choose(congestion.as_slice())? {
        network.set(&congestion)?;
        println!("{congestion} {network}");
    }
    Ok(())
}

fn run() -> Result<()> {
    tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(std::io::stderr).init();
    narrowlink_dataplane::run::process::prepare();
    narrowlink_dataplane::tls::install_crypto();
    match Args::parse().what {
        What::Load(load) => load.run(),
        What::Hand => hand::main(),
        What::Chain { rounds, seconds, congestion } => {
            enter(congestion)?;
            chain::chain(rounds.max(1), seconds.max(1))
        }
        What::Open { count, connect: None, congestion, .. } => {
            enter(congestion)?;
            open::open(count.max(1))
        }
        What::Open { count, connect: Some(addr), server_first, .. } => {
            let speaks = if server_first { Speaks::Server } else { Speaks::Client };
            open::open_at(addr, speaks, count.max(1))
        }
    }
}
