//! MQTT inside a WebSocket (MQTT 5.0, 6; RFC 6455), as a stream of bytes.
//!
//! Promises: a packet may span frames and a frame hold several; whoever asks for anything else than a WebSocket of MQTT
//! is told by HTTP what this is; text ends the connection; no frame is longer than was said, and no more than one waits
//! for a socket that does not take it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::{Sink as _, Stream as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::handshake::machine::TryParse as _;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response, create_response, write_response};
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::SEC_WEBSOCKET_PROTOCOL;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::{HandshakeFault, Stream, tls};

/// Longest HTTP request, in bytes: browsers send a kilobyte, and cookies of other pages on the same host.
const REQUEST_BYTES_MAX: usize = 16 * 1024;

/// Read at once from the socket; each connection has such a buffer.
const READ_BYTES: usize = 4 * 1024;

/// Longest frame that we send.
const FRAME_BYTES_MAX: usize = 16 * 1024;

/// What is read of a client that goes on talking after it was refused.
const LINGER_BYTES: usize = 64 * 1024;

/// The names of MQTT as a subprotocol: that of the standard, and that of clients older than version 3.1.1.
const SUBPROTOCOLS: [&str; 2] = ["mqtt", "mqttv3.1"];

/// A WebSocket after its handshake.
#[derive(Debug)]
pub struct WebSocket {
    socket: WebSocketStream<Stream>,
    /// What is left of the message that came last.
    input: Bytes,
    /// A frame may not have been sent whole.
    is_unflushed: bool,
}

impl WebSocket {
    /// What it goes over.
    pub(super) fn carrier(&self) -> &Stream {
        self.socket.get_ref()
    }
}

/// The handshake. Waits for as long as the client takes: whoever calls it bounds that.
pub async fn accept(mut stream: Stream, message_bytes_max: usize) -> Result<Stream, HandshakeFault> {
    let mut request = Vec::new();
    let (length, judged) = loop {
        match Request::try_parse(&request) {
            Ok(Some((length, request))) => break (length, judge(&request)),
            Ok(None) if request.len() >= REQUEST_BYTES_MAX => break (0, Err(Refusal::TooLong)),
            Ok(None) => {}
            Err(_) => break (0, Err(Refusal::NotHttp)),
        }
        let room = u64::try_from(REQUEST_BYTES_MAX - request.len()).unwrap_or(0);
        match (&mut stream).take(room).read_buf(&mut request).await {
            Ok(0) | Err(_) => return Err(HandshakeFault::BrokeOff),
            Ok(_) => {}
        }
    };
    let mut answer = Vec::new();
    match judged {
        Ok(response) => {
            write_response(&mut answer, &response).map_err(|_| HandshakeFault::BrokeOff)?;
            let written = async {
                stream.write_all(&answer).await?;
                stream.flush().await
            };
            written.await.map_err(|_| HandshakeFault::BrokeOff)?;
        }
        Err(refusal) => {
            // Whether it was heard changes nothing.
            let _unheard = refuse(&mut stream, refusal).await;
            return Err(refusal.fault());
        }
    }
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BYTES)
        .write_buffer_size(0)
        .max_message_size(Some(message_bytes_max))
        .max_frame_size(Some(message_bytes_max));
    let rest = request.split_off(length.min(request.len()));
    let socket = WebSocketStream::from_partially_read(stream, rest, Role::Server, Some(config)).await;
    Ok(Stream::WebSocket(Box::new(WebSocket { socket, input: Bytes::new(), is_unflushed: false })))
}

/// Longest message from a server: brokers put several packets into one.
const SERVER_MESSAGE_BYTES_MAX: usize = 4 << 20;

/// The handshake as client, over `stream`. The error is what the server said instead, for a person. Waits for as long as the
/// server takes: whoever calls it bounds that.
pub(super) async fn open(stream: Stream, host: &str, port: u16, path: &str) -> Result<Stream, String> {
    let host = if host.contains(':') { format!("[{}]", tls::bare(host)) } else { host.to_owned() };
    let mut request = format!("ws://{host}:{port}{path}").into_client_request().map_err(|error| error.to_string())?;
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("mqtt"));
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BYTES)
        .write_buffer_size(0)
        .max_message_size(Some(SERVER_MESSAGE_BYTES_MAX))
        .max_frame_size(Some(SERVER_MESSAGE_BYTES_MAX));
    match tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await {
        Ok((socket, _response)) => {
            Ok(Stream::WebSocket(Box::new(WebSocket { socket, input: Bytes::new(), is_unflushed: false })))
        }
        Err(Error::Http(response)) => Err(format!("it answered {} to {path}", response.status())),
        Err(error) => Err(error.to_string()),
    }
}

/// Why there is no WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    NotHttp,
    TooLong,
    NotWebSocket,
    NoSubprotocol,
}

impl Refusal {
    fn fault(self) -> HandshakeFault {
        match self {
            Refusal::NotHttp => HandshakeFault::NotHttp,
            Refusal::TooLong | Refusal::NotWebSocket => HandshakeFault::NotWebSocket,
            Refusal::NoSubprotocol => HandshakeFault::NoSubprotocol,
        }
    }

