//! Role: descriptors that an agent or a client keeps free, so that being short of them delays its users and
//! cuts nobody off from the gateway.
//! Invariants: what is accepted from outside takes a descriptor only while the reserve is whole · the reserve
//! goes to connections to the gateway and to files that are read again, and comes back before anything else is
//! accepted · all workers of a program have one reserve; its lock is held for a look. A gateway's workers keep none here.
//! See: `listen`, which accepts; `tunnel`, which the reserve is for.

use std::{
    cell::RefCell,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use rustix::{
    event::{EventfdFlags, eventfd},
    io::{Errno, fcntl_dupfd_cloexec},
};

use crate::run::{
    lock::lock,
    timer::{sleep, timeout},
};

/// How often it is looked whether a descriptor is free for who waits for one.
const LOOK_EVERY: Duration = Duration::from_millis(20);

thread_local! {
    static RESERVE: RefCell<Shared> = RefCell::default();
}

/// A reserve, for all threads that have it.
#[derive(Clone, Default)]
pub(crate) struct Shared(Arc<Mutex<Reserve>>);

impl Shared {
    /// This thread's.
    pub(crate) fn of_this_thread() -> Self {
        RESERVE.with_borrow(Self::clone)
    }

    /// Makes it this thread's.
    pub(crate) fn adopt(self) {
        RESERVE.set(self);
    }

    fn look(&self) -> MutexGuard<'_, Reserve> {
        lock(&self.0)
    }
}

/// The descriptors that a program keeps free.
#[derive(Default)]
struct Reserve {
    wanted: usize,
    /// Held so that nobody else takes their numbers; closed when they are needed.
    held: Vec<OwnedFd>,
    /// Connections to the gateway that are being made, and files that are being read, out of the reserve.
    lent: usize,
    /// Those that had a place and wait for their next one: they come before anybody new.
    owed: usize,
}

impl Reserve {
    /// Takes descriptors until the reserve is whole.
    fn refill(&mut self) -> io::Result<()> {
        if self.lent > 0 {
            return Err(Errno::MFILE.into());
        }
        while self.held.len() < self.wanted {
            let one = match self.held.first() {
                Some(held) => fcntl_dupfd_cloexec(held, 0)?,
                None => eventfd(0, EventfdFlags::CLOEXEC)?,
            };
            self.held.push(one);
        }
        Ok(())
    }

    fn place(&mut self) -> io::Result<Place> {
        self.refill()?;
        let held = match self.held.first() {
            Some(first) => fcntl_dupfd_cloexec(first.as_fd(), 0)?,
            None => eventfd(0, EventfdFlags::CLOEXEC)?,
        };
        Ok(Place { _held: held })
    }

    /// Whether as many descriptors as are held are free besides.
    fn has_room(&self) -> bool {
        let Some(first) = self.held.first() else { return self.wanted == 0 };
        let probed: Vec<_> = (0..self.wanted).map_while(|_| fcntl_dupfd_cloexec(first, 0).ok()).collect();
        probed.len() == self.wanted
    }
}

/// From now on this program keeps `wanted` descriptors free for its gateway.
pub fn keep_free(wanted: usize) {
    let shared = Shared::of_this_thread();
    let mut reserve = shared.look();
    reserve.wanted = wanted;
    reserve.held.truncate(wanted);
    // What can't be had now is taken as soon as something is closed.
    let _ = reserve.refill();
}

/// A descriptor's place: dropped where the descriptor itself is made, so that there is one.
pub struct Place {
    _held: OwnedFd,
}

/// Takes a place for a descriptor that will be needed later.
///
/// # Errors
/// There is none left besides the reserve, and what is owed to others.
pub fn place() -> io::Result<Place> {
    let shared = Shared::of_this_thread();
    let mut reserve = shared.look();
    if reserve.owed > 0 { Err(Errno::MFILE.into()) } else { reserve.place() }
}

/// A place for somebody who had one, before anybody new gets any: as soon as there is one, but not later than after
/// `patience`.
pub async fn next_place(patience: Duration) -> Option<Place> {
    let shared = Shared::of_this_thread();
    let place = || shared.look().place();
    if let Ok(place) = place() {
        return Some(place);
    }
    let _owed = Owed::new(&shared);
    let found = async {
        loop {
            sleep(LOOK_EVERY).await;
            if let Ok(place) = place() {
                return place;
            }
        }
    };
    timeout(patience, found).await.ok()
}

