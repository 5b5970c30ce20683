//! Role: visits a server at a steady rate, beside connections that stand, and counts who was not served: what a restart of
//! anything in between costs.
//! Invariants: a visit is served when its own bytes came back · one that waits delays no other's beginning, as long as there
//! are threads.
//! See: docs/service.md; `loadtest/tests/service`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool")]

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use clap::Parser;

/// How many visits may be under way.
const THREADS: usize = 128;
/// What is not there by then is not served.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often a connection that stands says something.
const BEAT: Duration = Duration::from_millis(50);
const BYTES: usize = 16;
/// Troubles that are named.
const TROUBLES_MAX: usize = 5;

/// Visits a server that gives back what it gets, and counts who was not served.
#[derive(Parser)]
struct Args {
    /// Where it listens; with --echo, where to be that server
    #[arg(value_name = "ADDR:PORT")]
    addr: SocketAddr,
    /// Be the server, until killed
    #[arg(long)]
    echo: bool,
    /// New connections a second
    #[arg(long, default_value_t = 200)]
    per_s: u32,
    /// How many of them
    #[arg(long, default_value_t = 1000)]
    visits: u32,
    /// Connections that stand all the while
    #[arg(long, default_value_t = 20)]
    standing: u32,
}

#[derive(Default)]
struct Counts {
    served: AtomicU64,
    refused: AtomicU64,
    broken: AtomicU64,
    standing_broken: AtomicU64,
    slowest_us: AtomicU64,
    troubles: Mutex<Vec<String>>,
}

impl Counts {
    fn trouble(&self, counter: &AtomicU64, what: &str, e: &io::Error) {
        counter.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut troubles) = self.troubles.lock()
            && troubles.len() < TROUBLES_MAX
        {
            troubles.push(format!("{what}: {e}"));
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.echo {
        return match serve(args.addr) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("{}: {e}", args.addr);
                ExitCode::FAILURE
            }
        };
    }
    let (counts, is_over, next) = (Counts::default(), AtomicBool::new(false), AtomicU64::new(0));
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..args.standing {
            scope.spawn(|| {
                if let Err(e) = stand(args.addr, &is_over) {
                    counts.trouble(&counts.standing_broken, "a connection that stood", &e);
                }
            });
        }
        let visitors: Vec<_> =
            (0..THREADS).map(|_| scope.spawn(|| visit_in_turns(&args, (began, &next), &counts))).collect();
        for visitor in visitors {
            // One that panicked has counted nothing: the sum shows it.
            let _ = visitor.join();
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let troubles = counts.troubles.lock().map(|troubles| troubles.clone()).unwrap_or_default();
    println!(
        "{}",
        serde_json::json!({
            "visits": args.visits, "served": of(&counts.served), "refused": of(&counts.refused),
            "broken": of(&counts.broken), "standing": args.standing, "standing_broken": of(&counts.standing_broken),
            "slowest_ms": of(&counts.slowest_us) / 1000, "seconds": began.elapsed().as_secs_f64(), "troubles": troubles,
        })
    );
    let all = of(&counts.served) == u64::from(args.visits) && of(&counts.standing_broken) == 0;
    if all { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn serve(addr: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(addr)?;
    loop {
        let Ok((mut stream, _)) = listener.accept() else { continue };
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = stream.read(&mut bytes) {
                if stream.write_all(&bytes[..n]).is_err() {
                    return;
                }
            }
        });
    }
}

/// Makes visits, each at its time, until all have been made.
fn visit_in_turns(args: &Args, (began, next): (Instant, &AtomicU64), counts: &Counts) {
    loop {
        let n = next.fetch_add(1, Ordering::Relaxed);
        if n >= u64::from(args.visits) {
            return;
        }
        let due = began + Duration::from_micros(n * 1_000_000 / u64::from(args.per_s.max(1)));
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let start = Instant::now();
        let mut stream = match TcpStream::connect(args.addr) {
            Ok(stream) => stream,
            Err(e) => {
                counts.trouble(&counts.refused, "refused", &e);
                continue;
            }
        };
        match ask(&mut stream, n) {
            Ok(()) => {
                counts.served.fetch_add(1, Ordering::Relaxed);
                let took = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
                counts.slowest_us.fetch_max(took, Ordering::Relaxed);
            }
            Err(e) => counts.trouble(&counts.broken, "not served", &e),
        }
    }
}

fn stand(addr: SocketAddr, is_over: &AtomicBool) -> io::Result<()> {
    let mut stream = TcpStream::connect(addr)?;
    for n in 0.. {
        ask(&mut stream, n)?;
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        thread::sleep(BEAT);
    }
    Ok(())
}

/// Says something of its own, and waits for it to come back.
fn ask(stream: &mut TcpStream, n: u64) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let said = format!("{n:0BYTES$x}");
    stream.write_all(said.as_bytes())?;
    let mut heard = [0; BYTES];
    stream.read_exact(&mut heard)?;
    match heard == said.as_bytes() {
        true => Ok(()),
        false => Err(io::Error::other("something else came back")),
    }
}
