//! Role: the log's layers together, as a program has them, with lines that are kept in memory.

use std::{fmt, sync::Mutex};

use tracing_subscriber::layer::Layered;

use super::{limit::Omission, *};
use crate::run::lock::lock;

/// Keeps what is written.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Kept {
    fn lines(&self) -> Vec<String> {
        let bytes = lock(&self.0);
        String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect()
    }
}

impl io::Write for Kept {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        lock(&self.0).extend_from_slice(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs `body` with a log of its own.
fn logging(usual: &str, body: impl FnOnce(&Gate)) -> Vec<String> {
    let (kept, gate) = (Kept::default(), Gate::default());
    let writer = kept.clone();
    let lines =
        tracing_subscriber::fmt::layer().without_time().with_ansi(false).with_writer(move || writer.clone());
    let subscriber: Layered<_, _> =
        tracing_subscriber::registry().with(filter(usual)).with(gate.clone()).with(lines);
    tracing::subscriber::with_default(subscriber, || body(&gate));
    kept.lines()
}

/// Counts how often it is formatted.
struct Counted<'a>(&'a std::cell::Cell<u32>);

impl fmt::Display for Counted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.set(self.0.get() + 1);
        f.write_str("no such agent")
    }
}

#[test]
fn a_flood_from_one_source_is_cut_short_and_counted_and_formatted_no_more() {
    let formatted = std::cell::Cell::new(0);
    let lines = logging("info", |gate| {
        for port in 0..20_000_u32 {
            let peer = format!("192.0.2.1:{port}");
            tracing::info!(%peer, "refused: {}", Counted(&formatted));
        }
        tracing::info!(peer = "[::ffff:192.0.2.2]:1", "refused: another");
        gate.omissions(Instant::now()).iter().for_each(Omission::say);
    });
    let refused = lines.iter().filter(|line| line.contains("refused: no such agent peer=192.0.2.1:")).count();
    // The loop may take longer than a tenth of a second, in which one more is let through.
    assert!((20..100).contains(&refused), "{refused}");
    assert!(lines.iter().any(|line| line.contains("refused: another")), "another source is heard");
    let said = lines.last().unwrap();
    let left_out = 20_000 - refused;
    assert!(
        said.ends_with(&format!("{left_out} more like this from 192.0.2.1: refused: no such agent")),
        "{said}"
    );
    // Once for each line, and once for what is said about the rest.
    assert_eq!(formatted.get() as usize, refused + 1);
}

#[test]
fn a_site_of_many_ipv6_addresses_is_one_source_and_names_are_sources_too() {
    let lines = logging("info", |gate| {
        for n in 0..100 {
            tracing::info!(peer = %format_args!("[2001:db8:1:2::{n:x}]:4000"), name = "x", "came");
            tracing::info!(gateway = format!("gw{}.example:443", n % 2), "connected");
        }
        gate.omissions(Instant::now()).iter().for_each(Omission::say);
    });
    let said: Vec<_> = lines.iter().filter(|line| line.contains("more like this")).collect();
    for source in ["2001:db8:1:2::/64: came", "gw0.example:443: connected", "gw1.example:443: connected"] {
        assert_eq!(said.iter().filter(|line| line.ends_with(source)).count(), 1, "{source}: {said:?}");
    }
}

#[test]
fn lines_about_nobody_are_told_apart_by_their_words() {
    let lines = logging("info", |gate| {
        for n in 0..1000 {
            tracing::warn!("certificate {} ends soon", n % 20);
        }
        gate.omissions(Instant::now()).iter().for_each(Omission::say);
    });
    for n in 0..20 {
        let certificate = format!("certificate {n} ends soon");
        let said = lines.iter().filter(|line| line.ends_with(&certificate)).count();
        // All of one kind are 100 a second; each certificate is named all the same.
        assert!((5..=11).contains(&said), "{n}: {said}");
    }
    let more: Vec<_> = lines.iter().filter(|line| line.contains("more like this")).collect();
    assert!(more[0].contains("more like this: certificate"), "{more:?}");
}

#[test]
fn what_the_log_says_about_itself_passes_each_filter_and_no_limit() {
    for usual in ["error", "warn,narrowlink=info", "off"] {
        let lines = logging(usual, |_| {
            for n in 0..50 {
                tracing::warn!(target: TARGET, "{n} lines of the log were lost: why");
            }
        });
        assert_eq!(lines.len(), 50, "{usual}");
    }
}

#[test]
fn whoever_wants_no_colours_gets_none() {
    for (no_color, painted) in [(None, true), (Some(""), true), (Some("1"), false), (Some("0"), false)] {
        assert_eq!(may_paint(no_color.map(OsStr::new)), painted, "{no_color:?}");
    }
}

/// Set in the process that is to be looked at.
const INSIDE: &str = "NARROWLINK_TEST_LOG";

/// A program with a log: a thread of it panics, it says a last word, and it ends with 7.
fn be_a_program() -> ! {
    start("info", Format::Text);
    let panicked = thread::Builder::new().name("worker-0".to_owned()).spawn(|| panic!("a bug in the test"));
    assert!(panicked.unwrap().join().is_err());
    say("last words");
    exit(7)
}

#[test]
fn a_panic_and_last_words_are_lines_of_the_log_and_a_full_disk_changes_no_exit_code() {
    if std::env::var_os(INSIDE).is_some() {
        be_a_program();
    }
    let run = |stderr: std::process::Stdio| {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        let module = module_path!().split_once("::").unwrap().1;
        let test = format!(
            "{module}::a_panic_and_last_words_are_lines_of_the_log_and_a_full_disk_changes_no_exit_code"
        );
        command.args(["--exact", &test, "--nocapture"]).env(INSIDE, "1").env_remove("RUST_LOG");
        command.stderr(stderr).env("RUST_BACKTRACE", "0").output().unwrap()
    };
    let heard = run(std::process::Stdio::piped());
    let said = String::from_utf8_lossy(&heard.stderr);
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(heard.status.code(), Some(7), "{said}");
    assert!(lines[0].contains("ERROR thread worker-0 panicked at dataplane/src/run/log/tests.rs:"), "{said}");
    assert!(lines[0].ends_with(": a bug in the test"), "{said}");
    assert_eq!(lines[1..], ["last words"]);
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    assert_eq!(run(full.into()).status.code(), Some(7));
}
