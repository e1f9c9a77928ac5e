//! What the decoder takes, the encoder writes so that the decoder takes it again as the same packet.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use tidegate::mqtt::{Decoder, Encoder, Packet, Version};

const PACKET_BYTES_MAX: usize = 64 * 1024;

fuzz_target!(|input: (bool, bool, Vec<u8>)| {
    let (is_v5, from_client, bytes) = input;
    let version = if is_v5 { Version::V5 } else { Version::V311 };
    let mut stream = BytesMut::new();
    if from_client {
        // So that what follows is read in this version.
        let connect = tidegate::mqtt::Connect::new(version, "c");
        Encoder::new(version).encode(&Packet::Connect(Box::new(connect)), &mut stream).unwrap();
    }
    stream.extend_from_slice(&bytes);
    let decoder = || match from_client {
        true => Decoder::from_client(PACKET_BYTES_MAX),
        false => Decoder::from_server(version, PACKET_BYTES_MAX),
    };
    let (mut first, mut again) = (decoder(), decoder());
    while let Ok(Some(packet)) = first.decode(&mut stream) {
        let mut written = BytesMut::new();
        // Some that are taken from others are never written by us; those are no matter of this question.
        if Encoder::new(version).encode(&packet, &mut written).is_err() {
            return;
        }
        let read = again.decode(&mut written);
        assert_eq!(read.as_ref().ok(), Some(&Some(packet)), "{read:?}");
        assert!(written.is_empty());
    }
});
