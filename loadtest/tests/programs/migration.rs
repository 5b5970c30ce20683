//! Role: from Narrowlink 0.2, as docs/migration.md says: its published files become a deployment that works.
//! Invariants: of the old files only what no test can have is another (names, addresses, dates, tokens).
//! See: docs/migration.md; `control::migrate`.

use std::{
    fs, net::SocketAddr, os::unix::fs::PermissionsExt as _, path::Path, process::Command, time::Duration,
};

use crate::kit::{
    PATIENCE,
    deployment::Machines,
    inside::{inside, put_in_place_of},
    net,
    process::{Finished, Running, ours, run},
    wait_for,
};

const GATEWAY: &str = include_str!("../../../control/tests/earlier/acme.yaml");
const TOKENS: &str = include_str!("../../../tokengen/tests/later.yaml");
const AGENT: &str = include_str!("../../../agent/tests/earlier/endpoints.yaml");
const CLIENT: &str = include_str!("../../../client/tests/earlier/endpoints.yaml");

/// In the place of the date of the published tokens.
const FOREVER: &str = "4102444800";

fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("it is ours");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("it is ours");
}

#[test]
fn the_published_files_of_0_2_become_a_deployment() {
    inside("migration::the_published_files_of_0_2_become_a_deployment", PATIENCE * 3, migrate);
}

fn migrate() {
    let machines = Machines::new();
    let hosts = machines.dir.path().join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost domain.ltd gateway.domain.tld\n").expect("it is ours");
    put_in_place_of("/etc/hosts", &hosts);
    fs::create_dir_all(machines.path("public")).expect("it can be made");
    // The agent's file calls the gateway by another name than the gateway's own.
    let old = GATEWAY.replace("[\"domain.ltd\"]", "[\"gateway.domain.tld\"]");
    write(&machines.path("public/gateway-0.2.yaml"), &old);
    let Finished { status, stderr, .. } =
        machines.gateway(&["init", "--from", "gateway-0.2.yaml", "--yes", "--dir", "gw"]);
    assert!(status.success(), "{stderr}");
    for says in [
        "gateway-0.2.yaml: line 1 column 7: name: taken",
        "services[0].tls_config: !Acme is not there yet",
        "services[0].tls_config.email: not taken",
        "Tokens of 0.2 hold no more",
    ] {
        assert!(stderr.contains(says), "{says:?} is not in {stderr}");
    }
    assert_eq!(fs::read_to_string(machines.path("public/gateway-0.2.yaml")).expect("it is there"), old);
    // Tokens of the old file, with the secret that `init` has drawn.
    let (_, entries) = TOKENS.split_once('\n').expect("the secret stands first");
    let dated = entries.replace("1710227806", FOREVER);
    write(
        &machines.path("public/gw/token-generator.yaml"),
        &format!("secret: !File gateway.secret\n{dated}"),
    );
    let mut sign = Command::new(ours("narrowlink-tokengen"));
    sign.current_dir(machines.path("public/gw")).args(["token-generator.yaml", "--json"]);
    let signed = run(sign, b"", PATIENCE).succeeded_with_text();
    let signed: serde_json::Value = serde_json::from_str(&signed).expect("JSON");
    let token = |kind: &str| {
        let all = signed.as_array().expect("a list");
        let one = all
            .iter()
            .find(|one| one["kind"].as_str().is_some_and(|of| of.eq_ignore_ascii_case(kind)))
            .expect("one of this kind");
        one["token"].as_str().expect("a text").to_owned()
    };

    let mut command = machines.program("narrowlink-gateway", "public");
    command.args(["-c", "gw/gateway.yaml"]);
    let _gateway = Running::start("gateway", machines.dir.path(), command, None);
    let addr: SocketAddr = "127.0.0.1:443".parse().expect("an address");
    net::wait_for_server("the gateway", addr, PATIENCE);

    // The old files, what 0.2 had and we have not taken out, with the gateway's own authority.
    let ca = machines.path("public/gw/authority.pem");
    let mended = |text: &str, kind: &str| {
        let lines = text.lines().take_while(|line| !line.starts_with("e2ee"));
        let lines = lines.filter(|line| !line.trim_start().starts_with("publish:"));
        let text: String = lines.map(|line| format!("{line}\n")).collect();
        let ca_file = format!("    ca_file: {}\n    protocol:", ca.display());
        text.replace("eyJ0eX....kNHYQ_4", &token(kind)).replace("    protocol:", &ca_file)
    };
    for (machine, file, text, kind) in
        [("behind", "agent.yaml", AGENT, "agent"), ("laptop", "client.yaml", CLIENT, "client")]
    {
        let dir = machines.path(machine).join("nl");
        fs::create_dir_all(&dir).expect("it can be made");
        write(&dir.join(file), &mended(text, kind));
    }
    let _agent = machines.start_agent("nl");
    let list = wait_for("the agent", PATIENCE, || {
        let list = run(machines.client("nl", &["list"]), b"", Duration::from_secs(20)).succeeded_with_text();
        list.contains("agent_name_3").then_some(list)
    });
    println!("{list}");
    let echo = net::start_echo().to_string();
    let done = run(machines.client("nl", &["connect", "-n", "agent_name_3", &echo]), b"hello", PATIENCE);
    assert_eq!(done.succeeded_with_text(), "hello");
}
