//! Whether a change of membership may be proposed, by etcd's rules on who has started and who is connected. The member
//! that takes the proposal judges by its own connections; the leader's core, which has none, by whom it hears.

use std::time::Duration;

use tailwater_eventlog::{Member, MemberId};

use crate::replica::core::Change;
use crate::{PeerTransport, ProposeError};

/// How long a peer must have been connected to count as healthy: etcd's `HealthInterval`.
const HEALTH_INTERVAL: Duration = Duration::from_secs(5);

/// Refuses a change that could cost the quorum. `own` is this member, `members` all of the group.
pub(crate) fn check(
    change: Change,
    own: MemberId,
    members: &[Member],
    peers: &dyn PeerTransport,
) -> Result<(), ProposeError> {
    let voters = || members.iter().filter(|member| !member.is_learner);
    let connected_for = |id| if id == own { Some(Duration::MAX) } else { peers.connected_for(id) };
    let is_healthy = |member: &&Member| connected_for(member.id).is_some_and(|time| time >= HEALTH_INTERVAL);
    match change {
        Change::Add { is_learner, .. } => {
            if !is_learner {
                check_started_for_one_more(members)?;
            }
            let healthy = voters().filter(is_healthy).count();
            // One that is alone may grow.
            match voters().count() > 1 && healthy < quorum(voters().count() + 1) {
                true => Err(ProposeError::UnhealthyCluster),
                false => Ok(()),
            }
        }
        Change::Remove(id) => {
            if !voters().any(|member| member.id == id) || connected_for(id).is_none() {
                return Ok(());
            }
            let (started, left) = started_voters(members, Some(id));
            if left == 0 || started < quorum(left) {
                return Err(ProposeError::NotEnoughStarted);
            }
            let healthy = voters().filter(is_healthy).count();
            match healthy < quorum(left) + 1 {
                true => Err(ProposeError::UnhealthyCluster),
                false => Ok(()),
            }
        }
        Change::Promote(_) => Ok(()),
    }
}

/// A voter more must not make the quorum larger than the number of those that have ever started. One that is alone may
/// grow: that is how a group is restored.
pub(crate) fn check_started_for_one_more(members: &[Member]) -> Result<(), ProposeError> {
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
        match check(change, MemberId(1), &members, &Connected(connected.iter().copied().collect())) {
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
