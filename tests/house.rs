//! Rules of the house that the compiler does not know: which module may use which, and what a finished file looks like.
#![expect(clippy::unwrap_used, reason = "a test that cannot read the sources must stop")]

use std::fs;
use std::path::{Path, PathBuf};

/// Modules by floor, from the ground up: a module uses itself and lower floors only.
const FLOORS: &[&[&str]] = &[
    &["types", "tally", "turn"],
    &["error", "observe"],
    &["env", "cursor"],
    &["config"],
    &["batch", "version", "snapshots"],
    &["format"],
    &["memtable", "merge", "concat", "fences", "policy"],
    &["storage"],
    &["view"],
    &["quarantine"],
    &["commit", "jobs", "scan", "stats", "ledger"],
    &["actors"],
    &["engine", "sstable"],
    &["fuzzing"],
];

/// Modules that turn values into values, and the words that would give away something else.
const PURE: &[&str] =
    &["types", "format", "version", "policy", "merge", "concat", "cursor", "fences"];
const WORLDLY: &[&str] =
    &["std::fs", "std::io::", "std::thread", "Instant", "tokio", "ractor", "HashMap"];

const UNFINISHED: &[&str] = &["TODO", "FIXME", "XXX", "for now"];

struct Source {
    path: PathBuf,
    module: String,
    text: String,
}

impl Source {
    /// Lines of the file in front of its unit tests, with their numbers.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let code = self.text.lines().take_while(|line| !line.starts_with("#[cfg(test)]"));
        code.enumerate().map(|(index, line)| (index + 1, line))
    }

    /// Modules of the crate that a line imports.
    fn imports<'a>(&self, line: &'a str) -> Option<&'a str> {
        let path = line.trim_start().trim_start_matches("pub ").strip_prefix("use crate::")?;
        let name = path.split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
        (!name.is_empty() && name.starts_with(char::is_lowercase)).then_some(name)
    }

    fn is_test(&self) -> bool {
        matches!(self.path.file_name().and_then(|n| n.to_str()), Some("tests.rs" | "testing.rs"))
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut pending = vec![root.clone()];
    let mut found = Vec::new();
    while let Some(path) = pending.pop() {
        if path.extension().is_some_and(|kind| kind != "rs") {
            continue;
        }
        if path.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let inside = path.strip_prefix(&root).unwrap();
        let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
        let module = first.trim_end_matches(".rs").to_owned();
        let text = fs::read_to_string(&path).unwrap();
        found.push(Source { path, module, text });
    }
    assert!(found.len() > 40, "these are not the sources");
    found
}

fn floor_of(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

fn report(broken: &[String]) {
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn every_module_uses_only_floors_below_its_own() {
    let mut broken = Vec::new();
    for source in sources().iter().filter(|source| source.module != "lib") {
        let at = source.path.display();
        let Some(own) = floor_of(&source.module) else {
            broken.push(format!("{at}: give `{}` a floor", source.module));
            continue;
        };
        for (number, line) in source.lines() {
            let Some(used) = source.imports(line).filter(|used| *used != source.module) else {
                continue;
            };
            if floor_of(used).is_none_or(|floor| floor >= own) {
                broken.push(format!("{at}:{number}: `{}` uses `{used}`", source.module));
            }
        }
    }
    report(&broken);
}

#[test]
fn pure_modules_know_no_world() {
    let mut broken = Vec::new();
    for source in sources().iter().filter(|s| PURE.contains(&s.module.as_str()) && !s.is_test()) {
        for (number, line) in
            source.lines().filter(|(_, line)| !line.trim_start().starts_with("//"))
        {
            for word in WORLDLY.iter().filter(|word| line.contains(**word)) {
                let fine = source.module == "format" && line.contains("std::io::IoSlice");
                if !fine {
                    broken.push(format!("{}:{number}: `{word}`", source.path.display()));
                }
            }
        }
    }
    report(&broken);
}

#[test]
fn only_the_actors_and_the_handle_know_ractor() {
    let mut broken = Vec::new();
    for source in sources() {
        if ["actors", "engine"].contains(&source.module.as_str()) {
            continue;
        }
        for (number, line) in source.lines().filter(|(_, line)| line.contains("ractor::")) {
            broken.push(format!("{}:{number}: {line}", source.path.display()));
        }
    }
    report(&broken);
}

#[test]
fn every_file_says_what_it_is_for_and_is_finished() {
    let mut broken = Vec::new();
    for source in sources() {
        let at = source.path.display();
        if !source.text.starts_with("//! ") {
            broken.push(format!("{at}: no `//!` line at the top"));
        }
        for (number, line) in source.text.lines().enumerate() {
            for word in UNFINISHED.iter().filter(|word| line.contains(**word)) {
                broken.push(format!("{at}:{}: `{word}`", number + 1));
            }
        }
    }
    report(&broken);
}

#[test]
fn the_whole_crate_is_safe_code() {
    let manifest =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    assert!(manifest.contains("unsafe_code = \"forbid\""));
}
