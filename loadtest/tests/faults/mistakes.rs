//! Role: a list of mistakes as strangers make them, each in a file or a command line; and that what is said of it says what is
//! wrong, where, and what to do next.
//! Invariants: the real programs say it · a value that might be a secret is in no message · each row has another cause.
//! See: docs/errors.md, whose exit codes these are.

use std::{
    fmt::Write as _,
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use narrowlink_proto::secrecy::shares_a_part;

use crate::kit::{
    PATIENCE,
    deployment::{Machines, printed},
    net,
    process::{Finished, Running, run},
    wait_for,
};

/// One mistake.
struct Row {
    mistake: &'static str,
    /// Makes it; what is run then.
    make: fn(&Scene) -> Command,
    /// What is wrong: a key or a value by its name.
    what: &'static str,
    /// Where: a file with line and column, an argument, or who it is about.
    place: &'static str,
    /// What to do next.
    next: &'static str,
    code: &'static str,
    exit: i32,
}

/// A deployment that works, and a directory for what does not.
struct Scene {
    machines: Machines,
    _gateway: Running,
    _agent: Running,
    agent_ticket: String,
    client_ticket: String,
    secret: String,
    agent_token: String,
    client_token: String,
    occupied: TcpListener,
}

const SECRET: &str = "hex:a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f90";
const GATEWAY: &str = "\
name: gw
secret: \"hex:a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f90\"
services:
  - !Ws { domains: [gw.test], listen_addr: \"127.0.0.1:0\" }
";
const WITH_TLS: &str = "\
name: gw
secret: \"hex:a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f90\"
services:
  - !Wss { domains: [gw.test], listen_addr: \"127.0.0.1:0\", tls_config: !File { cert_path: CERT, key_path: KEY } }
";
const ENDPOINT: &str = "\
endpoints:
  - !SelfHosted { gateway: \"gw.test:443\", token_file: my.token }
";
const TOKENS: &str = "\
secret: !File secret
tokens:
  - !Client
    uid: 6f1c0b7e-57c8-4a6e-9a3c-2f8f5a1d7e10
    name: laptop
    exp: 30d
    policies: { permit: true, policies: [!Ip [home, 10.0.0.1, 22, TCP]] }
";

impl Scene {
    fn set() -> Self {
        let machines = Machines::new();
        let said = machines.init();
        let gateway = machines.start_gateway();
        let agent_ticket = printed(&said, "sudo narrowlink-agent join ").to_owned();
        let client_ticket = printed(&said, "narrowlink login ").to_owned();
        machines.join(&agent_ticket, "nl").succeeded();
        let agent = machines.start_agent("nl");
        machines.login(&client_ticket, "nl").succeeded();
        wait_for("the agent", PATIENCE, || {
            let list = run(machines.client("nl", &["list"]), b"", PATIENCE);
            String::from_utf8_lossy(&list.stdout).contains("home").then_some(())
        });
        let read =
            |path: &str| fs::read_to_string(machines.path(path)).expect("it was made").trim().to_owned();
        let (secret, agent_token) = (read("public/gw/gateway.secret"), read("behind/nl/agent.token"));
        let client_token = read("laptop/nl/client.token");
        let names = ["gateway.pem", "gateway.key", "authority.pem", "authority.key"];
        let files = names.map(|name| (name, read(&format!("public/gw/{name}"))));
        let scene = Self {
            secret,
            agent_token,
            client_token,
            _gateway: gateway,
            _agent: agent,
            agent_ticket,
            client_ticket,
            occupied: net::listen().0,
            machines,
        };
        scene.write("secret", SECRET);
        for (name, text) in files {
            scene.write(name, format!("{text}\n"));
        }
        fs::create_dir(scene.path("certificates")).expect("it can be made");
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.machines.path("public").join(name)
    }

    /// A file that only its owner can read.
    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).expect("it can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
        path
    }

    /// A program that is run where these files are.
    fn program(&self, name: &str, words: &[&str]) -> Command {
        let mut command = self.machines.program(name, "public");
        command.args(words);
        command
    }

    fn gateway(&self, text: impl AsRef<[u8]>) -> Command {
        self.write("gateway.yaml", text);
        self.program("narrowlink-gateway", &["-c", "gateway.yaml", "--check"])
    }

    fn tls(&self, cert: &str, key: &str) -> Command {
        self.gateway(WITH_TLS.replace("CERT", cert).replace("KEY", key))
    }

    /// A configuration with this token.
    fn agent(&self, text: &str, token: &str) -> Command {
        self.write("my.token", token);
        self.write("agent.yaml", text);
        self.program("narrowlink-agent", &["-c", "agent.yaml", "--check"])
    }

    fn client(&self, text: &str, token: &str) -> Command {
        self.write("my.token", token);
        self.write("client.yaml", text);
        self.program("narrowlink", &["-c", "client.yaml", "list"])
    }

    fn tokengen(&self, text: &str) -> Command {
        self.write("tokens.yaml", text);
        self.program("narrowlink-tokengen", &["tokens.yaml"])
    }

    /// What the operator of the gateway that runs types.
    fn operator(&self, words: &[&str]) -> Command {
        let config = self.machines.path("public/gw/gateway.yaml").display().to_string();
        self.program("narrowlink-gateway", &[words, &["-c", &config]].concat())
    }

    /// A token of this gateway's that has ended.
    fn expired(&self, kind: &str) -> String {
        self.write("gateway.secret", &self.secret);
        let text = format!(
            "secret: !File gateway.secret\ntokens:\n  - !{kind} {{ uid: 6f1c0b7e-57c8-4a6e-9a3c-2f8f5a1d7e10, name: x, exp: 1000000000 }}\n"
        );
        let made = run(self.tokengen(&text), b"", PATIENCE).succeeded_with_text();
        made.split_whitespace().find(|word| word.starts_with("ey")).expect("it prints one").to_owned()
    }
}

const ROWS: &[Row] = &[
    Row {
        mistake: "tabs in YAML",
        make: |scene| scene.gateway(GATEWAY.replace("  -", "\t-")),
        what: "tab",
        place: "gateway.yaml: line 4 column 2: ",
        next: "indent with spaces",
        code: "NL-E0102",
        exit: 78,
    },
    Row {
        mistake: "a file as Windows writes Unicode",
        make: |scene| {
            let units = GATEWAY.encode_utf16().flat_map(u16::to_le_bytes);
            scene.gateway([0xff, 0xfe].into_iter().chain(units).collect::<Vec<_>>())
        },
        what: "utf-8",
        place: "gateway.yaml: ",
        next: "save it as UTF-8",
        code: "NL-E0101",
        exit: 78,
    },
    Row {
        mistake: "a secret that is too short",
        make: |scene| scene.gateway(GATEWAY.replace("90\"", "\"")),
        what: "a secret of 31 bytes",
        place: "gateway.yaml: line 2 column 9: secret: ",
        next: "openssl rand -hex 32",
        code: "NL-E0102",
        exit: 78,
    },
    Row {
        mistake: "a secret without hex:",
        make: |scene| scene.gateway(GATEWAY.replace("hex:", "")),
        what: "hexadecimal digits",
        place: "gateway.yaml: line 2 column 9: secret: ",
        next: "put `hex:` in front",
        code: "NL-E0102",
        exit: 78,
    },
    Row {
        mistake: "a digit of the secret is lost",
        make: |scene| scene.gateway(GATEWAY.replace("90\"", "9\"")),
        what: "not hexadecimal",
        place: "gateway.yaml: line 2 column 9: secret: ",
        next: "expected pairs of 0-9 and a-f",
        code: "NL-E0102",
        exit: 78,
    },
    Row {
        mistake: "a typo in a key",
        make: |scene| scene.gateway(GATEWAY.replace("services", "servces")),
        what: "unknown key",
        place: "gateway.yaml: line 3 column 1: ",
        next: "did you mean `services`?",
        code: "NL-E0102",
        exit: 78,
    },
    Row {
        mistake: "domains is left out",
        make: |scene| scene.gateway(GATEWAY.replace("domains: [gw.test], ", "")),
        what: "`domains` is missing",
        place: "gateway.yaml: line 4 column 5: services[0]: ",
        next: "add `domains: ..`",
        code: "NL-E0102",
        exit: 78,
    },
    Row {
        mistake: "an unknown tag",
        make: |scene| scene.gateway(GATEWAY.replace("!Ws", "!Https")),
        what: "unknown tag",
        place: "gateway.yaml: line 4 column 5: services[0]: ",
        next: "expected `!Wss` or `!Ws`",
        code: "NL-E0102",
        exit: 78,
    },
    Row {
        mistake: "a port in place of an address",
        make: |scene| scene.gateway(GATEWAY.replace("\"127.0.0.1:0\"", "443")),
        what: "listen_addr",
        place: "gateway.yaml: line 4 column 44: ",
        next: "expected IP:PORT, such as 0.0.0.0:443",
        code: "NL-E0102",
        exit: 78,
    },
    Row {
        mistake: "two services at one address",
        make: |scene| {
            let line = "  - !Ws { domains: [], listen_addr: \"127.0.0.1:7999\" }\n";
            scene.gateway(format!("{GATEWAY}{line}{line}"))
        },
        what: "services[1] listens there already",
        place: "gateway.yaml: line 6 column 37: services[2].listen_addr: ",
        next: "give one of them another address or port",
        code: "NL-E0102",
        exit: 78,
    },
    Row {
        mistake: "an address that another program has",
        make: |scene| {
            let addr = scene.occupied.local_addr().expect("it is bound").to_string();
            scene.gateway(GATEWAY.replace("127.0.0.1:0", &addr))
        },
        what: "Address already in use",
        place: "gateway.yaml: line 4 column 44: can't listen on 127.",
        next: "ss -ltnp",
        code: "NL-E0006",
        exit: 69,
    },
    Row {
        mistake: "certificate and key the wrong way round",
        make: |scene| scene.tls("gateway.key", "gateway.pem"),
        what: "no private key in it",
        place: "gateway.yaml: line 4 column 114: services[0].tls_config.key_path: ",
        next: "name the key's file with `key_path`",
        code: "NL-E0102",
        exit: 78,
    },
    Row {
        mistake: "the key of another certificate",
        make: |scene| {
            let made = scene.machines.path("other/gw");
            let host = scene.occupied.local_addr().expect("it is bound").ip().to_string();
            let words = ["init", &host, "--listen", "127.0.0.1:0", "--yes", "--dir"];
            let mut init = scene.machines.program("narrowlink-gateway", "other");
            init.args(words).arg(&made);
            run(init, b"", PATIENCE).succeeded();
            scene.write("other.key", fs::read(made.join("gateway.key")).expect("it was made"));
            scene.tls("gateway.pem", "other.key")
        },
        what: "the private key belongs to another certificate",
        place: "gateway.yaml: line 4 column 91: services[0].tls_config.cert_path: ",
        next: "was one of the two renewed alone?",
        code: "NL-E0102",
        exit: 78,
    },
    Row {
        mistake: "a key that everybody can read",
        make: |scene| {
            let key = scene.write("open.key", fs::read(scene.path("gateway.key")).expect("it is there"));
            fs::set_permissions(key, fs::Permissions::from_mode(0o644)).expect("it is ours");
            scene.tls("gateway.pem", "open.key")
        },
        what: "mode 0644",
        place: "gateway.yaml: line 4 column 114: services[0].tls_config.key_path: ",
        next: "chmod 640 it",
        code: "NL-E0102",
        exit: 78,
    },
    Row {
        mistake: "a certificate's file that is not there",
        make: |scene| scene.tls("gatway.pem", "gateway.key"),
        what: "No such file",
        place: "gateway.yaml: line 4 column 91: services[0].tls_config.cert_path: ",
        next: "relative to the config's directory",
        code: "NL-E0102",
        exit: 78,
    },
    Row {
        mistake: "a byte order mark in PEM",
        make: |scene| {
            let pem = fs::read(scene.path("gateway.pem")).expect("it is there");
            scene.write("bom.pem", [b"\xef\xbb\xbf", &pem[..]].concat());
            scene.tls("bom.pem", "gateway.key")
        },
        what: "byte order mark",
        place: "gateway.yaml: line 4 column 91: services[0].tls_config.cert_path: ",
        next: "save it as UTF-8 without BOM",
        code: "NL-E0102",
        exit: 78,
    },
    Row {
        mistake: "a directory in place of a certificate",
        make: |scene| scene.tls("certificates", "gateway.key"),
        what: "Is a directory",
        place: "gateway.yaml: line 4 column 91: services[0].tls_config.cert_path: ",
        next: "name a file in it",
        code: "NL-E0102",
        exit: 78,
    },
    Row {
        mistake: "a secret that the program may not read",
        make: |scene| {
            let path = scene.write("unreadable", SECRET);
            fs::set_permissions(path, fs::Permissions::from_mode(0o000)).expect("it is ours");
            let text = GATEWAY.replace(&format!("\"{SECRET}\""), "!File unreadable");
            without_roots_rights(&scene.gateway(text))
        },
        what: "Permission denied",
        place: "gateway.yaml: line 2 column 9: secret: ",
        next: "give it to the user who runs this program (chown)",
        code: "NL-E0102",
        exit: 78,
    },
    Row {
        mistake: "a state_dir below a file",
        make: |scene| scene.gateway(format!("{GATEWAY}state_dir: secret/state\n")),
        what: "state_dir: can't be written",
        place: "gateway.yaml: line 5 column 12: ",
        next: "name a directory",
        code: "NL-E0104",
        exit: 78,
    },
    Row {
        mistake: "drain_s of a day",
        make: |scene| scene.gateway(format!("{GATEWAY}drain_s: 86400\n")),
        what: "drain_s",
        place: "gateway.yaml: line 5 column 10: ",
        next: "expected 0 to 3600 seconds",
        code: "NL-E0102",
        exit: 78,
    },
    Row {
        mistake: "a user's name in place of a uid",
        make: |scene| scene.gateway(format!("{GATEWAY}users: {{ alice: {{ sessions: 1 }} }}\n")),
        what: "expected a UUID",
        place: "gateway.yaml: line 5 column 10: users: ",
        next: "`uuidgen`",
        code: "NL-E0102",
        exit: 78,
    },
    Row {
        mistake: "a rate in bits",
        make: |scene| scene.gateway(format!("{GATEWAY}limits: {{ token: {{ bytes_per_s: 10mbit }} }}\n")),
        what: "limits.token.bytes_per_s",
        place: "gateway.yaml: line 5 column 33: ",
        next: "a text such as 10MB or 64KiB",
        code: "NL-E0102",
        exit: 78,
    },
    Row {
        mistake: "a directory in place of a configuration",
        make: |scene| scene.program("narrowlink-gateway", &["-c", "certificates"]),
        what: "Is a directory",
        place: "certificates: ",
        next: "name a file in it",
        code: "NL-E0101",
        exit: 78,
    },
    Row {
        mistake: "a socket that is none, of a unit",
        make: |scene| {
            let gateway = scene.gateway(GATEWAY);
            let mut shell = Command::new("sh");
            shell
                .current_dir(scene.path(""))
                .arg("-c")
                .arg("LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" --keeper -c gateway.yaml 3</dev/null");
            shell.arg(gateway.get_program());
            shell
        },
        what: "does not listen for TCP",
        place: "a socket that was handed over",
        next: "give it ListenStream=HOST:PORT",
        code: "NL-E0102",
        exit: 78,
    },
    Row {
        mistake: "a client's token in agent.yaml",
        make: |scene| scene.agent(ENDPOINT, &scene.client_token),
        what: "this token is not an agent's",
        place: "agent.yaml: line 2 column 55: endpoints[0].token_file: ",
        next: "ask for a token of kind !Agent",
        code: "NL-E0202",
        exit: 78,
    },
    Row {
        mistake: "an agent's token in client.yaml",
        make: |scene| scene.client(ENDPOINT, &scene.agent_token),
        what: "this token is not a client's",
        place: "client.yaml: line 2 column 55: endpoints[0].token_file: ",
        next: "ask for a token of kind !Client",
        code: "NL-E0202",
        exit: 77,
    },
    Row {
        mistake: "a gateway without its port",
        make: |scene| scene.agent(&ENDPOINT.replace(":443", ""), &scene.agent_token),
        what: "the port is missing",
        place: "agent.yaml: line 2 column 28: endpoints[0].gateway: ",
        next: "expected HOST:PORT",
        code: "NL-E0102",
        exit: 78,
    },
    Row {
        mistake: "a page's address for a gateway's",
        make: |scene| scene.agent(&ENDPOINT.replace("gw.test:443", "https://gw.test/ws"), &scene.agent_token),
        what: "a path behind it",
        place: "agent.yaml: line 2 column 28: endpoints[0].gateway: ",
        next: "expected HOST:PORT",
        code: "NL-E0102",
        exit: 78,
    },
    Row {
        mistake: "http:// for a port of TLS",
        make: |scene| {
            let place = format!("http://{}", scene.machines.addr);
            scene.client(&ENDPOINT.replace("gw.test:443", &place), &scene.client_token)
        },
        what: "HTTP status 400",
        place: "http://127.",
        next: "write protocol: Wss",
        code: "NL-E0604",
        exit: 69,
    },
    Row {
        mistake: "a protocol in small letters",
        make: |scene| scene.agent(&ENDPOINT.replace(" }", ", protocol: wss }"), &scene.agent_token),
        what: "unknown word",
        place: "agent.yaml: line 2 column 75: endpoints[0].protocol: ",
        next: "did you mean `Wss`?",
        code: "NL-E0102",
        exit: 78,
    },
    Row {
        mistake: "a token that was copied in part",
        make: |scene| scene.agent(ENDPOINT, &scene.agent_token[..100]),
        what: "is no token, or a part of one",
        place: "agent.yaml: line 2 column 55: endpoints[0].token_file: ",
        next: "whole",
        code: "NL-E0105",
        exit: 78,
    },
    Row {
        mistake: "a token and a file of one",
        make: |scene| {
            let both = format!(", token: {} }}", scene.agent_token);
            scene.agent(&ENDPOINT.replace(" }", &both), &scene.agent_token)
        },
        what: "`token` and `token_file` exclude each other",
        place: "agent.yaml: line 2 column 5: endpoints[0]: ",
        next: "keep one of them",
        code: "NL-E0102",
        exit: 78,
    },
    Row {
        mistake: "an agent's token that has expired",
        make: |scene| scene.agent(ENDPOINT, &scene.expired("Agent")),
        what: "expired on 2001-09-09",
        place: "agent.yaml: line 2 column 55: endpoints[0].token_file: ",
        next: "ask for a new one",
        code: "NL-E0201",
        exit: 78,
    },
    Row {
        mistake: "a client's token that has expired",
        make: |scene| {
            let here = scene.machines.addr.to_string();
            let pinned = ", ca_file: authority.pem }";
            scene.client(
                &ENDPOINT.replace("gw.test:443", &here).replace(" }", pinned),
                &scene.expired("Client"),
            )
        },
        what: "expired on 2001-09-09",
        place: "my.token",
        next: "ask for a new one",
        code: "NL-E0201",
        exit: 77,
    },
    Row {
        mistake: "more lanes ready than there may be",
        make: |scene| scene.agent(&format!("{ENDPOINT}lanes: {{ min: 9, max: 2 }}\n"), &scene.agent_token),
        what: "no room",
        place: "agent.yaml: line 3 column 8: lanes: ",
        next: "max must be at least 1 and at least min",
        code: "NL-E0102",
        exit: 78,
    },
    Row {
        mistake: "a net that is none",
        make: |scene| scene.agent(&format!("{ENDPOINT}deny: [10.0.0.0/33]\n"), &scene.agent_token),
        what: "neither an IP address nor a net",
        place: "agent.yaml: line 3 column 7: deny[0]: ",
        next: "such as 192.168.0.0/24",
        code: "NL-E0102",
        exit: 78,
    },
    Row {
        mistake: "an agent's name with a typo",
        make: |scene| scene.machines.client("nl", &["connect", "-n", "hmoe", "127.0.0.1:22"]),
        what: "no agent named hmoe is connected",
        place: "hmoe",
        next: "`narrowlink list` shows those that are",
        code: "NL-E0401",
        exit: 69,
    },
    Row {
        mistake: "a target without its port",
        make: |scene| scene.machines.client("nl", &["forward", "-n", "home", "127.0.0.1"]),
        what: "the port is missing",
        place: "'127.0.0.1' for '<HOST:PORT>'",
        next: "expected HOST:PORT",
        code: "NL-E0001",
        exit: 2,
    },
    Row {
        mistake: "a local port that is in use",
        make: |scene| {
            let addr = scene.occupied.local_addr().expect("it is bound").to_string();
            scene.machines.client("nl", &["forward", "-n", "home", "-l", &addr, "127.0.0.1:22"])
        },
        what: "is in use by another program",
        place: "narrowlink: 127.",
        next: "choose another with -l",
        code: "NL-E0006",
        exit: 69,
    },
    Row {
        mistake: "a ticket that was cut off",
        make: |scene| scene.program("narrowlink", &["login", &scene.client_ticket[..100], "--dir", "new"]),
        what: "this ticket is cut off: 100 of its ",
        place: "narrowlink: this ticket",
        next: "copy all of it",
        code: "NL-E0203",
        exit: 2,
    },
    Row {
        mistake: "an agent's ticket for the client",
        make: |scene| scene.program("narrowlink", &["login", &scene.agent_ticket, "--dir", "new"]),
        what: "this ticket is for an agent",
        place: "narrowlink: this ticket",
        next: "narrowlink-agent join takes it",
        code: "NL-E0203",
        exit: 2,
    },
    Row {
        mistake: "a client's ticket for the agent",
        make: |scene| scene.program("narrowlink-agent", &["join", &scene.client_ticket, "--dir", "new"]),
        what: "this ticket is for a client",
        place: "narrowlink-agent: this ticket",
        next: "narrowlink login takes it",
        code: "NL-E0203",
        exit: 2,
    },
    Row {
        mistake: "a ticket without a command",
        make: |scene| scene.program("narrowlink", &[&scene.client_ticket]),
        what: "a ticket, which has no place there",
        place: "argument 1",
        next: "`narrowlink login` takes a client's",
        code: "NL-E0203",
        exit: 2,
    },
    Row {
        mistake: "a token for a ticket",
        make: |scene| scene.program("narrowlink", &["login", "--dir", "new", "-"]),
        what: "this is no ticket",
        place: "narrowlink: this",
        next: "`narrowlink-gateway ticket` makes one",
        code: "NL-E0203",
        exit: 2,
    },
    Row {
        mistake: "a rule with too little in it",
        make: |scene| scene.tokengen(&TOKENS.replace(", 22, TCP", "")),
        what: "found 2 of them",
        place: "tokens.yaml: line 7 column 42: tokens[0].policies.policies[0]: ",
        next: "expected [agent, net, ports, protocol]",
        code: "NL-E0102",
        exit: 78,
    },
    Row {
        mistake: "rules without a mode",
        make: |scene| {
            let rules = "policies: [!Ip [home, 10.0.0.1, 22, TCP]]\n";
            let (before, _) = TOKENS.split_once("policies: {").expect("it has some");
            scene.tokengen(&format!("{before}{rules}"))
        },
        what: "items need a mode",
        place: "tokens.yaml: line 7 column 16: tokens[0].policies[0]: ",
        next: "write `{ permit: true, policies: [..] }`",
        code: "NL-E0102",
        exit: 78,
    },
    Row {
        mistake: "an end that is no time",
        make: |scene| scene.tokengen(&TOKENS.replace("30d", "soon")),
        what: "tokens[0].exp",
        place: "tokens.yaml: line 6 column 10: ",
        next: "a duration such as 30d",
        code: "NL-E0102",
        exit: 78,
    },
    Row {
        mistake: "a name in place of a uid",
        make: |scene| scene.tokengen(&TOKENS.replace("6f1c0b7e-57c8-4a6e-9a3c-2f8f5a1d7e10", "alice")),
        what: "expected a UUID",
        place: "tokens.yaml: line 4 column 10: tokens[0].uid: ",
        next: "`uuidgen`",
        code: "NL-E0102",
        exit: 78,
    },
    Row {
        mistake: "a page's address for a host",
        make: |scene| {
            scene.program("narrowlink-gateway", &["init", "https://gw.example/", "--yes", "--dir", "new"])
        },
        what: "the address of a web page",
        place: "HOST: ",
        next: "narrowlink-gateway init gw.example",
        code: "NL-E0001",
        exit: 2,
    },
    Row {
        mistake: "a gateway at a port that is in use",
        make: |scene| {
            let addr = scene.occupied.local_addr().expect("it is bound").to_string();
            scene.program("narrowlink-gateway", &["init", &addr, "--listen", &addr, "--yes", "--dir", "new"])
        },
        what: "Address already in use",
        place: "--listen 127.",
        next: "choose another port",
        code: "NL-E0006",
        exit: 69,
    },
    Row {
        mistake: "a certificate for another name",
        make: |scene| {
            let words = ["init", "gw.example", "--listen", "127.0.0.1:0", "--yes", "--dir", "new"];
            let files = ["--cert", "gateway.pem", "--key", "gateway.key"];
            scene.program("narrowlink-gateway", &[&words[..], &files].concat())
        },
        what: "the certificate is not for gw.example",
        place: "--cert gateway.pem: ",
        next: "or one for gw.example",
        code: "NL-E0102",
        exit: 78,
    },
    Row {
        mistake: "a port where a rule begins with its agent",
        make: |scene| scene.operator(&["ticket", "client", "phone", "--allow", "22"]),
        what: "22 looks like a port",
        place: "--allow \"22\": ",
        next: "did you mean home:127.0.0.1:22?",
        code: "NL-E0001",
        exit: 2,
    },
    Row {
        mistake: "a ticket that has ended before it begins",
        make: |scene| scene.operator(&["ticket", "client", "phone", "--expires", "2020-01-01"]),
        what: "2020-01-01",
        place: "--expires: ",
        next: "in the future",
        code: "NL-E0001",
        exit: 2,
    },
    Row {
        mistake: "a second ticket of one name",
        make: |scene| scene.operator(&["ticket", "agent", "home"]),
        what: "has a ticket already",
        place: "the agent home of main",
        next: "--renew",
        code: "NL-E0001",
        exit: 2,
    },
    Row {
        mistake: "tickets of a gateway without a book",
        make: |scene| {
            scene.gateway(GATEWAY);
            scene.program("narrowlink-gateway", &["ticket", "client", "phone", "-c", "gateway.yaml"])
        },
        what: "there is no book of tickets here",
        place: "tickets.yaml: ",
        next: "`narrowlink-gateway init` makes one",
        code: "NL-E0102",
        exit: 78,
    },
];

/// The same command, for root without the right to read what it may not.
fn without_roots_rights(command: &Command) -> Command {
    let mut bare = if rustix::process::geteuid().is_root() {
        let mut setpriv = Command::new("setpriv");
        setpriv.args(["--bounding-set", "-dac_override,-dac_read_search"]).arg(command.get_program());
        setpriv
    } else {
        Command::new(command.get_program())
    };
    bare.args(command.get_args());
    if let Some(dir) = command.get_current_dir() {
        bare.current_dir(dir);
    }
    bare
}

#[test]
fn of_every_mistake_is_said_what_is_wrong_where_and_what_to_do_next() {
    let scene = Scene::set();
    let secrets = [
        SECRET,
        &scene.secret,
        &scene.agent_token,
        &scene.client_token,
        &scene.agent_ticket,
        &scene.client_ticket,
    ];
    let mut wrong = String::new();
    for row in ROWS {
        let Row { mistake, make, what, place, next, code, exit } = row;
        let Finished { status, stderr, .. } = run(make(&scene), b"", PATIENCE);
        // What the log says besides is for another reader.
        let said: Vec<_> =
            stderr.lines().filter(|line| !line.contains(" INFO ") && !line.contains(" WARN ")).collect();
        let said = said.join("\n");
        for (part, of) in [("what", what), ("where", place), ("next", next), ("code", code)] {
            if !said.contains(of) {
                let _ = writeln!(wrong, "{mistake}: {part} ({of}) is not said: {said}");
            }
        }
        if status.code() != Some(*exit) {
            let _ = writeln!(wrong, "{mistake}: it ended with {:?}, not {exit}: {said}", status.code());
        }
        let shown = said.split(|c: char| !(c.is_ascii_alphanumeric() || "-_".contains(c)));
        for word in shown.filter(|word| secrets.iter().any(|secret| shares_a_part(word, secret))) {
            let _ = writeln!(wrong, "{mistake}: a part of a secret is shown: {word}");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(!scene.path("new").exists(), "nothing was made of a mistake");
}

#[test]
fn the_table_is_long_enough_and_no_row_stands_twice() {
    let mut rows: Vec<_> = ROWS.iter().map(|row| (row.mistake, (row.what, row.place, row.next))).collect();
    assert!(rows.len() >= 25, "{}", rows.len());
    rows.sort_unstable();
    rows.dedup_by_key(|row| row.1);
    assert_eq!(rows.len(), ROWS.len());
    assert!(Path::new("/usr/bin/setpriv").exists() || !rustix::process::geteuid().is_root());
}
