//! Role: `doctor` finds what is wrong: faults are planted one at a time, between real programs.
//! Invariants: of what is planted exactly the check that is about it says FAIL or WARN, with what to do next, and the exit
//! code is the one that the trouble has elsewhere · without a fault nothing does · no output has a token.
//! See: `dataplane::peer::doctor`; docs/errors.md for the codes.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::Command,
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use narrowlink_proto::{pin::Pin, when::show};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PublicKeyData as _, date_time_ymd,
};
use serde_json::Value;

use crate::kit::{
    PATIENCE, net,
    process::{Finished, ours, run},
    site::{AGENT, Holder, Site, Transport, Tunnel},
    tls_end::TlsEnd,
};

/// What doctor said, and how it ended.
struct Said {
    findings: Vec<Value>,
    code: Option<i32>,
    text: String,
}

impl Said {
    fn by(mut command: Command) -> Self {
        command.arg("--json");
        let Finished { status, stdout, stderr, .. } = run(command, b"", PATIENCE);
        let text = String::from_utf8_lossy(&stdout).into_owned();
        let read = serde_json::from_str(&text);
        let findings = read.unwrap_or_else(|e| panic!("{e}\n{text}\n{stderr}"));
        Self { findings, code: status.code(), text }
    }

    /// What is not well, of the checks that are about the way: a machine of the tests may have no io_uring.
    fn troubles(&self) -> Vec<&Value> {
        let is_trouble = |finding: &&Value| {
            let state = finding["state"].as_str().expect("each has a state");
            let has_next = finding["next"].as_str().is_some_and(|next| !next.is_empty());
            assert_eq!(has_next, ["WARN", "FAIL"].contains(&state), "{finding}");
            has_next && (finding["check"] != "io_uring" || state == "FAIL")
        };
        self.findings.iter().filter(is_trouble).collect()
    }

    #[track_caller]
    fn assert_well(&self) {
        assert!(self.troubles().is_empty(), "{}", self.text);
        assert_eq!(self.code, Some(0), "{}", self.text);
        assert!(!self.findings.iter().any(|finding| finding["state"] == "SKIP"), "{}", self.text);
    }

    /// Nothing else is not well, and it says this of what was found and of what to do.
    #[track_caller]
    fn assert_only(&self, check: &str, state: &str, found: &str, next: &str, code: i32) {
        let troubles = self.troubles();
        let [trouble] = troubles[..] else { panic!("{check} is not the only one:\n{}", self.text) };
        assert_eq!((trouble["check"].as_str(), trouble["state"].as_str()), (Some(check), Some(state)));
        for (key, words) in [("found", found), ("next", next)] {
            let said = trouble[key].as_str().unwrap_or_default();
            assert!(said.contains(words), "{words:?} is not in {key}: {trouble}");
        }
        assert_eq!(self.code, Some(code), "{}", self.text);
    }

    /// The checks that were left out.
    fn left_out(&self) -> String {
        let skipped: Vec<_> = self.findings.iter().filter(|finding| finding["state"] == "SKIP").collect();
        let [skipped] = skipped[..] else { panic!("not one line:\n{}", self.text) };
        skipped["found"].as_str().expect("words").to_owned()
    }
}

/// `narrowlink doctor` with an endpoint that says this besides its token.
fn doctor(site: &Site, gateway: impl ToString, more: &str) -> Command {
    doctor_by(site, gateway, more, "Free.token")
}

fn doctor_by(site: &Site, gateway: impl ToString, more: &str, token: &str) -> Command {
    let mut command = site.command("narrowlink");
    let text = format!("endpoints:\n{}", endpoint(site, gateway, more, token));
    command.arg("-c").arg(site.write_secret("doctor.yaml", &text)).arg("doctor");
    command
}

fn endpoint(site: &Site, gateway: impl ToString, more: &str, token: &str) -> String {
    let (gateway, token) = (gateway.to_string(), site.path(token));
    format!("  - !SelfHosted {{ gateway: \"{gateway}\", token_file: {}, {more} }}\n", token.display())
}

/// What an endpoint says to reach the site's own gateway.
fn own_ca(site: &Site) -> String {
    format!("domain: gw.test, ca_file: {}", site.path("ca.pem").display())
}

fn wss(tunnel: &Tunnel) -> SocketAddr {
    tunnel.site.gateway_addr(Transport::Wss)
}

