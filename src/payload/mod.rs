//! Payload formats of readings, one file each. Pure: the same readings give the same bytes.

use bytes::Bytes;

use crate::clock::Timing;
use crate::config::{Compression, Form, Payload};
use crate::message::{MessageId, Reading, Topic};

pub mod json;

pub mod json_device;

pub mod line_protocol;

pub mod senml;

mod cbor;

mod template;

mod gzip;

mod time;

/// A reading as it leaves.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    /// What the device said.
    pub reading: &'a Reading,
    /// Its name.
    pub id: &'a MessageId,
    /// How its time is told.
    pub timing: Timing,
    /// The local topic.
    pub topic: &'a Topic,
}

/// The readings of one message, in order, as `payload` says. Where that is no batch, there is one.
pub fn encode(payload: &Payload, readings: &[Outgoing<'_>]) -> Bytes {
    let plain = plain(&payload.form, readings);
    match payload.compression {
        Compression::None => plain,
        Compression::Gzip => gzip::compress(&plain),
    }
}

/// The most bytes that a reading adds to a message: what it takes alone and not compressed. Beside others it is shorter in
/// every form, because what they share is written once.
pub fn bytes_alone(payload: &Payload, reading: Outgoing<'_>) -> usize {
    match payload.form {
        Form::JsonBatch => json::encode(reading.reading, reading.id, reading.timing).len() + json::JOINT_BYTES,
        // An array would have to be one of these, if they were not of one poll.
        Form::JsonDevice => plain(&payload.form, &[reading]).len() + json::JOINT_BYTES,
        _ => plain(&payload.form, &[reading]).len(),
    }
}

/// Whether a message is as long as its parts say, so that it need not be written to know.
pub fn is_additive(payload: &Payload) -> bool {
    payload.form == Form::JsonBatch && payload.compression == Compression::None
}

/// What compressing may add to what cannot be made smaller, for any message that is allowed here.
pub const COMPRESSION_BYTES_MAX: usize = gzip::FRAME_BYTES_MAX;

fn plain(form: &Form, readings: &[Outgoing<'_>]) -> Bytes {
    match (form, readings) {
        (Form::Json, [one, ..]) => json::encode(one.reading, one.id, one.timing),
        (Form::Json, []) => Bytes::new(),
        (Form::JsonBatch, _) => json::array(readings.iter().map(|one| json::encode(one.reading, one.id, one.timing))),
        (Form::JsonDevice, _) => json_device::encode(readings),
        (Form::LineProtocol, _) => line_protocol::encode(readings),
        (Form::SenmlCbor, _) => senml::encode(readings),
        (Form::Template(template), _) => template::encode(template, readings),
    }
}

#[cfg(test)]
pub(crate) mod samples {
    //! Readings for the tests of the forms.

    use std::sync::Arc;

    use crate::clock::Timing;
    use crate::message::{ClockState, MessageId, Quality, Reading, Stamp, Topic, Value};

    use super::Outgoing;

    pub const NOON: i64 = 1_795_425_600_123;

    pub struct Sample {
        pub reading: Reading,
        pub id: MessageId,
        pub topic: Topic,
    }

    impl Sample {
        pub fn outgoing(&self) -> Outgoing<'_> {
            Outgoing { reading: &self.reading, id: &self.id, timing: Timing::Stamped, topic: &self.topic }
        }
    }

    pub fn sample(device: &str, point: &str, value: Value, number: u64, wall_ms: i64) -> Sample {
        Sample {
            reading: Reading {
                device: Arc::from(device),
                point: Arc::from(point),
                value,
                unit: Some(Arc::from("°C")),
                quality: Quality::Good,
                reason: None,
                seq: number,
                stamp: Stamp { wall_ms, mono_ms: 5, clock: ClockState::Synced },
            },
            id: MessageId { gateway: Arc::from("g7"), store: 1, start: 2, counter: number },
            topic: Topic::new(&format!("field/{device}/{point}")).unwrap(),
        }
    }

    pub fn bad(mut sample: Sample) -> Sample {
        sample.reading.value = Value::Null;
        sample.reading.quality = Quality::Bad;
        sample.reading.reason = Some(Arc::from("no answer within 1 s"));
        sample
    }

    pub fn outgoing(samples: &[Sample]) -> Vec<Outgoing<'_>> {
        samples.iter().map(Sample::outgoing).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Value;
    use proptest::prelude::*;

    fn forms() -> Vec<Form> {
        use crate::config::{Frame, PayloadTemplate};
        let frame = Some(Frame { begin: "<".to_owned(), between: "|".to_owned(), end: ">".to_owned() });
        let template = PayloadTemplate::parse("{device}/{point}={value} {ts} {id}", frame).unwrap();
        let template = Form::Template(std::sync::Arc::new(template));
        vec![Form::JsonDevice, Form::JsonBatch, Form::LineProtocol, Form::SenmlCbor, template]
    }

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            any::<u64>().prop_map(Value::Uint),
            any::<f64>().prop_map(Value::Float),
            ".{0,20}".prop_map(Value::Text),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn no_message_is_longer_than_its_readings_alone(
            parts in prop::collection::vec(("[a-c, =\"]{1,3}", "[a-e]", value(), 0..3_i64, 0..3_u64), 1..40)
        ) {
            let mut counter = 0;
            let samples: Vec<_> = parts
                .into_iter()
                .map(|(device, point, value, second, skipped)| {
                    counter += 1 + skipped;
                    samples::sample(&device, &point, value, counter, samples::NOON + second * 1000)
                })
                .collect();
            let all = samples::outgoing(&samples);
            for form in forms() {
                for compression in [Compression::None, Compression::Gzip] {
                    let payload = Payload { form: form.clone(), compression };
                    let most: usize = all.iter().map(|one| bytes_alone(&payload, *one)).sum();
                    let length = encode(&payload, &all).len();
                    prop_assert!(length <= most + 1 + COMPRESSION_BYTES_MAX, "{payload:?}: {length} > {most}");
                    prop_assert!(compression == Compression::Gzip || length <= most + 1, "{payload:?}");
                }
            }
        }
    }
}
