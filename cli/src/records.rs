//! Records of a text file, one at a time: TSV, CSV, JSON lines, or any lines at all. Bytes pass as they are, UTF-8 or not.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use serde_json::Value;

use crate::args::Format;
use crate::failure::Failure;

/// A key and its value.
pub(crate) type Record = (Bytes, Bytes);

/// A file as a sequence of records.
pub(crate) struct Records {
    name: String,
    parser: Parser,
}

/// A reader that counts the bytes that went through it, for whoever watches.
struct Counted<R> {
    inner: R,
    count: Arc<AtomicU64>,
}

type Input = Counted<Box<dyn Read + Send>>;

enum Parser {
    Lines(Lines),
    Tsv(Lines),
    Jsonl { lines: Lines, field: String },
    Csv(Csv),
}

struct Lines {
    input: BufReader<Input>,
    number: u64,
    line: Vec<u8>,
}

struct Csv {
    reader: csv::Reader<Input>,
    record: csv::ByteRecord,
    /// Column of the key, if there is a header.
    column: Option<usize>,
}

impl Records {
    /// Opens `path`, or standard input for `-`. `count` shows how many bytes were read.
    pub(crate) fn open(
        path: &Path,
        format: Format,
        key: Option<&str>,
        count: Arc<AtomicU64>,
    ) -> Result<Self, Failure> {
        let inner: Box<dyn Read + Send> = if path == Path::new("-") {
            Box::new(io::stdin())
        } else {
            Box::new(File::open(path).map_err(Failure::io("open", path))?)
        };
        let input = Counted { inner, count };
        let name = path.display().to_string();
        let parser = match (format_of(path, format), key) {
            (Format::Jsonl, field) => {
                let field = field.unwrap_or("key").to_owned();
                Parser::Jsonl { lines: Lines::new(input), field }
            }
            (Format::Csv, key) => Parser::Csv(Csv::new(input, &name, key)?),
            (_, Some(_)) => {
                return Err(Failure::Usage("--key goes with the formats csv and jsonl".into()));
            }
            (Format::Tsv, None) => Parser::Tsv(Lines::new(input)),
            (Format::Lines | Format::Auto, None) => Parser::Lines(Lines::new(input)),
        };
        Ok(Self { name, parser })
    }

    /// The next record; `None` behind the last.
    pub(crate) fn next(&mut self) -> Result<Option<Record>, Failure> {
        let name = &self.name;
        let broken = |source| Failure::Io { what: format!("read {name}"), source };
        match &mut self.parser {
            Parser::Lines(lines) => {
                let more = lines.advance().map_err(broken)?;
                Ok(more.then(|| numbered(lines.number, &lines.line)))
            }
            Parser::Tsv(lines) => {
                let more = lines.advance_to_text().map_err(broken)?;
                Ok(more.then(|| split(&lines.line)))
            }
            Parser::Jsonl { lines, field } => {
                if !lines.advance_to_text().map_err(broken)? {
                    return Ok(None);
                }
                let problem = |problem| {
                    let place = format!("{name} line {}", lines.number);
                    Failure::Input { place, problem }
                };
                object(&lines.line, field).map(Some).map_err(problem)
            }
            Parser::Csv(csv) => csv.next(name),
        }
    }
}

fn format_of(path: &Path, format: Format) -> Format {
    match (format, path.extension().and_then(|extension| extension.to_str())) {
        (Format::Auto, Some("tsv")) => Format::Tsv,
        (Format::Auto, Some("csv")) => Format::Csv,
        (Format::Auto, Some("jsonl" | "ndjson")) => Format::Jsonl,
        (Format::Auto, _) => Format::Lines,
        (given, _) => given,
    }
}

fn numbered(number: u64, line: &[u8]) -> Record {
    (format!("{number:010}").into(), Bytes::copy_from_slice(line))
}

/// At the first TAB; without one it is all key.
fn split(line: &[u8]) -> Record {
    let tab = line.iter().position(|&byte| byte == b'\t').unwrap_or(line.len());
    let value = line.get(tab + 1..).unwrap_or_default();
    (Bytes::copy_from_slice(&line[..tab]), Bytes::copy_from_slice(value))
}

fn object(line: &[u8], field: &str) -> Result<Record, String> {
    let object: Value = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let key = match object.get(field) {
        Some(Value::String(text)) => Bytes::copy_from_slice(text.as_bytes()),
        Some(Value::Number(number)) => number.to_string().into(),
        Some(_) => return Err(format!("the field {field:?} is neither text nor a number")),
        None => return Err(format!("no field {field:?}")),
    };
    Ok((key, Bytes::copy_from_slice(line)))
}

impl Lines {
    fn new(input: Input) -> Self {
        Self { input: BufReader::with_capacity(256 << 10, input), number: 0, line: Vec::new() }
    }

    /// Reads a line, without its line break; `false` behind the last.
    fn advance(&mut self) -> io::Result<bool> {
        self.line.clear();
        if self.input.read_until(b'\n', &mut self.line)? == 0 {
            return Ok(false);
        }
        self.number += 1;
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
        }
        Ok(true)
    }

    /// The same, past empty lines.
    fn advance_to_text(&mut self) -> io::Result<bool> {
        while self.advance()? {
            if !matches!(self.line.as_slice(), b"" | b"\r") {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Csv {
    fn new(input: Input, name: &str, key: Option<&str>) -> Result<Self, Failure> {
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(key.is_some())
            .flexible(key.is_none())
            .buffer_capacity(256 << 10)
            .from_reader(input);
        let column = match key {
            None => None,
            Some(key) => {
                let header = reader.byte_headers().map_err(|error| csv_failure(name, error))?;
                let missing = || Failure::Input {
                    place: format!("{name} line 1"),
                    problem: format!("no column {key:?}"),
                };
                Some(header.iter().position(|name| name == key.as_bytes()).ok_or_else(missing)?)
            }
        };
        Ok(Self { reader, record: csv::ByteRecord::new(), column })
    }

    fn next(&mut self, name: &str) -> Result<Option<Record>, Failure> {
        let more = self.reader.read_byte_record(&mut self.record);
        if !more.map_err(|error| csv_failure(name, error))? {
            return Ok(None);
        }
        let field = |index| self.record.get(index).map(Bytes::copy_from_slice).unwrap_or_default();
        if let Some(column) = self.column {
            let value = rewritten(&self.record).map_err(|error| csv_failure(name, error))?;
            return Ok(Some((field(column), value)));
        }
        match self.record.len() {
            1 | 2 => Ok(Some((field(0), field(1)))),
            columns => {
                let line = self.record.position().map_or(0, csv::Position::line);
                let problem = format!("{columns} columns where key and value should be");
                Err(Failure::Input { place: format!("{name} line {line}"), problem })
            }
        }
    }
}

/// A record as a line of CSV, without its line break.
fn rewritten(record: &csv::ByteRecord) -> Result<Bytes, csv::Error> {
    let mut line = Vec::new();
    let mut writer = csv::Writer::from_writer(&mut line);
    writer.write_byte_record(record)?;
    writer.flush()?;
    drop(writer);
    line.pop();
    Ok(line.into())
}

fn csv_failure(name: &str, error: csv::Error) -> Failure {
    let problem = error.to_string();
    match error.into_kind() {
        csv::ErrorKind::Io(source) => Failure::Io { what: format!("read {name}"), source },
        _ => Failure::Input { place: name.to_owned(), problem },
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.count.fetch_add(u64::try_from(read).unwrap_or(u64::MAX), Ordering::Relaxed);
        Ok(read)
    }
}
