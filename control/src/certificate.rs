//! Role: a certificate chain and its key, from one PEM text to the settings of a TLS service.
//! Invariants: TLS 1.2 and 1.3 only, AEAD with ECDHE only, no 0-RTT; tickets are sealed with keys that
//! rotate and never leave this process; a key that does not fit its certificate is refused.
//! See: RFC 7468 (PEM), RFC 8446, RFC 9325 (recommendations for TLS).

mod issuer;
pub mod served;
mod standing;

use std::{net::IpAddr, sync::Arc};

use narrowlink_proto::printable::printable;
use rustls::{
    InconsistentKeys, ServerConfig,
    client::verify_server_name,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName,
        pem::{self, PemObject},
    },
    server::{NoServerSessionStorage, ParsedCertificate},
    sign::{CertifiedKey, SingleCertAndKey},
};

use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer as _, X509Certificate},
    public_key::PublicKey,
};

pub use issuer::Issuer;
pub use standing::{Held, Standing, Watch};

/// A shorter RSA key is refused everywhere.
const RSA_BITS_MIN: usize = 2048;
/// The way to a certificate that clients take, for whoever has another.
const SIGN_ONE: &str = "have an authority sign one for the gateway, with basicConstraints CA:FALSE and the gateway's names as \
                        subjectAltName (docs/certificates.md has the commands for an authority of your own)";
/// As much of a name as any has.
const NAME_CHARS_MAX: usize = 253;
/// A text of another encoding than PEM's.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What a PEM text must hold and this one does not. The operator's fault.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Broken base64 or a section without its end.
    #[error("not PEM: {0}")]
    Pem(pem::Error),
    /// No `CERTIFICATE` section.
    #[error("no certificate in it: expected a CERTIFICATE section, the server's own first, then its chain")]
    NoCertificate,
    /// No key section.
    #[error(
        "no private key in it: a chain alone is public and has none; name the key's file with `key_path`, or put both into \
         one, the chain first"
    )]
    NoKey,
    /// More than one key section.
    #[error("{0} private keys in it: which is the certificate's? Leave one")]
    Keys(usize),
    /// A key that only its password opens.
    #[error(
        "the private key is encrypted, and nobody is here to type its password: openssl pkey -in KEY -out NEW writes it \
         without (chmod 600 NEW)"
    )]
    EncryptedKey,
    /// The key belongs to none of the certificates.
    #[error("the private key belongs to another certificate: was one of the two renewed alone?")]
    Mismatch,
    /// The key belongs to a certificate that is not the first.
    #[error("the private key belongs to certificate {0} of the chain: the server's own must be the first")]
    Order(usize),
    /// EF BB BF in front.
    #[error(
        "it begins with a byte order mark, which PEM does not have: save it as UTF-8 without BOM, or as ASCII"
    )]
    ByteOrderMark,
    /// `-----END ..----------BEGIN ..`.
    #[error(
        "two sections stand in one line (-----END ..----------BEGIN ..): a file without a line end at its end was put in \
         front of another; put a line end between them"
    )]
    Glued,
    /// X.509 version 1 or 2.
    #[error(
        "the certificate is of an old form (X.509 version {0}) that no client takes and that has no names in it: {SIGN_ONE}"
    )]
    Version(u32),
    /// An RSA key that is too short.
    #[error(
        "its RSA key has {0} bits, and no client takes less than {RSA_BITS_MIN}: make a new key and have it certified anew"
    )]
    ShortKey(usize),
    /// A certificate or key that can't be used.
    #[error("the certificate or its key can't be used: {0}")]
    Unusable(rustls::Error),
}

/// A certificate chain with its key.
#[derive(Debug)]
pub struct Certificate {
    certified: CertifiedKey,
}

