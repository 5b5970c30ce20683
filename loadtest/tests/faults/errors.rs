//! Role: what each program says and answers when something is wrong; writes docs/errors.md.
//! Invariants: the document is what was seen, masked where machines differ; an exit code is also asserted
//! by itself, so that blessing can't change one. `NARROWLINK_BLESS=1` rewrites the document.
//! See: docs/errors.md.

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use narrowlink_proto::code::Code;
use socket2::SockRef;

use crate::{
    kit::{
        PATIENCE, net,
        process::run,
        site::{AGENT, Holder, Site, Transport, Tunnel},
    },
    strangers::Strangers,
};

const HEAD: &str = "\
# Errors

Exit codes of `narrowlink`, after sysexits.h:

| code | means |
|---|---|
| 0 | done |
| 2 | the command line is wrong |
| 65 | refused by policy |
| 69 | unreachable, or the agent was not found |
| 70 | internal: the system failed us, or a fault of ours |
| 73 | what was to be written can't be (`login`, `man`) |
| 74 | the session was reset after it had opened, or standard input or output broke |
| 77 | the token was not accepted |
| 78 | the configuration is wrong |

A program whose answer can't be written to standard output (a full disk) ends with 74; a reader that left is no error.

`narrowlink-gateway` and `narrowlink-agent` end with 2, 69 (an address can't be bound; `join`: the gateway does not take it), 70 (internal), 73 (`init`,
`join`: what was to be made is there, or can't be written) or 78,
`narrowlink-tokengen` with 1 (`inspect`: a broken token, or not by that secret), 2, 74 (what it made could not be
written) or 78. `man` ends all of them with 73 where a page can't be written. An agent and a forward that were started well never end by themselves: they try again.

`narrowlink doctor` and `narrowlink-agent doctor` end with the code that the trouble they find has elsewhere, of several with the highest, and
with 0 where they find none; a WARN is none.

`narrowlink-gateway explain` and `policy test` also end with 1 (no) and 3 (it depends), `revoke` with 74 (the list can't be read or
written): [policies](policy.md).

Of what was written on a command line a message repeats options, words of up to seven characters, and addresses with or without their
port; in place of anything else it has '…', for that might be a secret. Of what stands in a file nothing is repeated but keys: the
message says in which file, line and column it is.

A message ends with its code in brackets; `help CODE` of any of the four programs explains it ([Codes](#codes)).

What each says, on standard error. Words in capitals stand for addresses and directories.

| situation | program | message | code | exit code |
|---|---|---|---|---|
";

const CODES: &str = "
## Codes

A code never changes its meaning.

| code | title | what it means | what to do |
|---|---|---|---|
";

/// One thing that is wrong.
struct Case {
    situation: &'static str,
    command: Command,
    exit_code: i32,
}

/// What the cases need to be wrong against.
struct Scene {
    tunnel: Tunnel,
    /// Nobody listens there.
    closed: SocketAddr,
    /// Somebody else does.
    occupied: TcpListener,
    /// Accepts, says a word, and resets.
    rude: SocketAddr,
    /// In a gateway's place.
    strangers: Strangers,
}

impl Scene {
    fn set() -> Self {
        let tunnel = Tunnel::start(Transport::Wss);
        Self {
            strangers: Strangers::start(&tunnel.site),
            tunnel,
            closed: net::free_addr(),
            occupied: net::listen().0,
            rude: start_rude_target(),
        }
    }

    fn occupied_addr(&self) -> SocketAddr {
        self.occupied.local_addr().expect("a bound socket has an address")
    }

    /// What stands in the document in place of this run's own addresses and directories.
    fn mask(&self, text: &str) -> String {
        let site = &self.tunnel.site;
        let addrs = [
            (site.gateway_addr(Transport::Wss), "GATEWAY"),
            (site.gateway_addr(Transport::Ws), "GATEWAY"),
            (self.closed, "CLOSED"),
            (self.occupied_addr(), "OCCUPIED"),
            (self.rude, "TARGET"),
        ];
        let mut text = text.replace(&site.dir().display().to_string(), "DIR");
        let strangers = self.strangers.addrs().map(|addr| (addr, "STRANGER"));
        let mut places: Vec<_> = addrs.into_iter().chain(strangers).collect();
        // 127.1.1.10 begins with 127.1.1.1, and a port with another.
        places.sort_by_key(|(addr, _)| std::cmp::Reverse(addr.to_string().len()));
        for (addr, name) in &places {
            text = text.replace(&addr.to_string(), &format!("{name}:PORT"));
            text = text.replace(&format!("sport = :{}'", addr.port()), "sport = :PORT'");
        }
        places.sort_by_key(|(addr, _)| std::cmp::Reverse(addr.ip().to_string().len()));
        for (addr, name) in &places {
            text = text.replace(&addr.ip().to_string(), name);
        }
        for words in ["Name or service not known", "Temporary failure in name resolution"] {
            text = text.replace(words, "the resolver's words");
        }
        // How long ago something was grows.
        if let Some((before, rest)) = text.split_once(" years ago)") {
            let kept = before.trim_end_matches(|c: char| c.is_ascii_digit());
            text = format!("{kept}SO MANY years ago){rest}");
        }
        const CLOCK: &str = "this machine's clock says ";
        if let Some(at) = text.find(CLOCK).map(|at| at + CLOCK.len()) {
            text.replace_range(at..at + "2027-01-31 10:00:00 UTC".len(), "NOW");
        }
        text
    }
}

/// Lets a session open, and resets it once the first byte has gone through.
fn start_rude_target() -> SocketAddr {
    let (listener, addr) = net::listen();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"!");
            // The user's word or end: the session has opened on every side.
            let _ = stream.read(&mut [0]);
            let _ = SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO));
        }
    });
    addr
}

