#![allow(clippy::unwrap_used)]

use super::*;

const RETRY: u64 = 3;
const A: LeaseId = LeaseId(1);

/// A leader's clock with a tick of 100 ms and lease A.
fn leading(ttl: i64) -> Lessor {
    let mut lessor = Lessor::new(100);
    lessor.promote(10);
    lessor.apply(LeaseChange::Granted(A, ttl));
    lessor
}

fn pass(lessor: &mut Lessor, ticks: u64) {
    (0..ticks).for_each(|_| lessor.tick());
}

#[test]
fn a_lease_expires_after_its_ttl_and_not_before() {
    let mut lessor = leading(2);
    assert_eq!(lessor.time_to_live(A), Some((2, 1)), "as etcd, which has always spent some of it");
    pass(&mut lessor, 11);
    assert_eq!(lessor.time_to_live(A), Some((2, 0)), "0.9 s are left, rounded down");
    pass(&mut lessor, 9);
    assert_eq!(lessor.take_expired(RETRY), [0i64; 0]);
    lessor.tick();
    assert_eq!(lessor.take_expired(RETRY), [1]);
    pass(&mut lessor, 100);
    assert_eq!(lessor.time_to_live(A), Some((2, 0)), "never negative");
}

#[test]
fn an_expiry_that_was_lost_is_proposed_again() {
    let mut lessor = leading(1);
    pass(&mut lessor, 11);
    assert_eq!(lessor.take_expired(RETRY), [1]);
    pass(&mut lessor, RETRY - 1);
    assert_eq!(lessor.take_expired(RETRY), [0i64; 0]);
    lessor.tick();
    assert_eq!(lessor.take_expired(RETRY), [1]);
    lessor.apply(LeaseChange::Gone(A));
    pass(&mut lessor, 100);
    assert_eq!(lessor.take_expired(RETRY), [0i64; 0]);
}

#[test]
fn a_waiting_keepalive_goes_before_expiry_also_when_the_lease_is_new() {
    let mut lessor = Lessor::new(100);
    lessor.promote(10);
    // Two keepalives for a lease that is granted only now; the first one's end must not unprotect the second's.
    lessor.announce(A);
    lessor.apply(LeaseChange::Granted(A, 1));
    lessor.announce(A);
    pass(&mut lessor, 11);
    lessor.give_up(A);
    assert_eq!(lessor.take_expired(RETRY), [0i64; 0]);
    assert!(matches!(lessor.renew(A), Renewal::Renewed { ttl: 1, checkpointed: false }));
    lessor.give_up(A);
    assert_eq!(lessor.take_expired(RETRY), [0i64; 0]);
    pass(&mut lessor, 11);
    assert_eq!(lessor.take_expired(RETRY), [1]);
    assert!(lessor.announced.is_empty());
}

#[test]
fn a_keepalive_of_an_expiring_lease_learns_the_outcome_or_that_there_is_none() {
    let mut lessor = leading(1);
    pass(&mut lessor, 11);
    lessor.take_expired(RETRY);
    let Renewal::Expiring(mut gone) = lessor.renew(A) else { panic!("expired") };
    lessor.apply(LeaseChange::Gone(A));
    assert_eq!(gone.try_recv(), Ok(()));
    assert!(matches!(lessor.renew(A), Renewal::Unknown));

    lessor.apply(LeaseChange::Granted(A, 1));
    pass(&mut lessor, 11);
    lessor.take_expired(RETRY);
    let Renewal::Expiring(mut gone) = lessor.renew(A) else { panic!("expired") };
    lessor.demote();
    assert_eq!(gone.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    assert!(matches!(lessor.renew(A), Renewal::NotLeader));
    assert_eq!(lessor.take_expired(RETRY), [0i64; 0], "only a leader's clock counts");
    // The next term begins anew.
    lessor.promote(10);
    assert!(matches!(lessor.renew(A), Renewal::Renewed { .. }));
}

#[test]
fn a_new_leader_adds_an_election_timeout() {
    let mut lessor = leading(1);
    pass(&mut lessor, 9);
    lessor.promote(10);
    pass(&mut lessor, 20);
    assert_eq!(lessor.take_expired(RETRY), [0i64; 0]);
    lessor.tick();
    assert_eq!(lessor.take_expired(RETRY), [1]);
}

#[test]
fn long_leases_are_checkpointed_every_five_minutes_and_a_new_leader_starts_from_there() {
    let mut lessor = leading(1000);
    lessor.apply(LeaseChange::Granted(LeaseId(2), 300));
    pass(&mut lessor, 2999);
    assert_eq!(lessor.take_checkpoints(), []);
    lessor.tick();
    assert_eq!(lessor.take_checkpoints(), [(A, 700)], "a lease of five minutes needs none");
    assert_eq!(lessor.take_checkpoints(), []);
    pass(&mut lessor, 3000);
    assert_eq!(lessor.take_checkpoints(), [(A, 400)]);

    let mut next = Lessor::new(100);
    next.apply(LeaseChange::Granted(A, 1000));
    next.apply(LeaseChange::Checkpointed(A, 400));
    pass(&mut next, 5000);
    assert_eq!(next.take_checkpoints(), [], "only a leader makes them");
    next.promote(10);
    assert_eq!(next.time_to_live(A), Some((1000, 400)));
}

#[test]
fn a_renewal_takes_the_checkpoint_back() {
    let mut lessor = leading(1000);
    pass(&mut lessor, 3000);
    assert_eq!(lessor.take_checkpoints(), [(A, 700)]);
    // Also when the checkpoint was not applied yet.
    assert!(matches!(lessor.renew(A), Renewal::Renewed { ttl: 1000, checkpointed: true }));
    lessor.apply(LeaseChange::Checkpointed(A, 700));
    assert!(matches!(lessor.renew(A), Renewal::Renewed { checkpointed: true, .. }));
    lessor.apply(LeaseChange::Checkpointed(A, 0));
    assert!(matches!(lessor.renew(A), Renewal::Renewed { checkpointed: false, .. }));
    lessor.promote(10);
    assert_eq!(lessor.time_to_live(A), Some((1000, 1000)));
}

#[test]
fn what_is_proposed_at_once_is_bounded_and_goes_on_with_the_next_tick() {
    let mut lessor = leading(1);
    for id in 2..=1200 {
        lessor.apply(LeaseChange::Granted(LeaseId(id), 1));
    }
    pass(&mut lessor, 11);
    let counts: Vec<_> = (0..4).map(|_| lessor.take_expired(RETRY).len()).collect();
    assert_eq!(counts, [500, 500, 200, 0]);

    let mut lessor = leading(1000);
    for id in 2..=1200 {
        lessor.apply(LeaseChange::Granted(LeaseId(id), 1000));
    }
    pass(&mut lessor, 3000);
    let counts: Vec<_> = (0..3).map(|_| lessor.take_checkpoints().len()).collect();
    assert_eq!(counts, [1000, 200, 0]);
}
