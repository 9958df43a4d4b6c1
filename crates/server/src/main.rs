//! `tailwater`: flags, config, composition of roles, telemetry and shutdown. No logic of its own.

mod config;
mod corruption;
mod data_dir;
mod duration;
mod flags;
mod founding;
mod ids;
mod join;
mod listener;
mod no_source;
mod node;
mod peer_side;
mod process;
mod telemetry;

use std::process::ExitCode;

use crate::config::Config;
use crate::data_dir::DataDir;
use crate::flags::Parsed;
use crate::node::Node;

fn main() -> ExitCode {
    let flags = match flags::parse(std::env::args().skip(1).collect(), |name| std::env::var(name).ok()) {
        Parsed::Serve(flags) => flags,
        Parsed::Exit(code) => return code,
    };
    let config = match Config::from_flags(&flags) {
        Ok(config) => config,
        Err(reason) => return flags::refuse(&reason),
    };
    telemetry::start_log(config.log_level);
    match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(reason = format!("{error:#}"), "server stopped");
            ExitCode::FAILURE
        }
    }
}

/// Builds the node, runs it until a signal or a failure, and drains it.
fn serve(config: Config) -> anyhow::Result<()> {
    let data_dir = DataDir::open(&config)?;
    let node = Node::build(&config, &data_dir)?;
    let outcome = node.run();
    node.drain();
    outcome
}
