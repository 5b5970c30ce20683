//! Role: ClientHellos for tests, a real one and others made by hand.

use super::{
    ClientHello, SniffError, Sniffed, Sniffer,
    hello::{Alpn, EXTENSION_ALPN, EXTENSION_SERVER_NAME},
    sniff,
};

/// What OpenSSL 3.0 sends for `gw.example` with ALPN h2 and http/1.1; its padding follows.
const OPENSSL: &[u8] = b"\
    \x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\xf4\x57\x33\x0d\x85\xc8\xbc\x69\x70\xe1\x5d\x1e\xe2\x49\x98\
    \x52\xb6\x03\x73\x86\x8d\x5b\xbe\x74\xb0\x46\x72\x01\xc2\x6a\xe3\xa1\x20\xa5\x68\xb6\xbf\xa2\xc9\xb3\x39\
    \xd9\x1b\x2a\x47\x9b\xdf\xfa\x67\x6f\xf3\xe8\x48\xd0\x15\x41\x63\xd3\xef\x5a\x1f\xf6\xd1\xcb\xa3\x00\x24\
    \x13\x02\x13\x03\x13\x01\xc0\x2c\xc0\x30\xc0\x2b\xc0\x2f\xcc\xa9\xcc\xa8\xc0\x24\xc0\x28\xc0\x23\xc0\x27\
    \x00\x9f\x00\x9e\x00\x6b\x00\x67\x00\xff\x01\x00\x01\x8f\x00\x00\x00\x0f\x00\x0d\x00\x00\x0agw.example\
    \x00\x0b\x00\x04\x03\x00\x01\x02\x00\x0a\x00\x16\x00\x14\x00\x1d\x00\x17\x00\x1e\x00\x19\x00\x18\x01\x00\
    \x01\x01\x01\x02\x01\x03\x01\x04\x00\x23\x00\x00\x00\x10\x00\x0e\x00\x0c\x02h2\x08http/1.1\x00\x16\x00\
    \x00\x00\x17\x00\x00\x00\x0d\x00\x2a\x00\x28\x04\x03\x05\x03\x06\x03\x08\x07\x08\x08\x08\x09\x08\x0a\x08\
    \x0b\x08\x04\x08\x05\x08\x06\x04\x01\x05\x01\x06\x01\x03\x03\x03\x01\x03\x02\x04\x02\x05\x02\x06\x02\x00\
    \x2b\x00\x05\x04\x03\x04\x03\x03\x00\x2d\x00\x02\x01\x01\x00\x33\x00\x26\x00\x24\x00\x1d\x00\x20\x49\x56\
    \xc8\x48\x7c\xe3\xc4\x42\x82\x36\xef\xf8\x79\xf6\x07\x2e\x6e\x04\x3f\x68\x8d\x12\xa2\xe4\xbb\xcc\x3f\x16\
    \xa3\x44\xaf\x38\x00\x15\x00\xd1";

pub(super) fn openssl() -> Vec<u8> {
    let mut bytes = OPENSSL.to_vec();
    bytes.resize(517, 0);
    bytes
}

pub(super) fn block16(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

pub(super) fn extension(kind: u16, value: &[u8]) -> Vec<u8> {
    [kind.to_be_bytes().to_vec(), block16(value)].concat()
}

pub(super) fn server_name(name: &[u8]) -> Vec<u8> {
    extension(EXTENSION_SERVER_NAME, &block16(&[&[0], &*block16(name)].concat()))
}

pub(super) fn alpn(protocols: &[&str]) -> Vec<u8> {
    let list: Vec<u8> = protocols.iter().flat_map(|p| [&[p.len() as u8], p.as_bytes()].concat()).collect();
    extension(EXTENSION_ALPN, &block16(&list))
}

/// A key share as large as that of X25519MLKEM768.
pub(super) fn key_share() -> Vec<u8> {
    extension(51, &block16(&[&[0x11, 0xec], &*block16(&[0xab; 1216])].concat()))
}

pub(super) fn message(body: &[u8]) -> Vec<u8> {
    [&[1, 0], &*block16(body)].concat()
}

/// A ClientHello's body; `None` leaves out even the length of the extensions.
pub(super) fn body(extensions: Option<&[Vec<u8>]>) -> Vec<u8> {
    let mut out = [&[3, 3][..], &[7; 32], &[32], &[8; 32], &[0, 2, 0x13, 1], &[1, 0]].concat();
    out.extend(extensions.map(|all| block16(&all.concat())).unwrap_or_default());
    out
}

pub(super) fn hello(extensions: &[Vec<u8>]) -> Vec<u8> {
    message(&body(Some(extensions)))
}

/// A hello with a body of exactly so many bytes.
pub(super) fn hello_of(body_bytes: usize) -> Vec<u8> {
    let name = server_name(b"gw.example");
    let padding = body_bytes - body(Some(&[name.clone(), extension(21, &[])])).len();
    hello(&[name, extension(21, &vec![0; padding])])
}

pub(super) fn in_records(message: &[u8], bytes_max: usize) -> Vec<u8> {
    message.chunks(bytes_max).flat_map(|piece| [&[22, 3, 1], &*block16(piece)].concat()).collect()
}

/// The verdict on the whole, once it is shown that nobody hears another one on the way to it.
pub(super) fn check(early: &[u8]) -> Result<Sniffed, SniffError> {
    let whole = sniff(early);
    let mut sniffer = Sniffer::default();
    let mut first = Ok(Sniffed::NeedMore);
    for cut in 0..=early.len() {
        first = sniff(&early[..cut]);
        assert_eq!(sniffer.sniff(&early[..cut]), first, "bit by bit to {cut} of {early:x?}");
        if first != Ok(Sniffed::NeedMore) {
            break;
        }
    }
    assert_eq!(first, whole, "{early:x?}");
    whole
}

pub(super) fn expected(name: Option<&str>, protocols: &[&str]) -> Result<Sniffed, SniffError> {
    let list = protocols.iter().flat_map(|p| [&[p.len() as u8], p.as_bytes()].concat()).collect();
    Ok(Sniffed::Tls(ClientHello { server_name: name.map(str::to_owned), alpn: Alpn::of(list) }))
}
