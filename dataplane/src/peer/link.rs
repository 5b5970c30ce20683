//! Role: a link as an agent or a client has it: set-up, what the gateway says, the end.
//! See: `link`; ARCHITECTURE.md "The wire".

use std::time::Duration;

use narrowlink_proto::{
    feature::Features,
    id::{LinkId, LinkSecret, Nonce},
    limits::Limits,
    message::{Channel, Instance, Message, Speaker, VERSION},
    upgrade::{Framing, Protocol},
};
use tungstenite::protocol::{Role, frame::coding::CloseCode};

use crate::{
    peer::open::{self, Ask, Gateway},
    run::timer::timeout,
    transport::wire::Wire,
    tunnel::{
        link::{LinkError, LinkSocket},
        quiet::Quiet,
    },
};

/// A link as an agent or a client holds it.
pub struct PeerLink {
    /// The link's name.
    pub link: LinkId,
    /// What lanes of this link prove themselves with.
    pub secret: LinkSecret,
    /// What the gateway can do beyond the version.
    pub features: Features,
    socket: LinkSocket,
}

/// Sets a link up, for a program that can do this much beyond the version; an agent signs the gateway's nonce with its
/// instance key.
///
/// # Errors
/// See [`LinkError`].
pub async fn join(
    gateway: &Gateway,
    own: Features,
    sign: Option<&dyn Fn(&Nonce) -> Instance>,
    patience: Duration,
) -> Result<PeerLink, LinkError> {
    let protocol = Protocol { channel: Channel::Link, framing: Framing::Framed };
    let (conn, _) = open::open(gateway, protocol, Ask::Nothing, patience).await?;
    let wire = Quiet::of(Box::new(conn)).ok().and_then(Quiet::into_wire);
    let wire = wire.ok_or(LinkError::Unexpected("a frame before it was asked"))?;
    introduce(wire, own, sign, patience).await
}

/// Hears the gateway's Hello and leaves: the link is never one, so that it takes nobody's place.
///
/// # Errors
/// See [`LinkError`].
pub(super) async fn greet(wire: Wire, patience: Duration) -> Result<(), LinkError> {
    let mut socket = LinkSocket::new(wire, Role::Client, Speaker::Gateway, &Limits::default());
    let heard = timeout(patience, expect(&mut socket)).await.unwrap_or(Err(LinkError::Silent(patience)));
    match heard? {
        Message::Hello { version: VERSION, .. } => {
            socket.close(None, CloseCode::Normal);
            Ok(())
        }
        Message::Hello { version, .. } => Err(LinkError::Version { theirs: version }),
        _ => Err(LinkError::Unexpected("something else where Hello was due")),
    }
}

/// Hello, Present, Welcome.
pub(super) async fn introduce(
    wire: Wire,
    own: Features,
    sign: Option<&dyn Fn(&Nonce) -> Instance>,
    patience: Duration,
) -> Result<PeerLink, LinkError> {
    let mut socket = LinkSocket::new(wire, Role::Client, Speaker::Gateway, &Limits::default());
    let welcome = async {
        let Message::Hello { version, features, nonce } = expect(&mut socket).await? else {
            return Err(LinkError::Unexpected("something else where Hello was due"));
        };
        if version != VERSION {
            return Err(LinkError::Version { theirs: version });
        }
        let instance = sign.map(|sign| sign(&nonce));
        socket.send(&Message::Present { version: VERSION, features: own, instance })?;
        match expect(&mut socket).await? {
            Message::Welcome { link, secret } => Ok((link, secret, features)),
            _ => Err(LinkError::Unexpected("something else where Welcome was due")),
        }
    };
    match timeout(patience, welcome).await.unwrap_or(Err(LinkError::Silent(patience))) {
        Ok((link, secret, features)) => Ok(PeerLink { link, secret, features, socket }),
        Err(e) => {
            // The gateway hears of it, too: not only a reset.
            if let Some(code) = e.close_code() {
                socket.close(None, code);
            }
            Err(e)
        }
    }
}

async fn expect(socket: &mut LinkSocket) -> Result<Message, LinkError> {
    match socket.recv().await? {
        Message::Goodbye(goodbye) => Err(LinkError::Goodbye(goodbye)),
        other => Ok(other),
    }
}

