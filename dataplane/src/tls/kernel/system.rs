//! Role: what is asked of a kernel that has TLS, call by call.
//! Invariants: no call waits · buffers of the kernel's are as long as it is told · keys are wiped.
//! See: the kernel's Documentation/networking/tls.rst; linux/tls.h.
#![expect(unsafe_code, reason = "calls the kernel where rustix has no words for it")]

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use rustls::ContentType;

use super::super::{
    info::{Direction, Info},
    secret::Cipher,
};
use crate::{net::plain::Plain, run::budget};

const TLS_SET_RECORD_TYPE: libc::c_int = 1;
const TLS_GET_RECORD_TYPE: libc::c_int = 2;

/// What one look at the socket brought.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) struct Received {
    /// Bytes in the caller's buffer.
    pub(in super::super) bytes: usize,
    /// What they are; `None` is the end of the connection.
    pub(in super::super) kind: Option<ContentType>,
    /// The record ends here, or a row of data records does.
    pub(in super::super) whole: bool,
}

/// A socket whose records the kernel can seal and open, or a test's memory.
pub(in super::super) trait System {
    /// Makes the socket ready for keys; until they come, nothing is different.
    fn attach(&self) -> io::Result<()>;
    /// Hands a key over, from the next record on.
    fn set_key(&self, direction: Direction, info: &Info) -> io::Result<()>;
    /// The number that the next record will have on its way out.
    fn next_seq(&self, cipher: Cipher) -> io::Result<u64>;
    /// How many bytes TCP has taken since it connected.
    fn taken_bytes(&self) -> io::Result<u64>;
    /// Opened bytes: of one record, or of several if they are data.
    fn receive(&self, buf: &mut [u8]) -> io::Result<Received>;
    /// Seals and sends.
    fn send(&self, kind: ContentType, pieces: &[IoSlice<'_>]) -> io::Result<usize>;
}

impl System for Plain {
    fn attach(&self) -> io::Result<()> {
        attach(self.expect_socket()?.as_fd())
    }

    fn set_key(&self, direction: Direction, info: &Info) -> io::Result<()> {
        set_key(self.expect_socket()?.as_fd(), direction, info)
    }

    fn next_seq(&self, cipher: Cipher) -> io::Result<u64> {
        next_seq(self.expect_socket()?.as_fd(), cipher)
    }

    fn taken_bytes(&self) -> io::Result<u64> {
        let socket = self.expect_socket()?;
        let info = socket.tcp_info().ok_or_else(io::Error::last_os_error)?;
        // TCP_CLOSE: nothing goes anywhere any more.
        if info.tcpi_state == crate::net::socket::TCP_CLOSE {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        // What is acknowledged in between counts in neither: the sum is never too large.
        Ok(info.tcpi_bytes_acked + u64::from(unacknowledged(socket.as_fd())?))
    }

    fn receive(&self, buf: &mut [u8]) -> io::Result<Received> {
        let socket = self.expect_socket()?;
        let received = receive(socket.as_fd(), buf);
        let bytes = received.as_ref().map_or(0, |received| received.bytes);
        self.account().spend(budget::CALL + bytes);
        self.has_brought(bytes);
        received
    }

    fn send(&self, kind: ContentType, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        if kind == ContentType::ApplicationData {
            self.try_write(pieces)
        } else {
            send_control(self.expect_socket()?.as_fd(), kind, pieces)
        }
    }
}

/// As [`System::attach`].
pub(super) fn attach(fd: BorrowedFd<'_>) -> io::Result<()> {
    set(fd, libc::IPPROTO_TCP, libc::TCP_ULP, b"tls")
}

/// As [`System::set_key`].
pub(super) fn set_key(fd: BorrowedFd<'_>, direction: Direction, info: &Info) -> io::Result<()> {
    set(fd, libc::SOL_TLS, direction as libc::c_int, info.bytes())
}

/// As [`System::next_seq`].
pub(super) fn next_seq(fd: BorrowedFd<'_>, cipher: Cipher) -> io::Result<u64> {
    let mut info = Info::empty(cipher);
    // The kernel tells ciphers apart by this length.
    let room = info.bytes_mut();
    let mut len = room.len() as libc::socklen_t;
    let (level, option) = (libc::SOL_TLS, Direction::Out as libc::c_int);
    // SAFETY: the kernel writes at most `len` bytes into `room`, which is that long.
    let got =
        unsafe { libc::getsockopt(fd.as_raw_fd(), level, option, room.as_mut_ptr().cast(), &raw mut len) };
    check(got as isize)?;
    Ok(info.seq())
}

fn set(fd: BorrowedFd<'_>, level: libc::c_int, option: libc::c_int, value: &[u8]) -> io::Result<()> {
    let len = value.len() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes of `value`, which is that long.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, value.as_ptr().cast(), len) } as isize)?;
    Ok(())
}

