//! Role: secrets and tokens in every wrong place of every file and command line, and none of them in what is said.
//! Invariants: the keys are those of the documents, so that a new one is tried, too · a value that is taken is no
//! misplacement; whatever is refused repeats at most seven characters of it.
//! See: `proto::secrecy`, `proto::yaml`; docs/configuration.md.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use narrowlink_control::{
    config, expectations::Expectations, gateway, revocations::Revocations, tickets::book::Book,
};
use narrowlink_proto::secrecy::shares_a_part;
use serde_yaml::{
    Mapping, Value,
    value::{Tag, TaggedValue},
};

const SECRET: &str = "hex:c0ffee00c0ffee11c0ffee22c0ffee33c0ffee44c0ffee55c0ffee66c0ffee77";
const BASE64: &str = "base64:q83vASNFZ4mrze8BI0VniavN7wEjRWeJq83vASNFZ4k=";
const TOKEN: &str =
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJraW5kIjoiY2xpZW50In0.U2lnbmF0dXJlT2ZOb2JvZHlBdEFsbA";
const PLAIN: &str = "Tr0ub4dor-and-3-horses";
const PHRASE: &str = "quartz jackdaws vex my sphinx";
/// `NARROWLINK_CANARIES` says how many of these are tried in each place of every file (1, in turns; in the long form 5).
const CANARIES: [&str; 5] = [SECRET, TOKEN, PHRASE, BASE64, PLAIN];

const NOW: u64 = 1_795_219_200;

/// A file that has every key, and what reads it: what it says of one that it refuses.
struct Subject {
    file: &'static str,
    good: &'static str,
    read: fn(&Path) -> Result<(), String>,
}

const SUBJECTS: [Subject; 7] = [
    Subject { file: "gateway.yaml", good: GATEWAY, read: read_gateway },
    Subject { file: "agent.yaml", good: AGENT, read: read_agent },
    Subject { file: "client.yaml", good: CLIENT, read: read_client },
    Subject { file: "tickets.yaml", good: BOOK, read: read_book },
    Subject { file: "tokens.yaml", good: TOKENS, read: read_tokens },
    Subject { file: "expected.yaml", good: EXPECTED, read: read_expected },
    Subject { file: "revoked.yaml", good: REVOKED, read: read_revoked },
];

const GATEWAY: &str = r#"
name: gw
secret: "hex:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
old_secrets: [!File secret]
services:
  - !Wss { domains: [gw.example], listen_addr: "127.0.0.1:0", tls_config: !File { domains: [gw.example], cert_path: chain.pem, key_path: key.pem } }
  - !Ws { domains: [gw.example], listen_addr: "127.0.0.1:0" }
workers: 1
pin: false
drain_s: 5
limits:
  client_hello_timeout_s: 3
  tls_handshake_timeout_s: 5
  head_timeout_s: 5
  dial_timeout_s: 10
  ping_interval_s: 4
  pong_timeout_s: 5
  quiet_ping_interval_s: 25
  orphan_lane_timeout_s: 10
  strangers_max: 2048
  strangers_per_source_max: 64
  strangers_per_source_per_s: 50
  strangers_per_source_burst: 200
  failed_logins_per_min: 10
  login_penalty_min_s: 1
  login_penalty_max_s: 600
  login_sources_max: 65536
  agent_links_max: 4
  client_links_max: 64
  agent_lanes_max: 1024
  agent_lanes_per_s: 1000
  token: { sessions: 1, streams: 1, dials_per_s: 1, bytes_per_s: 10MB, bytes_per_month: 1TB }
  user: { sessions: 1 }
users: { 6f1c0b7e-57c8-4a6e-9a3c-2f8f5a1d7e10: { sessions: 1 } }
audit: audit.log
state_dir: state
revocations: list.yaml
allow_weak_secret: false
allow_readable_secrets: false
"#;

/// Nobody's: it has the form of one, and no secret signed it.
const AGENT_TOKEN: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJraW5kIjoiYWdlbnQiLCJ1aWQiOiI2ZjFjMGI3ZS01N2M4LTRhNmUtOWEzYy0yZjhmNWExZDdlMTAiLCJuYW1lIjoiaG9tZSIsImp0aSI6ImoiLCJleHAiOjQwMDAwMDAwMDB9.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

