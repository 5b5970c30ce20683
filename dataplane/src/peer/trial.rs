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
use crate::{
    run::{enroll::Trial, worker::run_alone},
    tunnel::TunnelError,
};

/// For each gateway's answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// For all of them: a ticket may name several.
const PATIENCE_IN_ALL: Duration = Duration::from_secs(10);

/// Whether a gateway of these endpoints takes their token.
pub fn try_token(endpoints: Vec<SelfHosted>) -> Trial {
    let tried = run_alone(false, |_| async move {
        let (mut trial, began) = (Trial::Unanswered, Instant::now());
        for endpoint in &endpoints {
            let left = PATIENCE_IN_ALL.saturating_sub(began.elapsed()).min(PATIENCE);
            if left.is_zero() {
                break;
            }
            let Ok(gateway) = Gateway::load(endpoint, Path::new("")) else { continue };
            let protocol = Protocol { channel: Channel::Link, framing: Framing::Framed };
            match open(&gateway, protocol, Ask::Nothing, left).await {
                Ok(_) => return Trial::Taken(gateway.describe().to_owned()),
                Err(TunnelError::Refused(refused)) if refused.code == RefusalCode::Unauthenticated => {
                    trial = Trial::Refused(gateway.describe().to_owned());
                }
                Err(_) => {}
            }
        }
        trial
    });
    tried.unwrap_or(Trial::Unanswered)
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
    fn who_can_t_be_asked_or_is_no_gateway_has_neither_taken_nor_refused_anything() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for mut stranger in listener.incoming().flatten() {
                let _ = stranger.read(&mut [0; 4096]);
                let _ = stranger.write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n");
            }
        });
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let endpoints = vec![endpoint(there), endpoint(gone), endpoint("x".to_owned())];
        assert_eq!(try_token(endpoints), Trial::Unanswered);
    }
}
