#![allow(clippy::unwrap_used)]

use super::*;
use crate::FoldProgress;
use crate::log::tests::Writer;

#[test]
fn how_far_a_member_has_folded_does_not_show() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut one, mut other) = (Writer::open(one.path()), Writer::open(other.path()));
    for writer in [&mut one, &mut other] {
        writer.mixed(200);
        writer.record(&[("last", Some("v"))], Some(150));
    }
    let unfolded = one.log.hash(None).unwrap();
    assert_eq!(unfolded, other.log.hash(None).unwrap());
    // Some, then all.
    other.log.fold_step(20).unwrap();
    assert_eq!(other.log.hash(None).unwrap(), unfolded);
    while other.log.fold_step(20).unwrap() == FoldProgress::More {}
    assert_eq!(other.log.hash(None).unwrap(), unfolded);
    assert_eq!(other.log.hash(Some(Revision(170))).unwrap(), one.log.hash(Some(Revision(170))).unwrap());
}

#[test]
fn another_value_a_lost_event_and_another_key_show() {
    let hash = |changes: &[(&str, Option<&str>)]| {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(dir.path());
        writer.mixed(20);
        changes.iter().for_each(|change| writer.record(&[*change], None));
        writer.log.hash(None).unwrap().hash
    };
    let hashes = [
        hash(&[("a", Some("1")), ("b", Some("2"))]),
        hash(&[("a", Some("1")), ("b", Some("3"))]),
        hash(&[("b", Some("2")), ("a", Some("1"))]),
        hash(&[("a", Some("1"))]),
        hash(&[("a", Some("1")), ("b", None)]),
    ];
    for (at, one) in hashes.iter().enumerate() {
        assert!(!hashes[at + 1..].contains(one), "{hashes:?}");
    }
}

#[test]
fn a_revision_outside_of_what_is_held_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path());
    writer.mixed(20);
    writer.record(&[("last", Some("v"))], Some(10));
    assert!(matches!(writer.log.hash(Some(Revision(9))), Err(HashError::Compacted(Revision(10)))));
    assert!(matches!(writer.log.hash(Some(Revision(9999))), Err(HashError::Future(_))));
    assert_eq!(writer.log.hash(Some(Revision(10))).unwrap().compacted, Revision(10));
}
