//! Role: our gateway, as its own process.
//! Invariants: everything is as in an installation, but for its limits, which a crowd with one token would reach.

use std::{
    cell::Cell,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use narrowlink_proto::{id::Uid, token::Kind};

use super::{Running, Setup, Ways, directory};
use crate::{
    load::plan::Way,
    site::{Site, Transport},
};

const PROGRAM: &str = "narrowlink-gateway";

/// A gateway's front door, and what is needed to write tokens for it.
pub(super) struct Entry {
    site: Site,
    addr: SocketAddr,
    transport: Transport,
    /// How many ways have been given.
    given: Cell<u32>,
}

impl Entry {
    /// A way in for one load process: an agent of a new name, for the gateway may not have noticed yet that
    /// the one of the last round is gone.
    pub(super) fn way(&self) -> Result<Way> {
        let n = self.given.get() + 1;
        self.given.set(n);
        let write = |kind, role: &str| {
            let name = format!("{role}-{n}");
            let token = self.site.token(kind, Uid::from_u128(7), &name, None)?;
            self.site.endpoint_yaml(&format!("{name}.yaml"), self.addr, self.transport, &token, "")
        };
        Ok(Way::Tunnel { agent: write(Kind::Agent, "agent")?, client: write(Kind::Client, "client")? })
    }
}

pub(super) fn start(program: Option<&Path>, workers: usize, setup: &Setup) -> Result<(Running, Ways)> {
    let (dir, site) = directory()?;
    let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    let config = site.gateway_yaml(any, any, workers)?;
    let mut program = match program {
        Some(program) => program.to_owned(),
        None => beside_us()?,
    };
    if setup.unprivileged {
        program = copy_for_nobody(&program, dir.path())?;
    }
    let mut command = Command::new(program);
    command.arg("-q").arg("-c").arg(&config).arg("--ready-file").arg(dir.path().join("ready.json"));
    let mut running = Running::start(dir, command, setup, &setup.cores(workers))?;
    let ready = running.wait_for(|dir| fs::read(dir.join("ready.json")).ok())?;
    let ready: serde_json::Value = serde_json::from_slice(&ready)?;
    let service = &ready["services"][usize::from(!setup.transport.tls)];
    let addr = service["address"].as_str().context("the ready file names no address")?.parse()?;
    let entry = Entry { site, addr, transport: setup.transport, given: Cell::new(0) };
    Ok((running, Ways::Gateway(Box::new(entry))))
}

fn beside_us() -> Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name(PROGRAM);
    ensure!(program.is_file(), "{} is missing: build the whole workspace", program.display());
    Ok(program)
}

/// Where the program lies, nobody may be allowed to look.
fn copy_for_nobody(program: &Path, dir: &Path) -> Result<PathBuf> {
    let copy = dir.join(PROGRAM);
    fs::copy(program, &copy).with_context(|| format!("{}", program.display()))?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o500))?;
    Ok(copy)
}
