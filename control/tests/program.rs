//! The program narrowlink-gateway as its operator meets it: arguments, messages, exit codes, signals.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use narrowlink_proto::token::{Keys, Secret};

const SECRET: &str = "hex:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

fn gateway(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_narrowlink-gateway"));
    command.args(args).current_dir(dir).env_remove("RUST_LOG").env_remove("XDG_CONFIG_HOME").env("HOME", dir);
    command
}

fn run(dir: &Path, args: &[&str]) -> Output {
    gateway(dir, args).output().unwrap()
}

/// A directory with a config and a certificate in it.
fn site(yaml: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["gw.example".to_owned()]).unwrap();
    private(&dir.path().join("gw.pem"), &(made.cert.pem() + &made.signing_key.serialize_pem()));
    private(&dir.path().join("gateway.yaml"), yaml);
    dir
}

fn private(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn good() -> String {
    format!(
        "name: test\n\
         secret: \"{SECRET}\"\n\
         services:\n  \
         - !Wss {{ domains: [gw.example], listen_addr: 127.0.0.1:0, tls_config: !File {{ cert_path: gw.pem }} }}\n  \
         - !Ws {{ domains: [gw.example], listen_addr: 127.0.0.1:0 }}\n\
         workers: 2\n"
    )
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn a_good_config_is_said_to_be_good() {
    let dir = site(&good());
    let out = run(dir.path(), &["-c", "gateway.yaml", "--check"]);
    let secret = Secret::parse(SECRET).unwrap();
    let id = Keys::new(secret.as_bytes()).id();
    assert_eq!(
        text(&out.stdout),
        format!("gateway.yaml: ok (2 services, 2 workers)\ntokens are signed with the secret of id {id}\n")
    );
    assert_eq!((out.status.code(), text(&out.stderr)), (Some(0), ""));
}

#[test]
fn the_config_is_looked_for_where_the_help_says() {
    let dir = tempfile::tempdir().unwrap();
    let out = run(dir.path(), &["--check"]);
    assert_eq!(out.status.code(), Some(78));
    let words = text(&out.stderr);
    assert!(words.contains("no gateway.yaml in ., "), "{words}");
    assert!(words.contains(".narrowlink, /etc/narrowlink; narrowlink-gateway init makes one"), "{words}");
    let ws = good().lines().filter(|line| !line.contains("Wss")).collect::<Vec<_>>().join("\n");
    for place in [".narrowlink", ".config/narrowlink", "."] {
        let place = dir.path().join(place);
        fs::create_dir_all(&place).unwrap();
        private(&place.join("gateway.yaml"), &ws);
        let out = run(dir.path(), &["--check"]);
        assert!(text(&out.stdout).contains("gateway.yaml: ok (1 service, 2 workers)\n"), "{out:?}");
    }
}

#[test]
fn each_broken_config_is_named_with_its_file_and_line() {
    let table = [
        ("workers: 2", "wrokers: 2", "unknown key, did you mean `workers`?", 6),
        ("workers: 2", "workers: many", "workers: expected a whole number, 0 or more, found a text", 6),
        ("- !Ws ", "- !Http ", "services[1]: unknown tag; expected `!Wss` or `!Ws`", 5),
        ("gw.pem", "lost.pem", "this file can't be read: No such file", 4),
        (SECRET, "hex:0011", "secret: a secret of 2 bytes", 2),
        ("workers: 2", "workers: [2", "not YAML: ", 7),
        ("services:", "services: [", "not YAML: ", 4),
    ];
    for (from, to, words, line) in table {
        let dir = site(&good().replace(from, to));
        for args in [&["-c", "gateway.yaml", "--check"][..], &["-c", "gateway.yaml"]] {
            let out = run(dir.path(), args);
            let said = text(&out.stderr);
            assert_eq!(out.status.code(), Some(78), "{said}");
            assert!(said.starts_with("narrowlink-gateway: gateway.yaml: "), "{said}");
            assert!(said.contains(words), "{said} lacks {words}");
            assert!(said.contains(&format!("line {line} column ")), "{said} is not at line {line}");
            assert_eq!(text(&out.stdout), "");
        }
    }
}

#[test]
fn a_certificate_that_can_not_be_used_is_named() {
    for (pem, mode, words) in [
        ("nothing", 0o600, "no certificate in it"),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            0o600,
            "no private key in it: a chain alone",
        ),
        ("nothing", 0o644, "no certificate in it"),
        ("-----BEGIN PRIVATE KEY-----\n", 0o644, "mode 0644"),
    ] {
        let dir = site(&good());
        let path = dir.path().join("gw.pem");
        private(&path, pem);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let out = run(dir.path(), &["-c", "gateway.yaml", "--check"]);
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(78));
        assert!(said.contains("services[0].tls_config.cert_path: ") && said.contains(words), "{said}");
    }
}

