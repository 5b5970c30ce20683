//! Role: our records against the library's, in every suite and both roles.

use super::*;

fn every_suite(mut with: impl FnMut(SupportedCipherSuite, bool)) {
    for suite in aws_lc_rs::ALL_CIPHER_SUITES {
        for we_serve in [false, true] {
            with(*suite, we_serve);
        }
    }
}

#[test]
fn bytes_go_both_ways_unchanged_in_every_suite_whatever_the_sizes() {
    every_suite(|suite, we_serve| {
        let (mut ours, line, mut peer) = Setup::new(vec![suite]).connect(we_serve);
        assert_eq!(peer.0.negotiated_cipher_suite(), Some(suite));
        let mut dice = Dice(0x1234_5678);
        for round in 0..60 {
            let most = [40, 3_000, 20_000, 400_000][round % 4];
            let plain = {
                let n = 1 + dice.below(most);
                dice.bytes(n)
            };
            line.recv_max.set(1 + dice.below([7, 5_000, 1 << 20][round % 3]));
            line.give(&peer.says(&plain));
            let room = 1 + dice.below([9, 2_048, 16_384, 262_144][(round / 2) % 4]);
            assert!(ours.drain(&line, room).unwrap() == plain, "{suite:?} {we_serve} {round}");

            let answer = {
                let n = 1 + dice.below(most);
                dice.bytes(n)
            };
            let (first, rest) = answer.split_at(dice.below(answer.len().min(20)));
            let (second, third) = rest.split_at(dice.below(rest.len()));
            let mut pieces =
                [IoSlice::new(first), IoSlice::new(second), IoSlice::new(&[]), IoSlice::new(third)];
            let mut left = &mut pieces[..];
            let mut heard = Vec::new();
            while !left.is_empty() {
                let accepted = ours.write(&line, left).unwrap();
                IoSlice::advance_slices(&mut left, accepted);
                heard.extend(peer.hears(&line.take()).unwrap().0);
            }
            assert!(heard == answer, "{suite:?} {we_serve} {round}");
            assert!(!ours.holds_memory());
        }
    });
}

#[test]
fn each_direction_ends_by_itself_with_close_notify() {
    every_suite(|suite, we_serve| {
        let (mut ours, line, mut peer) = Setup::new(vec![suite]).connect(we_serve);
        let mut bytes = peer.says(b"last words");
        peer.0.send_close_notify();
        bytes.extend(peer.sends());
        line.give(&bytes);
        let mut buf = [0; 64];
        assert_eq!(ours.read(&line, &mut buf).unwrap(), 10);
        assert!(ours.own().receiver.more_to_come());
        assert_eq!(ours.read(&line, &mut buf).unwrap(), 0);
        assert_eq!(ours.read(&line, &mut buf).unwrap(), 0);
        ours.write_all(&line, b"the other way is open");
        ours.own().sender.close(rustls::AlertDescription::CloseNotify);
        ours.own().sender.close(rustls::AlertDescription::CloseNotify);
        assert!(ours.own().sender.flush(&line).unwrap());
        let (heard, ended) = peer.hears(&line.take()).unwrap();
        assert_eq!((&heard[..], ended), (&b"the other way is open"[..], true));
        let late = ours.write(&line, &[IoSlice::new(b"too late")]);
        assert_eq!(late.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    });
}

#[test]
fn what_the_peer_says_right_behind_its_handshake_is_not_lost() {
    every_suite(|suite, we_serve| {
        let setup = Setup::new(vec![suite]);
        let early = Dice(7).bytes(50_000);
        let mut ours = if we_serve {
            meet(setup.our_server(), &mut setup.peer_client(), &early).unwrap()
        } else {
            let mut peer = setup.peer_server();
            meet(setup.our_client(), &mut peer, &early).unwrap()
        };
        assert!(ours.own().receiver.more_to_come());
        assert!(ours.drain(&Line::new(), 300).unwrap() == early, "{suite:?} {we_serve}");
        assert!(!ours.holds_memory());
    });
}

#[test]
fn a_handshake_that_comes_byte_by_byte_is_made_all_the_same() {
    let setup = Setup::tls13();
    let (mut ours, mut peer) = (setup.our_server(), setup.peer_client());
    'shake: loop {
        for byte in peer.sends() {
            ours.take(&[byte]);
            let done = ours.advance().unwrap();
            peer.hears(&std::mem::take(ours.outgoing())).unwrap();
            if done {
                break 'shake;
            }
        }
    }
    let mut ours = Session::new(ours.finish().unwrap()).unwrap();
    let line = Line::new();
    line.give(&peer.says(b"hello"));
    assert_eq!(ours.drain(&line, 100).unwrap(), b"hello");
}

#[test]
fn the_peer_takes_new_keys_whenever_it_likes_and_is_answered() {
    for we_serve in [false, true] {
        let (mut ours, line, mut peer) = Setup::tls13().connect(we_serve);
        for round in 0..100 {
            peer.0.refresh_traffic_keys().unwrap();
            line.give(&peer.says(&[round; 100]));
            assert_eq!(ours.drain(&line, 4096).unwrap(), [round; 100]);
            ours.write_all(&line, &[round; 3]);
            assert_eq!(peer.hears(&line.take()).unwrap().0, [round; 3]);
            assert!(!ours.holds_memory());
        }
    }
}

