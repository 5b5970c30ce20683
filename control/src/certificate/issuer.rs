//! Role: whether the machines of agents and clients know the authority of a certificate, or are to be told of it.
//! Invariants: an authority is told of only where it stands in the chain that the gateway shows, which is where a pin is held
//! against it.
//! See: `dataplane::tls::pinned`; RFC 5280 section 6.

use std::time::Duration;

use narrowlink_proto::pin::Pin;
use rustls::{
    CertificateError, Error, RootCertStore,
    client::verify_server_cert_signed_by_trust_anchor,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, UnixTime},
    server::ParsedCertificate,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::standing::names_issuers;

/// Whose word a chain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Issuer {
    /// An authority that machines know.
    Known,
    /// One of somebody's own, which stands in the chain.
    Own(Pin),
    /// One of somebody's own, which doesn't.
    Unknown,
}

impl Issuer {
    /// Of a chain, its own certificate first, where a machine knows `roots`. Public authorities say in a certificate where
    /// its issuer's is: that decides on a machine that knows none.
    pub(super) fn of(chain: &[CertificateDer<'_>], roots: &RootCertStore, provider: &CryptoProvider) -> Self {
        let [own, others @ ..] = chain else { return Self::Unknown };
        let (Ok(parsed), Ok((_, read))) = (ParsedCertificate::try_from(own), X509Certificate::from_der(own))
        else {
            return Self::Unknown;
        };
        // When it is valid is asked elsewhere.
        let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
        let (from, to) = (read.validity().not_before.timestamp(), read.validity().not_after.timestamp());
        let during = UnixTime::since_unix_epoch(Duration::from_secs(seconds(from).midpoint(seconds(to))));
        let algorithms = provider.signature_verification_algorithms.all;
        let verify = |roots: &RootCertStore| {
            verify_server_cert_signed_by_trust_anchor(&parsed, roots, others, during, algorithms)
        };
        match verify(roots) {
            Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {}
            // What else may be wrong is said by who starts.
            _ => return Self::Known,
        }
        let pin = others.iter().find_map(|der| {
            let (_, authority) = X509Certificate::from_der(der).ok()?;
            let mut alone = RootCertStore::empty();
            alone.add(der.clone().into_owned()).ok()?;
            let is_its_own = authority.subject() == authority.issuer();
            (is_its_own && verify(&alone).is_ok()).then(|| Pin::of(authority.public_key().raw))
        });
        match pin {
            Some(pin) => Self::Own(pin),
            None if roots.is_empty() && names_issuers(&read) => Self::Known,
            None => Self::Unknown,
        }
    }
}

/// The authorities that this machine knows.
pub(super) fn known() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, IsCa, Issuer as Signer, KeyPair, PublicKeyData as _,
    };

    use super::*;
    use crate::certificate::provider;

    #[test]
    fn an_authority_of_ones_own_is_told_of_where_the_chain_has_it() {
        let key = KeyPair::generate().unwrap();
        let pin = Pin::of(&key.subject_public_key_info());
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "a house");
        let authority = params.self_signed(&key).unwrap().der().clone();
        let own = CertificateParams::new(vec!["gw.example".to_owned()]).unwrap();
        let own =
            own.signed_by(&KeyPair::generate().unwrap(), &Signer::new(params, key)).unwrap().der().clone();
        let lonely =
            rcgen::generate_simple_self_signed(vec!["gw.example".to_owned()]).unwrap().cert.der().clone();
        let other = rcgen::generate_simple_self_signed(vec!["x".to_owned()]).unwrap().cert.der().clone();
        let (mut knows, none) = (RootCertStore::empty(), RootCertStore::empty());
        knows.add(authority.clone()).unwrap();
        for (chain, roots, issuer) in [
            (vec![own.clone(), authority.clone()], &none, Issuer::Own(pin)),
            (vec![own.clone()], &none, Issuer::Unknown),
            (vec![own.clone(), other], &none, Issuer::Unknown),
            (vec![own.clone()], &knows, Issuer::Known),
            (vec![own, authority], &knows, Issuer::Known),
            (vec![lonely], &knows, Issuer::Unknown),
        ] {
            assert_eq!(Issuer::of(&chain, roots, &provider()), issuer, "{} shown", chain.len());
        }
    }
}
