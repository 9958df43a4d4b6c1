//! Round trips through memory, and files with flipped bytes.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::page::{HEADER_BYTES, Header, Kind, PAGE_BYTES};
use super::{BoltFile, BoltPlanner, BoltWriter, Bucket, Limits, ReadAt, ReadError, WriteError};

type Tree = BTreeMap<Vec<u8>, Vec<u8>>;
type Content = BTreeMap<Vec<u8>, Tree>;

fn encode(content: &Content) -> Result<Vec<u8>, WriteError> {
    let mut planner = BoltPlanner::default();
    for (name, tree) in content {
        planner.bucket(name)?;
        for (key, value) in tree {
            planner.put(key, value.len())?;
        }
    }
    let plan = planner.finish()?;
    let mut writer = BoltWriter::new(Vec::new(), plan)?;
    for (name, tree) in content {
        writer.bucket(name)?;
        for (key, value) in tree {
            writer.put(key, value)?;
        }
    }
    let (file, _) = writer.finish()?;
    assert_eq!(file.len() as u64, plan.file_bytes());
    Ok(file)
}

fn rows_of<R: ReadAt>(file: &BoltFile<R>, bucket: &Bucket) -> Result<Tree, ReadError> {
    let mut found = Tree::new();
    let mut rows = file.rows(bucket);
    while let Some(row) = rows.next()? {
        let is_new = found.insert(row.key.to_vec(), row.value.to_vec()).is_none();
        assert!(is_new, "a key came twice");
    }
    Ok(found)
}

fn decode(bytes: &[u8], limits: Limits) -> Result<Content, ReadError> {
    let file = BoltFile::open(bytes, limits)?;
    let mut content = Content::new();
    let mut buckets = Vec::new();
    let root = file.root();
    let mut rows = file.rows(&root);
    while let Some(row) = rows.next()? {
        if let Some(bucket) = row.bucket() {
            buckets.push((row.key.to_vec(), bucket));
        }
    }
    for (name, bucket) in buckets {
        content.insert(name, rows_of(&file, &bucket)?);
    }
    file.check()?;
    Ok(content)
}

/// Headers of the pages in `bytes`, overflow pages left out.
fn headers(bytes: &[u8]) -> Vec<Header> {
    let mut at = 0;
    let mut found = Vec::new();
    while at < bytes.len() {
        let header = bytes[at..].first_chunk::<HEADER_BYTES>().expect("whole pages");
        let header = Header::decode(header).expect("a page of a known kind");
        found.push(header);
        at += (header.overflow as usize + 1) * PAGE_BYTES;
    }
    found
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![8 => 0_usize..300, 3 => 1500_usize..4200, 1 => 4200_usize..30_000];
    (length, any::<u8>()).prop_map(|(length, byte)| vec![byte; length])
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    // Long keys make deep trees out of few rows.
    let length = prop_oneof![6 => 1_usize..40, 2 => 900_usize..2100, 1 => 4000_usize..9000];
    (length, any::<[u8; 8]>()).prop_map(|(length, seed)| seed.iter().copied().cycle().take(length).collect())
}

