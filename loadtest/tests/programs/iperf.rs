//! Role: iperf3 in all its shapes.
//! Invariants: no run reports an error, and bytes arrive in every direction that it measures.
//! See: iperf3(1).

use std::{net::SocketAddr, process::Command, time::Duration};

use tempfile::TempDir;

use crate::kit::{
    PATIENCE, conditions, net,
    process::{Running, foreign, run},
    site::{Transport, Tunnel},
};

const PACKAGE: &str = "iperf3";

/// The options of each shape, and where its JSON counts the bytes that arrived.
const SHAPES: [(&[&str], &[&str]); 4] = [
    (&[], &["sum_received"]),
    (&["-R"], &["sum_received"]),
    (&["-P", "8"], &["sum_received"]),
    (&["--bidir"], &["sum_received", "sum_received_bidir_reverse"]),
];

/// How long a run lasts; the later ones are for a machine so busy that nothing came through in the first.
const SECONDS: [u32; 3] = [2, 8, 20];

/// A server for one run. After each it takes its listener down and makes a new one, so that whoever came in between
/// would be refused.
struct Server {
    _running: Running,
    _dir: TempDir,
}

impl Server {
    fn start(addr: SocketAddr) -> Self {
        let dir = TempDir::with_prefix("narrowlink-iperf-").expect("a temporary directory can be made");
        let mut command = Command::new(foreign("iperf3", PACKAGE));
        command.args(["--server", "--forceflush", "--bind", &addr.ip().to_string()]);
        command.args(["--port", &addr.port().to_string()]);
        let mut running = Running::start("iperf3", dir.path(), command, None);
        // A connection made only to look would count as a test of its own: ask the kernel instead.
        running.wait_for("iperf3's listener", PATIENCE, || listens(addr).then_some(()));
        Self { _running: running, _dir: dir }
    }
}

/// Whether somebody listens at `addr`, by the kernel's own table.
fn listens(addr: SocketAddr) -> bool {
    let mut command = Command::new(foreign("ss", "iproute2"));
    command.args(["-Hltn", "src", &addr.to_string()]);
    !run(command, b"", PATIENCE).succeeded().is_empty()
}

fn measure(addr: SocketAddr, options: &[&str], seconds: u32) -> serde_json::Value {
    let mut command = Command::new(foreign("iperf3", PACKAGE));
    command.args(["--client", &addr.ip().to_string(), "--port", &addr.port().to_string()]);
    command.args(["--json", "--time", &seconds.to_string()]).args(options);
    let finished = run(command, b"", Duration::from_secs(60));
    let text = String::from_utf8_lossy(&finished.stdout).into_owned();
    let report: serde_json::Value =
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("iperf3 {options:?}: {e}\n{text}"));
    assert!(report.get("error").is_none(), "iperf3 {options:?}: {}", report["error"]);
    assert!(finished.status.success(), "iperf3 {options:?}: {}", finished.status);
    report
}

/// Measures each shape of what `through` leads to, which is `server`.
fn check(server: SocketAddr, through: SocketAddr) {
    for (options, sums) in SHAPES {
        let reports = SECONDS.iter().map(|seconds| {
            let _server = Server::start(server);
            let report = measure(through, options, *seconds);
            println!("iperf3 {options:?}: {seconds} s");
            report
        });
        let mut last = serde_json::Value::Null;
        let whole = reports.inspect(|report| last = report["end"].clone()).find(|report| {
            sums.iter().all(|sum| report["end"][sum]["bytes"].as_u64().is_some_and(|bytes| bytes > 0))
        });
        let report = whole.unwrap_or_else(|| {
            panic!("iperf3 {options:?}: nothing arrived in one of {sums:?}\n{last}{}", conditions::trouble())
        });
        for sum in sums {
            let bytes = &report["end"][sum]["bytes"];
            let rate = report["end"][sum]["bits_per_second"].as_f64().unwrap_or(0.0) / 8e6;
            println!("iperf3 {options:?} {sum}: {bytes} bytes, {rate:.0} MB/s");
        }
    }
}

fn iperf3_measures_every_shape(transport: Transport) {
    let (server, tunnel) = (net::free_addr(), Tunnel::start(transport));
    let forward = tunnel.forward(server);
    check(server, forward.local);
}

over_ws_and_wss!(iperf3_measures_every_shape);

/// What fails here is the machine's iperf3, not the tunnel.
#[test]
fn iperf3_itself_measures_without_a_tunnel() {
    let server = net::free_addr();
    check(server, server);
}
