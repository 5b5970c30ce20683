//! Role: `ping`, `bench` and `whoami -v` between real programs: each hop is told apart, and who may reach nothing measures nothing.
//! See: `narrowlink_client::measure`.

use std::{net::SocketAddr, process::Command, time::Duration};

use serde_json::Value;

use crate::kit::{
    PATIENCE,
    delay::Delay,
    net,
    process::{Finished, run},
    site::{AGENT, Holder, Site, Transport, Tunnel},
};

/// Of each way, in each direction: far more than loopback takes.
const DELAY: Duration = Duration::from_millis(30);
/// There and back.
const DELAYED_US: u64 = 60_000;

fn answer(mut command: Command) -> Value {
    command.arg("--json");
    let text = run(command, b"", PATIENCE).succeeded_with_text();
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn median(answer: &Value, hop: &str) -> u64 {
    answer[hop]["median_us"].as_u64().unwrap_or_else(|| panic!("no {hop} in {answer}"))
}

/// A client's command at a gateway that is reached there.
fn client_at(site: &Site, gateway: SocketAddr) -> Command {
    let text = format!(
        "endpoints:\n  - !SelfHosted {{ gateway: \"{gateway}\", domain: gw.test, protocol: Ws, token_file: {} }}\n",
        site.path("Free.token").display()
    );
    let mut command = site.command("narrowlink");
    command.arg("-c").arg(site.write_secret("far.yaml", &text));
    command
}

fn every_hop_is_measured(tunnel: &Tunnel) {
    let target = net::start_echo();
    let client = || tunnel.site.client(tunnel.transport, Holder::Free);
    let mut ping = client();
    ping.args(["ping", "-n", AGENT, "--count", "3", "--pause", "10", &target.to_string()]);
    let pinged = answer(ping);
    for hop in ["client_gateway", "gateway_agent", "client_agent"] {
        assert!(median(&pinged, hop) < 1_000_000, "{pinged}");
    }
    assert!(median(&pinged, "client_agent") > 0 && pinged["target"]["connect_us"].is_u64(), "{pinged}");

    let mut bench = client();
    bench.args(["bench", "-n", AGENT, "--seconds", "1", "--streams", "2"]);
    let measured = answer(bench);
    for way in ["client_gateway", "client_agent"] {
        for direction in ["up_bytes_per_s", "down_bytes_per_s"] {
            // Loopback; a machine that is far slower than any still moves so much.
            assert!(
                measured[way][direction].as_f64().expect("a rate") > 1e6,
                "{way} {direction}: {measured}"
            );
        }
        for times in ["idle", "loaded_up", "loaded_down"] {
            assert!(measured[way][times]["median_us"].is_u64(), "{way} {times}: {measured}");
        }
    }
}

#[test]
fn every_hop_is_measured_over_ws() {
    every_hop_is_measured(&Tunnel::start(Transport::Ws));
}

#[test]
fn every_hop_is_measured_over_wss() {
    every_hop_is_measured(&Tunnel::start(Transport::Wss));
}

#[test]
fn every_hop_is_measured_without_frames() {
    every_hop_is_measured(&Tunnel::start_raw(Transport::Ws));
}

#[test]
fn the_hop_that_is_far_is_the_one_that_is_said_to_be() {
    let tunnel = Tunnel::start(Transport::Ws);
    let gateway = tunnel.site.gateway_addr(Transport::Ws);
    let way = Delay::start(gateway, DELAY);
    let ping = |gateway, agent: &str| {
        let mut command = client_at(&tunnel.site, gateway);
        command.args(["ping", "-n", agent, "--count", "5", "--pause", "0"]);
        answer(command)
    };
    let far = ping(way.addr, AGENT);
    assert!(median(&far, "client_gateway") >= DELAYED_US, "{far}");
    assert!(median(&far, "gateway_agent") < DELAYED_US, "{far}");

    let token = tunnel
        .site
        .tokens(&format!("  - !Agent {{ uid: {}, name: far, exp: 30d }}\n", crate::kit::site::UID));
    let _agent = tunnel.site.start_agent_at(way.addr, "far", &token[0], "");
    let far = ping(gateway, "far");
    assert!(median(&far, "gateway_agent") >= DELAYED_US, "{far}");
    assert!(median(&far, "client_gateway") < DELAYED_US, "{far}");
}

#[test]
fn what_can_t_be_measured_says_why_and_the_rest_is_told() {
    let tunnel = Tunnel::start(Transport::Ws);
    let ended = |holder, words: &[&str]| {
        let mut command = tunnel.site.client(Transport::Ws, holder);
        command.args(words);
        let Finished { status, stdout, stderr, .. } = run(command, b"", PATIENCE);
        (status.code(), String::from_utf8(stdout).unwrap(), stderr)
    };
    for command in ["ping", "bench"] {
        let (code, stdout, stderr) = ended(Holder::Barred, &[command, "-n", AGENT]);
        assert_eq!((code, stdout.as_str()), (Some(65), ""), "{stderr}");
        assert!(stderr.contains("does not allow measure://gateway/echo on agent home"), "{stderr}");
        let (code, _, stderr) = ended(Holder::Free, &[command, "-n", "nobody"]);
        assert_eq!(code, Some(69), "{stderr}");
        assert!(stderr.contains("no agent named nobody is connected"), "{stderr}");
    }
    // Nobody listens there any more.
    let deaf = net::free_addr();
    let (code, stdout, stderr) =
        ended(Holder::Free, &["ping", "-n", AGENT, "--count", "1", &deaf.to_string()]);
    assert_eq!(code, Some(69), "{stderr}");
    assert!(stderr.contains("refused the connection"), "{stderr}");
    assert!(stdout.contains("here → home"), "what is known is told all the same: {stdout}");
    assert!(!stdout.contains("to connect"), "{stdout}");
}

#[test]
fn who_asks_in_full_sees_what_is_used_of_what_is_limited() {
    let mut site = Site::new();
    let _gateway = site.start_gateway();
    let _agent = site.start_agent(Transport::Ws);
    let token = site.tokens(&format!(
        "  - !Client {{ uid: {}, name: few, exp: 30d, limits: {{ sessions: 7, bytes_per_month: 100MB }} }}\n",
        crate::kit::site::UID
    ));
    site.write_secret("Free.token", &token[0]);
    let said = |words: &[&str]| {
        let mut command = site.client(Transport::Ws, Holder::Free);
        command.args(words);
        run(command, b"", PATIENCE).succeeded_with_text()
    };
    assert!(!said(&["whoami"]).contains("of 7 sessions"));
    let before = said(&["whoami", "-v"]);
    for words in ["used    this token: 0 of 7 sessions at a time, ", ", 0 bytes of 100 MB this month (0 %)\n"]
    {
        assert!(before.contains(words), "{before}");
    }
    let forward = site.start_forward(Transport::Ws, net::start_echo());
    let _standing = net::try_echo(forward.local).unwrap();
    let after: Value = serde_json::from_str(&said(&["whoami", "--json"])).unwrap();
    let used = &after[0]["used"]["token"];
    assert_eq!(used["sessions"], serde_json::json!({ "used": 1, "max": 7 }), "{after}");
    assert!(used["month_bytes"]["used"].as_u64().unwrap() > 0, "{after}");
}
