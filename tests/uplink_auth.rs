//! Does enhanced authentication get the gateway in, and does the next token go over the connection that there is: at a broker
//! that takes it, refuses it, does not answer, or is away; and on a board whose clock is set only then?

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64ct::{Base64UrlUnpadded, Encoding as _};
use tidegate::clock::{Clock, ClockSource, Dial, Reading};
use tidegate::config::clouds::AZURE_EVENT_GRID;
use tidegate::config::{Protocol, UplinkConfig};
use tidegate::message::Qos;
use tidegate::mqtt::ReasonCode;
use uplink_support::gateway::{Gateway, arrived, config, distinct, until};
use uplink_support::{FakeCloud, Temper};

mod uplink_support;

/// A token that ends so many seconds from now; who has signed it is the broker's affair.
fn token(name: &str, left_s: i64) -> String {
    let exp = Clock::new(ClockSource::Trusted).now().wall_ms / 1000 + left_s;
    let body = serde_json::json!({"exp": exp, "name": name}).to_string();
    format!("e30.{}.c2ln", Base64UrlUnpadded::encode_string(body.as_bytes()))
}

/// As whoever renews tokens does it: never half a file.
fn put(file: &Path, token: &str) {
    let beside = file.with_extension("new");
    std::fs::write(&beside, format!("{token}\n")).unwrap();
    std::fs::rename(beside, file).unwrap();
}

