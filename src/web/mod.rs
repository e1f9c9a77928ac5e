//! The status page, and what programs ask for: `/api/v1`, `/metrics`, `/healthz`, `/readyz`.
//!
//! Promises: it only reads, and only what is in memory; nothing that a caller does or leaves undone holds anybody up.
//! Callers, viewers, the length of a request and the time that it may take are bounded. Nothing is loaded from elsewhere,
//! and nothing that a device or a client is called becomes markup: the page writes texts, and its script is a file.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{self, HeaderValue};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use socket2::SockRef;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::health::Alarm;
use crate::health::status::Told;
use history::History;

mod history;
pub mod metrics;

/// Callers at one time; more wait in the socket's backlog.
const CALLERS_MAX: usize = 32;
/// Of those, pages that follow what happens.
const VIEWERS_MAX: usize = 12;
/// How long the head of a request may take, and a connection may lie idle.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// How long a caller may leave what he was sent unread.
const UNREAD_DEADLINE: Duration = Duration::from_secs(20);
/// The longest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// How often a page that follows hears how it is.
const EVERY: Duration = Duration::from_secs(1);
/// Clients that are listed by name.
const CLIENTS_SHOWN_MAX: usize = 200;

const PAGE: &str = include_str!("page.html");
const SCRIPT: &str = include_str!("page.js");
const STYLE: &str = include_str!("page.css");

/// Why the page is not served.
#[derive(Debug, Error)]
#[error("cannot serve the status page at {address}")]
pub struct WebError {
    /// Where.
    address: SocketAddr,
    /// What the system said.
    #[source]
    source: io::Error,
}

/// The page as a stage.
#[derive(Debug)]
pub struct Web {
    listener: TcpListener,
    desk: Arc<Desk>,
}

#[derive(Debug)]
struct Desk {
    told: Told,
    history: History,
    viewers: AtomicUsize,
    stop: CancellationToken,
}

impl Web {
    /// Opens the port.
    pub async fn bind(address: SocketAddr, told: Told) -> Result<Web, WebError> {
        let listener = TcpListener::bind(address).await.map_err(|source| WebError { address, source })?;
        let desk =
            Desk { told, history: History::default(), viewers: AtomicUsize::new(0), stop: CancellationToken::new() };
        Ok(Web { listener, desk: Arc::new(desk) })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until told to stop.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Infallible> {
        let Web { listener, desk } = self;
        let routes = routes(desk.clone());
        let mut callers = JoinSet::new();
        let mut sample = tokio::time::interval(history::EVERY);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = sample.tick() => desk.history.note(&desk.told.status()),
                _ended = callers.join_next(), if !callers.is_empty() => {}
                accepted = listener.accept(), if callers.len() < CALLERS_MAX => match accepted {
                    Ok((socket, _)) => drop(callers.spawn(serve(socket, routes.clone()))),
                    // Out of file descriptors, most likely: it passes, and a tight loop would not help it.
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                },
            }
        }
        desk.stop.cancel();
        Ok(())
    }
}

async fn serve(socket: TcpStream, routes: Router) {
    // Where the system does not know it, a caller who does not read keeps his place.
    let _unknown = SockRef::from(&socket).set_tcp_user_timeout(Some(UNREAD_DEADLINE));
    let mut http = hyper::server::conn::http1::Builder::new();
    // A caller may have said all and wait for the answer.
    http.half_close(true);
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE).max_buf_size(HEAD_BYTES_MAX);
    // Whatever is wrong with a caller is his.
    if let Err(error) = http.serve_connection(TokioIo::new(socket), TowerToHyperService::new(routes)).await {
        log::debug!(error:%; "A caller of the status page is gone");
    }
}

fn routes(desk: Arc<Desk>) -> Router {
    Router::new()
        .route("/", get(|| file("text/html; charset=utf-8", PAGE)))
        .route("/page.js", get(|| file("text/javascript; charset=utf-8", SCRIPT)))
        .route("/page.css", get(|| file("text/css; charset=utf-8", STYLE)))
        .route("/api/v1/status", get(status))
        .route("/api/v1/points", get(points))
        .route("/api/v1/clients", get(clients))
        .route("/api/v1/history", get(history))
        .route("/api/v1/events", get(events))
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .fallback(|| async { (StatusCode::NOT_FOUND, "there is no such page\n") })
        .layer(middleware::from_fn(guard))
        .with_state(desk)
}

