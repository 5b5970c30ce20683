//! Role: the real program: what it prints, where, and how it exits.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

mod errors;
mod files;
mod kit;
mod look;

use narrowlink_proto::{
    id::Uid,
    policy::{Item, Verdict},
    target::Target,
    token::{Claims, Keys, Kind, PublishProtocol, TokenError},
};

use crate::kit::{Ended, Site, UID, agent, file, keys, now, run, tokens};

const SEED: &str = include_str!("../seed.yaml");
const LATER: &str = include_str!("../later.yaml");
/// Published between the two: ids of policies, whose lists say `permit`.
const BETWEEN: &str = include_str!("../between.yaml");
const SEED_SECRET: [u8; 8] = [2, 0, 2, 3, 0, 8, 1, 8];
const SEED_EXP: u64 = 1_710_227_806;

#[test]
fn the_published_example_runs_unchanged_and_its_tokens_hold() {
    let (stdout, stderr, code) = run(SEED, &[]);
    assert_eq!(code, 0, "{stderr}");
    let labels: Vec<_> = stdout.lines().filter(|line| line.starts_with('#')).collect();
    let uid = "00000000-0000-0000-0000-000000000000";
    for (label, want) in labels.iter().zip([
        format!("# Client {uid} client_name_1 "),
        format!("# Client {uid} client_name_2 "),
        format!("# Agent {uid} agent_name_3 "),
        format!("# AgentPublish {uid} agent_name_3 "),
    ]) {
        assert!(label.starts_with(&want), "{label}");
    }
    let keys = Keys::new(&SEED_SECRET);
    let kinds = [Kind::Client, Kind::Client, Kind::Agent, Kind::AgentPublish];
    let verify = |(token, kind): (&&str, _)| keys.verify(token, kind, SEED_EXP - 1).unwrap();
    let claims: Vec<Claims> = tokens(&stdout).iter().zip(kinds).map(verify).collect();
    assert_eq!(claims.len(), 4);
    assert!(claims.iter().all(|c| c.uid == Uid::nil() && c.exp == SEED_EXP && c.iat.is_some()));
    let [list] = claims[0].policies.lists() else { panic!("{:?}", claims[0].policies) };
    assert!(list.permit && matches!(list.policies[..], [Item::Any(None, true)]));
    let ssh = Target::Tcp { host: "192.168.0.9".into(), port: 22 };
    assert_eq!(claims[1].policies.permit("whichever", &ssh).unwrap().verdict, Verdict::Allow);
    assert!(claims[2].policies.is_unrestricted());
    let hosts = claims[3].connect.as_ref().unwrap().iter();
    let hosts: Vec<_> =
        hosts.map(|host| (host.host.as_str(), host.port, host.addr.0.as_str(), host.addr.1)).collect();
    assert_eq!(hosts, [("narrow.host", 0, "127.0.0.1", 8080), ("me.narrow.host", 0, "narrow.host", 80)]);
}

#[test]
fn the_later_example_gives_tokens_that_carry_their_policies() {
    let (stdout, stderr, code) = run(LATER, &[]);
    assert_eq!(code, 0, "{stderr}");
    let keys = Keys::new(&SEED_SECRET);
    let kinds = [Kind::Client, Kind::Client, Kind::Client, Kind::Agent, Kind::AgentPublish];
    let verify = |(token, kind): (&&str, _)| keys.verify(token, kind, SEED_EXP - 1).unwrap();
    let claims: Vec<Claims> = tokens(&stdout).iter().zip(kinds).map(verify).collect();
    assert_eq!(claims.iter().map(|c| c.policies.lists().len()).collect::<Vec<_>>(), [0, 2, 1, 0, 0]);
    let verdict = |client: usize, agent: &str, host: &str, port| {
        let target = Target::Tcp { host: host.into(), port };
        claims[client].policies.permit(agent, &target).unwrap().verdict
    };
    for (agent, host, port, want) in [
        ("whichever", "192.168.0.9", 22, Verdict::Allow),
        ("whichever", "192.168.0.99", 22, Verdict::Deny),
        ("whichever", "192.168.0.9", 23, Verdict::Deny),
        // The list of names is content; the other one wants to see the addresses.
        ("agent_name", "narrow.host", 443, Verdict::Depends),
        ("whichever", "narrow.host", 443, Verdict::Deny),
    ] {
        assert_eq!(verdict(1, agent, host, port), want, "{agent} {host} {port}");
    }
    assert_eq!(verdict(0, "whichever", "192.168.0.99", 1), Verdict::Allow);
    assert_eq!(verdict(2, "agent_name", "10.0.0.1", 1), Verdict::Deny);
    let hosts = claims[4].connect.as_ref().unwrap().iter();
    let hosts: Vec<_> =
        hosts.map(|host| (host.host.as_str(), host.port, host.addr.1, host.protocol)).collect();
    let (http, tcp) = (PublishProtocol::Http, PublishProtocol::Tcp);
    assert_eq!(hosts, [("narrow.host", 0, 80, http), ("tls.narrow.host", 443, 443, tcp)]);
    assert!(!stderr.contains("restricts nobody"), "{stderr}");
}

