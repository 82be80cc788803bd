//! The scrubber: reads every table once in each interval and looks for damage, before somebody needs what is damaged.
//!
//! Hears: `Tick` from its timer, `Step` from itself. Tells: the quarantine.
//! Loses on restart: the step it was at. How far it has come stands in `Shared`; tables are taken by number, round and round, so a
//! look at the next begins where the last one ended.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::shared::Shared;
use super::timer::{Timer, send_after};
use crate::error::Result;
use crate::storage::TableCheck;
use crate::types::{FileId, u64_of};
use crate::version::{TableMeta, Version};

/// Turns that an interval is divided into, unless they would be longer than [`LONGEST_TURN`].
const TURNS: u32 = 256;
const LONGEST_TURN: Duration = Duration::from_secs(1);
/// Pressure from which a turn is skipped.
const CALM: f64 = 0.5;
/// Turns that are made up for after they were skipped.
const ARREARS: u64 = 8;

#[derive(Debug)]
pub(crate) enum Msg {
    /// Time for a look.
    Tick,
    /// Go on while there is something due.
    Step,
}

/// How far the scrubber has come.
#[derive(Debug, Default)]
pub(crate) struct Scrub {
    /// The last table that was looked at.
    after: FileId,
    /// The table that is being looked at, between two steps.
    check: Option<TableCheck>,
    /// Bytes to read before the next turn.
    due: u64,
    /// Bytes of the last step beyond what was due.
    ahead: u64,
}

impl Scrub {
    /// A turn begins: so many bytes more are to be read.
    fn turn(&mut self, bytes: u64) {
        let paid = bytes.min(self.ahead);
        self.ahead -= paid;
        self.due = self.due.saturating_add(bytes - paid).min(bytes.saturating_mul(ARREARS));
    }

    /// So many bytes were read.
    fn read(&mut self, bytes: u64) {
        self.ahead = self.ahead.saturating_add(bytes.saturating_sub(self.due));
        self.due = self.due.saturating_sub(bytes);
    }
}

#[derive(Debug)]
pub(crate) struct State {
    shared: Arc<Shared>,
    /// `None` if there is nothing to do, ever.
    interval: Option<Duration>,
    timer: Option<Timer>,
}

#[derive(Debug)]
pub(crate) struct Scrubber;

impl Actor for Scrubber {
    type Msg = Msg;
    type State = State;
    type Arguments = Arc<Shared>;

    async fn pre_start(
        &self,
        myself: ActorRef<Msg>,
        shared: Arc<Shared>,
    ) -> Result<State, ActorProcessingErr> {
        shared.routes.scrubber.set(myself.clone());
        let interval = shared.config.io.scrub_interval;
        let timer =
            interval.map(|interval| send_after(shared.env(), turn(interval), &myself, Msg::Tick));
        Ok(State { shared, interval, timer })
    }

    async fn handle(
        &self,
        myself: ActorRef<Msg>,
        message: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        #[cfg(feature = "chaos")]
        state.shared.chaos.strike(super::Component::Scrubber)?;
        let Some(interval) = state.interval else { return Ok(()) };
        if let Msg::Tick = message {
            state.timer = Some(send_after(state.shared.env(), turn(interval), &myself, Msg::Tick));
            let total = total_bytes(state.shared.views.load().version());
            with_scrub(&state.shared, |scrub| scrub.turn(share(total, interval)));
        }
        let calm = state.shared.pressure.borrow().value < CALM;
        if calm && with_scrub(&state.shared, |scrub| scrub.due > 0) {
            match step(&state.shared).await {
                Ok(true) => myself.cast(Msg::Step)?,
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "scrubbing goes on with the next table"),
            }
        }
        Ok(())
    }
}

/// Time between two turns.
fn turn(interval: Duration) -> Duration {
    (interval / TURNS).clamp(Duration::from_millis(1), LONGEST_TURN)
}

/// Bytes of one turn: a little more than it takes to come round in time.
fn share(total: u64, interval: Duration) -> u64 {
    let (turn, interval) = (turn(interval).as_micros(), interval.as_micros().max(1));
    let exact = u128::from(total).saturating_mul(turn).div_ceil(interval);
    u64::try_from(exact.saturating_add(exact / 16).saturating_add(1)).unwrap_or(u64::MAX)
}

fn total_bytes(version: &Version) -> u64 {
    version.tables.values().map(|table| table.file_bytes).sum()
}

/// The table whose turn it is after `after`: by number, round and round.
fn next(tables: &BTreeMap<FileId, Arc<TableMeta>>, after: FileId) -> Option<&Arc<TableMeta>> {
    let later = tables.range(FileId(after.0.saturating_add(1))..).next();
    later.or_else(|| tables.first_key_value()).map(|(_, meta)| meta)
}

fn with_scrub<T>(shared: &Shared, change: impl FnOnce(&mut Scrub) -> T) -> T {
    change(&mut shared.scrub.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Looks at the next piece of a table. Returns whether there was one.
async fn step(shared: &Arc<Shared>) -> Result<bool> {
    let view = shared.views.load_full();
    let tables = &view.version().tables;
    let begun = with_scrub(shared, |scrub| {
        // A table that left the version is of no interest any more.
        let begun = scrub.check.take().filter(|check| tables.contains_key(&check.meta().file));
        begun.or_else(|| {
            let meta = next(tables, scrub.after)?;
            scrub.after = meta.file;
            let path = shared.store.layout().table(meta.file);
            Some(TableCheck::new(&shared.env().fs, &path, meta))
        })
    });
    let Some(mut check) = begun else { return Ok(false) };
    let before = check.done().bytes;
    drop(view); // the check has a file of its own
    let job = move || {
        let more = check.step()?;
        Ok((check, more))
    };
    let (check, more) = shared.env().on_disk(job).await?;
    let bytes = check.done().bytes - before;
    shared.metrics.scrub_bytes.inc(bytes);
    if !more || !check.done().damaged.is_empty() {
        shared.quarantine.settle(&check);
    }
    if !more {
        shared.metrics.scrub_damages.inc(u64_of(check.done().damaged.len()));
    }
    with_scrub(shared, |scrub| {
        // Also a step that reads nothing counts, so that a turn ends.
        scrub.read(bytes.max(1));
        scrub.check = more.then_some(check);
    });
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_turns_of_an_interval_cover_every_byte() {
        for interval in [1, 100, 10_000, 86_400_000].map(Duration::from_millis) {
            for total in [0, 1, 1000, 1 << 40] {
                let turns = interval.as_micros() / turn(interval).as_micros();
                let covered = turns * u128::from(share(total, interval));
                assert!(covered >= u128::from(total), "{total} bytes in {interval:?}");
                assert!(
                    covered <= u128::from(total) * 5 / 4 + turns * 2,
                    "{total} in {interval:?}"
                );
            }
        }
    }

    #[test]
    fn a_step_beyond_what_was_due_is_paid_by_later_turns() {
        let mut scrub = Scrub::default();
        scrub.turn(10);
        scrub.read(35);
        assert_eq!((scrub.due, scrub.ahead), (0, 25));
        scrub.turn(10);
        assert_eq!(scrub.due, 0);
        scrub.turn(10);
        scrub.turn(10);
        assert_eq!((scrub.due, scrub.ahead), (5, 0));
        for _ in 0..100 {
            scrub.turn(10);
        }
        assert_eq!(scrub.due, 80, "after a long wait there is no storm");
    }
}
