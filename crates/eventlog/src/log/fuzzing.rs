//! What must hold of the small decoders here, whatever bytes they are given. Called by the fuzz targets and by the tests
//! that replay what those have found.

use bytes::Bytes;

use super::format::{
    decode_fold_point, decode_head, decode_numbers, decode_progress, encode_fold_point, encode_head, encode_numbers,
    encode_progress, flushed_line, format_line, generation_line, log_key, parse_flushed_line, parse_format_line,
    parse_generation_line, parse_log_key, read_base_row, read_log_row, sealed, sealed_line, unsealed,
};
use super::{CopyPoint, LogState};
use crate::{Position, Revision};

/// Numbers, keys and lines of an event log's directory: the first byte says which. `true` when it was one.
///
/// # Panics
/// What was decoded is something else when it is encoded and decoded again.
#[must_use]
pub fn state_values(data: &[u8]) -> bool {
    let Some((&kind, rest)) = data.split_first() else { return false };
    match kind % 8 {
        0 => decode_numbers(rest).is_ok_and(|state| {
            assert_eq!(encode_numbers(&state), rest, "numbers have one encoding");
            true
        }),
        1 => decode_fold_point(rest).is_ok_and(|fold_point| {
            assert_eq!(encode_fold_point(fold_point), rest, "a fold point has one encoding");
            true
        }),
        2 => decode_progress(&Bytes::copy_from_slice(rest)).is_ok_and(|progress| {
            let again = decode_progress(&encode_progress(&progress).into()).expect("just encoded");
            assert_eq!(again, progress, "the progress of a copy");
            true
        }),
        3 => parse_log_key(rest).is_ok_and(|(revision, sub)| {
            assert_eq!(log_key(revision, sub), rest, "a log key has one encoding");
            true
        }),
        4 => seals(rest),
        5 => lines(rest),
        6 => rows(rest),
        _ => heads(rest),
    }
}

fn seals(data: &[u8]) -> bool {
    let (key, value) = data.split_at(data.len().min(4));
    // Read for its errors: a seal that nobody made.
    drop(unsealed(key, Bytes::copy_from_slice(value)));
    let found = unsealed(key, sealed(key, value.to_vec()).into()).expect("just sealed");
    assert_eq!(found, value, "what is under the seal");
    true
}

fn lines(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let mut known = false;
    // As it is, and with the checksum that belongs to it.
    for line in [text.to_owned(), sealed_line(text)] {
        if let Some(format) = parse_format_line(&line) {
            assert_eq!(parse_format_line(&format_line(format)), Some(format));
            known = true;
        }
        if let Some((applied, fold_point)) = parse_flushed_line(&line) {
            let state = LogState { applied, fold_point, ..LogState::default() };
            assert_eq!(parse_flushed_line(&flushed_line(&state)), Some((applied, fold_point)));
            known = true;
        }
        if let Some(marker) = parse_generation_line(&line) {
            assert_eq!(parse_generation_line(&generation_line(&marker)), Some(marker));
            known = true;
        }
    }
    known
}

fn heads(data: &[u8]) -> bool {
    // As it is, and with the checksum that belongs to it.
    [data.to_vec(), sealed(b"key", data.to_vec())].iter().any(|head| {
        decode_head(b"key", head).is_ok_and(|(event, value_bytes)| {
            assert_eq!(&encode_head(&event, value_bytes), head, "a head has one encoding");
            true
        })
    })
}

fn rows(data: &[u8]) -> bool {
    let row = Bytes::copy_from_slice(data);
    let Ok(event) = crate::Event::from_row(row.clone()) else { return false };
    let own = read_log_row(event.revision(), event.sub(), row.clone()).expect("the row's own place");
    assert_eq!(own, event);
    let other = event.sub().wrapping_add(1);
    assert!(read_log_row(event.revision(), other, row.clone()).is_err(), "a row at another's place");
    let is_put = event.kind() == crate::EventKind::Put;
    assert_eq!(read_base_row(event.key(), row.clone()).is_ok(), is_put, "base holds puts");
    assert!(read_base_row(&[event.key(), b"x"].concat(), row).is_err(), "a row of another key");
    true
}

/// Numbers and lines as they are written, as inputs for [`state_values`].
#[must_use]
pub fn state_value_seeds() -> Vec<Vec<u8>> {
    let state = LogState {
        history: crate::HistoryId(0x0102_0304_0506_0708),
        revision: Revision(300),
        compacted: Revision(20),
        fold_point: Revision(10),
        applied: Position(512),
        applied_term: crate::Term(3),
    };
    let progress = super::staging::Progress {
        point: CopyPoint { history: state.history, fold_point: state.fold_point, compacted: state.compacted },
        base_last: Some(Bytes::from_static(b"last")),
        base_done: false,
        log_last: Some((Revision(12), 1)),
        complete: Revision(11),
    };
    let marker = super::generations::Marker { number: 4, installed: None };
    let envelope = crate::Envelope {
        kind: crate::EventKind::Put,
        revision: Revision(9),
        sub: 1,
        create_revision: Revision(7),
        version: 2,
        lease: crate::LeaseId(6),
        prev: None,
    };
    let head = crate::Event::put(envelope, b"key", b"").without_value();
    let seed = |kind: u8, value: &[u8]| [&[kind][..], value].concat();
    vec![
        seed(0, &encode_numbers(&state)),
        seed(1, &encode_fold_point(state.fold_point)),
        seed(2, &encode_progress(&progress)),
        seed(3, &log_key(Revision(300), 2)),
        seed(7, &encode_head(&head, 5)),
        seed(4, &sealed(b"key!", b"value".to_vec())),
        seed(5, format_line(1).as_bytes()),
        seed(5, flushed_line(&state).as_bytes()),
        seed(5, generation_line(&marker).as_bytes()),
        seed(5, b"tailwater event log generation 7 installed 12 3"),
    ]
}
