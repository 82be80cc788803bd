//! When a task that only reads gives way to others.
//!
//! A get that need not wait is ready at its first poll, so a loop of gets would keep every other task from its turn. Tokio lets a task do
//! 128 things in a turn. A get that reads from a file is one of them. One from memory takes a tenth of that, and giving way, which moves
//! the task to another thread as often as not, takes as long as ten gets from memory: so four of those are one thing.

use std::cell::Cell;

/// Gets from memory that are as one from a file.
const QUARTERS: u32 = 4;

thread_local! {
    static DONE: Cell<u32> = const { Cell::new(0) };
}

/// At the beginning of a get: lets other tasks have their turn, if this one has done enough.
pub(crate) async fn before_get() {
    if spend(1) >= QUARTERS {
        // First that: of many gets that are polled together, the one that has to wait must not clear the way for those behind it.
        tokio::task::coop::consume_budget().await;
        DONE.with(|done| done.set(0));
    }
}

/// A get reads from a file.
pub(crate) fn reads_file() {
    spend(QUARTERS - 1);
}

fn spend(quarters: u32) -> u32 {
    DONE.with(|done| {
        let sum = done.get().saturating_add(quarters);
        done.set(sum);
        sum
    })
}
