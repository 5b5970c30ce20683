//! Role: verifies a gateway by the key of its own authority, which a ticket or a configuration names.
//! Invariants: the pin replaces the list of authorities and nothing else: names, times, chains and signatures are verified as
//! for any other · a pinned key that is shown counts only as what signed the gateway's certificate.
//! See: `proto::pin`; RFC 5280 section 6.

use std::sync::Arc;

use narrowlink_proto::pin::Pin;
use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};

/// Believes certificates that the authority with this key has signed. The server has to show the authority's own, too.
#[derive(Debug)]
pub(crate) struct Pinned {
    pin: Pin,
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    pub(crate) fn new(pin: Pin, provider: Arc<CryptoProvider>) -> Self {
        Self { pin, provider }
    }

    /// The certificate with the pinned key among those that were shown.
    fn authority<'a>(&self, shown: &'a [CertificateDer<'a>]) -> Option<&'a CertificateDer<'a>> {
        let is_pinned = |certificate: &&CertificateDer<'_>| {
            ParsedCertificate::try_from(*certificate)
                .is_ok_and(|parsed| self.pin.is_of(&parsed.subject_public_key_info()))
        };
        shown.iter().find(is_pinned)
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let unknown = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let authority = self.authority(intermediates).ok_or(unknown)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone());
        let verifier = verifier.build().map_err(|e| Error::General(e.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{
        BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair, PublicKeyData as _,
    };

    use super::*;

    struct Authority {
        certificate: Certificate,
        issuer: Issuer<'static, KeyPair>,
        pin: Pin,
    }

    fn authority(name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pin = Pin::of(&key.subject_public_key_info());
        let certificate = params.self_signed(&key).unwrap();
        Authority { certificate, issuer: Issuer::new(params, key), pin }
    }

    impl Authority {
        fn sign(&self, name: &str) -> CertificateDer<'static> {
            let params = CertificateParams::new([name.to_owned()]).unwrap();
            let key = KeyPair::generate().unwrap();
            params.signed_by(&key, &self.issuer).unwrap().der().clone()
        }
    }

    fn verify(
        pin: Pin,
        shown: &[CertificateDer<'static>],
        name: &'static str,
        now_s: u64,
    ) -> Result<(), Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now_s));
        let name = ServerName::try_from(name).unwrap();
        Pinned::new(pin, provider).verify_server_cert(&shown[0], &shown[1..], &name, &[], now).map(|_| ())
    }

    const NOW_S: u64 = 1_795_000_000;

    #[test]
    fn what_the_pinned_authority_has_signed_is_believed_and_its_name_counts() {
        let ca = authority("a");
        let shown = [ca.sign("gw.test"), ca.certificate.der().clone()];
        assert_eq!(verify(ca.pin, &shown, "gw.test", NOW_S), Ok(()));
        let other = verify(ca.pin, &shown, "other.test", NOW_S).unwrap_err();
        assert!(
            matches!(other, Error::InvalidCertificate(CertificateError::NotValidForNameContext { .. })),
            "{other:?}"
        );
        let far = verify(ca.pin, &shown, "gw.test", 1_000_000_000_000).unwrap_err();
        assert!(matches!(far, Error::InvalidCertificate(CertificateError::ExpiredContext { .. })), "{far:?}");
    }

    #[test]
    fn nobody_else_is_believed_whatever_is_shown_beside_it() {
        let (ca, other) = (authority("a"), authority("b"));
        let unknown = Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        let [own, theirs] = [&ca, &other].map(|authority| authority.certificate.der().clone());
        let bad = other.sign("gw.test");
        for shown in [
            vec![ca.sign("gw.test")],
            vec![bad.clone(), theirs.clone()],
            vec![bad.clone(), own.clone()],
            vec![bad, theirs, own.clone()],
        ] {
            assert_eq!(verify(ca.pin, &shown, "gw.test", NOW_S), unknown);
        }
        // The authority's own certificate proves nothing about who shows it.
        assert!(verify(ca.pin, std::slice::from_ref(&own), "gw.test", NOW_S).is_err());
        assert!(verify(ca.pin, &[own.clone(), own], "gw.test", NOW_S).is_err());
    }
}
