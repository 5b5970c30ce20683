//! Role: a certificate chain and its key, from one PEM text to the settings of a TLS service.
//! Invariants: TLS 1.2 and 1.3 only, AEAD with ECDHE only, no 0-RTT; tickets are sealed with keys that
//! rotate and never leave this process; a key that does not fit its certificate is refused.
//! See: RFC 7468 (PEM), RFC 8446, RFC 9325 (recommendations for TLS).

use std::sync::Arc;

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
        "no private key in it: expected a PRIVATE KEY section beside the chain (cat fullchain.pem privkey.pem)"
    )]
    NoKey,
    /// The key belongs to another certificate.
    #[error(
        "the private key does not belong to the first certificate; is the server's own certificate first?"
    )]
    Mismatch,
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
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(CertificateError::Pem)?;
        if chain.is_empty() {
            return Err(CertificateError::NoCertificate);
        }
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|e| match e {
            pem::Error::NoItemsFound => CertificateError::NoKey,
            other => CertificateError::Pem(other),
        })?;
        let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(|e| match e {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => CertificateError::Mismatch,
            other => CertificateError::Unusable(other),
        })?;
        Ok(Self { certified })
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
        check(format!("{cert}{foreign}"), "does not belong");
        check(cert.replace("-----END", "----END"), "not PEM");
        let garbled = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        check(format!("{garbled}{key}"), "can't be used");
    }
}
