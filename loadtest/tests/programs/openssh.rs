//! Role: OpenSSH through a forward and with narrowlink as its ProxyCommand.
//! Invariants: what scp brings over has the hash of what was sent.
//! See: ssh_config(5) on ProxyCommand.

use std::{
    fs,
    io::Read as _,
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
    time::Duration,
};

use tempfile::TempDir;

use crate::kit::{
    PATIENCE, data, net,
    process::{Running, foreign, ours, run},
    site::{AGENT, Holder, Transport, Tunnel},
};

const FILE_BYTES: u64 = 100_000_000;
const COPY_PATIENCE: Duration = Duration::from_secs(120);

/// An sshd of our own: its host key, one user key, and nothing of the machine's configuration.
struct Sshd {
    _running: Running,
    addr: SocketAddr,
    user: String,
    dir: TempDir,
}

impl Sshd {
    fn start() -> Self {
        let dir = TempDir::with_prefix("narrowlink-sshd-").expect("a temporary directory can be made");
        let addr = net::free_addr();
        for key in ["host_key", "user_key"] {
            let mut keygen = Command::new(foreign("ssh-keygen", "openssh-client"));
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", key, "-f"]).arg(dir.path().join(key));
            run(keygen, b"", PATIENCE).succeeded();
        }
        let host_key = fs::read_to_string(dir.path().join("host_key.pub")).expect("ssh-keygen wrote it");
        fs::write(dir.path().join("known_hosts"), format!("target {host_key}")).expect("there is room");
        let config = dir.path().join("sshd_config");
        fs::write(&config, sshd_config(dir.path(), addr)).expect("there is room");

        // The directory of its privilege separation is compiled in; service files make it.
        if rustix::process::geteuid().is_root() {
            fs::create_dir_all("/run/sshd").expect("root can make a directory");
        }
        let mut command = Command::new(foreign("sshd", "openssh-server"));
        command.args(["-D", "-e", "-f"]).arg(config);
        let mut running = Running::start("sshd", dir.path(), command, None);
        running.wait_for("sshd's banner", PATIENCE, || {
            let mut banner = [0; 4];
            TcpStream::connect(addr).ok()?.read_exact(&mut banner).ok()?;
            (&banner == b"SSH-").then_some(())
        });
        Self { _running: running, addr, user: user_name(), dir }
    }

    /// The options that make ssh and scp use our keys, and nothing of the user's configuration.
    fn options(&self, command: &mut Command) {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        command.args(["-F", "none", "-i", &path("user_key")]);
        for option in [
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "StrictHostKeyChecking=yes",
            "HostKeyAlias=target",
            "ConnectTimeout=20",
            &format!("UserKnownHostsFile={}", path("known_hosts")),
        ] {
            command.args(["-o", option]);
        }
    }
}

fn sshd_config(dir: &Path, addr: SocketAddr) -> String {
    let dir = dir.display();
    format!(
        "ListenAddress {addr}
HostKey {dir}/host_key
AuthorizedKeysFile {dir}/user_key.pub
PidFile none
UsePAM no
UseDNS no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
# The keys lie in the system's temporary directory, which everybody may write.
StrictModes no
Subsystem sftp internal-sftp
"
    )
}

fn user_name() -> String {
    let mut id = Command::new(foreign("id", "coreutils"));
    id.arg("-un");
    run(id, b"", PATIENCE).succeeded_with_text().trim().to_owned()
}

/// How ssh reaches its server.
enum Way {
    /// At an address: the server's own, or a forward's.
    Address(SocketAddr),
    /// Through the standard input and output of this command.
    ProxyCommand(String, SocketAddr),
}

impl Way {
    fn options(&self, command: &mut Command) {
        let port = match self {
            Self::Address(addr) => addr.port(),
            Self::ProxyCommand(proxy, addr) => {
                command.args(["-o", &format!("ProxyCommand={proxy}")]);
                addr.port()
            }
        };
        command.args(["-o", &format!("Port={port}")]);
    }

    fn host(&self) -> String {
        match self {
            Self::Address(addr) | Self::ProxyCommand(_, addr) => addr.ip().to_string(),
        }
    }
}