/// Lets in who asks for this machine by an address or as `localhost`: a page of somebody else that has its own name point
/// here (DNS rebinding) asks by that name. And tells the browser what this page may do.
async fn guard(request: Request, next: Next) -> Response {
    let mut answer = match is_for_us(request.headers()) {
        true => next.run(request).await,
        false => (StatusCode::FORBIDDEN, "ask for this page by its address: http://127.0.0.1:9080\n").into_response(),
    };
    let headers = answer.headers_mut();
    for (name, value) in [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    answer
}

fn is_for_us(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map(|(name, _)| name),
        None => host.split(':').next(),
    };
    name.is_some_and(|name| name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok())
}

async fn file(kind: &'static str, text: &'static str) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, kind)], text)
}

fn json(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn status(State(desk): State<Arc<Desk>>) -> Response {
    json(&desk.told.status())
}

async fn points(State(desk): State<Arc<Desk>>) -> Response {
    json(&desk.told.points(0).0)
}

async fn clients(State(desk): State<Arc<Desk>>) -> Response {
    json(&desk.told.clients(CLIENTS_SHOWN_MAX))
}

async fn history(State(desk): State<Arc<Desk>>) -> Response {
    json(&desk.history.samples())
}

async fn metrics(State(desk): State<Arc<Desk>>) -> Response {
    match metrics::text(&desk.told.status()) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::KIND)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Whether the process goes on: 503 while the queue's thread does not answer.
async fn healthz(State(desk): State<Arc<Desk>>) -> Response {
    said(&desk, &[Alarm::StoreStalls])
}

/// Whether it keeps its promise: 503 also while the store cannot be written. A cloud that is away is what it is for.
async fn readyz(State(desk): State<Arc<Desk>>) -> Response {
    said(&desk, &[Alarm::StoreStalls, Alarm::StoreFails])
}

fn said(desk: &Desk, alarms: &[Alarm]) -> Response {
    match alarms.iter().find(|alarm| desk.told.is_raised(**alarm)) {
        None => "ok\n".into_response(),
        Some(alarm) => (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", alarm.name())).into_response(),
    }
}

/// A place of one who follows; given back when he is gone.
struct Viewer(Arc<Desk>);

impl Viewer {
    fn enter(desk: Arc<Desk>) -> Option<Viewer> {
        let entered = desk
            .viewers
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count < VIEWERS_MAX).then_some(count + 1));
        entered.is_ok().then(|| Viewer(desk))
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.0.viewers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a page that follows hears: all of the state, and the points that were read since the time before.
#[derive(Serialize)]
struct Now<'n> {
    status: &'n crate::health::status::Status,
    points: std::collections::BTreeMap<String, std::collections::BTreeMap<String, crate::health::live::PointSnapshot>>,
    clients: std::collections::BTreeMap<String, crate::health::live::ClientSnapshot>,
}

/// Server-sent events (the HTML standard, section 9.2).
async fn events(State(desk): State<Arc<Desk>>) -> Response {
    let Some(viewer) = Viewer::enter(desk) else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many pages follow this gateway: close one\n").into_response();
    };
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let stream = futures_util::stream::unfold((viewer, ticks, 0), |(viewer, mut ticks, seen_ms)| async move {
        tokio::select! {
            () = viewer.0.stop.cancelled() => return None,
            _ = ticks.tick() => {}
        }
        let told = &viewer.0.told;
        let (points, now_ms) = told.points(seen_ms);
        let now = Now { status: &told.status(), points, clients: told.clients(CLIENTS_SHOWN_MAX) };
        let event = Event::default().json_data(now);
        Some((event, (viewer, ticks, now_ms)))
    });
    let mut answer = Sse::new(stream).into_response();
    answer.extensions_mut().clear();
    answer.map(Body::new)
}
