//! The broker of the crate `mqtt5`. Whoever comes by name and password is let in without a look (the test's own clients);
//! enhanced authentication is judged by the crate's own SCRAM-SHA-256 or JWT. What happens is told, a line of JSON each.
//!
//!     mqtt5-broker PORT FOLDER scram USER PASSWORD ITERATIONS
//!     mqtt5-broker PORT FOLDER jwt KEY.DER        (an ECDSA key, P-256, uncompressed point)

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use mqtt5::broker::auth::{AuthProvider, AuthResult, EnhancedAuthResult};
use mqtt5::broker::auth_mechanisms::{
    JwtAuthProvider, ScramCredentialStore, ScramCredentials, ScramSha256AuthProvider,
};
use mqtt5::broker::config::StorageConfig;
use mqtt5::broker::{BrokerConfig, BrokerEventHandler, ClientConnectEvent, ClientDisconnectEvent, MqttBroker};
use mqtt5::broker::{ClientPublishEvent, PublishAction};
use mqtt5::error::Result;
use mqtt5::packet::connect::ConnectPacket;
use serde_json::json;

type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

struct One {
    user: String,
    credentials: ScramCredentials,
}

impl ScramCredentialStore for One {
    fn get_credentials(&self, user: &str) -> Option<ScramCredentials> {
        (user == self.user).then(|| self.credentials.clone())
    }
}

struct Door(Box<dyn AuthProvider>);

fn told(step: &str, client: &str, result: Result<EnhancedAuthResult>) -> Result<EnhancedAuthResult> {
    if let Ok(result) = &result {
        let (status, user) = (format!("{:?}", result.status), &result.user_id);
        println!("{}", json!({"what": step, "client": client, "status": status, "user": user}));
    }
    result
}

impl AuthProvider for Door {
    fn authenticate<'a>(&'a self, connect: &'a ConnectPacket, _from: SocketAddr) -> Later<'a, Result<AuthResult>> {
        println!("{}", json!({"what": "plain", "client": connect.client_id}));
        Box::pin(async { Ok(AuthResult::success()) })
    }

    fn authorize_publish<'a>(&'a self, _: &str, _: Option<&'a str>, _: &'a str) -> Later<'a, bool> {
        Box::pin(async { true })
    }

    fn authorize_subscribe<'a>(&'a self, _: &str, _: Option<&'a str>, _: &'a str) -> Later<'a, bool> {
        Box::pin(async { true })
    }

    fn supports_enhanced_auth(&self) -> bool {
        true
    }

    fn authenticate_enhanced<'a>(
        &'a self,
        method: &'a str,
        data: Option<&'a [u8]>,
        client: &'a str,
    ) -> Later<'a, Result<EnhancedAuthResult>> {
        Box::pin(async move { told("login", client, self.0.authenticate_enhanced(method, data, client).await) })
    }

    fn reauthenticate<'a>(
        &'a self,
        method: &'a str,
        data: Option<&'a [u8]>,
        client: &'a str,
        user: Option<&'a str>,
    ) -> Later<'a, Result<EnhancedAuthResult>> {
        Box::pin(async move { told("again", client, self.0.reauthenticate(method, data, client, user).await) })
    }
}

struct Teller;

impl BrokerEventHandler for Teller {
    fn on_client_connect<'a>(&'a self, event: ClientConnectEvent) -> Later<'a, ()> {
        println!("{}", json!({"what": "up", "client": &*event.client_id, "user": event.user_id.as_deref()}));
        Box::pin(async {})
    }

    fn on_client_publish<'a>(&'a self, event: ClientPublishEvent) -> Later<'a, PublishAction> {
        let payload = String::from_utf8_lossy(&event.payload);
        println!("{}", json!({"what": "message", "topic": &*event.topic, "payload": payload}));
        Box::pin(async { PublishAction::Continue })
    }

    fn on_client_disconnect<'a>(&'a self, event: ClientDisconnectEvent) -> Later<'a, ()> {
        let reason = event.reason as u8;
        println!("{}", json!({"what": "down", "client": &*event.client_id, "reason": reason}));
        Box::pin(async {})
    }
}

#[tokio::main]
async fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (port, folder, door): (_, _, Box<dyn AuthProvider>) = match words[..] {
        [port, folder, "scram", user, password, iterations] => {
            let iterations = iterations.parse().expect("a number of iterations");
            let credentials = ScramCredentials::from_password_with_iterations(password, iterations).expect("chance");
            let store = One { user: user.to_owned(), credentials };
            (port, folder, Box::new(ScramSha256AuthProvider::new(Arc::new(store))))
        }
        [port, folder, "jwt", key] => {
            let key = std::fs::read(key).expect("the key");
            (port, folder, Box::new(JwtAuthProvider::with_es256_public_key(key).with_clock_skew(0)))
        }
        _ => panic!("wrong usage: see the head of this file"),
    };
    let address: SocketAddr = format!("127.0.0.1:{port}").parse().expect("a port");
    // By default it announces one byte more than MQTT has (3.2.2.3.6), which paho does not take.
    let config = BrokerConfig::new()
        .with_max_packet_size(1 << 20)
        .with_bind_address(address)
        .with_storage(StorageConfig::new().with_base_dir(PathBuf::from(folder)))
        .with_sys_topics_enabled(false)
        .with_event_handler(Arc::new(Teller));
    let broker = MqttBroker::with_config(config).await.expect("the broker listens");
    broker.with_auth_provider(Arc::new(Door(door))).run().await.expect("the broker runs");
}
