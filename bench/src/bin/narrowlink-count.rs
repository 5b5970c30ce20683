//! Role: relays a known number of chunks so that valgrind can count the instructions of each.
//! Invariants: one thread, on epoll (valgrind knows no io_uring) · all that is counted runs inside
//! [`relay_under_count`]: the relay, and what it calls; neither the programs at its ends nor the runtime's
//! loop.
//! See: tests/instructions.rs, which runs it; CONTRIBUTING.md, "Measuring".

use std::{
    cell::Cell,
    pin::Pin,
    process::ExitCode,
    rc::Rc,
    task::{Context, Poll},
};

use narrowlink_bench::{
    path::{Path, session},
    programs::{Programs, Shape},
};
use narrowlink_dataplane::run::worker::{run_on_epoll, spawn};
use narrowlink_proto::ended::Ended;

/// Chunks before counting begins: pools are filled then, and sockets warm.
const WARM_UP: usize = 64;

type Relay = Pin<Box<dyn Future<Output = Result<(), Ended>>>>;

/// A relay that is counted from when `counting` is set.
struct Counted {
    relay: Relay,
    counting: Rc<Cell<bool>>,
}

impl Future for Counted {
    type Output = Result<(), Ended>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.counting.get() {
            relay_under_count(&mut self.relay, cx)
        } else {
            self.relay.as_mut().poll(cx)
        }
    }
}

/// What callgrind is told to count in: `--toggle-collect='*relay_under_count*'`.
#[inline(never)]
fn relay_under_count(relay: &mut Relay, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
    relay.as_mut().poll(cx)
}

const fn counted_chunks(shape: Shape) -> usize {
    match shape {
        Shape::PingPong => 1000,
        Shape::Bulk => 256,
    }
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let mut paths = Path::PLAIN.into_iter().chain(Path::TLS);
    let path = words.next().and_then(|word| paths.find(|path| path.name() == word));
    let shape = words.next().and_then(|word| Shape::ALL.into_iter().find(|shape| shape.name() == word));
    let (Some(path), Some(shape)) = (path, shape) else {
        eprintln!(
            "usage: narrowlink-count PATH SHAPE\n  PATH   {}\n  SHAPE  {}",
            [Path::PLAIN.map(Path::name).join(", "), Path::TLS.map(Path::name).join(", ")].join(", "),
            Shape::ALL.map(Shape::name).join(", ")
        );
        return ExitCode::from(2);
    };
    match count(path, shape) {
        Ok(chunks) => {
            println!("{chunks} chunks");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

/// Relays; how many chunks were counted.
fn count(path: Path, shape: Shape) -> Result<usize, Box<dyn std::error::Error>> {
    let (between, outside) = session(path)?;
    let chunks = counted_chunks(shape);
    run_on_epoll(|_| async {
        let counting = Rc::new(Cell::new(false));
        let counted = Counted { relay: Box::pin(between.relay()), counting: counting.clone() };
        spawn(async move {
            let _ = counted.await;
        });
        let mut programs = Programs::meet(outside, shape).await;
        programs.exchange(WARM_UP).await?;
        counting.set(true);
        programs.exchange(chunks).await?;
        Ok(chunks)
    })?
}
