//! What a target has said arrives, although it breaks the session: all of it, and then the reset.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
};

use narrowlink_loadtest::{lab::Lab, site::Transport, transfer::fill};

use crate::{alone, count, kit::net::wait_until_delivered, visitor::connect};

const ANSWER_BYTES: usize = 60_000;
const SEED: u64 = 11;

/// The long form: `NARROWLINK_BREAKS=50`, of each kind and over each transport.
fn rounds() -> u64 {
    count("NARROWLINK_BREAKS", 3)
}

fn answer() -> Vec<u8> {
    let mut answer = vec![0; ANSWER_BYTES];
    fill(SEED, 0, &mut answer);
    answer
}

/// How a target has its say and goes.
#[derive(Debug, Clone, Copy)]
enum Manner {
    /// With two bytes of the request unread: its kernel sends a reset.
    Unread,
    /// In the middle of an upload.
    Early,
    /// The same, and it ends its direction first: the reset comes from what is still uploaded.
    EarlyEnd,
}

fn start_target(manner: Manner) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || have_the_say(stream, manner));
        }
    });
    addr
}

fn have_the_say(mut stream: TcpStream, manner: Manner) -> io::Result<()> {
    stream.read_exact(&mut [0; 8])?;
    // Something is left unread.
    stream.peek(&mut [0; 1])?;
    stream.write_all(&answer())?;
    if let Manner::EarlyEnd = manner {
        stream.shutdown(Shutdown::Write)?;
    }
    wait_until_delivered(&stream);
    Ok(())
}

/// What a program at the forwarded port gets.
fn heard(entry: SocketAddr, manner: Manner) -> (bool, io::Result<usize>) {
    let mut stream = connect(entry);
    let mut upload = stream.try_clone().unwrap();
    let uploading = thread::spawn(move || match manner {
        Manner::Unread => upload.write_all(b"0123456789"),
        // It ends only because nobody takes it any more.
        Manner::Early | Manner::EarlyEnd => loop {
            upload.write_all(&[1; 65_536])?;
        },
    });
    let mut got = Vec::new();
    let end = stream.read_to_end(&mut got);
    drop(stream);
    let uploaded = uploading.join().unwrap();
    assert!(uploaded.is_ok() || !matches!(manner, Manner::Unread));
    (got == answer(), end)
}

#[test]
fn what_a_target_said_before_it_broke_the_session_arrives_whole() {
    let _turn = alone();
    for transport in Transport::ALL {
        let lab = Lab::start(2).unwrap();
        let _agent = lab.agent("home", transport).unwrap();
        for manner in [Manner::Unread, Manner::Early, Manner::EarlyEnd] {
            let forward = lab.forward("home", start_target(manner), transport).unwrap();
            let (mut whole, mut resets) = (0, 0);
            for _ in 0..rounds() {
                let (all, end) = heard(forward.local_addr, manner);
                whole += u64::from(all);
                resets += u64::from(end.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset));
            }
            println!("{transport}, {manner:?}: {whole} of {} whole, {resets} ended by a reset", rounds());
            assert_eq!(whole, rounds(), "{transport}, {manner:?}");
            if let Manner::Unread = manner {
                assert_eq!(resets, rounds(), "{transport}: a cut that looks like an end");
            }
            forward.stop();
        }
    }
}
