//! Role: `narrowlink-loadtest`: measures a forwarder, forwarders against each other, and the whole chain
//! against the same thing without it.
//! Invariants: what is compared runs in the same run, alternating, several rounds, median · what is started
//! here stays on loopback.

mod args;

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, Subcommand};
use hdrhistogram::Histogram;
use narrowlink_loadtest::{lab::Lab, load::hand, site::Transport};

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
    },
    /// New connections through a warm tunnel: connect to first byte of the answer.
    Open {
        /// How many, one after the other.
        #[arg(long, default_value_t = 2000)]
        count: usize,
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

fn run() -> Result<()> {
    tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(std::io::stderr).init();
    narrowlink_dataplane::process::prepare();
    narrowlink_dataplane::tls::install_crypto();
    match Args::parse().what {
        What::Load(load) => load.run(),
        What::Hand => hand::main(),
        What::Chain { rounds, seconds } => chain(rounds.max(1), seconds.max(1)),
        What::Open { count } => open(count.max(1)),
    }
}

/// An iperf3 server of ours, ended with us.
struct Iperf(Child);

impl Drop for Iperf {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn chain(rounds: usize, seconds: u32) -> Result<()> {
    let server = free_addr()?;
    let (ip, port) = (server.ip().to_string(), server.port().to_string());
    let mut command = Command::new("iperf3");
    command.args(["-s", "-B", &ip, "-p", &port]).stdout(Stdio::null());
    let _server = Iperf(command.spawn().context("iperf3 is not installed: apt-get install iperf3")?);
    std::thread::sleep(Duration::from_millis(300));
    let lab = Lab::start(1)?;
    let mut paths = vec![("direct".to_owned(), server)];
    let mut running = Vec::new();
    for transport in Transport::ALL {
        let name = transport.to_string().replace(' ', "-");
        let agent = lab.agent(&name, transport)?;
        let forward = lab.forward(&name, server, transport)?;
        paths.push((transport.to_string(), forward.local_addr));
        running.push((agent, forward));
    }
    let mut seen = vec![Vec::new(); paths.len()];
    for round in 0..rounds {
        for ((name, addr), seen) in paths.iter().zip(&mut seen) {
            let rate = iperf(*addr, seconds)?;
            eprintln!("round {} of {rounds}: {name}: {rate:.2} GB/s", round + 1);
            seen.push(rate);
        }
    }
    let medians: Vec<f64> = seen.iter_mut().map(|rates| median(rates)).collect();
    println!("{:<12} {:>8} {:>8}", "path", "GB/s", "ratio");
    for ((name, _), rate) in paths.iter().zip(&medians) {
        println!("{name:<12} {rate:>8.2} {:>8.2}", rate / medians[0]);
    }
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn free_addr() -> Result<SocketAddr> {
    Ok(TcpListener::bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0))?.local_addr()?)
}

/// Received GB/s of one iperf3 run.
fn iperf(addr: SocketAddr, seconds: u32) -> Result<f64> {
    let output = Command::new("iperf3")
        .args([
            "-c",
            &addr.ip().to_string(),
            "-p",
            &addr.port().to_string(),
            "-J",
            "-t",
            &seconds.to_string(),
        ])
        .output()?;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    if let Some(error) = report.get("error") {
        bail!("iperf3 through {addr}: {error}");
    }
    let bits =
        report["end"]["sum_received"]["bits_per_second"].as_f64().context("no rate in iperf3's report")?;
    Ok(bits / 8e9)
}

fn open(count: usize) -> Result<()> {
    let echo = echo()?;
    let lab = Lab::start(1)?;
    println!("{:<12} {:>8} {:>8} {:>8}", "path", "p50 ms", "p99 ms", "max ms");
    report("direct", echo, count)?;
    for transport in Transport::ALL {
        let name = transport.to_string().replace(' ', "-");
        let _agent = lab.agent(&name, transport)?;
        let forward = lab.forward(&name, echo, transport)?;
        report(&transport.to_string(), forward.local_addr, count)?;
    }
    Ok(())
}

fn report(name: &str, addr: SocketAddr, count: usize) -> Result<()> {
    let mut times = Histogram::<u64>::new(3)?;
    for n in 0..count + 20 {
        let started = Instant::now();
        let mut stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"x")?;
        let mut byte = [0; 1];
        stream.read_exact(&mut byte)?;
        // The first few warm the tunnel up.
        if n >= 20 {
            times.record(u64::try_from(started.elapsed().as_micros())?)?;
        }
        stream.shutdown(std::net::Shutdown::Write)?;
        ensure!(stream.read(&mut byte)? == 0, "a byte more than was sent");
    }
    let at = |quantile| times.value_at_quantile(quantile) as f64 / 1e3;
    println!("{name:<12} {:>8.2} {:>8.2} {:>8.2}", at(0.5), at(0.99), at(1.0));
    Ok(())
}

fn echo() -> Result<SocketAddr> {
    let listener = TcpListener::bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0))?;
    let addr = listener.local_addr()?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let _ = stream.set_nodelay(true);
                let mut byte = [0; 1];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
            });
        }
    });
    Ok(addr)
}
