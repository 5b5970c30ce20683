//! Role: a task's future whose panic ends the task alone.
//! Invariants: stores the future once: a task is as large as what it runs.
//! See: ARCHITECTURE.md "Threads".

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;

pin_project! {
    /// Runs `task`; after a panic in it, `on_panic`. (An `async` block around `catch_unwind` would
    /// store the task twice: as what it captured, and as what it awaits.)
    pub(crate) struct Caught<F> {
        #[pin]
        task: F,
        on_panic: fn(),
    }
}

impl<F> Caught<F> {
    pub(crate) fn new(task: F, on_panic: fn()) -> Self {
        Self { task, on_panic }
    }
}

impl<F: Future<Output = ()>> Future for Caught<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        // A panic ends the task here: nothing looks at what it left half-done.
        catch_unwind(AssertUnwindSafe(|| this.task.poll(cx))).unwrap_or_else(|_| {
            (this.on_panic)();
            Poll::Ready(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_stored_once() {
        async fn task(bytes: [u8; 4096]) {
            std::future::ready(()).await;
            assert_eq!(bytes[0], 0);
        }
        let alone = size_of_val(&task([0; 4096]));
        assert!(size_of_val(&Caught::new(task([0; 4096]), || ())) <= alone + 2 * size_of::<fn()>());
    }
}