    fn answer(self) -> String {
        const WHAT: &str = "this is an MQTT broker for WebSocket clients";
        let (status, more, body) = match self {
            Refusal::NotHttp => ("400 Bad Request", "", format!("{WHAT}: HTTP/1.1 was expected")),
            Refusal::TooLong => ("431 Request Header Fields Too Large", "", format!("{WHAT}: the request is too long")),
            Refusal::NotWebSocket => (
                "426 Upgrade Required",
                "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
                format!("{WHAT}: a WebSocket handshake of version 13 was expected"),
            ),
            Refusal::NoSubprotocol => {
                ("400 Bad Request", "", format!("{WHAT}: Sec-WebSocket-Protocol must offer \"mqtt\" or \"mqttv3.1\""))
            }
        };
        format!(
            "HTTP/1.1 {status}\r\n{more}Connection: close\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Length: {}\r\n\r\n{body}\n",
            body.len() + 1
        )
    }
}

/// The answer to a request: of the subprotocols that the client offers, the first that we speak.
fn judge(request: &Request) -> Result<Response, Refusal> {
    let mut response = create_response(request).map_err(|_| Refusal::NotWebSocket)?;
    let offered = request.headers().get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let mut names = offered.flat_map(|value| value.split(',')).map(str::trim);
    let ours = |name: &str| SUBPROTOCOLS.into_iter().find(|ours| ours.eq_ignore_ascii_case(name));
    let chosen = names.find_map(ours).ok_or(Refusal::NoSubprotocol)?;
    response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(chosen));
    Ok(response)
}

async fn refuse(stream: &mut Stream, refusal: Refusal) -> io::Result<()> {
    stream.write_all(refusal.answer().as_bytes()).await?;
    stream.flush().await?;
    stream.shutdown().await?;
    // A socket that is closed with bytes unread takes what was written last with it.
    let mut unread = [0; 1024];
    let mut count = 0;
    while count < LINGER_BYTES {
        match stream.read(&mut unread).await? {
            0 => break,
            read => count += read,
        }
    }
    Ok(())
}

fn failed(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    }
}

impl AsyncRead for WebSocket {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.input.is_empty() {
            match ready!(Pin::new(&mut this.socket).poll_next(context)) {
                None => return Poll::Ready(Ok(())),
                Some(Ok(Message::Binary(bytes))) => this.input = bytes,
                Some(Ok(Message::Text(_))) => {
                    // MQTT 5.0, 6: who sends anything but binary frames is disconnected.
                    let reason = "MQTT needs binary frames".into();
                    let close = CloseFrame { code: CloseCode::Unsupported, reason };
                    let mut socket = Pin::new(&mut this.socket);
                    if socket.as_mut().start_send(Message::Close(Some(close))).is_ok() {
                        // As far as the socket takes it at once: nobody waits for whoever broke the rules.
                        let _unsent = socket.poll_flush(context);
                    }
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "a text frame")));
                }
                // Pings are answered, and closing is, by the library.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(failed(error))),
            }
        }
        let count = this.input.len().min(into.remaining());
        into.put_slice(&this.input.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for WebSocket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // One frame after the other, so that never more than one of them waits.
        ready!(Pin::new(&mut *this).poll_flush(context))?;
        let chunk = bytes.get(..FRAME_BYTES_MAX).unwrap_or(bytes);
        let frame = Message::Binary(Bytes::copy_from_slice(chunk));
        Pin::new(&mut this.socket).start_send(frame).map_err(failed)?;
        this.is_unflushed = true;
        Poll::Ready(Ok(chunk.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.is_unflushed {
            ready!(Pin::new(&mut this.socket).poll_flush(context)).map_err(failed)?;
            this.is_unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_close(context).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &str) -> Request {
        let text = format!("GET /any/path HTTP/1.1\r\nHost: h\r\n{headers}\r\n");
        Request::try_parse(text.as_bytes()).unwrap().unwrap().1
    }

    fn upgrade(protocols: &str) -> String {
        "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            .to_owned()
            + protocols
    }

    #[test]
    fn the_first_subprotocol_that_both_speak_is_chosen_in_our_spelling() {
        for (offered, chosen) in [
            ("Sec-WebSocket-Protocol: mqtt\r\n", Ok("mqtt")),
            ("Sec-WebSocket-Protocol: wamp, mqttv3.1,mqtt\r\n", Ok("mqttv3.1")),
            ("Sec-WebSocket-Protocol: MQTT\r\n", Ok("mqtt")),
            ("Sec-WebSocket-Protocol: wamp\r\nSec-WebSocket-Protocol: mqtt\r\n", Ok("mqtt")),
            ("Sec-WebSocket-Protocol: mqtts\r\n", Err(Refusal::NoSubprotocol)),
            ("", Err(Refusal::NoSubprotocol)),
        ] {
            let judged = judge(&request(&upgrade(offered)));
            let name = judged.map(|response| response.headers()[SEC_WEBSOCKET_PROTOCOL].to_str().unwrap().to_owned());
            assert_eq!(name.as_deref().map_err(|refusal| *refusal), chosen, "{offered}");
        }
    }

    #[test]
    fn a_request_that_is_no_handshake_is_told_what_is_missing() {
        assert_eq!(judge(&request("")).unwrap_err(), Refusal::NotWebSocket);
        let old = upgrade("Sec-WebSocket-Protocol: mqtt\r\n").replace("13", "8");
        assert_eq!(judge(&request(&old)).unwrap_err(), Refusal::NotWebSocket);
        for refusal in [Refusal::NotHttp, Refusal::TooLong, Refusal::NotWebSocket, Refusal::NoSubprotocol] {
            let answer = refusal.answer();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("\r\nContent-Length: {}", body.len())), "{answer}");
        }
    }
}
