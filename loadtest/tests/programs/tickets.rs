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
    assert!(renewed.stderr.contains("the token is replaced in"), "{}", renewed.stderr);
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
fn what_is_wrong_with_a_ticket_is_said() {
    let machines = Machines::new();
    let said = machines.init();
    let (agent, client) = (printed(&said, "sudo narrowlink-agent join "), printed(&said, "narrowlink login "));
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