/// One that is owed a place, until dropped.
struct Owed<'a>(&'a Shared);

impl<'a> Owed<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.look().owed += 1;
        Self(shared)
    }
}

impl Drop for Owed<'_> {
    fn drop(&mut self) {
        self.0.look().owed -= 1;
    }
}

/// Whether there is none left besides the reserve.
pub fn are_short() -> bool {
    place().is_err()
}

/// The reserve, lent to a connection to the gateway (and the look-up of its name), or to the reader of a file, while
/// this lives.
pub struct Loan(Option<Shared>);

/// Frees the reserve for the caller, unless descriptors are free besides.
pub fn lend() -> Loan {
    let shared = Shared::of_this_thread();
    let mut reserve = shared.look();
    if reserve.lent == 0 && reserve.has_room() {
        return Loan(None);
    }
    reserve.lent += 1;
    reserve.held.clear();
    drop(reserve);
    Loan(Some(shared))
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let Some(shared) = &self.0 {
            shared.look().lent -= 1;
        }
    }
}

/// Whether this is the process's or the system's limit on descriptors.
pub fn ran_out(error: &io::Error) -> bool {
    [Errno::MFILE, Errno::NFILE].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::worker::{Main, Options, Workers};

    fn state() -> (usize, usize) {
        let shared = Shared::of_this_thread();
        let reserve = shared.look();
        (reserve.held.len(), reserve.lent)
    }

    #[test]
    fn a_loan_is_taken_from_the_reserve_only_when_nothing_else_is_free_and_nothing_is_accepted_meanwhile() {
        keep_free(3);
        assert_eq!(state(), (3, 0));
        {
            let _room = lend();
            assert_eq!(state(), (3, 0), "there are others");
            assert!(place().is_ok());
        }
        // As if there were no others.
        let shared = Shared::of_this_thread();
        shared.look().held.clear();
        shared.look().lent = 1;
        {
            let _room = lend();
            assert_eq!(state(), (0, 2), "who comes second shares it");
            assert!(place().is_err_and(|e| ran_out(&e)));
        }
        shared.look().lent -= 1;
        assert!(place().is_ok());
        assert_eq!(state(), (3, 0), "whole before anything is accepted");
    }

    #[test]
    fn who_had_a_place_gets_the_next_one_before_anybody_new() {
        crate::run::worker::run_alone(false, |_| async {
            // As if there were no others.
            let shared = Shared::of_this_thread();
            let lent = |lent| shared.look().lent = lent;
            lent(1);
            let taken = async {
                sleep(LOOK_EVERY).await;
                lent(0);
                place().is_err_and(|e| ran_out(&e))
            };
            let (found, newcomer_waits) =
                futures_lite::future::zip(next_place(Duration::from_secs(9)), taken).await;
            assert!(found.is_some() && newcomer_waits && place().is_ok());
            lent(1);
            assert!(next_place(LOOK_EVERY).await.is_none());
            lent(0);
            assert!(place().is_ok(), "nobody is owed anything any more");
        })
        .unwrap();
    }

    #[test]
    fn who_keeps_nothing_free_is_never_in_the_way() {
        keep_free(0);
        let (_a, _b) = (lend(), place().unwrap());
        assert_eq!(state(), (0, 0));
        assert!(!ran_out(&io::ErrorKind::ConnectionRefused.into()));
    }

    #[test]
    fn what_one_worker_lends_out_another_does_not_give_away() {
        keep_free(2);
        let shared = Shared::of_this_thread();
        shared.look().lent = 1;
        let options = Options { count: 2, pin: false, require_io_uring: false };
        let (tell, told) = std::sync::mpsc::channel();
        let main: Main = Arc::new(move |_| {
            let short = are_short();
            let _ = tell.send(short);
            Box::pin(async {})
        });
        assert!(Workers::start("test", &options, &main).unwrap().join());
        assert_eq!([(); 2].map(|()| told.recv().unwrap()), [true; 2]);
        assert!(std::thread::spawn(|| !are_short()).join().unwrap(), "somebody else's reserve is whole");
    }
}