fn proxy_command(tunnel: &Tunnel, target: SocketAddr) -> Way {
    let client = tunnel.site.client(tunnel.transport, Holder::Free);
    let config = client.get_args().nth(1).expect("-c FILE").display();
    let narrowlink = ours("narrowlink");
    // %h and %p are filled in by ssh.
    let proxy = format!("{} -c {config} connect -n {AGENT} %h:%p", narrowlink.display());
    Way::ProxyCommand(proxy, target)
}

fn ssh(sshd: &Sshd, way: &Way, remote_command: &str, stdin: &[u8]) -> String {
    let mut command = Command::new(foreign("ssh", "openssh-client"));
    sshd.options(&mut command);
    way.options(&mut command);
    command.arg(format!("{}@{}", sshd.user, way.host())).arg(remote_command);
    run(command, stdin, COPY_PATIENCE).succeeded_with_text()
}

fn scp(sshd: &Sshd, way: &Way, from: &str, to: &str) {
    let mut command = Command::new(foreign("scp", "openssh-client"));
    sshd.options(&mut command);
    way.options(&mut command);
    command.args(["-q", from, to]);
    run(command, b"", COPY_PATIENCE).succeeded();
}

/// A command's exit code and its output, what it is given and what it prints.
fn check_shell(sshd: &Sshd, way: &Way) {
    assert_eq!(ssh(sshd, way, "echo one; echo two", b""), "one\ntwo\n");
    // 8 MB go there and come back, and the end of the input is passed on.
    let mut sent = vec![b'.'; 8_000_000];
    sent.extend_from_slice(b"the end");
    let echoed = ssh(sshd, way, "cat", &sent);
    assert!(echoed.as_bytes() == sent, "cat gave back {} of {} bytes", echoed.len(), sent.len());
}

/// 100 MB there and back again.
fn check_copy(sshd: &Sshd, way: &Way) {
    let path = |name: &str| sshd.dir.path().join(name);
    let remote = |name: &str| format!("{}@{}:{}", sshd.user, way.host(), path(name).display());
    let sent = data::write_file(&path("sent"), FILE_BYTES, 0x5eed);
    scp(sshd, way, &path("sent").display().to_string(), &remote("there"));
    assert_eq!(data::hash_file(&path("there")), (sent.clone(), FILE_BYTES));
    scp(sshd, way, &remote("there"), &path("back").display().to_string());
    assert_eq!(data::hash_file(&path("back")), (sent, FILE_BYTES));
}

fn ssh_runs_commands_through_a_forward(transport: Transport) {
    let (sshd, tunnel) = (Sshd::start(), Tunnel::start(transport));
    let forward = tunnel.forward(sshd.addr);
    check_shell(&sshd, &Way::Address(forward.local));
}

fn ssh_runs_commands_with_narrowlink_as_its_proxy_command(transport: Transport) {
    let (sshd, tunnel) = (Sshd::start(), Tunnel::start(transport));
    check_shell(&sshd, &proxy_command(&tunnel, sshd.addr));
}

fn scp_through_a_forward_brings_100_mb_over_unchanged(transport: Transport) {
    let (sshd, tunnel) = (Sshd::start(), Tunnel::start(transport));
    let forward = tunnel.forward(sshd.addr);
    check_copy(&sshd, &Way::Address(forward.local));
}

fn scp_with_narrowlink_as_its_proxy_command_brings_100_mb_over_unchanged(transport: Transport) {
    let (sshd, tunnel) = (Sshd::start(), Tunnel::start(transport));
    check_copy(&sshd, &proxy_command(&tunnel, sshd.addr));
}

over_ws_and_wss!(
    ssh_runs_commands_through_a_forward,
    ssh_runs_commands_with_narrowlink_as_its_proxy_command,
    scp_through_a_forward_brings_100_mb_over_unchanged,
    scp_with_narrowlink_as_its_proxy_command_brings_100_mb_over_unchanged,
);

/// What fails here is the machine's sshd, not the tunnel.
#[test]
fn sshd_itself_answers_and_copies_without_a_tunnel() {
    let sshd = Sshd::start();
    let way = Way::Address(sshd.addr);
    check_shell(&sshd, &way);
    check_copy(&sshd, &way);
}
