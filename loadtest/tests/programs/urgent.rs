//! Role: TCP urgent data (telnet's Synch, FTP's ABOR, a database's break) through the real programs.
//! Invariants: every byte arrives in its place, and nobody's CPU spins on it.
//! See: RFC 6093; tcp(7), SO_OOBINLINE.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    thread,
    time::Duration,
};

use rustix::net::{SendFlags, send};

use crate::kit::{
    PATIENCE, data, net, number_from_env,
    site::{Transport, Tunnel},
};

/// Enough for bulk that is spliced.
const BULK_BYTES: usize = 4 << 20;
/// What a program may use of a CPU that has nothing to do: 0.1 s in 5 s.
const CPU_SHARE: u32 = 50;

fn bulk(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; BULK_BYTES];
    data::Pattern::new(seed).read_exact(&mut bytes).expect("a pattern never ends");
    bytes
}

/// Bulk, an urgent byte in its middle and others at its end, where the connection then stands still.
fn say(stream: &mut TcpStream) -> Vec<u8> {
    let (first, second) = (bulk(1), bulk(2));
    let mut said = Vec::new();
    for part in [&first[..], &second[..]] {
        stream.write_all(part).expect("the tunnel takes it");
        assert_eq!(send(&*stream, b"!", SendFlags::OOB).expect("the tunnel takes it"), 1);
        stream.write_all(b"and so on").expect("the tunnel takes it");
        said.extend_from_slice(part);
        said.extend_from_slice(b"!and so on");
    }
    assert_eq!(send(&*stream, b"!", SendFlags::OOB).expect("the tunnel takes it"), 1);
    said.push(b'!');
    said
}

fn check(tunnel: &Tunnel, what: &str) {
    let (listener, target) = net::listen();
    let forward = tunnel.forward(target);
    let mut near = TcpStream::connect(forward.local).expect("the forward listens");
    let mut far = listener.accept().expect("the agent dials").0;
    for up in [true, false] {
        let (from, to) = if up { (&mut near, &mut far) } else { (&mut far, &mut near) };
        to.set_read_timeout(Some(PATIENCE)).expect("a socket has time-outs");
        let mut from = from.try_clone().expect("a descriptor is free");
        let saying = thread::spawn(move || say(&mut from));
        let mut got = vec![0; 2 * (BULK_BYTES + 10) + 1];
        to.read_exact(&mut got).unwrap_or_else(|e| panic!("{what}, up {up}: {e}"));
        let said = saying.join().expect("saying does not panic");
        assert!(got == said, "{what}, up {up}: other bytes arrived");
    }
    let used = || [forward.running.cpu(), tunnel.gateway.cpu(), tunnel.agent.cpu()];
    let before = used();
    // The rest itself is what is measured. The long form: NARROWLINK_URGENT_S=5.
    let rest = Duration::from_secs(number_from_env("NARROWLINK_URGENT_S", 2));
    thread::sleep(rest);
    let spent: Vec<_> = used().iter().zip(before).map(|(after, before)| *after - before).collect();
    println!("{what}: forward, gateway and agent used {spent:?} in {rest:?}");
    // A tick of the kernel's count is 10 ms.
    let most = rest / CPU_SHARE + Duration::from_millis(20);
    assert!(spent.iter().all(|spent| *spent < most), "{what}: {spent:?}, more than {most:?}");
}

fn urgent_bytes_arrive_and_nobody_spins(transport: Transport) {
    check(&Tunnel::start(transport), "framed");
    check(&Tunnel::start_raw(transport), "raw");
}

over_ws_and_wss!(urgent_bytes_arrive_and_nobody_spins);