fn content() -> impl Strategy<Value = Content> {
    let tree = proptest::collection::btree_map(key(), value(), 0..120);
    proptest::collection::btree_map(proptest::collection::vec(any::<u8>(), 1..20), tree, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn what_was_written_is_read(content in content()) {
        let file = encode(&content).expect("rows in order");
        prop_assert_eq!(decode(&file, Limits::default()).expect("a sound file"), content.clone());
        // Row by row instead of page by page.
        let narrow = Limits { page_buffer_bytes_max: 100, ..Limits::default() };
        prop_assert_eq!(decode(&file, narrow).expect("a sound file"), content);
    }

    #[test]
    fn branches_have_two_children_and_no_leaf_is_empty(content in content()) {
        let file = encode(&content).expect("rows in order");
        let headers = headers(&file);
        let (root, others) = headers[3..].split_last().expect("a root bucket");
        prop_assert_eq!(root.kind == Kind::Leaf, content.len() < 200);
        for header in others {
            let least = if header.kind == Kind::Branch { 2 } else { 1 };
            prop_assert!(header.count >= least, "{:?}", header);
        }
    }

    #[test]
    fn flipped_bytes_give_an_error_or_other_rows_but_no_panic(
        content in content(),
        flips in proptest::collection::vec((any::<proptest::sample::Index>(), 1..=255_u8), 1..8),
        cut in proptest::option::of(any::<proptest::sample::Index>()),
    ) {
        let mut file = encode(&content).expect("rows in order");
        // The metas have a checksum of their own; what matters is what lies behind them.
        let behind = 2 * PAGE_BYTES;
        let span = file.len() - behind;
        for (at, flip) in flips {
            file[behind + at.index(span)] ^= flip;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        let _ = decode(&file, Limits { value_bytes_max: 1 << 20, page_buffer_bytes_max: 5000 });
    }

    #[test]
    fn flipped_page_headers_and_elements_give_no_panic(
        content in content(),
        flips in proptest::collection::vec((any::<proptest::sample::Index>(), 0..96_usize, any::<u8>()), 1..6),
    ) {
        let mut file = encode(&content).expect("rows in order");
        let pages = file.len() / PAGE_BYTES;
        for (page, at, byte) in flips {
            file[(2 + page.index(pages - 2)) * PAGE_BYTES + at] = byte;
        }
        let _ = decode(&file, Limits { value_bytes_max: 1 << 20, page_buffer_bytes_max: 5000 });
    }
}

fn numbered(rows: u64, value: usize) -> Content {
    let tree = (0..rows).map(|row| (row.to_be_bytes().to_vec(), vec![7; value])).collect();
    Content::from([(b"key".to_vec(), tree)])
}

#[test]
fn every_count_of_rows_around_full_pages_is_read_back() {
    // Leaves of two rows with long keys: branches fill and are closed at each of these counts.
    for rows in 0..70_u64 {
        let tree = (0..rows).map(|row| ([vec![b'k'; 1500], row.to_be_bytes().to_vec()].concat(), vec![1; 600]));
        let content = Content::from([(b"deep".to_vec(), tree.collect::<Tree>())]);
        let file = encode(&content).expect("rows in order");
        assert_eq!(decode(&file, Limits::default()).expect("a sound file"), content, "{rows} rows");
    }
}

#[test]
fn rows_of_just_over_half_a_page_share_overflow_pages() {
    let bytes = encode(&numbered(300, 2500)).expect("rows in order").len();
    assert!(bytes < 300 * 2500 * 5 / 4, "{bytes} bytes");
}

#[test]
fn small_buckets_are_inline_and_empty_ones_too() {
    let small = Tree::from([(b"a".to_vec(), b"1".to_vec())]);
    let content = Content::from([(b"empty".to_vec(), Tree::new()), (b"small".to_vec(), small)]);
    let file = encode(&content).expect("rows in order");
    assert_eq!(file.len(), 4 * PAGE_BYTES, "metas, freelist and root");
    assert_eq!(decode(&file, Limits::default()).expect("a sound file"), content);
}

#[test]
fn an_empty_file_has_an_empty_root() {
    let file = encode(&Content::new()).expect("nothing is in order");
    assert_eq!(decode(&file, Limits::default()).expect("a sound file"), Content::new());
}

#[test]
fn the_valid_meta_with_the_higher_transaction_counts() {
    let mut file = encode(&numbered(10, 10)).expect("rows in order");
    // Both are valid: 1 is newer. Then each alone.
    let open = |file: &[u8]| BoltFile::open(file.to_vec(), Limits::default()).map(|file| file.meta.transaction);
    assert_eq!(open(&file).expect("two metas"), 1);
    let whole = file.clone();
    file[PAGE_BYTES + 20] ^= 1;
    assert_eq!(open(&file).expect("the first meta"), 0);
    file = whole;
    file[20] ^= 1;
    assert_eq!(open(&file).expect("the second meta"), 1);
    file[PAGE_BYTES + 20] ^= 1;
    assert!(matches!(open(&file), Err(ReadError::NoMeta)));
}

#[test]
fn a_file_that_is_cut_off_is_told_apart() {
    let file = encode(&numbered(1000, 100)).expect("rows in order");
    let cut = &file[..file.len() - 1];
    assert!(matches!(BoltFile::open(cut, Limits::default()), Err(ReadError::Truncated { .. })));
    assert!(matches!(BoltFile::open(&file[..10], Limits::default()), Err(ReadError::NoMeta)));
}

#[test]
fn a_page_that_points_to_its_ancestor_ends_the_walk() {
    let mut file = encode(&numbered(1000, 100)).expect("rows in order");
    let branch = headers(&file).into_iter().find(|header| header.kind == Kind::Branch).expect("1000 rows need one");
    let at = usize::try_from(branch.id.0).expect("a small file") * PAGE_BYTES;
    // Each child in turn becomes the branch itself.
    let whole = file.clone();
    for child in 0..usize::from(branch.count) {
        let element = at + HEADER_BYTES + child * 16;
        file.copy_from_slice(&whole);
        file[element + 8..element + 16].copy_from_slice(&branch.id.0.to_le_bytes());
        assert!(matches!(decode(&file, Limits::default()), Err(ReadError::Page { .. })), "child {child}");
    }
}

#[test]
fn a_page_that_two_parents_share_is_found() {
    let mut file = encode(&numbered(1000, 100)).expect("rows in order");
    let branch = headers(&file).into_iter().find(|header| header.kind == Kind::Branch).expect("1000 rows need one");
    let element = usize::try_from(branch.id.0).expect("a small file") * PAGE_BYTES + HEADER_BYTES;
    file.copy_within(element + 8..element + 16, element + 24);
    assert!(matches!(decode(&file, Limits::default()), Err(ReadError::Page { .. })));
}

#[test]
fn rows_other_than_planned_are_refused_before_more_bytes_leave() {
    let mut planner = BoltPlanner::default();
    planner.bucket(b"b").expect("a new bucket");
    planner.put(b"k", 10).expect("a first row");
    let plan = planner.finish().expect("a plan");
    let mut writer = BoltWriter::new(Vec::new(), plan).expect("memory takes it");
    writer.bucket(b"b").expect("a new bucket");
    writer.put(b"k", &[0; 9000]).expect("it is held back");
    assert!(matches!(writer.finish(), Err(WriteError::NotAsPlanned { planned: 4, .. })));
    // Fewer pages are no better: the metas have been sent.
    let mut planner = BoltPlanner::default();
    planner.bucket(b"b").expect("a new bucket");
    planner.put(b"k", 9000).expect("a first row");
    let writer = BoltWriter::new(Vec::new(), planner.finish().expect("a plan")).expect("memory takes it");
    assert!(matches!(writer.finish(), Err(WriteError::NotAsPlanned { .. })));
}

#[test]
fn rows_that_bbolt_would_not_take_are_refused() {
    let mut planner = BoltPlanner::default();
    planner.bucket(b"b").expect("a new bucket");
    assert!(matches!(planner.put(b"", 1), Err(WriteError::KeyLength { bytes: 0 })));
    assert!(matches!(planner.put(&[1; 32_769], 1), Err(WriteError::KeyLength { .. })));
    assert!(matches!(planner.put(b"k", 1 << 31), Err(WriteError::ValueLength { .. })));
    planner.put(b"k", 1).expect("a row");
    assert!(matches!(planner.put(b"k", 1), Err(WriteError::OutOfOrder { .. })));
    assert!(matches!(planner.put(b"a", 1), Err(WriteError::OutOfOrder { .. })));
    planner.bucket(b"c").expect("another bucket");
    assert!(matches!(planner.bucket(b"b"), Err(WriteError::BucketTwice { .. })));
}

#[test]
fn a_value_above_the_limit_is_refused() {
    let file = encode(&numbered(3, 5000)).expect("rows in order");
    let limits = Limits { value_bytes_max: 4999, ..Limits::default() };
    assert!(matches!(decode(&file, limits), Err(ReadError::ValueTooLong { bytes: 5000, limit: 4999, .. })));
}