fn ws(tunnel: &Tunnel) -> SocketAddr {
    tunnel.site.gateway_addr(Transport::Ws)
}

fn without_a_fault_nothing_is_said_to_be_wrong(transport: Transport) {
    let mut tunnel = Tunnel::start(transport);
    let site = &tunnel.site;
    let mut command = site.client(transport, Holder::Free);
    command.arg("doctor");
    let said = Said::by(command);
    said.assert_well();
    let checks: Vec<_> = said.findings.iter().filter_map(|finding| finding["check"].as_str()).collect();
    let all = "config dns tcp tls http token clock link agents mtu ipv6 descriptors io_uring";
    assert_eq!(checks, all.split(' ').collect::<Vec<_>>());

    // An agent's is told the same, but for what a client alone may ask; and the one that runs goes on.
    let mut command = site.agent_command(transport);
    command.arg("doctor");
    let said = Said::by(command);
    said.assert_well();
    assert!(!said.text.contains("\"agents\""), "{}", said.text);
    let mut list = site.client(transport, Holder::Free);
    list.arg("list");
    assert!(run(list, b"", PATIENCE).succeeded_with_text().contains(AGENT));
    tunnel.agent.assert_running();
    assert_eq!(tunnel.agent.said_times("lost"), 0, "its link stood all the time");
}

over_ws_and_wss!(without_a_fault_nothing_is_said_to_be_wrong);

#[test]
fn for_people_each_finding_is_a_line_and_the_token_in_none() {
    let tunnel = Tunnel::start(Transport::Wss);
    let site = &tunnel.site;
    let said = run(doctor(site, wss(&tunnel), &own_ca(site)), b"", PATIENCE).succeeded_with_text();
    let gateway = wss(&tunnel);
    for line in [
        format!("OK    tls          {gateway}: a certificate for gw.test, until "),
        format!("OK    link         {gateway}: the gateway welcomes this client; its answer took "),
        format!("OK    agents       {gateway}: 1 is connected"),
    ] {
        assert!(said.lines().any(|said| said.starts_with(&line)), "{line:?} is not in\n{said}");
    }
    let token = fs::read_to_string(site.path("Free.token")).expect("it is there");
    for part in token.trim().split('.') {
        assert!(!said.contains(&part[..12]), "{said}");
    }
}

#[test]
fn a_name_without_an_address_is_dns_s() {
    let site = Site::new();
    let said = Said::by(doctor(&site, "no-such-gateway.invalid:443", &own_ca(&site)));
    said.assert_only(
        "dns",
        "FAIL",
        "no-such-gateway.invalid does not resolve",
        "is the name written right",
        69,
    );
    assert_eq!(
        said.left_out(),
        "tcp, tls, http, clock, link, agents, mtu, ipv6: what failed above comes first"
    );
}

#[test]
fn a_port_where_nobody_listens_is_tcp_s() {
    let site = Site::new();
    let said = Said::by(doctor(&site, net::free_addr(), &own_ca(&site)));
    said.assert_only("tcp", "FAIL", "connection refused", "is the gateway running, and the port right?", 69);
}

#[test]
fn a_port_that_never_says_a_word_is_given_up() {
    let site = Site::new();
    let (_silent, addr) = net::listen();
    let over_tls = Said::by(doctor(&site, addr, &own_ca(&site)));
    over_tls.assert_only("tls", "FAIL", "says nothing for 10 s", "is this the gateway's port", 69);
    let plain = Said::by(doctor(&site, addr, "protocol: Ws"));
    plain.assert_only("http", "FAIL", "no answer within 10 s", "write protocol: Wss", 69);
}

/// Says the same to everybody who sends a head.
fn start_web_server(answer: &'static str) -> SocketAddr {
    let (listener, addr) = net::listen();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            read_head(&mut stream);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    addr
}

fn read_head(stream: &mut TcpStream) -> Vec<u8> {
    let (mut got, mut byte) = (Vec::new(), [0]);
    while !got.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
        got.push(byte[0]);
    }
    got
}

