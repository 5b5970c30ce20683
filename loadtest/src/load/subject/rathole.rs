//! Role: rathole's server as a TCP forwarder with one worker, its client beside the load.
//! Invariants: as for HAProxy, a person's configuration · the server alone is what is measured; the client
//! stands where our gateway's agent would, and takes from the load's core.
//! See: <https://github.com/rathole-org/rathole>

use std::{
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, SocketAddr},
    process::Command,
};

use anyhow::{Result, ensure};

use super::{Free, Running, Setup, Ways, directory, forwarder_ways, installed};
use crate::load::plan::Way;

/// A release that the compilers of today build.
const INSTALL: &str = "cargo install rathole --no-default-features --features server,client,noise";

pub(super) fn start(setup: &Setup) -> Result<(Running, Ways)> {
    ensure!(!setup.transport.tls, "it is compared over plain connections: --transport ws");
    ensure!(!setup.front_only, "it has no place where links stand");
    let program = installed("rathole", INSTALL)?;
    let (dir, _) = directory()?;
    let mut free = Free::default();
    let control = free.port(Ipv4Addr::LOCALHOST.into())?;
    let ways = forwarder_ways(dir.path(), setup)?;
    drop(free);
    let server = dir.path().join("server.toml");
    fs::write(&server, server_config(&ways, control))?;
    let client = dir.path().join("client.toml");
    fs::write(&client, client_config(&ways, control))?;
    let mut command = Command::new(&program);
    command.arg("--server").arg(&server).env("RUST_LOG", "warn");
    let mut running = Running::start(dir, command, setup, &setup.cores(1))?;
    let mut command = Command::new(program);
    command.arg("--client").arg(&client).env("RUST_LOG", "warn");
    running.accompany(command, &setup.other_cores(1)?)?;
    // It listens once its client has told it for what.
    running.wait_listening(&ways)?;
    Ok((running, Ways::Fixed(ways)))
}

fn server_config(ways: &[Way], control: SocketAddr) -> String {
    let mut text = format!("[server]\nbind_addr = \"{control}\"\ndefault_token = \"measured\"\n");
    for (n, way) in ways.iter().enumerate() {
        let Way::Forwarder { listen, .. } = way else { continue };
        let _ = write!(text, "[server.services.way{n}]\nbind_addr = \"{listen}\"\n");
    }
    text
}

fn client_config(ways: &[Way], control: SocketAddr) -> String {
    let mut text = format!("[client]\nremote_addr = \"{control}\"\ndefault_token = \"measured\"\n");
    for (n, way) in ways.iter().enumerate() {
        let Way::Forwarder { target, .. } = way else { continue };
        let _ = write!(text, "[client.services.way{n}]\nlocal_addr = \"{target}\"\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        load::subject::fixture::{SETUP, way},
        site::Transport,
    };

    #[test]
    fn both_ends_name_the_same_services() {
        let control = "127.0.0.1:3000".parse().unwrap();
        let server = server_config(&[way(0, false), way(1, false)], control);
        assert!(server.contains("bind_addr = \"127.0.0.1:3000\"\n"), "{server}");
        assert!(server.contains("[server.services.way1]\nbind_addr = \"127.0.0.1:1001\"\n"), "{server}");
        let client = client_config(&[way(0, false), way(1, false)], control);
        assert!(client.contains("remote_addr = \"127.0.0.1:3000\"\n"), "{client}");
        assert!(client.contains("[client.services.way1]\nlocal_addr = \"127.0.0.2:2001\"\n"), "{client}");
    }

    #[test]
    fn what_it_can_not_do_is_said() {
        let setup = Setup { transport: Transport { tls: true, raw: true }, ..SETUP };
        let said = |setup: &Setup| start(setup).err().map(|e| e.to_string());
        assert_eq!(said(&setup).unwrap(), "it is compared over plain connections: --transport ws");
        let links = Setup { front_only: true, ..SETUP };
        assert_eq!(said(&links).unwrap(), "it has no place where links stand");
    }
}