const AGENT: &str = r#"
endpoints:
  - !SelfHosted { gateway: "gw.example:443", token_file: agent.token, protocol: Wss, ca_file: ca.pem, domain: gw.example, framing: auto }
  - !SelfHosted { gateway: "gw.example:80", token: eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJraW5kIjoiYWdlbnQiLCJ1aWQiOiI2ZjFjMGI3ZS01N2M4LTRhNmUtOWEzYy0yZjhmNWExZDdlMTAiLCJuYW1lIjoiaG9tZSIsImp0aSI6ImoiLCJleHAiOjQwMDAwMDAwMDB9.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA, protocol: Ws }
lanes: { min: 1, max: 8 }
allow: [10.0.0.0/8]
deny: ["*.lan:22"]
state_dir: state
"#;

const CLIENT: &str = r#"
endpoints:
  - !SelfHosted { gateway: "gw.example:443", token_file: t, protocol: Wss, ca_file: ca.pem, domain: gw.example, framing: auto }
  - !SelfHosted { gateway: "gw.example:80", token: abc, protocol: Ws }
  - !SelfHosted { gateway: "gw.example:443", token_file: t, ca_pin: "sha256:n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg" }
"#;

const BOOK: &str = r#"
gateways: ["gw.example:443"]
domain: gw.example
ca_pin: "sha256:n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg"
users: [{ name: main, uid: 6f1c0b7e-57c8-4a6e-9a3c-2f8f5a1d7e10 }]
tickets: [{ user: main, kind: client, name: laptop, jti: a, iat: 1, exp: 2, allow: ["home:127.0.0.1:22"] }]
"#;

const TOKENS: &str = r#"
secret: !File secret
tokens:
  - !Agent { uid: 6f1c0b7e-57c8-4a6e-9a3c-2f8f5a1d7e10, name: home, exp: 30d, nbf: 1, jti: a }
  - !Client
    uid: 6f1c0b7e-57c8-4a6e-9a3c-2f8f5a1d7e10
    name: laptop
    exp: 2045-01-31
    policies: { permit: true, policies: [!Ip [home, 10.0.0.0/8, [22, 80-90], TCP], !Domain [null, nas.lan, 0, ANY], !Any [home, true]] }
    limits: { sessions: 1, streams: 1, dials_per_s: 1, bytes_per_s: 10MB, bytes_per_month: 1TB }
  - !ClientPolicy { uid: 6f1c0b7e-57c8-4a6e-9a3c-2f8f5a1d7e10, name: p, exp: 30d, pid: 7, policy: { type: WhiteList, policies: [!Any [home, true]] } }
  - !Client { uid: 6f1c0b7e-57c8-4a6e-9a3c-2f8f5a1d7e10, name: b, exp: 30d, policies: [7] }
  - !AgentPublish { uid: 6f1c0b7e-57c8-4a6e-9a3c-2f8f5a1d7e10, name: home, exp: 30d, publish_hosts: [{ host: a.example, port: 443, connect: { host: 127.0.0.1, port: 80, protocol: HTTP } }] }
  - !AgentPublish { uid: 6f1c0b7e-57c8-4a6e-9a3c-2f8f5a1d7e10, name: home, exp: 30d, connect: { b.example: { addr: [127.0.0.1, 80], protocol: HTTP } } }
"#;

const EXPECTED: &str = r#"
tokens:
  laptop: !Policies { permit: true, policies: [!Ip [home, 10.0.0.0/8, 22, TCP]] }
expect:
  - [laptop, home, "tcp://10.0.0.1:22", allow]
  - { token: laptop, agent: home, target: "tcp://nas.lan:22", resolved: 10.0.0.7, verdict: allow, rule: "policies[0]" }
"#;

const REVOKED: &str = r#"
- jti: a
- { uid: 6f1c0b7e-57c8-4a6e-9a3c-2f8f5a1d7e10, name: laptop, issued_before: 1 }
"#;

fn read_gateway(path: &Path) -> Result<(), String> {
    let config = config::Config::load(path).map_err(|e| e.to_string())?;
    gateway::check(&config).map_err(|e| e.to_string())
}

fn read_agent(path: &Path) -> Result<(), String> {
    let config = narrowlink_agent::config::Config::load(path).map_err(|e| e.to_string())?;
    config.gateways().map(|_| ()).map_err(|e| e.to_string())
}

fn read_client(path: &Path) -> Result<(), String> {
    let config = narrowlink_client::config::Config::load(path).map_err(|e| e.to_string())?;
    config.gateways().map(|_| ()).map_err(|e| e.to_string())
}