/// Everything that can be wrong about reaching a target.
fn session_cases(scene: &Scene) -> Vec<Case> {
    let site = &scene.tunnel.site;
    let list = |holder| {
        let mut command = site.client(Transport::Wss, holder);
        command.arg("list");
        command
    };
    let connect = |holder, agent: &str, target: &str| {
        let mut command = site.client(Transport::Wss, holder);
        command.args(["connect", "-n", agent, target]);
        command
    };
    let (closed, rude) = (scene.closed.to_string(), scene.rude.to_string());
    let nowhere = "no-such-host.invalid:80";
    let case = |situation, command, exit_code| Case { situation, command, exit_code };
    vec![
        case("wrong token", list(Holder::Stranger), 77),
        case("wrong token", connect(Holder::Stranger, AGENT, &rude), 77),
        case("expired token", list(Holder::Expired), 77),
        case("expired token", connect(Holder::Expired, AGENT, &rude), 77),
        case("unknown agent", connect(Holder::Free, "nobody", &rude), 69),
        case("refused by policy", connect(Holder::Barred, AGENT, &rude), 65),
        case("the target refuses", connect(Holder::Free, AGENT, &closed), 69),
        case("the target can't be resolved", connect(Holder::Free, AGENT, nowhere), 69),
        case("the target resets the session", connect(Holder::Free, AGENT, &rude), 74),
        case("no gateway there", no_gateway(site, scene.closed), 69),
        case("the local port is occupied", occupied_forward(site, scene.occupied_addr(), &rude), 69),
    ]
}

fn no_gateway(site: &Site, closed: SocketAddr) -> Command {
    let text = format!(
        "endpoints: [!SelfHosted {{ gateway: \"{closed}\", protocol: Ws, token_file: {} }}]\n",
        site.path("Free.token").display()
    );
    let mut command = site.command("narrowlink");
    command.arg("-c").arg(site.write_secret("no-gateway.yaml", &text)).arg("list");
    command
}

