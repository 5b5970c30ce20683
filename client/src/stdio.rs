//! Role: a session on standard input and output.
//! Invariants: the end of the input is a half-close and not the end of the answer; the answer is written
//! whole before the program ends well; input or output that breaks is a reset and never looks like an
//! end; nothing but the target's bytes on standard output.

use std::{
    convert::Infallible,
    fs::File,
    io::{self, IsTerminal as _, Read as _, Write as _},
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use async_channel::{Receiver, Sender};
use futures_lite::future;
use narrowlink_dataplane::{
    net::socket::Socket,
    relay::{End, Traffic, relay},
    run::timer::sleep,
    transport::wire::Wire,
    tunnel::linger::{PATIENCE, reset_conn},
};
use narrowlink_proto::target::Target;
use rustix::event::{PollFd, PollFlags, poll};

use crate::{
    exit::{Exit, Failure},
    open::Opener,
};

/// Full disk, reader gone.
const UNWRITTEN: &str = "standard output could not be written";
/// What is carried at a time between a descriptor and the session.
const CHUNK_BYTES: usize = 256 * 1024;

/// Opens a session and joins it with standard input and output, until both directions have ended.
pub(crate) async fn run(opener: Rc<Opener>, agent: &str, target: &Target) -> Result<(), Failure> {
    let session = opener.open_patiently(agent, target).await?;
    let internal = |e: io::Error| Failure::new(Exit::Internal, e);
    let (ours, theirs) = UnixStream::pair().map_err(internal)?;
    ours.set_nonblocking(true).map_err(internal)?;
    let local = Wire::from(Socket::adopt(OwnedFd::from(ours)).map_err(internal)?);
    let carriers = Carriers::start(theirs).map_err(internal)?;

    let traffic = Traffic::default();
    let moving = async {
        let target = End::of(&session.conn, session.id);
        relay(End::Bare(&local), target, &traffic)
            .await
            .map_err(|ended| Failure::reset(ended, session.conn.farewell().as_deref()))
    };
    let ended = future::or(async { Err(carriers.broke().await) }, moving).await;
    // What the target sent is in the hands of the carrier: it still has to be written.
    let failure = match ended {
        Ok(()) => match carriers.finish() {
            // And what we sent has to arrive: only then has it gone well.
            Ok(()) => return session.finish().await,
            Err(failure) => failure,
        },
        Err(failure) => {
            // A carrier that breaks says why before it resets the session here, but both may be heard at once.
            let failure = carriers.broken.1.try_recv().unwrap_or(failure);
            carriers.cut.store(true, Ordering::Relaxed);
            drop(local);
            carriers.write_rest().await;
            failure
        }
    };
    // The peer is told, too, where the user is not.
    let why = if failure.message.is_empty() { UNWRITTEN } else { &failure.message };
    Box::pin(reset_conn(session.conn, why, PATIENCE)).await;
    Err(failure)
}

/// The threads between the session and standard input and output, which may be anything: files, pipes
/// and terminals can't all be waited for as sockets can.
struct Carriers {
    output: JoinHandle<io::Result<()>>,
    /// What broke; this side's sender keeps the channel open when both threads are done.
    broken: (Sender<Failure>, Receiver<Failure>),
    /// Closed when all output is written, or none can be.
    written: Receiver<Infallible>,
    /// How much output is written.
    written_bytes: Arc<AtomicU64>,
    /// The session has broken: what comes last is no end.
    cut: Arc<AtomicBool>,
}

impl Carriers {
    fn start(pair: UnixStream) -> io::Result<Self> {
        let (broken, breaks) = async_channel::bounded(2);
        let pair = Arc::new(pair);
        let (ours, tell) = (pair.clone(), broken.clone());
        std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
            if let Err(e) = carry_input(io::stdin().as_fd(), &ours) {
                let _ = tell.try_send(Failure::broken("standard input could not be read", &e));
            }
        })?;
        let tell = broken.clone();
        let (writing, written) = async_channel::bounded(1);
        let (written_bytes, cut) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (count, is_cut) = (written_bytes.clone(), cut.clone());
        let output = std::thread::Builder::new().name("stdout".to_owned()).spawn(move || {
            let _writing: Sender<Infallible> = writing;
            let written = carry_output(&pair, io::stdout().as_fd(), &count);
            match &written {
                Ok(()) if is_cut.load(Ordering::Relaxed) => {}
                Ok(()) => {
                    finish_output(io::stdout().as_fd());
                    if io::stdin().is_terminal() {
                        // Nobody hears what is typed from here on.
                        let _ = pair.shutdown(Shutdown::Write);
                    }
                }
                Err(e) => drop(tell.try_send(Failure::broken(UNWRITTEN, e))),
            }
            written
        })?;
        Ok(Self { output, broken: (broken, breaks), written, written_bytes, cut })
    }

    /// Waits until one of the two breaks.
    async fn broke(&self) -> Failure {
        match self.broken.1.recv().await {
            Ok(failure) => failure,
            // We hold a sender.
            Err(_) => future::pending().await,
        }
    }

    /// Waits until what the target said before the session broke is written, for as long as somebody reads it.
    async fn write_rest(&self) {
        let written = async {
            let _ = self.written.recv().await;
        };
        let stalled = async {
            let mut before = None;
            loop {
                let now = self.written_bytes.load(Ordering::Relaxed);
                if before.replace(now) == Some(now) {
                    return;
                }
                sleep(PATIENCE).await;
            }
        };
        future::or(written, stalled).await;
    }

    /// Waits until the whole answer has been written.
    fn finish(self) -> Result<(), Failure> {
        let gone = || Err(io::Error::other("its thread failed"));
        self.output.join().unwrap_or_else(|_| gone()).map_err(|e| Failure::broken(UNWRITTEN, &e))
    }
}

