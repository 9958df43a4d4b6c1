//! A member's copy over the network.

use tailwater_eventlog::{CopyPoint, KeyRange, MemberId};

use super::*;
use crate::LinkConfig;

fn copy_config() -> CopyConfig {
    let link = LinkConfig { backoff: (Duration::from_millis(1), Duration::from_millis(20)), ..LinkConfig::default() };
    CopyConfig { link, silence_max: Duration::from_secs(5), ..CopyConfig::new(MemberId(5)) }
}

fn receiver() -> (EventLog, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (EventLog::open(&config(dir.path())).unwrap().0, dir)
}

/// Everything at and above the compacted revision is the same, byte for byte.
fn assert_equal(copy: &EventLog, index: &KeyIndex, writer: &Writer) {
    let state = copy.state();
    let from = (Revision(state.compacted.0.max(2) - 1), u32::MAX);
    let rows = |log: &EventLog| log.copy_log(HISTORY, from, usize::MAX).unwrap().rows;
    let (copied, original) = (rows(copy), rows(&writer.log));
    assert!(original.starts_with(&copied) && !copied.is_empty());
    let live = |log: &EventLog| log.live(&KeyRange::all(), None, usize::MAX, None).unwrap().events;
    if state.revision == writer.log.state().revision {
        assert_eq!(live(copy), live(&writer.log));
    }
    assert_eq!(index.count(&KeyRange::all(), state.revision), live(copy).len());
    let own = copy.state_get(b"revision").unwrap().unwrap();
    assert_eq!(own, state.revision.to_string(), "the machine's state belongs to the numbers");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_beside_writes_reaches_the_position_that_is_asked() {
    let mut writer = Writer::new();
    writer.fill(800, 3000);
    writer.compact(600);
    writer.fill(100, 3000);
    let node = Node::start(&writer, TailServiceConfig::default());
    let (target, _dir) = receiver();
    let wanted = Position(writer.log.state().applied.0 + 200);
    let (url, staging) = (node.url(), target.staging().unwrap());
    let copying = tokio::spawn(async move { copy_member_state(&[url], staging, wanted, &copy_config()).await });
    let mut writer = tokio::task::spawn_blocking(move || {
        for _ in 0..300 {
            writer.fill(1, 100);
            std::thread::sleep(Duration::from_millis(1));
        }
        writer
    })
    .await
    .unwrap();
    let staged = copying.await.unwrap().unwrap();
    assert!(staged.state().applied >= wanted);
    let index = target.replace(staged).unwrap();
    assert_equal(&target, &index, &writer);
    // Folding goes on as soon as the copy is through.
    let folded = writer.log.state().revision.0 - 1;
    writer.compact(folded);
    wait_until("the source folds", || writer.log.fold_step(1000).unwrap() == tailwater_eventlog::FoldProgress::Done);
    drop(node);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_whose_source_dies_goes_on_at_another_and_one_that_is_dropped_later() {
    let mut writer = Writer::new();
    writer.fill(1500, 5000);
    writer.compact(700);
    // So slow that it dies on the way.
    let slow = TailServiceConfig { transfer_bytes_per_second: 4 << 20, ..TailServiceConfig::default() };
    let first = Node::start(&writer, slow);
    let (target, _dir) = receiver();
    let staging = target.staging().unwrap();
    let state = writer.log.state();
    let point = CopyPoint { history: HISTORY, fold_point: state.fold_point, compacted: state.compacted };
    {
        let urls = [first.url()];
        let config = copy_config();
        let copying = copy_member_state(&urls, staging, Position(1), &config);
        assert!(tokio::time::timeout(Duration::from_millis(800), copying).await.is_err(), "given up on the way");
    }
    // What a thread was writing is let go a moment later.
    let mut reopened = None;
    wait_until("the copy is free", || {
        reopened = target.staging().ok();
        reopened.is_some()
    });
    let staging = reopened.unwrap();
    assert_eq!(staging.point(), point);
    let begun = staging.complete();
    assert!(begun > Revision(700), "much of it is there: {begun}");
    let second = Node::start(&writer, TailServiceConfig::default());
    let urls = [first.url(), second.url()];
    drop(first);
    let staged = copy_member_state(&urls, staging, Position(1), &copy_config()).await.unwrap();
    let index = target.replace(staged).unwrap();
    assert_equal(&target, &index, &writer);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_folded_on_meanwhile_makes_the_copy_start_over() {
    let mut writer = Writer::new();
    writer.fill(300, 1000);
    writer.compact(100);
    let (target, _dir) = receiver();
    let mut staging = target.staging().unwrap();
    {
        let hold = writer.log.copy_begin(Duration::from_secs(9));
        staging.begin(hold.point()).unwrap();
        let rows = writer.log.copy_base(hold.point(), None, 5000).unwrap();
        staging.add_base(&rows, false).unwrap();
    }
    writer.compact(200);
    let node = Node::start(&writer, TailServiceConfig::default());
    let staged = copy_member_state(&[node.url()], staging, Position(1), &copy_config()).await.unwrap();
    assert_eq!(staged.state().fold_point, Revision(199));
    let index = target.replace(staged).unwrap();
    assert_equal(&target, &index, &writer);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_source_the_copy_says_why() {
    let (target, _dir) = receiver();
    let config = CopyConfig { attempts_max: 3, ..copy_config() };
    let staging = target.staging().unwrap();
    let failed = copy_member_state(&["http://127.0.0.1:1".to_owned()], staging, Position(1), &config).await;
    let failed = failed.err().unwrap().to_string();
    assert!(failed.contains("http://127.0.0.1:1"), "{failed}");
    // A member that holds nothing itself is no source.
    let empty = Writer::new();
    let node = Node::start(&empty, TailServiceConfig::default());
    let staging = target.staging().unwrap();
    let failed = copy_member_state(&[node.url()], staging, Position(1), &config).await.err().unwrap().to_string();
    assert!(failed.contains("no history"), "{failed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_stands_still_below_the_position_is_left_for_one_that_has_it() {
    let (mut behind, mut ahead) = (Writer::new(), Writer::new());
    behind.fill(100, 100);
    ahead.fill(200, 100);
    let nodes = [&behind, &ahead].map(|writer| Node::start(writer, TailServiceConfig::default()));
    let (target, _dir) = receiver();
    let urls = nodes.iter().map(Node::url).collect::<Vec<_>>();
    let wanted = ahead.log.state().applied;
    let staged = copy_member_state(&urls, target.staging().unwrap(), wanted, &copy_config()).await.unwrap();
    assert_eq!(staged.state().applied, wanted);
    let index = target.replace(staged).unwrap();
    assert_equal(&target, &index, &ahead);
}
