//! Role: curl against a small HTTP/1.1 server of our own.
//! Invariants: downloads and uploads have the hash of what was sent; a kept connection stays one.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    process::Command,
    thread,
    time::Duration,
};

use tempfile::TempDir;

use crate::kit::{
    data, net,
    process::{foreign, run},
    site::{Transport, Tunnel},
};

const DOWNLOAD_BYTES: u64 = 256 * 1024 * 1024;
const UPLOAD_BYTES: u64 = 64 * 1024 * 1024;
const SEED: u64 = 0xc0_1d;
/// Uploads that are refused while they last.
const UPLOADS: usize = 15;

/// Serves `GET /<bytes>` with that many bytes of the seed, and answers `POST` with the body's SHA-256,
/// as long as the test process lives.
fn start_server() -> SocketAddr {
    let (listener, addr) = net::listen();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A connection that breaks is curl's to report.
            thread::spawn(move || serve(&stream));
        }
    });
    addr
}

fn serve(stream: &TcpStream) -> io::Result<()> {
    let mut input = BufReader::new(stream);
    let mut output = stream;
    while let Some(request) = read_request(&mut input)? {
        if request.method == "POST" {
            let hash = data::copy_hashed(&mut input, &mut io::sink(), request.body_bytes)?;
            write!(output, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{hash}", hash.len())?;
        } else {
            let bytes = request.path.trim_start_matches('/').parse().map_err(io::Error::other)?;
            write!(output, "HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n")?;
            data::copy_hashed(&mut data::Pattern::new(SEED), &mut output, bytes)?;
        }
    }
    Ok(())
}

struct Request {
    method: String,
    path: String,
    body_bytes: u64,
}

fn read_request(input: &mut BufReader<&TcpStream>) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if input.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut request = Request { method, path, body_bytes: 0 };
    loop {
        line.clear();
        input.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                request.body_bytes = value.parse().map_err(io::Error::other)?;
            }
            Some(_) => {}
            None => return Ok(Some(request)),
        }
    }
}

fn curl() -> Command {
    let mut command = Command::new(foreign("curl", "curl"));
    // Neither the user's settings nor a proxy of the environment.
    command.args(["-q", "--silent", "--show-error", "--fail", "--noproxy", "*"]);
    command
}

fn check_download(addr: SocketAddr) {
    let dir = TempDir::with_prefix("narrowlink-curl-").expect("a temporary directory can be made");
    let sent = data::write_file(&dir.path().join("sent"), DOWNLOAD_BYTES, SEED);
    let mut command = curl();
    command.arg("--output").arg(dir.path().join("got")).arg(format!("http://{addr}/{DOWNLOAD_BYTES}"));
    run(command, b"", Duration::from_secs(120)).succeeded();
    assert_eq!(data::hash_file(&dir.path().join("got")), (sent, DOWNLOAD_BYTES));
}

fn check_upload(addr: SocketAddr) {
    let dir = TempDir::with_prefix("narrowlink-curl-").expect("a temporary directory can be made");
    let sent = data::write_file(&dir.path().join("sent"), UPLOAD_BYTES, SEED);
    let mut command = curl();
    command.args(["--header", "Expect:", "--data-binary"]);
    command.arg(format!("@{}", dir.path().join("sent").display())).arg(format!("http://{addr}/"));
    assert_eq!(run(command, b"", Duration::from_secs(120)).succeeded_with_text(), sent);
}

/// One connection for all requests: curl counts the connections that it made for each.
fn check_keep_alive(addr: SocketAddr) {
    let mut command = curl();
    command.args(["--output", "/dev/null", "--write-out", "%{num_connects} %{size_download}\n"]);
    command.arg(format!("http://{addr}/[1000-1099]"));
    let printed = run(command, b"", Duration::from_secs(60)).succeeded_with_text();
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.len(), 100, "{printed}");
    for (i, line) in lines.into_iter().enumerate() {
        let connects = u8::from(i == 0);
        assert_eq!(line, format!("{connects} {}", 1_000 + i), "request {i} of:\n{printed}");
    }
}

fn curl_downloads_unchanged(transport: Transport) {
    let tunnel = Tunnel::start(transport);
    let forward = tunnel.forward(start_server());
    check_download(forward.local);
}

fn curl_uploads_unchanged(transport: Transport) {
    let tunnel = Tunnel::start(transport);
    let forward = tunnel.forward(start_server());
    check_upload(forward.local);
}

fn curl_keeps_its_connection(transport: Transport) {
    let tunnel = Tunnel::start(transport);
    let forward = tunnel.forward(start_server());
    check_keep_alive(forward.local);
}

/// Has heard enough of an upload once its head is there: says so and closes.
fn start_refuser() -> SocketAddr {
    let (listener, addr) = net::listen();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || refuse(&stream));
        }
    });
    addr
}

fn refuse(stream: &TcpStream) -> io::Result<()> {
    read_request(&mut BufReader::new(stream))?;
    let refusal = "no more than that\n".repeat(100);
    let head = format!("Connection: close\r\nContent-Length: {}", refusal.len());
    write!(&mut &*stream, "HTTP/1.1 413 Content Too Large\r\n{head}\r\n\r\n{refusal}")?;
    net::wait_until_delivered(stream);
    Ok(())
}

/// How many of so many uploads are told why they are refused.
fn refusals(addr: SocketAddr, uploads: usize) -> usize {
    let dir = TempDir::with_prefix("narrowlink-curl-").expect("a temporary directory can be made");
    data::write_file(&dir.path().join("sent"), 8 * 1024 * 1024, SEED);
    let told = |_: &usize| {
        let mut command = curl();
        command.args(["--no-fail", "--header", "Expect:", "--output", "/dev/null"]);
        command.args(["--write-out", "%{http_code} %{size_download}", "-T"]);
        command.arg(dir.path().join("sent")).arg(format!("http://{addr}/"));
        // Whatever it makes of the reset that comes behind.
        let finished = run(command, b"", Duration::from_secs(60));
        let said = String::from_utf8_lossy(&finished.stdout).into_owned();
        if said != "413 1800" {
            println!("{said:?}: {}", finished.stderr);
        }
        said == "413 1800"
    };
    (0..uploads).filter(told).count()
}

fn curl_is_told_why_its_upload_is_refused(transport: Transport) {
    for tunnel in [Tunnel::start(transport), Tunnel::start_raw(transport)] {
        let forward = tunnel.forward(start_refuser());
        assert_eq!(refusals(forward.local, UPLOADS), UPLOADS);
    }
}

over_ws_and_wss!(
    curl_downloads_unchanged,
    curl_uploads_unchanged,
    curl_keeps_its_connection,
    curl_is_told_why_its_upload_is_refused,
);

/// What fails here is the machine's curl or our server, not the tunnel.
#[test]
fn curl_itself_works_without_a_tunnel() {
    let addr = start_server();
    check_download(addr);
    check_upload(addr);
    check_keep_alive(addr);
    assert_eq!(refusals(start_refuser(), UPLOADS), UPLOADS);
}