fn read_book(path: &Path) -> Result<(), String> {
    Book::read(path).map(drop).map_err(|e| e.to_string())
}

fn read_tokens(path: &Path) -> Result<(), String> {
    let generated = narrowlink_tokengen::run(path, NOW, || [7; 16]).map_err(|e| e.to_string())?;
    // A warning about a name that is one says whose it is.
    drop(generated);
    Ok(())
}

fn read_expected(path: &Path) -> Result<(), String> {
    Expectations::load(path, None, NOW).map(|_| ()).map_err(|e| e.to_string())
}

fn read_revoked(path: &Path) -> Result<(), String> {
    Revocations::load(path).map(|_| ()).map_err(|e| e.to_string())
}

/// A directory with all that the good files name.
fn site() -> tempfile::TempDir {
    narrowlink_dataplane::tls::install_crypto();
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["gw.example".to_owned()]).unwrap();
    for (name, text) in [
        ("chain.pem", made.cert.pem()),
        ("ca.pem", made.cert.pem()),
        ("key.pem", made.signing_key.serialize_pem()),
        ("secret", "0123456789abcdef0123456789abcdef".to_owned()),
        ("t", "abc".to_owned()),
        ("agent.token", AGENT_TOKEN.to_owned()),
        ("list.yaml", REVOKED.to_owned()),
    ] {
        write(&dir.path().join(name), &text);
    }
    dir
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// What stands in place of a good value, or of a key.
fn wrong_forms(canary: &str) -> Vec<Value> {
    let text = Value::from(canary);
    let map = |key: Value, value: Value| Value::Mapping(Mapping::from_iter([(key, value)]));
    let tagged = |tag: &str, value: Value| Value::Tagged(Box::new(TaggedValue { tag: Tag::new(tag), value }));
    let mut forms = vec![
        text.clone(),
        Value::Sequence(vec![text.clone()]),
        Value::Sequence(vec![Value::Sequence(vec![text.clone()])]),
        map(text.clone(), Value::from(1)),
        map(Value::from("name"), text.clone()),
        map(text.clone(), text.clone()),
        tagged("File", text.clone()),
        tagged("File", Value::Sequence(vec![text.clone()])),
        tagged("Any", Value::Sequence(vec![text.clone(), text])),
    ];
    // As a tag, where it can be one.
    if canary.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b)) {
        forms.push(tagged(canary, Value::Null));
        forms.push(tagged(canary, map(Value::from("name"), Value::from(1))));
    }
    forms
}

/// All that one change makes of a value: something else in its place, or a key more.
fn changes(value: &Value, canary: &str) -> Vec<Value> {
    let mut all = wrong_forms(canary);
    match value {
        Value::Sequence(items) => {
            for (at, item) in items.iter().enumerate() {
                for changed in changes(item, canary) {
                    let mut items = items.clone();
                    items[at] = changed;
                    all.push(Value::Sequence(items));
                }
            }
            let more = items.iter().cloned().chain([Value::from(canary)]);
            all.push(Value::Sequence(more.collect()));
        }
        Value::Mapping(map) => {
            for (key, value) in map {
                for changed in changes(value, canary) {
                    let mut map = map.clone();
                    map.insert(key.clone(), changed);
                    all.push(Value::Mapping(map));
                }
                // The canary in place of the key.
                let renamed = map.iter().map(|(other, value)| {
                    (if other == key { Value::from(canary) } else { other.clone() }, value.clone())
                });
                all.push(Value::Mapping(renamed.collect()));
            }
            let mut more = map.clone();
            more.insert(Value::from(canary), Value::from(canary));
            all.push(Value::Mapping(more));
        }
        Value::Tagged(tagged) => {
            // One tag behind the other is no YAML.
            let changed = changes(&tagged.value, canary).into_iter();
            let changed = changed.filter(|value| !matches!(value, Value::Tagged(_)));
            all.extend(
                changed.map(|value| Value::Tagged(Box::new(TaggedValue { tag: tagged.tag.clone(), value }))),
            );
        }
        _ => {}
    }
    all
}

fn assert_silent(said: &str, canary: &str, what: &str) {
    assert!(!shares_a_part(said, canary), "{what}: {said:?} repeats {canary:?}");
}

