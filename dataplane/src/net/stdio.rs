//! Role: standard input and output as one connection: pipes, terminals, files or sockets.
//! Invariants: no call waits for another program · what other programs share with us (the shell's terminal) keeps its
//! settings: a pipe or terminal that may block is opened anew · the end of the input is no end of the output · once one
//! of the two has broken, so has the other, and the first error is kept.
//! See: pipe(7), PIPE_BUF; proc_pid_fd(5).

use std::{
    cell::{Cell, RefCell},
    fmt,
    fs::{File, OpenOptions},
    future::poll_fn,
    io::{self, IoSlice, IsTerminal as _},
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
    rc::Rc,
    task::{Poll, Waker},
};

use futures_lite::future;
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::{FileType, OFlags},
    io::Errno,
    net::{RecvFlags, SendFlags},
};

use crate::run::pollable::Pollable;

/// What a pipe takes without blocking once poll(2) says that it takes something.
const PIPE_BUF: usize = 4096;

/// Standard input and output.
pub struct Stdio {
    input: Half,
    /// There until its direction has ended.
    output: RefCell<Option<Rc<Half>>>,
    /// These are the process's own: its standard output is closed with our direction.
    is_own: bool,
    /// A terminal's input has ended: nobody hears what is typed.
    hushed: Cell<bool>,
    /// Of a task that waits for input.
    reader: Cell<Option<Waker>>,
    trouble: Trouble,
}

impl fmt::Debug for Stdio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stdio")
            .field("input", &self.input)
            .field("output", &self.output)
            .finish_non_exhaustive()
    }
}

/// Which of the two broke first.
#[derive(Debug)]
pub enum Broken {
    /// The input can't be read.
    Input(io::Error),
    /// The output can't be written.
    Output(io::Error),
}

/// What broke, for whoever ends the session.
#[derive(Debug, Clone, Default)]
pub struct Trouble(Rc<RefCell<Option<Broken>>>);

impl Trouble {
    /// What broke first, if something has; it is given once.
    pub fn take(&self) -> Option<Broken> {
        self.0.take()
    }

    fn is_there(&self) -> bool {
        self.0.borrow().is_some()
    }

    fn note(&self, broken: Broken) {
        self.0.borrow_mut().get_or_insert(broken);
    }
}

/// One descriptor, and how it is kept from blocking.
#[derive(Debug)]
struct Half {
    fd: Fd,
    mode: Mode,
}

#[derive(Debug)]
enum Fd {
    Pollable(Pollable),
    /// Always ready: a file.
    File(OwnedFd),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// A call never waits: it does not block, or is a file.
    Free,
    /// Each call says that it must not wait.
    Socket,
    /// A call is made only when poll(2) says that it does not wait, and moves little.
    Guarded,
}

