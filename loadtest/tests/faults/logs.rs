//! Role: programs whose log, audit log or ready file can't be written, or is read by nobody.
//! Invariants: they serve on, and end in time with the exit code that they would have · lines are lost, counted and
//! said · every line of the audit log parses, whatever the disk did in its middle.
//! See: docs/logs.md; docs/audit.md.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    process::Signal,
};

use crate::kit::{
    PATIENCE,
    inside::{inside, system},
    net,
    process::{DEAF, Ear, Lines, Running, run_unheard},
    site::{AGENT, Forward, Holder, Site, Transport, Tunnel},
    wait_for,
};

/// How long a program may take to end that has nothing to wait for: 0.5 s for its last words, and what a busy
/// machine adds.
const END: Duration = Duration::from_secs(10);
/// tmpfs counts in these.
const PAGE: usize = 4096;

/// What one would hear of: sessions, a client that is refused, a configuration that is read anew.
fn make_talk(tunnel: &mut Tunnel, forward: &mut Forward) {
    for _ in 0..50 {
        net::echo(forward.local);
    }
    let mut command = tunnel.site.client(tunnel.transport, Holder::Barred);
    command.args(["connect", "-n", AGENT, "127.0.0.1:1"]);
    assert_eq!(run_unheard(command, tunnel.site.ear, PATIENCE), Some(65));
    tunnel.gateway.signal(Signal::HUP);
    net::echo(forward.local);
    tunnel.agent.assert_running();
    tunnel.gateway.assert_running();
    forward.running.assert_running();
}

fn serve_unheard(ear: Ear) {
    let mut site = Site::new();
    site.ear = ear;
    let gateway = site.start_gateway();
    let agent = site.start_agent(Transport::Wss);
    let mut tunnel = Tunnel { agent, gateway, transport: Transport::Wss, site };
    let mut forward = tunnel.forward(net::start_echo());
    make_talk(&mut tunnel, &mut forward);

    let began = Instant::now();
    let ended = forward.running.end(Signal::TERM, END);
    assert!(!matches!(ended.code(), Some(70 | 101)), "the forward: {ended}");
    let agent = tunnel.agent.end(Signal::TERM, END);
    let gateway = tunnel.gateway.end(Signal::TERM, END);
    println!("{ear:?}: all three have ended after {:?}", began.elapsed());
    assert_eq!((agent.code(), gateway.code()), (Some(0), Some(0)), "{agent}, {gateway}");
}

#[test]
fn programs_whose_log_is_on_a_full_disk_serve_on_and_end_well() {
    serve_unheard(Ear::Full);
}

#[test]
fn programs_whose_log_has_lost_its_reader_serve_on_and_end_well() {
    serve_unheard(Ear::Gone);
}

#[test]
fn programs_whose_log_nobody_reads_serve_on_and_end_well() {
    serve_unheard(Ear::Stalled);
}

#[test]
fn an_exit_code_is_the_same_when_nobody_hears_why() {
    let site = Site::with_known_ports();
    let missing = || ["-c", "no-such.yaml"];
    for ear in DEAF {
        for (program, args, code) in [
            ("narrowlink-gateway", &missing()[..], 78),
            ("narrowlink-agent", &missing(), 78),
            ("narrowlink", &["-c", "no-such.yaml", "list"], 78),
            ("narrowlink-tokengen", &missing(), 78),
        ] {
            // The generator says one line before it ends and serves nobody: it may wait for its reader.
            if program == "narrowlink-tokengen" && ear == Ear::Stalled {
                continue;
            }
            let mut command = site.command(program);
            command.args(args);
            assert_eq!(run_unheard(command, ear, END), Some(code), "{program}, {ear:?}");
        }
        let mut command = site.client(Transport::Ws, Holder::Free);
        command.args(["connect", "-n", AGENT, "127.0.0.1:1"]);
        assert_eq!(run_unheard(command, ear, PATIENCE), Some(69), "no gateway, {ear:?}");
    }
}

