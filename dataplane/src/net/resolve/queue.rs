//! Role: which look-up runs next, so that one asker's silent names delay nobody else's.
//! Invariants: askers take turns · what runs for one asker is bounded, and the fuller the house, the less one may have
//! of it · the line of each asker is bounded, and where all are full the longest gives way · the way to a gateway has
//! places of its own, which no client can take · nothing of an asker is kept once nothing of it waits or runs.
//! See: `resolve`, which has the threads.

use std::collections::{HashMap, VecDeque};

/// Look-ups of one client that may run at the same time.
const CLIENT_RUNNING_MAX: usize = 8;
/// Look-ups of a gateway's name that may run at the same time: each try asks anew, though the last one may still hang.
const GATEWAY_RUNNING_MAX: usize = 4;
/// Look-ups of one asker that may wait.
const WAITING_MAX: usize = 256;
/// Look-ups of all clients that may wait.
const WAITING_IN_ALL_MAX: usize = 1024;

/// On whose behalf a name is looked up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Asker {
    /// The program itself, on its way to this gateway.
    Gateway(Box<str>),
    /// The client of this name, whose target it is.
    Client(Box<str>),
}

/// So much of the house that one client may have, where `running` look-ups of clients run: 5 clients with hung names
/// hold half of the threads, and it takes 28 of them to hold all.
const fn share(running: usize) -> usize {
    match running {
        0..32 => CLIENT_RUNNING_MAX,
        32..48 => 2,
        48..64 => 1,
        _ => 0,
    }
}

/// The questions that wait, and a count of those that run.
pub(super) struct Queue<Q> {
    lines: HashMap<Asker, Line<Q>>,
    /// Askers with questions that wait, in the order of their turns; each once.
    turns: VecDeque<Asker>,
    /// Of all clients.
    running: usize,
    waiting: usize,
}

struct Line<Q> {
    waiting: VecDeque<Q>,
    running: usize,
}

/// A question that may be given up by who asked it.
pub(super) trait Question {
    /// Nobody waits for the answer any more.
    fn is_over(&self) -> bool;
}

impl<Q> Default for Queue<Q> {
    fn default() -> Self {
        Self { lines: HashMap::new(), turns: VecDeque::new(), running: 0, waiting: 0 }
    }
}

impl<Q: Question> Queue<Q> {
    /// Puts a question into its asker's line; gives it back when there is no room.
    pub(super) fn push(&mut self, asker: Asker, question: Q) -> Result<(), Q> {
        let own = self.lines.get(&asker).map_or(0, |line| line.waiting.len());
        if own >= WAITING_MAX || self.waiting >= WAITING_IN_ALL_MAX {
            self.forget_those_that_are_over();
        }
        let own = self.lines.get(&asker).map_or(0, |line| line.waiting.len());
        let full =
            is_client(&asker) && self.waiting >= WAITING_IN_ALL_MAX && !self.shorten_one_above(own + 1);
        if full || own >= WAITING_MAX {
            return Err(question);
        }
        self.waiting += usize::from(is_client(&asker));
        let line = self.lines.entry(asker.clone()).or_insert_with(Line::new);
        line.waiting.push_back(question);
        if line.waiting.len() == 1 {
            self.turns.push_back(asker);
        }
        Ok(())
    }

    /// Takes the next question that may run; [`Queue::done`] when it has.
    pub(super) fn next(&mut self) -> Option<(Asker, Q)> {
        for _ in 0..self.turns.len() {
            let asker = self.turns.pop_front()?;
            let may_run = self.may_run(&asker);
            let Some(line) = self.lines.get_mut(&asker) else { continue };
            let before = line.waiting.len();
            while line.waiting.front().is_some_and(Question::is_over) {
                line.waiting.pop_front();
            }
            let question = if may_run { line.waiting.pop_front() } else { None };
            line.running += usize::from(question.is_some());
            let left = line.waiting.len();
            if left > 0 {
                self.turns.push_back(asker.clone());
            }
            if is_client(&asker) {
                self.waiting -= before - left;
                self.running += usize::from(question.is_some());
            }
            match question {
                Some(question) => return Some((asker, question)),
                None => self.forget_if_idle(&asker),
            }
        }
        None
    }

    /// A look-up that ran for `asker` has ended.
    pub(super) fn done(&mut self, asker: &Asker) {
        let Some(line) = self.lines.get_mut(asker) else { return };
        line.running -= 1;
        self.running -= usize::from(is_client(asker));
        self.forget_if_idle(asker);
    }

    fn may_run(&self, asker: &Asker) -> bool {
        let running = self.lines.get(asker).map_or(0, |line| line.running);
        running < if is_client(asker) { share(self.running) } else { GATEWAY_RUNNING_MAX }
    }

    fn forget_if_idle(&mut self, asker: &Asker) {
        if self.lines.get(asker).is_some_and(|line| line.waiting.is_empty() && line.running == 0) {
            self.lines.remove(asker);
        }
    }

    fn forget_those_that_are_over(&mut self) {
        for line in self.lines.values_mut() {
            line.waiting.retain(|question| !question.is_over());
        }
        self.turns.retain(|asker| self.lines.get(asker).is_some_and(|line| !line.waiting.is_empty()));
        self.lines.retain(|_, line| line.running > 0 || !line.waiting.is_empty());
        let clients = self.lines.iter().filter(|(asker, _)| is_client(asker));
        self.waiting = clients.map(|(_, line)| line.waiting.len()).sum();
    }

