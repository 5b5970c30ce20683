//! Role: one stream through the whole chain, by iperf3, against the same without it.
//! Invariants: what is compared runs in the same run, alternating, several rounds, median.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use narrowlink_loadtest::{lab::Lab, site::Transport};

/// How long iperf3 may take to listen.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(10);

/// An iperf3 server of ours for one run, ended with it. After a run it takes its listener down and makes a new one,
/// so that whoever came in between would be refused.
struct Iperf(Child);

impl Iperf {
    fn start(addr: SocketAddr) -> Result<Self> {
        let mut command = Command::new("iperf3");
        command
            .args(["-s", "-B", &addr.ip().to_string(), "-p", &addr.port().to_string()])
            .stdout(Stdio::null());
        let mut this = Self(command.spawn().context("iperf3 is not installed: apt-get install iperf3")?);
        let deadline = Instant::now() + LISTEN_TIMEOUT;
        while !listens(addr.port())? {
            if let Some(status) = this.0.try_wait()? {
                bail!("iperf3 -s ended ({status})");
            }
            ensure!(Instant::now() < deadline, "iperf3 -s does not listen at {addr}");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(this)
    }
}

impl Drop for Iperf {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Measures each transport against a direct connection.
pub(crate) fn chain(rounds: usize, seconds: u32) -> Result<()> {
    let server = free_addr()?;
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
            let _server = Iperf::start(server)?;
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

/// Whether somebody listens on this port, by the kernel's own table: a connection made to look would be a run.
fn listens(port: u16) -> Result<bool> {
    let table = std::fs::read_to_string("/proc/net/tcp")?;
    let local = format!(":{port:04X}");
    // sl, local address, remote address, state: 0A is LISTEN.
    Ok(table.lines().any(|line| {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        matches!(fields[..], [_, addr, _, "0A", ..] if addr.ends_with(&local))
    }))
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
