//! Role: what the tests of every kind of subject begin with.

use super::{FarTls, NearTls, Setup, Transport, Way};

/// One plain connection, anywhere.
pub(super) const SETUP: Setup = Setup {
    transport: Transport { tls: false, raw: true },
    connections: 1,
    ways: 1,
    unprivileged: false,
    front_only: false,
    core: None,
    urgent: false,
};

/// The nth way of a forwarder, from port 1000 + n to port 2000 + n.
pub(super) fn way(n: u16, tls: bool) -> Way {
    Way::Forwarder {
        listen: ([127, 0, 0, 1], 1000 + n).into(),
        target: ([127, 0, 0, 2], 2000 + n).into(),
        near_tls: tls.then(|| NearTls { ca_file: "/d/ca.pem".into(), name: "localhost".to_owned() }),
        far_tls: tls.then(|| FarTls { cert_file: "/d/gateway.pem".into() }),
    }
}
