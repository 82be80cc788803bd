//! What is left of a damaged table: every entry of every block whose checksum holds, and what is lost.
//!
//! Blocks are found by the leaf index of their section, else by their trailers: a block ends where a checksum over everything since
//! the one before holds, and behind a damaged one the walk goes on at the next trailer that a whole block follows.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::Serialize;

use crate::env::{Fs, ReadFile};
use crate::error::{Damage, Error, IoContext, Result};
use crate::format::block::DataBlock;
use crate::format::frame::{self, BlockKind, Place};
use crate::format::index::LeafIndex;
use crate::storage::TableWriter;
use crate::storage::table::{Extent, read_exact, unpack};
use crate::types::{FileId, KeyRange, NUMBERS_END, SeqNo, ValueKind, u64_of, usize_of};
use crate::version::SectionMeta;

/// A piece of a table that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How long it is.
    pub bytes: u64,
    /// Keys of which it may have held versions.
    pub keys: KeyRange,
}

/// A table that is being salvaged.
pub(crate) struct Salvage<'a> {
    path: PathBuf,
    id: FileId,
    file: std::sync::Arc<dyn ReadFile>,
    size: u64,
    /// Where entries go; `None` if they are only counted.
    writer: Option<&'a mut TableWriter>,
    last: Option<(Vec<u8>, SeqNo)>,
    pub(crate) entries: u64,
    pub(crate) lost: Vec<Lost>,
}

type Entry = (Vec<u8>, SeqNo, ValueKind, Bytes);

impl<'a> Salvage<'a> {
    pub(crate) fn open(
        fs: &dyn Fs,
        path: &Path,
        id: FileId,
        writer: Option<&'a mut TableWriter>,
    ) -> Result<Self> {
        let file = fs.open(path).at("open", path)?;
        let size = file.size().at("size", path)?;
        let (path, last, lost) = (path.to_owned(), None, Vec::new());
        Ok(Self { path, id, file, size, writer, last, entries: 0, lost })
    }

    /// Reads all that is left. `sections`: where to look, if that is known. Blocks.
    ///
    /// # Errors
    /// Those of the file system; damage is no error here.
    pub(crate) fn run(&mut self, sections: Option<&[SectionMeta]>) -> Result<()> {
        let Some(sections) = sections else { return self.walk(0..self.size, &KeyRange::all()) };
        for section in sections {
            if let Some(writer) = &mut self.writer {
                if section.oldest_tombstone_s > 0 {
                    writer.tombstones_since(section.oldest_tombstone_s);
                }
                writer.cut()?;
            }
            self.section(section)?;
        }
        Ok(())
    }

    fn section(&mut self, section: &SectionMeta) -> Result<()> {
        let leaf_at = section.offset.saturating_add(section.data_len.into());
        let keys = KeyRange::from(&section.min_key[..]..=&section.max_key[..]);
        let leaf = self.block(BlockKind::Leaf, leaf_at, section.leaf_len.into());
        let leaf = leaf.and_then(|leaf| {
            LeafIndex::decode(leaf, section.data_len)
                .map_err(|damage| damage.of(&self.path, leaf_at))
        });
        let Some(leaf) = readable(leaf)? else {
            self.walk(section.offset..leaf_at.min(self.size), &keys)?;
            let cut = section.offset.max(self.size);
            if cut < leaf_at {
                self.lose(cut, usize_of(leaf_at - cut), &keys);
            }
            return Ok(());
        };
        for block in 0..leaf.n_blocks() {
            let Some(at) = leaf.block(block) else { break };
            let offset = section.offset.saturating_add(at.start.into());
            let bytes = u64::from(at.end.saturating_sub(at.start));
            let found = self.entries_at(offset, bytes);
            let Some(entries) = readable(found)?.filter(|entries| self.follows(entries)) else {
                let start = leaf.separator(block).unwrap_or_default();
                // Versions of the key behind it may begin in the block too.
                let end = leaf.separator(block + 1).map(|key| [&key[..], &[0]].concat().into());
                let range = KeyRange::new(start, end.or_else(|| keys.end.clone()));
                self.lost.push(Lost { offset, bytes, keys: range });
                continue;
            };
            self.keep(entries)?;
        }
        Ok(())
    }

