//! How long a task that only calls the engine keeps its thread: half a millisecond, about.
//!
//! A call that need not wait is ready at its first poll, so a loop of such calls would keep every other task from its turn. Tokio lets a
//! task do 128 things in a turn; but a read that a filter answers takes a twentieth of one that unpacks a block, and giving way, which
//! moves the task to another thread as often as not, takes as long as ten of the former. So work is counted, by the thread on which it
//! is done, and only as much of it as a read from a file is one thing.

use std::cell::Cell;
use std::pin::pin;
use std::task::{Context, Poll, ready};

/// A read of a key, without what it reads from files.
pub(crate) const GET: u32 = 2;
/// Placing a scan.
pub(crate) const SEEK: u32 = 4;
/// An entry of a scan.
pub(crate) const ENTRY: u32 = 1;
/// A read from a file, with what is unpacked of it.
const READ: u32 = 8;
/// Bytes of a file that are one more.
const READ_BYTES: usize = 512;
/// A write, without its operations.
const WRITE: u32 = 4;
/// Bytes of a write that are one more.
const WRITE_BYTES: usize = 256;

/// Work, in quarters of a microsecond, that is one thing: 128 of them are a turn.
const THING: u32 = 16;
/// No thread owes more than a turn.
const MOST: u32 = 128 * THING;

thread_local! {
    static DONE: Cell<u32> = const { Cell::new(0) };
}

/// Work for a read of so many bytes of a file.
pub(crate) fn read(bytes: usize) -> u32 {
    READ.saturating_add(part(bytes, READ_BYTES))
}

/// Work for a write of so many operations and bytes.
pub(crate) fn write(operations: usize, bytes: usize) -> u32 {
    WRITE
        .saturating_add(part(operations, 1).saturating_mul(WRITE))
        .saturating_add(part(bytes, WRITE_BYTES))
}

fn part(count: usize, of: usize) -> u32 {
    u32::try_from(count / of).unwrap_or(u32::MAX)
}

/// Counts work that this thread did.
#[inline]
pub(crate) fn spend(work: u32) {
    DONE.with(|done| done.set(done.get().saturating_add(work).min(MOST)));
}

/// Lets other tasks have their turn, if this thread has worked long enough.
pub(crate) async fn give_way() {
    if is_due() {
        std::future::poll_fn(poll_give_way).await;
    }
}

/// Like [`give_way`]; polled again, it goes on.
#[inline]
pub(crate) fn poll_give_way(cx: &mut Context<'_>) -> Poll<()> {
    while is_due() {
        ready!(pin!(tokio::task::coop::consume_budget()).poll(cx));
        DONE.with(|done| done.set(done.get().saturating_sub(THING)));
    }
    Poll::Ready(())
}

#[inline]
fn is_due() -> bool {
    DONE.with(Cell::get) >= THING
}
