//! Role: every scenario of the load tool runs, against our gateway as its own process and against what is
//! forwarded by the whole chain, and its figures are not nonsense.
//! Invariants: how good a figure is, is not judged here.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::{
    net::{SocketAddr, TcpListener},
    process::{Command, Output},
};

use narrowlink_loadtest::{
    lab::Lab,
    load::network::{self, Network},
    namespace::take_own_network,
    site::Transport,
};
use serde_json::Value;

/// Long enough for something to happen on a machine that does something else meanwhile.
const BRIEF: [&str; 4] = ["--seconds", "0.4", "--warmup", "0.05"];

fn loadtest(args: &[&str]) -> Output {
    loadtest_rounds(args, "1")
}

fn loadtest_rounds(args: &[&str], rounds: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_narrowlink-loadtest"));
    command.args(args).args(BRIEF).args(["--rounds", rounds]).output().unwrap()
}

/// The line of JSON at the end.
fn json(output: &Output) -> Value {
    let (said, stdout) =
        (String::from_utf8_lossy(&output.stderr), String::from_utf8(output.stdout.clone()).unwrap());
    assert!(output.status.success(), "{said}");
    assert!(said.contains("round 1 of "), "no progress was shown: {said}");
    serde_json::from_str(stdout.lines().last().unwrap()).unwrap()
}

