//! A log segment as a file: appended to by the commit core, read once by recovery.
//!
//! Reading stops at the first frame that does not hold, and says what it saw behind it: recovery decides whether that is a
//! torn tail or damage. Memory: one window of the file, or one frame if that is larger.
//!
//! Format: docs/format.md#write-ahead-log

use std::io::{self, IoSlice};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::batch::WriteOp;
use crate::env::{Fs, ReadFile, WriteFile};
use crate::error::{Error, IoContext, Result};
use crate::format::Unreadable;
use crate::format::wal::{
    BodyHeader, FRAME_HEADER_LEN, Frame, FrameEncoder, FrameHeader, HEADER_LEN, Previous,
    SegmentHeader,
};
use crate::storage::layout::Layout;
use crate::types::{FileId, SeqNo, u64_of, usize_of};

/// Bytes read at a time.
const WINDOW: usize = 1 << 20;

/// Bytes per synced commit from which on zeros cost more than they save.
const LARGE_COMMIT: u64 = 32 << 10;
/// Zeros that are written at a time, in commits of the size of the one that writes them, within bounds: the commit waits for them,
/// and a megabyte takes as long as twenty commits. Fewer would cost too many entries in the journal of the file system.
const ZERO_COMMITS: u64 = 8;
const ZERO_BYTES: RangeInclusive<u64> = (32 << 10)..=(256 << 10);

/// A segment that is being written. Thread-safe: one appends while another syncs.
#[derive(Debug)]
pub(crate) struct LogSegment {
    id: FileId,
    path: PathBuf,
    /// The file that says that this one is not to be trusted.
    doubt: PathBuf,
    fs: Arc<dyn Fs>,
    file: Arc<dyn WriteFile>,
    /// Bytes known to be on disk.
    durable: AtomicU64,
    /// Bytes that the file was made for; 0 if nothing was reserved.
    room: u64,
    ahead: Mutex<Ahead>,
    /// Held by the one who syncs.
    syncing: Mutex<()>,
}

/// What a segment that is synced by commits has behind its end.
#[derive(Debug, Default)]
struct Ahead {
    /// Offset up to which it was written, with zeros if with nothing else.
    end: u64,
    /// Length of the segment at the last commit that was synced.
    committed: u64,
    /// Zeros could not be written: it does without.
    given_up: bool,
}

impl LogSegment {
    /// Creates the file and reserves `room` bytes; the name is durable when this returns. Blocks.
    pub(crate) fn create(fs: &Arc<dyn Fs>, layout: &Layout, id: FileId, room: u64) -> Result<Self> {
        let (path, doubt, fs) = (layout.wal(id), layout.doubt(id), Arc::clone(fs));
        let file = fs.create(&path).at("create", &path)?;
        let prepared = prepare(&*fs, &path, &*file, room);
        if prepared.is_err() && fs.remove(&path).is_err() {
            // Without a header it is an orphan, which the next open removes.
            tracing::debug!(path = %path.display(), "left an empty log segment behind");
        }
        prepared.map(|()| Self {
            id,
            path,
            doubt,
            fs,
            file,
            durable: AtomicU64::new(0),
            room,
            ahead: Mutex::default(),
            syncing: Mutex::default(),
        })
    }

    pub(crate) fn id(&self) -> FileId {
        self.id
    }

    pub(crate) fn len(&self) -> u64 {
        self.file.len()
    }

    /// Bytes known to be on disk.
    pub(crate) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Whether every byte appended so far is on disk.
    pub(crate) fn is_synced(&self) -> bool {
        self.durable() >= self.len()
    }