impl Half {
    fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode);
        let duplicate = || rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(io::Error::from);
        let (fd, mode) = match kind {
            FileType::RegularFile | FileType::Directory | FileType::BlockDevice => (duplicate()?, Mode::Free),
            FileType::Socket => (duplicate()?, Mode::Socket),
            _ if rustix::fs::fcntl_getfl(fd)?.contains(OFlags::NONBLOCK) => (duplicate()?, Mode::Free),
            FileType::Fifo => opened_anew(fd).map_or_else(|| Ok((duplicate()?, Mode::Guarded)), free)?,
            _ if fd.is_terminal() => {
                opened_anew(fd).map_or_else(|| Ok((duplicate()?, Mode::Guarded)), free)?
            }
            _ => (duplicate()?, Mode::Guarded),
        };
        if matches!(kind, FileType::RegularFile | FileType::Directory | FileType::BlockDevice) {
            return Ok(Self { fd: Fd::File(fd), mode });
        }
        let spare = fd.try_clone()?;
        // What can't be waited for (/dev/null, as epoll has it) is always ready.
        let fd = Pollable::adopt(fd).map_or(Fd::File(spare), Fd::Pollable);
        Ok(Self { fd, mode })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match &self.fd {
            Fd::Pollable(pollable) => pollable.as_fd(),
            Fd::File(file) => file.as_fd(),
        }
    }

    /// What poll(2) says at once.
    fn events(&self, wanted: PollFlags) -> PollFlags {
        let mut fds = [PollFd::from_borrowed_fd(self.fd(), wanted)];
        match rustix::event::poll(&mut fds, Some(&Timespec::default())) {
            Ok(1..) => fds[0].revents(),
            _ => PollFlags::empty(),
        }
    }

    fn read(&self, buf: &mut [u8]) -> Result<usize, Errno> {
        if self.mode == Mode::Guarded && self.events(PollFlags::IN).is_empty() {
            return Err(Errno::AGAIN);
        }
        loop {
            let read = match self.mode {
                Mode::Socket => rustix::net::recv(self.fd(), &mut *buf, RecvFlags::DONTWAIT).map(|(_, n)| n),
                Mode::Free | Mode::Guarded => rustix::io::read(self.fd(), &mut *buf),
            };
            if read != Err(Errno::INTR) {
                return read;
            }
        }
    }

    fn write(&self, bufs: &[IoSlice<'_>]) -> Result<usize, Errno> {
        if self.mode == Mode::Guarded && self.events(PollFlags::OUT).is_empty() {
            return Err(Errno::AGAIN);
        }
        let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| &buf[..]);
        loop {
            let written = match self.mode {
                Mode::Free => rustix::io::writev(self.fd(), bufs),
                Mode::Socket => {
                    rustix::net::send(self.fd(), first, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
                }
                Mode::Guarded => rustix::io::write(self.fd(), &first[..first.len().min(PIPE_BUF)]),
            };
            if written != Err(Errno::INTR) {
                return written;
            }
        }
    }
}

fn free(fd: OwnedFd) -> io::Result<(OwnedFd, Mode)> {
    Ok((fd, Mode::Free))
}

/// The same pipe or terminal with settings of its own, which does not block; `None` where that is not allowed.
fn opened_anew(fd: BorrowedFd<'_>) -> Option<OwnedFd> {
    let access = rustix::fs::fcntl_getfl(fd).ok()? & OFlags::ACCMODE;
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let opened = OpenOptions::new()
        .read(access != OFlags::WRONLY)
        .write(access != OFlags::RDONLY)
        .custom_flags(flags.bits().cast_signed())
        .open(path);
    opened.ok().map(OwnedFd::from)
}

impl Stdio {
    /// The process's own.
    ///
    /// # Errors
    /// Standard input or output is closed, or the process is out of descriptors.
    pub fn of_process() -> io::Result<Self> {
        let (input, output) = (io::stdin(), io::stdout());
        Ok(Self { is_own: true, ..Self::of(input.as_fd(), output.as_fd())? })
    }

