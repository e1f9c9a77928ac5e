//! Does a build for another machine keep the promise there, and does `cross` do what `Cross.toml` says?
//!
//! Not among the plain tests: the builds take a while. `./test.sh --cross` makes them with Debian's cross toolchain
//! (`cross/debian`), installs `cross` 0.2.5, and runs this file.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;

mod container;
mod emulated;
mod symbols;

use std::path::{Path, PathBuf};

/// What `./test.sh --cross` tells by the environment.
fn given(variable: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| panic!("{variable} is not set: ./test.sh --cross does"), PathBuf::from)
}

/// The build `name`, for example `arm64-static`; nothing where Debian's packages for it could not be had.
fn build(name: &str) -> Option<PathBuf> {
    let path = given("TIDEGATE_CROSS_BUILDS").join(name).join("tidegate");
    let is_there = Path::exists(&path);
    if !is_there {
        assert!(!name.starts_with("arm64"), "{} is missing", path.display());
        println!("NOT TRIED: {name} was not built, see above");
    }
    is_there.then_some(path)
}
