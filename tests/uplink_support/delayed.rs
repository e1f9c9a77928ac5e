//! A line to a loopback port on which every byte takes its time, in both directions.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// Ends with its owner.
pub struct DelayedLine {
    pub port: u16,
    _tasks: JoinSet<()>,
}

impl DelayedLine {
    /// Every byte takes `delay` in each direction.
    pub async fn start(target: u16, delay: Duration) -> DelayedLine {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut lines = JoinSet::new();
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let Ok(far) = TcpStream::connect(("127.0.0.1", target)).await else { continue };
                near.set_nodelay(true).unwrap();
                far.set_nodelay(true).unwrap();
                lines.spawn(async move {
                    let ((near_reads, near_writes), (far_reads, far_writes)) = (near.into_split(), far.into_split());
                    // The end of either direction ends both, as a connection that is closed.
                    tokio::select! {
                        () = pass(near_reads, far_writes, delay) => {}
                        () = pass(far_reads, near_writes, delay) => {}
                    }
                });
            }
        });
        DelayedLine { port, _tasks: tasks }
    }
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, delay: Duration) {
    let (sender, mut under_way) = mpsc::channel::<(Instant, Bytes)>(10_000);
    let reads = async move {
        let mut input = BytesMut::with_capacity(64 * 1024);
        while from.read_buf(&mut input).await.is_ok_and(|count| count > 0) {
            if sender.send((Instant::now() + delay, input.split().freeze())).await.is_err() {
                return;
            }
        }
    };
    let writes = async move {
        while let Some((at, bytes)) = under_way.recv().await {
            sleep_until(at).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(reads, writes);
}
