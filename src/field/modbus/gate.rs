//! The gate between the wire and the Modbus library: only a whole, right answer passes.
//!
//! The library owns its transport, so this is a transport: it notes the request that is written, gathers what arrives
//! and hands it on once `reply::judge` calls it complete. The line keeps a clone, to listen to the wire between
//! exchanges. Promises: the library never reads a byte of anything but the answer to its request; the memory of one
//! exchange is bounded; nothing here blocks the thread.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::fault::Fault;
use super::reply::{Echo, Framing, GLITCH_BYTES_MAX, Progress, echo_of, is_glitch, judge_beside_echo};
use crate::field::record::Recorder;

/// More than any answer with echo, glitches and a late neighbour before it: 4 × the longest frame (256, and 260).
const RECEIVED_BYTES_MAX: usize = 1040;

/// What was dropped between exchanges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dropped {
    /// Nothing: the other end is closed.
    End,
    /// What line drivers make when they turn around.
    Glitch,
    /// Somebody spoke without being asked.
    Speech,
}

/// The next transaction id of this process: no two exchanges within 65,536 bear the same, on whatever connection. The
/// first one is random, so that it is not that of the process before.
fn next_transaction() -> u16 {
    static NEXT: OnceLock<AtomicU16> = OnceLock::new();
    let random = || AtomicU16::new(RandomState::new().hash_one(0) as u16);
    NEXT.get_or_init(random).fetch_add(1, Ordering::Relaxed)
}

/// What a gate stands before.
pub(super) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// A gate. Clones are one.
#[derive(Clone)]
pub(super) struct Gate(Arc<Mutex<Inner>>);

struct Inner {
    wire: Box<dyn Wire>,
    framing: Framing,
    request: Vec<u8>,
    received: Vec<u8>,
    /// What of `received` may pass, and has not passed yet.
    passing: Range<usize>,
    fault: Option<Fault>,
    /// The transaction id of this exchange on the wire, and the one by which the library knows it.
    transaction: [u8; 2],
    library_transaction: [u8; 2],
    recorder: Option<Recorder>,
    echo: Echo,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}

impl Gate {
    pub(super) fn new(wire: Box<dyn Wire>, framing: Framing) -> Gate {
        let (request, received) = (Vec::new(), Vec::new());
        Gate(Arc::new(Mutex::new(Inner {
            wire,
            framing,
            request,
            received,
            passing: 0..0,
            fault: None,
            transaction: [0; 2],
            library_transaction: [0; 2],
            recorder: None,
            echo: Echo::Unknown,
        })))
    }

    /// Forgets the last exchange.
    pub(super) fn begin(&self) {
        let mut inner = self.lock();
        inner.request.clear();
        inner.received.clear();
        inner.passing = 0..0;
        inner.fault = None;
        inner.transaction = next_transaction().to_be_bytes();
    }

    /// From now on, takes down what goes over the wire.
    pub(super) fn record(&self, recorder: Recorder) {
        self.lock().recorder = Some(recorder);
    }

    /// Why the answer was not let through.
    pub(super) fn fault(&self) -> Option<Fault> {
        self.lock().fault
    }

    /// Whether the line echoes, as far as answers to reads have shown.
    pub(super) fn echo(&self) -> Echo {
        self.lock().echo
    }

    /// Whether anything of the request has left in this exchange.
    pub(super) fn has_sent(&self) -> bool {
        !self.lock().request.is_empty()
    }

    /// Whether anything has arrived in this exchange.
    pub(super) fn has_heard(&self) -> bool {
        !self.lock().received.is_empty()
    }

    /// Reads and drops what arrives.
    pub(super) async fn discard(&self) -> io::Result<Dropped> {
        std::future::poll_fn(|context| {
            let mut bytes = [0; 256];
            let mut buffer = ReadBuf::new(&mut bytes);
            let inner = &mut *self.lock();
            ready!(Pin::new(&mut inner.wire).poll_read(context, &mut buffer))?;
            inner.note_heard(buffer.filled());
            Poll::Ready(Ok(match buffer.filled() {
                [] => Dropped::End,
                few if few.len() <= GLITCH_BYTES_MAX && few.iter().all(is_glitch) => Dropped::Glitch,
                _ => Dropped::Speech,
            }))
        })
        .await
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Held within one poll only, and whole after every statement.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// What the library sends, under the id of this exchange. The library counts from 0 on each connection: through a
    /// proxy that makes its own connections, a late answer of an earlier one would bear the id that is awaited now.
    fn with_own_transaction(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        if self.framing == Framing::Tcp {
            let (sent, own) = (self.request.len(), self.transaction);
            for (place, byte) in bytes.iter_mut().enumerate() {
                if let (Some(kept), Some(own)) = (self.library_transaction.get_mut(sent + place), own.get(sent + place))
                {
                    *kept = std::mem::replace(byte, *own);
                }
            }
        }
        bytes
    }

    fn give_back_transaction(&mut self, answer: &Range<usize>) {
        if self.framing == Framing::Tcp {
            let head = self.received.iter_mut().skip(answer.start);
            head.zip(self.library_transaction).for_each(|(byte, known)| *byte = known);
        }
    }

    fn note_heard(&self, bytes: &[u8]) {
        if let Some(recorder) = self.recorder.as_ref().filter(|_| !bytes.is_empty()) {
            recorder.heard(bytes);
        }
    }
}

impl AsyncRead for Gate {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.lock();
        while inner.passing.is_empty() {
            if inner.fault.is_some() {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            let mut bytes = [0; 512];
            let mut arrived = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut inner.wire).poll_read(context, &mut arrived))?;
            inner.note_heard(arrived.filled());
            if arrived.filled().is_empty() {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            inner.received.extend_from_slice(arrived.filled());
            match judge_beside_echo(inner.framing, inner.echo, &inner.request, &inner.received) {
                Progress::Complete(range) => {
                    inner.give_back_transaction(&range);
                    inner.passing = range;
                    if inner.framing == Framing::Rtu && inner.echo == Echo::Unknown {
                        inner.echo = echo_of(&inner.request, &inner.received);
                    }
                }
                Progress::Broken(fault) => inner.fault = Some(fault),
                Progress::Incomplete if inner.received.len() > RECEIVED_BYTES_MAX => {
                    inner.fault = Some(Fault::Surplus);
                }
                Progress::Incomplete => {}
            }
        }
        let count = buffer.remaining().min(inner.passing.len());
        let end = inner.passing.start + count;
        buffer.put_slice(inner.received.get(inner.passing.start..end).unwrap_or_default());
        inner.passing.start = end;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Gate {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let inner = &mut *self.lock();
        let bytes = &*inner.with_own_transaction(bytes);
        let count = ready!(Pin::new(&mut inner.wire).poll_write(context, bytes))?;
        let sent = bytes.get(..count).unwrap_or_default();
        if let Some(recorder) = &inner.recorder {
            recorder.sent(sent);
        }
        inner.request.extend_from_slice(sent);
        Poll::Ready(Ok(count))
    }

    /// Does nothing: on a serial port this would be `tcdrain`, which blocks the thread until the last bit is out, and
    /// for ever when the line is held. The line's deadline counts the time on the wire instead.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.lock().wire).poll_shutdown(context)
    }
}
