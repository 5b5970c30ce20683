//! Role: listening sockets that one process hands to another: a service manager to a program, a program to the one that goes on
//! in its place; and what the other says back.
//! Invariants: a connection that waits in a socket waits on, whoever accepts it · what is no listening socket is refused, and
//! named · both ends are processes of one program: nothing else may hold them.
//! See: unix(7) `SCM_RIGHTS`; sd_listen_fds(3); ARCHITECTURE.md "A restart without a gap".

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
        recvmsg, socketpair,
        sockopt::{Timeout, set_socket_timeout},
    },
};
use socket2::Socket;

use crate::run::notify::{FDS_MAX, Speaker, send_with_fds};

/// How long what is said may wait for room.
const SEND_PATIENCE: Duration = Duration::from_millis(500);
/// What the receiver has room for.
const MESSAGE_BYTES_MAX: usize = 4096;
/// No more descriptors follow.
const END: &[u8] = b"end";
/// Some come with this.
const SOCKETS: &[u8] = b"sockets";

/// Listening sockets that others have opened, for whoever listens at their addresses.
#[derive(Debug, Default)]
pub struct Inherited(Vec<(SocketAddr, TcpListener)>);

impl Inherited {
    /// What the service manager has given this process.
    ///
    /// # Errors
    /// Something else than listening sockets.
    pub fn of_service_manager() -> io::Result<Self> {
        let fds = sd_notify::listen_fds()?;
        Self::new(fds.map(adopt).collect())
    }

    /// Those of `sockets`.
    ///
    /// # Errors
    /// One that does not listen for TCP.
    pub fn new(sockets: Vec<OwnedFd>) -> io::Result<Self> {
        sockets.into_iter().map(listening).collect::<io::Result<_>>().map(Self)
    }

    /// All that listen at `addr`.
    pub fn take(&mut self, addr: SocketAddr) -> Vec<TcpListener> {
        self.0.extract_if(.., |(at, _)| *at == addr).map(|(_, socket)| socket).collect()
    }

    /// Where those listen that nobody took.
    pub fn left(&self) -> Vec<SocketAddr> {
        let mut left: Vec<_> = self.0.iter().map(|(addr, _)| *addr).collect();
        left.sort_unstable();
        left.dedup();
        left
    }

    /// All of them, for another process.
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.0.iter().map(|(_, socket)| socket.as_fd()).collect()
    }
}

#[expect(unsafe_code, reason = "the service manager's descriptors are numbers")]
fn adopt(fd: i32) -> OwnedFd {
    // SAFETY: sd_listen_fds(3): these numbers were opened for this process, which closes none of them elsewhere, and asks
    // once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn listening(fd: OwnedFd) -> io::Result<(SocketAddr, TcpListener)> {
    let socket = Socket::from(fd);
    let wrong = || {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "a socket that was handed over does not listen for TCP: give it ListenStream=HOST:PORT",
        )
    };
    if !socket.is_listener().map_err(|_| wrong())? {
        return Err(wrong());
    }
    let addr = socket.local_addr()?.as_socket().ok_or_else(wrong)?;
    socket.set_nonblocking(true)?;
    Ok((addr, socket.into()))
}

/// The end of whoever hands over.
#[derive(Debug)]
pub struct Giver(OwnedFd);

/// The end of whoever goes on.
#[derive(Debug)]
pub struct Taker(OwnedFd);

/// Both ends, and nobody's yet.
///
/// # Errors
/// The system's.
pub fn channel() -> io::Result<(Giver, Taker)> {
    let (giver, taker) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    // A process that stands still keeps the other waiting no longer than that.
    for end in [&giver, &taker] {
        set_socket_timeout(end, Timeout::Send, Some(SEND_PATIENCE))?;
    }
    Ok((Giver(giver), Taker(taker)))
}

/// What the other process says.
#[derive(Debug)]
pub struct Said {
    /// As for a service manager.
    pub words: String,
    /// What came with it.
    pub fds: Vec<OwnedFd>,
}

impl Giver {
    /// Hands over sockets; the other end has them when this returns, whether it has asked or not.
    ///
    /// # Errors
    /// The other end is closed, or the system's.
    pub fn give(&self, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
        for batch in sockets.chunks(FDS_MAX) {
            send_with_fds(&self.0, SOCKETS, batch)?;
        }
        send_with_fds(&self.0, END, &[])
    }

    /// Hears nothing for longer than this as an error, `TimedOut`.
    ///
    /// # Errors
    /// The system's.
    pub fn set_patience(&self, patience: Duration) -> io::Result<()> {
        Ok(set_socket_timeout(&self.0, Timeout::Recv, Some(patience))?)
    }