fn uplink(port: u16, file: &Path, method: &str) -> UplinkConfig {
    let (password_file, auth_method) = (Some(file.to_owned()), Some(method.to_owned()));
    let qos = Some(Qos::AtLeastOnce);
    UplinkConfig { profile: &AZURE_EVENT_GRID, password_file, auth_method, ..config(port, Protocol::V5, qos) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_token_goes_over_the_same_connection_among_messages_and_none_is_lost_or_doubled() {
    for method in AZURE_EVENT_GRID.auth_methods {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let mut tokens = vec![token("0", 3)];
        put(&file, &tokens[0]);
        let cloud = FakeCloud::start(0, Temper::default()).await;
        let gateway = Gateway::start(uplink(cloud.port, &file, method));
        until("it is there", || cloud.seen.lock().unwrap().connects == 1).await;
        let mut sent = 0;
        for number in 1..3 {
            tokens.push(token(&number.to_string(), 3 + 2 * i64::from(number)));
            put(&file, &tokens[tokens.len() - 1]);
            // Messages come all the time, so that the change happens among them.
            while cloud.seen.lock().unwrap().shown_again < usize::try_from(number).unwrap() {
                gateway.publish(sent..sent + 20, Qos::AtLeastOnce).await;
                sent += 20;
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                assert!(sent < 40_000, "it is not shown");
            }
        }
        until("all settled", || gateway.delivered() >= u64::try_from(sent).unwrap()).await;
        assert_eq!((arrived(&cloud).len(), distinct(&cloud)), (sent, sent), "each exactly once");
        {
            let seen = cloud.seen.lock().unwrap();
            assert_eq!(seen.connects, 1, "one connection");
            let expected: Vec<(String, String)> =
                tokens.iter().map(|token| ((*method).to_owned(), token.clone())).collect();
            assert_eq!(seen.tokens, expected);
            assert_eq!(seen.logins, [(String::new(), String::new())], "the token is no password");
        }
        gateway.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_refused_or_not_answered_costs_a_connection_and_no_message() {
    let refuses = Temper { refuses_token_with: Some(ReasonCode::NOT_AUTHORIZED), ..Temper::default() };
    let deaf = Temper { is_deaf_to_tokens: true, ..Temper::default() };
    for temper in [refuses, deaf] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        put(&file, &token("first", 4));
        let cloud = FakeCloud::start(0, temper).await;
        let gateway = Gateway::start(uplink(cloud.port, &file, "CUSTOM-JWT"));
        until("it is there", || cloud.seen.lock().unwrap().connects == 1).await;
        put(&file, &token("second", 100_000));
        let mut sent = 0;
        // Some are on their way when the cloud says no: they are not what it objects to.
        while cloud.seen.lock().unwrap().connects < 2 {
            gateway.publish(sent..sent + 5, Qos::AtLeastOnce).await;
            sent += 5;
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            assert!(sent < 40_000, "it never came back: {}", gateway.reason());
        }
        until("all settled", || gateway.delivered() >= u64::try_from(sent).unwrap()).await;
        assert_eq!(distinct(&cloud), sent);
        assert_eq!(cloud.seen.lock().unwrap().connects, 2, "no loop: the new token is good for long");
        gateway.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_ends_unrenewed_is_told_and_the_next_one_delivers_what_has_waited() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    put(&file, &token("only", 2));
    let cloud = FakeCloud::start(0, Temper::default()).await;
    let gateway = Gateway::start(uplink(cloud.port, &file, "OAUTH2-JWT"));
    until("it is there", || cloud.seen.lock().unwrap().connects == 1).await;
    gateway.publish(0..10, Qos::AtLeastOnce).await;
    until("delivered", || gateway.delivered() >= 10).await;
    // It ends: nobody is let in any more, and the connection goes.
    cloud.seen.lock().unwrap().temper.refuses_with = Some(ReasonCode::NOT_AUTHORIZED);
    let ended = tidegate::mqtt::Disconnect::new(ReasonCode::NOT_AUTHORIZED);
    cloud.say(tidegate::mqtt::Packet::Disconnect(ended)).await;
    until("it is told", || gateway.reason().contains("0x87")).await;
    gateway.publish(10..30, Qos::AtLeastOnce).await;
    put(&file, &token("next", 100_000));
    cloud.seen.lock().unwrap().temper.refuses_with = None;
    until("delivered", || gateway.delivered() >= 30).await;
    assert_eq!((arrived(&cloud).len(), distinct(&cloud)), (30, 30));
    assert!(cloud.seen.lock().unwrap().tokens.last().unwrap().1.contains('.'));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_the_cloud_has_given_up_while_the_gateway_was_away_loses_nothing_that_waits_here() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    put(&file, &token("long", 100_000));
    let cloud = FakeCloud::start(0, Temper::default()).await;
    let port = cloud.port;
    let gateway = Gateway::start(uplink(port, &file, "CUSTOM-JWT"));
    gateway.publish(0..10, Qos::AtLeastOnce).await;
    until("delivered", || gateway.delivered() >= 10).await;
    // Event Grid ends a session in which 100 messages or 1 MB wait: the next CONNACK says Session Present 0.
    drop(cloud);
    gateway.publish(10..200, Qos::AtLeastOnce).await;
    let cloud = FakeCloud::start(port, Temper::default()).await;
    until("delivered", || gateway.delivered() >= 200).await;
    assert_eq!(distinct(&cloud) + 10, 200);
    let connects = cloud.seen.lock().unwrap().connects;
    let filters = cloud.seen.lock().unwrap().filters.clone();
    assert_eq!((connects, filters), (1, vec!["cmd/#".to_owned()]), "it subscribes anew");
    gateway.stop().await;
}

/// The clocks of a board that has booted in 1970.
#[derive(Debug, Default)]
struct Board {
    is_set: AtomicBool,
}

impl Dial for Board {
    fn read(&self) -> Reading {
        let now = Clock::new(ClockSource::Trusted).now();
        let wall_ms = if self.is_set.load(Ordering::SeqCst) { now.wall_ms } else { 10_000 };
        Reading { wall_ms, mono_ms: now.mono_ms }
    }

    fn boot_id(&self) -> Arc<str> {
        Arc::from("this boot")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_board_that_booted_in_1970_the_end_of_a_token_is_reckoned_anew_when_the_time_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let (file, mark) = (folder.path().join("token"), folder.path().join("mark"));
    put(&file, &token("first", 2));
    let cloud = FakeCloud::start(0, Temper::default()).await;
    let board = Arc::new(Board::default());
    let clock = Clock::reading(ClockSource::TimeService, board.clone()).marked_by(&mark);
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start_by(clock, dir, uplink(cloud.port, &file, "CUSTOM-JWT"));
    gateway.publish(0..10, Qos::AtLeastOnce).await;
    until("the token is good, whatever the time is here", || gateway.delivered() >= 10).await;
    put(&file, &token("second", 100_000));
    board.is_set.store(true, Ordering::SeqCst);
    std::fs::write(&mark, "").unwrap();
    // By the clock of 1970 there were decades left.
    until("the next one is shown before the first one ends", || cloud.seen.lock().unwrap().shown_again == 1).await;
    gateway.publish(10..20, Qos::AtLeastOnce).await;
    until("delivered", || gateway.delivered() >= 20).await;
    assert_eq!((arrived(&cloud).len(), cloud.seen.lock().unwrap().connects), (20, 1), "over one connection");
    gateway.stop().await;
}
