//! Role: a connection that goes over to the kernel, which is played by records of our own here.
//! See: bench's narrowlink-ktls, which does the same on a kernel that has TLS.

use rustls::{AlertDescription, ContentType};

use super::*;
use crate::tls::{
    fault::TlsError,
    info::{Direction, Info},
    kernel::{Received, System},
    record::{Opener, PLAIN_BYTES_MAX, Sealer},
    secret::{Cipher, Secret, Version},
};

/// The kernel's side of a line.
#[derive(Default)]
pub(super) struct Keys {
    opener: Option<Opener>,
    sealer: Option<Sealer>,
    /// Opened, not told.
    opened: (u8, VecDeque<u8>),
    sealed_bytes: u64,
    /// Not taken by TCP yet.
    waiting_bytes: u64,
    /// So many records were sealed that nobody saw.
    unseen_records: u64,
    refuses: bool,
    refuses_out: bool,
}

fn busy() -> io::Error {
    io::Error::from_raw_os_error(libc::EBUSY)
}

impl System for Line {
    fn attach(&self) -> io::Result<()> {
        if self.keys.borrow().refuses { Err(io::ErrorKind::NotFound.into()) } else { Ok(()) }
    }

    fn set_key(&self, direction: Direction, info: &Info) -> io::Result<()> {
        let mut keys = self.keys.borrow_mut();
        let bytes = info.bytes();
        let version = if bytes[0] == 4 { Version::Tls13 } else { Version::Tls12 };
        let (cipher, key_bytes) = match bytes[2] {
            51 => (Cipher::Aes128Gcm, 16),
            52 => (Cipher::Aes256Gcm, 32),
            _ => (Cipher::ChaCha20Poly1305, 32),
        };
        let iv_bytes = if cipher == Cipher::ChaCha20Poly1305 { 12 } else { 8 };
        let (iv, rest) = bytes[4..].split_at(iv_bytes);
        let (key, rest) = rest.split_at(key_bytes);
        let (salt, seq) = rest.split_at(12 - iv_bytes);
        let secret = Secret::new(cipher, key, [salt, iv].concat().try_into().unwrap());
        let seq = u64::from_be_bytes(seq.try_into().unwrap());
        match direction {
            Direction::In => keys.opener = Some(Opener::new(version, seq, &secret).unwrap()),
            Direction::Out if keys.refuses_out => return Err(busy()),
            Direction::Out => keys.sealer = Some(Sealer::new(version, seq, u64::MAX, &secret).unwrap()),
        }
        Ok(())
    }

    fn next_seq(&self, _: Cipher) -> io::Result<u64> {
        let keys = self.keys.borrow();
        Ok(keys.sealer.as_ref().unwrap().seq() + keys.unseen_records)
    }

    fn taken_bytes(&self) -> io::Result<u64> {
        let keys = self.keys.borrow();
        Ok(keys.sealed_bytes - keys.waiting_bytes)
    }

    fn receive(&self, buf: &mut [u8]) -> io::Result<Received> {
        let mut keys = self.keys.borrow_mut();
        if keys.opened.1.is_empty() {
            let mut came = self.to_us.borrow_mut();
            let opener = keys.opener.as_mut().unwrap();
            let record = match opener.record_bytes(came.make_contiguous()).unwrap() {
                Some(bytes) if bytes <= came.len() => came.drain(..bytes).collect::<Vec<_>>(),
                _ if self.ended.get() => return Ok(Received { bytes: 0, kind: None, whole: false }),
                _ => return Err(io::ErrorKind::WouldBlock.into()),
            };
            let mut room = vec![0; record.len()];
            let opened = opener.open(&record, &mut room);
            let (kind, bytes) = opened.map_err(|_| io::Error::from_raw_os_error(libc::EBADMSG))?;
            keys.opened = (u8::from(kind), room[..bytes].iter().copied().collect());
        }
        let kind = Some(ContentType::from(keys.opened.0));
        let bytes = keys.opened.1.read(buf).unwrap();
        Ok(Received { bytes, kind, whole: keys.opened.1.is_empty() })
    }

    fn send(&self, kind: ContentType, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.send_max.get() == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut keys = self.keys.borrow_mut();
        let plain = pieces.iter().flat_map(|piece| piece.iter().copied()).collect::<Vec<_>>();
        for part in plain.chunks(PLAIN_BYTES_MAX) {
            let sealer = keys.sealer.as_mut().unwrap();
            let mut record = vec![0; sealer.sealed_bytes(part.len())];
            sealer.seal(kind, part, &mut record).unwrap();
            keys.sealed_bytes += record.len() as u64;
            self.from_us.borrow_mut().extend(record);
        }
        Ok(plain.len())
    }
}

