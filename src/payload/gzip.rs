//! Gzip (RFC 1952) of a payload, without a time and a name in its header: the same bytes give the same bytes. Pure.

use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;

/// Header and end, and what blocks that cannot be made smaller take of their own (RFC 1951, 3.2.4), up to 256 KiB.
pub const FRAME_BYTES_MAX: usize = 18 + 5 * 9;

/// `plain`, compressed.
pub fn compress(plain: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 4 + 64), Compression::default());
    // A Vec takes whatever is written to it.
    let written = encoder.write_all(plain).and_then(|()| encoder.finish());
    written.map(Bytes::from).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_made_smaller_grows_by_the_frame_only_and_repeats_are_equal() {
        let mut state = 1_u32;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        })
        .take(256 * 1024)
        .collect();
        assert!(compress(&noise).len() <= noise.len() + FRAME_BYTES_MAX);
        assert_eq!(compress(&noise), compress(&noise));
        assert!(compress(&vec![b'x'; 10_000]).len() < 100);
    }
}
