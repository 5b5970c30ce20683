//! Role: the network that is measured in: a namespace of its own where that can be had, and its congestion control.
//! Invariants: the host's own settings are never changed · what a connection really uses is asked of a connection ·
//! what was asked for and can't be had is an error, never left out.
//! See: ip-sysctl.rst of the kernel, `tcp_congestion_control`; tcp(7), `TCP_CONGESTION`.

use std::{
    fmt, fs,
    io::{self, ErrorKind},
    net::{Ipv4Addr, TcpListener, TcpStream},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::net::sockopt::tcp_congestion;

use crate::namespace::take_own_network;

const IN_USE: &str = "/proc/sys/net/ipv4/tcp_congestion_control";
/// Of those that the kernel has, a namespace may use the ones that the host allows everybody.
const ALLOWED: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
/// What is used unless something else is asked for, the first that can be had: neither paces, so that what is
/// measured is what the processor can do. BBR paces loopback as if it were a long way.
const PREFERRED: [&str; 2] = ["cubic", "reno"];

/// Whose network it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Ours alone, with nothing but a loopback interface.
    Own,
    /// The machine's, with its settings, its firewall and its other connections.
    Host,
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Own => "in a network namespace of its own",
            Self::Host => "in the host's network namespace",
        })
    }
}

impl Network {
    /// Leaves the host's network, if that may be done, and says so if not. Of what this process starts, everything
    /// that is started afterwards by this thread or its children goes along.
    ///
    /// # Errors
    /// The namespace was to be had, and can't be used.
    pub fn enter() -> Result<Self> {
        match take_own_network() {
            Ok(()) => Ok(Self::Own),
            Err(e) if e.kind() == ErrorKind::PermissionDenied => {
                eprintln!(
                    "this is measured in the host's network namespace, with the host's congestion control: as root \
                     it would have one of its own ({e})"
                );
                Ok(Self::Host)
            }
            Err(e) => Err(e).context("a network namespace of our own"),
        }
    }

    /// Which congestion controls are measured, one after the other: those that are asked for, or the one that
    /// measures best.
    ///
    /// # Errors
    /// One can't be had here.
    pub fn choose(self, asked: &[String]) -> Result<Vec<String>> {
        let (in_use, allowed) = (in_use()?, allowed());
        match self {
            Self::Own => choose_of(&in_use, &allowed, asked),
            Self::Host => {
                if let Some(one) = asked.iter().find(|one| **one != in_use) {
                    bail!(
                        "the host uses {in_use}, which is left as it is: {one} can be had in a network namespace \
                         only, so run this as root"
                    );
                }
                Ok(vec![in_use])
            }
        }
    }

    /// Makes every new connection use this one of those that were chosen.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn set(self, congestion: &str) -> Result<()> {
        if self == Self::Own && in_use()? != congestion {
            fs::write(IN_USE, congestion)
                .with_context(|| format!("{congestion} can't be set in {IN_USE} of our own namespace"))?;
        }
        let seen = in_use()?;
        ensure!(seen == congestion, "{congestion} was set, and a connection uses {seen}");
        Ok(())
    }
}

fn choose_of(in_use: &str, allowed: &[String], asked: &[String]) -> Result<Vec<String>> {
    if let Some(missing) = asked.iter().find(|one| !allowed.contains(one)) {
        bail!(
            "{missing} can't be had, {} can: a network namespace may use what the host has (`modprobe tcp_{missing}`) \
             and allows (`sysctl net.ipv4.tcp_allowed_congestion_control`)",
            allowed.join(", ")
        );
    }
    if !asked.is_empty() {
        return Ok(asked.to_vec());
    }
    let preferred = PREFERRED.iter().find(|one| allowed.iter().any(|allowed| allowed == *one));
    Ok(vec![preferred.map_or(in_use, |one| *one).to_owned()])
}

/// Those that can be had in a network namespace.
pub fn allowed() -> Vec<String> {
    let text = fs::read_to_string(ALLOWED).unwrap_or_default();
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

/// What a connection over loopback uses, both ends of it.
///
/// # Errors
/// There is no loopback, or its two ends differ.
pub fn in_use() -> Result<String> {
    let ends = || -> io::Result<[String; 2]> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let near = TcpStream::connect(listener.local_addr()?)?;
        let (far, _) = listener.accept()?;
        Ok([tcp_congestion(&near)?, tcp_congestion(&far)?])
    };
    let [near, far] = ends().context("a connection over loopback")?;
    ensure!(near == far, "a connection over loopback uses {near} at one end and {far} at the other");
    Ok(near)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_is_asked_for_is_measured_or_refused_and_nothing_that_paces_unless_asked() {
        let chosen = |allowed: &[&str], asked: &[&str]| {
            choose_of("bbr", &list(allowed), &list(asked)).map_err(|e| e.to_string())
        };
        assert_eq!(chosen(&["reno", "bbr", "cubic"], &[]), Ok(list(&["cubic"])));
        assert_eq!(chosen(&["reno", "bbr"], &[]), Ok(list(&["reno"])));
        assert_eq!(chosen(&["bbr"], &[]), Ok(list(&["bbr"])));
        assert_eq!(chosen(&["reno", "bbr"], &["reno", "bbr"]), Ok(list(&["reno", "bbr"])));
        let error = chosen(&["reno"], &["reno", "vegas"]).unwrap_err();
        assert!(error.starts_with("vegas can't be had, reno can: "), "{error}");
    }

    #[test]
    fn the_hosts_congestion_control_is_what_it_is() {
        let host = in_use().unwrap();
        assert_eq!(Network::Host.choose(&[]).unwrap(), std::slice::from_ref(&host));
        Network::Host.set(&host).unwrap();
        let error = Network::Host.choose(&list(&["another"])).unwrap_err().to_string();
        assert!(error.contains("which is left as it is"), "{error}");
        assert!(Network::Host.set("another").is_err());
        assert!(allowed().contains(&host));
    }
}
