//! Every byte and every ending, through client, gateway and agent, in every transport.

use std::{
    net::{SocketAddr, TcpListener},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use narrowlink_agent::Agent;
use narrowlink_client::Forward;
use narrowlink_loadtest::{
    lab::Lab,
    site::Transport,
    transfer::{self, Ending, Pace, Plan},
};

use crate::{alone, count, draw};

/// A forwarded port through one transport at the client and one at the agent.
struct Path {
    client: Transport,
    agent: Transport,
    entry: SocketAddr,
    target: Mutex<TcpListener>,
    _forward: Forward,
}

/// All sixteen paths through one gateway of two workers.
struct Paths {
    paths: Vec<Path>,
    _agents: Vec<Agent>,
    _lab: Lab,
}

fn paths() -> Paths {
    let lab = Lab::start(2).unwrap();
    let (mut paths, mut agents) = (Vec::new(), Vec::new());
    for agent in Transport::ALL {
        let name = agent.to_string().replace(' ', "-");
        agents.push(lab.agent(&name, agent).unwrap());
        for client in Transport::ALL {
            let target = TcpListener::bind("127.0.0.1:0").unwrap();
            let forward = lab.forward(&name, target.local_addr().unwrap(), client).unwrap();
            let entry = forward.local_addr;
            paths.push(Path { client, agent, entry, target: Mutex::new(target), _forward: forward });
        }
    }
    Paths { paths, _agents: agents, _lab: lab }
}

const SIZES: [u64; 3] = [1, 64 << 10, 16 << 20];
const PACES: [Pace; 3] = [Pace::Fast, Pace::SlowReader, Pace::OneByteWrites];
const ENDINGS: usize = 5;

/// Everything but the transports: single bytes only up to 64 KiB.
fn cells() -> Vec<(u64, Pace, usize)> {
    let mut cells = Vec::new();
    for size in SIZES {
        for pace in PACES {
            for ending in 0..ENDINGS {
                if pace != Pace::OneByteWrites || size <= 64 << 10 {
                    cells.push((size, pace, ending));
                }
            }
        }
    }
    cells
}

/// Transfer `n`: walks over every client transport and cell, drawing the rest from `n`.
fn plan(n: u64) -> (usize, Plan) {
    let cells = cells();
    let mut state = n;
    // 4 × 40 cells; a stride prime to that scatters a short run over all of them.
    let cell = (n * 67 % (4 * cells.len() as u64)) as usize;
    let (client, (bytes, pace, ending)) = (cell % 4, cells[cell / 4]);
    let agent = (draw(&mut state) % 4) as usize;
    let part = draw(&mut state) % bytes.max(1);
    let ending = match ending {
        0 => Ending::ClientFirst,
        1 => Ending::TargetFirst,
        2 => Ending::Both,
        3 => Ending::ClientResets(part),
        _ => Ending::TargetResets(part),
    };
    (agent * 4 + client, Plan { seed: n, up_bytes: bytes, down_bytes: bytes, ending, pace })
}

#[test]
fn the_plans_cover_every_cell() {
    let cells = 4 * cells().len() as u64;
    let seen: std::collections::HashSet<_> = (0..cells)
        .map(|n| {
            let (path, plan) = plan(n);
            let ending = match plan.ending {
                Ending::ClientFirst => 0,
                Ending::TargetFirst => 1,
                Ending::Both => 2,
                Ending::ClientResets(_) => 3,
                Ending::TargetResets(_) => 4,
            };
            (path % 4, plan.up_bytes, format!("{:?}", plan.pace), ending)
        })
        .collect();
    assert_eq!(seen.len() as u64, cells);
}

#[test]
fn every_transfer_is_equal_or_an_explicit_reset() {
    let _turn = alone();
    let transfers = count("NARROWLINK_TRANSFERS", 100) as usize;
    let all = paths();
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= transfers {
                        break;
                    }
                    let (path, plan) = plan(n as u64);
                    let path = &all.paths[path];
                    let target = path.target.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Err(broken) = transfer::run(plan, path.entry, &target) {
                        panic!("client {}, agent {}: {broken}", path.client, path.agent);
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    println!("{} transfers, 0 short but clean", done.load(Ordering::Relaxed));
    assert_eq!(done.into_inner(), transfers);
}

#[test]
fn a_large_transfer_is_whole_in_each_transport_and_direction() {
    let _turn = alone();
    let bytes = count("NARROWLINK_BIG_MIB", 16) << 20;
    let all = paths();
    for (n, path) in all.paths.iter().filter(|path| path.client == path.agent).enumerate() {
        for (up_bytes, down_bytes) in [(bytes, 1), (1, bytes)] {
            let plan = Plan { seed: n as u64, up_bytes, down_bytes, ending: Ending::Both, pace: Pace::Fast };
            let target = path.target.lock().unwrap();
            if let Err(broken) = transfer::run(plan, path.entry, &target) {
                panic!("{}: {broken}", path.client);
            }
            println!("{}: {up_bytes} up, {down_bytes} down, every byte equal", path.client);
        }
    }
}
