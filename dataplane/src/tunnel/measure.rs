//! Role: the far end of a session that measures the way to it: bytes come to it and go back, and nothing is dialled.
//! Invariants: its memory is bounded, however fast the other side sends or slowly it reads · it ends when the other side has finished, and with it.
//! See: `narrowlink_proto::measure`; `gateway::measure`, which puts one behind a lane of its own.

use std::{io, sync::LazyLock, time::Duration};

use futures_lite::future;
use narrowlink_proto::measure::How;

use crate::{
    net::{
        memory::{Memory, Room},
        plain::Plain,
    },
    run::{budget::Share, timer::timeout, worker::spawn},
    transport::wire::Wire,
};

/// What is written at once.
pub const BLOCK_BYTES: usize = 64 * 1024;
/// What is read at once.
const READ_BYTES: usize = 16 * 1024;
/// What one side may send before the other reads: there are two such at the gateway.
pub(crate) const ROOM: Room = Room { bytes: 64 * 1024, call_bytes: usize::MAX };
/// For what is sent back to be read.
const ECHO_PATIENCE: Duration = Duration::from_secs(2);

/// A connection whose other end does this, on this worker. Dropped, it ends the other one.
pub fn far_end(how: How) -> Plain {
    far_end_of(Share::OWN, how)
}

/// The same; both ends take their turns with those of this share.
pub(crate) fn far_end_of(share: Share, how: How) -> Plain {
    let (near, far) = Memory::pair(ROOM);
    let (near, far) = (Plain::from(near), Wire::from(far));
    near.account().belongs_to(share);
    far.account().belongs_to(share);
    spawn(async move {
        if serve(&far, how).await.is_ok() {
            far.close_gently();
        }
    });
    near
}

/// Bytes that no link on the way can make smaller: the high bytes of a linear congruential generator (Knuth, MMIX).
pub fn block() -> &'static [u8] {
    static BLOCK: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut state = 1_u64;
        let next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let [.., byte] = state.to_le_bytes();
            byte
        };
        std::iter::repeat_with(next).take(BLOCK_BYTES).collect()
    });
    &BLOCK
}

async fn serve(wire: &Wire, how: How) -> io::Result<()> {
    match how {
        How::Echo => echo(wire).await?,
        How::Discard => take_all(wire).await?,
        How::Generate => future::or(take_all(wire), give(wire)).await?,
    }
    wire.finish_write().await
}

async fn echo(wire: &Wire) -> io::Result<()> {
    loop {
        // The buffer lies on the stack: one that waits holds none.
        let read = {
            let mut buf = [0; READ_BYTES];
            wire.try_read(&mut buf).map(|bytes| buf[..bytes].to_vec())
        };
        match read {
            Ok(bytes) if bytes.is_empty() => return Ok(()),
            // Who sends and never reads is not waited for: a session whose other side has gone would be held by it.
            Ok(bytes) => timeout(ECHO_PATIENCE, wire.write_all(&bytes))
                .await
                .map_err(|_| io::ErrorKind::TimedOut)??,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => wire.readable().await?,
            Err(e) => return Err(e),
        }
    }
}

/// Reads until the other side has finished.
async fn take_all(wire: &Wire) -> io::Result<()> {
    loop {
        let read = wire.try_read(&mut [0; READ_BYTES]);
        match read {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => wire.readable().await?,
            Err(e) => return Err(e),
        }
    }
}

/// Writes for as long as it is asked.
async fn give(wire: &Wire) -> io::Result<()> {
    loop {
        wire.write_all(block()).await?;
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::{poll_once, zip};

    use super::*;
    use crate::run::worker::run_alone;

    fn run(main: impl AsyncFnOnce()) {
        run_alone(false, |_| main()).unwrap();
    }

    #[test]
    fn an_echo_sends_back_what_it_gets_to_the_last_byte() {
        run(async || {
            let wire = Wire::from(far_end(How::Echo));
            let sent: Vec<u8> = block().repeat(20);
            let writing = async {
                wire.write_all(&sent).await.unwrap();
                wire.finish_write().await.unwrap();
            };
            let reading = async {
                let (mut got, mut buf) = (Vec::new(), vec![0; 10_000]);
                loop {
                    match wire.read(&mut buf).await.unwrap() {
                        0 => return got,
                        n => got.extend_from_slice(&buf[..n]),
                    }
                }
            };
            let ((), got) = zip(writing, reading).await;
            assert!(got == sent, "{} bytes of {}", got.len(), sent.len());
        });
    }

    #[test]
    fn an_echo_that_nobody_reads_is_broken_off() {
        run(async || {
            let wire = Wire::from(far_end(How::Echo));
            let flooding = async { while wire.write_all(block()).await.is_ok() {} };
            assert!(timeout(ECHO_PATIENCE * 10, flooding).await.is_ok());
        });
    }

    #[test]
    fn what_is_discarded_brings_nothing_back_but_the_end() {
        run(async || {
            let wire = Wire::from(far_end(How::Discard));
            for _ in 0..50 {
                wire.write_all(block()).await.unwrap();
            }
            assert!(poll_once(wire.read(&mut [0; 1])).await.is_none());
            wire.finish_write().await.unwrap();
            assert_eq!(wire.read(&mut [0; 1]).await.unwrap(), 0);
        });
    }

    #[test]
    fn bytes_are_made_until_the_other_side_has_finished_and_no_further_than_it_reads() {
        run(async || {
            let wire = Wire::from(far_end(How::Generate));
            let (mut buf, mut first) = (vec![0; BLOCK_BYTES], Vec::new());
            while first.len() < BLOCK_BYTES {
                let n = wire.read(&mut buf).await.unwrap();
                first.extend_from_slice(&buf[..n]);
            }
            assert!(first[..BLOCK_BYTES] == block()[..]);
            wire.finish_write().await.unwrap();
            let mut rest = 0;
            loop {
                match wire.read(&mut buf).await.unwrap() {
                    0 => break,
                    n => rest += n,
                }
            }
            assert!(rest <= ROOM.bytes + BLOCK_BYTES, "{rest}");
        });
    }

    #[test]
    fn bytes_to_measure_with_do_not_repeat_soon() {
        let block = block();
        let pieces: std::collections::HashSet<_> = block.chunks(8).collect();
        assert_eq!(pieces.len(), BLOCK_BYTES / 8);
    }
}
