//! Bytes as the manifest that `CURRENT` names, over the tables of a real database.
//!
//! The file gets the number that its header says. The tables are frozen in `world/tables`, `(number u64 | len u64 | bytes)*`, and
//! stay as they are with the manifests of the corpus that name them.

use std::path::Path;
use std::sync::OnceLock;

use nori_lsm::env::Fs;
use nori_lsm::env::sim::SimFs;

use super::{Verdict, machine};

static TABLES: &[u8] = include_bytes!("../world/tables");

pub fn run(data: &[u8]) -> Verdict {
    let fs = tables().fork();
    let number = data.get(8..16).and_then(|number| number.try_into().ok());
    let name = format!("MANIFEST-{:06}", number.map_or(1, u64::from_le_bytes));
    let current = format!("{name} {:08x}\n", crc32c::crc32c(name.as_bytes()));
    fs.overwrite(Path::new("/db/CURRENT"), current).expect("the directory is there");
    let path = Path::new("/db/manifest").join(name);
    fs.overwrite(&path, data).expect("the directory is there");
    machine::open_or_repair(&fs)
}

/// A machine with the tables and nothing else.
fn tables() -> &'static SimFs {
    static WITH_TABLES: OnceLock<SimFs> = OnceLock::new();
    WITH_TABLES.get_or_init(|| {
        let fs = SimFs::new(1);
        for folder in ["manifest", "sst", "wal"] {
            fs.create_dir(&Path::new("/db").join(folder)).expect("it is new");
        }
        let mut rest = TABLES;
        while let Some((head, behind)) = rest.split_first_chunk::<16>() {
            let [number, len] = [&head[..8], &head[8..]]
                .map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")));
            let (table, next) = behind.split_at(usize::try_from(len).expect("a small file"));
            let path = format!("/db/sst/{number:06}.sst");
            fs.overwrite(Path::new(&path), table).expect("the directory is there");
            rest = next;
        }
        fs
    })
}
