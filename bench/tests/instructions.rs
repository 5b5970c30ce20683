//! Role: what a relayed chunk costs in instructions, counted by valgrind and held against the record.
//! Invariants: counts of the dev profile only are recorded · without valgrind this fails: a test that is
//! skipped proves nothing.
//! See: bench/instructions.txt, the record; src/bin/narrowlink-count.rs, what is counted.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::{fmt::Write as _, fs, path::PathBuf, process::Command};

use narrowlink_bench::{path::Path, programs::Shape};

const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.txt");

const HEAD: &str = "\
# Instructions in user space for one relayed chunk: the relay and all that it calls (relay::pump, conn, wire,
# socket, the runtime's readiness), counted by callgrind on epoll. The kernel's are not among them.
#
# ping-pong: a chunk has 1 KiB, and each waits for the one before. bulk: 256 KiB, one after the other.
# plain-plain and framed-framed are the gateway's, framed-plain the agent's, plain-framed the client's.
#
# Of the dev profile, in which tests run: our crates at opt-level 1, so release counts are lower.
# Another compiler counts differently. A test fails above 110 %; this rewrites the file:
#   NARROWLINK_BLESS=1 cargo test -p narrowlink-bench --test instructions
";

/// A count may exceed the record by this much.
const PERCENT_MAX: u64 = 110;

fn valgrind() -> PathBuf {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&dirs)
        .map(|dir| dir.join("valgrind"))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("valgrind is missing: run `apt-get install -y valgrind`"))
}

/// A count above that is made again, so often at the most.
const COUNTS_MAX: u32 = 3;

/// Instructions per chunk.
fn count(path: Path, shape: Shape) -> u64 {
    let mut command = Command::new(valgrind());
    command.args([
        "--tool=callgrind",
        "--toggle-collect=*relay_under_count*",
        "--callgrind-out-file=/dev/null",
    ]);
    command.args([env!("CARGO_BIN_EXE_narrowlink-count"), path.name(), shape.name()]);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    // `==4711== Collected : 2036000`
    let collected = said.lines().find_map(|line| line.split_once("Collected : ")).map(|(_, count)| count);
    let collected: u64 = collected.unwrap_or_else(|| panic!("no count in: {said}")).trim().parse().unwrap();
    assert!(collected > 0, "nothing was counted: is relay_under_count inlined?");
    let stdout = String::from_utf8(output.stdout).unwrap();
    let chunks: u64 = stdout.trim().strip_suffix(" chunks").unwrap().parse().unwrap();
    collected / chunks
}

/// `plain-plain  bulk  1993` is 1993.
fn recorded(record: &str, path: Path, shape: Shape) -> Option<u64> {
    record.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let own = words.next() == Some(path.name()) && words.next() == Some(shape.name());
        if own { words.next()?.parse().ok() } else { None }
    })
}

#[test]
fn a_relayed_chunk_takes_no_more_instructions_than_the_record_says() {
    let record = fs::read_to_string(RECORD).unwrap_or_default();
    let (mut counted, mut above) = (HEAD.to_owned(), String::new());
    for path in Path::PLAIN {
        for shape in Shape::ALL {
            let before = recorded(&record, path, shape);
            let is_above = |now: u64| before.is_none_or(|before| now * 100 > before * PERCENT_MAX);
            // How many reads a bulk chunk takes is the kernel's choice: the least of a few counts.
            let mut now = count(path, shape);
            for _ in 1..COUNTS_MAX {
                if is_above(now) {
                    now = now.min(count(path, shape));
                }
            }
            let line = format!("{:13}  {:9}  {now:>6}", path.name(), shape.name());
            println!("{line}  (recorded: {before:?})");
            writeln!(counted, "{line}").unwrap();
            if is_above(now) {
                writeln!(above, "{line}  recorded: {before:?}").unwrap();
            }
        }
    }
    if std::env::var("NARROWLINK_BLESS").is_ok_and(|value| value == "1") {
        if !cfg!(debug_assertions) {
            panic!("the record is of the dev profile: run this without --release");
        }
        return fs::write(RECORD, counted).unwrap();
    }
    assert!(above.is_empty(), "more instructions per chunk than in bench/instructions.txt:\n{above}");
}

#[test]
fn a_line_of_the_record_is_found_by_path_and_shape() {
    let record = "# plain-plain  bulk  1\nplain-plain  ping-pong  2\nplain-plain    bulk    3\n";
    assert_eq!(recorded(record, Path::PlainPlain, Shape::Bulk), Some(3));
    assert_eq!(recorded(record, Path::PlainPlain, Shape::PingPong), Some(2));
    assert_eq!(recorded(record, Path::FramedPlain, Shape::Bulk), None);
}