    /// Any two descriptors.
    ///
    /// # Errors
    /// As [`Stdio::of_process`].
    pub fn of(input: BorrowedFd<'_>, output: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self {
            input: Half::of(input)?,
            output: RefCell::new(Some(Rc::new(Half::of(output)?))),
            is_own: false,
            hushed: Cell::new(false),
            reader: Cell::default(),
            trouble: Trouble::default(),
        })
    }

    /// What breaks, for whoever ends the session.
    pub fn trouble(&self) -> Trouble {
        self.trouble.clone()
    }

    fn check(&self) -> io::Result<()> {
        if self.trouble.is_there() { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(()) }
    }

    /// As [`Socket::recv`](super::socket::Socket::recv).
    pub(crate) fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        if self.hushed.get() {
            return Ok(0);
        }
        match self.input.read(buf) {
            Ok(n) => Ok(n),
            Err(Errno::AGAIN) => Err(io::ErrorKind::WouldBlock.into()),
            Err(e) => {
                self.trouble.note(Broken::Input(e.into()));
                Err(io::ErrorKind::ConnectionReset.into())
            }
        }
    }

    /// As [`Socket::send`](super::socket::Socket::send).
    pub(crate) fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.check()?;
        let output = self.output.borrow();
        let Some(output) = &*output else { return Err(io::ErrorKind::BrokenPipe.into()) };
        match output.write(bufs) {
            Ok(n) => Ok(n),
            Err(Errno::AGAIN) => Err(io::ErrorKind::WouldBlock.into()),
            Err(e) => {
                self.trouble.note(Broken::Output(e.into()));
                self.wake_reader();
                Err(io::ErrorKind::ConnectionReset.into())
            }
        }
    }

    fn wake_reader(&self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// As [`Socket::readable`](super::socket::Socket::readable).
    pub(crate) async fn readable(&self) -> io::Result<()> {
        let over = poll_fn(|cx| {
            if self.hushed.get() || self.trouble.is_there() {
                return Poll::Ready(Ok(()));
            }
            self.reader.set(Some(cx.waker().clone()));
            Poll::Pending
        });
        let ready = async {
            match &self.input.fd {
                Fd::Pollable(pollable) => pollable.readable().await,
                Fd::File(_) => Ok(()),
            }
        };
        future::or(over, ready).await
    }

    /// As [`Socket::writable`](super::socket::Socket::writable).
    pub(crate) async fn writable(&self) -> io::Result<()> {
        let output = self.output.borrow().clone();
        match output.as_ref().map(|output| &output.fd) {
            Some(Fd::Pollable(pollable)) => pollable.writable().await,
            Some(Fd::File(_)) | None => Ok(()),
        }
    }

    /// Ends the output: whoever reads it sees its end, although the input may go on. What is typed at a terminal is
    /// heard no more.
    pub(crate) fn finish_write(&self) -> io::Result<()> {
        let Some(output) = self.output.take() else { return Ok(()) };
        if output.mode == Mode::Socket {
            // A socket may be input and output in one: closing one descriptor would not end its direction.
            let _ = rustix::net::shutdown(output.fd(), rustix::net::Shutdown::Write);
        }
        if self.is_own
            && let Ok(null) = File::options().write(true).open("/dev/null")
        {
            let _ = rustix::stdio::dup2_stdout(&null);
        }
        if self.input.fd().is_terminal() {
            self.hushed.set(true);
            self.wake_reader();
        }
        Ok(())
    }

    /// As [`Socket::is_reset`](super::socket::Socket::is_reset): whoever reads the output has left.
    pub(crate) fn is_reset(&self) -> bool {
        let output = self.output.borrow();
        let gone =
            output.as_ref().is_some_and(|output| output.events(PollFlags::empty()).contains(PollFlags::ERR));
        if gone {
            self.trouble.note(Broken::Output(io::ErrorKind::BrokenPipe.into()));
        }
        gone
    }

    /// As [`Socket::undelivered`](super::socket::Socket::undelivered), of a pipe.
    pub(crate) fn undelivered(&self) -> Option<usize> {
        if self.trouble.is_there() {
            return None;
        }
        let output = self.output.borrow();
        let held = output.as_ref().and_then(|output| rustix::io::ioctl_fionread(output.fd()).ok());
        Some(held.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _, pipe},
        os::unix::net::UnixStream,
        time::Duration,
    };

    use super::*;
    use crate::{
        run::{timer::sleep, worker::run_alone},
        transport::wire::Wire,
    };

    /// A directory's descriptor: it can be opened, and neither read nor written.
    fn directory() -> OwnedFd {
        File::open("/").unwrap().into()
    }

    fn modes(fd: &impl AsFd) -> Mode {
        Half::of(fd.as_fd()).unwrap().mode
    }

    #[test]
    fn each_kind_of_descriptor_is_kept_from_blocking_in_its_way() {
        run_alone(false, |_| async {
            let (reader, writer) = pipe().unwrap();
            let (socket, _peer) = UnixStream::pair().unwrap();
            assert_eq!((modes(&reader), modes(&writer)), (Mode::Free, Mode::Free));
            assert_eq!(modes(&socket), Mode::Socket);
            assert_eq!(modes(&File::open("/dev/zero").unwrap()), Mode::Guarded);
            assert_eq!(modes(&directory()), Mode::Free);
            let flags = rustix::fs::fcntl_getfl(&writer).unwrap();
            assert!(!flags.contains(OFlags::NONBLOCK), "others share it");
        })
        .unwrap();
    }

    #[test]
    fn bytes_go_in_and_out_and_each_direction_ends_by_itself() {
        run_alone(false, |_| async {
            let (input, mut typed) = pipe().unwrap();
            let (mut shown, output) = pipe().unwrap();
            let stdio = Stdio::of(input.as_fd(), output.as_fd()).unwrap();
            let wire = Wire::from(stdio);
            drop((input, output));
            typed.write_all(b"question").unwrap();
            drop(typed);
            let mut buf = [0; 64];
            assert_eq!(wire.read(&mut buf).await.unwrap(), 8);
            assert_eq!(wire.read(&mut buf).await.unwrap(), 0, "the end of the input");
            wire.write_all(b"answer").await.unwrap();
            wire.finish_write().await.unwrap();
            // A descriptor is closed in a turn of the ring.
            let reading = std::thread::spawn(move || {
                let mut got = Vec::new();
                shown.read_to_end(&mut got).unwrap();
                got
            });
            while !reading.is_finished() {
                sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(reading.join().unwrap(), b"answer");
            assert_eq!(wire.try_write(&[IoSlice::new(b"x")]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        })
        .unwrap();
    }

    #[test]
    fn a_slow_reader_gets_everything_and_never_blocks_us() {
        let (shown, output) = pipe().unwrap();
        let answer: Vec<u8> = (0..3_000_000u32).map(|n| n.to_le_bytes()[1]).collect();
        for mode in [Mode::Free, Mode::Guarded] {
            let reading = {
                let (mut shown, bytes) = (shown.try_clone().unwrap(), answer.len());
                std::thread::spawn(move || {
                    let mut got = vec![0; bytes];
                    // A pipe's worth waits before.
                    std::thread::sleep(Duration::from_millis(20));
                    shown.read_exact(&mut got).unwrap();
                    got
                })
            };
            let (output, sent) = (output.try_clone().unwrap(), answer.clone());
            run_alone(false, |_| async move {
                let stdio = Stdio::of(directory().as_fd(), output.as_fd()).unwrap();
                let end = match mode {
                    Mode::Guarded => Half { fd: Fd::File(output.into()), mode },
                    _ => Half::of(output.as_fd()).unwrap(),
                };
                stdio.output.replace(Some(Rc::new(end)));
                let (mut at, mut waits) = (0, 0);
                while at < sent.len() {
                    match stdio.send(&[IoSlice::new(&sent[at..])]) {
                        Ok(n) => at += n,
                        Err(e) => {
                            assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
                            waits += 1;
                            stdio.writable().await.unwrap();
                        }
                    }
                }
                assert!(waits > 0, "a pipe holds less");
            })
            .unwrap();
            assert!(reading.join().unwrap() == answer, "{mode:?}");
        }
    }

    #[test]
    fn output_that_nobody_reads_breaks_the_input_too_and_the_first_error_is_kept() {
        run_alone(false, |_| async {
            let (input, _typed) = pipe().unwrap();
            let (shown, output) = pipe().unwrap();
            let stdio = Stdio::of(input.as_fd(), output.as_fd()).unwrap();
            let trouble = stdio.trouble();
            assert!(!stdio.is_reset() && stdio.undelivered() == Some(0));
            drop(shown);
            assert_eq!(stdio.send(&[IoSlice::new(b"x")]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
            stdio.readable().await.unwrap();
            assert_eq!(stdio.recv(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
            assert!(stdio.undelivered().is_none());
            match trouble.take() {
                Some(Broken::Output(e)) => assert_eq!(e.kind(), io::ErrorKind::BrokenPipe),
                other => panic!("{other:?}"),
            }
        })
        .unwrap();
    }

    #[test]
    fn a_reader_that_has_left_is_noticed_while_nothing_is_written() {
        run_alone(false, |_| async {
            let (input, _typed) = pipe().unwrap();
            let (shown, output) = pipe().unwrap();
            let stdio = Stdio::of(input.as_fd(), output.as_fd()).unwrap();
            drop(shown);
            assert!(stdio.is_reset());
            assert!(matches!(stdio.trouble().take(), Some(Broken::Output(_))));
        })
        .unwrap();
    }

    #[test]
    fn input_that_can_not_be_read_does_not_look_like_its_end() {
        run_alone(false, |_| async {
            let (_shown, output) = pipe().unwrap();
            let stdio = Stdio::of(directory().as_fd(), output.as_fd()).unwrap();
            stdio.readable().await.unwrap();
            assert!(stdio.recv(&mut [0; 1]).is_err());
            assert!(matches!(stdio.trouble().take(), Some(Broken::Input(_))));
        })
        .unwrap();
    }
}
