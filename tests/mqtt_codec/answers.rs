//! What a peer is told about its fault, and what it may cost before it is refused.
