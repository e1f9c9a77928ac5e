//! Starting configurations, each a whole one that is checked by a test.

/// Name and text of each example, in the order in which `tidegate example` lists them.
pub fn examples() -> &'static [(&'static str, &'static str)] {
    &[
        ("first-steps", include_str!("../../config/examples/first-steps.toml")),
        ("rs485-aws", include_str!("../../config/examples/rs485-aws.toml")),
        ("azure-event-grid", include_str!("../../config/examples/azure-event-grid.toml")),
        ("azure-iot-hub", include_str!("../../config/examples/azure-iot-hub.toml")),
        ("clearblade", include_str!("../../config/examples/clearblade.toml")),
        ("modbus-tcp-mosquitto", include_str!("../../config/examples/modbus-tcp-mosquitto.toml")),
        ("serial-scale", include_str!("../../config/examples/serial-scale.toml")),
        ("twelve-meters", include_str!("../../config/examples/twelve-meters.toml")),
        ("webhook", include_str!("../../config/examples/webhook.toml")),
        ("influxdb", include_str!("../../config/examples/influxdb.toml")),
        ("aws-http", include_str!("../../config/examples/aws-http.toml")),
        ("thingsboard", include_str!("../../config/examples/thingsboard.toml")),
        ("em24.csv", include_str!("../../config/examples/em24.csv")),
    ]
}

/// Every key at its default, with a line on each.
pub fn reference() -> &'static str {
    include_str!("../../config/tidegate.toml")
}
