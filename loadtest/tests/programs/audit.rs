//! Role: the audit log of a gateway that people use: who came, what was refused, opened and closed.
//! Invariants: no token and no secret in it, and nothing of what went through.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    process::Command,
    thread,
};

use rustix::process::Signal;

use crate::kit::{
    PATIENCE, net,
    process::run,
    site::{AGENT, Holder, Site, Transport, UID},
    wait_for,
};

/// What the generator says of the agent's token.
fn inspect(mut tokengen: Command, site: &Site) -> String {
    tokengen.arg("inspect").arg(site.path("agent.token")).arg("--secret").arg(site.path("gateway.yaml"));
    String::from_utf8_lossy(&run(tokengen, b"", PATIENCE).succeeded()).into_owned()
}

#[test]
fn the_audit_log_has_a_line_for_each_that_came_and_no_secret() {
    let mut site = Site::new();
    site.configure_gateway("audit: audit.log\n");
    let mut gateway = site.start_gateway();
    let _agent = site.start_agent(Transport::Wss);
    let (listener, target) = net::listen();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read_exact(&mut [0; 5]);
            let _ = stream.write_all(b"nobody else's business");
        }
    });
    let target = target.to_string();
    for (holder, code) in
        [(Holder::Free, 0), (Holder::Barred, 65), (Holder::Stranger, 77), (Holder::Expired, 77)]
    {
        let mut command = site.client(Transport::Wss, holder);
        command.args(["connect", "-n", AGENT, &target]);
        let done = run(command, b"hello", PATIENCE);
        assert_eq!(done.status.code(), Some(code), "{holder:?}: {}", done.stderr);
    }
    let path = site.path("audit.log");
    let read = || fs::read_to_string(&path).unwrap_or_default();
    let lines = || -> Vec<serde_json::Value> {
        read().lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
    };
    let is = |line: &serde_json::Value, fields: &[(&str, &str)]| {
        fields.iter().all(|(key, value)| line[key] == *value)
    };
    // The expired token is known without asking the gateway.
    for fields in [
        &[("event", "login"), ("role", "agent"), ("name", AGENT)][..],
        &[("event", "login"), ("role", "client"), ("name", "free")],
        &[("event", "open"), ("name", "free"), ("agent", AGENT)],
        &[("event", "close"), ("name", "free"), ("code", "finished")],
        &[("event", "refused"), ("name", "barred"), ("code", "policy")],
        &[("event", "refused"), ("code", "unauthenticated")],
    ] {
        gateway.wait_for(&format!("{fields:?}"), PATIENCE, || {
            lines().iter().any(|line| is(line, fields)).then_some(())
        });
    }
    let lines = lines();
    let find = |event: &str| lines.iter().find(|line| line["event"] == event).expect("it was waited for");
    let (open, close) = (find("open"), find("close"));
    let key = find("login")["key"].as_str().expect("each login says by which secret").to_owned();
    let inspected = inspect(site.command("narrowlink-tokengen"), &site);
    assert!(inspected.contains(&format!("(id {key})")), "{key}: {inspected}");
    assert_eq!(open["session"], close["session"]);
    assert_eq!(open["target"], format!("tcp://{target}"));
    assert_eq!((close["up_bytes"].as_u64(), close["down_bytes"].as_u64()), (Some(5), Some(22)));
    let text = read();
    let secrets = ["agent.token", "Free.token", "Barred.token", "Stranger.token"]
        .map(|name| fs::read_to_string(site.path(name)).expect("the test has written it"));
    for secret in secrets.iter().map(|token| token.trim()).chain(["eyJ", "nobody else's", "hello"]) {
        assert!(!text.contains(secret), "{secret} is in the log");
    }
    let mode = fs::metadata(&path).expect("it was read").permissions().mode();
    assert_eq!(mode & 0o077, 0, "others can read it: {mode:o}");
}

#[test]
fn the_end_of_an_agents_process_is_not_said_to_be_its_targets_reset() {
    let mut site = Site::new();
    site.configure_gateway("audit: audit.log\n");
    let mut gateway = site.start_gateway();
    for transport in [Transport::Ws, Transport::Wss] {
        let mut agent = site.start_agent(transport);
        let forward = site.start_forward(transport, net::start_echo());
        let mut stream = net::try_echo(forward.local).expect("the tunnel stands");
        agent.kill_9();
        let broke = stream.read(&mut [0; 1]).expect_err("an end that nobody said");
        assert_eq!(broke.kind(), ErrorKind::ConnectionReset);
        let close = gateway.wait_for("the end", PATIENCE, || {
            let log = fs::read_to_string(site.path("audit.log")).ok()?;
            let lines = log.lines().map(|line| serde_json::from_str(line).expect("each line is JSON"));
            let closes = |line: &serde_json::Value| line["event"] == "close";
            lines.filter(closes).nth(usize::from(transport == Transport::Wss))
        });
        assert_eq!(close["code"], "cut");
        assert_eq!(close["reason"], "the connection to the target's side broke");
    }
}

#[test]
fn a_session_that_a_stopping_gateway_cuts_has_its_end_in_the_log() {
    let mut site = Site::new();
    site.configure_gateway("audit: audit.log\ndrain_s: 1\n");
    let mut gateway = site.start_gateway();
    let _agent = site.start_agent(Transport::Wss);
    let forward = site.start_forward(Transport::Wss, net::start_echo());
    let mut stream = net::try_echo(forward.local).expect("the tunnel stands");
    let ended = gateway.end(Signal::TERM, PATIENCE);
    let broke = stream.read(&mut [0; 1]).expect_err("an end that nobody said");
    assert_eq!(broke.kind(), ErrorKind::ConnectionReset);
    let log = fs::read_to_string(site.path("audit.log")).expect("the gateway has written it");
    let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    let codes: Vec<_> =
        lines.filter(|line| line["event"] == "close").map(|line| line["code"].clone()).collect();
    assert_eq!(codes, ["shutdown"], "{ended:?}");
}

#[test]
fn who_is_revoked_while_a_gateway_waits_for_sessions_is_cut_then() {
    let mut site = Site::new();
    site.write_secret("revoked.yaml", "[]\n");
    site.configure_gateway("audit: audit.log\nrevocations: revoked.yaml\ndrain_s: 60\n");
    let mut gateway = site.start_gateway();
    let _agent = site.start_agent(Transport::Wss);
    let forward = site.start_forward(Transport::Wss, net::start_echo());
    let mut stream = net::try_echo(forward.local).expect("the tunnel stands");
    gateway.signal(Signal::TERM);
    wait_for("the drain", PATIENCE, || {
        (gateway.said_times("stopping: nothing new is accepted") > 0).then_some(())
    });
    site.write_secret("revoked.yaml", &format!("- {{ uid: {UID}, name: free }}\n"));
    let broke = stream.read(&mut [0; 1]).expect_err("an end that nobody said");
    assert_eq!(broke.kind(), ErrorKind::ConnectionReset);
    let ended = gateway.wait_for_end(PATIENCE);
    let log = fs::read_to_string(site.path("audit.log")).expect("the gateway has written it");
    let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    let codes: Vec<_> =
        lines.filter(|line| line["event"] == "close").map(|line| line["code"].clone()).collect();
    assert_eq!(codes, ["revoked"], "{ended:?}");
}
