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
    super::{
        info::{Direction, Info},
        secret::{Cipher, Secret, Version},
    },
    system::{attach, next_seq, set_key},
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
    /// TLS with these ciphers.
    With {
        ciphers: Vec<Cipher>,
        /// New keys may come in the place of old ones.
        new_keys: bool,
    },
}

const CIPHERS: [Cipher; 3] = [Cipher::Aes128Gcm, Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305];

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
        matches!(self.support, Some(Support::With { .. }))
    }

    /// Whether it can go on with new keys, as TLS 1.3 demands at times.
    pub fn takes_new_keys(&self) -> bool {
        matches!(self.support, Some(Support::With { new_keys: true, .. }))
    }

    fn allows(&self, version: Version, cipher: Cipher) -> bool {
        let Some(Support::With { ciphers, new_keys }) = &self.support else { return false };
        ciphers.contains(&cipher) && (*new_keys || version == Version::Tls12 || self.choice == Ktls::Always)
    }
}

impl fmt::Display for KtlsState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ciphers, new_keys) = match &self.support {
            None => return f.write_str("off"),
            Some(Support::None(why)) => return write!(f, "no ({why})"),
            Some(Support::With { ciphers, new_keys }) => (ciphers, *new_keys),
        };
        f.write_str(match (new_keys, self.choice) {
            (true, _) => "yes",
            (false, Ktls::Always) => {
                "yes (but this kernel can't change keys: TLS 1.3 breaks where a peer does)"
            }
            (false, _) => "for TLS 1.2 only (this kernel can't change keys; Linux 6.14 can)",
        })?;
        for cipher in CIPHERS.iter().filter(|cipher| !ciphers.contains(cipher)) {
            write!(f, ", without {cipher:?}")?;
        }
        Ok(())
    }
}

/// Whether the kernel may take connections of this kind, and whether it can change keys.
pub(in super::super) fn allowed(version: Version, cipher: Cipher) -> Option<bool> {
    // The usual answer, without a look at the rest.
    if CHOICE.load(Ordering::Relaxed) == Ktls::Never as u8 {
        return None;
    }
    let state = state();
    state.allows(version, cipher).then(|| state.takes_new_keys())
}

fn probe() -> Support {
    let (mut with, mut new_keys, mut refusal) = (Vec::new(), false, None);
    for cipher in CIPHERS {
        match ask(cipher) {
            Ok(again) => {
                new_keys = if with.is_empty() { again } else { new_keys && again };
                with.push(cipher);
            }
            Err(e) => refusal = refusal.or(Some(e)),
        }
    }
    match refusal {
        Some(why) if with.is_empty() => Support::None(why),
        _ => Support::With { ciphers: with, new_keys },
    }
}

/// Whether new keys are taken in place of the first ones, if those are taken; or why not.
fn ask(cipher: Cipher) -> Result<bool, String> {
    let because = |what: &'static str| move |e: io::Error| format!("{what}: {e}");
    let (stream, _other_end) = loopback().map_err(because("no connection to ask with"))?;
    let fd = stream.as_fd();
    let key = if cipher == Cipher::Aes128Gcm { &[1; 32][..16] } else { &[1; 32] };
    let info = |seq| Info::new(Version::Tls13, &Secret::new(cipher, key, [2; 12]), seq);
    attach(fd).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => "this kernel has none, or its module tls is not loaded".to_owned(),
        _ => because("TCP_ULP")(e),
    })?;
    set_key(fd, Direction::In, &info(0)).map_err(because("TLS_RX"))?;
    set_key(fd, Direction::Out, &info(7)).map_err(because("TLS_TX"))?;
    // Kernels before 5.16 tell it of AES-GCM only.
    if next_seq(fd, cipher).map_err(because("the number of records"))? != 7 {
        return Err("the number of records is not told".to_owned());
    }
    Ok(set_key(fd, Direction::In, &info(0)).is_ok() && set_key(fd, Direction::Out, &info(0)).is_ok())
}

/// A connection, and what keeps its other end.
fn loopback() -> io::Result<(TcpStream, TcpListener)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    Ok((TcpStream::connect(listener.local_addr()?)?, listener))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(choice: Ktls, support: Support) -> KtlsState {
        KtlsState { choice, support: Some(support) }
    }

    fn with(new_keys: bool) -> Support {
        Support::With { ciphers: vec![Cipher::Aes128Gcm], new_keys }
    }

    #[test]
    fn tls_1_3_goes_only_to_a_kernel_that_can_change_keys_unless_the_operator_insists() {
        const AES: Cipher = Cipher::Aes128Gcm;
        assert!(!state(Ktls::Auto, with(false)).allows(Version::Tls13, AES));
        assert!(state(Ktls::Auto, with(false)).allows(Version::Tls12, AES));
        assert!(state(Ktls::Always, with(false)).allows(Version::Tls13, AES));
        assert!(state(Ktls::Auto, with(true)).allows(Version::Tls13, AES));
        for version in [Version::Tls12, Version::Tls13] {
            assert!(!state(Ktls::Always, with(true)).allows(version, Cipher::ChaCha20Poly1305));
            assert!(!state(Ktls::Always, Support::None("why".into())).allows(version, AES));
            assert!(!KtlsState { choice: Ktls::Never, support: None }.allows(version, AES));
        }
    }

    #[test]
    fn the_kernel_is_asked_without_harm_and_the_answer_has_words() {
        let found = state(Ktls::Auto, probe());
        assert_eq!(found.is_there(), !found.to_string().starts_with("no ("), "{found}");
        assert!(!super::state().is_there(), "a process that never says is never asked for");
        let words = state(Ktls::Auto, with(true)).to_string();
        assert_eq!(words, "yes, without Aes256Gcm, without ChaCha20Poly1305");
    }
}