#[test]
fn what_answers_in_the_gateway_s_place_is_told_apart() {
    let site = Site::new();
    for (answer, found, next) in [
        (
            "HTTP/1.1 200 OK\r\nServer: nginx\r\nContent-Length: 0\r\n\r\n",
            "HTTP status 200: another server answers there (it calls itself nginx)",
            "check host and port",
        ),
        (
            "HTTP/1.1 302 Found\r\nLocation: http://login.test/\r\n\r\n",
            "it sends us on to http://login.test/",
            "captive portal to sign in to",
        ),
        (
            "HTTP/1.1 407 Proxy Authentication Required\r\nVia: 1.1 squid\r\n\r\n",
            "a proxy or firewall between forbids the way",
            "ask who runs it",
        ),
        ("SSH-2.0-OpenSSH_9.6\r\n", "it says \"SSH-2.0-OpenSSH_9.6\"", "is this the gateway's port?"),
    ] {
        let said = Said::by(doctor(&site, start_web_server(answer), "protocol: Ws"));
        said.assert_only("http", "FAIL", found, next, 69);
    }
}

/// An authority of the test's own, and servers that it has signed for.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    pin: Pin,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        // An authority is found by its name, and the site's own has the library's usual one.
        params.distinguished_name.push(DnType::CommonName, "an authority of doctor's");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key can be made");
        let pin = Pin::of(&key.subject_public_key_info());
        let pem = params.self_signed(&key).expect("a CA signs itself").pem();
        Self { issuer: Issuer::new(params, key), pem, pin }
    }

    /// A server in front of the gateway that shows a certificate for `name` until this year, and the authority's.
    fn start(&self, tunnel: &Tunnel, name: &str, until: i32) -> SocketAddr {
        let key = KeyPair::generate().expect("a key can be made");
        let mut params = CertificateParams::new([name.to_owned()]).expect("a DNS name");
        (params.not_before, params.not_after) = (date_time_ymd(2000, 1, 1), date_time_ymd(until, 1, 1));
        let own = params.signed_by(&key, &self.issuer).expect("the CA signs");
        let text = format!("{}{}{}", own.pem(), self.pem, key.serialize_pem());
        let pem = tunnel.site.write_secret(&format!("{name}-{until}.pem"), &text);
        TlsEnd::start(net::listen().0, &pem, ws(tunnel)).addr
    }

    fn ca_file(&self, site: &Site) -> String {
        let path = site.write_secret("doctor-ca.pem", &self.pem);
        format!("domain: gw.test, ca_file: {}", path.display())
    }
}

#[test]
fn each_fault_of_a_certificate_has_its_own_words() {
    let tunnel = Tunnel::start(Transport::Wss);
    let (site, authority) = (&tunnel.site, Authority::new());
    let (ca_file, good) = (authority.ca_file(site), authority.start(&tunnel, "gw.test", 3000));
    let pinned = |pin: Pin| format!("domain: gw.test, ca_pin: \"{pin}\"");
    for way in [&ca_file, &pinned(authority.pin)] {
        Said::by(doctor(site, good, way)).assert_well();
    }
    let other = authority.start(&tunnel, "other.example", 3000);
    let expired = authority.start(&tunnel, "gw.test", 2001);
    let (missing, unknown) =
        ("domain: gw.test, ca_file: absent.pem".to_owned(), pinned(Authority::new().pin));
    for (gateway, way, found, next, code) in [
        (other, &ca_file, "is for other.example, not for gw.test", "write a name that it has", 69),
        (expired, &ca_file, "expired on 2001-01-01", "renew it at the gateway", 69),
        (wss(&tunnel), &ca_file, "is not from the authority in ca_file", "mend or remove ca_file", 69),
        (good, &unknown, "is not from the authority that ca_pin names", "ask for a new ticket", 69),
        (good, &missing, "ca_file: this file can't be read", "is relative to the directory", 78),
        (ws(&tunnel), &own_ca(site), "does not speak TLS", "protocol: Ws", 69),
    ] {
        let said = Said::by(doctor(site, gateway, way));
        said.assert_only("tls", "FAIL", found, next, code);
        assert_eq!(said.left_out(), "http, clock, link, agents: what failed above comes first");
    }
    let plain = Said::by(doctor(site, wss(&tunnel), "protocol: Ws"));
    plain.assert_only("http", "FAIL", "this port may speak TLS", "write protocol: Wss", 69);
}

