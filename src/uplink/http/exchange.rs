//! One connection to the server, kept between requests: our transport below, hyper's HTTP/1.1 above.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{HOST, RETRY_AFTER, USER_AGENT};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::request::Request;
use super::verdict::Answer;
use crate::config::Endpoint;
use crate::message::Stamp;
use crate::transport::{self, ConnectError, Way};

/// Longest body of an answer that is read; a longer one ends the connection.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// TCP and TLS each must be done within this.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ExchangeError {
    /// No connection.
    #[error(transparent)]
    Connect(ConnectError),
    /// What is written in the configuration makes no request.
    #[error("the request cannot be written")]
    Request(#[source] hyper::http::Error),
    /// The connection broke, or what came was no HTTP.
    #[error("the server broke off")]
    Broken(#[source] hyper::Error),
    /// Neither an answer nor an end.
    #[error("the server does not answer within {} s", limit.as_secs())]
    Silent {
        /// So long.
        limit: Duration,
    },
}

/// A connection.
#[derive(Debug)]
pub struct Line {
    sender: SendRequest<Full<Bytes>>,
    /// It has had an answer: a server may close a line that it has not heard of for a while.
    is_used: bool,
    /// Drives the connection, and ends with it.
    _driver: JoinSet<()>,
}

impl Line {
    /// Connects.
    pub async fn open(endpoint: &Endpoint, way: &Way, now: Stamp) -> Result<Line, ExchangeError> {
        let stream = transport::connect_by(&endpoint.bare(), way, now, CONNECT_WITHIN).await;
        let stream = stream.map_err(ExchangeError::Connect)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(ExchangeError::Broken)?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // Whoever waits for an answer is told the same.
            let _told = connection.await;
        });
        Ok(Line { sender, is_used: false, _driver: driver })
    }

    /// Whether a request may be sent.
    pub fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Whether a failure may only mean that the server has closed an idle connection.
    pub fn may_be_stale(&self) -> bool {
        self.is_used
    }

    /// Sends `request` and waits for its answer.
    pub async fn exchange(
        &mut self,
        endpoint: &Endpoint,
        request: &Request,
        login: Option<&str>,
        limit: Duration,
    ) -> Result<Answer, ExchangeError> {
        let name = if endpoint.host.contains(':') { format!("[{}]", endpoint.host) } else { endpoint.host.clone() };
        let host = match (endpoint.port, endpoint.tls) {
            (443, true) | (80, false) => name,
            (port, _) => format!("{name}:{port}"),
        };
        let mut builder = hyper::Request::post(&request.target)
            .header(HOST, host)
            .header(USER_AGENT, concat!("tidegate/", env!("CARGO_PKG_VERSION")));
        for (name, value) in &request.headers {
            builder = builder.header(name, value);
        }
        if let Some(login) = login {
            builder = builder.header("Authorization", login);
        }
        let built = builder.body(Full::new(request.body.clone())).map_err(ExchangeError::Request)?;
        let answer = timeout(limit, self.answer(built)).await;
        answer.map_err(|_elapsed| ExchangeError::Silent { limit })?.map_err(ExchangeError::Broken)
    }

    async fn answer(&mut self, request: hyper::Request<Full<Bytes>>) -> Result<Answer, hyper::Error> {
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        self.is_used = true;
        let status = response.status().as_u16();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()).map(str::to_owned);
        // The status has come, and decides; what cannot be read of the body is only for a person.
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map(|body| body.to_bytes().to_vec()).unwrap_or_default();
        Ok(Answer { status, retry_after, body })
    }
}
