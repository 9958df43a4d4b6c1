//! The `tailwater` binary: reads the flags, composes the roles, serves, and drains.
//!
//! There is no logic here: [`config`] turns flags and variables into one checked struct, [`serve`] builds the crates from
//! it, runs until a signal or a failure, and takes them down in order.

mod config;
mod data_dir;
mod flags;
mod go_duration;
mod ids;
mod listener;
mod serve;
mod telemetry;

use std::process::ExitCode;

use clap::Parser;

use crate::config::Config;
use crate::flags::{Arguments, Command};

/// Exit codes as etcd's: 1 for what the configuration or the run got wrong, 2 (clap's own) for unknown flags.
const FAILED: u8 = 1;

fn main() -> ExitCode {
    let arguments = Arguments::parse_from(flags::with_environment(std::env::args_os().collect(), std::env::vars_os()));
    let Command::Serve(flags) = arguments.command;
    let config = match Config::from_flags(*flags) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("tailwater: {error}");
            return ExitCode::from(FAILED);
        }
    };
    telemetry::start_logging(config.log_level);
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(reason = %format!("{error:#}"), "tailwater stops");
            ExitCode::from(FAILED)
        }
    }
}

/// Builds the runtime of the read plane; the write plane's threads are its own.
fn run(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().thread_name("tailwater-serve").enable_all().build()?;
    let result = runtime.block_on(serve::serve(config));
    // Blocking reads of a client that is gone need not be waited for.
    runtime.shutdown_background();
    result
}