#[test]
fn no_value_in_a_wrong_place_of_a_file_is_repeated() {
    let dir = site();
    let count = std::env::var("NARROWLINK_CANARIES").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    for Subject { file, good, read } in SUBJECTS {
        let path = dir.path().join(file);
        write(&path, good);
        assert_eq!(read(&path), Ok(()), "{file} is good");
        let tree: Value = serde_yaml::from_str(good).unwrap();
        let (mut tried, mut refused) = (0, 0);
        for (turn, canary) in CANARIES.into_iter().enumerate() {
            let all = changes(&tree, canary).into_iter().enumerate();
            let some = all.filter(|(at, _)| (at + turn) % CANARIES.len() < count);
            for (_, changed) in some {
                let text = serde_yaml::to_string(&changed).unwrap();
                write(&path, &text);
                tried += 1;
                if let Err(said) = read(&path) {
                    refused += 1;
                    assert_silent(&said, canary, &text);
                    let rust = ["struct ", "enum ", "variant", "usize", "u32", "deserialize", "invalid type"];
                    assert!(!rust.iter().any(|word| said.contains(word)), "{said}");
                    // Its file and line; of a list the entry by its number. What a start needs of the system has its line
                    // where the program ends: `Places::locate`.
                    let name = said.contains(&format!("{file}: "));
                    let located = name && (said.contains(": line ") || said.contains(", line "))
                        || said.starts_with("audit: ")
                        || said.starts_with("state_dir: ");
                    assert!(located, "{said}\n{text}");
                }
            }
        }
        println!("{file}: {tried} tried, {refused} refused");
        assert!(refused * 2 > tried, "{file}: {refused} of {tried} were refused");
    }
}

#[test]
fn what_is_no_yaml_is_not_repeated() {
    let dir = site();
    for Subject { file, good, read } in SUBJECTS {
        let path = dir.path().join(file);
        for canary in CANARIES {
            for text in [
                canary.to_owned(),
                format!("secret: \"{canary}\n{good}"),
                format!("{good}\n  {canary}: [\n"),
                format!("{good}\n{canary}: {canary}: x\n"),
                format!("{good}\n*{canary}\n"),
                format!("a: *{canary}\n"),
                format!("%{canary}\n---\n{good}"),
                format!("a: \"\\{canary}\"\n"),
                format!("{good}\n@{canary}\n"),
                format!("{good}---\n{canary}\n"),
            ] {
                write(&path, &text);
                if let Err(said) = read(&path) {
                    assert_silent(&said, canary, &text);
                }
            }
        }
    }
}

