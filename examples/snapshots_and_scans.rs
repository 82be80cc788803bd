//! Reading from one point in time while others write, and the ways to walk over keys.

use std::error::Error;

use bytes::Bytes;
use futures::TryStreamExt;
use nori_lsm::{ATLLConfig, LsmEngine};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let config = ATLLConfig { data_dir: dir.path().to_owned(), ..Default::default() };
    let engine = LsmEngine::open(config).await?;
    for day in 1..=28 {
        engine.put(format!("2026-02-{day:02}"), format!("{day} visitors")).await?;
        engine.put(format!("2026-03-{day:02}"), format!("{} visitors", day * 2)).await?;
    }

    // A snapshot sees neither later writes nor later deletes.
    let snapshot = engine.snapshot();
    engine.put("2026-02-01", "corrected").await?;
    engine.delete(b"2026-02-02").await?;
    assert_eq!(snapshot.get(b"2026-02-01").await?, Some(Bytes::from("1 visitors")));
    assert!(snapshot.get(b"2026-02-02").await?.is_some());
    assert_eq!(engine.get(b"2026-02-01").await?, Some(Bytes::from("corrected")));
    assert!(!engine.contains(b"2026-02-02").await?);

    // A prefix, as a stream: the month as it was, and as it is.
    let then: Vec<(Bytes, Bytes)> = snapshot.scan(..).prefix("2026-02").try_collect().await?;
    let now: Vec<(Bytes, Bytes)> = engine.scan(..).prefix("2026-02").try_collect().await?;
    assert_eq!((then.len(), now.len()), (28, 27));

    // The last three days, newest first.
    let mut newest = engine.scan(..).rev().limit(3);
    let days: Vec<Bytes> = newest.next_chunk(10).await?.into_iter().map(|(day, _)| day).collect();
    assert_eq!(days, ["2026-03-28", "2026-03-27", "2026-03-26"]);

    // A half-open range, and a jump within it.
    let mut march = engine.scan("2026-03-01".."2026-03-15");
    assert_eq!(march.next().await?.map(|(day, _)| day), Some(Bytes::from("2026-03-01")));
    march.seek("2026-03-14");
    assert_eq!(march.next().await?.map(|(day, _)| day), Some(Bytes::from("2026-03-14")));
    assert_eq!(march.next().await?, None);

    // Several keys at once, as of one moment.
    let values = engine.multi_get(&["2026-02-01", "2026-02-02", "2026-02-03"]).await?;
    assert_eq!(values, [Some("corrected".into()), None, Some("3 visitors".into())]);

    drop((snapshot, march, newest));
    engine.shutdown().await?;
    Ok(())
}
