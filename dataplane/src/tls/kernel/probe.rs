//! Role: whether this kernel has TLS, whether it can change keys, and what the operator allows.
//! Invariants: the kernel is asked once a process, on a connection of our own over loopback.
//! See: Linux 4.13 (sealing), 4.17 (opening), 5.1 (TLS 1.3), 6.14 (new keys).

use std::{
    fmt, io,
    net::{TcpListener, TcpStream},
    os::fd::AsFd as _,
    sync::{
        OnceLock,
        atomic::{AtomicU8, Ordering},
    },
};

use super::{
    super::record::{Cipher, Secret, Version},
    info::Info,
    system::{Direction, attach, next_seq, set_key},
};

/// Which TLS connections the kernel may take over, where it can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ktls {
    /// None.
    Never = 0,
    /// Those that nothing will come of that it can't do. TLS 1.3 changes its keys, ours after each
    /// 128 GiB one way: for it the kernel must be able to, too.
    Auto = 1,
    /// All. On a kernel that can't change keys a TLS 1.3 connection breaks when its peer does.
    Always = 2,
}

/// What a process found out about its kernel, and may do.
#[derive(Debug, Clone)]
pub struct KtlsState {
    choice: Ktls,
    support: Option<Support>,
}

/// What the kernel can do.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Support {
    /// Nothing, and why.
    None(String),
    /// TLS, with the keys it is given first.
    FirstKeys,
    /// All of TLS.
    Full,
}

static CHOICE: AtomicU8 = AtomicU8::new(Ktls::Never as u8);
static SUPPORT: OnceLock<Support> = OnceLock::new();

/// Says which connections the kernel may take; a process that never says gives it none.
pub fn choose_ktls(choice: Ktls) -> KtlsState {
    CHOICE.store(choice as u8, Ordering::Relaxed);
    state()
}

fn state() -> KtlsState {
    let choice = match CHOICE.load(Ordering::Relaxed) {
        0 => Ktls::Never,
        1 => Ktls::Auto,
        _ => Ktls::Always,
    };
    let support = (choice != Ktls::Never).then(|| SUPPORT.get_or_init(probe).clone());
    KtlsState { choice, support }
}

impl KtlsState {
    /// Whether the kernel has TLS at all (and was asked).
    pub fn is_there(&self) -> bool {
        matches!(self.support, Some(Support::FirstKeys | Support::Full))
    }

    /// Whether it can go on with new keys, as TLS 1.3 demands at times.
    pub fn takes_new_keys(&self) -> bool {
        self.support == Some(Support::Full)
    }

    fn allows(&self, version: Version) -> bool {
        match self.support {
            Some(Support::Full) => true,
            Some(Support::FirstKeys) => version == Version::Tls12 || self.choice == Ktls::Always,
            Some(Support::None(_)) | None => false,
        }
    }
}

impl fmt::Display for KtlsState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.support, self.choice) {
            (None, _) => f.write_str("off"),
            (Some(Support::None(why)), _) => write!(f, "no ({why})"),
            (Some(Support::FirstKeys), Ktls::Always) => {
                f.write_str("yes (but this kernel can't change keys: TLS 1.3 breaks where a peer does)")
            }
            (Some(Support::FirstKeys), _) => {
                f.write_str("for TLS 1.2 only (this kernel can't change keys; Linux 6.14 can)")
            }
            (Some(Support::Full), _) => f.write_str("yes"),
        }
    }
}

/// Whether the kernel may take connections of this version, and whether it can change keys.
pub(in super::super) fn allowed(version: Version) -> Option<bool> {
    let state = state();
    state.allows(version).then(|| state.takes_new_keys())
}

fn probe() -> Support {
    match ask() {
        Ok(true) => Support::Full,
        Ok(false) => Support::FirstKeys,
        Err((_, e)) if e.kind() == io::ErrorKind::NotFound => {
            Support::None("this kernel has none, or its module tls is not loaded".to_owned())
        }
        Err((what, e)) => Support::None(format!("the kernel refuses {what}: {e}")),
    }
}

/// Whether new keys are taken, if keys are taken at all.
fn ask() -> Result<bool, (&'static str, io::Error)> {
    let of = |what| move |e| (what, e);
    let listener = TcpListener::bind("127.0.0.1:0").map_err(of("a connection to ask with"))?;
    let addr = listener.local_addr().map_err(of("a connection to ask with"))?;
    let stream = TcpStream::connect(addr).map_err(of("a connection to ask with"))?;
    let fd = stream.as_fd();
    let info = |seq| Info::new(Version::Tls13, &Secret::new(Cipher::Aes128Gcm, &[1; 16], [2; 12]), seq);
    attach(fd).map_err(of("TCP_ULP \"tls\""))?;
    set_key(fd, Direction::In, &info(0)).map_err(of("TLS_RX"))?;
    set_key(fd, Direction::Out, &info(7)).map_err(of("TLS_TX"))?;
    match next_seq(fd, Cipher::Aes128Gcm) {
        Ok(7) => {}
        Ok(_) => return Err(("to count records", io::ErrorKind::InvalidData.into())),
        Err(e) => return Err(("to count records", e)),
    }
    Ok(set_key(fd, Direction::In, &info(0)).is_ok() && set_key(fd, Direction::Out, &info(0)).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(choice: Ktls, support: Support) -> KtlsState {
        KtlsState { choice, support: Some(support) }
    }

    #[test]
    fn tls_1_3_goes_only_to_a_kernel_that_can_change_keys_unless_the_operator_insists() {
        assert!(!state(Ktls::Auto, Support::FirstKeys).allows(Version::Tls13));
        assert!(state(Ktls::Auto, Support::FirstKeys).allows(Version::Tls12));
        assert!(state(Ktls::Always, Support::FirstKeys).allows(Version::Tls13));
        assert!(state(Ktls::Auto, Support::Full).allows(Version::Tls13));
        for version in [Version::Tls12, Version::Tls13] {
            assert!(!state(Ktls::Always, Support::None("why".into())).allows(version));
            assert!(!KtlsState { choice: Ktls::Never, support: None }.allows(version));
        }
    }

    #[test]
    fn the_kernel_is_asked_without_harm_and_the_answer_has_words() {
        let support = probe();
        let state = state(Ktls::Auto, support);
        assert_eq!(state.is_there(), !state.to_string().starts_with("no ("));
    }
}
