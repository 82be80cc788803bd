//! Ends on Ctrl-C, here at the latest after half a second: writers stop, what is in memory becomes tables, nothing is replayed.

use std::error::Error;
use std::time::Duration;

use nori_lsm::{ATLLConfig, Error as EngineError, LsmEngine};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let config = ATLLConfig { data_dir: dir.path().to_owned(), ..Default::default() };
    let engine = LsmEngine::open(config.clone()).await?;
    let writer = tokio::spawn(write_until_closed(engine.clone()));

    // A server would wait for the signal alone.
    tokio::select! {
        signal = tokio::signal::ctrl_c() => signal?,
        () = tokio::time::sleep(Duration::from_millis(500)) => {}
    }
    // Every handle is closed by this; a second call waits for the same end.
    engine.shutdown().await?;
    engine.shutdown().await?;
    let written = writer.await??;
    assert!(written > 0);

    let engine = LsmEngine::open(config).await?;
    assert_eq!(engine.recovery().operations, 0, "there is no log left to replay");
    let last = format!("event:{:012}", written - 1);
    assert!(engine.get(last.as_bytes()).await?.is_some(), "what was acknowledged is there");
    engine.shutdown().await?;
    Ok(())
}

/// Writes events until the engine says that it is closed; returns how many it took.
async fn write_until_closed(engine: LsmEngine) -> Result<u64, EngineError> {
    let mut written = 0;
    loop {
        match engine.put(format!("event:{written:012}"), "something happened").await {
            Ok(_) => written += 1,
            Err(EngineError::Closed) => return Ok(written),
            Err(error) => return Err(error),
        }
        tokio::time::sleep(Duration::from_micros(100)).await;
    }
}
