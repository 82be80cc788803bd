//! Bytes as the log of a database without tables: segments, one behind the other, each from its magic on.
//!
//! A segment lies in the file whose number its header says, the first one where the manifest expects the log.

use std::path::Path;
use std::sync::OnceLock;

use nori_lsm::env::Fs;
use nori_lsm::env::sim::SimFs;

use super::world::{self, in_paused_time};
use super::{Verdict, machine};

pub const MAGIC: &[u8; 8] = b"NORIWAL1";

/// More segments add nothing.
const SEGMENTS_MAX: usize = 5;

pub fn run(data: &[u8]) -> Verdict {
    let fs = empty_database().fork();
    for (number, segment) in segments(data) {
        let path = format!("/db/wal/{number:06}.wal");
        fs.overwrite(Path::new(&path), segment).expect("the directory is there");
    }
    machine::open_or_repair(&fs)
}

/// Numbers and bytes of the segments.
pub fn segments(data: &[u8]) -> Vec<(u64, &[u8])> {
    let mut starts = vec![0];
    let magics = data.windows(MAGIC.len()).enumerate().skip(1);
    starts.extend(magics.filter(|(_, bytes)| bytes == MAGIC).map(|(at, _)| at));
    starts.truncate(SEGMENTS_MAX);
    let ends = starts.iter().skip(1).copied().chain([data.len()]);
    let pieces = starts.iter().zip(ends).enumerate();
    let numbered = pieces.map(|(index, (&start, end))| {
        let segment = &data[start..end];
        let said = segment.get(8..16).and_then(|number| number.try_into().ok());
        let number = said.map_or(0, u64::from_le_bytes);
        (if index == 0 { FIRST } else { number }, segment)
    });
    numbered.collect()
}

/// Number of the first log segment of a database.
const FIRST: u64 = 2;

/// A database that was opened once and has a manifest, but no log.
fn empty_database() -> &'static SimFs {
    static EMPTY: OnceLock<SimFs> = OnceLock::new();
    EMPTY.get_or_init(|| {
        let fs = SimFs::new(1);
        in_paused_time(async { world::open(&fs, world::config()).await.map(drop) })
            .expect("a new database opens");
        let fs = fs.kill();
        for (name, _) in fs.list(Path::new("/db/wal")).expect("there is a log") {
            fs.destroy(&Path::new("/db/wal").join(name)).expect("it was listed");
        }
        fs
    })
}
