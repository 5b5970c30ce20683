//! Role: redis-benchmark against a redis-server of our own.
//! Invariants: every request arrives and is answered, by the server's own count.

use std::{net::SocketAddr, process::Command, time::Duration};

use tempfile::TempDir;

use crate::kit::{
    PATIENCE, net,
    process::{Running, foreign, run},
    site::{Transport, Tunnel},
};

const REQUESTS: u64 = 5_000;

struct Redis {
    _running: Running,
    addr: SocketAddr,
    _dir: TempDir,
}

impl Redis {
    fn start() -> Self {
        let dir = TempDir::with_prefix("narrowlink-redis-").expect("a temporary directory can be made");
        let addr = net::free_addr();
        let mut command = Command::new(foreign("redis-server", "redis-server"));
        command.args(["--bind", &addr.ip().to_string(), "--port", &addr.port().to_string()]);
        command.args(["--save", "", "--appendonly", "no", "--daemonize", "no", "--dir"]).arg(dir.path());
        let mut running = Running::start("redis-server", dir.path(), command, None);
        running.wait_for("redis-server's PONG", PATIENCE, || {
            (cli(addr, &["ping"]).trim() == "PONG").then_some(())
        });
        Self { _running: running, addr, _dir: dir }
    }

    /// How often the server has run `command`.
    fn calls(&self, command: &str) -> u64 {
        let stats = cli(self.addr, &["info", "commandstats"]);
        let calls = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        calls.and_then(|rest| rest.split(',').next()?.parse().ok()).unwrap_or(0)
    }
}

fn cli(addr: SocketAddr, words: &[&str]) -> String {
    let mut command = Command::new(foreign("redis-cli", "redis-tools"));
    command.args(["-h", &addr.ip().to_string(), "-p", &addr.port().to_string()]).args(words);
    let finished = run(command, b"", PATIENCE);
    String::from_utf8_lossy(&finished.stdout).into_owned()
}

fn benchmark(addr: SocketAddr, more: &[&str]) {
    let mut command = Command::new(foreign("redis-benchmark", "redis-tools"));
    command.args(["-h", &addr.ip().to_string(), "-p", &addr.port().to_string()]);
    command.args(["-n", &REQUESTS.to_string(), "-c", "20", "-t", "set,get", "--csv"]).args(more);
    let printed = run(command, b"", Duration::from_secs(120)).succeeded_with_text();
    for name in ["SET", "GET"] {
        let done = printed.lines().any(|line| line.starts_with(&format!("\"{name}\",\"")));
        assert!(done, "redis-benchmark has no line for {name}:\n{printed}");
    }
}

fn check(redis: &Redis, addr: SocketAddr) {
    benchmark(addr, &[]);
    assert_eq!((redis.calls("set"), redis.calls("get")), (REQUESTS, REQUESTS));
    // Sixteen at a time, with values that fill more than one segment.
    benchmark(addr, &["-P", "16", "-d", "3000"]);
    assert!(redis.calls("set") >= 2 * REQUESTS && redis.calls("get") >= 2 * REQUESTS);
}

fn redis_benchmark_loses_no_request(transport: Transport) {
    let (redis, tunnel) = (Redis::start(), Tunnel::start(transport));
    let forward = tunnel.forward(redis.addr);
    check(&redis, forward.local);
}

over_ws_and_wss!(redis_benchmark_loses_no_request);

/// What fails here is the machine's redis, not the tunnel.
#[test]
fn redis_itself_answers_without_a_tunnel() {
    let redis = Redis::start();
    check(&redis, redis.addr);
}