#[test]
fn each_fault_of_a_token_has_its_own_words() {
    let tunnel = Tunnel::start(Transport::Wss);
    let (site, way) = (&tunnel.site, own_ca(&tunnel.site));
    site.write_secret("cut.token", "eyJ0eXAi.eyJ0");
    for (token, found, next, code) in [
        ("Expired.token", "it expired on 2001-09-09", "ask for a new one", 77),
        ("Stranger.token", "the gateway does not accept it", "or was revoked: ask for a new one", 77),
        ("agent.token", "it is of kind agent, and this is a client", "ask for a client's token", 77),
        ("cut.token", "it can't be read", "write it there, whole", 77),
        ("absent.token", "token_file: this file can't be read", "is relative to the directory", 78),
    ] {
        let said = Said::by(doctor_by(site, wss(&tunnel), &way, token));
        said.assert_only("token", "FAIL", found, next, code);
    }
}

#[test]
fn an_agent_s_troubles_end_as_they_do_elsewhere() {
    let tunnel = Tunnel::start(Transport::Wss);
    let site = &tunnel.site;
    let another = &Site::new();
    fs::copy(another.path("agent.token"), site.path("other-agent.token")).expect("both are there");
    for (token, found, code) in [
        ("other-agent.token", "the gateway does not accept it", 69),
        ("Free.token", "it is of kind client, and this is an agent", 78),
    ] {
        let text = format!("endpoints:\n{}", endpoint(site, wss(&tunnel), &own_ca(site), token));
        let mut command = site.command("narrowlink-agent");
        command.arg("doctor").arg("-c").arg(site.write_secret("agent-doctor.yaml", &text));
        Said::by(command).assert_only("token", "FAIL", found, "ask for", code);
    }
    let mut command = site.command("narrowlink-agent");
    command.args(["doctor", "-c", "absent.yaml"]);
    let said = Said::by(command);
    said.assert_only("config", "FAIL", "absent.yaml can't be read", "mend that", 78);
    assert!(said.left_out().starts_with("every gateway"));
}

/// Passes everything on, and adds a header to the gateway's answer, in place of its own of that name.
fn start_adding(gateway: SocketAddr, header: String) -> SocketAddr {
    let (listener, addr): (TcpListener, _) = net::listen();
    thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let header = header.clone();
            // Whoever leaves first ends it, as with any proxy.
            thread::spawn(move || drop(add(near, gateway, &header)));
        }
    });
    addr
}

fn add(mut near: TcpStream, gateway: SocketAddr, header: &str) -> io::Result<()> {
    let mut far = TcpStream::connect(gateway)?;
    let (mut near_too, mut far_too) = (near.try_clone()?, far.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut near_too, &mut far_too);
        far_too.shutdown(Shutdown::Write)
    });
    let head = String::from_utf8_lossy(&read_head(&mut far)).into_owned();
    let name = header.split_inclusive(':').next().unwrap_or(header);
    let mut lines: Vec<_> = head.trim_end().split("\r\n").filter(|line| !line.starts_with(name)).collect();
    lines.push(header);
    near.write_all(format!("{}\r\n\r\n", lines.join("\r\n")).as_bytes())?;
    io::copy(&mut far, &mut near).map(drop)
}

/// This machine's clock and what it is off by, as HTTP writes it.
fn date_header(off_s: i64) -> String {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let shown = show(now.saturating_add_signed(off_s));
    let words: Vec<_> = shown.split(['-', ' ']).collect();
    let [year, month, day, time, _] = words[..] else { panic!("{shown}") };
    let month = MONTHS[month.parse::<usize>().expect("a number") - 1];
    format!("Date: Sun, {day} {month} {year} {time} GMT")
}

#[test]
fn a_clock_that_is_off_is_the_clock_s() {
    let tunnel = Tunnel::start(Transport::Ws);
    let site = &tunnel.site;
    let asked = |off_s, token: &str| {
        let through = start_adding(ws(&tunnel), date_header(off_s));
        Said::by(doctor_by(site, through, "domain: gw.test, protocol: Ws", token))
    };
    asked(0, "Free.token").assert_well();
    for (off_s, found) in [(3600, "s behind the answer's date"), (-3600, "s ahead of the answer's date")] {
        asked(off_s, "Free.token").assert_only("clock", "WARN", found, "set this machine's clock", 0);
    }
    // By the other clock the token, which holds for 30 days, has expired.
    let depends = asked(40 * 86_400, "Free.token");
    depends.assert_only("clock", "FAIL", "the token holds by one of them only", "timedatectl", 77);
}

