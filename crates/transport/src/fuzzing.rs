//! What must hold of what comes from other nodes, whatever bytes come. Called by the fuzz targets and by the tests that
//! replay what those have found.

use tailwater_eventlog::Member;

use crate::http_client::MemberView;
use crate::peer::lane::LaneKind;

pub use crate::tail::fuzzing::{description, fact, fact_seeds, frame_seeds, frames};
pub use crate::write::fuzzing::write_answer;

/// Whether an encoded raft message takes the lane of appends.
#[must_use]
pub fn is_append(message: &[u8]) -> bool {
    LaneKind::of(message) == LaneKind::Append
}

/// What a member answers at `/members`.
///
/// # Panics
/// It is another when it is written and read again.
#[must_use]
pub fn members(json: &[u8]) -> bool {
    let Ok(views) = serde_json::from_slice::<Vec<MemberView>>(json) else { return false };
    let found: Vec<Member> = views.into_iter().map(Member::from).collect();
    let again: Vec<MemberView> = found.iter().cloned().map(MemberView::from).collect();
    let again = serde_json::to_vec(&again).expect("numbers and texts");
    let again: Vec<MemberView> = serde_json::from_slice(&again).expect("just written");
    assert_eq!(again.into_iter().map(Member::from).collect::<Vec<_>>(), found);
    true
}
