//! Role: a link at the gateway: set-up, what an agent or a client asks on it, what it is told.
//! Invariants: a link that is down is said to be so everywhere · who must go is not heard.
//! See: `tunnel::link`; ARCHITECTURE.md "The wire".

use std::{
    future::Future,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_channel::Receiver;
use futures_lite::future;
use narrowlink_proto::{
    ended::Why,
    feature::Features,
    id::{LinkId, Nonce},
    message::{Goodbye, GoodbyeCode, Message, Speaker, VERSION},
};
use tungstenite::protocol::{Role, frame::coding::CloseCode};

use crate::{
    gateway::{
        directory::{AgentEntry, LinkOrder},
        door::{LinkGrant, LinkRequest},
        local::Local,
        mailbox::Note,
        principal::Principal,
        table::Seat,
        usage::Slot,
    },
    run::timer::{sleep_until, timeout},
    transport::wire::Wire,
    tunnel::link::{Heard, LinkError, LinkSocket},
};

/// What this gateway can do beyond the version.
const OWN: Features = Features::NONE;
/// Agents in one message of a list: below 64 KiB with the longest names.
const AGENTS_PER_MESSAGE: usize = 100;
/// Orders that wait: lanes are asked for once until the agent is told, and who says goodbye says it once.
const ORDERS_MAX: usize = 4;
/// Set-up of a link, each side.
const SET_UP_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves a link until it ends. Its sessions and lanes go on by themselves. (No `async fn`: one stores
/// its arguments twice.)
pub(crate) fn serve(
    local: Rc<Local>,
    wire: Wire,
    principal: Arc<Principal>,
    peer_addr: SocketAddr,
    (seat, slot): (Seat, Slot),
) -> impl Future<Output = ()> {
    let mut socket = Box::new(LinkSocket::new(wire, Role::Server, principal.speaker, &local.shared.limits()));
    async move {
        let _slot = slot;
        let (orders, taken) = async_channel::bounded(ORDERS_MAX);
        // Boxed, so that a link that stands holds nothing of it.
        let set_up = Box::pin(introduce(&local, &mut socket, &principal, peer_addr, orders));
        let grant = match timeout(SET_UP_TIMEOUT, set_up).await {
            Ok(Ok(grant)) => grant,
            Ok(Err(LinkError::Goodbye(goodbye))) => return socket.close(Some(goodbye), CloseCode::Policy),
            Ok(Err(e)) => {
                tracing::debug!(peer = %peer_addr, name = principal.name, "a link was not set up: {e}");
                return Box::pin(socket.end(e)).await;
            }
            Err(_) => return,
        };
        let LinkGrant { link, agent, .. } = grant;
        let mut up = Up { socket, agent };
        tracing::info!(peer = %peer_addr, uid = %principal.uid, name = principal.name, role = ?principal.speaker, "link up");
        let ended = Box::new(converse(&local, &mut up, &principal, &seat, &taken).await);
        tracing::info!(peer = %peer_addr, uid = %principal.uid, name = principal.name, "link down: {ended}");
        Box::pin(take_down(&local, up, link, ended)).await;
    }
}

/// A link that stands.
struct Up {
    socket: Box<LinkSocket>,
    /// At its other end, if that is an agent.
    agent: Option<Arc<AgentEntry>>,
}

/// Says everywhere that a link is down, and to its peer why.
async fn take_down(local: &Local, up: Up, link: LinkId, ended: Box<LinkError>) {
    if let Some(agent) = up.agent {
        agent.set_link_down();
        if let LinkError::Silent(_) = *ended {
            // A process that hangs, while its kernel goes on answering for it.
            agent.principal.vanished.store(true, Ordering::Release);
            local.shared.mailboxes.tell_all_soon(|| Note::Lost(link)).await;
        } else {
            local.shared.mailboxes.tell_all_now(|| Note::LinkDown(link));
        }
    }
    local.shared.door.release_link(link);
    up.socket.end(*ended).await;
}

/// Hello, Present, Welcome.
async fn introduce(
    local: &Local,
    socket: &mut LinkSocket,
    principal: &Arc<Principal>,
    peer_addr: SocketAddr,
    orders: async_channel::Sender<LinkOrder>,
) -> Result<LinkGrant, LinkError> {
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce)?;
    let nonce = Nonce::from_bytes(nonce);
    socket.send(&Message::Hello { version: VERSION, features: OWN, nonce })?;
    let Message::Present { version, features, instance } = socket.recv().await? else {
        return Err(LinkError::Unexpected("something else where Present was due"));
    };
    if version != VERSION {
        return Err(LinkError::Goodbye(Goodbye {
            code: GoodbyeCode::Protocol,
            reason: format!("this gateway speaks version {VERSION} of the protocol, not {version}"),
        }));
    }
    let (answer, answered) = async_channel::bounded(1);
    let principal = principal.clone();
    let request = LinkRequest { principal, peer_addr, features, nonce, instance, orders, answer };
    local.shared.door.claim_link(request);
    let grant = answered.recv().await.map_err(|_| LinkError::Closed)?.map_err(LinkError::Goodbye)?;
    socket.send(&Message::Welcome { link: grant.link, secret: grant.secret.clone() })?;
    Ok(grant)
}

enum Next {
    Heard(Heard),
    Order(LinkOrder),
}

/// Serves until something ends the link; returns what.
async fn converse(
    local: &Local,
    up: &mut Up,
    principal: &Principal,
    seat: &Seat,
    orders: &Receiver<LinkOrder>,
) -> LinkError {
    loop {
        let next = {
            let heard = async { up.socket.hear().await.map(Next::Heard) };
            let order = async { orders.recv().await.map(Next::Order).map_err(|_| LinkError::Closed) };
            let expiry = async {
                sleep_until(principal.expires_at).await;
                Err(LinkError::Goodbye(Goodbye {
                    code: GoodbyeCode::Unauthenticated,
                    reason: "the token has expired".to_owned(),
                }))
            };
            let dismissed = async {
                let reason = match seat.dismissed().await {
                    Why::Expired => "the token has expired",
                    Why::SecretRetired => "the secret that signed the token is in use no more",
                    _ => "the token was revoked",
                };
                let reason = reason.to_owned();
                Err(LinkError::Goodbye(Goodbye { code: GoodbyeCode::Unauthenticated, reason }))
            };
            // Who must go is not heard.
            future::or(future::or(expiry, dismissed), future::or(order, heard)).await
        };
        let done = match next {
            Ok(Next::Heard(Heard::Answered(round_trip))) => {
                if let Some(agent) = &up.agent {
                    agent.set_ping_us(u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX));
                }
                Ok(())
            }
            Ok(Next::Heard(Heard::Message(Message::List))) if principal.speaker == Speaker::Client => {
                send_list(local, &mut up.socket, principal)
            }
            Ok(Next::Heard(Heard::Message(_))) => {
                Err(LinkError::Unexpected("a message that has no place on this link"))
            }
            Ok(Next::Order(LinkOrder::NeedLane)) => match &up.agent {
                Some(agent) => match agent.telling_need() {
                    0 => Ok(()),
                    count => up.socket.send(&Message::NeedLane { count }),
                },
                None => Ok(()),
            },
            Ok(Next::Order(LinkOrder::Goodbye(goodbye))) => Err(LinkError::Goodbye(goodbye)),
            Err(e) => Err(e),
        };
        if let Err(e) = done {
            return e;
        }
    }
}

fn send_list(local: &Local, socket: &mut LinkSocket, principal: &Principal) -> Result<(), LinkError> {
    let agents = local.shared.door.list(principal);
    let mut rest = agents.as_slice();
    loop {
        let (now, later) = rest.split_at(rest.len().min(AGENTS_PER_MESSAGE));
        socket.send(&Message::Agents { agents: now.to_vec(), more: !later.is_empty() })?;
        if later.is_empty() {
            return Ok(());
        }
        rest = later;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn future_bytes<A, F>(_: impl FnOnce(A) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_link_s_task_is_small() {
        let bytes = future_bytes(|(local, wire, principal, peer_addr, seat)| {
            serve(local, wire, principal, peer_addr, seat)
        });
        let socket = size_of::<LinkSocket>();
        // With the runtime's header, of a task: the allocator's classes are 512, 640, 768, 896, 1,024.
        assert!(bytes <= 896 && socket <= 512, "{bytes}, {socket}");
    }
}
