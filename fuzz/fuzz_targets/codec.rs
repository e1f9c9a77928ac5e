//! Bytes as a socket brings them, in pieces, to the decoders of both ends: no panic, and no packet that depends on where
//! the pieces were cut.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use tidegate::mqtt::{DecodeError, Decoder, Packet, Version};

const PACKET_BYTES_MAX: usize = 64 * 1024;

fuzz_target!(|input: (u8, Vec<u8>)| {
    let (way, bytes) = input;
    let decoder = || match way % 3 {
        0 => Decoder::from_client(PACKET_BYTES_MAX),
        1 => Decoder::from_server(Version::V311, PACKET_BYTES_MAX),
        _ => Decoder::from_server(Version::V5, PACKET_BYTES_MAX),
    };
    let whole = packets(decoder(), [&bytes[..]]);
    // The size of the pieces is what is left of the first byte.
    let pieces = packets(decoder(), bytes.chunks(usize::from(way / 3) + 1));
    assert_eq!(whole, pieces);
});

/// All packets, and how it ended.
fn packets<'a>(
    mut decoder: Decoder,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Packet>, Option<DecodeError>) {
    let mut input = BytesMut::new();
    let mut packets = Vec::new();
    for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut input) {
                Ok(Some(packet)) => packets.push(packet),
                Ok(None) => break,
                Err(error) => {
                    // What is said to the peer can be written.
                    if let Some((version, packet)) = error.answer() {
                        tidegate::mqtt::Encoder::new(version).encode(&packet, &mut BytesMut::new()).unwrap();
                    }
                    return (packets, Some(error));
                }
            }
        }
    }
    (packets, None)
}
