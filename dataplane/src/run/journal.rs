//! Role: lines that many threads leave and one thread writes: the log, and the gateway's audit log.
//! Invariants: nobody but that thread ever waits for a disk, a pipe or a terminal, nor for that thread · a line that is not
//! written is counted, and the count is written as soon as a line can be · a request to flush has an end.
//! See: `log`; the gateway's `audit`.

mod appender;
mod queue;

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use self::queue::{Next, Queue};
pub use self::{
    appender::{Appender, Torn},
    queue::Bounds,
};

/// How often a sink gets its tick, and lines lost are looked for when no line comes.
const TICK: Duration = Duration::from_secs(1);
/// Why lines are missing that nobody tried to write.
const TOO_SLOW: &str = "they came faster than they could be written";

/// Where lines of one kind end. All of it runs on the journal's own thread, and may block.
pub trait Sink<L>: Send + 'static {
    /// Writes a line, whole or not at all.
    ///
    /// # Errors
    /// The system's: the line is lost then.
    fn write(&mut self, line: &L) -> io::Result<()>;

    /// Writes lines that wait together, each whole or not at all.
    ///
    /// # Errors
    /// The system's, and how many lines before it are written. The next one is lost then; the others are tried again.
    fn write_all(&mut self, lines: &[L]) -> Result<(), Torn> {
        for (written, line) in lines.iter().enumerate() {
            self.write(line).map_err(|why| Torn { written, why })?;
        }
        Ok(())
    }

    /// The line that says how many are missing, and why.
    fn lost(&mut self, lines: u64, why: &str) -> L;

    /// What there is to say once a second.
    fn tick(&mut self) -> Vec<L> {
        Vec::new()
    }

    /// What else there is to say before an end.
    fn last(&mut self) -> Vec<L> {
        Vec::new()
    }

    /// Begins a new file where the old one was moved away.
    ///
    /// # Errors
    /// The system's: the old one goes on then.
    fn reopen(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Has what was written be on the disk.
    ///
    /// # Errors
    /// The system's.
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Lines can't be written any more, where they could before.
    fn failed(&mut self, _why: &io::Error) {}
}

/// Where lines are left. The thread ends with its last copy, when all lines are written.
pub struct Journal<L>(Arc<Ends<L>>);

impl<L> Clone for Journal<L> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Ends<L>(Arc<Queue<L>>);

impl<L> Drop for Ends<L> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl<L: Send + 'static> Journal<L> {
    /// Starts the thread that writes.
    ///
    /// # Errors
    /// The system's: there is no thread to be had.
    pub fn start(name: &str, bounds: Bounds, sink: impl Sink<L>) -> io::Result<Self> {
        let queue = Arc::new(Queue::new(bounds));
        let lines = queue.clone();
        let writer = Writer { sink, lost: 0, why: String::new(), failed: false };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || writer.work(&lines))?;
        queue.set_writer(thread.thread().clone());
        Ok(Self(Arc::new(Ends(queue))))
    }

    /// Leaves a line of so many bytes, without waiting. Without room for it, it is counted as lost.
    pub fn leave(&self, line: L, bytes: usize) {
        self.0.0.leave(line, bytes);
    }

    /// Has a new file be begun behind the lines that are there.
    pub fn reopen(&self) {
        self.0.0.reopen();
    }

    /// Waits until what was left so far is written, or lost; false when that took longer than `patience`. Not to be
    /// called on a worker.
    pub fn flush(&self, patience: Duration) -> bool {
        self.0.0.flush(patience)
    }
}

/// The thread's side.
struct Writer<S> {
    sink: S,
    /// Lines lost that nobody was told of, ..
    lost: u64,
    /// .. and why the last of them was.
    why: String,
    /// The last thing that was tried failed.
    failed: bool,
}

impl<S> Writer<S> {
    fn work<L>(mut self, queue: &Queue<L>)
    where
        S: Sink<L>,
    {
        let mut tick_at = Instant::now() + TICK;
        let mut batch = Vec::new();
        loop {
            match queue.next(tick_at, &mut batch) {
                Next::Lines { lost } => {
                    // The gap is in front of the last one.
                    let (before, behind) =
                        batch.split_at(if lost > 0 { batch.len() - 1 } else { batch.len() });
                    self.write(before);
                    self.count(lost);
                    self.write(behind);
                    batch.clear();
                }
                Next::Reopen => {
                    let reopened = self.sink.reopen();
                    self.complain(reopened);
                }
                Next::Sync { upto, lost } => {
                    self.say_last(lost);
                    let synced = self.sink.sync();
                    self.complain(synced);
                    queue.synced(upto);
                }
                Next::Tick { lost } => {
                    self.count(lost);
                    self.say_lost();
                    let lines = self.sink.tick();
                    self.write(&lines);
                    tick_at = Instant::now() + TICK;
                }
                Next::Closed { lost } => return self.say_last(lost),
            }
        }
    }

    fn count(&mut self, lost: u64) {
        if lost > 0 {
            self.lost += lost;
            TOO_SLOW.clone_into(&mut self.why);
        }
    }

