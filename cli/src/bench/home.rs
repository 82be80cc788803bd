//! The directory of a benchmark.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// Where temporary databases live.
const PLACE: &str = "data/bench";

/// The directory of a benchmark. A temporary one goes when this is dropped, also after an error.
pub(super) struct Home {
    pub(super) path: PathBuf,
    temporary: bool,
}

impl Home {
    /// `given`: the directory to use, which must be empty. `keep`: a temporary one stays.
    pub(super) fn choose(given: Option<&Path>, keep: bool) -> Result<Self, Failure> {
        let Some(path) = given else {
            let path = Path::new(PLACE).join(format!("run-{}", std::process::id()));
            fs::create_dir_all(&path).map_err(Failure::io("create", &path))?;
            return Ok(Self { path, temporary: !keep });
        };
        match fs::read_dir(path).map(|mut entries| entries.next().is_none()) {
            Ok(true) => {}
            Ok(false) => {
                let problem = format!("{} is not empty: measure in a new one", path.display());
                return Err(Failure::Usage(problem));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(Failure::io("read", path)(error)),
        }
        Ok(Self { path: path.to_owned(), temporary: false })
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if !self.temporary {
            return;
        }
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("nori: remove {}: {error}; remove it yourself", self.path.display());
        }
        // These go only if nothing else is in them.
        for parent in self.path.ancestors().skip(1).take(2) {
            if fs::remove_dir(parent).is_err() {
                break;
            }
        }
    }
}
