//! Role: the truth table of docs/policy.md, written by the function itself.
//! Invariants: `NARROWLINK_BLESS=1` rewrites it; without, a difference is an error.

use std::fmt::Write as _;

use super::{Decision, Grant, Reason, Verdict};
use crate::target::Target;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/policy.md");
const BEGIN: &str = "<!-- from here on a test writes -->\n";
const END: &str = "<!-- to here -->\n";

/// An item, and what is asked for: agent, target, and the address it has in the end.
const ROWS: [(&str, &str, &str, &str); 31] = [
    ("(no item)", "home", "tcp://10.0.0.1:22", "10.0.0.1"),
    ("!Ip [home, 10.0.0.0/8, 22, TCP]", "home", "tcp://10.1.2.3:22", "10.1.2.3"),
    ("!Ip [home, 10.0.0.0/8, 22, TCP]", "home", "tcp://10.1.2.3:23", "10.1.2.3"),
    ("!Ip [home, 10.0.0.0/8, 22, TCP]", "home", "udp://10.1.2.3:22", "10.1.2.3"),
    ("!Ip [home, 10.0.0.0/8, 22, TCP]", "home", "tcp://192.0.2.1:22", "192.0.2.1"),
    ("!Ip [home, 10.0.0.0/8, 22, TCP]", "office", "tcp://10.1.2.3:22", "10.1.2.3"),
    ("!Ip [home, 10.0.0.0/8, 22, TCP]", "home", "tcp://nas.lan:22", "10.1.2.3"),
    ("!Ip [home, 10.0.0.0/8, 22, TCP]", "home", "tcp://nas.lan:22", "192.0.2.1"),
    ("!Ip [home, 10.0.0.0/8, 22, TCP]", "home", "tcp://nas.lan:23", "10.1.2.3"),
    ("!Ip [null, 10.0.0.0/8, 0, ANY]", "office", "udp://10.1.2.3:53", "10.1.2.3"),
    ("!Ip [null, 10.0.0.0/8, 0, ANY]", "home", "icmp://10.1.2.3", "10.1.2.3"),
    ("!Ip [null, 10.0.0.0/8, 0, ANY]", "home", "tcp://0x0a010203:80", "10.1.2.3"),
    ("!Ip [null, 10.0.0.0/8, 0, ANY]", "home", "tcp://[::ffff:10.1.2.3]:80", "10.1.2.3"),
    ("!Ip [null, 10.0.0.0/8, 0, ANY]", "home", "tcp://[64:ff9b::10.1.2.3]:80", "64:ff9b::a01:203"),
    ("!Ip [null, 10.0.0.0/8, 0, ANY]", "home", "tcp://nas.lan:80", "64:ff9b::a01:203"),
    ("!Ip [null, 10.0.0.0/8, 0, ANY]", "home", "unix:///run/x", ""),
    ("!Ip [null, 10.0.0.0/8, [22, 8000-8100], TCP]", "home", "tcp://10.1.2.3:8050", "10.1.2.3"),
    ("!Ip [null, 10.0.0.0/8, 443, HTTPS]", "home", "tcp://10.1.2.3:443", "10.1.2.3"),
    ("!Domain [home, nas.lan, 443, TCP]", "home", "tcp://nas.lan:443", "10.1.2.3"),
    ("!Domain [home, nas.lan, 443, TCP]", "home", "tcp://NAS.lan.:443", "10.1.2.3"),
    ("!Domain [home, nas.lan, 443, TCP]", "home", "tcp://nas.lan:80", "10.1.2.3"),
    ("!Domain [home, nas.lan, 443, TCP]", "home", "tcp://10.1.2.3:443", "10.1.2.3"),
    ("!Domain [null, \"*.lan\", 0, ANY]", "home", "tcp://nas.lan:1", "10.1.2.3"),
    ("!Domain [null, \"*.lan\", 0, ANY]", "home", "tcp://a.nas.lan:1", "10.1.2.3"),
    ("!Domain [null, \"**.lan\", 0, ANY]", "home", "tcp://a.nas.lan:1", "10.1.2.3"),
    ("!Domain [null, \"**.lan\", 0, ANY]", "home", "tcp://lan:1", "10.1.2.3"),
    ("!Any [home, true]", "home", "tcp://10.1.2.3:1", "10.1.2.3"),
    ("!Any [home, true]", "home", "unix:///run/x", ""),
    ("!Any [home, true]", "office", "tcp://10.1.2.3:1", "10.1.2.3"),
    ("!Any [home, false]", "home", "tcp://10.1.2.3:1", "10.1.2.3"),
    ("!Any [home, false]", "office", "tcp://10.1.2.3:1", "10.1.2.3"),
];

fn grant(permit: bool, item: &str) -> Grant {
    let items = if item == "(no item)" { "[]" } else { &format!("[{item}]") };
    serde_yaml::from_str(&format!("permit: {permit}\npolicies: {items}\n")).unwrap()
}

/// What both steps say, who says it, and whether an item did.
fn verdict(grant: &Grant, agent: &str, target: &Target, ip: &str) -> String {
    let (decision, by) = match grant.permit(agent, target).unwrap() {
        Decision { verdict: Verdict::Depends, .. } => {
            let rules = grant.address_rules(agent, target);
            (rules.permit_addr(ip.parse().unwrap(), target.port(), target.transport().unwrap()), "agent: ")
        }
        decided => (decided, ""),
    };
    let verdict = if decision.allowed() { "allow" } else { "**refuse**" };
    let reason = if matches!(decision.reason, Reason::Item { .. }) { ", by the item" } else { "" };
    format!("{by}{verdict}{reason}")
}

fn table() -> String {
    let mut table = String::from(
        "| item | agent | asked for | its address | `permit: true` | `permit: false` |\n|---|---|---|---|---|---|\n",
    );
    for (item, agent, asked, ip) in ROWS {
        let target: Target = asked.parse().unwrap();
        let [yes, no] = [true, false].map(|mode| verdict(&grant(mode, item), agent, &target, ip));
        let item = if item == "(no item)" { item } else { &format!("`{item}`") };
        let _ = writeln!(table, "| {item} | {agent} | `{asked}` | {ip} | {yes} | {no} |");
    }
    table
}

#[test]
fn the_documents_table_says_what_the_function_says() {
    let page = std::fs::read_to_string(PAGE).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let written = format!("{before}{BEGIN}\n{}\n{END}{after}", table());
    if std::env::var("NARROWLINK_BLESS").is_ok_and(|value| value == "1") {
        std::fs::write(PAGE, written).unwrap();
    } else {
        assert!(page == written, "docs/policy.md is out of date: NARROWLINK_BLESS=1 rewrites its table");
    }
}
