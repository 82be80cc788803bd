//! A process that is killed in the middle of its work.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use crate::entry;
use crate::store::{Options, Result, Store, Wrong};
use crate::workload::{Dataset, Workload};

/// What a victim says when all of its entries are acknowledged.
const READY: &[u8; 6] = b"ready\n";

/// Puts every key, one by one, says so on `out`, and waits to be killed.
///
/// # Errors
/// What the store fails with. Otherwise it returns when standard input ends, which is when whoever started it died.
pub async fn victim<S: Store>(
    options: &Options,
    workload: &Workload,
    mut out: impl Write,
) -> Result<()> {
    let store = S::open(options).await?;
    let data = workload.data;
    for number in 0..data.keys {
        store.put(entry::key(number), entry::value(number, 0, data.value_bytes)).await?;
    }
    out.write_all(READY)?;
    out.flush()?;
    std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink())?;
    Err(Wrong("nobody killed the victim".to_owned()).into())
}

/// Starts a victim, waits until it is ready, and kills it.
pub(crate) fn kill_when_ready(mut command: Command) -> Result<()> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut said = [0; READY.len()];
    let heard = child.stdout.take().map(|mut out| out.read_exact(&mut said));
    child.kill()?;
    child.wait()?;
    match heard {
        Some(Ok(())) if said == *READY => Ok(()),
        _ => Err(Wrong("the process to be killed did not get ready".to_owned()).into()),
    }
}

/// How many of the entries are not there, or not as they were written.
pub(crate) async fn lost<S: Store>(store: &S, data: Dataset) -> Result<u64> {
    let mut lost = 0;
    for number in 0..data.keys {
        let ours = |found: Option<&[u8]>| {
            found.is_some_and(|value| entry::belongs(value, number, data.value_bytes))
        };
        lost += u64::from(!store.get(&entry::key(number), ours).await?);
    }
    Ok(lost)
}
