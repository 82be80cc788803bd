//! What an engine has to offer to be measured.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;

use bytes::Bytes;

/// Whatever an engine fails with; [`Wrong`] if it did not fail but lied.
pub type Fault = Box<dyn Error + Send + Sync>;

/// A result of a store.
pub type Result<T> = std::result::Result<T, Fault>;

/// A store answered, and the answer is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong(pub String);

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Wrong {}

/// How the clients of a store call it: each engine in the way its documentation wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Its calls wait by themselves, wherever they are: a client is a task of the runtime, a lone one what `block_on` waits for, as
    /// `main` of a program is.
    Futures,
    /// Its calls wait by themselves, but take long outside of the runtime's workers: every client is a task.
    Tasks,
    /// Its calls block: a client is a thread, and the futures are always ready.
    Threads,
}

/// What an acknowledged write has survived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The death of the process, if the engine can promise that without a sync.
    Os,
    /// A power cut.
    Disk,
}

/// Where and how a store is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Its directory; created if need be.
    pub dir: PathBuf,
    /// What a write has survived when it is acknowledged.
    pub durability: Durability,
}

/// Which entries a scan sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span<'a> {
    /// The first so many from this key on.
    From(&'a [u8], usize),
    /// All of them, from the first.
    Forward,
    /// All of them, from the last.
    Backward,
}

/// An ordered store of keys and values. A clone is a handle to the same store.
pub trait Store: Clone + Send + Sync + 'static {
    /// How its clients call it.
    const STYLE: Style;

    /// Opens it, makes it if it is not there.
    fn open(options: &Options) -> impl Future<Output = Result<Self>> + Send;

    /// Shows the value of a key, without copying it if the engine need not.
    fn get<R: Send>(
        &self,
        key: &[u8],
        see: impl FnOnce(Option<&[u8]>) -> R + Send,
    ) -> impl Future<Output = Result<R>> + Send;

    /// Sets a key.
    fn put(&self, key: Bytes, value: Bytes) -> impl Future<Output = Result<()>> + Send;

    /// Removes a key; fine if it is not there.
    fn delete(&self, key: Bytes) -> impl Future<Output = Result<()>> + Send;

    /// Sets keys, all of them or none.
    fn batch(&self, puts: Vec<(Bytes, Bytes)>) -> impl Future<Output = Result<()>> + Send;

    /// Shows keys and values in order.
    fn scan(
        &self,
        span: Span<'_>,
        see: impl FnMut(&[u8], &[u8]) + Send,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Moves what is in memory into files and waits until background work has nothing left to do, as far as the engine lets one.
    fn settle(&self) -> impl Future<Output = Result<()>> + Send;

    /// Closes it in an orderly way. There is no other handle.
    fn close(self) -> impl Future<Output = Result<()>> + Send;
}
