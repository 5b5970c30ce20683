//! Role: docs/certificates.md, as its reader does it: every file that stands there is written, every command is run.
//! Invariants: namespaces of its own, so that the document's name and port can be had.
//! See: docs/certificates.md.

use std::{fs, process::Command, time::Duration};

use crate::kit::{
    PATIENCE,
    inside::{inside, put_in_place_of},
    net,
    process::{Finished, Running, foreign, ours, run},
    site::Site,
    wait_for,
};

const PAGE: &str = include_str!("../../../docs/certificates.md");
/// Commands that go on for as long as the reader lets them.
const RUNNING: [&str; 2] = ["narrowlink-gateway -c gateway.yaml\n", "narrowlink-agent -c agent.yaml\n"];

#[test]
fn an_authority_of_ones_own_is_made_and_used_as_the_document_says() {
    let test = "authority::an_authority_of_ones_own_is_made_and_used_as_the_document_says";
    inside(test, Duration::from_secs(120), the_document);
}

/// What the page has in blocks: its language, and the text.
fn blocks() -> impl Iterator<Item = (&'static str, &'static str)> {
    let inner = PAGE.split("```").skip(1).step_by(2);
    inner.filter_map(|block| block.split_once('\n'))
}

fn shell(site: &Site, text: &str) -> Finished {
    let gateway = ours("narrowlink-gateway");
    let dir = gateway.parent().expect("programs lie in a directory").display();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(foreign("bash", "bash"));
    command.args(["-euc", text]).current_dir(site.dir()).env("HOME", site.dir());
    command.env("PATH", format!("{dir}:{path}")).env_remove("RUST_LOG");
    run(command, b"", PATIENCE)
}

fn start(site: &Site, line: &str) -> Running {
    let mut words = line.split_whitespace();
    let program = words.next().expect("a command has a name");
    let mut command = site.command(program);
    command.args(words);
    Running::start(program, site.dir(), command, None)
}

fn the_document() {
    foreign("openssl", "openssl");
    let site = Site::new();
    // What the site has made for other tests: the document begins with nothing.
    for entry in fs::read_dir(site.dir()).expect("the site is there").flatten() {
        let _ = fs::remove_file(entry.path());
    }
    put_in_place_of("/etc/hosts", &site.write_secret("hosts", "127.0.0.1 localhost gw.example\n"));
    let (mut running, mut lists) = (Vec::new(), 0);
    for (language, text) in blocks() {
        if let Some((name, _)) = text.strip_prefix("# ").and_then(|rest| rest.split_once('\n')) {
            assert_eq!(language, "yaml", "{name}");
            site.write_secret(name, text);
        } else if RUNNING.contains(&text) {
            running.push(start(&site, text));
            net::wait_for_server("the gateway", "127.0.0.1:443".parse().expect("an address"), PATIENCE);
        } else {
            assert_eq!(language, "sh", "{text}");
            let is_list = text.ends_with(" list\n");
            lists += usize::from(is_list);
            until_the_agent_is_there(&site, text, is_list);
        }
    }
    assert_eq!((running.len(), lists), (2, 2));
    running.iter_mut().for_each(Running::assert_running);
}

/// Runs a block, which must succeed; a list is asked for until it shows the agent.
fn until_the_agent_is_there(site: &Site, text: &str, is_list: bool) {
    wait_for("the agent", PATIENCE, || {
        let printed = shell(site, text).succeeded_with_text();
        (!is_list || printed.lines().any(|line| line.starts_with("home "))).then_some(())
    });
}
