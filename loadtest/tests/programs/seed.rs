//! Role: the published example of tokens, unchanged but for its dates, through all four programs: each rule of it
//! allows and refuses real connections.
//! Invariants: everything happens in namespaces of its own (network, mounts), so that the addresses and names
//! of the example are there and nobody else's.
//! See: tokengen/tests/seed.yaml.

use std::{fs, time::Duration};

use crate::kit::{
    PATIENCE,
    inside::{add_addresses, inside, put_in_place_of},
    net::{self, Greeter},
    process::{Running, run},
    site::Site,
};

const SEED: &str = include_str!("../../../tokengen/tests/seed.yaml");
/// When its tokens ended.
const LONG_AGO: &str = "exp: 1710227806";
const GATEWAY: &str = "127.0.0.1:8080";
/// Agents beside the example's own, for what its rules say of those.
const MORE_AGENTS: [&str; 2] = ["agent_name_1", "somebody"];
/// As the client says it.
const REFUSED_BY_POLICY: i32 = 65;

#[test]
fn each_rule_of_the_published_example_allows_and_refuses() {
    let test = "seed::each_rule_of_the_published_example_allows_and_refuses";
    inside(test, Duration::from_secs(120), the_published_example);
}

/// Tokens by their label: kind and name.
fn tokens(site: &Site) -> Vec<(String, String)> {
    let mut text = SEED.replace(LONG_AGO, "exp: 1d");
    for name in MORE_AGENTS {
        text +=
            &format!("  - !Agent {{ uid: 00000000-0000-0000-0000-000000000000, name: {name}, exp: 1d }}\n");
    }
    let path = site.write_secret("seed.yaml", &text);
    let mut command = site.command("narrowlink-tokengen");
    command.arg(path).arg("--json");
    let printed = run(command, b"", PATIENCE).succeeded();
    let list: Vec<serde_json::Value> = serde_json::from_slice(&printed).expect("--json prints JSON");
    let field = |one: &serde_json::Value, key: &str| one[key].as_str().expect("a text").to_owned();
    list.iter()
        .map(|one| (format!("{} {}", field(one, "kind"), field(one, "name")), field(one, "token")))
        .collect()
}

fn the_published_example() {
    add_addresses(&["192.168.0.77", "192.168.1.77"]);
    let site = Site::new();
    let hosts = site.write_secret(
        "hosts",
        "127.0.0.1 localhost\n127.0.0.9 narrow.host\n192.168.0.77 nas.lan\n192.168.1.77 other.lan\n",
    );
    put_in_place_of("/etc/hosts", &hosts);
    for addr in ["192.168.0.77:22", "192.168.0.77:23", "192.168.1.77:22", "127.0.0.9:443", "127.0.0.9:80"] {
        Greeter::start(addr.parse().expect("an address"));
    }
    let secret = SEED.lines().find(|line| line.starts_with("secret:")).expect("the example has one");
    site.write_secret(
        "gateway.yaml",
        &format!(
            "name: seed\n{secret}\nallow_weak_secret: true\n\
             services: [!Ws {{ domains: [localhost], listen_addr: \"{GATEWAY}\" }}]\n"
        ),
    );
    let mut command = site.command("narrowlink-gateway");
    command.args(["-c", "gateway.yaml"]);
    let mut gateway = Running::start("gateway", site.dir(), command, None);
    net::wait_for_server("the gateway", GATEWAY.parse().expect("an address"), PATIENCE);
    let tokens = tokens(&site);
    let endpoint = |label: &str, more: &str| {
        let (_, token) = tokens.iter().find(|(one, _)| one == label).expect("the example has this token");
        let name = format!("{}.yaml", label.replace(' ', "-"));
        site.write_secret(
            &name,
            &format!("endpoints:\n  - !SelfHosted {{ gateway: \"{GATEWAY}\", token: {token}, protocol: Ws }}\n{more}"),
        )
    };
    let mut agents: Vec<_> = ["agent_name_3"]
        .iter()
        .chain(&MORE_AGENTS)
        .map(|name| {
            let state = site.path(&format!("state-{name}"));
            fs::create_dir(&state).expect("the test's directory can be written");
            let config = endpoint(&format!("Agent {name}"), &format!("state_dir: {}\n", state.display()));
            let ready = site.path(&format!("{name}.ready"));
            let mut command = site.command("narrowlink-agent");
            command.arg("-c").arg(config).arg("--ready-file").arg(&ready);
            let mut agent = Running::start(name, site.dir(), command, None);
            agent.wait_for("the agent's ready file", PATIENCE, || ready.exists().then_some(()));
            agent
        })
        .collect();

    let reach = |client: &str, agent: &str, target: &str, says: Option<&str>| {
        let mut command = site.command("narrowlink");
        command.arg("-c").arg(endpoint(&format!("Client {client}"), ""));
        command.args(["connect", "-n", agent, target]);
        let done = run(command, b"", PATIENCE);
        let what = format!("{client} to {target} through {agent}: {}{}", done.status, done.stderr);
        match says {
            Some(addr) => assert_eq!(String::from_utf8_lossy(&done.stdout), addr, "{what}"),
            None => {
                assert_eq!((done.status.code(), done.stdout.len()), (Some(REFUSED_BY_POLICY), 0), "{what}");
            }
        }
    };
    let (ssh, telnet, foreign_net) = ("192.168.0.77:22", "192.168.0.77:23", "192.168.1.77:22");
    let table = [
        // !Any [null, true]
        ("client_name_1", "somebody", telnet, Some(telnet)),
        ("client_name_1", "agent_name_3", foreign_net, Some(foreign_net)),
        ("client_name_1", "agent_name_1", "narrow.host:80", Some("127.0.0.9:80")),
        // !Ip [null, 192.168.0.1/24, 22, TCP]
        ("client_name_2", "somebody", ssh, Some(ssh)),
        ("client_name_2", "agent_name_1", ssh, Some(ssh)),
        ("client_name_2", "somebody", "0xc0a8004d:22", Some(ssh)),
        ("client_name_2", "somebody", "nas.lan:22", Some(ssh)),
        ("client_name_2", "somebody", telnet, None),
        ("client_name_2", "somebody", foreign_net, None),
        ("client_name_2", "somebody", "other.lan:22", None),
        // !Domain [agent_name_1, narrow.host, 443, TCP]
        ("client_name_2", "agent_name_1", "narrow.host:443", Some("127.0.0.9:443")),
        ("client_name_2", "agent_name_1", "NARROW.host.:443", Some("127.0.0.9:443")),
        ("client_name_2", "agent_name_1", "narrow.host:80", None),
        ("client_name_2", "agent_name_1", "127.0.0.9:443", None),
        ("client_name_2", "somebody", "narrow.host:443", None),
        // !Any [agent_name_3, true]
        ("client_name_2", "agent_name_3", telnet, Some(telnet)),
        ("client_name_2", "agent_name_3", foreign_net, Some(foreign_net)),
        ("client_name_2", "agent_name_3", "narrow.host:80", Some("127.0.0.9:80")),
    ];
    for (client, agent, target, says) in table {
        reach(client, agent, target, says);
    }
    println!("{} connections of the published example: as its rules say", table.len());
    gateway.assert_running();
    agents.iter_mut().for_each(Running::assert_running);
}