/// The keys that a document's tables explain: `key` in the first column.
fn documented(markdown: &str) -> Vec<String> {
    let rows = markdown.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    let words = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    words
        .filter(|word| word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_documented_key_is_tried() {
    let keys = documented(include_str!("../../docs/configuration.md"));
    // Words of other tables.
    let keys: Vec<_> = keys.into_iter().filter(|key| !key.is_empty()).collect();
    assert!(keys.len() > 40, "{keys:?}");
    for key in keys {
        let is_tried = [GATEWAY, AGENT, CLIENT].iter().any(|good| good.contains(&format!("{key}:")));
        assert!(is_tried, "`{key}` stands in docs/configuration.md and not in the files of this test");
    }
}

/// A program that lies beside this test.
fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join(name);
    assert!(path.is_file(), "{} is missing: run `cargo build --workspace`", path.display());
    path
}

#[test]
fn no_argument_of_any_program_is_repeated() {
    let dir = site();
    write(&dir.path().join("gateway.yaml"), GATEWAY);
    write(&dir.path().join("client.yaml"), CLIENT);
    // `@` is the canary. Where a name or path is taken, and a plain text is one, only what has a form of its own.
    let any = [
        ("narrowlink-gateway", "@"),
        ("narrowlink-gateway", "--@"),
        ("narrowlink-gateway", "--check=@"),
        ("narrowlink-gateway", "--ktls @"),
        ("narrowlink-gateway", "explain --token @ --agent home --target 10.0.0.1:22 -c gateway.yaml"),
        ("narrowlink-gateway", "explain --token @"),
        ("narrowlink-gateway", "explain --token t --agent home --target @"),
        ("narrowlink-gateway", "explain --token t --agent home --target a:1 --resolved @"),
        ("narrowlink-gateway", "revoke --token @ --list list.yaml"),
        ("narrowlink-gateway", "revoke --token=@ --list list.yaml"),
        ("narrowlink-gateway", "revoke --uid @ --name a --list list.yaml"),
        ("narrowlink-gateway", "revoke --issued-before @ --list list.yaml"),
        ("narrowlink-gateway", "revoke @"),
        ("narrowlink-agent", "@"),
        ("narrowlink-agent", "--check @"),
        ("narrowlink", "@"),
        ("narrowlink", "list @"),
        ("narrowlink", "doctor @"),
        ("narrowlink", "--framing @ list"),
        ("narrowlink", "connect -n home @ -c client.yaml"),
        ("narrowlink", "forward -n home -l @ a:1 -c client.yaml"),
        ("narrowlink", "forward -n home -l@ a:1 -c client.yaml"),
        ("narrowlink", "forward -n home -L @ a:1 -c client.yaml"),
        ("narrowlink", "forward -n home -vl=@ a:1 -c client.yaml"),
        ("narrowlink", "@.yaml list"),
        ("narrowlink-agent", "@.yaml"),
        ("narrowlink-tokengen", "inspect @"),
        ("narrowlink-tokengen", "inspect t --secret @"),
        ("narrowlink-tokengen", "inspect --secret=@ t"),
        ("narrowlink-tokengen", "tokens.yaml extra @"),
    ];
    let formed = [
        ("narrowlink-gateway", "-c @ --check"),
        ("narrowlink-gateway", "--config=@"),
        ("narrowlink-gateway", "--ready-file @"),
        ("narrowlink-gateway", "explain --token t --agent @ --target a:1"),
        ("narrowlink-gateway", "policy test @"),
        ("narrowlink-gateway", "policy test a -c @"),
        ("narrowlink-gateway", "revoke --jti @ --list list.yaml"),
        ("narrowlink-gateway", "revoke --jti a --list @"),
        ("narrowlink-agent", "-c @"),
        ("narrowlink-agent", "--ready-file @"),
        ("narrowlink", "-c @ list"),
        ("narrowlink", "-c @ doctor"),
        ("narrowlink", "connect -n @ a:1 -c client.yaml"),
        ("narrowlink-tokengen", "@"),
        ("narrowlink-tokengen", "-c @"),
        ("narrowlink-tokengen", "tokens.yaml -o @"),
        ("narrowlink-tokengen", "keygen -o @"),
    ];
    let all = CANARIES.iter().flat_map(|canary| any.iter().map(move |line| (canary, line)));
    let by_form = [&SECRET, &TOKEN, &BASE64]
        .into_iter()
        .flat_map(|canary| formed.iter().map(move |line| (canary, line)));
    for (canary, (name, line)) in all.chain(by_form) {
        let args = line.split(' ').map(|word| word.replace('@', canary));
        let output = Command::new(program(name)).args(args).current_dir(dir.path()).output().unwrap();
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(!output.status.success(), "{name} {line} with {canary:?} was taken: {said}");
        assert_silent(&said, canary, &format!("{name} {line}"));
    }
}

/// What a gateway that runs has said so far.
fn log_of(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Waits until the log has `count` lines with `words`.
fn wait_for(log: &Path, words: &str, count: usize) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while log_of(log).matches(words).count() < count {
        assert!(Instant::now() < deadline, "{words:?} is not there {count} times: {}", log_of(log));
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_running_gateway_repeats_nothing_of_a_configuration_that_it_does_not_take() {
    let dir = site();
    let (path, log) = (dir.path().join("gateway.yaml"), dir.path().join("log"));
    write(&path, GATEWAY);
    let mut gateway = Command::new(program("narrowlink-gateway"))
        .arg("-c")
        .arg(&path)
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    wait_for(&log, "listening on", 1);
    let pid = rustix::process::Pid::from_child(&gateway);
    let mut count = 0;
    for canary in CANARIES {
        for text in [
            GATEWAY.replace("old_secrets: [!File secret]", &format!("old_secrets: \"{canary}\"")),
            GATEWAY.replace("key_path: key.pem", &format!("key_path: \"{canary}\"")),
            GATEWAY.replace("workers: 1", &format!("workers: \"{canary}\"")),
            GATEWAY.replace("pin: false", &format!("\"{canary}\": false")),
        ] {
            write(&path, &text);
            rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
            count += 1;
            wait_for(&log, "the configuration was not taken", count);
        }
    }
    gateway.kill().unwrap();
    gateway.wait().unwrap();
    for canary in CANARIES {
        assert_silent(&log_of(&log), canary, "the log");
    }
}
