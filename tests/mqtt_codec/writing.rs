//! What the encoder writes, byte for byte, and what it refuses to write.
