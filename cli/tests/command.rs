//! The command as a user runs it: files come back byte for byte, exit codes say what happened, a killed load loses nothing acknowledged.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up must stop")]

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A directory with a database in it.
struct Home {
    dir: TempDir,
}

impl Home {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn db(&self) -> PathBuf {
        self.dir.path().join("db")
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// Runs `nori` in the directory, with these arguments.
    fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Output {
        self.command(args).output().unwrap()
    }

    fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nori"));
        command.current_dir(self.dir.path()).args(args);
        command
    }

    /// Loads a file of that name and content; panics unless that works.
    fn load(&self, name: &str, content: &[u8], more: &[&str]) -> String {
        self.file(name, content);
        succeeded(self.run(["load", name, "--dir", "db"].iter().chain(more)))
    }

    fn scan(&self, more: &[&str]) -> Vec<u8> {
        let output = self.run(["scan", "db"].iter().chain(more));
        assert!(output.status.success(), "{output:?}");
        output.stdout
    }
}

fn succeeded(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Entries as `nori scan` prints them.
fn printed(entries: &BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<u8> {
    let lines = entries.iter().map(|(key, value)| [key, &b"\t"[..], value, b"\n"].concat());
    lines.collect::<Vec<_>>().concat()
}

/// The exit code, and the one line on standard error.
fn refused(output: &Output) -> (i32, String) {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(said.lines().count() <= 1, "one line says it all: {said}");
    (output.status.code().unwrap(), said)
}

#[test]
fn tsv_comes_back_sorted_and_the_last_value_of_a_key_wins() {
    let home = Home::new();
    let mut content =
        b"b\told\n\nz\xff\xfe\t\x00\x80\xff\ntabs\ta\tb\tc\nb\tnew\nbare\n\tof the empty key\n"
            .to_vec();
    let mut expected = BTreeMap::from([
        (b"b".to_vec(), b"new".to_vec()),
        (b"z\xff\xfe".to_vec(), b"\x00\x80\xff".to_vec()),
        (b"tabs".to_vec(), b"a\tb\tc".to_vec()),
        (b"bare".to_vec(), Vec::new()),
        (Vec::new(), b"of the empty key".to_vec()),
    ]);
    for i in 0_u32..5000 {
        let (key, value) = (format!("k{}", i * 7919 % 3001), format!("value {i}"));
        content.extend_from_slice(format!("{key}\t{value}\n").as_bytes());
        expected.insert(key.into_bytes(), value.into_bytes());
    }
    content.extend_from_slice(b"last\twithout a line break");
    expected.insert(b"last".to_vec(), b"without a line break".to_vec());
    let report = home.load("in.tsv", &content, &["--batch", "7", "--threads", "2"]);
    assert!(report.contains("5,007"), "it counts entries: {report}");
    assert_eq!(home.scan(&[]), printed(&expected));
    let mut keys: Vec<_> = expected.keys().cloned().collect();
    keys.reverse();
    let lines: Vec<_> = keys.iter().map(|key| [key, &b"\n"[..]].concat()).collect();
    assert_eq!(home.scan(&["--reverse", "--keys-only"]), lines.concat());
}

#[test]
fn csv_knows_quotes_and_headers() {
    let home = Home::new();
    home.load(
        "in.csv",
        b"a,plain\n\"b,\"\"\",\"two\nlines, \"\"quoted\"\"\"\nc,\xff\na,newer\n",
        &[],
    );
    assert_eq!(home.scan(&[]), b"a\tnewer\nb,\"\ttwo\nlines, \"quoted\"\nc\t\xff\n");
    let home = Home::new();
    home.load("in.csv", b"name,id,note\nx,7,\"a,b\"\ny,5,c\n", &["--key", "id"]);
    assert_eq!(home.scan(&[]), b"5\ty,5,c\n7\tx,7,\"a,b\"\n");
    home.file("wide.csv", b"a,b\na,b,c\n");
    let (code, said) = refused(&home.run(["load", "wide.csv", "--dir", "other"]));
    assert!(code == 2 && said.contains("wide.csv line 2: 3 columns"), "{said}");
    let (code, said) = refused(&home.run(["load", "in.csv", "--dir", "other", "--key", "nope"]));
    assert!(code == 2 && said.contains("no column \"nope\""), "{said}");
}

#[test]
fn json_lines_are_kept_as_they_were_written() {
    let home = Home::new();
    let content =
        "{\"key\": \"b\", \"n\":  1}\n\n{\"n\":2,\"key\":7}\r\n{\"key\":\"\\u00e9\\n\"}\n";
    home.load("in.jsonl", content.as_bytes(), &[]);
    let expected = "7\t{\"n\":2,\"key\":7}\r\nb\t{\"key\": \"b\", \"n\":  1}\n\u{e9}\n\t{\"key\":\"\\u00e9\\n\"}\n";
    assert_eq!(home.scan(&[]), expected.as_bytes());
    home.load("by.jsonl", b"{\"id\": \"b\"}\n{\"id\": \"c\"}\n", &["--key", "id"]);
    assert_eq!(
        home.scan(&["--from", "b", "--to", "d"]),
        b"b\t{\"id\": \"b\"}\nc\t{\"id\": \"c\"}\n"
    );
    for (content, problem) in [
        (&b"{\"key\":1}\n{\"k\":2}\n"[..], "no field"),
        (b"\n[", "line 2: EOF"),
        (b"\xff\xff", "expected"),
    ] {
        home.file("bad.jsonl", content);
        let (code, said) = refused(&home.run(["load", "bad.jsonl", "--dir", "other"]));
        assert!(code == 2 && said.contains(problem), "{said}");
    }
}

#[test]
fn lines_are_numbered_and_empty_ones_count() {
    let home = Home::new();
    let content = b"first\n\n\xff\x00 bytes\r\n\nlast";
    home.load("in.txt", content, &[]);
    let expected: &[u8] = b"0000000001\tfirst\n0000000002\t\n0000000003\t\xff\x00 bytes\r\n0000000004\t\n0000000005\tlast\n";
    assert_eq!(home.scan(&[]), expected);
    assert_eq!(home.scan(&["--prefix", "000000000", "--limit", "1"]), b"0000000001\tfirst\n");
    home.load("empty.txt", b"", &[]);
    home.load("in.tsv", b"0000000002\tno more\n", &["--format", "tsv"]);
    assert_eq!(
        home.scan(&["--from", "0000000002", "--to", "0000000003"]),
        b"0000000002\tno more\n"
    );
    let (code, said) = refused(&home.run(["load", "in.txt", "--dir", "db", "--key", "x"]));
    assert!(code == 2 && said.contains("--key"), "{said}");
}

#[test]
fn exit_codes_tell_a_missing_key_from_an_error() {
    let home = Home::new();
    let (code, said) = refused(&home.run(["get", "db", "k"]));
    assert!(code == 2 && said.contains("no database"), "{said}");
    assert!(!home.db().exists(), "asking makes no database");
    succeeded(home.run(["put", "db", "k", "v 1"]));
    assert_eq!(succeeded(home.run(["get", "db", "k"])), "v 1");
    assert_eq!(succeeded(home.run(["get", "db", "6b", "--hex"])), "v 1");
    assert_eq!(home.run(["get", "db", "other"]).status.code(), Some(1));
    succeeded(home.run(["delete", "db", "k"]));
    succeeded(home.run(["delete", "db", "k"]));
    assert_eq!(home.run(["get", "db", "k"]).status.code(), Some(1));
    assert_eq!(refused(&home.run(["get", "db", "xyz", "--hex"])).0, 2);
    succeeded(home.run(["put", "db", "00ff09", "--hex", "v"]));
    assert_eq!(home.scan(&["--hex"]), b"00ff09\tv\n");
    assert_eq!(home.run(["frobnicate"]).status.code(), Some(2));
    let (code, said) = refused(&home.run(["load", "nowhere.txt"]));
    assert!(code == 2 && said.contains("nowhere.txt"), "{said}");
    home.file("blocked", b"");
    let (code, said) = refused(&home.run(["put", "blocked", "k", "v"]));
    assert!(code == 2 && said.contains("blocked"), "{said}");
}

#[cfg(unix)]
#[test]
fn keys_and_values_need_not_be_text() {
    use std::os::unix::ffi::OsStringExt;
    let home = Home::new();
    let raw = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    succeeded(home.run([raw(b"put"), raw(b"db"), raw(b"\xff\x80"), raw(b"\xfe\n")]));
    let output = home.run([raw(b"get"), raw(b"db"), raw(b"\xff\x80")]);
    assert_eq!((output.status.code(), output.stdout), (Some(0), b"\xfe\n".to_vec()));
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let home = Home::new();
    home.load("in.txt", "some words on a line\n".repeat(100_000).as_bytes(), &[]);
    let mut child =
        home.command(["scan", "db"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
}

#[test]
fn stats_show_what_the_database_holds() {
    let home = Home::new();
    home.load("in.txt", "a line\n".repeat(1000).as_bytes(), &[]);
    let text = succeeded(home.run(["stats", "db"]));
    assert!(text.contains("tables") && text.contains("| level"), "{text}");
    let json: serde_json::Value =
        serde_json::from_str(&succeeded(home.run(["stats", "db", "--json"]))).unwrap();
    assert_eq!(json["stats"]["last_seq"], 1000);
    assert!(json["stats"]["table_bytes"].as_u64().unwrap() > 0);
}

#[test]
fn bench_verifies_measures_and_cleans_up() {
    let home = Home::new();
    let small = ["bench", "--entries", "500", "--ops", "2000", "--value-size", "100"];
    let more = ["--json", "out.json", "--tasks", "3", "--distribution", "uniform"];
    let text = succeeded(home.run(small.iter().chain(&more)));
    assert!(text.contains("mixed: get") && text.contains("p99.9"), "{text}");
    assert!(!home.dir.path().join("data").exists(), "the temporary database is gone");
    let json = fs::read(home.dir.path().join("out.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["phases"][0]["operations"], 500);
    assert_eq!(json["phases"][1]["operations"], 2000);
    succeeded(home.run(small.iter().chain(&["--dir", "db", "--reads", "0"])));
    assert_eq!(home.scan(&["--keys-only"]).split(|&byte| byte == b'\n').count(), 501);
    let (code, said) = refused(&home.run(small.iter().chain(&["--dir", "db"])));
    assert!(code == 2 && said.contains("not empty"), "{said}");
}

#[test]
fn workloads_have_names() {
    let home = Home::new();
    let names =
        ["bench", "--workload", "fillbatch,ycsb-a,scan100,reopen,recover", "--scale", "0.01"];
    let text = succeeded(home.run(names.iter().chain(&["--json", "out.json"])));
    assert!(text.contains("ycsb-a") && text.contains("open"), "{text}");
    assert!(!home.dir.path().join("data").exists(), "the temporary databases are gone");
    let json = fs::read(home.dir.path().join("out.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let rows = json["workloads"].as_array().unwrap();
    assert_eq!(rows.len(), 5);
    assert!(rows.iter().all(|row| row["figure"].as_f64().unwrap() > 0.0));
    assert_eq!(rows[1]["operations"], 5000);
    let (code, said) = refused(&home.run(["bench", "--workload", "nothing"]));
    assert!(code == 2 && said.contains("fillrandom"), "{said}");
    let both = home.run(["bench", "--workload", "ycsb-a", "--entries", "5"]);
    assert_eq!(both.status.code(), Some(2), "the knobs of the other benchmark mean nothing here");
}

#[test]
fn a_killed_load_keeps_every_acknowledged_record() {
    const LINES: u32 = 400_000;
    let home = Home::new();
    let line = |number| format!("line {number} of a file that is killed half way\n");
    let content: String = (1..=LINES).map(line).collect();
    home.file("in.txt", content.as_bytes());
    let mut load = home
        .command(["load", "in.txt", "--dir", "db", "--batch", "50", "--acked", "acked"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let acked = home.dir.path().join("acked");
    while acknowledged(&acked) < LINES / 10 && load.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    load.kill().unwrap();
    load.wait().unwrap();
    let acknowledged = acknowledged(&acked);
    assert!((LINES / 10..LINES).contains(&acknowledged), "killed too late: {acknowledged}");
    let found = home.scan(&[]);
    let expected: String =
        (1..=acknowledged).map(|number| format!("{number:010}\t{}", line(number))).collect();
    assert!(found.starts_with(expected.as_bytes()), "not all of {acknowledged} records are there");
    let count = found.iter().filter(|&&byte| byte == b'\n').count();
    assert_eq!(count % 50, 0, "a batch is there whole or not at all");
    home.load("in.txt", content.as_bytes(), &[]);
    let all: String = (1..=LINES).map(|number| format!("{number:010}\t{}", line(number))).collect();
    assert!(home.scan(&[]) == all.as_bytes(), "a second load completes it");
}

/// The last number in the file, of a line that is complete.
fn acknowledged(path: &Path) -> u32 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let complete = text.rsplit_once('\n').map_or("", |(complete, _)| complete);
    complete.rsplit('\n').next().and_then(|line| line.parse().ok()).unwrap_or(0)
}

/// Files below a directory with their content, but for the lock.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

/// Flips a bit of the table of a database, and returns the file.
fn damage_a_table(home: &Home, at: usize) -> PathBuf {
    let table = fs::read_dir(home.db().join("sst")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&table).unwrap();
    bytes[at] ^= 1;
    fs::write(&table, bytes).unwrap();
    table
}

#[test]
fn verify_changes_nothing_and_names_every_damage() {
    let home = Home::new();
    let (code, said) = refused(&home.run(["verify", "--dir", "db"]));
    assert!(code == 2 && !home.db().exists(), "{said}");
    home.load("in.tsv", b"a\t1\nb\t2\n", &[]);
    let before = contents(&home.db());
    let report = succeeded(home.run(["verify", "--dir", "db"]));
    assert!(report.contains("2 entries") && report.contains("sound"), "{report}");
    assert_eq!(contents(&home.db()), before);
    let table = damage_a_table(&home, 3);
    let before = contents(&home.db());
    let output = home.run(["verify", "--dir", "db"]);
    assert_eq!(output.status.code(), Some(1));
    let report = String::from_utf8(output.stdout).unwrap();
    let name = table.file_name().unwrap().to_str().unwrap();
    assert!(report.contains(name) && report.contains("at byte 0"), "{report}");
    assert_eq!(contents(&home.db()), before);
}

#[test]
fn repair_says_what_it_would_do_and_then_does_it() {
    let home = Home::new();
    home.load("in.tsv", b"a\t1\nb\t2\n", &[]);
    assert!(succeeded(home.run(["repair", "--dir", "db"])).contains("nothing to repair"));
    let table = damage_a_table(&home, 3);
    let before = contents(&home.db());
    let output = home.run(["repair", "--dir", "db", "--dry-run"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(contents(&home.db()), before);
    let report = succeeded(home.run(["repair", "--dir", "db"]));
    let name = table.file_name().unwrap().to_str().unwrap();
    assert!(report.contains(name) && report.contains("repaired-1"), "{report}");
    assert_eq!(fs::read(home.db().join("repaired-1").join(name)).unwrap(), before[&table]);
    succeeded(home.run(["verify", "--dir", "db"]));
    assert_eq!(home.scan(&[]), b"", "its only block is lost");
}