#[test]
fn a_flood_of_refusals_is_some_lines_of_the_log_and_a_count() {
    const ASKED: usize = 600;
    let tunnel = Tunnel::start(Transport::Ws);
    let (lines, said) = Lines::channel();
    let mut command = tunnel.site.client(Transport::Ws, Holder::Barred);
    let local = SocketAddr::new(net::private_ip(), 0).to_string();
    command.args(["forward", "-n", AGENT, "-l", &local, "127.0.0.1:1"]);
    let mut forward = Running::start("forward", tunnel.site.dir(), command, Some(lines));
    let local = forward.wait_for("the forward's local address", PATIENCE, || {
        said.try_recv().ok().map(|line| line.parse::<SocketAddr>().expect("an address"))
    });
    let began = Instant::now();
    for _ in 0..ASKED {
        let mut stream = TcpStream::connect(local).expect("the forward takes connections");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        let refused = stream.read(&mut [0]).expect_err("the token allows nothing");
        assert_eq!(refused.kind(), ErrorKind::ConnectionReset);
    }
    let took = began.elapsed();
    let said = || tunnel.gateway.said_times("refused: ") - tunnel.gateway.said_times("more like this");
    let left_out = || tunnel.gateway.said_times("more like this from 127.0.0.1: refused: ");
    wait_for("the count of what was left out", PATIENCE, || (left_out() > 0).then_some(()));
    println!("{ASKED} refusals in {took:?}: {} lines, {} counts", said(), left_out());
    // 20 at once, and 10 a second.
    let seconds = usize::try_from(took.as_secs()).expect("a short time") + 1;
    assert!(said() <= 20 + 10 * seconds && left_out() <= seconds + 1, "{} lines, {}", said(), left_out());
}

/// An audit log between two writes.
fn text(path: &Path) -> String {
    wait_for("whole lines", PATIENCE, || {
        let text = fs::read_to_string(path).expect("there is an audit log");
        // Blanks at the end are a line that found no room.
        (text.is_empty() || text.ends_with([' ', '\n'])).then_some(text)
    })
}

/// The lines of an audit log, each of which must parse.
fn audit(path: &Path) -> Vec<serde_json::Value> {
    let parse = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line:?}"));
    text(path).trim_end_matches(' ').lines().map(parse).collect()
}

fn count(lines: &[serde_json::Value], event: &str) -> usize {
    lines.iter().filter(|line| line["event"] == event).count()
}

fn lost(lines: &[serde_json::Value]) -> u64 {
    lines.iter().filter(|line| line["event"] == "lost").filter_map(|line| line["lines"].as_u64()).sum()
}

/// A site whose gateway keeps an audit log there.
fn site_with_audit(path: &Path) -> Site {
    let mut site = Site::new();
    site.configure_gateway(&format!("audit: {}\n", path.display()));
    site
}

/// Until the audit log has told of each session, or counted it.
fn wait_for_sessions(path: &Path, sessions: u64) -> Vec<serde_json::Value> {
    wait_for("a line, or a count, of each session", PATIENCE, || {
        let lines = audit(path);
        let said = (count(&lines, "open") + count(&lines, "close")) as u64;
        (said + lost(&lines) >= 2 * sessions).then_some(lines)
    })
}

#[test]
fn an_audit_log_that_reaches_the_limit_of_files_in_mid_line_goes_on_in_a_new_one() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let (path, old) = (dir.path().join("audit.log"), dir.path().join("audit.log.1"));
    let mut site = site_with_audit(&path);
    let mut gateway = site.start_gateway();
    let _agent = site.start_agent(Transport::Wss);
    let forward = site.start_forward(Transport::Wss, net::start_echo());
    net::echo(forward.local);
    wait_for_sessions(&path, 1);
    let limit = fs::metadata(&path).expect("there is an audit log").len() + 1000;
    gateway.limit_files(limit);
    for _ in 0..10 {
        net::echo(forward.local);
    }
    let is_full = || fs::metadata(&path).expect("there is an audit log").len() == limit;
    gateway.wait_for("the limit", PATIENCE, || is_full().then_some(()));
    net::echo(forward.local);
    gateway.assert_running();
    let before = audit(&path);
    let told = count(&before, "open") + count(&before, "close");
    assert!(told < 2 * 12, "{before:?}");

    fs::rename(&path, &old).expect("the directory is ours");
    gateway.signal(Signal::HUP);
    let lines = wait_for("a new audit log that says what is missing", PATIENCE, || {
        let lines = path.exists().then(|| audit(&path))?;
        // What the last session said after the signal is in the new one already.
        let new = count(&lines, "open") + count(&lines, "close");
        (lost(&lines) as usize + told + new >= 2 * 12).then_some(lines)
    });
    assert!(lines[0]["reason"].as_str().is_some_and(|why| why.contains("File too large")), "{lines:?}");
    net::echo(forward.local);
    let ended = gateway.end(Signal::TERM, END);
    assert_eq!(ended.code(), Some(0), "{ended}");
    let lines = audit(&path);
    let new = count(&lines, "open") + count(&lines, "close");
    let missing = lost(&lines) as usize;
    // Open and close of each session; what is missing may be the login of its stream, too.
    assert!((2 * 13..=3 * 13).contains(&(told + missing + new)), "{told} told, then: {lines:?}");
    println!("{told} lines up to the limit, {missing} lost, {new} in the new file");
}

