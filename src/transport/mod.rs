//! Byte streams for both ends: TCP and TLS.
