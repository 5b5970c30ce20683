//! Role: something stands between that ends TLS: plain bytes are refused there, frames go through, and a cut is a reset.
//! Invariants: a session that was cut never ends with 0 · who refuses says what stands between and what to write.
//! See: ARCHITECTURE.md, invariant 4.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
};

use crate::kit::{
    PATIENCE, net,
    process::{Running, run},
    site::{AGENT, Holder, Site, Transport, Tunnel},
    tls_end::TlsEnd,
    wait_for,
};

const SAYS: [&str; 2] = ["ends TLS (a proxy or CDN)", "use framing: framed"];

/// A program's configuration that leads to `gateway` over wss.
fn config(site: &Site, name: &str, gateway: &str, framing: &str, token: &str) -> std::path::PathBuf {
    let text = format!(
        "endpoints: [!SelfHosted {{ gateway: \"{gateway}\", domain: gw.test, framing: {framing}, token_file: {}, ca_file: {} }}]\n",
        site.path(token).display(),
        site.path("ca.pem").display()
    );
    site.write_secret(name, &text)
}

fn connect(site: &Site, gateway: &str, framing: &str, target: &str) -> Command {
    let token = format!("{:?}.token", Holder::Free);
    let mut command = site.command("narrowlink");
    command.arg("-c").arg(config(site, "between.yaml", gateway, framing, &token));
    command.args(["connect", "-n", AGENT, target]);
    command
}

fn start_proxy(site: &Site) -> TlsEnd {
    TlsEnd::start(net::listen().0, &site.path("gateway.pem"), site.gateway_addr(Transport::Ws))
}

#[test]
fn behind_a_proxy_that_ends_tls_a_client_is_refused_raw_and_served_framed() {
    let tunnel = Tunnel::start(Transport::Wss);
    let site = &tunnel.site;
    let (proxy, target) = (start_proxy(site), net::start_echo().to_string());
    let (proxy, direct) = (proxy.addr.to_string(), site.gateway_addr(Transport::Wss).to_string());
    let refused = run(connect(site, &proxy, "raw", &target), b"hello", PATIENCE);
    assert_eq!(refused.status.code(), Some(69), "{}", refused.stderr);
    SAYS.iter().for_each(|words| assert!(refused.stderr.contains(words), "{}", refused.stderr));
    for (gateway, framing) in [(&proxy, "framed"), (&proxy, "auto"), (&direct, "raw")] {
        let echoed = run(connect(site, gateway, framing, &target), b"hello", PATIENCE).succeeded_with_text();
        assert_eq!(echoed, "hello", "{framing} through {gateway}");
    }
}

#[test]
fn behind_a_proxy_that_ends_tls_an_agent_is_refused_raw_lanes_and_says_why() {
    let mut site = Site::new();
    let mut gateway = site.start_gateway();
    let proxy = start_proxy(&site);
    let start = |framing: &str| {
        let path = config(&site, "agent-between.yaml", &proxy.addr.to_string(), framing, "agent.token");
        let mut command = site.command("narrowlink-agent");
        // Without a place for its identity an agent is a stranger to the one before.
        command.env("XDG_STATE_HOME", site.path("state")).arg("-c").arg(path);
        Running::start("agent", site.dir(), command, None)
    };
    let agent = start("raw");
    wait_for("the reason", PATIENCE, || (agent_said(&agent) > 0).then_some(()));
    drop(agent);
    let target = net::start_echo().to_string();
    let mut agent = start("framed");
    let direct = site.gateway_addr(Transport::Wss).to_string();
    wait_for("the agent's lanes", PATIENCE, || {
        let done = run(connect(&site, &direct, "raw", &target), b"hello", PATIENCE);
        done.status.success().then_some(())
    });
    assert_eq!(agent_said(&agent), 0);
    agent.assert_running();
    gateway.assert_running();
}

fn agent_said(agent: &Running) -> usize {
    SAYS.iter().map(|words| agent.said_times(words)).min().unwrap_or_default()
}

#[test]
fn a_connection_that_a_proxy_cuts_is_a_reset_and_never_an_end() {
    let tunnel = Tunnel::start(Transport::Wss);
    let (proxy, target) = (start_proxy(&tunnel.site), net::start_echo().to_string());
    let mut command = connect(&tunnel.site, &proxy.addr.to_string(), "framed", &target);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("narrowlink runs");
    let (mut stdin, stdout) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
    stdin.write_all(b"hello\n").expect("it reads");
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).expect("the session stands");
    assert_eq!(line, "hello\n");
    proxy.cut();
    let status = wait_for("its end", PATIENCE, || child.try_wait().expect("our own child"));
    assert_eq!(status.code(), Some(74), "a cut session is a reset");
}