/// A pipe that is full, and whose only reader reads nothing as long as this stands.
fn stalled_pipe(path: &Path) -> File {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe can be made");
    let mut pipe = File::options().read(true).write(true).open(path).expect("the pipe is ours");
    rustix::io::ioctl_fionbio(&pipe, true).expect("a pipe can be set so");
    while pipe.write(&[b'\n'; PAGE]).is_ok() {}
    pipe
}

#[test]
fn an_audit_log_that_nobody_reads_keeps_nobody_waiting() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let path = dir.path().join("audit.pipe");
    let _pipe = stalled_pipe(&path);
    let mut site = site_with_audit(&path);
    let mut gateway = site.start_gateway();
    let _agent = site.start_agent(Transport::Wss);
    let forward = site.start_forward(Transport::Wss, net::start_echo());
    net::echo(forward.local);
    gateway.signal(Signal::HUP);
    wait_for("the reload", PATIENCE, || (gateway.said_times("gateway.yaml: taken") > 0).then_some(()));
    net::echo(forward.local);
    // 2 s for what waits for the pipe.
    let ended = gateway.end(Signal::TERM, END);
    assert_eq!(ended.code(), Some(0), "{ended}");
}

/// Fills the file system of `filler`.
fn fill(filler: &Path) -> File {
    let mut file = File::create(filler).expect("there is room for a name");
    while file.write(&[0; PAGE]).is_ok_and(|written| written > 0) {}
    file
}

#[test]
fn a_disk_that_is_full_for_a_while_costs_lines_that_are_counted() {
    inside("logs::a_disk_that_is_full_for_a_while_costs_lines_that_are_counted", PATIENCE * 4, || {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let small = dir.path().join("small");
        fs::create_dir(&small).expect("the directory is ours");
        let small_dir = small.display().to_string();
        system("mount", "mount", &["-t", "tmpfs", "-o", "size=128k", "tmpfs", &small_dir]);
        full_for_a_while(&small);
        system("umount", "mount", &["--lazy", &small_dir]);
    });
}

/// Audit log, log and ready file on a disk of 128 KiB.
fn full_for_a_while(small: &Path) {
    let path = small.join("audit.log");
    let mut site = site_with_audit(&path);
    let mut gateway = site.start_gateway();
    // So that the audit log has begun a page, which it can fill: a line ends in its middle.
    let mut command = site.client(Transport::Wss, Holder::Free);
    command.args(["connect", "-n", AGENT, "127.0.0.1:1"]);
    assert_eq!(run_unheard(command, Ear::Log, PATIENCE), Some(69), "there is no agent yet");
    wait_for("its line", PATIENCE, || (!audit(&path).is_empty()).then_some(()));
    // The agent's log and ready file come when there is no room any more.
    let filler = fill(&small.join("filler"));
    let ready_file = small.join("agent.ready");
    let mut command = site.agent_command(Transport::Wss);
    command.arg("--ready-file").arg(&ready_file).arg("-v");
    let mut agent = Running::start("agent", small, command, None);
    let forward = site.start_forward(Transport::Wss, net::start_echo());
    for _ in 0..30 {
        net::echo(forward.local);
    }
    wait_for("word of the full disk", PATIENCE, || {
        (gateway.said_times("lines of the audit log are lost") > 0).then_some(())
    });
    agent.assert_running();
    assert!(!ready_file.exists(), "there was no room for it");
    let before = audit(&path);
    assert!(count(&before, "open") < 30, "{before:?}");
    let text = text(&path);
    assert!(text.ends_with(' ') || text.len().is_multiple_of(PAGE), "half a line was taken back: {text}");

    filler.set_len(0).expect("a file can be made shorter");
    let lines = wait_for_sessions(&path, 30);
    assert!(lost(&lines) > 0, "{lines:?}");
    wait_for("the ready file", PATIENCE, || {
        let text = fs::read_to_string(&ready_file).ok()?;
        assert!(text.contains("gateway"), "a ready file is whole as soon as it is there: {text:?}");
        Some(())
    });
    wait_for("word of what the agent's log has lost", PATIENCE, || {
        let told = agent.said_times("of the log were lost: No space left on device");
        (told > 0).then_some(())
    });
    for _ in 0..10 {
        net::echo(forward.local);
    }
    wait_for_sessions(&path, 40);
    let ended = [agent.end(Signal::TERM, END), gateway.end(Signal::TERM, END)];
    assert!(ended.iter().all(|status| status.code() == Some(0)), "{ended:?}");
    println!("{} lines of the audit log were lost, and said to be", lost(&audit(&path)));
}
