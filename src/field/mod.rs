//! Field adapters: what a device says becomes a `Reading` and goes to `intake`.