    pub(crate) fn append(&self, parts: &[IoSlice<'_>]) -> Result<()> {
        self.file.append(parts).at("append", &self.path)
    }

    pub(crate) fn write_header(&self, previous: Previous) -> Result<()> {
        let header = SegmentHeader { segment: self.id, previous };
        self.append(&[IoSlice::new(&header.encode())])
    }

    /// Logs operations again, as one frame. `ops`: in the order of their numbers, none of which is missing.
    pub(crate) fn append_again(
        &self,
        encoder: &mut FrameEncoder,
        ops: &[(SeqNo, WriteOp)],
    ) -> Result<()> {
        let Some((first, _)) = ops.first() else { return Ok(()) };
        encoder.begin();
        ops.iter().for_each(|(_, op)| encoder.push(op));
        self.append_frame(encoder, 0, *first)
    }

    /// Appends the frame that was begun, and ends it. `durable`: what it says to be on disk; `first`: number of its first operation.
    pub(crate) fn append_frame(
        &self,
        encoder: &mut FrameEncoder,
        durable: u64,
        first: SeqNo,
    ) -> Result<()> {
        let appended = self.append(&encoder.finish(self.id, durable, first));
        encoder.end();
        appended
    }

    /// Makes a commit durable. REQUIRES: the caller is the one who appends, and does not meanwhile. Blocks.
    ///
    /// Writes zeros ahead of commits that follow one another closely: a sync that only changes bytes of the file need not wait
    /// for the file system to note where they are, and takes half the time.
    pub(crate) fn sync_commit(&self) -> Result<()> {
        self.zero_ahead();
        self.sync()
    }

    /// No more than a try: what was appended is not touched.
    fn zero_ahead(&self) {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        let len = self.len();
        let commit = len - std::mem::replace(&mut ahead.committed, len).min(len);
        if ahead.given_up || commit > LARGE_COMMIT || ahead.end >= len + LARGE_COMMIT {
            return;
        }
        let start = ahead.end.max(len);
        let zeros = (commit * ZERO_COMMITS).clamp(*ZERO_BYTES.start(), *ZERO_BYTES.end());
        let end = self.room.min(start + zeros);
        if start >= end {
            return;
        }
        match self.file.zero(start..end) {
            Ok(()) => ahead.end = end,
            Err(error) => {
                ahead.given_up = true;
                tracing::debug!(path = %self.path.display(), %error, "no zeros ahead of the log");
            }
        }
    }

    /// Makes everything appended before the call durable. Blocks.
    ///
    /// One at a time: the system tells a failure to one of those who wait, and whoever comes behind that one is told by the file.
    pub(crate) fn sync(&self) -> Result<()> {
        let _alone = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let len = self.len();
        if let Err(error) = self.file.sync() {
            self.distrust();
            return Err(error).at("sync", &self.path);
        }
        self.durable.fetch_max(len, Ordering::AcqRel);
        Ok(())
    }

    /// Tells the next process, should this one not live to repair the log: the system shows what it could not write as if it
    /// had, and a second sync says that all is well. It need not outlive the system, which forgets those bytes too.
    fn distrust(&self) {
        if let Err(error) = self.fs.create(&self.doubt)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            tracing::warn!(path = %self.doubt.display(), %error, "cannot mark a log segment");
        }
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<64>();
    words.iter().all(|word| word.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

fn prepare(fs: &dyn Fs, path: &Path, file: &dyn WriteFile, room: u64) -> Result<()> {
    if room > 0 {
        file.preallocate(room).at("preallocate", path)?;
    }
    let dir = path.parent().unwrap_or(path);
    fs.sync_dir(dir).at("sync directory", dir)
}

/// What the front of a segment file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// A segment that was begun.
    Begun(SegmentHeader),
    /// Prepared but never begun: nothing was written.
    Unused,
    /// The header does not hold and no frame behind it does: it never reached the disk whole.
    Torn,
}

/// What was found behind the last good frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    /// Nothing, or zeros.
    Clean,
    /// Bytes that are no frame.
    Torn,
    /// A frame that says the bad bytes before it had been on disk.
    DurableBeyond,
    /// A good frame that was not taken, because it does not follow from what came before.
    Gap,
}

/// What a reading of a segment found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scan {
    /// Offset behind the last good frame.
    pub(crate) end: u64,
    /// Largest claim of durable bytes of this segment in a good frame.
    pub(crate) durable: u64,
    pub(crate) tail: Tail,
}

/// Reads a segment from its start to its end.
pub(crate) struct SegmentReader {
    id: FileId,
    path: PathBuf,
    file: Arc<dyn ReadFile>,
    size: u64,
    /// Behind it there are zeros.
    written: u64,
    window: Bytes,
    window_start: u64,
}