#[test]
fn a_proxy_between_is_seen_by_what_it_adds() {
    let tunnel = Tunnel::start(Transport::Ws);
    let through = start_adding(ws(&tunnel), "Via: 1.1 \u{202e}squid".to_owned());
    for (framing, next) in [("framed", "ask who runs it"), ("raw", "write framing: framed")] {
        let way = format!("domain: gw.test, protocol: Ws, framing: {framing}");
        let said = Said::by(doctor(&tunnel.site, through, &way));
        said.assert_only("http", "WARN", "adds Via: 1.1 squid", next, 0);
    }
}

#[test]
fn a_client_without_agents_is_told_so() {
    let mut site = Site::new();
    let _gateway = site.start_gateway();
    let said = Said::by(doctor(&site, site.gateway_addr(Transport::Wss), &own_ca(&site)));
    said.assert_only("agents", "WARN", "none is connected", "start narrowlink-agent", 0);
}

#[test]
fn a_token_that_everybody_can_read_is_the_configuration_s() {
    let tunnel = Tunnel::start(Transport::Wss);
    let site = &tunnel.site;
    let command = doctor(site, wss(&tunnel), &own_ca(site));
    let token: PathBuf = site.path("Free.token");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).expect("it is ours");
    Said::by(command).assert_only("config", "WARN", "can be read by every user", "chmod 600", 0);
}

/// The same command behind another program.
fn behind(wrapper: &[&str], command: &Command) -> Command {
    let mut wrapped = Command::new(wrapper[0]);
    wrapped.args(&wrapper[1..]).arg(command.get_program()).args(command.get_args());
    command.get_current_dir().map(|dir| wrapped.current_dir(dir));
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    wrapped
}

#[test]
fn a_machine_that_grants_too_little_is_told_apart_from_the_way() {
    let tunnel = Tunnel::start(Transport::Wss);
    let command = doctor(&tunnel.site, wss(&tunnel), &own_ca(&tunnel.site));
    let few = behind(&["sh", "-c", "ulimit -n 64 && exec \"$0\" \"$@\""], &command);
    Said::by(few).assert_only("descriptors", "WARN", "64 open files", "LimitNOFILE", 0);

    let wrapper = ours("without-io-uring");
    let wrapper = wrapper.to_str().expect("a plain path");
    for (errno, found) in [("EPERM", "EPERM: "), ("ENOSYS", "ENOSYS: this kernel has none")] {
        let refused = |more: &[&str]| {
            let mut refused = behind(&[wrapper, "--errno", errno, "--"], &command);
            refused.args(more);
            let said = Said::by(refused);
            let ring = said.findings.iter().find(|finding| finding["check"] == "io_uring").cloned();
            (ring.expect("it is looked at"), said)
        };
        let (ring, said) = refused(&[]);
        assert!(said.troubles().is_empty() && said.code == Some(0), "{}", said.text);
        assert_eq!(ring["state"], "WARN", "{ring}");
        assert!(ring["found"].as_str().is_some_and(|words| words.contains(found)), "{ring}");
        let (ring, said) = refused(&["--require-io-uring"]);
        assert_eq!((ring["state"].as_str(), said.code), (Some("FAIL"), Some(70)), "{}", said.text);
    }
}

#[test]
fn each_of_several_gateways_is_looked_at_and_the_worst_is_the_exit_s() {
    let tunnel = Tunnel::start(Transport::Wss);
    let (site, way) = (&tunnel.site, own_ca(&tunnel.site));
    let nobody = net::free_addr();
    let mut text = format!("endpoints:\n{}", endpoint(site, nobody, &way, "Free.token"));
    text += &endpoint(site, wss(&tunnel), &way, "Stranger.token");
    let mut command = site.command("narrowlink");
    command.arg("-c").arg(site.write_secret("two.yaml", &text)).arg("doctor");
    let said = Said::by(command);
    let seen: Vec<_> =
        said.troubles().iter().map(|it| (it["check"].clone(), it["endpoint"].clone())).collect();
    let due = [("tcp", nobody), ("token", wss(&tunnel))];
    assert_eq!(seen, due.map(|(check, addr)| (check.into(), addr.to_string().into())));
    assert_eq!(said.code, Some(77));
}
