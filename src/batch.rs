//! What a caller wants written: a batch of operations that happen together or not at all, and how the write is to be treated.

use std::time::Duration;

use bytes::Bytes;

use crate::config::{Durability, MAX_BATCH_BYTES, MAX_KEY_BYTES, MAX_VALUE_BYTES};
use crate::error::{Error, Result};
use crate::types::{SeqNo, ValueKind, u64_of};

/// Operations that become visible, and durable, all at once.
///
/// A later operation on the same key wins. Keys and values are shared with the caller until they are written.
///
/// ```
/// let mut batch = nori_lsm::WriteBatch::default();
/// batch.put("user:1", "ann").delete("user:2");
/// assert_eq!(batch.len(), 2);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteBatch {
    /// The first operation, inline: a batch of one costs no allocation.
    first: Option<WriteOp>,
    rest: Vec<WriteOp>,
    bytes: usize,
}

/// One operation of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WriteOp {
    pub(crate) key: Bytes,
    pub(crate) kind: ValueKind,
    pub(crate) value: Bytes,
}

impl WriteBatch {
    /// Sets `key` to `value`.
    pub fn put(&mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> &mut Self {
        self.push(WriteOp { key: key.into(), kind: ValueKind::Put, value: value.into() })
    }

    /// Deletes `key`; fine if it is not there.
    pub fn delete(&mut self, key: impl Into<Bytes>) -> &mut Self {
        self.push(WriteOp { key: key.into(), kind: ValueKind::Delete, value: Bytes::new() })
    }

    /// Number of operations.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.len()
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Bytes of all keys and values.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes all operations out; the room is kept.
    pub fn clear(&mut self) {
        self.first = None;
        self.rest.clear();
        self.bytes = 0;
    }

    fn push(&mut self, op: WriteOp) -> &mut Self {
        self.bytes = self.bytes.saturating_add(op.key.len()).saturating_add(op.value.len());
        if self.first.is_none() {
            self.first = Some(op);
        } else {
            self.rest.push(op);
        }
        self
    }

    pub(crate) fn ops(&self) -> impl Iterator<Item = &WriteOp> {
        self.first.iter().chain(&self.rest)
    }

    /// Takes operation number `index` out; its place stays. `None` behind the last.
    pub(crate) fn take_op(&mut self, index: usize) -> Option<WriteOp> {
        let op = match index.checked_sub(1) {
            None => self.first.as_mut(),
            Some(index) => self.rest.get_mut(index),
        }?;
        let nothing = WriteOp { key: Bytes::new(), kind: ValueKind::Delete, value: Bytes::new() };
        Some(std::mem::replace(op, nothing))
    }

    /// Makes every put expire at `expires_ms`.
    pub(crate) fn expire_puts_at(&mut self, expires_ms: u64) {
        for op in self.first.iter_mut().chain(&mut self.rest) {
            if op.kind == ValueKind::Put {
                op.kind = ValueKind::PutUntil(expires_ms);
            }
        }
    }

    /// Checks every limit. Cost: one look at each operation.
    pub(crate) fn check_limits(&self) -> Result<()> {
        for op in self.ops() {
            limit("key", op.key.len(), MAX_KEY_BYTES)?;
            limit("value", op.value.len(), MAX_VALUE_BYTES)?;
        }
        limit("batch", self.bytes, MAX_BATCH_BYTES)
    }
}

fn limit(what: &'static str, len: usize, max: usize) -> Result<()> {
    if len <= max {
        Ok(())
    } else {
        Err(Error::TooLarge { what, len: u64_of(len), max: u64_of(max) })
    }
}

/// How one write is to be treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// What the write has survived when it is acknowledged; `None`: as the engine is configured.
    pub durability: Option<Durability>,
    /// Time to live of the puts; `None`: as the engine is configured.
    pub ttl: Option<Duration>,
    /// Longest wait for background work before the write gives up with [`Error::Stalled`]; `None`: waits.
    pub deadline: Option<Duration>,
}

/// Where an acknowledged write stands in the order of all writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Sequence number of the last operation of the batch.
    pub seq: SeqNo,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_over_a_limit_says_which() {
        let mut batch = WriteBatch::default();
        batch.put(vec![0; MAX_KEY_BYTES + 1], "");
        assert!(matches!(batch.check_limits(), Err(Error::TooLarge { what: "key", .. })));
        batch.clear();
        batch.put("k", vec![0; MAX_VALUE_BYTES + 1]);
        assert!(matches!(batch.check_limits(), Err(Error::TooLarge { what: "value", .. })));
        batch.clear();
        assert!(batch.is_empty() && batch.bytes() == 0);
        let half = Bytes::from(vec![0; MAX_VALUE_BYTES / 2 + 1]);
        batch.put("a", half.clone()).put("b", half.clone());
        assert!(
            batch.check_limits().is_ok(),
            "a little over the sum of values is within the key allowance"
        );
        batch.put("c", half);
        assert!(matches!(batch.check_limits(), Err(Error::TooLarge { what: "batch", .. })));
    }

    #[test]
    fn an_operation_that_is_taken_out_is_there_no_more_but_its_place_is() {
        let mut batch = WriteBatch::default();
        let values = [vec![1; 100], vec![2; 100], vec![3; 100]].map(Bytes::from);
        for value in &values {
            batch.put("k", value.clone());
        }
        for (index, value) in values.iter().enumerate() {
            assert!(!value.is_unique());
            assert_eq!(batch.take_op(index).unwrap().value, value);
            assert!(value.is_unique());
        }
        assert_eq!((batch.take_op(3), batch.len()), (None, 3));
    }

    #[test]
    fn a_batch_keeps_its_order() {
        let mut batch = WriteBatch::default();
        batch.put("a", "1").delete("b").put("a", "2");
        let keys: Vec<_> = batch.ops().map(|op| op.value.clone()).collect();
        assert_eq!(keys, ["1", "", "2"]);
        assert_eq!((batch.len(), batch.bytes()), (3, 5));
    }
}
