//! The network edge of the local broker: terminates MQTT 3.1.1 and 5, owns sessions, wills and QoS state.
