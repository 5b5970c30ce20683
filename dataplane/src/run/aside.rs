//! Role: reads files again without keeping anybody waiting: on a thread beside the worker's, for so long and no longer.
//! Invariants: sessions, links and signals never wait for a disk or a network mount · one thread at a time, however long it
//! hangs.
//! See: [`file`](crate::run::file), which keeps pipes and devices out.

use std::{
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crate::run::{
    descriptors,
    timer::{sleep, timeout},
};

/// A disk answers in this time, or is left alone for now.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a thread that hangs is looked at, within the patience.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A place beside the worker's thread for one reader of files.
#[derive(Default)]
pub struct Aside {
    /// The thread has a copy while it runs.
    running: Arc<()>,
}

impl Aside {
    /// What `read` comes to. Dropping the future loses what it comes to, and nothing else.
    ///
    /// # Errors
    /// It took longer than 5 s, or one before it still hangs; or there is no thread.
    pub async fn run<T: Send + 'static>(&self, read: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let deadline = Instant::now() + PATIENCE;
        // The task that asked for the one before may have been dropped.
        while Arc::strong_count(&self.running) > 1 {
            if Instant::now() >= deadline {
                return Err(hangs());
            }
            sleep(LOOK_EVERY).await;
        }
        // A file needs a descriptor, too, and whoever reads one again may be waiting for a new token.
        let _room = descriptors::lend();
        let (tell, told) = async_channel::bounded(1);
        let running = self.running.clone();
        thread::Builder::new().name("files".to_owned()).spawn(move || {
            let read = read();
            drop(running);
            // Whoever waited may have left.
            let _ = tell.try_send(read);
        })?;
        match timeout(deadline.saturating_duration_since(Instant::now()), told.recv()).await {
            Ok(Ok(read)) => Ok(read),
            Ok(Err(_)) | Err(_) => Err(hangs()),
        }
    }
}

fn hangs() -> io::Error {
    let words = format!("the disk has not answered within {} s", PATIENCE.as_secs());
    io::Error::new(io::ErrorKind::TimedOut, words)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::run::worker::run_alone;

    #[test]
    fn a_disk_that_hangs_is_given_up_and_read_again_once_it_answers() {
        let tested = run_alone(false, |_| async {
            let aside = Aside::default();
            assert_eq!(aside.run(|| 1).await.unwrap(), 1);
            let (answer, disk) = mpsc::channel::<()>();
            let hung = aside.run(move || disk.recv().is_err()).await.unwrap_err();
            assert_eq!(hung.kind(), io::ErrorKind::TimedOut);
            drop(answer);
            assert_eq!(aside.run(|| 2).await.unwrap(), 2);
        });
        tested.unwrap();
    }
}
