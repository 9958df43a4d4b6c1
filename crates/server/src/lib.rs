//! `tailwater`: flags, config, composition of roles, telemetry and shutdown. No logic of its own.
//!
//! A library only so that what reads flags and files can be reached by tests; the program is [`run`].

mod auth_flags;
mod cells;
mod config;
mod connection;
mod corruption;
mod data_dir;
mod describe;
mod discovery;
mod duration;
mod etcd_name;
mod fanout_node;
mod flags;
mod founding;
mod front;
#[doc(hidden)]
pub mod fuzzing;
mod gateway_node;
mod hashes;
mod help;
mod host;
mod ids;
mod join;
mod listener;
mod member;
mod member_front;
mod no_source;
mod peer_side;
mod process;
mod relay_side;
mod roles;
mod snapshot;
mod snapshots;
mod status;
mod survey;
mod telemetry;
mod ui;
mod upstream;
mod write_route;

use std::process::ExitCode;

use crate::config::Config;
use crate::data_dir::DataDir;
use crate::fanout_node::FanoutNode;
use crate::flags::Parsed;
use crate::gateway_node::GatewayNode;
use crate::host::Ending;
use crate::member::MemberNode;
use crate::roles::Roles;

/// The program: does what its arguments and variables say, and returns what it ends with.
#[must_use]
pub fn run() -> ExitCode {
    let mut arguments = std::env::args();
    let program = arguments.next().unwrap_or_default();
    let (flags, as_etcd) = match flags::parse(&program, arguments.collect()) {
        Parsed::Serve(flags, as_etcd) => (flags, as_etcd),
        Parsed::Status(flags) => return survey::run(&flags),
        Parsed::Cells(flags) => return cells::run(&flags),
        Parsed::Snapshot(command) => return snapshot::run(&command),
        Parsed::Bench(arguments) => return bench(*arguments),
        Parsed::Exit(code) => return code,
    };
    let config = match Config::from_flags(&flags) {
        Ok(config) => config,
        Err(reason) if as_etcd.is_some() => return etcd_name::refuse(&reason),
        Err(reason) => return flags::refuse(&reason),
    };
    telemetry::start_log(&config.log);
    as_etcd.iter().flatten().for_each(etcd_name::Note::log);
    match serve(config) {
        // As etcd: whoever started this process sees which signal ended it.
        Ok(Ending::Signal(signal)) if as_etcd.is_some() => host::end_by(signal),
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(reason = format!("{error:#}"), "server stopped");
            ExitCode::FAILURE
        }
    }
}

/// Puts load on a server elsewhere.
#[expect(clippy::print_stderr, reason = "the reason of a command that failed")]
fn bench(arguments: tailwater_bench::LoadArguments) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome =
        runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(tailwater_bench::run_load(arguments)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tailwater bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Builds the node, runs it until a signal or a failure, and drains it.
fn serve(config: Config) -> anyhow::Result<Ending> {
    config.tls.prepare()?;
    config.warn();
    if config.roles == Roles::Gateway {
        let node = GatewayNode::build(&config)?;
        let outcome = node.run();
        node.drain();
        return outcome;
    }
    if !config.roles.is_member() {
        let node = FanoutNode::build(&config)?;
        let outcome = node.run();
        node.drain();
        return outcome;
    }
    let data_dir = DataDir::open(&config)?;
    let node = MemberNode::build(&config, &data_dir)?;
    let outcome = node.run();
    node.drain();
    outcome
}
