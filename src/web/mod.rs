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

use axum::body::Body;
use axum::extract::{ConnectInfo, State};
use axum::http::StatusCode;
use axum::http::header;
use axum::middleware;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use socket2::SockRef;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::WebConfig;
use crate::health::Alarm;
use crate::health::status::Told;
use door::{Door, Keeper};
use history::History;

mod door;

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
    /// What the system said, or what is wrong with its TLS files.
    #[source]
    source: io::Error,
}

impl WebError {
    fn new(address: SocketAddr, source: io::Error) -> WebError {
        WebError { address, source }
    }
}

/// Another page, or none, and the way to say what came of it.
#[derive(Debug)]
struct NewPage(Option<WebConfig>, oneshot::Sender<Result<(), WebError>>);

/// Changes where the page of a stage that runs is served. Cheap to clone.
#[derive(Debug, Clone)]
pub struct WebHand(mpsc::Sender<NewPage>);

impl WebHand {
    /// Serves the page as this says from now on. Where nothing is different, its certificate is read again and whoever looks
    /// at it goes on.
    ///
    /// # Errors
    /// When that cannot be: then it is served as before.
    pub async fn change(&self, config: Option<WebConfig>) -> Result<(), WebError> {
        let (done, is_done) = oneshot::channel();
        if self.0.send(NewPage(config, done)).await.is_err() {
            // The gateway ends, and the page with it.
            return Ok(());
        }
        is_done.await.unwrap_or(Ok(()))
    }
}

/// The page as a stage; there may be none at the moment.
#[derive(Debug)]
pub struct Web {
    door: Option<Door>,
    desk: Arc<Desk>,
    clock: Clock,
    hand: WebHand,
    changes: mpsc::Receiver<NewPage>,
}

#[derive(Debug)]
struct Desk {
    told: Told,
    history: History,
    viewers: AtomicUsize,
    stop: CancellationToken,
}

impl Web {
    /// A stage that serves nothing yet.
    pub fn new(told: Told, clock: Clock) -> Web {
        let (sender, changes) = mpsc::channel(1);
        let desk =
            Desk { told, history: History::default(), viewers: AtomicUsize::new(0), stop: CancellationToken::new() };
        Web { door: None, desk: Arc::new(desk), clock, hand: WebHand(sender), changes }
    }

    /// To change where it is served while it runs.
    pub fn hand(&self) -> WebHand {
        self.hand.clone()
    }

    /// Opens the page, or another one, or closes it; says whether whoever looks at it has to go.
    ///
    /// # Errors
    /// When that cannot be: then all is as before.
    pub async fn change(&mut self, config: Option<WebConfig>) -> Result<bool, WebError> {
        let Some(config) = config else {
            let was_open = self.door.take().is_some();
            if was_open {
                log::info!("The status page is not served any more");
            }
            return Ok(was_open);
        };
        if let Some(door) = &mut self.door
            && is_same(&door.config, &config)
        {
            if let (Some(tls), Some(files)) = (&door.keeper.tls, &config.tls) {
                let renewed = tls.renew(files).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error));
                renewed.map_err(|source| WebError::new(config.bind, source))?;
            }
            door.config = config;
            return Ok(false);
        }
        let keeper = Keeper::new(&config, &self.clock)?;
        let failed = |source| WebError::new(config.bind, source);
        let listener = match self.door.take() {
            None => TcpListener::bind(config.bind).await.map_err(failed)?,
            Some(door) if door.config.bind == config.bind => door.listener,
            Some(former) => match TcpListener::bind(config.bind).await {
                Ok(listener) => listener,
                // The old one may be in its way, as 127.0.0.1 is in that of 0.0.0.0.
                Err(_) => {
                    let Door { listener, config: old, keeper: old_keeper } = former;
                    drop(listener);
                    match TcpListener::bind(config.bind).await {
                        Ok(listener) => listener,
                        Err(error) => {
                            self.door = match TcpListener::bind(old.bind).await {
                                Ok(listener) => Some(Door { listener, config: old, keeper: old_keeper }),
                                Err(_) => None,
                            };
                            return Err(failed(error));
                        }
                    }
                }
            },
        };
        let address = listener.local_addr().map_or_else(|_| config.bind.to_string(), |address| address.to_string());
        log::info!(address = address.as_str(), tls = keeper.tls.is_some(), users = config.users.len(); "The status page is served");
        self.door = Some(Door { listener, config, keeper });
        Ok(true)
    }

    /// Answers until told to stop.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), Infallible> {
        let mut callers = JoinSet::new();
        let mut sample = tokio::time::interval(history::EVERY);
        loop {
            let keeper = self.door.as_ref().map(|door| door.keeper.clone());
            tokio::select! {
                () = stop.cancelled() => break,
                _ = sample.tick() => self.desk.history.note(&self.desk.told.status()),
                _ended = callers.join_next(), if !callers.is_empty() => {}
                Some(NewPage(config, done)) = self.changes.recv() => {
                    let changed = self.change(config).await;
                    if matches!(changed, Ok(true)) {
                        // Who looked at it may not be let in any more.
                        callers.shutdown().await;
                    }
                    // Whoever asked may be gone.
                    let _unheard = done.send(changed.map(drop));
                }
                accepted = accept(self.door.as_ref()), if callers.len() < CALLERS_MAX => match (accepted, keeper) {
                    (Ok((socket, from)), Some(keeper)) => {
                        drop(callers.spawn(serve(socket, from, keeper, self.desk.clone())));
                    }
                    // Out of file descriptors, most likely: it passes, and a tight loop would not help it.
                    _ => tokio::time::sleep(Duration::from_millis(100)).await,
                },
            }
        }
        self.desk.stop.cancel();
        Ok(())
    }
}

/// Whether the same page is served to the same users; its certificates are read again anyway.
fn is_same(one: &WebConfig, other: &WebConfig) -> bool {
    one.bind == other.bind && one.users == other.users && one.tls.is_some() == other.tls.is_some()
}

async fn accept(door: Option<&Door>) -> io::Result<(TcpStream, SocketAddr)> {
    match door {
        Some(door) => door.listener.accept().await,
        None => std::future::pending().await,
    }
}

async fn serve(socket: TcpStream, from: SocketAddr, keeper: Keeper, desk: Arc<Desk>) {
    // Where the system does not know it, a caller who does not read keeps his place.
    let _unknown = SockRef::from(&socket).set_tcp_user_timeout(Some(UNREAD_DEADLINE));
    let stream = match tokio::time::timeout(HEAD_DEADLINE, keeper.accept(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(fault)) => return log::debug!(reason = fault.words(); "A caller of the status page came no further"),
        Err(_late) => return,
    };
    let mut http = hyper::server::conn::http1::Builder::new();
    // A caller may have said all and wait for the answer.
    http.half_close(true);
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE).max_buf_size(HEAD_BYTES_MAX);
    let routes = routes(desk, keeper).layer(Extension(ConnectInfo(from)));
    // Whatever is wrong with a caller is his.
    if let Err(error) = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes)).await {
        log::debug!(error:%; "A caller of the status page is gone");
    }
}

fn routes(desk: Arc<Desk>, keeper: Keeper) -> Router {
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
        .layer(middleware::from_fn_with_state(keeper, door::guard))
        .with_state(desk)
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