fn occupied_forward(site: &Site, occupied: SocketAddr, target: &str) -> Command {
    let mut command = site.client(Transport::Wss, Holder::Free);
    command.args(["forward", "-n", AGENT, "-l", &occupied.to_string(), target]);
    command
}

/// Everything that can be wrong on a command line; what was written stands in no message, but for a few characters.
fn usage_cases(scene: &Scene) -> Vec<Case> {
    let site = &scene.tunnel.site;
    let case = |situation, program: &str, line: &str| {
        let mut command = site.command(program);
        command.args(line.split(' '));
        Case { situation, command, exit_code: 2 }
    };
    vec![
        case("not a target", "narrowlink", "connect -n home no-port"),
        case("a port in place of a target", "narrowlink", "connect -n home 22"),
        case("a target that is not TCP", "narrowlink", "connect -n home udp://127.0.0.1:53"),
        case("no agent's name", "narrowlink", "connect --name= 127.0.0.1:22"),
        case("a local address without a port", "narrowlink", "forward -n home -l 127.0.0.1 127.0.0.1:22"),
        case(
            "a local IPv6 address without brackets",
            "narrowlink",
            "forward -n home -l ::1:2222 127.0.0.1:22",
        ),
        case("a local port that is none", "narrowlink", "forward -n home -l 99999 127.0.0.1:22"),
        case("a local port below zero", "narrowlink", "forward -n home -l -1 127.0.0.1:22"),
        case("a forward as ssh has it", "narrowlink", "forward -n home -L 2222:127.0.0.1:22"),
        case(
            "a name where an address belongs",
            "narrowlink-gateway",
            "explain --token t --agent home --target nas.lan:22 --resolved localhost",
        ),
        case("a configuration without -c", "narrowlink", "list client.yaml"),
        case("a configuration without -c", "narrowlink-agent", "agent.yaml"),
    ]
}

/// Everything that can be wrong between a client and its gateway.
fn connection_cases(scene: &Scene) -> Vec<Case> {
    let (site, strangers) = (&scene.tunnel.site, &scene.strangers);
    let cases = strangers.cases(site).into_iter();
    let mut cases: Vec<_> =
        cases.map(|(situation, command)| Case { situation, command, exit_code: 69 }).collect();
    let mut command = strangers.raw_through_a_proxy(site);
    command.args(["connect", "-n", AGENT, &scene.rude.to_string()]);
    cases.push(Case { situation: "framing: raw through a proxy that ends TLS", command, exit_code: 69 });
    cases
}

const NO_SECRET: &str = "secret: !File absent.secret\ntokens: []\n";

