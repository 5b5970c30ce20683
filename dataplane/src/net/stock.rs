//! Role: memory of one kind, of which a worker keeps some for whoever needs it next.
//! Invariants: what was out at once within the last second or two is kept when it comes back; the rest is the
//! system's again, a little between two turns, whether anybody uses the stock or not · what was lent on one thread may
//! come back on another: only differences of the counts mean anything then.
//! See: `buffer` and `tls::held`, which have one each.

use std::{cell::RefCell, thread::LocalKey, time::Duration};

use crate::run::{budget, timer::sleep, worker};

/// How often it is looked what is kept too many.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What is kept, and how much is out.
pub(crate) struct Stock<T> {
    idle: Vec<T>,
    /// Below zero where more came back than was lent here.
    lent: isize,
    /// The most that was lent at once since the last look.
    most: isize,
    /// So many are kept whether they are needed or not, ..
    least: usize,
    /// .. and so many let go at once.
    at_once: usize,
    /// The runtime in which somebody looks.
    tended_in: Option<u64>,
}

/// A thread's.
pub(crate) type Place<T> = LocalKey<RefCell<Stock<T>>>;

impl<T> Stock<T> {
    /// Keeps `least` in any case, and lets `at_once` go between two turns.
    pub(crate) const fn new(least: usize, at_once: usize) -> Self {
        Self { idle: Vec::new(), lent: 0, most: 0, least, at_once, tended_in: None }
    }

    /// How many are out, where none goes to another thread.
    pub(crate) fn lent(&self) -> usize {
        self.lent.max(0).unsigned_abs()
    }

    /// Lends one; if there is none, one that `make` makes.
    pub(crate) fn take(&mut self, make: impl FnOnce() -> T) -> T {
        self.lent += 1;
        self.most = self.most.max(self.lent);
        self.idle.pop().unwrap_or_else(make)
    }

    /// How many nobody has needed since the last look.
    fn look(&mut self) -> usize {
        let needed = (self.most - self.lent).unsigned_abs().max(self.least);
        self.most = self.lent;
        self.idle.len().saturating_sub(needed)
    }
}

impl<T: 'static> Stock<T> {
    /// Takes one back into its place. One that outlives its thread's is simply dropped.
    pub(crate) fn give(place: &'static Place<T>, one: T) {
        let _ = place.try_with(|stock| {
            let mut stock = stock.borrow_mut();
            stock.lent -= 1;
            stock.idle.push(one);
            if stock.idle.len() > stock.least && stock.tended_in != worker::running() {
                stock.tended_in = worker::running();
                worker::spawn(tend(place));
            }
        });
    }
}

/// Lets go what is kept too many, until only the least is.
async fn tend<T: 'static>(place: &'static Place<T>) {
    loop {
        sleep(LOOK_EVERY).await;
        let mut surplus = place.with_borrow_mut(Stock::look);
        while surplus > 0 {
            surplus = place.with_borrow_mut(|stock| {
                // Meanwhile some may have been taken.
                let now = surplus.min(stock.at_once).min(stock.idle.len());
                stock.idle.truncate(stock.idle.len() - now);
                if stock.idle.is_empty() { 0 } else { surplus - now }
            });
            budget::pass().await;
        }
        let rests = place.with_borrow_mut(|stock| {
            let rests = stock.idle.len() <= stock.least;
            stock.tended_in = stock.tended_in.filter(|_| !rests);
            rests
        });
        if rests {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::worker::run_alone;

    thread_local! {
        static PLACE: RefCell<Stock<Box<u8>>> = const { RefCell::new(Stock::new(2, 3)) };
    }

    fn take() -> Box<u8> {
        PLACE.with_borrow_mut(|stock| stock.take(|| Box::new(7)))
    }

    fn idle() -> usize {
        PLACE.with_borrow(|stock| stock.idle.len())
    }

    #[test]
    fn what_is_needed_again_and_again_is_kept_and_the_rest_let_go() {
        run_alone(false, |_| async {
            let lent: Vec<_> = (0..20).map(|_| take()).collect();
            lent.into_iter().for_each(|one| Stock::give(&PLACE, one));
            assert_eq!(idle(), 20, "for whoever comes next");
            for _ in 0..30 {
                let lent: Vec<_> = (0..5).map(|_| take()).collect();
                lent.into_iter().for_each(|one| Stock::give(&PLACE, one));
                sleep(LOOK_EVERY / 10).await;
            }
            assert_eq!(idle(), 5);
            sleep(LOOK_EVERY * 5 / 2).await;
            assert_eq!(idle(), 2);
            assert_eq!(PLACE.with_borrow(|stock| stock.tended_in), None, "nobody looks any more");
        })
        .unwrap();
    }

    #[test]
    fn one_that_was_lent_on_another_thread_is_kept_where_it_comes_back() {
        let one = std::thread::spawn(take).join().unwrap();
        Stock::give(&PLACE, one);
        assert_eq!(idle(), 1);
        drop((take(), take()));
        let (surplus, lent) = PLACE.with_borrow_mut(|stock| (stock.look(), stock.lent()));
        assert_eq!((surplus, lent), (0, 1), "of two that were lent one came back before");
    }

    #[test]
    fn another_runtime_of_the_thread_looks_by_itself_and_without_one_all_is_kept() {
        let lend = |number: usize| {
            let lent: Vec<_> = (0..number).map(|_| take()).collect();
            lent.into_iter().for_each(|one| Stock::give(&PLACE, one));
        };
        lend(9);
        assert_eq!(idle(), 9);
        // Ends while it is tended.
        run_alone(false, |_| async { lend(10) }).unwrap();
        run_alone(false, |_| async {
            lend(11);
            sleep(LOOK_EVERY * 5 / 2).await;
            assert_eq!(idle(), 2);
        })
        .unwrap();
    }
}
