//! Role: namespaces of a process's own: a network in which nothing is but a loopback interface, and mounts.
//! Invariants: what happens inside is never seen outside · nothing is needed but a kernel: no `ip netns`, and no
//! `/` that is a mount point.
//! See: namespaces(7), mount_namespaces(7), rtnetlink(7).
#![expect(unsafe_code, reason = "unshare(2) is called; each block says why it holds")]

use std::{fs, io, os::fd::AsFd as _};

use rustix::{
    fs::{Mode, OFlags, open},
    io::Errno,
    mount::{MountPropagationFlags, mount_change},
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with},
    process::{chroot, fchdir, getegid, geteuid},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe},
};

/// Gives this thread, and whatever it starts from now on, a network of its own. Its loopback interface is up.
/// Only root may.
///
/// # Errors
/// The kernel's; `PermissionDenied` where this user, or this container, may not.
pub fn take_own_network() -> io::Result<()> {
    // SAFETY: `FILES` is not among the flags, so every descriptor stays what it is for all threads.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
    lift_loopback()
}

/// Makes this process root in a user namespace of its own, where it is whoever it was. It must have one thread.
///
/// # Errors
/// The kernel's; `PermissionDenied` where users may not.
pub fn become_root_inside() -> io::Result<()> {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    // SAFETY: as above.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER) }?;
    fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
    // A group may be mapped only where groups can't be dropped any more: see user_namespaces(7).
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/gid_map", format!("0 {group} 1"))
}

/// Gives this process mounts of its own: it sees those that stand, and nobody else sees what it changes.
/// It must have one thread.
///
/// # Errors
/// The kernel's; `PermissionDenied` where this user, or this container, may not.
pub fn take_own_mounts() -> io::Result<()> {
    // SAFETY: as above.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    match keep_changes_inside() {
        // In a chroot: `/` is a directory somewhere in a mount, and no mount.
        Err(Errno::INVAL) => keep_changes_inside_from_the_top(),
        done => Ok(done?),
    }
}

fn keep_changes_inside() -> rustix::io::Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
}

/// Whoever enters a namespace of mounts starts at its top, which is a mount; from there it's back to where we were.
fn keep_changes_inside_from_the_top() -> io::Result<()> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let (root, place) = (open("/", directory, Mode::empty())?, open(".", directory, Mode::empty())?);
    let own = fs::File::open("/proc/self/ns/mnt")?;
    move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::Mount))?;
    let kept = keep_changes_inside();
    fchdir(&root)?;
    chroot(".")?;
    fchdir(&place)?;
    Ok(kept?)
}

/// A request of rtnetlink: the interface of this number, which is the loopback's in a new namespace, goes up.
const LOOPBACK_INDEX: i32 = 1;
/// `nlmsghdr` and `ifinfomsg`.
const REQUEST_BYTES: u32 = 16 + 16;

fn lift_loopback() -> io::Result<()> {
    let up = (libc::IFF_UP as u32).to_ne_bytes();
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let mut request = Vec::new();
    request.extend(REQUEST_BYTES.to_ne_bytes());
    request.extend(libc::RTM_NEWLINK.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    // Its number and whose it is: there is one, and the kernel knows.
    request.extend([0; 8]);
    // Any family, any type.
    request.extend([0; 4]);
    request.extend(LOOPBACK_INDEX.to_ne_bytes());
    // The flags, and which of them are meant.
    request.extend(up);
    request.extend(up);

    // Protocol 0 is NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    send(&socket, &request, SendFlags::empty())?;
    let mut answer = [0; 256];
    let (bytes, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
    answered(&answer[..bytes])
}

/// `nlmsghdr`, then an error's number, negative; 0 is none.
fn answered(answer: &[u8]) -> io::Result<()> {
    match answer.get(16..20).map(|error| i32::from_ne_bytes([error[0], error[1], error[2], error[3]])) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(error.saturating_neg())),
        None => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer to RTM_NEWLINK is too short"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_answer_is_read() {
        let answer = |error: i32| [&[0; 16][..], &error.to_ne_bytes(), &[0; 16]].concat();
        assert!(answered(&answer(0)).is_ok());
        assert_eq!(answered(&answer(-libc::EPERM)).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(answered(&[0; 19]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
