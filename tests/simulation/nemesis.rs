//! What goes wrong in a simulation while clients work.

use std::time::Duration;

use fastrand::Rng;
use nori_lsm::env::sim::{Fault, Operation, Trouble};
use nori_lsm::{Blow, Component, Level};

use crate::world::World;

/// Kinds of trouble that a life of a process may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weather {
    Calm,
    /// Calls to the disk fail, for a while.
    Faults,
    /// The disk is full now and then.
    Full,
    /// Components die.
    Deaths,
    All,
}

impl Weather {
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        match rng.u8(..10) {
            0..4 => Self::Calm,
            4 | 5 => Self::Faults,
            6 => Self::Full,
            7 | 8 => Self::Deaths,
            _ => Self::All,
        }
    }
}

/// Breaks things, and mends them, until it is over.
pub(crate) async fn nemesis(world: World, weather: Weather, mut rng: Rng) {
    while !world.is_over() && weather != Weather::Calm {
        world.sleep(Duration::from_millis(rng.u64(1..300))).await;
        if world.is_over() {
            return;
        }
        let kind = match weather {
            Weather::All => {
                *rng.choice(&[Weather::Faults, Weather::Full, Weather::Deaths]).unwrap()
            }
            other => other,
        };
        match kind {
            Weather::Faults => break_disk(&world, &mut rng).await,
            Weather::Full => fill_disk(&world, &mut rng).await,
            _ => strike(&world, &mut rng),
        }
    }
}

async fn break_disk(world: &World, rng: &mut Rng) {
    let operations = [Operation::Read, Operation::Open, Operation::List]
        .into_iter()
        .chain(Operation::MUTATING)
        .collect::<Vec<_>>();
    let mut fault = Fault::new(*rng.choice(&[Trouble::Io, Trouble::TooManyFiles]).unwrap());
    if rng.u8(..5) > 0 {
        fault = fault.on(*rng.choice(&operations).unwrap());
    }
    if rng.bool() {
        fault = fault.at(rng.choice(&["wal", "sst", "MANIFEST", "CURRENT"]).unwrap());
    }
    if rng.u8(..4) > 0 {
        fault = fault.times(rng.u64(1..4));
    }
    world.trace(format!("{fault:?}"));
    world.fs.inject(fault);
    world.sleep(Duration::from_millis(rng.u64(1..2000))).await;
    if !world.is_over() {
        world.fs.heal();
        world.trace("the disk works".to_owned());
    }
}

async fn fill_disk(world: &World, rng: &mut Rng) {
    let room = rng.u64(..20_000);
    world.trace(format!("{room} bytes are left on the disk"));
    world.fs.limit_space(room);
    world.sleep(Duration::from_millis(rng.u64(1..3000))).await;
    if !world.is_over() {
        world.fs.heal();
        world.trace("the disk has room".to_owned());
    }
}

fn strike(world: &World, rng: &mut Rng) {
    let component = match rng.u8(..9) {
        0 => Component::WalWriter,
        1 => Component::MemtableOwner,
        2 => Component::Flusher,
        3 => Component::ManifestKeeper,
        4 => Component::Scheduler,
        5 => Component::WalGc,
        6 => Component::Scrubber,
        _ => Component::Compactor(Level(rng.u8(..2))),
    };
    let blow = match rng.u8(..3) {
        0 => None,
        1 => Some(Blow::Fail),
        _ => Some(Blow::Panic),
    };
    world.trace(format!("{component:?} dies: {blow:?}"));
    match blow {
        Some(blow) => world.engine.strike(component, blow),
        None => world.engine.kill(component),
    }
}
