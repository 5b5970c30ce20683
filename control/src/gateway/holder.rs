//! Role: whether an address that is taken is taken by the gateway that a check stands beside.
//! Invariants: only what the system shows to this user is known: nobody else's sockets are, so that who is not root hears that it is
//! taken.
//! See: proc_pid_net(5), `tcp`; `pid_file`, which names the process.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
};

/// The state of a socket that listens.
const LISTENS: &str = "0A";

/// Whether this process listens at this address.
pub(super) fn listens(pid: u32, addr: SocketAddr) -> io::Result<bool> {
    let table = if addr.is_ipv4() { "tcp" } else { "tcp6" };
    let table = fs::read_to_string(format!("/proc/{pid}/net/{table}"))?;
    let place = spelt(addr);
    let sockets: Vec<_> = table.lines().filter_map(|line| socket_at(line, &place)).collect();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // One that was closed meanwhile is none of those.
        if fs::read_link(entry?.path())
            .is_ok_and(|file| sockets.iter().any(|socket| file.as_os_str() == &**socket))
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The socket of a line, as its descriptor is called, if it listens there.
fn socket_at(line: &str, place: &str) -> Option<String> {
    let mut words = line.split_whitespace().skip(1);
    let (local, _peer, state) = (words.next()?, words.next()?, words.next()?);
    let inode = words.nth(5)?;
    (local == place && state == LISTENS).then(|| format!("socket:[{inode}]"))
}

/// As the table has it: in words of 32 bits of this machine's order.
fn spelt(addr: SocketAddr) -> String {
    let octets = match addr.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let (words, _) = octets.as_chunks::<4>();
    let words = words.iter().map(|word| format!("{:08X}", u32::from_ne_bytes(*word)));
    format!("{}:{:04X}", words.collect::<String>(), addr.port())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_process_is_known_by_what_it_listens_on() {
        let own = std::process::id();
        for at in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0"] {
            let listener = TcpListener::bind(at).unwrap();
            let addr = listener.local_addr().unwrap();
            assert!(listens(own, addr).unwrap(), "{addr}");
            drop(listener);
            assert!(!listens(own, addr).unwrap(), "{addr}");
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let peer = listener.accept().unwrap().0;
        drop(listener);
        assert!(!listens(own, peer.local_addr().unwrap()).unwrap(), "a connection listens to nobody");
        assert!(listens(0, "127.0.0.1:1".parse().unwrap()).is_err());
    }
}
