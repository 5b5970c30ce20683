//! Role: a pipe that nobody writes or reads, in the place of a file that a running program follows or writes.
//! Invariants: nobody waits for its other end: the program serves on, says once what is wrong, and ends when it is told
//! to · at a start a configuration and a token may come through a pipe.
//! See: `narrowlink_dataplane::run::file`; fifo(7).

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::Path,
    time::Duration,
};

use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    process::Signal,
};

use crate::kit::{
    PATIENCE, net,
    process::{Running, run},
    site::{AGENT, Holder, Site, Transport, Tunnel},
    wait_for,
};

/// How long a program may take to end that has nothing to wait for.
const END: Duration = Duration::from_secs(10);

/// A pipe there, whatever was there before; it is never gone in between.
fn replace_by_pipe(path: &Path) {
    let made = path.with_extension("fifo");
    mknodat(CWD, &made, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe can be made");
    fs::rename(made, path).expect("the directory is ours");
}

fn assert_ends(program: &mut Running) {
    let ended = program.end(Signal::TERM, END);
    assert_eq!(ended.code(), Some(0), "{ended}");
}

#[test]
fn an_agent_whose_token_file_becomes_a_pipe_or_is_gone_serves_on_says_so_once_and_ends() {
    let mut tunnel = Tunnel::start(Transport::Wss);
    let forward = tunnel.forward(net::start_echo());
    net::echo(forward.local);
    let path = tunnel.site.path("agent.token");
    let (pipe, gone) = ("agent.token can't be read: it is a pipe; ", "agent.token is gone; ");
    replace_by_pipe(&path);
    wait_for("word of the pipe", PATIENCE, || (tunnel.agent.said_times(pipe) > 0).then_some(()));
    net::echo(forward.local);
    // The agent of a gateway that comes back has read its files again, once before the link and once behind it.
    tunnel.gateway.kill_9();
    tunnel.gateway = tunnel.site.start_gateway();
    wait_for("the agent", PATIENCE, || (tunnel.agent.said_times(" connected") >= 2).then_some(()));
    net::echo(forward.local);
    fs::remove_file(&path).expect("the file is ours");
    wait_for("word of the missing file", PATIENCE, || (tunnel.agent.said_times(gone) > 0).then_some(()));
    net::echo(forward.local);
    assert_eq!(tunnel.agent.said_times(pipe), 1, "said at every look");
    replace_by_pipe(&path);
    wait_for("word of the next pipe", PATIENCE, || (tunnel.agent.said_times(pipe) > 1).then_some(()));
    assert_eq!(tunnel.agent.said_times(gone), 1, "said at every look");
    assert_ends(&mut tunnel.agent);
}

#[test]
fn a_gateway_whose_files_become_pipes_refuses_them_serves_on_and_ends() {
    let mut site = Site::new();
    let list = site.write_secret("revoked.yaml", "- jti: stolen\n");
    site.configure_gateway("revocations: revoked.yaml\n");
    let mut gateway = site.start_gateway();
    // Written again by the start, with the ports it got.
    let yaml = site.path("gateway.yaml");
    wait_for("the ports", PATIENCE, || (gateway.said_times("gateway.yaml: taken") > 0).then_some(()));
    let _agent = site.start_agent(Transport::Wss);
    let forward = site.start_forward(Transport::Wss, net::start_echo());
    let pem = site.path("gateway.pem");
    for (path, says) in [
        (&list, "revocations: this list can't be read: it is a pipe"),
        (&pem, "cert_path: this file can't be read: it is a pipe"),
        (&yaml, "gateway.yaml: it is a pipe"),
    ] {
        let aside = path.with_extension("aside");
        fs::copy(path, &aside).expect("the directory is ours");
        replace_by_pipe(path);
        wait_for("its refusal", PATIENCE, || (gateway.said_times(says) > 0).then_some(()));
        net::echo(forward.local);
        let taken = gateway.said_times("gateway.yaml: taken");
        fs::rename(aside, path).expect("the directory is ours");
        wait_for("the file", PATIENCE, || (gateway.said_times("gateway.yaml: taken") > taken).then_some(()));
        assert_eq!(gateway.said_times(says), 1);
    }
    replace_by_pipe(&list);
    gateway.signal(Signal::HUP);
    assert_ends(&mut gateway);
}

#[test]
fn a_gateway_whose_audit_log_is_a_pipe_that_nobody_reads_serves_and_counts_what_is_lost() {
    let mut site = Site::new();
    let pipe = site.path("audit.pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe can be made");
    site.configure_gateway(&format!("audit: {}\n", pipe.display()));
    let mut check = site.command("narrowlink-gateway");
    check.arg("--check").arg("-c").arg(site.path("gateway.yaml"));
    run(check, b"", PATIENCE).succeeded();
    let mut gateway = site.start_gateway();
    let _agent = site.start_agent(Transport::Wss);
    let forward = site.start_forward(Transport::Wss, net::start_echo());
    net::echo(forward.local);
    let lost = "audit.pipe: nobody reads this pipe; lines of the audit log are lost until it can be written";
    wait_for("word of the pipe", PATIENCE, || (gateway.said_times(lost) > 0).then_some(()));
    // Whoever comes later hears how many lines came before, and then the rest.
    let mut lines = BufReader::new(File::open(&pipe).expect("it has a writer soon")).lines();
    let line = lines.next().expect("the gateway still writes").expect("a pipe can be read");
    let line: serde_json::Value = serde_json::from_str(&line).expect("a line of JSON");
    assert!(line["event"] == "lost" && line["lines"].as_u64() > Some(0), "{line}");
    net::echo(forward.local);
    let has_opened = |line: &str| line.contains("\"event\":\"open\"");
    assert!(lines.any(|line| has_opened(&line.expect("a pipe can be read"))));
    drop(lines);
    net::echo(forward.local);
    assert_ends(&mut gateway);
}

#[test]
fn at_a_start_a_configuration_and_a_token_may_come_through_a_pipe() {
    let mut site = Site::new();
    let text = site.gateway_config().replace("gateway.pem", &site.path("gateway.pem").display().to_string());
    let mut check = site.command("narrowlink-gateway");
    check.args(["--check", "-c", "/dev/stdin"]);
    run(check, text.as_bytes(), PATIENCE).succeeded();
    let _gateway = site.start_gateway();
    let _agent = site.start_agent(Transport::Wss);
    let _ = site.client(Transport::Wss, Holder::Free);
    let yaml = fs::read_to_string(site.path("client-Wss-Free.yaml")).expect("the file is ours");
    let mut list = site.command("narrowlink");
    list.args(["-c", "/dev/stdin", "list"]);
    assert!(run(list, yaml.as_bytes(), PATIENCE).succeeded_with_text().contains(AGENT));
    let token = site.path("Free.token");
    let bytes = fs::read(&token).expect("the file is ours");
    let path = site.write_secret("piped.yaml", &yaml.replace(&token.display().to_string(), "/dev/stdin"));
    for program in [&["list"][..], &["whoami", "--offline"]] {
        let mut command = site.command("narrowlink");
        command.arg("-c").arg(&path).args(program);
        let text = run(command, &bytes, PATIENCE).succeeded_with_text();
        assert!(text.contains(AGENT) || text.contains("free"), "{text}");
    }
}
