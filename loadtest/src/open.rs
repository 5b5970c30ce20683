//! Role: new connections, one after the other: from connect() to the first byte that comes back.
//! Invariants: a connection is ended by both sides before the next is made.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hdrhistogram::Histogram;
use narrowlink_loadtest::{lab::Lab, site::Transport};

/// Connections that warm the tunnel up and do not count.
const FIRST: usize = 20;
/// For a byte, and for the end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who speaks first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaks {
    /// We send a byte at once and wait for one.
    Client,
    /// We wait for the target's first byte, as of SSH or SMTP.
    Server,
}

/// Measures the whole chain, each transport against a direct connection.
pub(crate) fn open(count: usize) -> Result<()> {
    let echo = echo()?;
    let lab = Lab::start(1)?;
    header();
    report("direct", echo, Speaks::Client, count)?;
    for transport in Transport::ALL {
        let name = transport.to_string().replace(' ', "-");
        let _agent = lab.agent(&name, transport)?;
        let forward = lab.forward(&name, echo, transport)?;
        report(&transport.to_string(), forward.local_addr, Speaks::Client, count)?;
    }
    Ok(())
}

/// Measures an address behind which a target answers, whatever forwards there.
pub(crate) fn open_at(addr: SocketAddr, speaks: Speaks, count: usize) -> Result<()> {
    header();
    report(if speaks == Speaks::Client { "client first" } else { "server first" }, addr, speaks, count)
}

fn header() {
    println!("{:<12} {:>8} {:>8} {:>8}", "path", "p50 ms", "p99 ms", "max ms");
}

fn report(name: &str, addr: SocketAddr, speaks: Speaks, count: usize) -> Result<()> {
    let mut times = Histogram::<u64>::new(3)?;
    for n in 0..FIRST + count {
        let took = once(addr, speaks).with_context(|| format!("connection {n} to {addr}"))?;
        if n >= FIRST {
            times.record(u64::try_from(took.as_micros())?)?;
        }
    }
    let at = |quantile| times.value_at_quantile(quantile) as f64 / 1e3;
    println!("{name:<12} {:>8.2} {:>8.2} {:>8.2}", at(0.5), at(0.99), at(1.0));
    Ok(())
}

/// From connect() to the first byte; what comes behind it is read to its end.
fn once(addr: SocketAddr, speaks: Speaks) -> Result<Duration> {
    let started = Instant::now();
    let mut stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    if speaks == Speaks::Client {
        stream.write_all(b"x")?;
    }
    let mut byte = [0; 1];
    stream.read_exact(&mut byte).context("no first byte")?;
    let took = started.elapsed();
    stream.shutdown(std::net::Shutdown::Write)?;
    let rest = stream.read_to_end(&mut Vec::new()).context("it was not ended after we had ended it")?;
    ensure!(speaks == Speaks::Server || rest == 0, "more bytes than were sent");
    Ok(took)
}

fn echo() -> Result<SocketAddr> {
    let listener = TcpListener::bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0))?;
    let addr = listener.local_addr()?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let _ = stream.set_nodelay(true);
                let mut byte = [0; 1];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
            });
        }
    });
    Ok(addr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_speaks_first_the_first_byte_is_waited_for() {
        assert!(once(echo().unwrap(), Speaks::Client).is_ok());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let greeting = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"220 welcome").unwrap();
            stream.read_to_end(&mut Vec::new()).unwrap()
        });
        assert!(once(addr, Speaks::Server).is_ok());
        assert_eq!(greeting.join().unwrap(), 0);
    }
}
