//! x
pub mod backoff;
mod compose;
mod inbound;
pub mod machine;
mod own;
pub mod pacing;
mod reason;
mod waiting;
