//! Role: tungstenite at the other end, for the upgrade and for the frames behind it.

use std::io::{self, Read, Write};

use tungstenite::{
    ClientRequestBuilder, Message as TheirMessage, WebSocket,
    handshake::{HandshakeError, server},
    http::HeaderValue,
    protocol::CloseFrame,
};

use super::*;
use crate::frame::{self, Expect, HEADER_BYTES_MAX, Header, Opcode};

/// A connection in memory: what we wrote for the other end, and what it wrote.
#[derive(Debug, Default)]
struct Wire {
    to_them: Vec<u8>,
    from_them: Vec<u8>,
}

impl Read for Wire {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.to_them.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let bytes = self.to_them.as_slice().read(buf)?;
        self.to_them.drain(..bytes);
        Ok(bytes)
    }
}

impl Write for Wire {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.from_them.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const PROTOCOL: Protocol = Protocol { channel: Channel::Link, framing: Framing::Framed };

fn their_client() -> WebSocket<Wire> {
    let request = ClientRequestBuilder::new("ws://gw.example/ws".parse().unwrap())
        .with_header("Authorization", "Bearer aaa.bbb.ccc")
        .with_sub_protocol(PROTOCOL.name());
    let Err(HandshakeError::Interrupted(mut waiting)) = tungstenite::client(request, Wire::default()) else {
        panic!("a client waits for the answer");
    };
    let wire = waiting.get_mut().get_mut();
    let Ok(Head::Upgrade { request, head_bytes }) = parse_request(&wire.from_them) else {
        panic!("{}", wire.from_them.escape_ascii());
    };
    assert_eq!((request.protocol, &*request.token, &*request.host), (PROTOCOL, "aaa.bbb.ccc", "gw.example"));
    assert_eq!(head_bytes, wire.from_them.len());
    wire.from_them.clear();
    wire.to_them = encode_accept(&request.key, request.protocol, None, None);
    waiting.handshake().unwrap().0
}

fn their_server() -> WebSocket<Wire> {
    let request = Request {
        protocol: PROTOCOL,
        token: "aaa.bbb.ccc".into(),
        key: [7; 16],
        open: None,
        lane: None,
        host: "gw.example".into(),
        origin: None,
        way: Way::default(),
    };
    let wire = Wire { to_them: encode_request(&request), from_them: Vec::new() };
    #[expect(clippy::result_large_err, reason = "the oracle's own type")]
    let agree = |theirs: &server::Request, mut response: server::Response| {
        assert_eq!(
            (theirs.uri().path(), &theirs.headers()["authorization"]),
            (PATH, &HeaderValue::from_static("Bearer aaa.bbb.ccc"))
        );
        let offered = theirs.headers()["sec-websocket-protocol"].clone();
        response.headers_mut().insert("sec-websocket-protocol", offered);
        Ok(response)
    };
    let mut socket = tungstenite::accept_hdr(wire, agree).unwrap();
    let answer = std::mem::take(&mut socket.get_mut().from_them);
    let head_bytes = answer.len();
    let accepted = Answer::Accepted { opened: None, way: Way::default(), head_bytes };
    assert_eq!(parse_response(&answer, &request.key, PROTOCOL), Ok(accepted), "{}", answer.escape_ascii());
    socket
}

/// What they said, taken frame by frame.
fn hear(socket: &mut WebSocket<Wire>, expect: Expect) -> Vec<(Opcode, Vec<u8>)> {
    let bytes = std::mem::take(&mut socket.get_mut().from_them);
    let (mut rest, mut heard) = (&bytes[..], Vec::new());
    while let Some((header, header_len)) = frame::decode(rest, expect, u64::MAX).unwrap() {
        let (payload, after) = rest[header_len..].split_at(header.payload_bytes as usize);
        let mut payload = payload.to_vec();
        frame::mask(&mut payload, header.mask.unwrap_or_default(), 0);
        heard.push((header.opcode, payload));
        rest = after;
    }
    assert!(rest.is_empty(), "half a frame is left");
    heard
}

fn say(socket: &mut WebSocket<Wire>, opcode: Opcode, mask: Option<[u8; 4]>, payload: &[u8]) {
    let mut header = [0; HEADER_BYTES_MAX];
    let payload_bytes = payload.len() as u64;
    let header_len = frame::encode(&Header { fin: true, opcode, mask, payload_bytes }, &mut header);
    let mut payload = payload.to_vec();
    frame::mask(&mut payload, mask.unwrap_or_default(), 0);
    socket.get_mut().to_them.extend_from_slice(&[&header[..header_len], &payload].concat());
}

/// Talks in both directions over a finished handshake, and ends it.
fn talk(mut socket: WebSocket<Wire>, expect: Expect, our_mask: Option<[u8; 4]>) {
    for bytes in [0, 1, 7, 125, 126, 4096, 65_535, 65_536, 100_000] {
        let payload: Vec<u8> = (0..bytes).map(|i: u32| (i * 31 % 251) as u8).collect();
        socket.send(TheirMessage::Binary(payload.clone().into())).unwrap();
        assert_eq!(hear(&mut socket, expect), [(Opcode::Binary, payload.clone())]);
        say(&mut socket, Opcode::Binary, our_mask, &payload);
        assert_eq!(socket.read().unwrap(), TheirMessage::Binary(payload.into()));
    }
    socket.send(TheirMessage::text("{}")).unwrap();
    assert_eq!(hear(&mut socket, expect), [(Opcode::Text, b"{}".to_vec())]);
    say(&mut socket, Opcode::Ping, our_mask, b"still there?");
    assert_eq!(socket.read().unwrap(), TheirMessage::Ping("still there?".into()));
    socket.flush().unwrap();
    assert_eq!(hear(&mut socket, expect), [(Opcode::Pong, b"still there?".to_vec())]);
    say(&mut socket, Opcode::Close, our_mask, &frame::close_payload(1008, "enough"));
    let close = CloseFrame { code: 1008.into(), reason: "enough".into() };
    assert_eq!(socket.read().unwrap(), TheirMessage::Close(Some(close)));
    // A server has nothing left to wait for once its own close is out.
    assert!(matches!(socket.flush(), Ok(()) | Err(tungstenite::Error::ConnectionClosed)));
    let [(Opcode::Close, payload)] = &hear(&mut socket, expect)[..] else { panic!("a close is answered") };
    assert_eq!(frame::parse_close(payload), Ok(Some((1008, "enough"))));
}

#[test]
fn a_client_of_tungstenite_and_our_gateway_understand_each_other() {
    talk(their_client(), Expect::Masked, None);
}

#[test]
fn our_client_and_a_server_of_tungstenite_understand_each_other() {
    talk(their_server(), Expect::Unmasked, Some([0xa5, 1, 0, 0xff]));
    talk(their_server(), Expect::Unmasked, Some([0; 4]));
}