impl Certificate {
    /// Reads chain and key from one PEM text, in any order; the server's own certificate is the first.
    ///
    /// # Errors
    /// The operator's, see [`CertificateError`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, CertificateError> {
        look_at(pem)?;
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(CertificateError::Pem)?;
        if chain.is_empty() {
            return Err(CertificateError::NoCertificate);
        }
        let mut keys: Vec<_> =
            PrivateKeyDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(CertificateError::Pem)?;
        let key = match (keys.pop(), keys.len()) {
            (Some(key), 0) => key,
            (Some(_), more) => return Err(CertificateError::Keys(more + 1)),
            (None, _) => return Err(CertificateError::NoKey),
        };
        look_at_own(&chain[0])?;
        let certified = CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider());
        certified.map(|certified| Self { certified }).map_err(|e| match e {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => whose(&chain, &key),
            other => CertificateError::Unusable(other),
        })
    }

    /// The names and addresses that the certificate is for.
    pub fn names(&self) -> Vec<String> {
        let own = self.certified.cert.first().and_then(|own| X509Certificate::from_der(own).ok());
        let Some((_, own)) = &own else { return Vec::new() };
        let Ok(Some(names)) = own.subject_alternative_name() else { return Vec::new() };
        names.value.general_names.iter().filter_map(spell).collect()
    }

    /// How the certificate stands with the names of its service, its chain and its time.
    ///
    /// # Errors
    /// A certificate that can't be read.
    pub fn standing(&self, names: &[String]) -> Result<Standing, CertificateError> {
        let unreadable = || rustls::Error::InvalidCertificate(rustls::CertificateError::BadEncoding);
        let standing = Standing::of(&self.certified.cert, &provider());
        let mut standing = standing.ok_or_else(|| CertificateError::Unusable(unreadable()))?;
        standing.uncovered = names.iter().filter(|name| !self.covers(name)).count();
        standing.covered = names.len() - standing.uncovered;
        Ok(standing)
    }

    /// Whether the authority that signed it is one that machines know, as far as this one can tell.
    pub fn issuer(&self) -> Issuer {
        Issuer::of(&self.certified.cert, &issuer::known(), &provider())
    }

    /// Whether clients that verify would take the certificate for `name`.
    pub fn covers(&self, name: &str) -> bool {
        let (Some(own), Ok(name)) = (self.certified.cert.first(), ServerName::try_from(name)) else {
            return false;
        };
        ParsedCertificate::try_from(own).is_ok_and(|own| verify_server_name(&own, &name).is_ok())
    }

    /// The settings of a service that shows this certificate.
    ///
    /// # Errors
    /// The system's: no random bytes for the tickets' first key.
    pub fn into_settings(self) -> Result<Arc<ServerConfig>, rustls::Error> {
        let mut settings = ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(self.certified)));
        settings.alpn_protocols = vec![b"http/1.1".to_vec()];
        settings.max_early_data_size = 0;
        // The library makes the handshake, the records are ours.
        settings.enable_secret_extraction = true;
        settings.ticketer = aws_lc_rs::Ticketer::new()?;
        // Tickets do the same without a table that all workers lock.
        settings.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Arc::new(settings))
    }
}

/// A name that a server can be called by.
fn spell(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some(printable(name, NAME_CHARS_MAX)),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => Some(IpAddr::from(<[u8; 4]>::try_from(*bytes).ok()?).to_string()),
            _ => Some(IpAddr::from(<[u8; 16]>::try_from(*bytes).ok()?).to_string()),
        },
        _ => None,
    }
}

