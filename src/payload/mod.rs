//! Payload formats of readings, one file each. Pure: the same reading gives the same bytes.

pub mod json;
