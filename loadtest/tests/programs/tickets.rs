//! Role: a deployment as its operator makes it: three commands, which print each other.
//! Invariants: nothing is written by hand, and what is typed is what was printed.
//! See: docs/tickets.md.

use std::{
    fs,
    io::{ErrorKind, Read as _},
    path::Path,
    time::{Duration, Instant},
};

use crate::kit::{
    PATIENCE,
    deployment::{Machines, printed},
    net,
    process::run,
    wait_for,
};

#[test]
fn three_commands_make_a_deployment() {
    let machines = Machines::new();
    let start = Instant::now();
    let said = machines.init();
    assert_eq!(printed(&said, "narrowlink-gateway -c "), "gw/gateway.yaml", "{said}");
    let _gateway = machines.start_gateway();
    let joined = machines.join(printed(&said, "sudo narrowlink-agent join "), "nl").succeeded_with_text();
    assert!(joined.contains("takes this machine for the agent home"), "{joined}");
    assert_eq!(printed(&joined, "next: narrowlink-agent -c "), "nl/agent.yaml");
    let _agent = machines.start_agent("nl");
    let who =
        machines.login(&format!("{}\r\n", printed(&said, "narrowlink login ")), "nl").succeeded_with_text();
    assert!(who.contains("laptop"), "{who}");
    let (mut forward, local) = machines.start_forward("nl", net::start_echo());
    let mut stream = net::try_echo(local).expect("bytes come back");
    println!("from the first command to the first byte: {:?}", start.elapsed());
    // And back again.
    let taken = machines.operate(&["ticket", "revoke", "client", "laptop"]).succeeded_with_text();
    assert!(taken.starts_with("taken back: 1 of the client laptop"), "{taken}");
    let revoked_at = Instant::now();
    let broke = stream.read(&mut [0; 1]).expect_err("it was taken back");
    assert_eq!(broke.kind(), ErrorKind::ConnectionReset);
    assert!(revoked_at.elapsed() < Duration::from_secs(5));
    let list = machines.operate(&["ticket", "list"]).succeeded_with_text();
    assert!(
        list.contains("client  laptop main revoked") && list.contains("agent   home   main holds"),
        "{list}"
    );
    forward.kill_9();
}

#[test]
fn a_ticket_allows_what_it_says_and_no_more_and_users_do_not_meet() {
    let machines = Machines::new();
    let said = machines.init();
    let _gateway = machines.start_gateway();
    machines.join(printed(&said, "sudo narrowlink-agent join "), "nl").succeeded();
    let _agent = machines.start_agent("nl");
    let echo = net::start_echo();
    let rule = format!("home:{echo}");
    let ticket = machines.operate(&["ticket", "client", "phone", "--allow", &rule, "--expires", "30d"]);
    machines.login(&ticket.succeeded_with_text(), "phone").succeeded();
    let (_forward, local) = machines.start_forward("phone", echo);
    net::try_echo(local).expect("it may");
    let other = net::start_echo().to_string();
    let refused = run(machines.client("phone", &["connect", "-n", "home", &other]), b"", PATIENCE);
    assert_eq!(refused.status.code(), Some(65), "{}", refused.stderr);
    machines.operate(&["user", "add", "lab"]).succeeded();
    let ticket = machines.operate(&["ticket", "client", "laptop", "--user", "lab"]).succeeded_with_text();
    machines.login(&ticket, "lab").succeeded();
    let list = run(machines.client("lab", &["list"]), b"", PATIENCE);
    assert!(list.stderr.contains("no agents are connected"), "{}", list.stderr);
}

#[test]
fn a_newer_ticket_replaces_the_token_and_another_configuration_stays() {
    let machines = Machines::new();
    let said = machines.init();
    let _gateway = machines.start_gateway();
    let first = printed(&said, "narrowlink login ");
    machines.login(first, "nl").succeeded();
    let token =
        |dir: &str| fs::read(machines.path("laptop").join(dir).join("client.token")).expect("it is there");
    let before = token("nl");
    let newer = machines.operate(&["ticket", "client", "laptop", "--renew"]).succeeded_with_text();
    let renewed = machines.login(&newer, "nl");
    assert!(renewed.stderr.contains("is replaced in"), "{}", renewed.stderr);
    assert_ne!(token("nl"), before);
    fs::write(machines.path("laptop/nl/client.yaml"), "endpoints: []\n").expect("it can be written");
    let refused = machines.login(first, "nl");
    assert_eq!(refused.status.code(), Some(73), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("client.yaml is there already and says something else"),
        "{}",
        refused.stderr
    );
}