/// Measures our gateway by itself, and looks at what must be more than nothing. Hands back the directions of its runs.
fn check(args: &[&str], keys: &[&str]) -> Vec<String> {
    let mut all = vec!["compare"];
    all.extend(args);
    all.extend(["--against", "", "--no-pin"]);
    let report = json(&loadtest(&all));
    let runs = report["runs"].as_array().unwrap();
    for run in runs {
        let figures = &run["subjects"][0]["figures"];
        for key in keys {
            let figure = figures[key]["median"].as_f64();
            assert!(
                figure.is_some_and(|n| n > 0.0 && n.is_finite()),
                "{args:?}: {key} is {figure:?} in {figures}"
            );
        }
    }
    runs.iter().map(|run| run["direction"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn throughput_is_measured_over_every_transport() {
    for (transport, framing) in [("ws", "raw"), ("ws", "framed"), ("wss", "raw"), ("wss", "framed")] {
        let args = ["throughput", "--transport", transport, "--framing", framing, "--connections", "2"];
        let both = ["--direction", "up,down"];
        let keys = ["gb_per_s", "cpu_s_per_gib", "busy_percent", "load_percent"];
        assert_eq!(check(&[&args[..], &both].concat(), &keys), ["up", "down"]);
    }
}

#[test]
fn round_trips_are_measured() {
    let keys = ["p50_us", "p99_us", "messages_per_s", "cpu_us_per_message"];
    assert_eq!(check(&["pingpong", "--connections", "2"], &keys), ["up", "down"]);
    check(&["pingpong", "--connections", "2", "--bytes", "1024", "--framing", "raw"], &keys);
}

#[test]
fn new_sessions_are_measured() {
    check(&["churn", "--connections", "2"], &["p50_us", "sessions_per_s", "cpu_us_per_session"]);
}

#[test]
fn what_idle_connections_hold_is_measured() {
    check(&["idle", "--connections", "64"], &["user_kib_per_connection", "rss_kib_per_connection"]);
    check(&["links", "--connections", "64"], &["user_kib_per_connection", "rss_kib_per_connection"]);
}

/// What one more connection holds at the gateway: the difference between many and few of them, so that a
/// process's own memory is nobody's.
fn kib_of_one_more(args: &[&str]) -> f64 {
    let both = ["--connections", "200,1000", "--against", "", "--no-pin"];
    let report = json(&loadtest(&[&["compare"], args, &both].concat()));
    let all = |run: &Value| {
        let each = &run["subjects"][0]["figures"]["user_kib_per_connection"]["median"];
        run["connections"].as_f64().unwrap() * each.as_f64().unwrap()
    };
    (all(&report["runs"][1]) - all(&report["runs"][0])) / 800.0
}

/// Twice what they hold (4 and 8 to 10 KiB): buffers, or futures that grew, show.
#[test]
fn idle_sessions_and_links_hold_little_memory() {
    let session = kib_of_one_more(&["idle"]);
    assert!(session < 8.0, "an idle session holds {session} KiB");
    let link = kib_of_one_more(&["links"]);
    assert!(link < 20.0, "an idle link holds {link} KiB");
}

#[test]
fn an_interactive_session_beside_bulk_is_measured() {
    assert_eq!(check(&["mixed", "--connections", "2"], &["p50_us", "p99_us", "gb_per_s"]), ["up", "down"]);
}

#[test]
fn the_load_by_itself_is_measured() {
    let args = ["compare", "pingpong", "--connections", "2", "--against", "direct", "--transport", "wss"];
    let report = json(&loadtest(&[&args[..], &["--no-pin", "--direction", "up"]].concat()));
    let ratio = &report["runs"][0]["ratios"][1];
    assert!(ratio["figures"]["messages_per_s"]["median"].as_f64().unwrap() > 0.0, "{ratio}");
    assert!(ratio["figures"]["cpu_us_per_message"].is_null(), "nothing in between costs nothing: {ratio}");
}

#[test]
fn two_gateways_are_held_against_each_other_and_the_first_against_itself() {
    let args =
        ["compare", "throughput", "--connections", "2", "--subject", "gateway-2", "--against", "gateway"];
    let report = json(&loadtest_rounds(&[&args[..], &["--no-pin"]].concat(), "3"));
    let ratios = report["runs"][0]["ratios"].as_array().unwrap();
    let names: Vec<_> = ratios.iter().map(|ratio| [&ratio["of"], &ratio["to"]]).collect();
    assert_eq!(names, [["gateway-2", "gateway-2 (A/A)"], ["gateway-2", "gateway"]]);
    let costs = [0, 1].map(|n| &ratios[n]["figures"]["cpu_s_per_gib"]);
    assert!(costs.iter().all(|cost| cost["median"].as_f64().unwrap() > 0.0), "{costs:?}");
    assert!(costs[0]["verdict"].is_null(), "noise has no verdict: {costs:?}");
    let verdict = costs[1]["verdict"].as_str().unwrap();
    assert!(["better", "worse", "within A/A"].contains(&verdict), "{verdict}");
}

/// Whether this user may have a network namespace: a thread tries, and is gone with it.
fn may_have_a_network() -> bool {
    std::thread::spawn(|| take_own_network().is_ok()).join().unwrap()
}

#[test]
fn what_is_compared_has_a_network_of_its_own_and_the_hosts_stays_as_it_is() {
    let before = network::in_use().unwrap();
    let args = ["compare", "throughput", "--connections", "1", "--against", "", "--no-pin"];
    let (expected, asked) = match may_have_a_network() {
        true => (Network::Own, network::allowed()),
        false => (Network::Host, vec![before.clone()]),
    };
    let output = loadtest(&[&args[..], &["--congestion", &asked.join(",")]].concat());
    let report = json(&output);
    assert_eq!(report["network"], expected.to_string());
    let runs = report["runs"].as_array().unwrap();
    let used: Vec<_> = runs.iter().map(|run| run["congestion"].as_str().unwrap()).collect();
    assert_eq!(used, asked);
    let printed = String::from_utf8(output.stdout).unwrap();
    for congestion in &asked {
        assert!(printed.contains(&format!(", {congestion} {expected}: ")), "{printed}");
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said.contains("the host's network namespace"), expected == Network::Host, "{said}");
    assert_eq!(network::in_use().unwrap(), before);
}

/// A free address that nothing is bound to: targets of clients' connections are elsewhere.
fn free_target() -> SocketAddr {
    TcpListener::bind("127.0.0.3:0").unwrap().local_addr().unwrap()
}

#[test]
fn any_forwarder_is_measured_and_a_process_that_is_named() {
    let lab = Lab::start(1).unwrap();
    let transport = Transport::ALL[0];
    let _agent = lab.agent("home", transport).unwrap();
    let target = free_target();
    let forward = lab.forward("home", target, transport).unwrap();
    let (listen, target) = (forward.local_addr.to_string(), target.to_string());
    let pid = std::process::id().to_string();
    for (scenario, key) in
        [("throughput", "cpu_s_per_gib"), ("pingpong", "cpu_us_per_message"), ("churn", "sessions_per_s")]
    {
        let args = [scenario, "--listen", &listen, "--target", &target, "--pid", &pid, "--connections", "2"];
        let report = json(&loadtest(&args));
        let figures = &report["subjects"][0]["figures"];
        assert!(figures[key]["median"].as_f64().is_some_and(|n| n > 0.0), "{scenario}: {figures}");
    }
}

#[test]
fn a_gateway_is_measured_by_being_its_peers() {
    let lab = Lab::start(1).unwrap();
    for transport in [Transport::ALL[0], Transport::ALL[3]] {
        let name = transport.to_string().replace(' ', "-");
        // Writes both configurations, then makes room for the agent that the tool is.
        lab.agent(&name, transport).unwrap().stop();
        lab.client(lab.uid, "laptop", transport, None).unwrap();
        let agent = lab.site.dir().join(format!("agent-{name}.yaml")).display().to_string();
        let client = lab.site.dir().join("client-laptop.yaml").display().to_string();
        let args = ["throughput", "--agent", &agent, "--client", &client, "--connections", "2"];
        let report = json(&loadtest(&args));
        let figures = &report["subjects"][0]["figures"];
        assert!(figures["gb_per_s"]["median"].as_f64().is_some_and(|n| n > 0.0), "{figures}");
        assert!(figures["cpu_s_per_gib"].is_null(), "no process was named: {figures}");
    }
}

#[test]
fn what_cannot_be_measured_ends_with_a_sentence() {
    let refused = |args: &[&str], words: &str| {
        let output = loadtest(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(words), "{args:?}: {said:?} lacks {words:?}");
    };
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let target = free_target().to_string();
    refused(&["throughput", "--listen", &closed, "--target", &target], "Connection refused");
    refused(&["mixed", "--listen", &closed, "--target", &target], "2 of --listen and --target");
    refused(&["idle", "--connections", "1", "--listen", &closed, "--target", &target], "--pid");
    refused(&["compare", "churn", "--framing", "raw"], "warm connections are framed");
    refused(&["compare", "throughput", "--against", "tinyproxy"], "haproxy-splice");
    refused(&["compare", "churn", "--direction", "down"], "this has no --direction");
    let no_such = if may_have_a_network() { "none can't be had" } else { "which is left as it is" };
    refused(&["compare", "throughput", "--congestion", "none"], no_such);
}
