//! Requests on their way from a gateway to the leader, and answers on their way back.
//!
//! The gateway stands beside a member, as in production: a request goes to that member's own replica while it leads or
//! knows no leader, else over the network to the leader that it knows. It is sent once; what gets lost stays lost, and the
//! client gives up.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use protobuf::Message as _;
use tailwater_consensus::Consensus;
use tailwater_eventlog::MemberId;

use super::{Event, World};
use crate::member::{At, Served, Thread};
use crate::operation::{Ask, Reply};
use crate::plan::Bug;
use crate::violation::Checked;

async fn serve(consensus: Consensus, ask: Ask) -> Reply {
    match ask {
        Ask::Propose(command) => Reply::Proposed(consensus.propose(command).await),
        Ask::Barrier => Reply::Barrier(consensus.barrier().await),
        Ask::KeepAlive(lease) => Reply::KeepAlive(consensus.lease_keep_alive(lease).await),
        Ask::MoveLeader(to) => {
            // Whether it worked shows.
            let _moved = consensus.move_leader(to).await;
            Reply::MoveLeader
        }
    }
}

impl World {
    /// The member's gateway sends a request to the leader that it knows.
    pub(super) fn send_request(&mut self, gateway: At, operation: u64, ask: Ask) -> Checked {
        let Some(running) = &self.members[gateway.member].running else { return Ok(()) };
        let leader = running.consensus.status().leader;
        let to = if leader == MemberId(0) { Some(gateway.member) } else { self.index_of(leader) };
        let Some(to) = to else { return Ok(()) };
        if to == gateway.member {
            self.request(gateway, to, operation, ask);
            return Ok(());
        }
        if self.network.is_cut(gateway.member, to) {
            return Ok(());
        }
        let twice = self.config.bug == Some(Bug::ProposedTwice) && self.random.chance(20);
        if twice {
            let delay = self.network.delay(&mut self.random);
            self.schedule(delay, Event::Request { gateway, to, operation, ask: Box::new(ask.clone()) });
        }
        let delay = self.network.delay(&mut self.random);
        self.schedule(delay, Event::Request { gateway, to, operation, ask: Box::new(ask) });
        Ok(())
    }

    pub(super) fn index_of(&self, id: MemberId) -> Option<usize> {
        self.members.iter().position(|member| member.id == id)
    }

    /// The request is there.
    pub(super) fn request(&mut self, gateway: At, to: usize, operation: u64, ask: Ask) {
        self.trace.step(self.now, "request", &[to as u64, operation]);
        self.advance();
        let member = &mut self.members[to];
        let Some(running) = &mut member.running else { return };
        let reply = Box::pin(serve(running.consensus.clone(), ask));
        running.served.push(Served { operation, gateway, reply });
        let at = At { member: to, run: member.run };
        // Its first poll hands it to the replica.
        let ready = self.poll_ready(at);
        self.schedule_replies(at, ready);
        self.wake_soon(at, Thread::Replica);
    }

    /// Looks which requests of a member are answered.
    pub(super) fn poll_served(&mut self, at: At) -> Checked {
        let ready = self.poll_ready(at);
        self.schedule_replies(at, ready);
        Ok(())
    }

    fn poll_ready(&mut self, at: At) -> Vec<(u64, At, Reply)> {
        let mut ready = Vec::new();
        let _entered = self.runtime.enter();
        let Some(running) = &mut self.members[at.member].running else { return ready };
        let mut context = Context::from_waker(Waker::noop());
        running.served.retain_mut(|served| match Pin::as_mut(&mut served.reply).poll(&mut context) {
            Poll::Ready(reply) => {
                ready.push((served.operation, served.gateway, reply));
                false
            }
            Poll::Pending => true,
        });
        ready
    }

    fn schedule_replies(&mut self, at: At, ready: Vec<(u64, At, Reply)>) {
        for (operation, gateway, reply) in ready {
            let delay = if gateway.member == at.member {
                0
            } else if self.network.is_cut(at.member, gateway.member) {
                continue;
            } else {
                self.network.delay(&mut self.random)
            };
            self.schedule(delay, Event::Response { gateway, operation, reply: Box::new(reply) });
        }
    }

    /// A raft message reaches a member. A paused one finds it when it goes on.
    pub(super) fn deliver(&mut self, from: usize, to: usize, message: &[u8]) -> Checked {
        let member = &self.members[to];
        let Some(running) = &member.running else { return Ok(()) };
        if running.consensus.is_removed(self.members[from].id) {
            // Whoever carries messages tells the sender, which may not know.
            if !self.network.is_cut(to, from) {
                let delay = self.network.delay(&mut self.random);
                let at = At { member: from, run: self.members[from].run };
                self.schedule(delay, Event::Refused(at));
            }
            return Ok(());
        }
        running.consensus.receive(message);
        self.trace.say(self.now, || describe(message));
        let at = At { member: to, run: member.run };
        self.trace.step(self.now, "receive", &[to as u64, message.len() as u64]);
        self.wake_soon(at, Thread::Replica);
        Ok(())
    }

    /// A member's messages are refused, since it was removed.
    pub(super) fn refused(&mut self, at: At) {
        if let Some(running) = self.members[at.member].running.as_ref().filter(|_| self.is_running(at)) {
            self.trace.step(self.now, "refused", &[at.member as u64]);
            running.consensus.report_removed();
            self.wake_soon(at, Thread::Replica);
        }
    }
}

/// A raft message for people.
fn describe(bytes: &[u8]) -> String {
    let mut message = raft::eraftpb::Message::default();
    if message.merge_from_bytes(bytes).is_err() {
        return "unreadable".to_owned();
    }
    let raft::eraftpb::Message { from, to, term, log_term, index, commit, reject, .. } = message;
    let (kind, entries) = (message.msg_type(), message.entries.len());
    format!("{kind:?} {from}->{to} term {term} at {log_term}.{index} commit {commit} entries {entries} reject {reject}")
}