#[test]
fn while_the_socket_is_full_many_requests_for_a_key_get_one_answer() {
    let (mut ours, line, mut peer) = Setup::tls13().connect(true);
    line.send_max.set(0);
    let mut bytes = Vec::new();
    for _ in 0..20 {
        peer.0.refresh_traffic_keys().unwrap();
        bytes.extend(peer.sends());
    }
    line.give(&bytes);
    assert_eq!(ours.drain(&line, 100).unwrap(), b"");
    line.send_max.set(usize::MAX);
    assert!(ours.own().sender.flush(&line).unwrap());
    let answer = line.take();
    assert_eq!(answer.len(), 5 + 5 + 1 + 16);
    ours.write_all(&line, b"on we go");
    assert_eq!(peer.hears(&[answer, line.take()].concat()).unwrap().0, b"on we go");
}

#[test]
fn a_key_that_has_sealed_enough_is_replaced_in_tls_1_3() {
    for we_serve in [false, true] {
        let (mut ours, line, mut peer) = Setup::tls13().connect(we_serve);
        ours.own().sender.set_limit(2);
        let plain = Dice(3).bytes(1_000_000);
        ours.write_all(&line, &plain);
        assert!(peer.hears(&line.take()).unwrap().0 == plain);
        line.give(&peer.says(b"no answer was due"));
        assert_eq!(ours.drain(&line, 100).unwrap(), b"no answer was due");
    }
    let (mut client, mut server) = Setup::tls13().connect_ours();
    client.own().sender.set_limit(1);
    let line = Line::new();
    let plain = Dice(4).bytes(300_000);
    client.write_all(&line, &plain);
    line.give(&line.take());
    assert!(server.drain(&line, 20_000).unwrap() == plain);
}

#[test]
fn a_key_that_has_sealed_enough_ends_tls_1_2() {
    let (mut ours, line, mut peer) = Setup::tls12().connect(true);
    ours.own().sender.set_limit(3);
    ours.write_all(&line, b"the first");
    ours.write_all(&line, b"and the last");
    let error = ours.write(&line, &[IoSlice::new(b"one too many")]).unwrap_err();
    assert_eq!(error.to_string(), "the keys of this TLS connection are used up");
    assert_eq!(peer.hears(&line.take()).unwrap(), (b"the firstand the last".to_vec(), true));
}

#[test]
fn a_full_socket_delays_what_was_accepted_and_accepts_no_more() {
    let (mut ours, line, mut peer) = Setup::tls13().connect(true);
    let plain = Dice(5).bytes(100_000);
    line.send_max.set(1000);
    assert_eq!(ours.write(&line, &[IoSlice::new(&plain)]).unwrap(), plain.len());
    let more = ours.write(&line, &[IoSlice::new(b"more")]);
    assert_eq!(more.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    // On its way to another worker nothing is lost either.
    ours.own().sender.detach();
    line.send_max.set(usize::MAX);
    ours.write_all(&line, b"more");
    assert!(peer.hears(&line.take()).unwrap().0 == [&plain[..], b"more"].concat());
}

#[test]
fn small_pieces_and_what_follows_them_travel_in_one_record() {
    let (mut ours, line, _) = Setup::tls13().connect(true);
    let payload = vec![7; 40_000];
    let pieces = [IoSlice::new(&[1; 4]), IoSlice::new(&payload)];
    assert_eq!(ours.write(&line, &pieces).unwrap(), 40_004);
    let sent = line.take();
    let (mut at, mut lengths) = (0, Vec::new());
    while at < sent.len() {
        let len = usize::from(u16::from_be_bytes([sent[at + 3], sent[at + 4]]));
        lengths.push(len - 17);
        at += 5 + len;
    }
    assert_eq!(lengths, [16_384, 16_384, 40_004 - 2 * 16_384]);
}

#[test]
fn sessions_are_resumed_from_tickets_as_client_and_as_server() {
    for (suites, tls12) in [(Setup::tls13(), false), (Setup::tls12(), true)] {
        for (round, kind) in
            [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed].into_iter().enumerate()
        {
            let (mut ours, line, mut peer) = suites.connect(false);
            line.give(&peer.says(b"tickets came before this"));
            ours.drain(&line, 100).unwrap();
            assert_eq!(peer.0.handshake_kind(), Some(kind), "client, {tls12} {round}");
        }
    }
    for (suites, tls12) in [(Setup::tls13(), false), (Setup::tls12(), true)] {
        for kind in [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed] {
            let (mut ours, line, mut peer) = suites.connect(true);
            ours.write_all(&line, b"behind the tickets");
            peer.hears(&line.take()).unwrap();
            assert_eq!(peer.0.handshake_kind(), Some(kind), "server, {tls12}");
        }
    }
}

#[test]
fn a_session_is_small_while_nothing_flows() {
    assert!(size_of::<Session>() <= 512, "{}", size_of::<Session>());
    for setup in [Setup::tls13(), Setup::tls12()] {
        for we_serve in [false, true] {
            let (mut ours, line, mut peer) = setup.connect(we_serve);
            // A client's tickets.
            assert_eq!(ours.drain(&line, 100).unwrap(), b"");
            assert!(!ours.holds_memory());
            let record = peer.says(b"in two parts");
            line.give(&record[..9]);
            ours.drain(&line, 100).unwrap();
            assert!(ours.holds_memory());
            line.give(&record[9..]);
            assert_eq!(ours.drain(&line, 100).unwrap(), b"in two parts");
            assert!(!ours.holds_memory());
        }
    }
}
