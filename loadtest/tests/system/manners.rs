//! What a peer may not say ends its connection with the close code of RFC 6455, on every channel; a Close of
//! its own is answered once, with its own code.

use narrowlink_loadtest::{lab::Lab, site::Transport};
use narrowlink_proto::{
    frame::{Opcode, close_payload},
    id::Uid,
    message::{Channel, Message},
    token::Kind,
};

use crate::{
    alone,
    kit::foe::{Entry, Foe, frame_of, text},
};

const FRAGMENT: usize = 60 * 1024;

/// What is said, and the code that it is answered with.
fn cases() -> Vec<(&'static str, Vec<u8>, u16)> {
    let mut long = frame_of(Opcode::Text, false, &[b' '; FRAGMENT]);
    long.extend(frame_of(Opcode::Continuation, true, &[b' '; FRAGMENT]));
    let close = |code: u16, why: &str| frame_of(Opcode::Close, true, &close_payload(code, why));
    let mut bad_code = frame_of(Opcode::Close, true, &close_payload(1000, ""));
    let at = bad_code.len() - 2;
    bad_code[at..].copy_from_slice(&999u16.to_be_bytes());
    vec![
        ("an unmasked frame", vec![0x81, 2, b'{', b'}'], 1002),
        ("a reserved bit", vec![0xc1, 0x80, 0, 0, 0, 0], 1002),
        ("an opcode without meaning", vec![0x83, 0x80, 0, 0, 0, 0], 1002),
        ("a fragmented ping", vec![0x09, 0x80, 0, 0, 0, 0], 1002),
        ("a ping whose length is not in its shortest form", vec![0x89, 0xfe, 0, 0, 0, 0, 0, 0], 1002),
        ("a long ping", vec![0x89, 0xfe, 0, 200, 0, 0, 0, 0], 1002),
        (
            "a text whose length is not in its shortest form",
            vec![0x81, 0xfe, 0, 2, 0, 0, 0, 0, b'{', b'}'],
            1002,
        ),
        ("a continuation of nothing", frame_of(Opcode::Continuation, true, b"x"), 1002),
        ("a message within another", [frame_of(Opcode::Text, false, b"{"), text(b"{}")].concat(), 1002),
        ("a frame that is too long", vec![0x81, 0xff, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0], 1009),
        ("a message that is too long", long, 1009),
        ("what is no message", text(b"{}"), 1002),
        ("a message of somebody else", text(&Message::NeedLane { count: 1 }.encode()), 1002),
        ("data where a message is due", frame_of(Opcode::Binary, true, b"x"), 1002),
        ("pings without end", frame_of(Opcode::Ping, true, b"").repeat(200), 1008),
        ("pongs without end", frame_of(Opcode::Pong, true, b"").repeat(200), 1008),
        ("a goodbye", close(1000, "bye"), 1000),
        ("a goodbye with a code of its own", close(4321, ""), 4321),
        ("a goodbye without a code", frame_of(Opcode::Close, true, b""), 1005),
        ("a goodbye with a code that none may say", bad_code, 1002),
        ("half a code", frame_of(Opcode::Close, true, b"x"), 1002),
    ]
}

fn check(channels: &[Channel], tls: bool) {
    let _turn = alone();
    let lab = Lab::start(1).unwrap();
    let transport = Transport { tls, raw: false };
    let ca_file = lab.site.dir().join("ca.pem");
    let entry = Entry::new(lab.entry(transport), tls.then_some(ca_file.as_path()));
    let token = |kind, name: &str| lab.site.token(kind, Uid::from_u128(7), name, None).unwrap();
    let client = token(Kind::Client, "foe");
    let mut wrong = Vec::new();
    for &channel in channels {
        for (index, (what, bytes, code)) in cases().into_iter().enumerate() {
            let agent = token(Kind::Agent, &format!("foe-{index}"));
            let mut link = None;
            let mut foe = match channel {
                Channel::Link => Foe::link(&entry, &client).unwrap().0,
                Channel::Stream => Foe::upgrade(&entry, channel, &client, None).unwrap(),
                Channel::Lane => {
                    let (foe, name, secret) = Foe::link(&entry, &agent).unwrap();
                    link = Some(foe);
                    Foe::lane(&entry, &agent, name, &secret).unwrap()
                }
            };
            // What the gateway has ended already can't be said to its end.
            let _ = foe.say(&bytes);
            let closes = foe.closes();
            if closes != [code] {
                wrong.push(format!("{channel:?}: {what}: {closes:?} instead of {code}"));
            }
            drop(link);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_stream_or_lane_ends_with_the_code_of_what_was_wrong() {
    check(&[Channel::Stream, Channel::Lane], false);
    check(&[Channel::Stream, Channel::Lane], true);
}

#[test]
fn a_link_ends_with_the_code_of_what_was_wrong() {
    check(&[Channel::Link], false);
    check(&[Channel::Link], true);
}