impl PeerLink {
    /// The next message of the gateway; pings are seen to meanwhile. Dropping the future loses
    /// nothing.
    ///
    /// # Errors
    /// The link is no more: [`LinkError::Goodbye`] when the gateway said why.
    pub async fn next(&mut self) -> Result<Message, LinkError> {
        expect(&mut self.socket).await
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The link is no more.
    pub fn send(&mut self, message: &Message) -> Result<(), LinkError> {
        self.socket.send(message)
    }

    /// Ends the link in good order.
    pub fn close(self) {
        self.socket.close(None, CloseCode::Normal);
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::{self, zip};
    use narrowlink_proto::{
        feature::Feature,
        frame::{self, Opcode},
        id::LaneId,
        message::{Goodbye, GoodbyeCode},
    };

    use super::*;
    use crate::{
        net::memory::{Memory, Room},
        tunnel::{
            conn,
            far_end::{CALLS, FarEnd, Then, in_calls_of, never, run},
        },
    };

    const LINK: LinkId = LinkId::from_bytes([3; 32]);
    const NONCE: Nonce = Nonce::from_bytes([2; 32]);

    /// A connection to a gateway, and who plays that.
    fn connected(room: Room) -> (Wire, FarEnd) {
        let (near, far) = Memory::pair(room);
        (near.into(), FarEnd::new(far, Framing::Framed, conn::Role::Peer))
    }

    fn hello(version: u32) -> Message {
        Message::Hello { version, features: Features::NONE.with(Feature::EndToEnd), nonce: NONCE }
    }

    fn welcome() -> Message {
        Message::Welcome { link: LINK, secret: LinkSecret::from_bytes([4; 32]) }
    }

    fn goodbye() -> Message {
        Message::Goodbye(Goodbye { code: GoodbyeCode::NameTaken, reason: "another holds this name".into() })
    }

    fn sign(nonce: &Nonce) -> Instance {
        Instance { key: "key".into(), signature: nonce.to_string() }
    }

    /// Reads a link's frames up to its Present.
    async fn hear_present(far: &FarEnd) -> Message {
        loop {
            for (opcode, payload) in far.hear_frames(1).await {
                if opcode == Opcode::Text {
                    return Message::decode(&payload, Speaker::Agent, Channel::Link).unwrap();
                }
            }
        }
    }

    /// A link that stands.
    async fn joined(room: Room) -> (PeerLink, FarEnd) {
        let (wire, far) = connected(room);
        far.say(&[far.message(&hello(VERSION)), far.message(&welcome())].concat());
        let joining = introduce(wire, Features::NONE, None, Duration::MAX);
        let (link, _) = zip(joining, hear_present(&far)).await;
        (link.expect("it stands"), far)
    }

    #[test]
    fn who_only_greets_leaves_without_a_word_of_its_own() {
        run(async {
            let (wire, far) = connected(in_calls_of(usize::MAX));
            far.say(&far.message(&hello(VERSION)));
            greet(wire, Duration::MAX).await.expect("it says hello");
            let frames = far.hear_frames(1).await;
            assert_eq!(frames.iter().map(|(opcode, _)| *opcode).collect::<Vec<_>>(), [Opcode::Close]);
            for (said, due) in
                [(hello(VERSION + 1), "version"), (goodbye(), "another holds"), (welcome(), "due")]
            {
                let (wire, far) = connected(in_calls_of(usize::MAX));
                far.say(&far.message(&said));
                let why = greet(wire, Duration::MAX).await.expect_err("no hello of ours").to_string();
                assert!(why.contains(due), "{why}");
            }
        });
    }

    #[test]
    fn a_link_stands_after_hello_present_and_welcome() {
        run(async {
            for call_bytes in CALLS {
                let (wire, far) = connected(in_calls_of(call_bytes));
                let own = Features::NONE.with(Feature::Datagrams);
                let gateway = async {
                    far.say(&far.message(&hello(VERSION)));
                    let Message::Present { version, features, instance } = hear_present(&far).await else {
                        panic!("no Present");
                    };
                    assert_eq!((version, features, instance), (VERSION, own, Some(sign(&NONCE))));
                    far.say(&far.message(&welcome()));
                };
                let (link, ()) = zip(introduce(wire, own, Some(&sign), Duration::MAX), gateway).await;
                let link = link.expect("it stands");
                assert_eq!(link.link, LINK);
                assert!(link.features.has(Feature::EndToEnd) && !link.features.has(Feature::Datagrams));
                let lane = LaneId::from_bytes([5; 32]);
                let proof = link.secret.prove_lane(&LINK, &lane);
                assert!(LinkSecret::from_bytes([4; 32]).permits_lane(&LINK, &lane, &proof));
            }
        });
    }

    #[test]
    fn a_client_signs_nothing() {
        run(async {
            let (wire, far) = connected(Room::default());
            far.say(&far.message(&hello(VERSION)));
            let joining = introduce(wire, Features::NONE, None, Duration::MAX);
            let joining = never(async { joining.await.err() });
            let said = future::or(hear_present(&far), joining).await;
            assert!(matches!(said, Message::Present { instance: None, .. }), "{said:?}");
        });
    }

    #[test]
    fn a_gateway_that_says_anything_else_has_no_link_of_ours() {
        let lanes = || Message::NeedLane { count: 1 };
        let is_unexpected = |e: &LinkError| matches!(e, LinkError::Unexpected(_));
        let is_goodbye =
            |e: &LinkError| matches!(e, LinkError::Goodbye(g) if g.code == GoodbyeCode::NameTaken);
        let is_version = |e: &LinkError| matches!(e, LinkError::Version { theirs: 2 });
        let is_message = |e: &LinkError| matches!(e, LinkError::Message(_));
        type Verdict = fn(&LinkError) -> bool;
        let table: [(Vec<Message>, Verdict); 8] = [
            (vec![lanes()], is_unexpected),
            (vec![welcome()], is_unexpected),
            (vec![goodbye()], is_goodbye),
            (vec![hello(VERSION + 1)], is_version),
            (vec![Message::List], is_message),
            (vec![hello(VERSION), hello(VERSION)], is_unexpected),
            (vec![hello(VERSION), goodbye()], is_goodbye),
            (vec![hello(VERSION), Message::Retire], is_message),
        ];
        run(async {
            for (n, (said, is_it)) in table.into_iter().enumerate() {
                let (wire, far) = connected(Room::default());
                for message in said {
                    far.say(&far.message(&message));
                }
                let error = introduce(wire, Features::NONE, None, Duration::MAX).await.err().unwrap();
                assert!(is_it(&error), "{n}: {error}");
                let (got, then) = far.heard();
                let closes = far.frames(&got).into_iter().filter(|(opcode, _)| *opcode == Opcode::Close);
                assert_eq!((closes.count(), then), (1, Then::End), "{n}: the gateway hears of it");
            }
        });
    }

    #[test]
    fn a_gateway_that_says_nothing_is_waited_for_no_longer_than_that() {
        run(async {
            for said in [vec![], vec![hello(VERSION)]] {
                let (wire, far) = connected(Room::default());
                for message in said {
                    far.say(&far.message(&message));
                }
                let patience = Duration::from_millis(30);
                let error = introduce(wire, Features::NONE, None, patience).await.err().unwrap();
                assert!(matches!(error, LinkError::Silent(waited) if waited == patience), "{error}");
            }
        });
    }

    #[test]
    fn a_link_brings_what_the_gateway_says_until_its_goodbye() {
        run(async {
            let (mut link, far) = joined(Room::default()).await;
            for count in 1..4 {
                far.say(&far.frame(Opcode::Ping, b"still there?"));
                far.say(&far.message(&Message::NeedLane { count }));
                let heard = link.next().await.unwrap();
                assert!(matches!(heard, Message::NeedLane { count: heard } if heard == count), "{heard:?}");
            }
            far.say(&far.message(&goodbye()));
            let error = link.next().await.unwrap_err();
            assert_eq!(error.to_string(), "another holds this name");
        });
    }

    #[test]
    fn what_is_said_on_a_link_arrives_and_so_does_its_end() {
        run(async {
            let (mut link, far) = joined(Room::default()).await;
            far.heard();
            link.send(&Message::List).unwrap();
            link.close();
            let (got, then) = far.heard();
            let close = (Opcode::Close, frame::close_payload(1000, ""));
            assert_eq!(far.frames(&got), [(Opcode::Text, Message::List.encode()), close]);
            assert_eq!(then, Then::End);
        });
    }
}
