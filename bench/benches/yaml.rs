//! Promise: the token generator is quick enough to run for every user at once: a token's YAML is read and
//! signed in well below 1 ms.
#![expect(clippy::unwrap_used, reason = "a benchmark")]

mod kit;

use std::{fmt::Write as _, hint::black_box};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use narrowlink_proto::{
    id::Uid,
    token::{Claims, Keys},
};
use narrowlink_tokengen::input::Input;

const NOW: u64 = 1_800_000_000;
const USERS: u128 = 100;

/// A client with three rules and an agent for each user.
fn file() -> String {
    let mut yaml = String::from(
        "secret: \"hex:0707070707070707070707070707070707070707070707070707070707070707\"\ntokens:\n",
    );
    for user in 0..USERS {
        let uid = Uid::from_u128(user);
        write!(
            yaml,
            "  - !Client
    uid: {uid}
    name: laptop
    exp: 365d
    policies:
      permit: true
      policies:
        - !Ip [home, 192.168.0.0/24, 22, TCP]
        - !Domain [home, '*.narrow.host', 443, TCP]
        - !Any [lab, true]
  - !Agent
    uid: {uid}
    name: home
    exp: 365d
"
        )
        .unwrap();
    }
    yaml
}

fn claims(input: &Input) -> Vec<Claims> {
    let drafts = input.drafts(NOW, || "fresh".to_owned()).unwrap().drafts;
    drafts.into_iter().map(|draft| draft.claims).collect()
}

fn parse(c: &mut Criterion) {
    let yaml = file();
    let input = Input::parse(&yaml).unwrap();
    let all = claims(&input);
    assert_eq!(all.len() as u128, 2 * USERS);
    assert_eq!(all[0].policies.lists()[0].policies.len(), 3);
    assert_eq!((all[1].name.as_str(), all[1].exp), ("home", NOW + 365 * 24 * 3600));

    let keys = Keys::new(&[7; 32]);
    let mut group = c.benchmark_group("tokens.yaml, per token");
    group.throughput(Throughput::Elements(all.len() as u64));
    group.bench_function("parse", |b| b.iter(|| Input::parse(black_box(&yaml))));
    group.bench_function("claims", |b| b.iter(|| claims(black_box(&input))));
    group.bench_function("sign", |b| {
        b.iter(|| black_box(&all).iter().map(|claims| keys.sign(claims).unwrap().len()).sum::<usize>());
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = kit::criterion();
    targets = parse
}
criterion_main!(benches);