#[test]
fn a_certificate_for_another_name_is_refused_and_a_weak_secret_is_warned_of() {
    let yaml = good().replace("gw.example", "other.example").replace(SECRET, "hex:0011");
    let dir = site(&format!("{yaml}allow_weak_secret: true\n"));
    let out = run(dir.path(), &["-c", "gateway.yaml", "--check"]);
    assert_eq!(out.status.code(), Some(78));
    let said = text(&out.stderr);
    assert!(said.contains("services[0].tls_config: the certificate is for another name"), "{said}");
    assert!(said.contains("a secret of 2 bytes"), "{said}");
}

#[test]
fn wrong_usage_and_an_occupied_address_have_their_own_exit_codes() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let dir = site(&good().replace("127.0.0.1:0 }\n", &format!("{addr} }}\n")));
    let out = run(dir.path(), &["-c", "gateway.yaml"]);
    assert_eq!(out.status.code(), Some(69), "{}", text(&out.stderr));
    let said = format!("can't listen on {addr} (services[1]): Address already in use");
    assert!(text(&out.stderr).contains(&said), "{}", text(&out.stderr));
    assert_eq!(run(dir.path(), &["--cheque"]).status.code(), Some(2));
    assert_eq!(run(dir.path(), &["-v", "-q"]).status.code(), Some(2));
    let help = run(dir.path(), &["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(text(&help.stdout).contains("Exit codes: 0 stopped"));
}

/// A gateway that is killed with its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Starts one and waits for its ready file.
    fn start(dir: &Path) -> (Self, Vec<(String, SocketAddr)>) {
        // What an earlier run left behind must not be taken for this one's.
        fs::write(dir.join("ready.json"), "stale").unwrap();
        let args = ["-c", "gateway.yaml", "--ready-file", "ready.json"];
        let mut child = gateway(dir, &args).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "the gateway has ended");
        }
        assert!(
            line.contains("driver=") && line.contains("workers=2") && line.contains("wss://127.0.0.1:"),
            "{line}"
        );
        let running = Self(child);
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        let started = Instant::now();
        // The file comes right after that line.
        let ready = loop {
            match fs::read(dir.join("ready.json")).ok().and_then(|text| serde_json::from_slice(&text).ok()) {
                Some(ready) => break ready,
                None => assert!(started.elapsed() < Duration::from_secs(10), "no ready file"),
            }
            std::thread::yield_now();
        };
        let ready: serde_json::Value = ready;
        let services = ready["services"].as_array().unwrap().iter().map(|service| {
            let address = service["address"].as_str().unwrap().parse().unwrap();
            (service["kind"].as_str().unwrap().to_owned(), address)
        });
        (running, services.collect())
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.0.id().to_string()]).status().unwrap();
        assert!(status.success());
    }
}

#[test]
fn a_gateway_says_where_it_listens_and_ends_at_sigterm() {
    let dir = site(&good());
    let (mut running, services) = Running::start(dir.path());
    let kinds: Vec<_> = services.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["wss", "ws"]);
    let (_, ws) = services[1];
    let mut stream = TcpStream::connect(ws).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: gw.example\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 404 Not Found\r\n"), "{answer}");
    running.signal("-TERM");
    let started = Instant::now();
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(5));
    assert!(TcpStream::connect(ws).is_err());
}

#[test]
fn a_second_gateway_at_the_same_address_is_refused() {
    let dir = site(&good());
    let (_running, services) = Running::start(dir.path());
    let yaml = good().replace("127.0.0.1:0 }\n", &format!("{} }}\n", services[1].1));
    private(&dir.path().join("second.yaml"), &yaml);
    let out = run(dir.path(), &["-c", "second.yaml"]);
    assert_eq!(out.status.code(), Some(69), "{}", text(&out.stderr));
}
