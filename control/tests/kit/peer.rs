//! Somebody with a token, and the link that it gives.

use std::{net::SocketAddr, path::Path, time::Duration};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use narrowlink_dataplane::{
    peer::{self, PeerLink},
    tunnel::LinkError,
};
use narrowlink_proto::{
    feature::Features,
    id::{Nonce, instance_statement},
    message::Instance,
    token::{Claims, Keys, Kind},
};

const PATIENCE: Duration = Duration::from_secs(10);

/// Somebody with a token.
pub(crate) struct Peer {
    way: peer::Gateway,
    claims: Claims,
    key: Ed25519KeyPair,
}

impl Peer {
    /// With a token of a gateway whose secret is this.
    pub(crate) fn new(addr: SocketAddr, secret: &[u8], claims: Claims) -> Self {
        let token = Keys::new(secret).sign(&claims).unwrap();
        let endpoint = serde_json::json!({ "gateway": addr.to_string(), "token": token, "protocol": "Ws" });
        let way = peer::Gateway::load(&serde_json::from_value(endpoint).unwrap(), Path::new("")).unwrap();
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self { way, claims, key: Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap() }
    }

    /// Its link, as an agent or a client has one.
    pub(crate) async fn join(&self) -> Result<PeerLink, LinkError> {
        let sign = |nonce: &Nonce| {
            let statement = instance_statement(nonce, &self.claims.uid, &self.claims.name);
            Instance {
                key: URL_SAFE_NO_PAD.encode(self.key.public_key()),
                signature: URL_SAFE_NO_PAD.encode(self.key.sign(&statement)),
            }
        };
        let sign: Option<&dyn Fn(&Nonce) -> Instance> =
            if self.claims.kind == Kind::Agent { Some(&sign) } else { None };
        peer::join(&self.way, Features::NONE, sign, PATIENCE).await
    }
}
