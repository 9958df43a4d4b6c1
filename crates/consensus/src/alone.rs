//! `--force-new-cluster`: a member of a group that is lost goes on alone, with what its own log has.
//!
//! The decision is an entry at the end of the log, behind everything that is there: what was acknowledged may not be known
//! here as committed, since nothing is written only to note that. Whatever the log holds is applied up to that entry, and
//! flushed, before the member serves anything. So no kill brings back the old group or the old history: before the entry
//! is durable nothing has happened, and a start that finds it above the applied position goes on from there.

use raft::eraftpb::{Entry, HardState};
use tailwater_api::write::{self, command::Command};
use tailwater_eventlog::{EventLog, Position, Term};

use crate::machine::{Machine, MachineError};
use crate::raft_log::{RaftLog, RaftLogError, RaftLogView, Recovered};
use crate::replica::apply::commands;
use crate::replica::core::one_command;
use crate::start::{Chosen, raft_log_error};
use crate::{ConsensusConfig, StartError};

/// Bytes of entries read at once, and of events gathered into one write.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// Applies what the log holds, and then its new last entry, which leaves this member alone in its group. Durable when it
/// returns, in the log and in the state.
pub(crate) fn go_on_alone(
    log: &mut RaftLog,
    recovered: &mut Recovered,
    machine: &mut Machine,
    events: &EventLog,
    config: &ConsensusConfig,
    chosen: Chosen,
) -> Result<(), StartError> {
    let view = log.view();
    replay(machine, events, &view, recovered.last_index)?;
    if !machine.group().members.iter().any(|member| member.id == config.member_id) {
        return Err(StartError::Config("there is no group here that could go on alone".to_owned()));
    }
    let last_term = view.term(recovered.last_index).map_err(raft_log_error)?;
    let term = recovered.hard_state.term.max(last_term) + 1;
    let forced = write::ForceNewCluster { history_id: chosen.history_id, member_id: config.member_id.0 };
    let command = write::Command { command: Some(Command::ForceNewCluster(forced)), ..Default::default() };
    let entry = Entry { index: recovered.last_index + 1, term, data: one_command(&command), ..Default::default() };
    let hard_state = HardState { term, vote: config.member_id.0, commit: entry.index };
    tracing::warn!(member = config.member_id.0, at = entry.index, "the group goes on as this member alone");
    recovered.last_index = entry.index;
    view.stage(std::slice::from_ref(&entry));
    log.append(&[entry], Some(&hard_state)).map_err(raft_log_error)?;
    log.sync().map_err(raft_log_error)?;
    // Nobody is left to whom something could have been promised.
    log.settle().map_err(raft_log_error)?;
    recovered.hard_state = hard_state;
    recovered.doubtful = false;
    finish(&view, recovered, machine, events)
}

/// Applies what the log holds up to the newest such decision above the applied position, if there is one: an earlier start
/// made it and was killed before its end. Durable when it returns.
pub(crate) fn finish(
    view: &RaftLogView,
    recovered: &Recovered,
    machine: &mut Machine,
    events: &EventLog,
) -> Result<(), StartError> {
    let applied = machine.state().applied.0;
    let committed = recovered.hard_state.commit.min(recovered.last_index);
    let decided = (applied + 1..=committed).rev().find_map(|index| decides(view, index).transpose());
    if let Some(index) = decided.transpose().map_err(raft_log_error)? {
        replay(machine, events, view, index)?;
        events.flush()?;
    }
    Ok(())
}

/// The index if such a decision stands there. It is the first entry of its term, and no leader's is: that one is empty.
fn decides(view: &RaftLogView, index: u64) -> Result<Option<u64>, RaftLogError> {
    if view.term(index - 1).ok() == Some(view.term(index)?) {
        return Ok(None);
    }
    let entries = view.entries(index, index + 1, None)?;
    let all = entries.first().and_then(|entry| commands(entry).ok()).unwrap_or_default();
    Ok(all.iter().any(|command| matches!(command.command, Some(Command::ForceNewCluster(_)))).then_some(index))
}

/// Applies the log up to and including `to`, as the apply thread would. Nothing of it is durable when it returns.
fn replay(machine: &mut Machine, events: &EventLog, view: &RaftLogView, to: u64) -> Result<(), StartError> {
    let mut next = machine.state().applied.0 + 1;
    while next <= to {
        let entries = view.entries(next, to + 1, Some(BATCH_BYTES_MAX as u64)).map_err(raft_log_error)?;
        next += entries.len() as u64;
        for entry in &entries {
            machine.advance(Position(entry.index), Term(entry.term));
            for command in commands(entry).map_err(unreadable)? {
                match machine.apply(events, command.caller.as_ref(), command.command, false) {
                    Ok(_) | Err(MachineError::Refused(_)) => {}
                    Err(error) => return Err(unreadable(error)),
                }
            }
        }
        // Raft begins with the group as it is then.
        machine.take_group_changed();
        events.write(&machine.take_output().write)?;
    }
    Ok(())
}

fn unreadable(error: MachineError) -> StartError {
    match error {
        MachineError::Storage(error) => StartError::Storage(error),
        error => StartError::RaftLog(error.to_string()),
    }
}
