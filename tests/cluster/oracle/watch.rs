//! A watcher's streams against the log.

use tailwater_api::mvccpb::Event;

use crate::history::{Record, Session, Watched, kv};
use crate::workload::PREFIX;

/// Checks all streams of one watcher, which began at revision 1 and was sent everything in the end.
///
/// # Errors
/// The first violation; it begins with the guarantee's name.
pub(crate) fn watched(watched: &Watched, record: &Record) -> anyhow::Result<()> {
    let log: Vec<&Event> = record.log.iter().filter(|event| kv(event).key.starts_with(PREFIX.as_bytes())).collect();
    let mut cursor = 0;
    for (index, session) in watched.sessions.iter().enumerate() {
        let where_it_was = || format!("stream {index} on member {} from revision {}", session.slot, session.start);
        one(session).map_err(|error| error.context(where_it_was()))?;
        for reply in &session.replies {
            for event in &reply.events {
                let expected = log.get(cursor);
                cursor += 1;
                if expected == Some(&event) {
                    continue;
                }
                anyhow::bail!("{}: {}", difference(event, expected.copied()), where_it_was());
            }
        }
    }
    anyhow::ensure!(
        cursor == log.len(),
        "reliable: {} events never came, the first is {:?}",
        log.len() - cursor,
        log[cursor]
    );
    Ok(())
}

/// Names what is wrong with an event that is not the next one of the log.
fn difference(event: &Event, expected: Option<&Event>) -> String {
    let Some(expected) = expected else { return format!("unique: more events than the log has: {event:?}") };
    let (got, due) = (kv(event), kv(expected));
    let text = format!("{event:?} instead of {expected:?}");
    if got == due && event.r#type == expected.r#type {
        format!("prev_kv: {text}")
    } else if got.mod_revision < due.mod_revision {
        format!("unique: {text}")
    } else if got.mod_revision > due.mod_revision {
        format!("reliable: {text}")
    } else {
        format!("the event is another one: {text}")
    }
}

/// What one stream must keep by itself.
fn one(session: &Session) -> anyhow::Result<()> {
    // Everything up to here was promised to have come.
    let mut promised = session.start - 1;
    let mut last: Option<i64> = None;
    for reply in &session.replies {
        let revisions: Vec<i64> = reply.events.iter().map(|event| kv(event).mod_revision).collect();
        anyhow::ensure!(revisions.is_sorted(), "ordered: within one answer: {revisions:?}");
        let (Some(&first), Some(&newest)) = (revisions.first(), revisions.last()) else {
            promised = promised.max(reply.revision);
            continue;
        };
        anyhow::ensure!(first >= session.start, "resumable: revision {first} is below the start");
        if let Some(last) = last {
            anyhow::ensure!(first >= last, "ordered: revision {first} comes after {last}");
            anyhow::ensure!(first > last, "atomic: revision {first} is split over two answers");
        }
        anyhow::ensure!(first > promised, "bookmarkable: revision {first} comes after progress {promised}");
        anyhow::ensure!(newest <= reply.revision, "the header is at {}, an event at {newest}", reply.revision);
        last = Some(newest);
    }
    Ok(())
}
