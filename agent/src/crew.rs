//! Role: the agent's workers, among which lanes are spread.
//! Invariants: a lane, its sessions and its targets stay on one worker; what all lanes of a link know of each other is
//! shared · a task that finds no place is dropped, and what it held is given back.
//! See: ARCHITECTURE.md "Threads".

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_channel::{Receiver, Sender};
use narrowlink_dataplane::run::worker::spawn;

/// Tasks that wait for one worker: lanes that are to be opened, a handful of each link.
const WAITING_MAX: usize = 256;

/// Makes a task on the worker that runs it.
type Task = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// All workers of an agent.
pub(crate) struct Crew {
    workers: Vec<Sender<Task>>,
    next: AtomicUsize,
}

/// The tasks of one worker.
#[derive(Clone)]
pub(crate) struct Tasks(Receiver<Task>);

impl Crew {
    /// A crew of so many workers, and what each has to [run](Tasks::run).
    pub(crate) fn new(workers: usize) -> (Arc<Self>, Vec<Tasks>) {
        let channels = (0..workers).map(|_| async_channel::bounded(WAITING_MAX));
        let (workers, tasks) = channels.map(|(give, taken)| (give, Tasks(taken))).unzip();
        (Arc::new(Self { workers, next: AtomicUsize::new(0) }), tasks)
    }

    /// Has the next worker run a task.
    pub(crate) fn spawn<F: Future<Output = ()> + 'static>(&self, task: impl FnOnce() -> F + Send + 'static) {
        let next = self.next.fetch_add(1, Ordering::Relaxed) % self.workers.len();
        let task: Task = Box::new(move || Box::pin(task()));
        if self.workers[next].try_send(task).is_err() {
            tracing::debug!("a worker has too much to begin with: a task was dropped");
        }
    }

    /// Nothing begins any more.
    pub(crate) fn dismiss(&self) {
        for worker in &self.workers {
            worker.close();
        }
    }
}

impl Tasks {
    /// Begins tasks until the crew is dismissed.
    pub(crate) async fn run(self) {
        while let Ok(task) = self.0.recv().await {
            spawn(task());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use narrowlink_dataplane::run::worker::run_alone;

    use super::*;

    #[test]
    fn tasks_go_round_among_the_workers_and_none_begins_behind_the_end() {
        let (crew, tasks) = Crew::new(3);
        let (tell, told) = mpsc::channel();
        let begin = |number: usize| {
            let tell = tell.clone();
            crew.spawn(move || async move { tell.send((number, std::thread::current().id())).unwrap() });
        };
        (0..6).for_each(begin);
        let workers: Vec<_> = tasks
            .into_iter()
            .map(|tasks| std::thread::spawn(|| run_alone(false, |_| tasks.run()).unwrap()))
            .collect();
        let mut ran: Vec<_> = told.iter().take(6).collect();
        ran.sort_unstable_by_key(|(number, _)| *number);
        let on = |number: usize| ran[number].1;
        assert!(on(0) != on(1) && on(1) != on(2) && on(0) != on(2), "{ran:?}");
        assert_eq!([on(3), on(4), on(5)], [on(0), on(1), on(2)]);
        crew.dismiss();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        begin(7);
        drop((crew, tell));
        assert_eq!(told.iter().count(), 0);
    }

    #[test]
    fn what_a_task_held_that_finds_no_place_is_given_back() {
        let (crew, _tasks) = Crew::new(1);
        let held = Arc::new(());
        for _ in 0..WAITING_MAX + 5 {
            let held = held.clone();
            crew.spawn(move || async move { drop(held) });
        }
        assert_eq!(Arc::strong_count(&held), 1 + WAITING_MAX);
    }
}