#[test]
fn the_example_between_them_is_taken_too() {
    let (stdout, stderr, code) = run(BETWEEN, &[]);
    assert_eq!(code, 0, "{stderr}");
    let client = Keys::new(&[2, 0, 2, 3]).verify(tokens(&stdout)[1], Kind::Client, SEED_EXP - 1).unwrap();
    let allows = |agent: &str, host: &str, port| {
        client.policies.permit(agent, &Target::Tcp { host: host.into(), port }).unwrap().verdict
    };
    assert_eq!(tokens(&stdout).len(), 4);
    assert_eq!(allows("whichever", "192.168.0.9", 22), Verdict::Allow);
    assert_eq!(allows("whichever", "192.168.0.9", 23), Verdict::Deny);
}

#[test]
fn entries_of_one_file_may_differ_in_form() {
    let later = LATER.split_once("tokens:").unwrap().1;
    let (stdout, stderr, code) = run(&format!("{SEED}{later}"), &[]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(tokens(&stdout).len(), 9);
}

#[test]
fn a_policy_that_ends_first_ends_the_token_and_this_is_said() {
    let entries = format!(
        "  - !Client {{ uid: {UID}, name: c, exp: 30d, policies: [7] }}
  - !ClientPolicy {{ uid: {UID}, name: p, exp: 10d, nbf: 1h, pid: 7, policy: !WhiteList [!Any [null, true]] }}
  - !ClientPolicy {{ uid: {UID}, name: q, exp: 10d, pid: 8, policy: !BlackList [!Any [a, true], !Any [a, true]] }}
"
    );
    let (stdout, stderr, code) = run(&file(&entries), &[]);
    assert_eq!((code, tokens(&stdout).len()), (0, 1), "{stderr}");
    let client = keys().verify(tokens(&stdout)[0], Kind::Client, now() + 3700).unwrap();
    assert_eq!(client.exp - client.iat.unwrap(), 10 * 24 * 3600);
    for says in [
        "warning: tokens[0] (Client c, line 3): exp is brought forward to ",
        ", when policy 7, tokens[1] (ClientPolicy p, line 4), ends: a restriction that ran out must not become a freedom\n",
        "warning: tokens[0] (Client c, line 3): nbf is put off to ",
        "warning: tokens[2] (ClientPolicy q, line 5): policies[0]: !Any [.., true] in a blacklist",
        "warning: tokens[2] (ClientPolicy q, line 5): policies[1]: comes twice\n",
        "warning: tokens[2] (ClientPolicy q, line 5): no !Client names policy 8: it restricts nobody\n",
    ] {
        assert!(stderr.contains(says), "{says}\n{stderr}");
    }
}

#[test]
fn limits_and_ports_are_written_as_people_do() {
    let entries = format!(
        "  - !Client
    uid: {UID}
    name: c
    exp: 1d
    limits: {{ sessions: 5, streams: 6, dials_per_s: 7, bytes_per_s: 10MB, bytes_per_month: 1TB }}
    policies: !WhiteList [!Ip [null, 10.0.0.0/8, [22, 8000-8100], TCP]]
"
    );
    let (stdout, stderr, code) = run(&file(&entries), &[]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let client = keys().verify(tokens(&stdout)[0], Kind::Client, now()).unwrap();
    assert_eq!(
        serde_json::to_string(&client.limits).unwrap(),
        r#"{"sessions":5,"streams":6,"dials_per_s":7,"bytes_per_s":10000000,"bytes_per_month":1000000000000}"#
    );
    let permit =
        |port| client.policies.permit("a", &Target::Tcp { host: "10.1.1.1".into(), port }).unwrap().verdict;
    assert_eq!([22, 8050, 80].map(permit), [Verdict::Allow, Verdict::Allow, Verdict::Deny]);
}

#[test]
fn a_check_says_what_would_be_and_shows_no_token() {
    let (stdout, stderr, code) = run(SEED, &["--check"]);
    let (plain, warned, _) = run(SEED, &[]);
    assert_eq!((code, stderr), (0, warned));
    let first = "Client 00000000-0000-0000-0000-000000000000 client_name_1 until 2024-03-12 07:16:46 UTC (";
    assert!(stdout.starts_with(first), "{stdout}");
    assert_eq!(stdout.lines().count(), 4);
    assert!(stdout.lines().all(|line| line.ends_with(" ago)")), "{stdout}");
    assert!(tokens(&plain).iter().all(|token| token.starts_with("ey")) && !stdout.contains("ey"), "{stdout}");
    let (stdout, _, code) = run(&file(&agent("a", "")), &["--check"]);
    assert!(code == 0 && stdout.contains(" UTC (in 2") && stdout.ends_with(" hours)\n"), "{stdout}");
    let (stdout, stderr, code) = run("secret: !File nowhere\ntokens: []\n", &["--check"]);
    assert_eq!((code, stdout.as_str()), (78, ""));
    assert!(
        stderr.contains("tokens.yaml: line 1 column 9: secret: this file can't be read: No such file"),
        "{stderr}"
    );
}

#[test]
fn a_token_serves_as_its_own_kind_only_and_expires() {
    let (stdout, _, _) = run(SEED, &[]);
    let keys = Keys::new(&SEED_SECRET);
    let agent = tokens(&stdout)[2];
    for kind in [Kind::Client, Kind::AgentPublish] {
        assert!(matches!(keys.verify(agent, kind, SEED_EXP - 1), Err(TokenError::Signature)));
    }
    assert!(matches!(keys.verify(agent, Kind::Agent, now()), Err(TokenError::Expired { .. })));
}

#[test]
fn the_published_example_is_warned_about() {
    let (stdout, stderr, _) = run(SEED, &[]);
    assert!(stderr.contains("warning: secret: 8 bytes"), "{stderr}");
    assert_eq!(stderr.matches("exp is in the past (2024-03-12 07:16:46 UTC)").count(), 4, "{stderr}");
    assert!(stderr.contains("tokens[3] (AgentPublish agent_name_3, line "), "{stderr}");
    assert!(!stdout.contains("warning"));
}

#[test]
fn json_has_the_same_tokens_with_their_labels() {
    let (stdout, _, code) = run(SEED, &["--json"]);
    assert_eq!(code, 0);
    let list: Vec<serde_json::Value> = serde_json::from_str(&stdout).unwrap();
    let field = |name: &str| list.iter().map(|one| one[name].as_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(field("kind"), ["Client", "Client", "Agent", "AgentPublish"]);
    assert_eq!(field("name"), ["client_name_1", "client_name_2", "agent_name_3", "agent_name_3"]);
    assert!(list.iter().all(|one| one["uid"] == Uid::nil().to_string() && one["exp"] == SEED_EXP));
    let claims = Keys::new(&SEED_SECRET).verify(field("token")[2], Kind::Agent, SEED_EXP - 1).unwrap();
    assert_eq!(claims.jti, field("jti")[2]);
}

#[test]
fn every_token_gets_a_name_of_its_own_unless_it_has_one() {
    let yaml = file(&[agent("a", ""), agent("a", ""), agent("a", ", jti: my own")].concat());
    let (stdout, stderr, code) = run(&yaml, &[]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let keys = keys();
    let verify = |token: &&str| keys.verify(token, Kind::Agent, now()).unwrap().jti;
    let jtis: Vec<_> = tokens(&stdout).iter().map(verify).collect();
    assert_ne!(jtis[0], jtis[1]);
    assert_eq!((jtis[0].len(), jtis[2].as_str()), (32, "my own"));
}

#[test]
fn human_times_and_every_form_of_the_secret_are_taken() {
    let nines = vec!["9"; 32].join(",");
    let hex = "09".repeat(32);
    for secret in [&format!("[{nines}]"), &format!("hex:{hex}"), &format!("'hex:{hex}'"), "!File secret"] {
        let yaml = format!(
            "
secret: {secret}
tokens:
  - !Client
    uid: 00000000-0000-0000-0000-000000000001
    name: c
    exp: 9999-12-31
    nbf: 2020-01-01
  - !Agent {{ uid: 00000000-0000-0000-0000-000000000001, name: a, exp: 12h, nbf: 1h }}"
        );
        let (stdout, stderr, code) = run(&yaml, &[]);
        assert_eq!((code, stderr.as_str()), (0, ""), "{secret}");
        let keys = keys();
        let client = keys.verify(tokens(&stdout)[0], Kind::Client, now()).unwrap();
        assert_eq!((client.exp, client.nbf), (253_402_214_400, Some(1_577_836_800)));
        assert!(client.policies.is_unrestricted());
        let agent = tokens(&stdout)[1];
        assert!(matches!(keys.verify(agent, Kind::Agent, now()), Err(TokenError::NotYet { .. })));
        let agent = keys.verify(agent, Kind::Agent, now() + 3600).unwrap();
        assert_eq!(agent.exp - agent.nbf.unwrap(), 11 * 3600);
    }
}

#[test]
fn a_secret_that_others_can_read_is_warned_of() {
    let site = Site::new();
    site.write("inline.yaml", &format!("secret: 'hex:{}'\ntokens:\n{}", "09".repeat(32), agent("a", "")));
    site.write("tokens.yaml", &format!("secret: !File secret\ntokens:\n{}", agent("a", "")));
    for (config, holder) in [("inline.yaml", "inline.yaml"), ("tokens.yaml", "secret")] {
        assert_eq!(site.run(&[config]).stderr, "");
        site.open_to(0o644, config);
        site.open_to(0o640, holder);
        let Ended { stderr, code, .. } = site.run(&[config]);
        let says = format!("warning: {holder} holds the secret and others can read it: chmod 600 it\n");
        assert_eq!((code, stderr), (0, says));
    }
}

#[test]
fn the_command_line_is_understood_or_refused_at_once() {
    let site = Site::new();
    site.write("t.yaml", SEED);
    for good in [
        &["t.yaml"][..],
        &["-c", "t.yaml"],
        &["--config", "t.yaml"],
        &["--json", "-c", "t.yaml"],
        &["t.yaml", "--check"],
        &["-o", "out", "t.yaml"],
        &["t.yaml", "--output", "out", "--json"],
        &["keygen"],
        &["-c", "t.yaml", "--check"],
    ] {
        let Ended { code, stderr, .. } = site.run(good);
        assert_eq!(code, 0, "{good:?}: {stderr}");
    }
    for bad in [
        &[][..],
        &["-c"],
        &["t.yaml", "-c", "t.yaml"],
        &["t.yaml", "t.yaml"],
        &["--yaml", "t.yaml"],
        &["t.yaml", "--check", "--json"],
        &["t.yaml", "--check", "-o", "out"],
        &["--check"],
        &["-c", "t.yaml", "inspect", "x"],
        &["inspect"],
        &["inspect", "a", "b"],
        &["keygen", "file"],
    ] {
        let Ended { code, stdout, .. } = site.run(bad);
        assert_eq!((code, stdout.as_str()), (2, ""), "{bad:?}");
    }
}

#[test]
fn a_file_may_have_the_name_of_a_command() {
    let site = Site::new();
    site.write("keygen", SEED);
    for arguments in [&["./keygen", "--check"][..], &["-c", "keygen", "--check"]] {
        assert!(site.run(arguments).stdout.starts_with("Client "), "{arguments:?}");
    }
}

#[test]
fn every_example_of_the_document_works() {
    let page = include_str!("../../../docs/tokens.md");
    let blocks: Vec<_> =
        page.split("```yaml\n").skip(1).map(|rest| rest.split_once("```").unwrap().0).collect();
    assert_eq!(blocks.len(), 4);
    for block in blocks {
        let yaml = if block.starts_with("secret:") { block.to_owned() } else { file(block) };
        let (stdout, stderr, code) = run(&yaml, &["--check"]);
        assert_eq!((code, stderr.as_str()), (0, ""), "{block}");
        assert!(stdout.lines().count() > 0, "{block}");
    }
}

#[test]
fn help_shows_an_example_that_works() {
    let help = Site::new().run(&["--help"]);
    assert_eq!(help.code, 0);
    let yaml = help.stdout.split_once("tokens.yaml:\n").unwrap().1.split_once("\n\n").unwrap().0;
    let (stdout, stderr, code) = run(yaml, &[]);
    assert_eq!((code, stderr.as_str()), (0, ""), "{yaml}");
    assert_eq!(tokens(&stdout).len(), 2);
    for (command, says) in
        [("inspect", "tokengen inspect laptop.token --secret"), ("keygen", "keygen -o secret")]
    {
        assert!(help.stdout.contains(command));
        let help = Site::new().run(&[command, "--help"]);
        assert!(help.code == 0 && help.stdout.contains(says), "{}", help.stdout);
    }
}