/// What a reader of PEM would only call broken, or pass over.
fn look_at(pem: &[u8]) -> Result<(), CertificateError> {
    let holds = |part: &[u8]| pem.windows(part.len()).any(|window| window == part);
    if pem.starts_with(BYTE_ORDER_MARK) {
        return Err(CertificateError::ByteOrderMark);
    }
    if holds(b"----------BEGIN ") {
        return Err(CertificateError::Glued);
    }
    if holds(b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || holds(b"\nProc-Type: 4,ENCRYPTED") {
        return Err(CertificateError::EncryptedKey);
    }
    Ok(())
}

/// What the library would only name in words of its own. What can't be read is the library's to say.
fn look_at_own(der: &CertificateDer<'_>) -> Result<(), CertificateError> {
    let Ok((_, own)) = X509Certificate::from_der(der) else { return Ok(()) };
    // Counted from 0.
    let version = own.version().0.saturating_add(1);
    if version < 3 {
        return Err(CertificateError::Version(version));
    }
    match own.public_key().parsed() {
        Ok(PublicKey::RSA(key)) if key.key_size() < RSA_BITS_MIN => {
            Err(CertificateError::ShortKey(key.key_size()))
        }
        _ => Ok(()),
    }
}

/// Whether a PEM text has a private key in it, be it encrypted.
pub(crate) fn holds_key(pem: &[u8]) -> bool {
    const MARK: &[u8] = b"PRIVATE KEY-----";
    pem.windows(MARK.len()).any(|window| window == MARK)
}

/// A file that should hold a key, and what is odd about it already said in its own terms.
///
/// # Errors
/// The operator's: it holds none, several, or one that can't be opened.
pub(crate) fn key_alone(pem: &[u8]) -> Result<(), CertificateError> {
    look_at(pem)?;
    let keys: Vec<_> =
        PrivateKeyDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(CertificateError::Pem)?;
    match keys.len() {
        1 => Ok(()),
        0 => Err(CertificateError::NoKey),
        more => Err(CertificateError::Keys(more)),
    }
}

/// A key that is not the first certificate's: another one's of the chain, or of none.
fn whose(chain: &[CertificateDer<'static>], key: &PrivateKeyDer<'static>) -> CertificateError {
    let fits = |cert: &CertificateDer<'static>| {
        CertifiedKey::from_der(vec![cert.clone()], key.clone_key(), &provider()).is_ok()
    };
    chain.iter().position(fits).map_or(CertificateError::Mismatch, |at| CertificateError::Order(at + 1))
}

/// The library's own list is longer in other builds: what we offer is said here.
fn provider() -> CryptoProvider {
    use aws_lc_rs::cipher_suite as suite;
    CryptoProvider {
        cipher_suites: vec![
            suite::TLS13_AES_128_GCM_SHA256,
            suite::TLS13_AES_256_GCM_SHA384,
            suite::TLS13_CHACHA20_POLY1305_SHA256,
            suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
            suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
            suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        ],
        ..aws_lc_rs::default_provider()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pem(names: &[&str]) -> (String, String) {
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn a_chain_and_its_key_are_taken_in_any_order() {
        let (cert, key) = pem(&["gw.example", "*.gw.example"]);
        for text in [format!("{cert}{key}"), format!("a comment\n{key}\n{cert}")] {
            let certificate = Certificate::from_pem(text.as_bytes()).unwrap();
            assert!(certificate.covers("gw.example"));
            assert!(certificate.covers("a.gw.example"));
            assert!(!certificate.covers("other.example"));
            assert!(!certificate.covers("not a name"));
            let settings = certificate.into_settings().unwrap();
            assert_eq!(settings.alpn_protocols, [b"http/1.1"]);
            assert_eq!(settings.max_early_data_size, 0);
            assert!(settings.ticketer.enabled());
        }
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let (cert, key) = pem(&["gw.example"]);
        let (_, foreign) = pem(&["gw.example"]);
        let check = |text: String, words: &str| {
            let error = Certificate::from_pem(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        check(String::new(), "no certificate");
        check(key.clone(), "no certificate");
        check(cert.clone(), "no private key");
        check(format!("{cert}{foreign}"), "belongs to another certificate");
        let (other, _) = pem(&["other.example"]);
        check(format!("{other}{cert}{key}"), "belongs to certificate 2 of the chain");
        check(format!("{cert}{key}{foreign}"), "2 private keys");
        check(format!("\u{feff}{cert}{key}"), "byte order mark");
        check(format!("{}{key}", cert.trim_end()), "put a line end between them");
        let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        check(format!("{cert}{encrypted}"), "openssl pkey");
        let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
        check(format!("{cert}{old}"), "openssl pkey");
        check(cert.replace("-----END", "----END"), "not PEM");
        check(include_str!("certificate/version-1.pem").to_owned(), "version 1) that no client takes");
        check(include_str!("certificate/rsa-1024.pem").to_owned(), "RSA key has 1024 bits");
        let garbled = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        check(format!("{garbled}{key}"), "can't be used");
    }
}
