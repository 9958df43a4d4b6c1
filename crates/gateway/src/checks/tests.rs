use pb::request_op::Request;

use super::*;

fn op(request: Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

fn put_op(key: &'static str) -> pb::RequestOp {
    op(Request::RequestPut(pb::PutRequest { key: key.into(), ..Default::default() }))
}

fn delete_op(key: &'static str, range_end: &'static str) -> pb::RequestOp {
    op(Request::RequestDeleteRange(pb::DeleteRangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        prev_kv: false,
    }))
}

fn txn_op(success: Vec<pb::RequestOp>, failure: Vec<pb::RequestOp>) -> pb::RequestOp {
    op(Request::RequestTxn(pb::TxnRequest { compare: vec![], success, failure }))
}

fn check(success: Vec<pb::RequestOp>) -> Result<(), Fault> {
    txn(&pb::TxnRequest { compare: vec![], success, failure: vec![] }, 128)
}

#[test]
fn range_needs_a_key_and_known_sort_options() {
    assert_eq!(range(&pb::RangeRequest::default()), Err(Fault::EmptyKey));
    let mut request = pb::RangeRequest { key: "a".into(), sort_order: 3, ..Default::default() };
    assert_eq!(range(&request), Err(Fault::InvalidSortOption));
    request.sort_order = 2;
    request.sort_target = 5;
    assert_eq!(range(&request), Err(Fault::InvalidSortOption));
    request.sort_target = 4;
    assert_eq!(range(&request), Ok(()));
}

#[test]
fn put_refuses_what_it_was_told_to_ignore() {
    let request = pb::PutRequest { key: "a".into(), ignore_value: true, value: "v".into(), ..Default::default() };
    assert_eq!(put(&request), Err(Fault::ValueProvided));
    let request = pb::PutRequest { key: "a".into(), ignore_lease: true, lease: 1, ..Default::default() };
    assert_eq!(put(&request), Err(Fault::LeaseProvided));
    assert_eq!(put(&pb::PutRequest::default()), Err(Fault::EmptyKey));
}

#[test]
fn a_nested_txn_has_what_its_parent_left_of_the_allowance() {
    let nested = |inner: usize| pb::TxnRequest {
        compare: vec![],
        success: vec![put_op("a"), txn_op(vec![delete_op("x", ""); inner], vec![])],
        failure: vec![],
    };
    assert_eq!(txn(&nested(2), 4), Ok(()));
    assert_eq!(txn(&nested(3), 4), Err(Fault::TooManyOps));
    assert_eq!(check(vec![delete_op("x", ""); 128]), Ok(()));
    assert_eq!(check(vec![delete_op("x", ""); 129]), Err(Fault::TooManyOps));
}

#[test]
fn an_operation_without_a_request_is_a_key_not_found() {
    assert_eq!(check(vec![pb::RequestOp { request: None }]), Err(Fault::KeyNotFound));
}

#[test]
fn a_key_is_written_once() {
    assert_eq!(check(vec![put_op("a"), put_op("a")]), Err(Fault::DuplicateKey));
    assert_eq!(check(vec![put_op("b"), delete_op("a", "c")]), Err(Fault::DuplicateKey));
    assert_eq!(check(vec![put_op("c"), delete_op("a", "c")]), Ok(()));
    assert_eq!(check(vec![delete_op("a", "c"), delete_op("b", "")]), Ok(()));
    assert_eq!(check(vec![put_op("a"), txn_op(vec![put_op("a")], vec![])]), Err(Fault::DuplicateKey));
    assert_eq!(check(vec![put_op("a"), txn_op(vec![], vec![delete_op("a", "")])]), Err(Fault::DuplicateKey));
}

#[test]
fn both_branches_of_a_nested_txn_may_put_one_key() {
    assert_eq!(check(vec![txn_op(vec![put_op("a")], vec![put_op("a")])]), Ok(()));
    let twice = vec![txn_op(vec![put_op("a")], vec![]), txn_op(vec![], vec![put_op("a")])];
    assert_eq!(check(twice), Err(Fault::DuplicateKey));
}

#[test]
fn siblings_are_compared_from_left_to_right_only() {
    let put_first = vec![txn_op(vec![put_op("a")], vec![]), txn_op(vec![delete_op("a", "")], vec![])];
    assert_eq!(check(put_first), Ok(()));
    let delete_first = vec![txn_op(vec![delete_op("a", "")], vec![]), txn_op(vec![put_op("a")], vec![])];
    assert_eq!(check(delete_first), Err(Fault::DuplicateKey));
}

#[test]
fn many_keys_of_nested_txns_are_not_compared_one_with_another() {
    let keys: Vec<String> = (0..43 * 43 * 42).map(|number| format!("{number:06}")).collect();
    let put = |key: &String| op(Request::RequestPut(pb::PutRequest { key: key.clone().into(), ..Default::default() }));
    let delete = |key: &String| {
        let key = format!("d{key}");
        let range_end = format!("{key}x").into();
        op(Request::RequestDeleteRange(pb::DeleteRangeRequest { key: key.into(), range_end, prev_kv: false }))
    };
    let leaves = keys.chunks(42).map(|keys| txn_op(keys.iter().map(put).collect(), keys.iter().map(delete).collect()));
    let leaves: Vec<_> = leaves.collect();
    let middle: Vec<_> = leaves.chunks(43).map(|inner| txn_op(inner.to_vec(), vec![])).collect();
    let begun = std::time::Instant::now();
    assert_eq!(check(middle), Ok(()));
    // Some hundred milliseconds without optimisation; compared one with another they would take minutes.
    assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn spans_that_meet_become_one() {
    let mut deleted = Deleted::default();
    let spans = [("c", "e"), ("k", "m"), ("e", "g"), ("a", "b"), ("f", "l"), ("z", "y"), ("o", "p"), ("n", "q")];
    spans.iter().for_each(|(start, end)| deleted.insert_span(start.as_bytes(), end.as_bytes()));
    let found: Vec<_> = deleted.spans.iter().map(|(start, end)| (*start, *end)).collect();
    assert_eq!(found, [(&b"a"[..], &b"b"[..]), (b"c", b"m"), (b"n", b"q")]);
    for (key, is_deleted) in [("a", true), ("b", false), ("l", true), ("m", false), ("q", false), ("", false)] {
        assert_eq!(deleted.contains(key.as_bytes()), is_deleted, "{key}");
    }
}

#[test]
fn a_delete_with_an_open_end_clashes_with_nothing() {
    assert_eq!(check(vec![delete_op("a", "\0"), put_op("b")]), Ok(()));
}
