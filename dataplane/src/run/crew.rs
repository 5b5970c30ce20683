//! Role: the workers of one program, among which tasks are spread.
//! Invariants: a task stays on the worker that runs it, and has what that worker has for itself · a task that finds no
//! place is dropped, and what it held is given back.
//! See: ARCHITECTURE.md "Threads".

use std::{
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_channel::{Receiver, Sender};

use crate::run::worker::spawn;

/// Tasks that wait for one worker, which begins them as soon as it has a turn for them.
const WAITING_MAX: usize = 256;

/// Makes a task on the worker that runs it, of what that one has.
type Task<L> = Box<dyn FnOnce(Rc<L>) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// All workers of a program. Each has an `L` for itself.
pub struct Crew<L> {
    workers: Vec<Sender<Task<L>>>,
    next: AtomicUsize,
}

/// The tasks that wait for one worker.
pub struct Inbox<L>(Receiver<Task<L>>);

impl<L> Clone for Inbox<L> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<L: 'static> Crew<L> {
    /// A crew of so many workers, and what each has to [run](Inbox::run).
    pub fn new(workers: usize) -> (Arc<Self>, Vec<Inbox<L>>) {
        let channels = (0..workers).map(|_| async_channel::bounded(WAITING_MAX));
        let (workers, inboxes) = channels.map(|(give, taken)| (give, Inbox(taken))).unzip();
        (Arc::new(Self { workers, next: AtomicUsize::new(0) }), inboxes)
    }

    /// How many workers there are.
    pub fn count(&self) -> usize {
        self.workers.len()
    }

    /// The next worker in turn, from 0.
    pub fn next_worker(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed) % self.workers.len()
    }

    /// Whether a worker would run one more task.
    pub fn has_room(&self, worker: usize) -> bool {
        let inbox = &self.workers[worker];
        !inbox.is_full() && !inbox.is_closed()
    }

    /// Has the next worker run a task.
    pub fn spawn<F: Future<Output = ()> + 'static>(&self, task: impl FnOnce(Rc<L>) -> F + Send + 'static) {
        self.spawn_on(self.next_worker(), task);
    }

    /// Has this worker run a task.
    pub fn spawn_on<F: Future<Output = ()> + 'static>(
        &self,
        worker: usize,
        task: impl FnOnce(Rc<L>) -> F + Send + 'static,
    ) {
        let task: Task<L> = Box::new(move |local| Box::pin(task(local)));
        if self.workers[worker].try_send(task).is_err() {
            tracing::debug!("a worker has too much to begin with: a task was dropped");
        }
    }

    /// No task is taken any more; those that wait begin.
    pub fn dismiss(&self) {
        for worker in &self.workers {
            worker.close();
        }
    }
}

impl<L: 'static> Inbox<L> {
    /// Begins tasks until the crew is dismissed; `local` is what this worker has.
    pub async fn run(self, local: Rc<L>) {
        while let Ok(task) = self.0.recv().await {
            spawn(task(local.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::run::worker::run_alone;

    #[test]
    fn tasks_go_round_among_the_workers_and_none_begins_behind_the_end() {
        let (crew, inboxes) = Crew::<usize>::new(3);
        let (tell, told) = mpsc::channel();
        let begin = |number: usize| {
            let tell = tell.clone();
            crew.spawn(move |local| async move { tell.send((number, *local)).unwrap() });
        };
        (0..6).for_each(begin);
        let run = |(index, inbox): (usize, Inbox<usize>)| {
            std::thread::spawn(move || run_alone(false, |_| inbox.run(Rc::new(index))).unwrap())
        };
        let workers: Vec<_> = inboxes.into_iter().enumerate().map(run).collect();
        let mut ran: Vec<_> = told.iter().take(6).collect();
        ran.sort_unstable();
        assert_eq!(ran, [(0, 0), (1, 1), (2, 2), (3, 0), (4, 1), (5, 2)]);
        crew.dismiss();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        begin(7);
        drop((crew, tell));
        assert_eq!(told.iter().count(), 0);
    }

    #[test]
    fn what_a_task_held_that_finds_no_place_is_given_back() {
        let (crew, _inboxes) = Crew::<()>::new(2);
        let held = Arc::new(());
        for _ in 0..WAITING_MAX + 5 {
            let held = held.clone();
            crew.spawn_on(1, move |_| async move { drop(held) });
        }
        assert_eq!(Arc::strong_count(&held), 1 + WAITING_MAX);
        assert!(crew.has_room(0) && !crew.has_room(1), "the others have room for what is passed on");
    }
}