    /// Waits for what the other process says; `None` when it has ended.
    ///
    /// # Errors
    /// The system's, or nothing was said for so long.
    pub fn hear(&self) -> io::Result<Option<Said>> {
        let (words, fds) = receive(&self.0)?;
        let words = String::from_utf8_lossy(&words).into_owned();
        Ok((!words.is_empty()).then_some(Said { words, fds }))
    }
}

impl Taker {
    /// The end that was made this process's standard input.
    ///
    /// # Errors
    /// Standard input is nothing of the kind.
    pub fn of_stdin() -> io::Result<Self> {
        let fd = io::stdin().as_fd().try_clone_to_owned()?;
        match Socket::from(fd.try_clone()?).r#type() {
            Ok(kind) if kind == socket2::Type::SEQPACKET => Ok(Self(fd)),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "standard input is no way to another gateway: this option is for gateways alone",
            )),
        }
    }

    /// The descriptor, for the process that is to have it.
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// What is handed over.
    ///
    /// # Errors
    /// Whoever hands over has ended, or handed over something else.
    pub fn take(&self) -> io::Result<Inherited> {
        let mut all = Vec::new();
        loop {
            let (words, fds) = receive(&self.0)?;
            all.extend(fds);
            match &words[..] {
                SOCKETS => {}
                END => return Inherited::new(all),
                _ => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "whoever hands its sockets over has ended",
                    ));
                }
            }
        }
    }

    /// Returns when whoever handed over has ended.
    pub fn wait_alone(&self) {
        // It says nothing more, and an error is an end as well.
        while receive(&self.0).is_ok_and(|(words, _)| !words.is_empty()) {}
    }
}

impl Speaker for Taker {
    fn say(&self, words: &str, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        send_with_fds(&self.0, words.as_bytes(), fds)
    }
}

/// One message; an empty one is the end.
fn receive(socket: &OwnedFd) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut words = vec![0; MESSAGE_BYTES_MAX];
    let bytes = loop {
        let into = &mut [IoSliceMut::new(&mut words)];
        match recvmsg(socket, into, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            // It ended with something of ours unread.
            Err(Errno::CONNRESET) => break 0,
            Err(Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            received => break received?.bytes,
        }
    };
    words.truncate(bytes);
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    Ok((words, fds))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpStream,
    };

    use super::*;

    fn listener() -> (SocketAddr, TcpListener) {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        (socket.local_addr().unwrap(), socket)
    }

    #[test]
    fn sockets_go_over_with_the_connections_that_wait_in_them() {
        let (giver, taker) = channel().unwrap();
        let all: Vec<_> = (0..FDS_MAX + 3).map(|_| listener()).collect();
        let mut waiting = TcpStream::connect(all[0].0).unwrap();
        giver.give(&all.iter().map(|(_, socket)| socket.as_fd()).collect::<Vec<_>>()).unwrap();
        let first = all[0].0;
        drop(all);
        let mut inherited = taker.take().unwrap();
        assert_eq!(inherited.fds().len(), FDS_MAX + 3);
        let own = inherited.take(first);
        assert_eq!((own.len(), inherited.left().len()), (1, FDS_MAX + 2));
        own[0].set_nonblocking(false).unwrap();
        own[0].accept().unwrap().0.write_all(b"served").unwrap();
        let mut answer = String::new();
        waiting.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "served");
    }

    #[test]
    fn what_is_said_comes_with_its_descriptors_and_an_end_is_noticed() {
        let (giver, taker) = channel().unwrap();
        let (addr, socket) = listener();
        taker.say("FDSTORE=1", &[socket.as_fd()]).unwrap();
        taker.say("READY=1", &[]).unwrap();
        let Some(Said { words, fds }) = giver.hear().unwrap() else { panic!("nothing") };
        assert_eq!((words.as_str(), Inherited::new(fds).unwrap().left()), ("FDSTORE=1", vec![addr]));
        assert_eq!(giver.hear().unwrap().map(|said| said.words).as_deref(), Some("READY=1"));
        drop(taker);
        assert!(giver.hear().unwrap().is_none());
        let (giver, taker) = channel().unwrap();
        giver.give(&[]).unwrap();
        assert!(taker.take().unwrap().left().is_empty());
        drop(giver);
        taker.wait_alone();
        assert!(taker.take().unwrap_err().to_string().contains("has ended"));
        assert!(taker.say("READY=1", &[]).is_err());
    }

    #[test]
    fn what_does_not_listen_is_refused() {
        let (addr, _socket) = listener();
        let connected = TcpStream::connect(addr).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let bound = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for fd in [OwnedFd::from(connected), file.into(), bound.into()] {
            let said = Inherited::new(vec![fd]).unwrap_err().to_string();
            assert!(said.contains("does not listen for TCP"), "{said}");
        }
    }
}
