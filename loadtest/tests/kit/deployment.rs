//! Role: a deployment as its operator makes it, by the programs' own commands: three machines, each a directory.
//! See: docs/tickets.md.

use std::{fs, net::SocketAddr, path::PathBuf, process::Command};

use tempfile::TempDir;

use super::{
    PATIENCE, net,
    process::{Finished, Lines, Running, ours, run},
};

/// Three machines, each a directory.
pub(crate) struct Machines {
    pub(crate) dir: TempDir,
    pub(crate) addr: SocketAddr,
}

impl Machines {
    pub(crate) fn new() -> Self {
        let dir = TempDir::with_prefix("narrowlink-test-").expect("a temporary directory can be made");
        Self { dir, addr: net::free_addr() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A program on one of them: its home is the machine's directory.
    pub(crate) fn program(&self, name: &str, machine: &str) -> Command {
        let home = self.path(machine);
        fs::create_dir_all(&home).expect("it can be made");
        let mut command = Command::new(ours(name));
        command
            .env("HOME", &home)
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("STATE_DIRECTORY")
            .current_dir(home);
        command
    }

    pub(crate) fn gateway(&self, words: &[&str]) -> Finished {
        let mut command = self.program("narrowlink-gateway", "public");
        command.args(words);
        run(command, b"", PATIENCE)
    }

    /// The same for a command that has a config already.
    pub(crate) fn operate(&self, words: &[&str]) -> Finished {
        let config = self.path("public/gw/gateway.yaml");
        self.gateway(&[words, &["-c", &config.display().to_string()]].concat())
    }

    /// Makes a gateway; what it printed.
    pub(crate) fn init(&self) -> String {
        let host = self.addr.to_string();
        self.gateway(&["init", &host, "--listen", &host, "--yes", "--dir", "gw"]).succeeded_with_text()
    }

    pub(crate) fn start_gateway(&self) -> Running {
        let mut command = self.program("narrowlink-gateway", "public");
        command.args(["-c", "gw/gateway.yaml"]);
        let gateway = Running::start("gateway", self.dir.path(), command, None);
        net::wait_for_server("the gateway", self.addr, PATIENCE);
        gateway
    }

    pub(crate) fn start_agent(&self, dir: &str) -> Running {
        let mut command = self.program("narrowlink-agent", "behind");
        command.arg("-c").arg(format!("{dir}/agent.yaml"));
        Running::start("agent", self.dir.path(), command, None)
    }

    pub(crate) fn join(&self, ticket: &str, dir: &str) -> Finished {
        let mut command = self.program("narrowlink-agent", "behind");
        command.args(["join", ticket, "--dir", dir]);
        run(command, b"", PATIENCE)
    }

    /// With the ticket on standard input, as it was pasted.
    pub(crate) fn login(&self, pasted: &str, dir: &str) -> Finished {
        let mut command = self.program("narrowlink", "laptop");
        command.args(["login", "-", "--dir", dir]);
        run(command, pasted.as_bytes(), PATIENCE)
    }

    pub(crate) fn client(&self, dir: &str, words: &[&str]) -> Command {
        let mut command = self.program("narrowlink", "laptop");
        command.arg("-c").arg(format!("{dir}/client.yaml")).args(words);
        command
    }

    pub(crate) fn start_forward(&self, dir: &str, target: SocketAddr) -> (Running, SocketAddr) {
        let (lines, heard) = Lines::channel();
        let target = target.to_string();
        let command = self.client(dir, &["forward", "-n", "home", &target]);
        let forward = Running::start("forward", self.dir.path(), command, Some(lines));
        let line = heard.recv_timeout(PATIENCE).expect("it says where it listens");
        (forward, line.trim().parse().expect("an address"))
    }
}

/// The word behind a command that was printed.
pub(crate) fn printed<'a>(text: &'a str, command: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.trim().strip_prefix(command));
    line.unwrap_or_else(|| panic!("{command:?} was not printed: {text}")).trim()
}