fn unacknowledged(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: TIOCOUTQ writes one int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) } as isize)?;
    Ok(bytes.try_into().unwrap_or(0))
}

/// Room for one control message of one byte, aligned as its header.
#[repr(C, align(8))]
struct Control([MaybeUninit<u8>; 24]);

const _: () = {
    // SAFETY: arithmetic.
    assert!(unsafe { libc::CMSG_SPACE(1) } as usize <= size_of::<Control>());
    assert!(align_of::<libc::cmsghdr>() <= align_of::<Control>());
};

fn message(pieces: *mut libc::iovec, count: usize, control: &mut Control) -> libc::msghdr {
    // SAFETY: all zero is a valid msghdr: no address, no data, no control.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (pieces, count as _);
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = size_of::<Control>() as _;
    message
}

fn receive(fd: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<Received> {
    let mut piece = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let mut control = Control([MaybeUninit::zeroed(); 24]);
    let mut message = message(&raw mut piece, 1, &mut control);
    let bytes = loop {
        // SAFETY: `message` names one piece, the caller's buffer, and `control`, each with its length.
        match check(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) }) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    // SAFETY: the kernel has set `msg_controllen` to what it wrote into `control`; FIRSTHDR is null
    // if that is no whole header, and all of `control` was initialised before.
    let kind = unsafe {
        let head = libc::CMSG_FIRSTHDR(&raw const message);
        (!head.is_null() && (*head).cmsg_level == libc::SOL_TLS && (*head).cmsg_type == TLS_GET_RECORD_TYPE)
            .then(|| *libc::CMSG_DATA(head))
    };
    // Some kernels say nothing about data.
    let kind = kind.or((bytes > 0).then_some(23)).map(ContentType::from);
    Ok(Received { bytes, kind, whole: message.msg_flags & libc::MSG_EOR != 0 })
}

fn send_control(fd: BorrowedFd<'_>, kind: ContentType, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
    let mut control = Control([MaybeUninit::zeroed(); 24]);
    // The kernel only reads through it: an IoSlice is an iovec by its own promise.
    let mut message = message(pieces.as_ptr().cast::<libc::iovec>().cast_mut(), pieces.len(), &mut control);
    // SAFETY: `control` has room for one header and one byte, as asserted above.
    unsafe {
        message.msg_controllen = libc::CMSG_SPACE(1) as _;
        let head = libc::CMSG_FIRSTHDR(&raw const message);
        (*head).cmsg_level = libc::SOL_TLS;
        (*head).cmsg_type = TLS_SET_RECORD_TYPE;
        (*head).cmsg_len = libc::CMSG_LEN(1) as _;
        *libc::CMSG_DATA(head) = u8::from(kind);
    }
    loop {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: `message` names the caller's pieces and `control`, each with its length.
        match check(unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, flags) }) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn check(returned: isize) -> io::Result<usize> {
    usize::try_from(returned).map_err(|_| io::Error::last_os_error())
}
