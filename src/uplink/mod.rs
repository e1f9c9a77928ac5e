//! The uplink: what waits in the queue is delivered to a cloud broker, and what the cloud sends comes in.
//!
//! ```text
//!               rows ┌────────────┐ events   ┌──────────────┐
//!  queue ──► Outlet ─┤ store task ├─────────►│  machine.rs  │ pure: decides everything
//!            commits └────────────┘◄─────────┤  (session)   │ waiting · inbound · own · compose
//!                                   actions  └──────────────┘
//!               ┌─────────────┐                 ▲        │
//!  intake ◄─────┤ errand task │◄────────────────┤ events │ actions
//!  (commands)   └─────────────┘                 │        ▼
//!                                            ┌──────────────┐  transport
//!  intake ── QoS 0, live ───────────────────►│   link.rs    ├─────────────► TCP / TLS ──► cloud
//!                                            └──────────────┘  backoff: when to try again
//! ```
//!
//! Promises, each with tests of its name in `tests/uplink_*.rs`:
//! - **U1** a row is settled only when the cloud has acknowledged it, or when it is given up with a reason that is kept.
//! - **U2** at QoS 2 each row arrives exactly once at a cloud that keeps its session, whatever dies and when.
//! - **U3** at QoS 1 repeats stay within the window and bear the same `MessageId`.
//! - **U4** first attempts of a topic leave in order.
//! - **U5** nothing that the cloud sends is acknowledged before the intake has it.
//! - **U6** no message, topic, own status or subscription that the cloud refuses makes a loop of reconnections.
//!
//! The session's durable state is rows of the queue (`Change`, `Restored`); at QoS 1 what is in flight is in memory,
//! because the cloud keeps nothing about an unacknowledged QoS 1 id: after a restart the rows are simply sent again.

pub use link::{Uplink, UplinkError, UplinkSettings};

pub mod machine;

mod waiting;

mod overtaken;

mod compose;

mod inbound;

mod commands;

mod own;

pub mod twin;

mod jobs;

mod services;

mod feed;

pub mod reason;

pub mod proof;

pub mod backoff;

mod hour;

mod dialogue;

pub mod provision;

pub mod registration;

mod link;

mod http;

mod tasks;
