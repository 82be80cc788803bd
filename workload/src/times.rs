//! How long each operation took, by kind.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::store::Result;

/// Ten minutes; what takes longer counts as that.
const MAX_NANOS: u64 = 600_000_000_000;

/// Kinds of operations that are measured apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One key read.
    Get,
    /// One key written: put, insert or delete.
    Put,
    /// Many keys written at once.
    Batch,
    /// One key read, then written.
    ReadModifyWrite,
    /// Entries read in order.
    Scan,
    /// Opening, up to the first get.
    Open,
}

impl Kind {
    const ALL: [Self; 6] =
        [Self::Get, Self::Put, Self::Batch, Self::ReadModifyWrite, Self::Scan, Self::Open];

    /// A word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Put => "put",
            Self::Batch => "batch",
            Self::ReadModifyWrite => "rmw",
            Self::Scan => "scan",
            Self::Open => "open",
        }
    }
}

/// Nanoseconds that operations took, by kind, and what they went over.
#[derive(Clone, Debug, Default)]
pub struct Times {
    nanos: [Option<Histogram<u64>>; Kind::ALL.len()],
    /// Entries written or read in order.
    pub entries: u64,
    /// Entries written.
    pub written: u64,
}

impl Times {
    pub(crate) fn record(&mut self, kind: Kind, took: Duration) -> Result<()> {
        let slot = &mut self.nanos[kind as usize];
        let histogram = match slot {
            Some(histogram) => histogram,
            None => slot.insert(Histogram::new_with_max(MAX_NANOS, 3)?),
        };
        histogram.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        Ok(())
    }

    pub(crate) fn add(&mut self, other: Self) -> Result<()> {
        self.entries += other.entries;
        self.written += other.written;
        for (mine, theirs) in self.nanos.iter_mut().zip(other.nanos) {
            match (&mut *mine, theirs) {
                (Some(mine), Some(theirs)) => mine.add(theirs)?,
                (None, theirs) => *mine = theirs,
                (Some(_), None) => {}
            }
        }
        Ok(())
    }

    /// The kinds that occurred, each with its nanoseconds.
    pub fn kinds(&self) -> impl Iterator<Item = (Kind, &Histogram<u64>)> {
        Kind::ALL
            .into_iter()
            .zip(&self.nanos)
            .filter_map(|(kind, nanos)| Some((kind, nanos.as_ref()?)))
    }

    /// Operations of all kinds.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.kinds().map(|(_, nanos)| nanos.len()).sum()
    }

    /// All kinds together; empty if nothing was done.
    ///
    /// # Errors
    /// If the histograms cannot be added, which would be a bug.
    pub fn all(&self) -> Result<Histogram<u64>> {
        let mut all = Histogram::new_with_max(MAX_NANOS, 3)?;
        for (_, nanos) in self.kinds() {
            all.add(nanos)?;
        }
        Ok(all)
    }
}
