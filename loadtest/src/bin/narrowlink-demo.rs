//! Role: the first five minutes: a whole Narrowlink on loopback, proof that bytes flow, and the
//! commands to go on with by hand.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use narrowlink_loadtest::{
    lab::Lab,
    site::Transport,
    transfer::{self, Ending, Outcome, Pace, Plan, Seen},
};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Starts a gateway, an agent and a client on loopback with fresh keys, pushes bytes through, and
/// shows what to type next.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Exit after the proof: 0 if every byte matched.
    #[arg(long)]
    once: bool,
    /// MiB to push each way.
    #[arg(long, default_value_t = 256)]
    mib: u64,
}

const TRANSPORT: Transport = Transport { tls: true, raw: false };
const CONNECTIONS: usize = 200;

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("narrowlink-demo: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(io::stderr).init();
    let lab = Lab::start(2).context("the gateway")?;
    let _agent = lab.agent("home", TRANSPORT).context("the agent")?;
    println!(
        "gateway   {} (wss), {} (ws), {}",
        lab.gateway().addresses()[0],
        lab.gateway().addresses()[1],
        lab.gateway().driver()
    );
    println!("agent     home, welcomed by the gateway");

    let sink = TcpListener::bind("127.0.0.1:0")?;
    let forward = lab.forward("home", sink.local_addr()?, TRANSPORT)?;
    println!("client    {} -> home -> {}", forward.local_addr, sink.local_addr()?);
    push(forward.local_addr, &sink, args.mib << 20)?;
    forward.stop();

    let page = serve_page()?;
    let forward = lab.forward("home", page, TRANSPORT)?;
    open_many(forward.local_addr)?;
    if args.once {
        println!("\nEvery byte matched.");
        return Ok(());
    }
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    print_commands(&lab, forward.local_addr, page);
    // Until Ctrl-C; then the directory with the keys goes, too.
    signals.forever().next();
    Ok(())
}

/// Pushes bytes both ways and compares every one.
fn push(entry: SocketAddr, target: &TcpListener, bytes: u64) -> Result<()> {
    let plan = Plan { seed: 42, up_bytes: bytes, down_bytes: bytes, ending: Ending::Both, pace: Pace::Fast };
    let started = Instant::now();
    let Outcome { up, down } = transfer::run(plan, entry, target)?;
    let took = started.elapsed();
    ensure!((up, down) == (Seen::End(bytes), Seen::End(bytes)), "bytes were lost: {up:?}, {down:?}");
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let rate = 2.0 * bytes as f64 / took.as_secs_f64() / 1e9;
    println!("\n{} MiB each way through TLS, every byte made and compared: {rate:.2} GB/s", bytes >> 20);
    Ok(())
}

/// A small web server, to be reached through the tunnel.
fn serve_page() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let addr = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(&stream));
        }
    });
    Ok(addr)
}

fn answer(mut stream: &TcpStream) -> io::Result<()> {
    const BODY: &str = "This page came through Narrowlink.\n";
    let mut head = Vec::new();
    let mut buf = [0; 1024];
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        let n = stream.read(&mut buf)?;
        if n == 0 || head.len() > 16 * 1024 {
            return Ok(());
        }
        head.extend_from_slice(&buf[..n]);
    }
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{BODY}",
        BODY.len()
    )?;
    stream.shutdown(std::net::Shutdown::Write)?;
    while stream.read(&mut buf)? > 0 {}
    Ok(())
}

/// Opens connections one after the other, each with a request and its whole answer.
fn open_many(entry: SocketAddr) -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..CONNECTIONS {
        let started = Instant::now();
        let mut stream = TcpStream::connect(entry)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: demo\r\n\r\n")?;
        let mut first = [0; 1];
        stream.read_exact(&mut first)?;
        times.push(started.elapsed());
        let mut rest = String::new();
        stream.read_to_string(&mut rest)?;
        ensure!(rest.ends_with("through Narrowlink.\n"), "a page came back broken: {rest:?}");
    }
    times.sort_unstable();
    let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)].as_secs_f64() * 1e3;
    println!(
        "{CONNECTIONS} new connections, connect to first byte: p50 {:.2} ms, p99 {:.2} ms",
        at(50),
        at(99)
    );
    Ok(())
}

fn print_commands(lab: &Lab, entry: SocketAddr, page: SocketAddr) {
    let dir = lab.site.dir();
    let programs = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    let narrowlink = programs.unwrap_or_default().join("narrowlink");
    let (narrowlink, client) = (narrowlink.display(), dir.join("client-laptop.yaml"));
    let client = client.display();
    println!(
        "\nIt keeps running. Try, in another terminal:

  # {entry} is a forward's port on this side of the tunnel: a web page at {page}, on the agent's side
  curl http://{entry}/
  # who is connected
  {narrowlink} -c {client} list
  # the same page at a port of your choice, and without a port
  {narrowlink} -c {client} forward -n home -l 127.0.0.1:8080 {page}
  printf 'GET / HTTP/1.0\\r\\n\\r\\n' | {narrowlink} -c {client} connect -n home {page}
  # this machine's own sshd, if it has one
  ssh -o ProxyCommand='{narrowlink} -c {client} connect -n home 127.0.0.1:22' {}@home

The configurations that were written:

  {dir}/gateway.yaml
  {dir}/agent-home.yaml
  {client}

Ctrl-C ends it.",
        std::env::var("USER").unwrap_or_else(|_| "you".to_owned()),
        dir = dir.display(),
    );
}
