//! The first five minutes: open, put, get, delete, scan, write a batch, shut down, and find it all again.

use std::error::Error;

use bytes::Bytes;
use nori_lsm::{ATLLConfig, LsmEngine, WriteBatch, WriteOptions};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let config = ATLLConfig { data_dir: dir.path().to_owned(), ..Default::default() };
    let engine = LsmEngine::open(config.clone()).await?;

    engine.put("user:123", "alice").await?;
    engine.put("user:124", "bob").await?;
    assert_eq!(engine.get(b"user:123").await?, Some(Bytes::from("alice")));

    engine.delete(b"user:123").await?;
    assert_eq!(engine.get(b"user:123").await?, None);

    // A batch is visible, and survives a crash, whole or not at all.
    let mut batch = WriteBatch::default();
    batch.put("user:125", "carol").put("user:126", "dave").delete("user:124");
    engine.write(batch, WriteOptions::default()).await?;

    let mut names = Vec::new();
    let mut users = engine.iter_range(b"user:", b"user;").await?;
    while let Some((_, name)) = users.next().await? {
        names.push(name);
    }
    assert_eq!(names, ["carol", "dave"]);

    engine.shutdown().await?;
    let engine = LsmEngine::open(config).await?;
    assert_eq!(engine.get(b"user:126").await?, Some(Bytes::from("dave")));
    engine.shutdown().await?;
    Ok(())
}
