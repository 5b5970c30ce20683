//! A gateway that has few descriptors: who takes all that can be had, in every way, keeps nobody else's login out.
#![expect(clippy::unwrap_used, reason = "a test")]

#[path = "kit/command.rs"]
#[expect(dead_code, reason = "used by other tests")]
mod command;

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use narrowlink_proto::{
    id::Uid,
    token::{Claims, Keys, Kind},
};
use socket2::{Domain, Socket, Type};

const PATIENCE: Duration = Duration::from_secs(10);
const SECRET: [u8; 32] = [7; 32];
/// What the gateway may open.
const DESCRIPTORS: usize = 256;

/// A gateway, until dropped.
struct Gateway(Child, SocketAddr);

impl Gateway {
    fn start(dir: &Path) -> Self {
        let secret = "07".repeat(SECRET.len());
        let config = format!(
            "name: few\nsecret: \"hex:{secret}\"\nworkers: 2\nservices:\n  \
             - !Ws {{ domains: [gw.example], listen_addr: \"127.0.0.1:0\" }}\n"
        );
        command::write(&dir.join("gateway.yaml"), &config);
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -n {DESCRIPTORS} && exec \"$0\" --ready-file ready")]);
        command.arg(env!("CARGO_BIN_EXE_narrowlink-gateway")).current_dir(dir).env("HOME", dir);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(dir.join("log")).unwrap());
        let child = command.process_group(0).spawn().unwrap();
        let deadline = Instant::now() + PATIENCE;
        let ready = loop {
            match fs::read(dir.join("ready")) {
                Ok(ready) => break ready,
                Err(_) => assert!(Instant::now() < deadline, "{:?}", fs::read_to_string(dir.join("log"))),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let ready: serde_json::Value = serde_json::from_slice(&ready).unwrap();
        Self(child, ready["services"][0]["address"].as_str().unwrap().parse().unwrap())
    }

    /// How many descriptors it has now.
    fn descriptors(&self) -> usize {
        self.list_descriptors().len()
    }

    /// How many, when those of connections that have left are gone.
    fn settled_descriptors(&self) -> usize {
        let mut last = usize::MAX;
        loop {
            match self.descriptors() {
                same if same == last => return same,
                other => last = other,
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// What they are.
    fn list_descriptors(&self) -> Vec<String> {
        let all = fs::read_dir(format!("/proc/{}/fd", self.0.id())).into_iter().flatten().flatten();
        all.filter_map(|one| Some(fs::read_link(one.path()).ok()?.display().to_string())).collect()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn token(uid: u128, name: &str) -> String {
    let claims = Claims::new(Kind::Client, Uid::from_u128(uid), name, command::now() + 3600, name);
    Keys::new(&SECRET).sign(&claims).unwrap()
}

/// Asks for a stream, from 127.0.0.`source`; the answer.
fn log_in(source: u8, addr: SocketAddr, token: &str) -> io::Result<(String, TcpStream)> {
    let mut stream = connect_from(source, addr)?;
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: gw.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
         Sec-WebSocket-Protocol: nl1.stream.framed\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.extend(byte);
    }
    if !head.starts_with(b"HTTP/1.1 101 ") {
        stream.read_to_end(&mut head)?;
    }
    Ok((String::from_utf8_lossy(&head).into_owned(), stream))
}

fn connect_from(source: u8, addr: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    let source = IpAddr::V4(Ipv4Addr::new(127, 0, 0, source));
    socket.bind(&SocketAddr::new(source, 0).into())?;
    socket.connect(&addr.into())?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

#[test]
fn who_takes_every_descriptor_leaves_some_for_others() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(dir.path());
    let addr = gateway.1;
    let (greedy, victim) = (token(1, "greedy"), token(2, "victim"));
    // Every worker has begun to listen when it has served somebody.
    for source in 1..=20 {
        log_in(source, addr, &victim).unwrap();
    }
    let before = gateway.settled_descriptors();
    let mut held = Vec::new();
    let refused = loop {
        let (head, stream) = log_in(2, addr, &greedy).unwrap();
        if !head.starts_with("HTTP/1.1 101 ") {
            break head;
        }
        held.push(stream);
        assert!(held.len() < DESCRIPTORS);
    };
    assert!(refused.starts_with("HTTP/1.1 429 "), "{refused}");
    assert!(refused.contains("this user has its share of the gateway's connections already"), "{refused}");
    println!("one user has {} streams of {DESCRIPTORS} descriptors", held.len());
    assert!(held.len() > DESCRIPTORS / 2);
    // And as many silent connections as strangers may have, from many sources.
    let silent: Vec<_> = (0..600).map(|n| connect_from(10 + (n % 100) as u8, addr)).collect();
    let (mut logins, mut cut) = (Vec::new(), 0);
    for n in 0..20 {
        // While the silent ones of a hundred sources still arrive, one more may be cut off before an older one
        // has left: agents and forwards come again, as this one does.
        let deadline = Instant::now() + Duration::from_secs(1);
        let (head, stream) = loop {
            match log_in(3, addr, &victim) {
                Ok(answered) => break answered,
                Err(e) => assert!(Instant::now() < deadline, "login {n}: {e}"),
            }
            cut += 1;
        };
        assert!(head.starts_with("HTTP/1.1 101 "), "login {n}: {head}");
        // Some stay, most come and go.
        if n % 4 == 0 {
            logins.push(stream);
        }
    }
    println!(
        "20 of 20 logins of another beside it, {cut} tries more; {} descriptors in use",
        gateway.descriptors()
    );
    drop((held, silent, logins));
    let deadline = Instant::now() + PATIENCE;
    // Each worker keeps the event that it took its first turn with.
    while gateway.descriptors() > before + 2 {
        let now = gateway.list_descriptors();
        assert!(Instant::now() < deadline, "{} descriptors, {before} before: {now:?}", now.len());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!fs::read_to_string(dir.path().join("log")).unwrap().contains("no connection can be accepted"));
}
