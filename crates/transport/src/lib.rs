//! What travels between nodes on the peer URLs: raft messages (*peer*), proposals and barriers (*write plane*), and the
//! log itself (*tail*).
//!
//! It decides nothing: raft messages go to the replica, proposals to the leader's, frames to whoever follows.
