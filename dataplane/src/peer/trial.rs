//! Role: asks gateways whether they take a token, before it replaces one that works.
//! Invariants: no link is set up, so that an agent that runs keeps its own · who can't be asked has refused nothing.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use narrowlink_proto::{
    ended::RefusalCode,
    endpoint::SelfHosted,
    message::Channel,
    upgrade::{Framing, Protocol},
};

use super::open::{Ask, Gateway, open};
use crate::{run::worker::run_alone, tunnel::TunnelError};

/// For each gateway's answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// For all of them: a ticket may name several.
const PATIENCE_IN_ALL: Duration = Duration::from_secs(10);

/// The gateway that refuses the token of these endpoints, if none of them takes it.
pub fn who_refuses(endpoints: Vec<SelfHosted>) -> Option<String> {
    run_alone(false, |_| async move {
        let (mut refuses, began) = (None, Instant::now());
        for endpoint in &endpoints {
            let left = PATIENCE_IN_ALL.saturating_sub(began.elapsed()).min(PATIENCE);
            if left.is_zero() {
                break;
            }
            let Ok(gateway) = Gateway::load(endpoint, Path::new("")) else { continue };
            let protocol = Protocol { channel: Channel::Link, framing: Framing::Framed };
            match open(&gateway, protocol, Ask::Nothing, left).await {
                Ok(_) => return None,
                Err(TunnelError::Refused(refused)) if refused.code == RefusalCode::Unauthenticated => {
                    refuses = Some(gateway.describe().to_owned());
                }
                Err(_) => {}
            }
        }
        refuses
    })
    .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
    };

    use narrowlink_proto::endpoint::{Protocol as Spoken, SecretText};

    use super::*;

    fn endpoint(gateway: String) -> SelfHosted {
        let token = Some(SecretText::new("ey.J.x".to_owned()));
        SelfHosted { gateway, protocol: Spoken::Ws, token, ..SelfHosted::default() }
    }

    #[test]
    fn who_can_t_be_asked_or_is_no_gateway_has_refused_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for mut stranger in listener.incoming().flatten() {
                let _ = stranger.read(&mut [0; 4096]);
                let _ = stranger.write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n");
            }
        });
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        assert_eq!(who_refuses(vec![endpoint(there), endpoint(gone), endpoint("x".to_owned())]), None);
    }
}
