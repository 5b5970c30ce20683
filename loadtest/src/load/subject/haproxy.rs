//! Role: HAProxy as a TCP forwarder with one thread.
//! Invariants: its configuration is what a person would write for this purpose, no more: whoever wants to
//! see how it fares otherwise changes it here.
//! See: <https://docs.haproxy.org/2.6/configuration.html>

use std::{fmt::Write as _, fs, process::Command};

use anyhow::Result;

use super::{Running, Setup, Ways, directory, forwarder_ways, installed};
use crate::load::plan::Way;

/// Connections beyond those that are measured: what is not quite gone from the last round.
const SPARE: usize = 100;

/// How it moves bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// As it comes: copies through 16 KiB buffers.
    Plain,
    /// By splice(2), through pipes of 1 MiB.
    Splice,
    /// Copies through 256 KiB buffers.
    LargeBuffers,
}

pub(super) fn start(flavour: Flavour, setup: &Setup) -> Result<(Running, Ways)> {
    let program = installed("haproxy", "apt-get install haproxy")?;
    let (dir, _) = directory()?;
    let ways = forwarder_ways(dir.path(), setup)?;
    let file = dir.path().join("haproxy.cfg");
    fs::write(&file, config(flavour, &ways, setup, &dir.path().display().to_string()))?;
    let mut command = Command::new(program);
    command.arg("-db").arg("-f").arg(&file);
    let mut running = Running::start(dir, command, setup, &setup.cores(1))?;
    running.wait_listening(&ways)?;
    Ok((running, Ways::Fixed(ways)))
}

fn config(flavour: Flavour, ways: &[Way], setup: &Setup, dir: &str) -> String {
    // It wants descriptors for as many at its start: no more than are needed.
    let maxconn = setup.connections + SPARE;
    let mut text = format!("global\n    nbthread 1\n    maxconn {maxconn}\n");
    if setup.front_only {
        // It counts two descriptors for each, and here it needs but one.
        text += "    no strict-limits\n";
    }
    text += match flavour {
        Flavour::Plain => "",
        Flavour::Splice => "    tune.pipesize 1048576\n",
        Flavour::LargeBuffers => "    tune.bufsize 262144\n",
    };
    text += "    ssl-default-bind-options ssl-min-ver TLSv1.3\n\
             \x20   ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256\n\
             \x20   ssl-default-server-options ssl-min-ver TLSv1.3\n\
             \x20   ssl-default-server-ciphersuites TLS_AES_128_GCM_SHA256\n\
             defaults\n    timeout connect 5s\n    timeout client 1h\n    timeout server 1h\n    \
             timeout http-request 1h\n";
    text += if setup.front_only { "    mode http\n" } else { "    mode tcp\n" };
    if flavour == Flavour::Splice {
        text += "    option splice-request\n    option splice-response\n";
    }
    for (n, way) in ways.iter().enumerate() {
        let Way::Forwarder { listen, target, near_tls, far_tls } = way else { continue };
        let near = near_tls.as_ref().map_or(String::new(), |_| format!(" ssl crt {dir}/gateway.pem"));
        let far = far_tls.as_ref().map_or(String::new(), |_| {
            format!(" ssl verify required ca-file {dir}/ca.pem sni str(localhost) verifyhost localhost")
        });
        let _ = write!(text, "listen way{n}\n    bind {listen}{near}\n    server target {target}{far}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::subject::fixture::{SETUP, way};

    #[test]
    fn each_flavour_says_what_makes_it() {
        let plain = config(Flavour::Plain, &[way(0, false)], &SETUP, "/d");
        assert!(plain.contains("listen way0\n    bind 127.0.0.1:1000\n    server target 127.0.0.2:2000\n"));
        assert!(!plain.contains("splice") && !plain.contains("tune."), "{plain}");
        let splice = config(Flavour::Splice, &[way(0, false)], &SETUP, "/d");
        assert!(
            splice.contains("    tune.pipesize 1048576\n") && splice.contains("    option splice-request\n")
        );
        assert!(
            config(Flavour::LargeBuffers, &[way(0, false)], &SETUP, "/d")
                .contains("    tune.bufsize 262144\n")
        );
    }

    #[test]
    fn with_nobody_behind_it_it_waits_for_requests() {
        let text = config(Flavour::Plain, &[way(0, true)], &Setup { front_only: true, ..SETUP }, "/d");
        assert!(text.contains("    mode http\n") && !text.contains("mode tcp"), "{text}");
    }

    #[test]
    fn tls_is_ended_and_begun_anew() {
        let text = config(Flavour::Plain, &[way(0, true)], &SETUP, "/d");
        assert!(text.contains("bind 127.0.0.1:1000 ssl crt /d/gateway.pem\n"), "{text}");
        assert!(
            text.contains("server target 127.0.0.2:2000 ssl verify required ca-file /d/ca.pem "),
            "{text}"
        );
    }
}