    /// Takes the newest question of a client that has the most waiting, if that is more than `own`: who has many gives
    /// way to who has few.
    fn shorten_one_above(&mut self, own: usize) -> bool {
        let clients = self.lines.iter_mut().filter(|(asker, _)| is_client(asker));
        let Some((_, longest)) = clients.max_by_key(|(_, line)| line.waiting.len()) else { return false };
        if longest.waiting.len() <= own {
            return false;
        }
        longest.waiting.pop_back();
        self.waiting -= 1;
        true
    }
}

impl<Q> Line<Q> {
    const fn new() -> Self {
        Self { waiting: VecDeque::new(), running: 0 }
    }
}

const fn is_client(asker: &Asker) -> bool {
    matches!(asker, Asker::Client(_))
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, rc::Rc};

    use super::*;

    #[derive(Debug, Clone)]
    struct Asked(u32, Rc<Cell<bool>>);

    impl Question for Asked {
        fn is_over(&self) -> bool {
            self.1.get()
        }
    }

    fn client(n: usize) -> Asker {
        Asker::Client(format!("client {n}").into())
    }

    fn gateway() -> Asker {
        Asker::Gateway("gw".into())
    }

    fn asked(n: u32) -> Asked {
        Asked(n, Rc::default())
    }

    fn push(queue: &mut Queue<Asked>, asker: &Asker, count: u32) -> usize {
        (0..count).filter(|&n| queue.push(asker.clone(), asked(n)).is_ok()).count()
    }

    fn start_all(queue: &mut Queue<Asked>) -> Vec<Asker> {
        std::iter::from_fn(|| queue.next().map(|(asker, _)| asker)).collect()
    }

    fn count(of: &[Asker], asker: &Asker) -> usize {
        of.iter().filter(|one| *one == asker).count()
    }

    #[test]
    fn who_asks_for_a_hundred_names_has_eight_of_them_looked_up_and_the_next_client_as_many() {
        let mut queue = Queue::default();
        assert_eq!(push(&mut queue, &client(0), 100), 100);
        assert_eq!(start_all(&mut queue).len(), CLIENT_RUNNING_MAX);
        push(&mut queue, &client(1), 100);
        let started = start_all(&mut queue);
        assert_eq!((started.len(), count(&started, &client(1))), (CLIENT_RUNNING_MAX, CLIENT_RUNNING_MAX));
        queue.done(&client(0));
        assert_eq!(start_all(&mut queue), [client(0)]);
    }

    #[test]
    fn askers_take_turns_and_each_has_its_questions_in_their_order() {
        let mut queue = Queue::default();
        for n in 0..3 {
            push(&mut queue, &client(n), 2);
        }
        let got: Vec<_> = std::iter::from_fn(|| queue.next()).map(|(asker, q)| (asker, q.0)).collect();
        let turns = [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)];
        assert_eq!(got, turns.map(|(n, question)| (client(n), question)));
    }

    #[test]
    fn the_fuller_the_house_the_less_one_has_of_it_and_the_gateway_always_its_own() {
        let mut queue = Queue::default();
        let mut running = 0;
        for n in 0..4 {
            push(&mut queue, &client(n), 100);
            running += start_all(&mut queue).len();
        }
        assert_eq!(running, 32);
        for n in 4..40 {
            push(&mut queue, &client(n), 20);
            let started = start_all(&mut queue).len();
            assert_eq!(started, if n < 12 { 2 } else { usize::from(n < 28) }, "client {n}");
            running += started;
        }
        assert_eq!(running, 64);
        push(&mut queue, &gateway(), 9);
        assert_eq!(start_all(&mut queue), vec![gateway(); GATEWAY_RUNNING_MAX]);
        queue.done(&gateway());
        assert_eq!(start_all(&mut queue), [gateway()]);
    }

    #[test]
    fn a_line_is_bounded_and_the_longest_gives_way_where_all_are_full() {
        let mut queue = Queue::default();
        assert_eq!(push(&mut queue, &client(0), 999), WAITING_MAX);
        for n in 1..4 {
            push(&mut queue, &client(n), 999);
        }
        assert_eq!(queue.waiting, WAITING_IN_ALL_MAX);
        // A fifth has as much room as the others, and they have less: none is shut out.
        assert_eq!(push(&mut queue, &client(4), 999), 204);
        assert_eq!(queue.waiting, WAITING_IN_ALL_MAX);
        assert!(queue.lines.values().all(|line| (204..=205).contains(&line.waiting.len())));
        assert_eq!(push(&mut queue, &gateway(), 1), 1);
    }

    #[test]
    fn a_question_that_nobody_waits_for_is_never_asked_and_takes_no_room() {
        let mut queue = Queue::default();
        let given_up = asked(1);
        for _ in 0..WAITING_MAX {
            queue.push(client(0), given_up.clone()).unwrap();
        }
        assert!(queue.push(client(0), asked(2)).is_err());
        given_up.1.set(true);
        queue.push(client(0), asked(3)).unwrap();
        assert_eq!(queue.next().map(|(_, question)| question.0), Some(3));
        queue.push(client(1), given_up).unwrap();
        assert!(queue.next().is_none());
        queue.done(&client(0));
        assert!(queue.lines.is_empty() && queue.turns.is_empty() && queue.waiting == 0 && queue.running == 0);
    }

    #[test]
    fn a_turn_is_kept_by_who_may_not_run_and_used_as_soon_as_it_may() {
        let mut queue = Queue::default();
        push(&mut queue, &client(0), 9);
        start_all(&mut queue);
        push(&mut queue, &client(1), 1);
        assert_eq!(start_all(&mut queue), [client(1)]);
        queue.done(&client(0));
        assert_eq!(start_all(&mut queue), [client(0)]);
    }
}
