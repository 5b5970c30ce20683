//! Role: messages and data on a framed connection whose upgrade is done, as cheaply as can be.
//! Invariants: what is queued goes out in one write · payload is counted, never kept.
//! See: `narrowlink_proto::frame`.

use std::io;

use narrowlink_dataplane::{
    transport::wire::Wire,
    tunnel::deframe::{DATA_FRAME_BYTES_MAX, Deframer, Event},
};
use narrowlink_proto::{
    frame::{self, Expect, HEADER_BYTES_MAX, Header, Opcode},
    message::{Channel, Message, Speaker},
};

/// More than any message of a measured exchange.
const READ_BYTES: usize = 4096;

/// What came.
#[derive(Debug)]
pub enum Got {
    /// So many bytes of payload.
    Data(usize),
    /// A message.
    Message(Message),
}

/// One framed connection.
pub struct Frames {
    wire: Wire,
    channel: Channel,
    deframer: Deframer,
    buf: Box<[u8; READ_BYTES]>,
    at: usize,
    len: usize,
    out: Vec<u8>,
    key: [u8; 4],
}

impl Frames {
    /// Takes a connection of a peer of the gateway, at a message boundary.
    pub fn new(wire: Wire, channel: Channel) -> Self {
        let key = mask_key(&wire);
        let deframer = Deframer::new(Expect::Unmasked);
        let buf = Box::new([0; READ_BYTES]);
        Self { wire, channel, deframer, buf, at: 0, len: 0, out: Vec::new(), key }
    }

    /// Queues payload.
    pub fn put_data(&mut self, payload: &[u8]) {
        put(&mut self.out, Opcode::Binary, payload, self.key);
    }

    /// Queues a message.
    pub fn put(&mut self, message: &Message) {
        put(&mut self.out, Opcode::Text, &message.encode(), self.key);
    }

    /// Sends what is queued.
    ///
    /// # Errors
    /// The connection's end.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.wire.write_all(&self.out).await?;
        self.out.clear();
        Ok(())
    }

    /// The next message, or the next payload.
    ///
    /// # Errors
    /// The connection's end, or what is no message.
    pub async fn next(&mut self) -> io::Result<Got> {
        loop {
            let event = self.deframer.next(&mut self.buf[..self.len], &mut self.at);
            match event.map_err(io::Error::other)? {
                Some(Event::Data { range, .. }) => return Ok(Got::Data(range.len())),
                Some(Event::Text(text)) => {
                    let message = Message::decode(&text, Speaker::Gateway, self.channel);
                    return Ok(Got::Message(message.map_err(io::Error::other)?));
                }
                Some(Event::Ping(payload)) => {
                    put(&mut self.out, Opcode::Pong, &payload, self.key);
                    self.flush().await?;
                }
                Some(Event::Pong(_) | Event::Empty | Event::Part) => {}
                Some(Event::Close(said)) => {
                    let (_, why) = said.unwrap_or_default();
                    return Err(io::Error::other(format!("the gateway closed the connection: {why}")));
                }
                None => {
                    (self.at, self.len) = (0, self.wire.read(&mut self.buf[..]).await?);
                    if self.len == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
            }
        }
    }
}

fn put(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8], key: [u8; 4]) {
    let mut head = [0; HEADER_BYTES_MAX];
    let header = Header { fin: true, opcode, mask: Some(key), payload_bytes: payload.len() as u64 };
    let len = frame::encode(&header, &mut head);
    out.extend_from_slice(&head[..len]);
    let start = out.len();
    out.extend_from_slice(payload);
    frame::mask(&mut out[start..], key, 0);
}

/// As agent and client do: zero over TLS.
fn mask_key(wire: &Wire) -> [u8; 4] {
    if wire.is_tls() { [0; 4] } else { [0x9d, 0x3b, 0x71, 0xe5] }
}

/// About `bytes` of data in whole frames, each as long as it may be, masked already: to be sent over and
/// over again.
pub fn whole_frames(wire: &Wire, bytes: usize) -> Vec<u8> {
    #[expect(clippy::cast_possible_truncation, reason = "128 KiB")]
    let payload = vec![0x5a; DATA_FRAME_BYTES_MAX as usize];
    let mut out = Vec::with_capacity(bytes);
    while out.is_empty() || out.len() + payload.len() <= bytes + HEADER_BYTES_MAX * 4 {
        put(&mut out, Opcode::Binary, &payload, mask_key(wire));
    }
    out
}