/// Everything that can be wrong about a configuration.
fn config_cases(scene: &Scene) -> Vec<Case> {
    let site = &scene.tunnel.site;
    let good = site.gateway_config();
    let with = |program: &str, config: PathBuf| {
        let mut command = site.command(program);
        command.arg("-c").arg(config);
        command
    };
    let gateway = |name: &str, text: &str| with("narrowlink-gateway", site.write_secret(name, text));
    let broken =
        |program: &str| with(program, site.write_secret("broken.yaml", "endpoints: [\n  - oops: {\n"));
    let list = |mut command: Command| {
        command.arg("list");
        command
    };
    site.write_secret("text.pem", "this is no certificate\n");
    // An address of fixed length: the column that is reported must be the same at every run.
    let placed = good.replace(&site.gateway_addr(Transport::Wss).to_string(), "127.0.0.1:0");
    let other_cert = |path: &str| placed.replace("gateway.pem", path);
    let occupied =
        good.replace(&site.gateway_addr(Transport::Ws).to_string(), &scene.occupied_addr().to_string());
    let occupied =
        occupied.replace(&site.gateway_addr(Transport::Wss).to_string(), &net::free_addr().to_string());
    let weak = "name: weak\nsecret: [2, 0, 2, 3]\nservices: [!Ws { domains: [gw.test], listen_addr: \"127.0.0.1:0\" }]\n";
    let no_ca = format!(
        "endpoints: [!SelfHosted {{ gateway: \"gw.test:443\", protocol: Wss, token: x, ca_file: {} }}]\n",
        site.path("absent.pem").display()
    );
    let no_token = no_ca.replace("token: x", "token_file: absent.token");
    let stray = "endpoints: [!SelfHosted { gateway: \"ws://gw.test\", token: x }]\n";
    let misplaced = |key: &str, value: &str| {
        let text = format!("endpoints: [!SelfHosted {{ gateway: \"https://gw.test\", {key}: {value} }}]\n");
        site.write_secret(&format!("{}.yaml", key.split(':').next().unwrap_or(key)), &text)
    };
    let case = |situation, command, exit_code| Case { situation, command, exit_code };
    vec![
        case("broken YAML", broken("narrowlink-gateway"), 78),
        case("broken YAML", broken("narrowlink-agent"), 78),
        case("broken YAML", list(broken("narrowlink")), 78),
        case("broken YAML", broken("narrowlink-tokengen"), 78),
        case("no such configuration", with("narrowlink-gateway", site.path("absent.yaml")), 78),
        case("no such configuration", with("narrowlink-agent", site.path("absent.yaml")), 78),
        case("no such configuration", list(with("narrowlink", site.path("absent.yaml"))), 78),
        case("no such configuration", with("narrowlink-tokengen", site.path("absent.yaml")), 78),
        case("unreadable certificate", gateway("absent-pem.yaml", &other_cert("absent.pem")), 78),
        case("not a certificate", gateway("text-pem.yaml", &other_cert("text.pem")), 78),
        case("unreadable own CA", list(with("narrowlink", site.write_secret("no-ca.yaml", &no_ca))), 78),
        case(
            "unreadable token file",
            list(with("narrowlink", site.write_secret("no-token.yaml", &no_token))),
            78,
        ),
        case("unreadable token file", with("narrowlink-agent", site.path("no-token.yaml")), 78),
        case(
            "no token where one belongs",
            with("narrowlink-agent", site.write_secret("stray.yaml", stray)),
            78,
        ),
        case(
            "unreadable secret",
            with("narrowlink-tokengen", site.write_secret("no-secret.yaml", NO_SECRET)),
            78,
        ),
        case("weak secret", gateway("weak.yaml", weak), 78),
        case("misspelt key", gateway("misspelt.yaml", &placed.replace("services:", "sevices:")), 78),
        case("a key of another file", gateway("elsewhere.yaml", &format!("{placed}endpoints: []\n")), 78),
        case("a key twice", gateway("twice.yaml", &format!("{placed}name: again\n")), 78),
        case(
            "a secret that is no list",
            gateway("secret.yaml", &format!("{placed}old_secrets: \"hex:00\"\n")),
            78,
        ),
        case(
            "a token for a path",
            with("narrowlink-agent", misplaced("token_file", "eyJhbGciOi.eyJraW5kIj.c2lnbmF0dXJl")),
            78,
        ),
        case("a path for a token", with("narrowlink-agent", misplaced("token", "/run/agent.token")), 78),
        case("scheme and protocol", with("narrowlink-agent", misplaced("protocol: Ws, token", "x")), 78),
        case("state_dir can't be used", agent_without_state(site), 78),
        case("the listen address is occupied", gateway("occupied.yaml", &occupied), 69),
    ]
}

fn agent_without_state(site: &Site) -> Command {
    let token = site.path("agent.token");
    let text = format!(
        "endpoints: [!SelfHosted {{ gateway: \"ws://gw.test\", token_file: {} }}]\nstate_dir: text.pem\n",
        token.display()
    );
    let mut command = site.command("narrowlink-agent");
    command.arg("-c").arg(site.write_secret("stateless.yaml", &text)).arg("--check");
    command
}

