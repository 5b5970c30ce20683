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

/// How a certificate by hand goes wrong, from the files of the document: what makes `bad.pem` and `bad.key`, the authority
/// that clients name, and what they are told.
const MISTAKES: [(&str, &str, &str); 7] = [
    ("cp ca.pem bad.pem; cp ca.key bad.key", "ca.pem", "that of an authority (CA:TRUE)"),
    ("key $EC; sign -sha1 -extfile gateway.ext", "ca.pem", "(SHA-1, MD5)"),
    ("key $EC; sign", "ca.pem", "of an old version of X.509"),
    ("key $EC; sed s/server/client/ gateway.ext > x.ext; sign -extfile x.ext", "ca.pem", "lacks serverAuth"),
    ("key $EC; sed /Name/d gateway.ext > x.ext; sign -extfile x.ext", "ca.pem", "subjectAltName is missing"),
    ("key $WEAK; sign -extfile gateway.ext", "ca.pem", "a key is too weak"),
    (
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout x.key -subj '/CN=My Narrowlink authority' -out x.pem; \
         key $EC; sign -extfile gateway.ext",
        "x.pem",
        "another one has the same name",
    ),
];
const TOOLS: &str = "EC='-algorithm EC -pkeyopt ec_paramgen_curve:P-256'
WEAK='-algorithm RSA -pkeyopt rsa_keygen_bits:1024'
key() { openssl genpkey \"$@\" -out bad.key; openssl req -new -key bad.key -subj /CN=gw.example -out bad.csr; }
sign() { openssl x509 -req -in bad.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out bad.pem \"$@\"; }
";

#[test]
fn a_gateway_that_would_show_its_authority_is_told_the_way_of_the_document() {
    let site = Site::new();
    for (_, text) in blocks().filter(|(_, text)| text.contains("openssl ")) {
        shell(&site, text).succeeded();
    }
    shell(&site, "cat ca.pem ca.key > both.pem; chmod 600 both.pem").succeeded();
    let text = site.gateway_config().replace("gateway.pem", "both.pem");
    site.write_secret("authority.yaml", &text);
    let Finished { status, stderr, .. } = shell(&site, "narrowlink-gateway -c authority.yaml --check");
    assert_eq!(status.code(), Some(78), "{stderr}");
    assert!(stderr.contains("(CA:TRUE)") && stderr.contains("docs/certificates.md"), "{stderr}");
    assert!(!stderr.contains("x509"), "{stderr}");
}

#[test]
fn what_went_wrong_with_a_certificate_by_hand_is_said_with_the_way_out() {
    let site = Site::new();
    for (_, text) in blocks().filter(|(_, text)| text.contains("openssl ")) {
        shell(&site, text).succeeded();
    }
    for (make, ca, words) in MISTAKES {
        shell(&site, &format!("{TOOLS}{make}")).succeeded();
        let addr = net::free_addr();
        let mut command = Command::new(foreign("openssl", "openssl"));
        command.args([
            "s_server",
            "-quiet",
            "-accept",
            &addr.to_string(),
            "-cert",
            "bad.pem",
            "-key",
            "bad.key",
        ]);
        // It shows what it would not take itself.
        command.args(["-cipher", "DEFAULT@SECLEVEL=0"]).current_dir(site.dir());
        let _server = Running::start("s_server", site.dir(), command, None);
        net::wait_for_server("openssl", addr, PATIENCE);
        let endpoint =
            format!("gateway: \"{addr}\", domain: gw.example, token_file: Free.token, ca_file: {ca}");
        site.write_secret("bad.yaml", &format!("endpoints: [!SelfHosted {{ {endpoint} }}]\n"));
        let Finished { status, stderr, .. } = shell(&site, "narrowlink -c bad.yaml list");
        assert_eq!(status.code(), Some(69), "{make}: {stderr}");
        assert!(stderr.contains(words), "{make}: {stderr}");
    }
}

/// Runs a block, which must succeed; a list is asked for until it shows the agent.
fn until_the_agent_is_there(site: &Site, text: &str, is_list: bool) {
    wait_for("the agent", PATIENCE, || {
        let printed = shell(site, text).succeeded_with_text();
        (!is_list || printed.lines().any(|line| line.starts_with("home "))).then_some(())
    });
}
