//! Each transition of the core by itself.

use bytes::Bytes;
use tailwater_api::etcdserverpb::{RangeResponse, ResponseHeader, WatchResponse};

use super::*;

const WATCH: i64 = 7;

pub(super) fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..Default::default() })
}

fn kv(key: &str, value: &str, create_revision: i64, mod_revision: i64, version: i64) -> KeyValue {
    let (key, value) = (Bytes::copy_from_slice(key.as_bytes()), Bytes::copy_from_slice(value.as_bytes()));
    KeyValue { key, value, create_revision, mod_revision, version, lease: 0 }
}

fn put(kv: KeyValue) -> Event {
    Event { r#type: EventType::Put as i32, kv: Some(kv), prev_kv: None }
}

fn delete(key: &str, revision: i64) -> Event {
    let kv = KeyValue { key: key.to_owned().into(), mod_revision: revision, ..Default::default() };
    Event { r#type: EventType::Delete as i32, kv: Some(kv), prev_kv: None }
}

fn answer(revision: i64, events: Vec<Event>) -> WatchResponse {
    WatchResponse { header: header(revision), watch_id: WATCH, events, ..Default::default() }
}

fn fragment(events: Vec<Event>) -> WatchResponse {
    WatchResponse { fragment: true, ..answer(0, events) }
}

fn created(revision: i64) -> WatchResponse {
    WatchResponse { created: true, ..answer(revision, vec![]) }
}

fn compacted(compact_revision: i64) -> WatchResponse {
    WatchResponse { canceled: true, compact_revision, ..answer(0, vec![]) }
}

fn list(revision: i64, kvs: Vec<KeyValue>) -> RangeResponse {
    RangeResponse { header: header(revision), count: 0, kvs, more: false }
}

/// Values are numbers; others can't be decoded.
fn core() -> Core<i64> {
    let decode = |_: &[u8], value: Bytes| -> Result<i64, BoxError> { Ok(std::str::from_utf8(&value)?.parse()?) };
    Core::new(KeyRange::prefix("k"), Arc::new(decode), 2, false)
}

/// Knows `k1` = 1 (revision 3), `k2` = 2 (revision 4), is at revision 10, and watches.
fn watching() -> Core<i64> {
    let mut core = core();
    let kvs = vec![kv("k1", "1", 3, 3, 1), kv("k2", "2", 4, 4, 1)];
    core.on_piece(list(10, kvs)).expect("a good list");
    core.on_list_end().expect("a whole list");
    core.on_stream_begin();
    assert!(matches!(core.on_answer(created(10)), Step::Created { is_behind: false }));
    core
}

/// What a batch tells, in short.
fn told(step: Step<i64>) -> Vec<String> {
    let Step::Changed(batch) = step else { panic!("a new state was expected: {step:?}") };
    texts(&batch)
}

fn texts(batch: &Batch<i64>) -> Vec<String> {
    batch.changes.iter().map(|change| format!("{change:?}")).collect()
}

fn cause(step: &Step<i64>) -> RelistCause {
    let Step::Relist(cause) = step else { panic!("a list was expected to be wanted: {step:?}") };
    *cause
}

fn is_gap(step: Step<i64>) -> bool {
    matches!(cause(&step), RelistCause::Gap { .. })
}

#[test]
fn a_watch_follows_a_list_from_the_next_revision() {
    let mut core = core();
    assert_eq!(core.next(), Next::List);
    assert_eq!(core.state().revision(), 0);
    core.on_piece(RangeResponse { kvs: vec![kv("k1", "1", 3, 3, 1)], ..Default::default() }).expect("a piece");
    core.on_piece(list(9, vec![kv("k2", "2", 4, 4, 1)])).expect("a piece");
    let batch = core.on_list_end().expect("whole");
    assert!(batch.is_first && batch.changes.is_empty());
    let values: Vec<i64> = batch.state.iter().map(|object| object.value).collect();
    assert_eq!((values, batch.state.revision()), (vec![1, 2], 9));
    assert_eq!(core.next(), Next::Watch(10));
    let request = core.watch_request();
    assert_eq!((request.start_revision, request.progress_notify, request.fragment), (10, true, true));
}

#[test]
fn a_streamed_list_without_a_revision_is_not_taken() {
    let mut core = core();
    core.on_piece(RangeResponse { kvs: vec![kv("k1", "1", 3, 3, 1)], ..Default::default() }).expect("a piece");
    assert_eq!(core.on_list_end().expect_err("no header came"), BadList::NoRevision);
    assert_eq!((core.next(), core.state().len()), (Next::List, 0));
}

#[test]
fn pages_are_pinned_to_the_revision_of_the_first() {
    let mut core = core();
    assert_eq!((core.page_request().limit, core.page_request().revision), (2, 0));
    let first = RangeResponse { more: true, ..list(9, vec![kv("k1", "1", 3, 3, 1), kv("k2", "2", 4, 4, 1)]) };
    assert!(core.on_page(first).expect("a page").is_none());
    assert!(core.is_between_pages());
    let request = core.page_request();
    assert_eq!((request.revision, request.key), (9, Bytes::from_static(b"k2\0")));
    // Its header tells the servers' revision, which has gone on.
    let batch = core.on_page(list(12, vec![kv("k3", "3", 5, 5, 1)])).expect("a page").expect("the last one");
    assert_eq!((batch.state.revision(), batch.state.len()), (9, 3));
}

#[test]
fn a_list_begins_anew_when_its_revision_is_gone() {
    let mut core = core();
    let first = RangeResponse { more: true, ..list(9, vec![kv("k1", "1", 3, 3, 1)]) };
    core.on_page(first).expect("a page");
    core.restart_list();
    let request = core.page_request();
    assert_eq!((request.revision, request.key), (0, Bytes::from_static(b"k")));
    let batch = core.on_page(list(12, vec![kv("k2", "2", 4, 4, 1)])).expect("a page").expect("whole");
    assert_eq!((batch.state.revision(), batch.state.len()), (12, 1));
}

#[test]
fn lists_that_cannot_be_right_are_not_taken() {
    let twice = vec![kv("k1", "1", 3, 3, 1), kv("k1", "1", 3, 3, 1)];
    assert_eq!(core().on_piece(list(9, twice)).expect_err("twice"), BadList::Order);
    let endless = RangeResponse { more: true, ..list(9, vec![]) };
    assert_eq!(core().on_page(endless).expect_err("endless"), BadList::Empty);
    let unpinned = RangeResponse { more: true, kvs: vec![kv("k1", "1", 3, 3, 1)], ..Default::default() };
    assert_eq!(core().on_page(unpinned).expect_err("no revision"), BadList::NoRevision);
}

#[test]
fn a_watch_on_a_server_that_is_behind_is_told_so() {
    let mut core = watching();
    core.on_stream_begin();
    assert!(matches!(core.on_answer(created(9)), Step::Created { is_behind: true }));
    // The revision of that answer says nothing of what was sent.
    core.on_stream_begin();
    assert!(matches!(core.on_answer(created(99)), Step::Created { is_behind: false }));
    assert_eq!(core.next(), Next::Watch(11));
}

#[test]
fn changes_are_told_with_what_was_before() {
    let mut core = watching();
    let events = vec![put(kv("k1", "11", 3, 11, 2)), put(kv("k3", "3", 12, 12, 1)), delete("k2", 12)];
    let told = told(core.on_answer(answer(15, events)));
    assert_eq!(
        told,
        ["Applied(k1 at 11, before Some(3))", "Applied(k3 at 12, before None)", "Deleted(k2 at 12, before 4)"]
    );
    // Not the 15 of the header: the server may have more on its way.
    assert_eq!((core.state().revision(), core.next()), (12, Next::Watch(13)));
    assert_eq!(core.state().get(b"k1").expect("there").value, 11);
}

#[test]
fn a_snapshot_stays_what_it_was() {
    let mut core = watching();
    let before = core.state().clone();
    core.on_answer(answer(11, vec![delete("k1", 11)]));
    assert_eq!((before.revision(), before.len(), core.state().len()), (10, 2, 1));
    let keys: Vec<&Bytes> = before.prefix(b"k2").map(|object| &object.key).collect();
    assert_eq!(keys, ["k2"]);
}

#[test]
fn nothing_is_taken_of_other_watches_or_before_the_watch_is_there() {
    let mut core = watching();
    let other = WatchResponse { watch_id: 8, ..answer(20, vec![put(kv("k9", "9", 11, 11, 1))]) };
    assert!(matches!(core.on_answer(other), Step::Nothing));
    let other = WatchResponse { watch_id: 8, canceled: true, compact_revision: 30, ..answer(0, vec![]) };
    assert!(matches!(core.on_answer(other), Step::Nothing));
    core.on_stream_begin();
    assert!(matches!(core.on_answer(answer(20, vec![])), Step::Nothing));
    let all = WatchResponse { watch_id: ALL_WATCHES, ..answer(20, vec![]) };
    assert!(matches!(core.on_answer(all), Step::Nothing));
    assert_eq!(core.next(), Next::Watch(11));
}

#[test]
fn progress_moves_the_revision_and_never_back() {
    let mut core = watching();
    let Step::Changed(batch) = core.on_answer(answer(20, vec![])) else { panic!("progress") };
    assert!(batch.changes.is_empty() && batch.state.revision() == 20);
    let all = WatchResponse { watch_id: ALL_WATCHES, ..answer(25, vec![]) };
    assert!(matches!(core.on_answer(all), Step::Changed(_)));
    assert!(matches!(core.on_answer(answer(24, vec![])), Step::Nothing));
    assert_eq!(core.next(), Next::Watch(26));
}

#[test]
fn of_a_revision_in_fragments_nothing_is_taken_before_it_is_whole() {
    let mut core = watching();
    let first = vec![put(kv("k1", "11", 3, 11, 2)), put(kv("k1", "12", 3, 12, 3))];
    assert_eq!(told(core.on_answer(fragment(first))), ["Applied(k1 at 11, before Some(3))"]);
    assert_eq!(core.state().revision(), 11);
    assert!(matches!(core.on_answer(fragment(vec![put(kv("k2", "12", 4, 12, 2))])), Step::Nothing));
    // Progress cannot come here; it would be ahead of the rest.
    assert!(matches!(core.on_answer(answer(12, vec![])), Step::Nothing));
    let last = told(core.on_answer(answer(12, vec![put(kv("k3", "12", 12, 12, 1))])));
    assert_eq!(last.len(), 3);
    assert_eq!(core.state().revision(), 12);
}

#[test]
fn a_revision_that_breaks_off_comes_again_whole() {
    let mut core = watching();
    core.on_answer(fragment(vec![put(kv("k1", "11", 3, 11, 2))]));
    core.on_stream_end();
    assert!(matches!(core.on_answer(answer(30, vec![])), Step::Nothing));
    assert_eq!(core.next(), Next::Watch(11));
    core.on_stream_begin();
    core.on_answer(created(11));
    let events = vec![put(kv("k1", "11", 3, 11, 2)), delete("k2", 11)];
    assert_eq!(told(core.on_answer(answer(11, events))).len(), 2);
}

#[test]
fn what_comes_again_on_a_new_stream_is_left_out() {
    let mut core = watching();
    core.on_answer(answer(11, vec![put(kv("k1", "11", 3, 11, 2))]));
    core.on_answer(answer(12, vec![delete("k1", 12)]));
    core.on_stream_begin();
    core.on_answer(created(13));
    let again = vec![put(kv("k1", "11", 3, 11, 2)), delete("k1", 12)];
    assert!(matches!(core.on_answer(answer(12, again.clone())), Step::Nothing));
    core.on_stream_begin();
    core.on_answer(created(13));
    let more = [again, vec![put(kv("k4", "4", 13, 13, 1))]].concat();
    assert_eq!(told(core.on_answer(answer(13, more))), ["Applied(k4 at 13, before None)"]);
    assert_eq!(core.duplicates(), 4);
}

#[test]
fn a_change_that_comes_late_is_a_gap() {
    let mut core = watching();
    core.on_answer(answer(12, vec![put(kv("k1", "12", 3, 12, 2))]));
    assert!(is_gap(core.on_answer(answer(12, vec![put(kv("k9", "9", 11, 11, 1))]))));
    let mut core = watching();
    core.on_answer(answer(12, vec![]));
    assert!(is_gap(core.on_answer(answer(12, vec![put(kv("k9", "9", 12, 12, 1))]))), "progress was ahead of it");
}

#[test]
fn a_change_that_does_not_follow_the_held_version_is_a_gap() {
    let skipped = put(kv("k1", "13", 3, 13, 3));
    let recreated = put(kv("k1", "13", 13, 13, 1));
    let uncreated = put(kv("k9", "13", 12, 13, 2));
    for event in [skipped, recreated, uncreated, delete("k9", 13), Event::default()] {
        let mut core = watching();
        let good = put(kv("k2", "11", 4, 11, 2));
        assert!(is_gap(core.on_answer(answer(13, vec![good, event]))));
        // What came with it is not told twice: it is in the difference.
        assert_eq!((core.state().revision(), core.next()), (10, Next::List));
    }
}

#[test]
fn a_version_before_that_is_not_the_held_one_is_a_gap() {
    let event = |before| Event { prev_kv: Some(before), ..put(kv("k1", "11", 3, 11, 2)) };
    let mut core = watching();
    assert!(is_gap(core.on_answer(answer(11, vec![event(kv("k1", "0", 3, 5, 1))]))));
    let mut core = watching();
    assert_eq!(told(core.on_answer(answer(11, vec![event(kv("k1", "1", 3, 3, 1))]))).len(), 1);
}

#[test]
fn a_compaction_leads_to_a_list_and_its_difference_is_told() {
    let mut core = watching();
    core.on_answer(answer(11, vec![put(kv("k3", "3", 11, 11, 1))]));
    let held = core.state().get(b"k3").expect("there").clone();
    let step = core.on_answer(compacted(20));
    assert_eq!(cause(&step), RelistCause::Compacted { compact_revision: 20 });
    assert_eq!(core.next(), Next::List);
    // Nobody reads less meanwhile; and what was on its way means nothing any more.
    assert_eq!(core.state().len(), 3);
    assert!(matches!(core.on_answer(answer(30, vec![])), Step::Nothing));
    let kvs = vec![kv("k1", "30", 30, 30, 1), kv("k3", "3", 11, 11, 1), kv("k4", "4", 25, 25, 1)];
    let batch = core.on_page(list(31, kvs)).expect("a page").expect("whole");
    assert_eq!(
        texts(&batch),
        [
            "Relisted(Compacted { compact_revision: 20 }, since 11)",
            "Deleted(k2 at 31, before 4)",
            "Applied(k4 at 25, before None)",
            "Applied(k1 at 30, before Some(3))",
            "Synced(31)"
        ]
    );
    assert!(Arc::ptr_eq(&held, core.state().get(b"k3").expect("there")), "what is the same is not decoded again");
    assert_eq!(core.next(), Next::Watch(32));
}

#[test]
fn a_watch_that_ends_otherwise_goes_on_at_its_revision() {
    let ended = WatchResponse { canceled: true, cancel_reason: "why".into(), ..answer(50, vec![]) };
    let mut core = watching();
    assert!(matches!(core.on_answer(ended), Step::Ended(reason) if reason == "why"));
    assert_eq!(core.next(), Next::Watch(11));
    let refused = WatchResponse { created: true, canceled: true, watch_id: ALL_WATCHES, ..answer(50, vec![]) };
    core.on_stream_begin();
    assert!(matches!(core.on_answer(refused), Step::Ended(_)));
    assert_eq!(core.next(), Next::Watch(11));
}

#[test]
fn what_cannot_be_decoded_is_told_and_kept_out() {
    let mut core = watching();
    let bad = |key, version, revision| put(kv(key, "?", 3, revision, version));
    let step = core.on_answer(answer(11, vec![bad("k1", 2, 11)]));
    let Step::Changed(batch) = step else { panic!("a new state") };
    let [Change::Undecodable { what, old: Some(old) }] = &batch.changes[..] else { panic!("{batch:?}") };
    assert_eq!((&what.key[..], what.stamp.mod_revision, old.value), (&b"k1"[..], 11, 1));
    assert!(core.state().get(b"k1").is_none());
    // A list has it again: it was told.
    core.on_answer(compacted(20));
    let kvs = vec![kv("k1", "?", 3, 11, 2), kv("k2", "2", 4, 4, 1)];
    let batch = core.on_page(list(21, kvs)).expect("a page").expect("whole");
    assert_eq!((batch.changes.len(), batch.state.undecodable().count()), (2, 1));
    core.on_stream_begin();
    core.on_answer(created(21));
    assert_eq!(
        told(core.on_answer(answer(22, vec![put(kv("k1", "22", 3, 22, 3))]))),
        ["Applied(k1 at 22, before None)"]
    );
    core.on_answer(answer(23, vec![bad("k1", 4, 23)]));
    assert_eq!(told(core.on_answer(answer(24, vec![delete("k1", 24)]))), [""; 0]);
    assert_eq!((core.state().undecodable().count(), core.state().revision()), (0, 24));
}

#[test]
fn a_restored_backup_is_told_whole() {
    let mut core = watching();
    assert!(!core.on_current(10), "a server that is there");
    assert!(core.on_current(9));
    // The same stamp may be another write there.
    let batch = core.on_page(list(9, vec![kv("k1", "5", 3, 3, 1)])).expect("a page").expect("whole");
    assert_eq!(
        texts(&batch),
        [
            "Relisted(HistoryLost { revision: 9 }, since 10)",
            "Deleted(k2 at 9, before 4)",
            "Applied(k1 at 3, before Some(3))",
            "Synced(9)"
        ]
    );
    assert_eq!((core.state().get(b"k1").expect("there").value, core.next()), (5, Next::Watch(10)));
}

#[test]
fn a_list_that_is_older_than_the_cache_is_taken_again_as_another_history() {
    let mut core = watching();
    core.on_answer(compacted(20));
    let kvs = || vec![kv("k1", "5", 3, 3, 1)];
    assert_eq!(core.on_page(list(9, kvs())).expect_err("older"), BadList::Older);
    core.restart_list();
    let batch = core.on_page(list(9, kvs())).expect("a page").expect("whole");
    assert_eq!(texts(&batch)[0], "Relisted(HistoryLost { revision: 9 }, since 10)");
    assert_eq!(core.state().get(b"k1").expect("there").value, 5);
}
