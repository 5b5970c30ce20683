//! Role: what the tests of a client's parts have around them.

#[path = "../../dataplane/tests/kit/ends.rs"]
mod ends;

use std::{path::Path, sync::Arc};

use narrowlink_dataplane::tunnel::conn::{Conn, ConnError};
use narrowlink_proto::{
    ended::{RefusalCode, Refused},
    endpoint::SecretText,
    id::SessionId,
    message::{Channel, Message, Speaker},
    upgrade::Framing,
};

pub(crate) use self::ends::{Port, exchange, id, plain_ends, read_all, run, tcp, tunnel_ends};
use crate::{
    config::Config,
    open::Opener,
    routes::{Route, Routes},
    warm::Stream,
};

/// Gateways at these places, each with the token `x`.
pub(crate) fn config(gateways: &[&str]) -> Config {
    let endpoints = gateways
        .iter()
        .map(|gateway| format!("  - !SelfHosted {{ gateway: '{gateway}', token: x, protocol: Ws }}\n"));
    let text = format!("endpoints:\n{}", endpoints.collect::<String>());
    Config::parse(&text, Path::new("client.yaml")).unwrap()
}

pub(crate) fn routes(gateways: &[&str]) -> Routes {
    Routes::load(&config(gateways)).unwrap()
}

pub(crate) fn opener(gateways: &[&str]) -> Arc<Opener> {
    Opener::new(routes(gateways))
}

/// Replaces the token of the gateway that is preferred.
pub(crate) fn renew(routes: &Routes, token: &str) -> Arc<Route> {
    let route = routes.first();
    let newer = route.with(route.gateway.with_token(SecretText::new(token.to_owned())));
    routes.replace(newer.clone());
    newer
}

/// A stream that stands to one of these gateways, and the gateway's end of it.
pub(crate) fn stream(opener: &Opener, index: usize) -> (Stream, Conn) {
    let (conn, gateway) = tunnel_ends(Framing::Framed);
    (Stream { conn, route: opener.routes.at(index) }, gateway)
}

/// A port on loopback where nobody listens, for as long as the socket lives.
pub(crate) fn deaf() -> (std::net::UdpSocket, String) {
    let held = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = held.local_addr().unwrap().to_string();
    (held, addr)
}

pub(crate) fn no(code: RefusalCode) -> Refused {
    Refused::new(code, "no")
}

/// What the client says next on a stream.
pub(crate) async fn heard(gateway: &Conn) -> Result<Message, ConnError> {
    gateway.recv(Speaker::Client, Channel::Stream).await
}

/// The client asks for a session.
pub(crate) async fn asked(gateway: &Conn) -> SessionId {
    match heard(gateway).await.unwrap() {
        Message::Open(open) => open.session,
        other => panic!("{} where Open was due", other.name()),
    }
}

pub(crate) async fn accept(gateway: &Conn, session: SessionId) {
    gateway.send(&Message::Opened { session, e2ee: None }).await.unwrap();
}

pub(crate) async fn refuse(gateway: &Conn, session: SessionId, refused: Refused) {
    gateway.send(&Message::Refused(refused.of(session))).await.unwrap();
}

/// How many bytes have come at a gateway that nobody has read.
pub(crate) fn unread(gateway: &Conn) -> usize {
    gateway.wire().try_read(&mut [0; 4096]).unwrap_or_default()
}