impl SegmentReader {
    pub(crate) fn open(fs: &dyn Fs, path: PathBuf, id: FileId) -> Result<Self> {
        let file = fs.open(&path).at("open", &path)?;
        let size = file.size().at("size", &path)?;
        // Asked before anything is read: for some file systems, what was read is as good as written.
        let written = file.written().at("seek", &path)?;
        Ok(Self { id, path, file, size, written, window: Bytes::new(), window_start: 0 })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Judges the header.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is damaged: frames behind it hold, so it had been written. [`Error::Unsupported`] if it is whole and
    /// of a newer format.
    pub(crate) fn opening(&mut self) -> Result<Opening> {
        let front = usize_of(self.size).min(HEADER_LEN);
        let bytes = self.bytes(0, front)?;
        if bytes.iter().all(|&byte| byte == 0) {
            return self.unless_frame_follows(Opening::Unused);
        }
        match SegmentHeader::decode(&bytes, self.id) {
            Ok(header) => Ok(Opening::Begun(header)),
            // Whole, but of another number: a file under a wrong name. One that is cut short ends there too.
            Err(Unreadable::Damaged(damage)) if damage.offset == 8 && front == HEADER_LEN => {
                Err(damage.of(&self.path, 0))
            }
            Err(newer @ Unreadable::Unsupported(_)) => Err(newer.of(&self.path, 0)),
            Err(Unreadable::Damaged(_)) => self.unless_frame_follows(Opening::Torn),
        }
    }

    /// A header shares its sector with the first frame: where that one holds, the header had been there.
    fn unless_frame_follows(&mut self, opening: Opening) -> Result<Opening> {
        match self.frame_at(u64_of(HEADER_LEN), self.size)? {
            None => Ok(opening),
            Some(_) => Err(Error::corrupt(&self.path, 0, "header of a log segment")),
        }
    }

    /// Hands every good frame up to offset `limit` to `each`, in order, until one is not taken.
    pub(crate) fn scan(&mut self, limit: u64, mut each: impl FnMut(Frame) -> bool) -> Result<Scan> {
        let limit = limit.min(self.size);
        let mut scan = Scan { end: u64_of(HEADER_LEN).min(limit), durable: 0, tail: Tail::Clean };
        let mut next_seq = SeqNo(0);
        while let Some(body) = self.frame_at(scan.end, limit)? {
            let base = scan.end + u64_of(FRAME_HEADER_LEN);
            let frame = Frame::decode(&body).map_err(|damage| damage.of(&self.path, base))?;
            scan.durable = scan.durable.max(frame.durable);
            next_seq = frame.base_seq.plus(u64_of(frame.ops.len()));
            if !each(frame) {
                scan.tail = Tail::Gap;
                return Ok(scan);
            }
            scan.end = base + u64_of(body.len());
        }
        scan.tail = self.tail(scan.end, limit, next_seq)?;
        Ok(scan)
    }

    /// The body at `offset` if a whole good frame is there.
    fn frame_at(&mut self, offset: u64, limit: u64) -> Result<Option<Bytes>> {
        let left = limit.saturating_sub(offset);
        if left < u64_of(FRAME_HEADER_LEN) {
            return Ok(None);
        }
        let bytes = self.bytes(offset, FRAME_HEADER_LEN)?;
        let Some(header) = FrameHeader::decode(&bytes) else { return Ok(None) };
        if u64_of(header.body_len()) > left - u64_of(FRAME_HEADER_LEN) {
            return Ok(None);
        }
        let body = self.bytes(offset + u64_of(FRAME_HEADER_LEN), header.body_len())?;
        Ok(header.holds(self.id, &body).then_some(body))
    }

    /// Looks at everything from `from` on: a bad frame is in front.
    fn tail(&mut self, from: u64, limit: u64, next_seq: SeqNo) -> Result<Tail> {
        let mut tail = Tail::Clean;
        let mut at = from;
        // What was reserved and never written is not read: that would take longer than to replay what was.
        let end = limit.min(self.written);
        while at < end {
            let step = (end - at).min(u64_of(WINDOW / 2));
            let chunk = self.bytes(at, usize_of(step))?;
            if !is_zero(&chunk) {
                tail = Tail::Torn;
                if self.frame_beyond(at..at + step, from, (limit, next_seq))? {
                    return Ok(Tail::DurableBeyond);
                }
            }
            at += step;
        }
        Ok(tail)
    }

    /// Whether a good frame that begins in `range` says that `from` had been on disk.
    fn frame_beyond(
        &mut self,
        range: std::ops::Range<u64>,
        from: u64,
        (limit, next_seq): (u64, SeqNo),
    ) -> Result<bool> {
        const FRONT: usize = FRAME_HEADER_LEN + 20;
        for offset in range {
            if limit - offset < u64_of(FRONT) {
                return Ok(false);
            }
            let front = self.bytes(offset, FRONT)?;
            // Cheap tests first: a checksum over megabytes at each offset would take for ever.
            let body = front.get(FRAME_HEADER_LEN..).unwrap_or_default();
            let likely = BodyHeader::decode(body).is_some_and(|body| {
                body.durable > from
                    && body.durable <= offset
                    && body.base_seq >= next_seq
                    && body.base_seq.0 - next_seq.0 < 1 << 32
            });
            if likely && self.frame_at(offset, limit)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// `len` bytes at `offset`, from the window if they are in it. REQUIRES: they are in the file.
    fn bytes(&mut self, offset: u64, len: usize) -> Result<Bytes> {
        let within = offset
            .checked_sub(self.window_start)
            .map(usize_of)
            .filter(|at| at.saturating_add(len) <= self.window.len());
        if let Some(at) = within {
            return Ok(self.window.slice(at..at + len));
        }
        let rest = usize_of(self.size.saturating_sub(offset));
        let mut window = vec![0; len.max(WINDOW).min(rest)];
        if window.len() < len {
            let short = io::Error::from(io::ErrorKind::UnexpectedEof);
            return Err(Error::io("read", &self.path, short));
        }
        self.file.read_exact_at(&mut window, offset).at("read", &self.path)?;
        self.window = window.into();
        self.window_start = offset;
        Ok(self.window.slice(..len))
    }
}

impl std::fmt::Debug for SegmentReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SegmentReader").field("path", &self.path).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::env::OsFs;
    use crate::env::sim::{Fault, Operation, SimFs, Trouble};
    use crate::types::ValueKind;

    const ID: FileId = FileId(3);

    /// A segment of `frames` frames of two puts; every frame says that all before it was durable if `durable`.
    fn segment_bytes(frames: u64, durable: bool) -> Vec<u8> {
        let header = SegmentHeader { segment: ID, previous: Previous::default() };
        let mut bytes = header.encode().to_vec();
        let mut encoder = FrameEncoder::default();
        for frame in 0..frames {
            encoder.begin();
            for op in 0..2 {
                let key = Bytes::from(format!("key{frame}{op}"));
                encoder.push(&WriteOp { key, kind: ValueKind::Put, value: "v".into() });
            }
            let claim = if durable { u64_of(bytes.len()) } else { 0 };
            let parts = encoder.finish(ID, claim, SeqNo(1 + 2 * frame));
            let parts: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
            bytes.extend_from_slice(&parts);
        }
        bytes
    }

    fn scan(bytes: &[u8]) -> (usize, Scan) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("000003.wal");
        std::fs::write(&path, bytes).unwrap();
        let mut reader = SegmentReader::open(&OsFs, path, ID).unwrap();
        let mut frames = 0;
        let scan = reader
            .scan(u64::MAX, |_| {
                frames += 1;
                true
            })
            .unwrap();
        (frames, scan)
    }

    #[test]
    fn a_log_cut_at_every_byte_keeps_its_whole_frames() {
        let whole = segment_bytes(4, false);
        let frame = (whole.len() - HEADER_LEN) / 4;
        for cut in HEADER_LEN..=whole.len() {
            let (frames, scan) = scan(&whole[..cut]);
            assert_eq!(frames, (cut - HEADER_LEN) / frame, "cut at {cut}");
            assert_eq!(usize_of(scan.end), HEADER_LEN + frames * frame);
            assert_ne!(scan.tail, Tail::DurableBeyond);
        }
    }

    #[test]
    fn preallocated_zeros_are_a_clean_end() {
        let mut bytes = segment_bytes(3, true);
        bytes.resize(bytes.len() + 3 * WINDOW, 0);
        assert_eq!((scan(&bytes).0, scan(&bytes).1.tail), (3, Tail::Clean));
    }

    /// A file, and how many bytes were read of it.
    #[derive(Debug)]
    struct Counting(Arc<dyn ReadFile>, Arc<AtomicU64>);

    impl ReadFile for Counting {
        fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            self.1.fetch_add(u64_of(buf.len()), Ordering::Relaxed);
            self.0.read_exact_at(buf, offset)
        }
        fn try_read_exact_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
            Err(io::ErrorKind::WouldBlock.into())
        }
        fn size(&self) -> io::Result<u64> {
            self.0.size()
        }
    }

    #[test]
    fn room_that_was_never_written_is_not_read_and_a_frame_behind_it_is_found() {
        const ROOM: u64 = 64 << 20;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("000003.wal");
        let (begin, whole) = (segment_bytes(3, true), segment_bytes(6, true));
        let last = {
            let mut encoder = FrameEncoder::default();
            encoder.begin();
            encoder.push(&WriteOp { key: "k".into(), kind: ValueKind::Put, value: "v".into() });
            let parts = encoder.finish(ID, u64_of(whole.len()), SeqNo(100));
            parts.iter().flat_map(|part| part.to_vec()).collect::<Vec<u8>>()
        };
        for behind in [None, Some(3 << 20)] {
            let file = OsFs.create(&path).unwrap();
            file.append(&[IoSlice::new(&begin)]).unwrap();
            file.preallocate(ROOM).unwrap();
            if let Some(behind) = behind {
                let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
                file.write_all_at(&last, behind).unwrap();
            }
            let mut reader = SegmentReader::open(&OsFs, path.clone(), ID).unwrap();
            assert_eq!(reader.size, ROOM);
            let knows = reader.written < ROOM;
            let read = Arc::<AtomicU64>::default();
            reader.file = Arc::new(Counting(Arc::clone(&reader.file), Arc::clone(&read)));
            let scan = reader.scan(u64::MAX, |_| true).unwrap();
            let tail = if behind.is_some() { Tail::DurableBeyond } else { Tail::Clean };
            assert_eq!((scan.end, scan.tail), (u64_of(begin.len()), tail));
            let read = read.load(Ordering::Relaxed);
            assert!(read <= behind.unwrap_or(0) + 4 * u64_of(WINDOW) || !knows, "read {read}");
            OsFs.remove(&path).unwrap();
        }
    }

    /// Commits `frames` groups of one put of `size` bytes, each synced, and returns what was committed.
    fn commit(segment: &LogSegment, first: u64, frames: u64, size: usize) {
        let mut encoder = FrameEncoder::default();
        for seq in first..first + frames {
            let key = Bytes::from(format!("key{seq}"));
            let value = Bytes::from(vec![1; size]);
            let op = WriteOp { key, kind: ValueKind::Put, value };
            segment.append_again(&mut encoder, &[(SeqNo(seq), op)]).unwrap();
            segment.sync_commit().unwrap();
            assert!(segment.is_synced());
        }
    }

    /// Offset behind the last block that was written, as the simulated disk counts space.
    fn written(fs: &SimFs, segment: &LogSegment) -> u64 {
        u64_of(fs.read_all(&segment.path).unwrap().len())
    }

    /// A segment on a simulated disk that has all the room it asks for, but does not reserve it: its file is as long as what was
    /// written to it.
    fn segment(fs: &SimFs, room: u64) -> LogSegment {
        let dir = PathBuf::from("/db");
        let layout = Layout::new(&dir);
        layout.wal(ID).parent().map(|wal| fs.create_dir(wal)).unwrap().unwrap();
        for dir in [Path::new("/"), &dir] {
            fs.sync_dir(dir).unwrap();
        }
        let shared: Arc<dyn Fs> = Arc::new(fs.clone());
        let mut segment = LogSegment::create(&shared, &layout, ID, 0).unwrap();
        segment.room = room;
        segment.write_header(Previous::default()).unwrap();
        segment
    }

    fn found(fs: &SimFs, segment: &LogSegment) -> (u64, Scan) {
        let mut reader = SegmentReader::open(fs, segment.path.clone(), ID).unwrap();
        assert!(matches!(reader.opening().unwrap(), Opening::Begun(_)));
        let mut frames = 0;
        let scan = reader
            .scan(u64::MAX, |frame| {
                frames += 1;
                assert_eq!(frame.base_seq, SeqNo(frames));
                true
            })
            .unwrap();
        (frames, scan)
    }

    #[test]
    fn zeros_run_ahead_of_commits_that_are_synced_and_are_no_part_of_the_log() {
        let fs = SimFs::new(1);
        let segment = segment(&fs, 1 << 20);
        segment.sync().unwrap();
        assert_eq!(written(&fs, &segment), segment.len(), "none ahead of what no commit synced");
        for frames in 0..900 {
            commit(&segment, 1 + frames, 1, 1000);
            let ahead = written(&fs, &segment) - segment.len();
            assert!(ahead >= LARGE_COMMIT, "{frames}: {ahead}");
            assert!(ahead <= LARGE_COMMIT + ZERO_BYTES.start(), "{frames}: {ahead}");
        }
        let (frames, scan) = found(&fs, &segment);
        assert_eq!((frames, scan.end, scan.tail), (900, segment.len(), Tail::Clean));
        commit(&segment, 901, 100, 1000);
        assert_eq!(written(&fs, &segment), 1 << 20, "no more than it was made for");
        commit(&segment, 1001, 100, 1000);
        assert_eq!(written(&fs, &segment), segment.len(), "and then it grows as any other");
        assert_eq!(found(&fs, &segment).0, 1100);
    }

    #[test]
    fn large_commits_and_logs_without_room_get_no_zeros() {
        for (room, size) in [(0, 100), (1 << 20, 33 << 10)] {
            let fs = SimFs::new(1);
            let segment = segment(&fs, room);
            commit(&segment, 1, 20, size);
            assert_eq!(written(&fs, &segment), segment.len());
        }
    }

    #[test]
    fn zeros_that_cannot_be_written_cost_no_commit() {
        for trouble in [Trouble::Io, Trouble::NoSpace] {
            let fs = SimFs::new(1);
            let segment = segment(&fs, 1 << 20);
            fs.inject(Fault::new(trouble).on(Operation::Zero).after(1));
            let zeroed = fs.mutations();
            commit(&segment, 1, 300, 1000);
            assert_eq!(fs.mutations() - zeroed, 2 * 300 + 2, "one worked, one failed, and no more");
            assert_eq!(found(&fs, &segment).0, 300);
            assert_eq!(found(&fs.crash(1), &segment).0, 300);
        }
    }

    #[test]
    fn a_power_cut_takes_no_commit_that_was_synced_whatever_becomes_of_the_zeros() {
        // Operations: an append and a sync for each commit, and the zeros in between.
        for (nth, seed) in (1..160).flat_map(|nth| (0..8).map(move |seed| (nth, seed))) {
            let fs = SimFs::new(nth);
            let segment = segment(&fs, 1 << 20);
            segment.sync().unwrap();
            fs.crash_at(fs.mutations() + nth);
            let mut encoder = FrameEncoder::default();
            let mut synced = 0;
            for seq in 1..80 {
                let value = Bytes::from(vec![1; 2000]);
                let op = WriteOp { key: "k".into(), kind: ValueKind::Put, value };
                drop(segment.append_again(&mut encoder, &[(SeqNo(seq), op)]));
                synced += u64::from(segment.sync_commit().is_ok());
            }
            let (frames, scan) = found(&fs.crash(seed), &segment);
            assert!((synced..=synced + 1).contains(&frames), "{nth} {seed}: {frames} {synced}");
            assert_ne!(scan.tail, Tail::DurableBeyond, "{nth} {seed}");
            assert!(scan.end >= segment.durable(), "{nth} {seed}");
        }
    }

    #[test]
    fn what_was_appended_is_not_zeroed() {
        let dir = tempfile::tempdir().unwrap();
        let sim = SimFs::new(1);
        let files: [Arc<dyn WriteFile>; 2] =
            [OsFs.create(&dir.path().join("a")).unwrap(), sim.create(Path::new("/a")).unwrap()];
        for file in files {
            file.append(&[IoSlice::new(b"abc")]).unwrap();
            assert_eq!(file.zero(2..9).unwrap_err().kind(), io::ErrorKind::InvalidInput);
            file.zero(3..100_000).unwrap();
            assert_eq!(file.len(), 3);
            file.append(&[IoSlice::new(b"de")]).unwrap();
            file.sync().unwrap();
        }
        let seen = std::fs::read(dir.path().join("a")).unwrap();
        assert_eq!(seen, sim.read_all(Path::new("/a")).unwrap());
        assert_eq!((seen.len(), &seen[..7]), (100_000, &b"abcde\0\0"[..]));
    }

    /// A file whose first sync fails once a second has begun, or if none does for a while: only the first is told, as systems do.
    #[derive(Debug, Default)]
    struct ToldOnce {
        begun: AtomicU64,
        broken: AtomicBool,
    }

    impl WriteFile for ToldOnce {
        fn append(&self, _: &[IoSlice<'_>]) -> io::Result<()> {
            Ok(())
        }
        fn sync(&self) -> io::Result<()> {
            if self.broken.load(Ordering::Acquire) {
                return Err(io::Error::other("broken"));
            }
            if self.begun.fetch_add(1, Ordering::AcqRel) > 0 {
                return Ok(());
            }
            for _ in 0..100_000 {
                if self.begun.load(Ordering::Acquire) > 1 {
                    break;
                }
                std::thread::yield_now();
            }
            self.broken.store(true, Ordering::Release);
            Err(io::Error::other("the disk does not write"))
        }
        fn len(&self) -> u64 {
            1000
        }
        fn preallocate(&self, _: u64) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn of_two_who_sync_at_once_neither_is_told_that_all_is_well_when_it_is_not() {
        let mut segment = segment(&SimFs::new(1), 0);
        let file = Arc::<ToldOnce>::default();
        segment.file = Arc::clone(&file) as Arc<dyn WriteFile>;
        std::thread::scope(|scope| {
            let first = scope.spawn(|| segment.sync());
            while file.begun.load(Ordering::Acquire) == 0 {
                std::thread::yield_now();
            }
            let second = segment.sync();
            assert!(second.is_err(), "it had nothing to do with the failure of the first");
            assert!(first.join().unwrap().is_err());
        });
        assert!(!segment.is_synced());
    }

    #[test]
    fn damage_before_durable_bytes_is_told_from_a_torn_tail() {
        for (durable, tail) in [(true, Tail::DurableBeyond), (false, Tail::Torn)] {
            let mut bytes = segment_bytes(6, durable);
            let frame = (bytes.len() - HEADER_LEN) / 6;
            bytes[HEADER_LEN + 2 * frame + 12] ^= 4;
            let (frames, scan) = scan(&bytes);
            assert_eq!((frames, scan.tail), (2, tail));
        }
    }

    #[test]
    fn a_segment_is_unused_torn_begun_or_damaged() {
        let opening = |bytes: &[u8]| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("000003.wal");
            std::fs::write(&path, bytes).unwrap();
            SegmentReader::open(&OsFs, path, ID).unwrap().opening()
        };
        let whole = segment_bytes(1, false);
        assert_eq!(opening(&[0; 4096]).unwrap(), Opening::Unused);
        assert_eq!(opening(b"").unwrap(), Opening::Unused);
        for cut in 1..HEADER_LEN {
            assert_eq!(opening(&whole[..cut]).unwrap(), Opening::Torn, "cut at {cut}");
        }
        assert!(matches!(opening(&whole).unwrap(), Opening::Begun(_)));
        for spoiled in [0, 20] {
            let mut bytes = whole.clone();
            bytes[spoiled] ^= 1;
            assert!(matches!(opening(&bytes), Err(Error::Corrupt { offset: 0, .. })));
        }
        let mut newer = whole;
        newer[HEADER_LEN - 8] = 2;
        let crc = crc32c::crc32c(&newer[..HEADER_LEN - 4]).to_le_bytes();
        newer[HEADER_LEN - 4..HEADER_LEN].copy_from_slice(&crc);
        for len in [HEADER_LEN, newer.len()] {
            let found = opening(&newer[..len]);
            assert!(matches!(found, Err(Error::Unsupported { .. })), "{found:?}");
        }
    }
}
