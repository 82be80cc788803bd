//! Care for a database that nobody has open: `verify` and `repair`.

use std::io::{self, Write};

use nori_lsm::env::Env;

use crate::Outcome;
use crate::args::{Repair, Verify};
use crate::failure::Failure;
use crate::query::{config, printed};

/// `nori verify`: one line of counts, then one for each damage.
pub(crate) async fn verify(args: Verify) -> Result<Outcome, Failure> {
    let report = nori_lsm::verify(&config(&args.dir), &Env::default()).await?;
    printed(writeln!(io::stdout(), "{report}"))?;
    Ok(if report.is_sound() { Outcome::Done } else { Outcome::Damaged })
}

/// `nori repair`: what was found, and where files went.
pub(crate) async fn repair(args: Repair) -> Result<Outcome, Failure> {
    let (config, env) = (config(&args.dir), Env::default());
    let report = match args.dry_run {
        true => nori_lsm::diagnose(&config, &env).await?,
        false => nori_lsm::repair(&config, &env).await?,
    };
    printed(writeln!(io::stdout(), "{report}"))?;
    let left = args.dry_run && !report.is_sound();
    Ok(if left { Outcome::Damaged } else { Outcome::Done })
}
