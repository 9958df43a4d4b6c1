//! Base, and beside it the *head* of each of its rows: everything but the value. A start reads heads alone, so that it takes
//! as long as there are keys, whatever they hold.
//!
//! Invariant: base and heads have the same keys, and change in the same batch.

use rocksdb::WriteBatch;

use super::engine::{Engine, Family};
use super::{LogState, StorageError, format};
use crate::{Event, KeyIndex};

/// Heads are made anew in batches of about so many bytes.
const BATCH_BYTES: usize = 4 << 20;

/// Adds a put and the row that it is stored as.
pub(super) fn put(engine: &Engine, batch: &mut WriteBatch, event: &Event, row: &[u8]) {
    batch.put_cf(engine.family(Family::Base), event.key(), row);
    batch.put_cf(engine.family(Family::Heads), event.key(), format::encode_head(event, event.value().len()));
}

pub(super) fn delete(engine: &Engine, batch: &mut WriteBatch, key: &[u8]) {
    batch.delete_cf(engine.family(Family::Base), key);
    batch.delete_cf(engine.family(Family::Heads), key);
}

/// Removes everything.
pub(super) fn clear(engine: &Engine, batch: &mut WriteBatch) -> Result<(), StorageError> {
    for family in [Family::Base, Family::Heads] {
        clear_family(engine, batch, family)?;
    }
    Ok(())
}

fn clear_family(engine: &Engine, batch: &mut WriteBatch, family: Family) -> Result<(), StorageError> {
    if let Some(last) = engine.last_key(family)? {
        batch.delete_range_cf(engine.family(family), &[][..], &last);
        batch.delete_cf(engine.family(family), &last);
    }
    Ok(())
}

/// Adds all keys of base to the index.
pub(super) fn load(engine: &Engine, state: &LogState, index: &mut KeyIndex) -> Result<(), StorageError> {
    // Written in key order where they are made anew, so that what was interrupted ends before base does.
    if engine.last_key(Family::Heads)? != engine.last_key(Family::Base)? {
        make_heads(engine)?;
    }
    let mut rows = engine.rows(Family::Heads, &[], None);
    while let Some((key, head)) = rows.row()? {
        let (event, _) = format::decode_head(key, head)?;
        if event.revision() > state.fold_point {
            let (key, fold_point) = (key.escape_ascii(), state.fold_point);
            return Err(StorageError::Inconsistent(format!(
                "base row of key {key} lies above fold point {fold_point}"
            )));
        }
        index.insert(&event);
        rows.step();
    }
    Ok(())
}

/// Reads all rows, as a start does not.
pub(super) fn check(engine: &Engine) -> Result<(), StorageError> {
    let mut rows = engine.rows(Family::Base, &[], None);
    while let Some((key, row)) = rows.row()? {
        format::copy_base_row(key, row)?;
        rows.step();
    }
    Ok(())
}

/// For a store that was written before there were heads.
fn make_heads(engine: &Engine) -> Result<(), StorageError> {
    tracing::info!("the heads of all rows are made, once");
    let mut batch = WriteBatch::default();
    clear_family(engine, &mut batch, Family::Heads)?;
    let mut rows = engine.rows(Family::Base, &[], None);
    while let Some((key, row)) = rows.row()? {
        let event = format::copy_base_row(key, row)?;
        batch.put_cf(engine.family(Family::Heads), key, format::encode_head(&event, event.value().len()));
        if batch.size_in_bytes() >= BATCH_BYTES {
            engine.write(std::mem::take(&mut batch))?;
        }
        rows.step();
    }
    engine.write(batch)?;
    engine.flush()
}
