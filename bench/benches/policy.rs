//! Promise: "may it?" is answered in ns for a usual policy and in less than 2 µs for the longest one.
#![expect(clippy::unwrap_used, reason = "a benchmark")]

mod kit;

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use narrowlink_proto::{
    policy::{Decision, Grant, ITEMS_MAX, Item, Policies, Protocol, Reason, Verdict},
    target::{Target, Transport},
};

const AGENT: &str = "home";

fn ip(net: &str, port: u16) -> Item {
    Item::Ip(Some(AGENT.to_owned()), net.parse().unwrap(), port.into(), Protocol::Tcp)
}

fn domain(name: &str, port: u16) -> Item {
    Item::Domain(Some(AGENT.to_owned()), name.parse().unwrap(), port.into(), Protocol::Tcp)
}

/// A whitelist whose last rule is this one; those before it, half nets and half names, are about other places.
fn whitelist(rules: usize, last: Item) -> Grant {
    let other = |n| match n % 2 {
        0 => ip(&format!("10.0.{n}.0/24"), 22),
        _ => domain(&format!("host-{n}.example"), 443),
    };
    let policies = (1..rules).map(other).chain([last]).collect();
    Grant::new(vec![Policies { permit: true, policies }])
}

fn tcp(host: &str, port: u16) -> Target {
    Target::Tcp { host: host.to_owned(), port }
}

fn decide(c: &mut Criterion) {
    let mut group = c.benchmark_group("policy");
    for rules in [1, 16, ITEMS_MAX] {
        let by_address = whitelist(rules, ip("192.0.2.0/24", 22));
        let by_name = whitelist(rules, domain("*.db.example", 5432));
        let last = Reason::Item { list: 0, item: rules - 1 };
        let none = Reason::NoItem { list: 0 };
        let table = [
            ("address, allowed by the last rule", &by_address, tcp("192.0.2.7", 22), Verdict::Allow, last),
            ("address, refused", &by_address, tcp("198.51.100.1", 22), Verdict::Deny, none),
            ("name, allowed by the last rule", &by_name, tcp("a.db.example", 5432), Verdict::Allow, last),
            ("name, refused", &by_name, tcp("a.other.example", 5432), Verdict::Deny, none),
        ];
        for (what, grant, target, verdict, reason) in table {
            assert_eq!(grant.permit(AGENT, &target), Ok(Decision { verdict, reason }), "{what}");
            group.bench_function(format!("{rules} rules, {what}"), |b| {
                b.iter(|| black_box(grant).permit(AGENT, black_box(&target)));
            });
        }
    }
    group.finish();
}

/// The second step of a name's verdict: the agent's, for each address.
fn resolved(c: &mut Criterion) {
    let policies = whitelist(ITEMS_MAX, ip("192.0.2.0/24", 22));
    let target = tcp("a.db.example", 22);
    assert_eq!(policies.permit(AGENT, &target).unwrap().verdict, Verdict::Depends);
    let rules = policies.address_rules(AGENT, &target);
    let addr = "192.0.2.7".parse().unwrap();
    assert!(rules.permit_addr(addr, 22, Transport::Tcp).allowed());
    c.bench_function("policy/256 rules, one resolved address", |b| {
        b.iter(|| black_box(&rules).permit_addr(addr, 22, Transport::Tcp));
    });
}

criterion_group! {
    name = benches;
    config = kit::criterion();
    targets = decide, resolved
}
criterion_main!(benches);
