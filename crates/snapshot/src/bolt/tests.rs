//! Round trips, and files with flipped bytes.
