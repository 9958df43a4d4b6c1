//! How far replicas must be: the highest position that was answered, told with each call.

use http::{HeaderMap, HeaderValue};
use parking_lot::Mutex;
use tailwater_eventlog::{HistoryId, Position};

/// On a request: answer no earlier than here. Positions of another history than the replica's don't count.
pub(crate) const POSITION_MIN: &str = "tailwater-position-min";
/// On the answer to a request with [`POSITION_MIN`]: what it shows.
pub(crate) const POSITION: &str = "tailwater-position";

/// A position of a history, as headers carry it: "history/position", both in decimal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) history: HistoryId,
    pub(crate) position: Position,
}

impl Place {
    /// From a header's value; `None` when it is not one.
    pub(crate) fn parse(value: &HeaderValue) -> Option<Self> {
        let (history, position) = value.to_str().ok()?.split_once('/')?;
        Some(Self { history: HistoryId(history.parse().ok()?), position: Position(position.parse().ok()?) })
    }

    /// As a header's value.
    pub(crate) fn to_header(self) -> HeaderValue {
        let text = format!("{}/{}", self.history.0, self.position.0);
        HeaderValue::from_str(&text).expect("digits and a slash are a header's value")
    }
}

/// The highest place that was answered.
#[derive(Debug, Default)]
pub(super) struct Answered {
    place: Mutex<Place>,
}

impl Answered {
    pub(super) fn place(&self) -> Place {
        *self.place.lock()
    }

    /// Adds to a request what its answer must not go behind.
    pub(super) fn ask(&self, headers: &mut HeaderMap) {
        headers.insert(POSITION_MIN, self.place().to_header());
    }

    /// Takes out of an answer what it shows.
    pub(super) fn remember(&self, headers: &mut HeaderMap) -> Option<Place> {
        let shown = Place::parse(&headers.remove(POSITION)?)?;
        self.shown(shown);
        Some(shown)
    }

    /// Remembers that an answer showed this.
    pub(super) fn shown(&self, shown: Place) {
        let mut place = self.place.lock();
        // After a restore there is another history, whose positions have nothing to do with the old ones.
        if place.history != shown.history || place.position < shown.position {
            *place = shown;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(history: u64, position: u64) -> HeaderMap {
        let place = Place { history: HistoryId(history), position: Position(position) };
        HeaderMap::from_iter([(http::HeaderName::from_static(POSITION), place.to_header())])
    }

    #[test]
    fn what_was_answered_never_goes_back_within_a_history() {
        let answered = Answered::default();
        for (history, position, expected) in [(7, 5, 5), (7, 9, 9), (7, 6, 9), (8, 2, 2)] {
            answered.remember(&mut shown(history, position));
            assert_eq!(answered.place(), Place { history: HistoryId(history), position: Position(expected) });
        }
        let mut request = HeaderMap::new();
        answered.ask(&mut request);
        assert_eq!(request[POSITION_MIN], "8/2");
        assert_eq!(Place::parse(&request[POSITION_MIN]), Some(answered.place()));
    }

    #[test]
    fn what_is_no_place_is_passed_over() {
        for text in ["", "7", "7/", "/7", "a/1", "1/2/3", "-1/2"] {
            assert_eq!(Place::parse(&HeaderValue::from_static(text)), None, "{text}");
        }
    }
}
