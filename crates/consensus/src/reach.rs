//! Whether a change of membership may be proposed, by etcd's rules on who has started and who is connected. The member
//! that takes the proposal judges by its own connections; the leader's core, which has none, by whom it hears.

use std::time::Duration;

use tailwater_eventlog::{Member, MemberId};

use crate::replica::core::Change;
use crate::{PeerTransport, ProposeError};

/// How long a peer must have been connected to count as healthy: etcd's `HealthInterval`.
const HEALTH_INTERVAL: Duration = Duration::from_secs(5);

/// Refuses a change that could cost the quorum, by the connections of this member, which is `own`; `members` is all of the
/// group.
pub(crate) fn check_connected(
    change: Change,
    own: MemberId,
    members: &[Member],
    peers: &dyn PeerTransport,
) -> Result<(), ProposeError> {
    let connected_for = |id| if id == own { Some(Duration::MAX) } else { peers.connected_for(id) };
    let is_healthy = |id| connected_for(id).is_some_and(|time| time >= HEALTH_INTERVAL);
    check(change, members, |id| connected_for(id).is_some(), is_healthy)
}

/// Refuses a change that could cost the quorum. Who is not even there is no part of the quorum that works now.
pub(crate) fn check(
    change: Change,
    members: &[Member],
    is_there: impl Fn(MemberId) -> bool,
    is_healthy: impl Fn(MemberId) -> bool,
) -> Result<(), ProposeError> {
    let voters: Vec<MemberId> = members.iter().filter(|member| !member.is_learner).map(|member| member.id).collect();
    let healthy = || voters.iter().filter(|id| is_healthy(**id)).count();
    let is_enough = match change {
        Change::Add { is_learner, .. } => {
            if !is_learner {
                check_started_for_one_more(members)?;
            }
            // One that is alone may grow.
            voters.len() <= 1 || healthy() >= quorum(voters.len() + 1)
        }
        // One that is unknown is refused when it is applied.
        Change::Remove(id) if !voters.contains(&id) => true,
        Change::Remove(id) => {
            let (started, left) = started_voters(members, Some(id));
            if left == 0 || started < quorum(left) {
                return Err(ProposeError::NotEnoughStarted);
            }
            !is_there(id) || healthy() > quorum(left)
        }
        Change::Promote(_) => true,
    };
    if is_enough { Ok(()) } else { Err(ProposeError::UnhealthyCluster) }
}

/// A voter more must not make the quorum larger than the number of those that have ever started. One that is alone may
/// grow: that is how a group is restored.
fn check_started_for_one_more(members: &[Member]) -> Result<(), ProposeError> {
    let (started, voters) = started_voters(members, None);
    match (started, voters) != (1, 1) && started < quorum(voters + 1) {
        true => Err(ProposeError::NotEnoughStarted),
        false => Ok(()),
    }
}

/// How many voters, but for one, have ever started (they have a name then), and how many there are.
pub(crate) fn started_voters(members: &[Member], but: Option<MemberId>) -> (usize, usize) {
    let voters = || members.iter().filter(|member| !member.is_learner && Some(member.id) != but);
    (voters().filter(|member| !member.name.is_empty()).count(), voters().count())
}

pub(crate) fn quorum(voters: usize) -> usize {
    voters / 2 + 1
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;

    use super::*;

    /// Seconds for which members have been connected.
    struct Connected(BTreeMap<u64, u64>);

    impl PeerTransport for Connected {
        fn send(&self, _: MemberId, _: Bytes) {}

        fn set_members(&self, _: &[Member]) {}

        fn connected_for(&self, to: MemberId) -> Option<Duration> {
            self.0.get(&to.0).map(|seconds| Duration::from_secs(*seconds))
        }
    }

    fn judge(change: Change, members: &[(u64, &str)], connected: &[(u64, u64)]) -> &'static str {
        let member =
            |(id, name): &(u64, &str)| Member { id: MemberId(*id), name: (*name).into(), ..Default::default() };
        let members: Vec<_> = members.iter().map(member).collect();
        match check_connected(change, MemberId(1), &members, &Connected(connected.iter().copied().collect())) {
            Ok(()) => "allowed",
            Err(ProposeError::UnhealthyCluster) => "unhealthy",
            Err(ProposeError::NotEnoughStarted) => "not started",
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn one_more_needs_a_quorum_that_has_been_there_for_a_while() {
        let three = &[(1, "a"), (2, "b"), (3, "c")][..];
        let five = &[(1, "a"), (2, "b"), (3, "c"), (4, "d"), (5, "e")][..];
        for is_learner in [false, true] {
            let add = Change::Add { id: MemberId(9), is_learner };
            assert_eq!(judge(add, &[(1, "a")], &[]), "allowed");
            assert_eq!(judge(add, three, &[(2, 5), (3, 5)]), "allowed");
            assert_eq!(judge(add, three, &[(2, 5), (3, 4)]), "unhealthy");
            assert_eq!(judge(add, three, &[(2, 5)]), "unhealthy");
            assert_eq!(judge(add, five, &[(2, 5), (3, 5), (4, 5)]), "allowed");
            assert_eq!(judge(add, five, &[(2, 5), (3, 5), (4, 1)]), "unhealthy");
        }
        let voter = Change::Add { id: MemberId(9), is_learner: false };
        assert_eq!(judge(voter, &[(1, "a"), (2, "")], &[(2, 9)]), "not started");
    }

    #[test]
    fn one_less_needs_a_quorum_of_those_that_stay() {
        let three = &[(1, "a"), (2, "b"), (3, "c")][..];
        let remove = |id| Change::Remove(MemberId(id));
        assert_eq!(judge(remove(3), three, &[(2, 5), (3, 5)]), "allowed");
        assert_eq!(judge(remove(3), three, &[(2, 4), (3, 5)]), "unhealthy");
        assert_eq!(judge(remove(3), three, &[(2, 1)]), "allowed", "who is down is no part of the quorum");
        assert_eq!(judge(remove(1), three, &[(2, 5), (3, 5)]), "allowed");
        assert_eq!(judge(remove(9), three, &[]), "allowed", "whether it is there is seen when it is applied");
        assert_eq!(judge(remove(1), &[(1, "a")], &[]), "not started");
    }
}