    /// Goes from block to block, by their trailers.
    fn walk(&mut self, range: std::ops::Range<u64>, keys: &KeyRange) -> Result<()> {
        let len = usize_of(range.end.saturating_sub(range.start));
        if len == 0 {
            return Ok(()); // the file ends before
        }
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, range.start).at("read", &self.path)?;
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| rest.len() > frame::TRAILER) {
            let offset = range.start.saturating_add(u64_of(at));
            let place = Place { file: self.id, offset };
            let (kind, end) = frame::find(rest, place).unzip();
            let mut taken = end.unwrap_or_else(|| next_block(rest, place));
            match kind {
                Some(BlockKind::Data) => {
                    let found = self.entries_at(offset, u64_of(taken));
                    let entries = readable(found)?.filter(|entries| self.follows(entries));
                    match entries {
                        Some(entries) => self.keep(entries)?,
                        None => self.lose(offset, taken, keys),
                    }
                }
                Some(BlockKind::Leaf) => {
                    if let Some(writer) = &mut self.writer {
                        writer.cut()?;
                    }
                }
                Some(BlockKind::Filter | BlockKind::Top | BlockKind::Props) => {}
                None => {
                    taken = taken.min(rest.len());
                    self.lose(offset, taken, keys);
                }
            }
            at += taken.max(1);
        }
        Ok(())
    }

    fn lose(&mut self, offset: u64, bytes: usize, keys: &KeyRange) {
        let start = self.last.as_ref().map(|(key, _)| Bytes::copy_from_slice(key));
        let keys = KeyRange::new(start.unwrap_or_else(|| keys.start.clone()), keys.end.clone());
        self.lost.push(Lost { offset, bytes: u64_of(bytes), keys });
    }

    fn block(&self, kind: BlockKind, offset: u64, len: u64) -> Result<Bytes> {
        let extent = Extent { offset, len: usize_of(len) };
        let raw = read_exact(self.file.as_ref(), &self.path, extent, self.size)?;
        unpack(&raw.into(), kind, Place { file: self.id, offset }, &self.path)
    }

    fn entries_at(&self, offset: u64, len: u64) -> Result<Vec<Entry>> {
        let payload = self.block(BlockKind::Data, offset, len)?;
        decode(&payload).map_err(|damage| damage.of(&self.path, offset))
    }

    /// Whether the entries come behind those that were kept.
    fn follows(&self, entries: &[Entry]) -> bool {
        let Some(((key, seq), first)) = self.last.as_ref().zip(entries.first()) else {
            return true;
        };
        *key < first.0 || (*key == first.0 && *seq > first.1)
    }

    fn keep(&mut self, entries: Vec<Entry>) -> Result<()> {
        for (key, seq, kind, value) in entries {
            if let Some(writer) = &mut self.writer {
                writer.add(&key, seq, kind, &value)?;
            }
            self.entries += 1;
            self.last = Some((key, seq));
        }
        Ok(())
    }
}

/// Where the next whole block begins behind a damaged one, at its front; all of `bytes` if there is none.
fn next_block(bytes: &[u8], place: Place) -> usize {
    let whole = |end: &usize| {
        let offset = place.offset.saturating_add(u64_of(*end));
        bytes.get(*end..).is_some_and(|rest| frame::find(rest, Place { offset, ..place }).is_some())
    };
    frame::trailers(bytes).map(|(_, end)| end).find(whole).unwrap_or(bytes.len())
}

/// `None` for what is damaged.
fn readable<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Err(Error::Corrupt { .. }) => Ok(None),
        other => other.map(Some),
    }
}

fn decode(payload: &Bytes) -> Result<Vec<Entry>, Damage> {
    let codec = DataBlock::parse(payload)?.entries();
    let mut entries: Vec<Entry> = Vec::new();
    let (mut at, mut key) = (0, Vec::new());
    while at < codec.end() {
        let entry = codec.decode(payload, at)?;
        if entry.shared > key.len() {
            return Err(Damage { offset: u64_of(at), expected: "a key that shares what there is" });
        }
        if entry.seq.0 >= NUMBERS_END {
            return Err(Damage { offset: u64_of(at), expected: "a possible sequence number" });
        }
        key.truncate(entry.shared);
        key.extend_from_slice(entry.suffix);
        entries.push((key.clone(), entry.seq, entry.kind, payload.slice(entry.value.clone())));
        at = entry.next;
    }
    Ok(entries)
}
