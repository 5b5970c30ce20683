//! A gateway in this process, on a free port of loopback.

use narrowlink_control::{
    config::{Config, Service},
    gateway::{self, Gateway},
};
use narrowlink_proto::{limits::Limits, target::Destination, token::Secret};

/// What its tokens are signed with.
pub(crate) const SECRET: [u8; 32] = [7; 32];

/// Starts one that serves `ws`.
pub(crate) fn start(workers: usize, limits: Limits) -> Gateway {
    start_with(&SECRET, workers, limits)
}

/// The same with a secret of one's own.
pub(crate) fn start_with(secret: &[u8], workers: usize, limits: Limits) -> Gateway {
    let service = Service {
        domains: vec![Destination::Ip([127, 0, 0, 1].into())],
        listen_addr: "127.0.0.1:0".parse().unwrap(),
        tls: None,
    };
    let secrets = vec![Secret::from_bytes(secret.to_vec()).unwrap()];
    let config = Config::new("test", secrets, vec![service]);
    gateway::start(Config { workers: Some(workers), pin: false, limits, ..config }).unwrap()
}
