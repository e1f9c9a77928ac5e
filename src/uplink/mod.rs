//! The way to the cloud: takes messages from the queue and delivers them.