/// The program and its command, as a user thinks of them.
fn program(command: &Command) -> String {
    let name = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = command.get_args().filter_map(|word| word.to_str());
    let verb = words.into_iter().find(|word| ["list", "connect", "forward"].contains(word));
    [name.to_str().unwrap_or_default(), verb.unwrap_or_default()].join(" ").trim().to_owned()
}

/// What is said to the user: the log's errors without their time, and what is no log line at all.
fn message(stderr: &str) -> String {
    let lines = stderr.lines().filter_map(|line| match line.split_once('Z') {
        Some((time, rest)) if time.contains('T') && time.starts_with(|c: char| c.is_ascii_digit()) => {
            let rest = rest.trim_start();
            rest.starts_with("ERROR").then_some(rest)
        }
        // What clap adds to each of its errors.
        _ => (!line.starts_with("Usage:") && !line.starts_with("For more information")).then_some(line),
    });
    let lines: Vec<&str> = lines.map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join("<br>").replace('|', "\\|")
}

/// A message without its code, and that.
fn take_code(message: &str) -> (String, Option<Code>) {
    let at = message.rfind(" (NL-E").map(|at| (at, at + " (NL-E0000)".len()));
    let code = at.and_then(|(from, to)| Code::parse(message.get(from + 2..to - 1)?));
    match (at, code) {
        (Some((from, to)), Some(code)) => (format!("{}{}", &message[..from], &message[to..]), Some(code)),
        _ => (message.to_owned(), None),
    }
}

#[test]
fn every_error_has_its_message_and_exit_code_and_stands_in_the_docs() {
    let scene = Scene::set();
    let mut seen = HEAD.to_owned();
    let mut wrong = String::new();
    let cases = session_cases(&scene).into_iter().chain(usage_cases(&scene)).chain(connection_cases(&scene));
    for case in cases.chain(config_cases(&scene)) {
        let Case { situation, command, exit_code } = case;
        let program = program(&command);
        let finished = run(command, b"hello", PATIENCE);
        let message = scene.mask(&message(&finished.stderr));
        let (message, kind) = take_code(&message);
        let code = finished.status.code();
        if code != Some(exit_code) || kind.is_none() || message.is_empty() || message.contains("panicked") {
            let _ = writeln!(wrong, "{situation}, {program}: {code:?}, not {exit_code}: {}", finished.stderr);
        }
        let kind = kind.map(|kind| kind.to_string()).unwrap_or_default();
        let _ = writeln!(seen, "| {situation} | `{program}` | {message} | {kind} | {exit_code} |");
    }
    seen.push_str(CODES);
    for code in Code::ALL {
        let _ = writeln!(seen, "| `{code}` | {} | {} | {} |", code.title(), code.means(), code.next());
    }
    assert!(wrong.is_empty(), "{wrong}");

    let docs = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/errors.md"));
    if std::env::var("NARROWLINK_BLESS").is_ok_and(|value| value == "1") {
        fs::write(docs, &seen).expect("the docs can be written");
    }
    let written = fs::read_to_string(docs).unwrap_or_default();
    for (seen, written) in seen.lines().zip(written.lines()) {
        assert_eq!(seen, written, "docs/errors.md is out of date: NARROWLINK_BLESS=1 rewrites it");
    }
    assert!(seen == written, "docs/errors.md is out of date: NARROWLINK_BLESS=1 rewrites it");
}

#[test]
fn a_message_is_what_is_not_the_logs_chatter() {
    let stderr =
        "2026-01-31T10:00:00.000001Z  INFO gateway: up\n2026-01-31T10:00:00Z ERROR gateway: it | broke\n";
    assert_eq!(message(stderr), "ERROR gateway: it \\| broke");
    assert_eq!(
        message("error: no\n\nUsage: narrowlink\n\nFor more information, try '--help'.\n"),
        "error: no"
    );
    assert_eq!(message("no agent\n\n  caused by Zeus\n"), "no agent<br>caused by Zeus");
}