#[test]
fn a_ticket_that_the_gateway_refuses_replaces_no_token_that_it_takes() {
    let machines = Machines::new();
    let said = machines.init();
    let _gateway = machines.start_gateway();
    let (agent, client) =
        (printed(&said, "sudo narrowlink-agent join "), printed(&said, "narrowlink login "));
    let newer = |kind: &str, name: &str| {
        machines.operate(&["ticket", kind, name, "--renew"]).succeeded_with_text().trim().to_owned()
    };
    // Of each there is a good one and one that was taken back.
    let (good_agent, good_client) = (newer("agent", "home"), newer("client", "laptop"));
    let list = machines.operate(&["ticket", "list", "--json"]).succeeded_with_text();
    let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
    let table = machines.operate(&["ticket", "list"]).succeeded_with_text();
    for bad in list.as_array().expect("a list").iter().take(2) {
        // As the table shows it.
        let id = &bad["jti"].as_str().expect("an id")[..8];
        assert!(table.contains(id), "{table}");
        let said = machines.operate(&["revoke", "--id", id]).succeeded_with_text();
        assert!(said.contains(bad["jti"].as_str().expect("an id")), "{said}");
    }
    // A running gateway takes that within 2 s; the client's is the last one.
    wait_for("the gateway", PATIENCE, || {
        (machines.login(client, "other").status.code() == Some(77)).then_some(())
    });
    machines.join(&good_agent, "nl").succeeded();
    let _agent = machines.start_agent("nl");
    machines.login(&good_client, "nl").succeeded();
    let tokens = || {
        ["behind/nl/agent.token", "laptop/nl/client.token"]
            .map(|path| fs::read(machines.path(path)).expect("it is there"))
    };
    let before = tokens();
    for (refused, code) in [(machines.join(agent, "nl"), 69), (machines.login(client, "nl"), 77)] {
        assert_eq!(refused.status.code(), Some(code), "{}", refused.stderr);
        let said = "does not accept the token in this ticket";
        assert!(refused.stderr.contains(said) && refused.stderr.contains("(NL-E0201)"), "{}", refused.stderr);
        assert!(refused.stderr.contains("Nothing was changed"), "{}", refused.stderr);
    }
    assert!(tokens() == before, "both have what they had");
    let list = run(machines.client("nl", &["list"]), b"", PATIENCE).succeeded();
    assert!(String::from_utf8_lossy(&list).contains("home"));
}

#[test]
fn login_shows_how_to_reach_what_the_ticket_allows() {
    let machines = Machines::new();
    let said = machines.init();
    let _gateway = machines.start_gateway();
    machines.join(printed(&said, "sudo narrowlink-agent join "), "nl").succeeded();
    let _agent = machines.start_agent("nl");
    // Before the agent is there, nobody knows what it is called.
    wait_for("the agent", PATIENCE, || {
        let said = machines.login(printed(&said, "narrowlink login "), "nl").stderr;
        assert!(said.contains("next: narrowlink -c nl/client.yaml "), "{said}");
        said.contains("forward -n home -l 2222 127.0.0.1:22").then_some(())
    });
    for (name, allow, says) in [
        ("web", "home:nas.lan:80", "forward -n home -l 8080 nas.lan:80"),
        ("net", "home:10.0.0.0/8:22", "list, and "),
    ] {
        let ticket = machines.operate(&["ticket", "client", name, "--allow", allow]).succeeded_with_text();
        let said = machines.login(&ticket, name).stderr;
        assert!(said.contains(says) && !said.contains("127.0.0.1:22"), "{said}");
    }
    let warned = machines.operate(&["ticket", "client", "typo", "--allow", "hoem:127.0.0.1:22"]);
    assert!(
        warned.stderr.contains("no ticket was made for an agent hoem of main (for: home)"),
        "{}",
        warned.stderr
    );
    assert!(warned.status.success());
}

#[test]
fn what_is_wrong_with_a_ticket_is_said() {
    let machines = Machines::new();
    let said = machines.init();
    let (agent, client) =
        (printed(&said, "sudo narrowlink-agent join "), printed(&said, "narrowlink login "));
    for (pasted, says) in [
        (&client[..100], "this ticket is cut off: 100 of its "),
        (agent, "this ticket is for an agent: narrowlink-agent join takes it"),
        ("", "this is no ticket"),
        ("home", "this is no ticket"),
    ] {
        let refused = machines.login(pasted, "nl");
        assert_eq!(refused.status.code(), Some(2), "{}", refused.stderr);
        assert!(refused.stderr.contains(says), "{}", refused.stderr);
    }
    assert!(!machines.path("laptop/nl").exists(), "nothing was written");
    // Nobody is there, and what was written stays for when somebody is.
    let alone = machines.login(client, "nl");
    assert_eq!(alone.status.code(), Some(69), "{}", alone.stderr);
    assert!(Path::new(&machines.path("laptop/nl/client.yaml")).exists());
    // Another gateway at this address is not believed.
    let other = Machines { addr: machines.addr, ..Machines::new() };
    other.init();
    let _gateway = other.start_gateway();
    let stranger = machines.login(client, "nl");
    let heard = String::from_utf8_lossy(&stranger.stdout).into_owned() + &stranger.stderr;
    assert!(heard.contains("the authority that ca_pin names"), "{heard}");
    assert_eq!(stranger.status.code(), Some(69));
}