impl Session {
    /// Asks for it, as [`crate::tls::TlsStream::enter_kernel`] does; whether it came about.
    fn enters(&mut self, line: &Line, takes_new_keys: bool) -> bool {
        self.leave_to(line, takes_new_keys);
        matches!(self.engine, Engine::Kernel(_))
    }

    fn says(&mut self, line: &Line, mut plain: &[u8]) -> Vec<u8> {
        while !plain.is_empty() {
            plain = &plain[self.write(line, &[IoSlice::new(plain)]).unwrap()..];
        }
        assert!(self.flush(line).unwrap());
        line.take()
    }
}

fn error_of<R>(result: io::Result<R>) -> TlsError {
    let error = result.err().unwrap().into_inner().unwrap();
    error.downcast_ref::<TlsError>().unwrap().clone()
}

#[test]
fn bytes_and_ends_are_the_same_in_the_kernel_in_every_suite() {
    for suite in aws_lc_rs::ALL_CIPHER_SUITES {
        for we_serve in [false, true] {
            let (mut ours, line, mut peer) = Setup::new(vec![*suite]).connect(we_serve);
            let said = Dice(5).bytes(40_000);
            line.give(&peer.says(&said));
            assert!(ours.drain(&line, 5_000).unwrap() == said);
            assert!(peer.hears(&ours.says(&line, &said)).unwrap().0 == said);
            assert!(ours.enters(&line, true), "{suite:?}");
            for _ in 0..3 {
                line.give(&peer.says(&said));
                assert!(ours.drain(&line, 5_000).unwrap() == said, "{suite:?} {we_serve}");
                assert!(peer.hears(&ours.says(&line, &said)).unwrap().0 == said, "{suite:?} {we_serve}");
            }
            peer.0.send_close_notify();
            line.give(&peer.sends());
            assert_eq!(ours.read(&line, &mut [0; 9]).unwrap(), 0);
            assert_eq!(ours.read(&line, &mut [0; 9]).unwrap(), 0);
            assert_eq!(peer.hears(&ours.says(&line, b"more")).unwrap(), (b"more".to_vec(), false));
            ours.close(AlertDescription::CloseNotify);
            ours.close(AlertDescription::CloseNotify);
            assert!(ours.flush(&line).unwrap());
            assert_eq!(peer.hears(&line.take()).unwrap(), (vec![], true));
            let late = ours.write(&line, &[IoSlice::new(b"too late")]);
            assert_eq!(late.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        }
    }
}

#[test]
fn it_begins_behind_the_record_that_was_received_in_part_wherever_that_was_cut() {
    let said = Dice(9).bytes(300);
    for cut in 0..400 {
        let (mut ours, line, mut peer) = Setup::tls13().connect(true);
        let records = [peer.says(&said[..200]), peer.says(&said[200..])].concat();
        let (now, later) = records.split_at(cut.min(records.len()));
        line.give(now);
        let mut heard = ours.drain(&line, 64).unwrap();
        let mut inside = ours.enters(&line, true);
        line.give(later);
        line.give(&peer.says(b"behind"));
        let mut buf = [0; 1000];
        while heard.len() < 306 {
            let bytes = ours.read(&line, &mut buf).unwrap();
            heard.extend_from_slice(&buf[..bytes]);
            inside = inside || ours.enters(&line, true);
        }
        assert!(heard == [&said[..], b"behind"].concat(), "{cut}");
        assert!(inside, "{cut}");
    }
}

#[test]
fn a_kernel_that_refuses_changes_nothing_and_one_that_takes_half_ends_the_way_in() {
    let (mut ours, line, mut peer) = Setup::tls13().connect(true);
    line.keys.borrow_mut().refuses = true;
    assert!(!ours.enters(&line, true));
    line.give(&peer.says(b"hello"));
    assert_eq!(ours.drain(&line, 64).unwrap(), b"hello");
    assert_eq!(peer.hears(&ours.says(&line, b"you")).unwrap().0, b"you");
    line.keys.borrow_mut().refuses = false;
    line.keys.borrow_mut().refuses_out = true;
    assert!(!ours.enters(&line, true));
    line.give(&peer.says(b"lost"));
    assert_eq!(error_of(ours.read(&line, &mut [0; 64])), TlsError::HalfTaken);
}

#[test]
fn an_end_without_close_notify_is_an_error_in_the_kernel_too() {
    let (mut ours, line, mut peer) = Setup::tls13().connect(true);
    assert!(ours.enters(&line, true));
    line.give(&peer.says(b"this much"));
    line.ended.set(true);
    let mut buf = [0; 64];
    assert_eq!(ours.read(&line, &mut buf).unwrap(), 9);
    for _ in 0..2 {
        assert_eq!(ours.read(&line, &mut buf).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}

#[test]
fn a_new_key_is_taken_and_answered_before_anything_else_is_said() {
    let (mut ours, line, mut peer) = Setup::tls13().connect(true);
    assert!(ours.enters(&line, true));
    for room in [1, 64] {
        peer.0.refresh_traffic_keys().unwrap();
        line.give(&peer.says(b"under a new key"));
        line.send_max.set(0);
        assert_eq!(ours.drain(&line, room).unwrap(), b"under a new key");
        let blocked = ours.write(&line, &[IoSlice::new(b"not yet")]).unwrap_err();
        assert_eq!(blocked.kind(), io::ErrorKind::WouldBlock);
        assert!(!ours.flush(&line).unwrap());
        line.send_max.set(usize::MAX);
        assert_eq!(peer.hears(&ours.says(&line, b"and you")).unwrap().0, b"and you");
    }
    ours.close(AlertDescription::CloseNotify);
    assert!(ours.flush(&line).unwrap(), "nothing was counted wrong");
}

#[test]
fn where_the_kernel_can_t_change_keys_a_new_one_is_a_clear_end() {
    let (mut ours, line, mut peer) = Setup::tls13().connect(true);
    assert!(ours.enters(&line, false));
    let mut bytes = peer.says(b"before");
    peer.0.refresh_traffic_keys().unwrap();
    bytes.extend(peer.says(b"behind"));
    line.give(&bytes);
    let mut buf = [0; 64];
    assert_eq!(ours.read(&line, &mut buf).unwrap(), 6);
    assert_eq!(error_of(ours.read(&line, &mut buf)), TlsError::FixedKey);
    let told = peer.hears(&line.take()).unwrap_err();
    assert_eq!(told, Error::AlertReceived(AlertDescription::InternalError));
}

#[test]
fn a_bent_record_is_an_error_and_the_peer_is_told() {
    let (mut ours, line, mut peer) = Setup::tls13().connect(false);
    assert!(ours.drain(&line, 64).unwrap().is_empty(), "tickets came with the handshake");
    assert!(ours.enters(&line, true));
    let mut record = peer.says(b"bent");
    *record.last_mut().unwrap() ^= 1;
    line.give(&record);
    for _ in 0..2 {
        assert_eq!(error_of(ours.read(&line, &mut [0; 64])), TlsError::BadRecord);
    }
    let told = peer.hears(&line.take()).unwrap_err();
    assert_eq!(told, Error::AlertReceived(AlertDescription::BadRecordMac));
}

#[test]
fn at_the_limit_of_a_key_the_next_one_takes_over_or_the_connection_ends() {
    for (setup, renews) in [(Setup::tls13(), true), (Setup::tls13(), false), (Setup::tls12(), true)] {
        let (mut ours, line, mut peer) = setup.connect(true);
        assert!(ours.enters(&line, renews));
        line.keys.borrow_mut().unseen_records = 1 << 24;
        let mut ended = None;
        for _ in 0..2_000 {
            match ours.write(&line, &[IoSlice::new(b"word ")]) {
                Ok(bytes) => assert_eq!(bytes, 5),
                Err(e) => {
                    ended = Some(error_of::<()>(Err(e)));
                    break;
                }
            }
            if line.keys.borrow().sealer.as_ref().unwrap().seq() == 0 {
                line.keys.borrow_mut().unseen_records = 0;
            }
        }
        let heard = peer.hears(&line.take()).unwrap();
        if renews && ours.post.version() == Version::Tls13 {
            assert_eq!((ended, heard.0.len(), heard.1), (None, 10_000, false));
            assert!(line.keys.borrow().sealer.as_ref().unwrap().seq() < 1_024);
        } else {
            assert_eq!((ended, heard.1), (Some(TlsError::UsedUp), true));
            assert!(heard.0.len() < 5 * 1_024);
        }
    }
}

#[test]
fn the_last_word_is_out_only_when_tcp_has_all_that_the_kernel_sealed() {
    for setup in [Setup::tls13(), Setup::tls12()] {
        let (mut ours, line, _peer) = setup.connect(true);
        line.keys.borrow_mut().sealed_bytes = 777;
        assert!(ours.enters(&line, true));
        ours.says(&line, &[7; 100_000]);
        line.keys.borrow_mut().waiting_bytes = 1;
        assert!(ours.flush(&line).unwrap(), "before the end nobody waits for that");
        ours.close(AlertDescription::CloseNotify);
        assert!(!ours.flush(&line).unwrap());
        line.keys.borrow_mut().waiting_bytes = 0;
        assert!(ours.flush(&line).unwrap());
    }
}
