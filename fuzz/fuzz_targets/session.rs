//! Sessions of the broker, with the real queue and router behind them: two connections say whatever they like, and a
//! third client, which has nothing to do with them, is served as if they were not there.
#![no_main]

#[path = "../../tests/broker_support/mod.rs"]
mod broker_support;

use std::cell::RefCell;
use std::time::Duration;

use broker_support::{Client, Gateway, text};
use libfuzzer_sys::fuzz_target;
use tidegate::message::Qos;
use tidegate::mqtt::Version;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;

struct Rig {
    runtime: Runtime,
    gateway: Gateway,
    calm: Client,
    count: u64,
}

thread_local! {
    static RIG: RefCell<Option<Rig>> = const { RefCell::new(None) };
}

fn rig() -> Rig {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (gateway, calm) = runtime.block_on(async {
        let gateway = Gateway::start().await;
        let mut calm = Client::new(&gateway, Version::V5, "calm").await;
        calm.subscribe("calm/x", Qos::AtMostOnce).await;
        (gateway, calm)
    });
    Rig { runtime, gateway, calm, count: 0 }
}

/// Pieces: which of two connections says them, what, and whether an answer is waited for.
type Pieces = Vec<(bool, bool, Vec<u8>)>;

fuzz_target!(|input: (u8, Pieces)| {
    RIG.with(|place| {
        let mut place = place.borrow_mut();
        let Rig { runtime, gateway, calm, count } = place.get_or_insert_with(rig);
        runtime.block_on(async {
            let (entries, pieces) = input;
            let mut streams = [entry(gateway, entries & 15).await, entry(gateway, entries >> 4).await];
            for (which, waits, bytes) in pieces.iter().take(16) {
                let stream = &mut streams[usize::from(*which)];
                if stream.write_all(bytes).await.is_err() {
                    continue;
                }
                if *waits {
                    let _some = timeout(Duration::from_millis(5), stream.read(&mut [0; 256])).await;
                }
            }
            drop(streams);
            *count += 1;
            let said = count.to_string();
            calm.publish("calm/x", Qos::AtLeastOnce, &said).await;
            assert_eq!(text(&calm.take().await), said);
        });
    });
});

/// A connection that has said CONNECT: the version, clean or not, with a will or not; 15 says nothing of its own.
async fn entry(gateway: &Gateway, how: u8) -> TcpStream {
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    if how != 15 {
        let (is_v5, is_clean, has_will) = (how & 1 != 0, how & 2 != 0, how & 4 != 0);
        let name = if how & 8 != 0 { b'a' } else { b'b' };
        let mut body = b"\0\x04MQTT".to_vec();
        body.extend([if is_v5 { 5 } else { 4 }, u8::from(is_clean) << 1 | u8::from(has_will) << 2, 0, 0]);
        if is_v5 {
            body.extend(if is_clean { &b"\0"[..] } else { &b"\x05\x11\0\0\0\x0A"[..] });
        }
        body.extend([0, 1, name]);
        if has_will {
            body.extend(if is_v5 { &b"\0"[..] } else { &b""[..] });
            body.extend(b"\0\x01w\0\x01x");
        }
        let head = [0x10, u8::try_from(body.len()).unwrap()];
        let _gone = stream.write_all(&[&head[..], &body].concat()).await;
    }
    stream
}
