//! Role: what a program says on standard error: its log, its last words, its panics.
//! Invariants: no thread but the log's own ever writes there, so a full disk, a reader that left and one that stalls
//! cost lines and nothing else · what is lost, and what is left out, is counted and said · nothing is said for ever:
//! a program that ends waits for its last words, but not long.
//! See: docs/logs.md; `journal`, which keeps and writes the lines.

mod gate;
mod limit;
mod source;

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    cell::RefCell,
    ffi::OsStr,
    io::{self, IsTerminal as _},
    panic::{self, PanicHookInfo},
    str::FromStr,
    sync::{Arc, OnceLock, atomic::AtomicBool},
    thread,
    time::{Duration, Instant},
};

use signal_hook::consts::SIGXFSZ;
use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter, Layer as _, fmt::MakeWriter, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

use self::gate::{Gate, TARGET};
use crate::run::journal::{Appender, Bounds, Journal, Sink};

/// What may wait for a reader that is slow: a second of the worst that the limit lets through, and more.
const BOUNDS: Bounds = Bounds { lines_max: 8192, bytes_max: 2 * 1024 * 1024 };
/// How long a program that ends waits for its last words to be read; a second word to stop is obeyed in 1 s.
const LAST_WORDS_PATIENCE: Duration = Duration::from_millis(500);
/// sysexits.h `EX_OSERR`.
const NO_THREAD: i32 = 71;

static LOG: OnceLock<Journal<Box<[u8]>>> = OnceLock::new();

thread_local! {
    /// What the log's own thread formats is not left in its queue: it writes that next.
    static CAPTURED: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// The form of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

impl FromStr for Format {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("expected text or json"),
        }
    }
}

/// Starts the log of this process: events, panics and [`say`] go there. Without a thread to write it there is no log,
/// and the process ends: it could not start its workers either. `usual` is the filter where `RUST_LOG` sets none. Lines
/// have one form in all programs: they don't name the module that they come from, which is nobody's business but ours.
/// The journal has a time of each line, and how bad it is, beside what it says: there they have none of their own.
pub fn start(usual: &str, format: Format) {
    let gate = Gate::default();
    let sink = Stderr { out: Appender::shared(io::stderr()), gate: gate.clone() };
    let journal = Journal::start("log", BOUNDS, sink).unwrap_or_else(|e| {
        // There is nobody yet whom this could keep waiting.
        let _ =
            Appender::shared(io::stderr()).append(format!("no thread could be started: {e}\n").as_bytes());
        std::process::exit(NO_THREAD)
    });
    let _ = LOG.set(journal);
    // Else a file that has reached its limit (RLIMIT_FSIZE) would end the process, not only the write. Where that
    // can't be had, everything else still holds.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
    panic::set_hook(Box::new(log_panic));
    let is_journal = is_journal();
    let lines = tracing_subscriber::fmt::layer()
        .with_target(false)
        .with_ansi(io::stderr().is_terminal() && may_paint(std::env::var_os("NO_COLOR").as_deref()))
        // Else a line that can't be formatted would be said with `eprintln`, which panics.
        .log_internal_errors(false)
        .with_writer(Lines { is_journal });
    let lines = match (format, is_journal) {
        (Format::Json, _) => lines.json().flatten_event(true).boxed(),
        (Format::Text, true) => lines.without_time().boxed(),
        (Format::Text, false) => lines.boxed(),
    };
    tracing_subscriber::registry().with(filter(usual)).with(gate).with(lines).init();
}

/// Whether a terminal gets colours: not where NO_COLOR says anything (no-color.org).
fn may_paint(no_color: Option<&OsStr>) -> bool {
    no_color.is_none_or(OsStr::is_empty)
}

/// `RUST_LOG` is for those who look into other crates.
fn filter(usual: &str) -> EnvFilter {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(usual));
    match format!("{TARGET}=info").parse() {
        Ok(about_itself) => filter.add_directive(about_itself),
        Err(_) => filter,
    }
}

/// Says a line on standard error that is no event: how a program ends, an answer. Never waits.
pub fn say(words: &str) {
    leave(format!("{words}\n").into_bytes().into_boxed_slice());
}

/// As [`say`], of why a program ends: an error in the journal, too.
pub fn say_last(words: &str) {
    let priority = if is_journal() { priority(Level::ERROR) } else { "" };
    say(&format!("{priority}{words}"));
}

/// Ends the process, with its last words written if that can be had soon.
pub fn exit(code: u8) -> ! {
    flush();
    std::process::exit(code.into())
}

fn flush() {
    if let Some(log) = LOG.get() {
        log.flush(LAST_WORDS_PATIENCE);
    }
}

fn leave(line: Box<[u8]>) {
    match LOG.get() {
        Some(log) => {
            let bytes = line.len();
            log.leave(line, bytes);
        }
        // Not a program of ours: a test, or one that has not begun.
        None => drop(Appender::shared(io::stderr()).append(&line)),
    }
}

/// In place of std's hook, which writes to standard error itself.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let thread = thread::current();
    let name = thread.name().unwrap_or("?");
    let words = panic.payload_as_str().unwrap_or("no words");
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        tracing::error!("thread {name} panicked at {place}: {words}\n{backtrace}");
    } else {
        tracing::error!("thread {name} panicked at {place}: {words}");
    }
    if name == "main" {
        // It ends the process. Every other thread has better to do than to wait.
        flush();
    }
}

/// Whether standard error is the journal, as systemd.exec(5) says it: `JOURNAL_STREAM` names its device and inode.
fn is_journal() -> bool {
    let Ok(stderr) = rustix::fs::fstat(rustix::stdio::stderr()) else { return false };
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    stream == format!("{}:{}", stderr.st_dev, stderr.st_ino)
}

/// Makes writers of lines that wait for nothing.
struct Lines {
    is_journal: bool,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { priority: "" }
    }

    fn make_writer_for(&'a self, about: &Metadata<'_>) -> Line {
        Line { priority: if self.is_journal { priority(*about.level()) } else { "" } }
    }
}

/// As sd-daemon(3) has it in front of a line.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        _ => "<7>",
    }
}

/// Takes one line, in one call, as tracing-subscriber writes them.
struct Line {
    priority: &'static str,
}

impl io::Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let whole = [self.priority.as_bytes(), line].concat();
        let captured = CAPTURED.with_borrow_mut(|captured| match captured {
            Some(captured) => {
                captured.extend_from_slice(&whole);
                true
            }
            None => false,
        });
        if !captured {
            leave(whole.into());
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What `say` logs on this thread, formatted as everything else.
fn formatted(say: impl FnOnce()) -> Box<[u8]> {
    CAPTURED.set(Some(Vec::new()));
    say();
    CAPTURED.take().unwrap_or_default().into_boxed_slice()
}

/// Where the log's thread writes.
struct Stderr {
    out: Appender<io::Stderr>,
    gate: Gate,
}

impl Sink<Box<[u8]>> for Stderr {
    fn write(&mut self, line: &Box<[u8]>) -> io::Result<()> {
        self.out.append(line)
    }

    fn lost(&mut self, lines: u64, why: &str) -> Box<[u8]> {
        let what =
            if lines == 1 { "1 line of the log was" } else { &format!("{lines} lines of the log were") };
        formatted(|| tracing::warn!(target: TARGET, "{what} lost: {why}"))
    }

    fn tick(&mut self) -> Vec<Box<[u8]>> {
        let omissions = self.gate.omissions(Instant::now());
        omissions.iter().map(|omission| formatted(|| omission.say())).collect()
    }
}

#[cfg(test)]
mod tests;