    fn say_last<L>(&mut self, lost: u64)
    where
        S: Sink<L>,
    {
        self.count(lost);
        self.say_lost();
        let lines = self.sink.last();
        self.write(&lines);
    }

    fn write<L>(&mut self, mut lines: &[L])
    where
        S: Sink<L>,
    {
        while !lines.is_empty() {
            // What is missing before them comes first; where that can't be written, this can't either.
            let written = if self.say_lost() { self.put(lines) } else { 0 };
            lines = lines.get(written..).unwrap_or_default();
            if let [_, others @ ..] = lines {
                self.lost += 1;
                lines = others;
            }
        }
    }

    /// Whether nothing is left to be said about lines that were lost.
    fn say_lost<L>(&mut self) -> bool
    where
        S: Sink<L>,
    {
        if self.lost > 0 {
            let line = self.sink.lost(self.lost, &self.why);
            if self.put(&[line]) == 1 {
                self.lost = 0;
            }
        }
        self.lost == 0
    }

    /// How many of these lines are written before one that can't be.
    fn put<L>(&mut self, lines: &[L]) -> usize
    where
        S: Sink<L>,
    {
        match self.sink.write_all(lines) {
            Ok(()) => {
                self.failed = false;
                lines.len()
            }
            Err(Torn { written, why }) => {
                self.failed &= written == 0;
                self.why = why.to_string();
                self.complain(Err(why));
                written
            }
        }
    }

    /// A disk that is full is found full at every line: the first time is news.
    fn complain<L>(&mut self, done: io::Result<()>)
    where
        S: Sink<L>,
    {
        if let Err(e) = done
            && !std::mem::replace(&mut self.failed, true)
        {
            self.sink.failed(&e);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    };

    const PATIENCE: Duration = Duration::from_secs(10);
    const BOUNDS: Bounds = Bounds { lines_max: 4, bytes_max: 1000 };

    /// A disk that can be full, and that can stall.
    #[derive(Default)]
    struct Disk {
        written: Mutex<Vec<String>>,
        full: AtomicBool,
        /// Held by the test while the disk stalls.
        stalled: Mutex<()>,
        failures: Mutex<Vec<String>>,
    }

    struct ToDisk(Arc<Disk>, mpsc::Sender<()>);

    impl Sink<String> for ToDisk {
        fn write(&mut self, line: &String) -> io::Result<()> {
            let _ = self.1.send(());
            drop(self.0.stalled.lock().unwrap());
            if self.0.full.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.0.written.lock().unwrap().push(line.clone());
            Ok(())
        }

        fn lost(&mut self, lines: u64, why: &str) -> String {
            format!("{lines} lost: {why}")
        }

        fn failed(&mut self, why: &io::Error) {
            self.0.failures.lock().unwrap().push(why.to_string());
        }
    }

    fn journal() -> (Journal<String>, Arc<Disk>, mpsc::Receiver<()>) {
        let disk = Arc::new(Disk::default());
        let (begun, begins) = mpsc::channel();
        (Journal::start("t", BOUNDS, ToDisk(disk.clone(), begun)).unwrap(), disk, begins)
    }

    #[test]
    fn lines_that_fail_are_counted_and_said_once_one_can_be_written() {
        let (journal, disk, _) = journal();
        let leave = |line: &str| {
            journal.leave(line.to_owned(), line.len());
            assert!(journal.flush(PATIENCE));
        };
        leave("a");
        disk.full.store(true, Ordering::Relaxed);
        leave("b");
        leave("c");
        disk.full.store(false, Ordering::Relaxed);
        leave("d");
        assert_eq!(*disk.written.lock().unwrap(), ["a", "2 lost: no storage space", "d"]);
        assert_eq!(*disk.failures.lock().unwrap(), ["no storage space"], "said once");
    }

    #[test]
    fn leaving_a_line_waits_for_no_disk_that_stalls() {
        let (journal, disk, begins) = journal();
        let stalled = disk.stalled.lock().unwrap();
        journal.leave("0".to_owned(), 1);
        begins.recv_timeout(PATIENCE).unwrap();
        for n in 1..=10 {
            journal.leave(n.to_string(), 1);
        }
        journal.reopen();
        assert!(!journal.flush(Duration::from_millis(1)));
        drop(stalled);
        assert!(journal.flush(PATIENCE));
        let written = disk.written.lock().unwrap().clone();
        let lost = format!("6 lost: {TOO_SLOW}");
        assert_eq!(written, ["0", "1", "2", "3", "4", lost.as_str()]);
    }

    #[test]
    fn lines_that_were_left_are_written_when_the_last_copy_of_their_journal_is_gone() {
        let (journal, disk, begins) = journal();
        journal.clone().leave("a".to_owned(), 1);
        journal.leave("b".to_owned(), 1);
        drop(journal);
        // The thread has ended when its side of this is gone.
        while begins.recv_timeout(PATIENCE).is_ok() {}
        assert_eq!(*disk.written.lock().unwrap(), ["a", "b"]);
    }
}
