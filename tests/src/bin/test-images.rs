//! Builds images on the spot and pushes them to a registry.
//!
//! `test-images push ADDRESS` for the demo's, `test-images push-all ADDRESS` for those of the suites,
//! `test-images push-bulk ADDRESS NAME LAYERS MEBIBYTES` for one of a given size.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bulkhead_tests::images::catalogue::{self, Catalogue};
use bulkhead_tests::images::{Target, busybox};

const USAGE: &str = "usage: test-images push|push-all ADDRESS, or test-images push-bulk ADDRESS NAME LAYERS MEBIBYTES";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match work(&arguments.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("test-images: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn work(arguments: &[&str]) -> Result<()> {
    match arguments {
        ["push", address] => Catalogue::new(&busybox::find()?)?.push_demo(&Target::plain(address)),
        ["push-all", address] => Catalogue::new(&busybox::find()?)?.push(&Target::plain(address)),
        ["push-bulk", address, name, layers, mebibytes] => {
            let layers: usize = layers.parse().context(USAGE)?;
            let mebibytes: usize = mebibytes.parse().context(USAGE)?;
            if layers == 0 {
                bail!(USAGE);
            }
            let image = catalogue::bulk(layers, (mebibytes << 20) / layers)?;
            Target::plain(address).push(name, "1", &image).map(drop)
        }
        _ => bail!(USAGE),
    }
}