/// Until the end of the input, which becomes the end of our direction.
fn carry_input(input: BorrowedFd<'_>, mut pair: &UnixStream) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match rustix::io::read(input, &mut *chunk) {
            Ok(0) => {
                let _ = pair.shutdown(Shutdown::Write);
                return Ok(());
            }
            // The session is over: whoever ended it says why.
            Ok(n) if pair.write_all(&chunk[..n]).is_err() => return Ok(()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => wait_for(input, PollFlags::IN)?,
            Err(e) => return Err(e.into()),
        }
    }
}

/// Until the end of what the session brings. A session that is cut off is no end.
fn carry_output(mut pair: &UnixStream, output: BorrowedFd<'_>, count: &AtomicU64) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let n = pair.read(&mut chunk)?;
        if n == 0 {
            return Ok(());
        }
        let mut rest = &chunk[..n];
        while !rest.is_empty() {
            match rustix::io::write(output, rest) {
                Ok(written) => {
                    rest = &rest[written..];
                    count.fetch_add(written as u64, Ordering::Relaxed);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => wait_for(output, PollFlags::OUT)?,
                Err(e) => return Err(e.into()),
            }
        }
    }
}

fn wait_for(fd: BorrowedFd<'_>, flags: PollFlags) -> io::Result<()> {
    match poll(&mut [PollFd::from_borrowed_fd(fd, flags)], None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Whoever reads our output sees its end, although the input may go on.
fn finish_output(output: BorrowedFd<'_>) {
    // A socket may be input and output in one: closing one descriptor would not end its direction.
    let _ = rustix::net::shutdown(output, rustix::net::Shutdown::Write);
    if let Ok(null) = File::options().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(&null);
    }
}

#[cfg(test)]
mod tests {
    use std::{io::PipeWriter, thread};

    use super::*;

    #[test]
    fn the_end_of_the_input_is_the_end_of_one_direction_only() {
        let (input, mut typed) = io::pipe().unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let carrier = thread::spawn(move || carry_input(input.as_fd(), &ours).map(|()| ours));
        typed.write_all(b"question").unwrap();
        drop(typed);
        let mut heard = Vec::new();
        theirs.read_to_end(&mut heard).unwrap();
        assert_eq!(heard, b"question");
        let mut ours = carrier.join().unwrap().unwrap();
        theirs.write_all(b"answer").unwrap();
        drop(theirs);
        heard.clear();
        ours.read_to_end(&mut heard).unwrap();
        assert_eq!(heard, b"answer");
    }

    #[test]
    fn the_answer_is_written_whole_to_a_reader_that_is_slow_and_never_blocks_us() {
        let (mut reader, writer) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let answer: Vec<u8> = (0..3_000_000u32).map(|n| n.to_le_bytes()[1]).collect();
        let sent = answer.clone();
        thread::spawn(move || theirs.write_all(&sent));
        let carrier = thread::spawn(move || {
            let writer: PipeWriter = writer;
            carry_output(&ours, writer.as_fd(), &AtomicU64::default())
        });
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        assert!(got == answer, "{} of {} bytes", got.len(), answer.len());
        carrier.join().unwrap().unwrap();
    }

    #[test]
    fn a_reader_that_left_is_an_error_and_not_an_end() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"answer").unwrap();
        let failed = carry_output(&ours, writer.as_fd(), &AtomicU64::default()).unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::BrokenPipe);
        let failure = Failure::broken(UNWRITTEN, &failed);
        assert_eq!((failure.exit, failure.message.as_str()), (Exit::Reset, ""));
        let full = Failure::broken(UNWRITTEN, &rustix::io::Errno::NOSPC.into());
        assert!(full.message.starts_with("standard output could not be written: No space left"), "{full}");
    }

    #[test]
    fn input_that_can_not_be_read_does_not_look_like_its_end() {
        let directory = File::open("/").unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert!(carry_input(directory.as_fd(), &ours).is_err());
        theirs.set_nonblocking(true).unwrap();
        let read = (&theirs).read(&mut [0]);
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::WouldBlock, "no end was passed on");
    }
}
