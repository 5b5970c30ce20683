//! Role: psql and pgbench against a PostgreSQL cluster of our own.
//! Invariants: a large answer is whole, and no transaction fails.

use std::{
    net::SocketAddr,
    os::unix::{fs::chown, process::CommandExt as _},
    process::Command,
    time::Duration,
};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::kit::{
    PATIENCE, net,
    process::{Running, foreign, run},
    site::{Transport, Tunnel},
};

const PACKAGES: &str = "postgresql postgresql-contrib";

struct Postgres {
    _running: Running,
    addr: SocketAddr,
    _dir: TempDir,
}

impl Postgres {
    fn start() -> Self {
        let dir = TempDir::with_prefix("narrowlink-postgres-").expect("a temporary directory can be made");
        let owner = Owner::of_this_machine();
        let data = dir.path().join("data");
        owner.takes(dir.path());

        let mut initdb = owner.command("initdb");
        initdb.args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-locale", "--no-sync", "-D"]);
        initdb.arg(&data);
        run(initdb, b"", Duration::from_secs(120)).succeeded();

        let addr = net::free_addr();
        let mut postgres = owner.command("postgres");
        postgres.arg("-D").arg(&data).args(["-h", &addr.ip().to_string()]);
        postgres.args(["-p", &addr.port().to_string(), "-c", "fsync=off", "-c", "unix_socket_directories="]);
        // Its immediate shutdown; a killed one leaves shared memory behind.
        let running = Running::start("postgres", dir.path(), postgres, None);
        let mut running = running.ended_by(Signal::QUIT);
        running.wait_for("postgres's first answer", PATIENCE, || {
            let mut psql = psql(addr, "select 1");
            psql.env("PGCONNECT_TIMEOUT", "5");
            run(psql, b"", PATIENCE).status.success().then_some(())
        });
        Self { _running: running, addr, _dir: dir }
    }
}

/// Who runs the server: PostgreSQL refuses to run as root, so root lends it to the user `postgres`.
struct Owner(Option<(u32, u32)>);

impl Owner {
    fn of_this_machine() -> Self {
        if !rustix::process::geteuid().is_root() {
            return Self(None);
        }
        let id = |option: &str| {
            let mut id = Command::new(foreign("id", "coreutils"));
            id.args([option, "postgres"]);
            run(id, b"", PATIENCE).succeeded_with_text().trim().parse().expect("id prints a number")
        };
        Self(Some((id("-u"), id("-g"))))
    }

    fn takes(&self, path: &std::path::Path) {
        if let Some((uid, gid)) = self.0 {
            chown(path, Some(uid), Some(gid)).expect("root can give a directory away");
        }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(foreign(program, PACKAGES));
        if let Some((uid, gid)) = self.0 {
            command.uid(uid).gid(gid);
        }
        command.current_dir("/");
        command
    }
}

fn at(addr: SocketAddr, program: &str) -> Command {
    let mut command = Command::new(foreign(program, PACKAGES));
    command.args(["-h", &addr.ip().to_string(), "-p", &addr.port().to_string(), "-U", "postgres"]);
    command.env("PGCONNECT_TIMEOUT", "30");
    command
}

fn psql(addr: SocketAddr, sql: &str) -> Command {
    let mut command = at(addr, "psql");
    command.args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql, "postgres"]);
    command
}

fn check(addr: SocketAddr) {
    let answer = run(psql(addr, "select 6 * 7"), b"", PATIENCE).succeeded_with_text();
    assert_eq!(answer, "42\n");
    let large = run(psql(addr, "select repeat('narrowlink', 2000000)"), b"", PATIENCE).succeeded();
    assert!(large == [b"narrowlink".repeat(2_000_000), b"\n".to_vec()].concat(), "{} bytes", large.len());

    let bench = |options: &[&str]| {
        let mut command = at(addr, "pgbench");
        command.args(options).arg("postgres");
        run(command, b"", Duration::from_secs(120)).succeeded_with_text()
    };
    bench(&["--initialize", "--scale", "1", "--quiet"]);
    let printed = bench(&["--client", "4", "--jobs", "2", "--transactions", "250"]);
    assert!(printed.contains("number of transactions actually processed: 1000/1000"), "{printed}");
    assert!(printed.contains("number of failed transactions: 0 "), "{printed}");
    // A new connection for each transaction.
    let printed = bench(&["--connect", "--select-only", "--client", "2", "--transactions", "100"]);
    assert!(printed.contains("number of transactions actually processed: 200/200"), "{printed}");
    assert!(printed.contains("number of failed transactions: 0 "), "{printed}");
}

fn psql_and_pgbench_fail_no_transaction(transport: Transport) {
    let (postgres, tunnel) = (Postgres::start(), Tunnel::start(transport));
    let forward = tunnel.forward(postgres.addr);
    check(forward.local);
}

over_ws_and_wss!(psql_and_pgbench_fail_no_transaction);

/// What fails here is the machine's PostgreSQL, not the tunnel.
#[test]
fn postgres_itself_answers_without_a_tunnel() {
    check(Postgres::start().addr);
}
