//! Does a token in the place of the password get the gateway in, and is it replaced in time, without a loss?
//!
//! The other side judges the signatures with the system's openssl.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64ct::{Base64UrlUnpadded, Encoding as _};
use tidegate::clock::{Clock, ClockSource};
use tidegate::config::clouds::{AWS_IOT, AZURE_IOT_HUB};
use tidegate::config::{AuthorizerConfig, JwtConfig, Protocol, SasConfig, UplinkConfig};
use tidegate::message::Qos;
use tidegate::mqtt::ReasonCode;
use uplink_support::gateway::{Gateway, arrived, config, distinct, until};
use uplink_support::{FakeCloud, Temper};

mod uplink_support;

fn openssl(folder: &Path, arguments: &str) -> bool {
    let output = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output().unwrap();
    output.status.success()
}

fn jwt(key: PathBuf, lifetime: Duration) -> JwtConfig {
    let subject = Some("g7".to_owned());
    JwtConfig { key, key_id: None, audience: Some("plant".to_owned()), issuer: None, subject, lifetime }
}

fn claim(token: &str, name: &str) -> serde_json::Value {
    let body = token.split('.').nth(1).unwrap();
    let body: serde_json::Value = serde_json::from_slice(&Base64UrlUnpadded::decode_vec(body).unwrap()).unwrap();
    body[name].clone()
}

/// An ECDSA signature in a token is two numbers (RFC 7518, 3.4), openssl wants them in DER.
fn der(signature: &[u8]) -> Vec<u8> {
    let integer = |bytes: &[u8]| {
        let start = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len() - 1);
        let padding = if bytes[start] & 0x80 != 0 { vec![0] } else { Vec::new() };
        let body = [padding, bytes[start..].to_vec()].concat();
        [vec![2, u8::try_from(body.len()).unwrap()], body].concat()
    };
    let (r, s) = signature.split_at(32);
    let body = [integer(r), integer(s)].concat();
    [vec![0x30, u8::try_from(body.len()).unwrap()], body].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_are_signed_here_are_right_by_openssl_for_both_kinds_of_key() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    assert!(openssl(folder, "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out rsa.pem"));
    assert!(openssl(folder, "genrsa -traditional -out rsa1.pem 2048"));
    assert!(openssl(folder, "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out ec.pem"));
    for (key, algorithm) in [("rsa.pem", "RS256"), ("rsa1.pem", "RS256"), ("ec.pem", "ES256")] {
        let cloud = FakeCloud::start(0, Temper::default()).await;
        let jwt = jwt(folder.join(key), Duration::from_secs(3600));
        let username = Some("g7".to_owned());
        let gateway =
            Gateway::start(UplinkConfig { jwt: Some(jwt), username, ..config(cloud.port, Protocol::V311, None) });
        gateway.publish(0..3, Qos::AtLeastOnce).await;
        until("all settled", || gateway.delivered() >= 3).await;
        let (user, token) = cloud.seen.lock().unwrap().logins[0].clone();
        assert_eq!(user, "g7");
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let header = signed.split('.').next().unwrap();
        let header: serde_json::Value =
            serde_json::from_slice(&Base64UrlUnpadded::decode_vec(header).unwrap()).unwrap();
        assert_eq!(header["alg"], algorithm);
        assert_eq!((claim(&token, "aud"), claim(&token, "sub")), ("plant".into(), "g7".into()));
        assert_eq!(claim(&token, "exp").as_i64().unwrap() - claim(&token, "iat").as_i64().unwrap(), 3600);
        let signature = Base64UrlUnpadded::decode_vec(signature).unwrap();
        std::fs::write(folder.join("signed"), signed).unwrap();
        std::fs::write(folder.join("sig"), if algorithm == "ES256" { der(&signature) } else { signature }).unwrap();
        assert!(openssl(folder, &format!("pkey -in {key} -pubout -out {key}.pub")));
        assert!(openssl(folder, &format!("dgst -sha256 -verify {key}.pub -signature sig signed")), "{key}");
        std::fs::write(folder.join("signed"), format!("{signed}x")).unwrap();
        assert!(!openssl(folder, &format!("dgst -sha256 -verify {key}.pub -signature sig signed")), "a control");
        gateway.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_a_token_ends_the_gateway_comes_back_with_the_next_one_and_nothing_is_lost_or_doubled() {
    let folder = tempfile::tempdir().unwrap();
    assert!(openssl(folder.path(), "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out ec.pem"));
    for protocol in [Protocol::V5, Protocol::V311] {
        let cloud = FakeCloud::start(0, Temper::default()).await;
        let jwt = jwt(folder.path().join("ec.pem"), Duration::from_secs(2));
        let qos = Some(Qos::ExactlyOnce);
        let username = Some("g7".to_owned());
        let gateway = Gateway::start(UplinkConfig { jwt: Some(jwt), username, ..config(cloud.port, protocol, qos) });
        let mut sent = 0;
        // Messages come all the time, so that the changes happen among them.
        while cloud.seen.lock().unwrap().logins.len() < 3 {
            gateway.publish(sent..sent + 20, Qos::AtLeastOnce).await;
            sent += 20;
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(sent < 40_000, "it never came back: {}", gateway.reason());
        }
        until("all settled", || gateway.delivered() >= u64::try_from(sent).unwrap()).await;
        assert_eq!((arrived(&cloud).len(), distinct(&cloud)), (sent, sent), "{protocol:?}: each exactly once");
        gateway.stop().await;
        let seen = cloud.seen.lock().unwrap();
        let ends: Vec<i64> = seen.logins.iter().map(|(_, token)| claim(token, "exp").as_i64().unwrap()).collect();
        assert!(ends.windows(2).all(|pair| pair[0] < pair[1]), "each token is another: {ends:?}");
        assert_eq!(seen.farewells, seen.connects, "{protocol:?}: each connection ended in order");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_the_token_of_an_authoriser_of_aws_ends_the_gateway_comes_back_with_the_next_one_and_nothing_is_lost() {
    for protocol in [Protocol::V5, Protocol::V311] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        // Whoever renews it is always in time.
        let renew = || {
            let exp = Clock::new(ClockSource::Trusted).now().wall_ms / 1000 + 3;
            let body = serde_json::json!({ "exp": exp }).to_string();
            let beside = folder.path().join("next");
            std::fs::write(&beside, format!("e30.{}.c2ln\n", Base64UrlUnpadded::encode_string(body.as_bytes())))
                .unwrap();
            std::fs::rename(beside, &file).unwrap();
        };
        renew();
        let cloud = FakeCloud::start(0, Temper::default()).await;
        let (name, token_key) = (Some("gate".to_owned()), Some("t".to_owned()));
        let authorizer = AuthorizerConfig { name, token_key, token_file: Some(file.clone()), signature_file: None };
        let gateway = Gateway::start(UplinkConfig {
            profile: &AWS_IOT,
            authorizer: Some(authorizer),
            ..config(cloud.port, protocol, Some(Qos::AtLeastOnce))
        });
        let mut sent = 0;
        while cloud.seen.lock().unwrap().logins.len() < 2 {
            renew();
            gateway.publish(sent..sent + 5, Qos::AtLeastOnce).await;
            sent += 5;
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(sent < 40_000, "it never came back");
        }
        until("all settled", || gateway.delivered() >= u64::try_from(sent).unwrap()).await;
        assert_eq!((arrived(&cloud).len(), distinct(&cloud)), (sent, sent), "{protocol:?}: nothing was cut off");
        gateway.stop().await;
        let seen = cloud.seen.lock().unwrap();
        assert_eq!(seen.farewells, seen.connects, "{protocol:?}: each connection ended in order");
        for pair in seen.logins.windows(2) {
            assert!(pair[0].0.starts_with("?x-amz-customauthorizer-name=gate&t=e30."), "{}", pair[0].0);
            assert_ne!(pair[0].0, pair[1].0, "each token is another");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_ends_unrenewed_is_told_and_the_next_one_delivers_what_has_waited() {
    for protocol in [Protocol::V5, Protocol::V311] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "first\n").unwrap();
        let cloud = FakeCloud::start(0, Temper::default()).await;
        let (username, password_file) = (Some("g7".to_owned()), Some(file.clone()));
        let qos = Some(Qos::ExactlyOnce);
        let gateway = Gateway::start(UplinkConfig { username, password_file, ..config(cloud.port, protocol, qos) });
        gateway.publish(0..10, Qos::AtLeastOnce).await;
        until("delivered", || gateway.delivered() >= 10).await;
        // It ends: the cloud closes the connection, with messages under way, and lets nobody in any more.
        {
            let temper = &mut cloud.seen.lock().unwrap().temper;
            (temper.closes_after, temper.refuses_with) = (Some(1), Some(ReasonCode::BAD_USER_NAME_OR_PASSWORD));
        }
        gateway.publish(10..30, Qos::AtLeastOnce).await;
        until("it is told", || gateway.reason().contains("bad user name or password (0x86); check username")).await;
        std::fs::write(&file, "second\n").unwrap();
        {
            let temper = &mut cloud.seen.lock().unwrap().temper;
            (temper.closes_after, temper.refuses_with) = (None, None);
        }
        until("delivered", || gateway.delivered() >= 30).await;
        assert_eq!((arrived(&cloud).len(), distinct(&cloud)), (30, 30), "{protocol:?}: each exactly once");
        assert_eq!(cloud.seen.lock().unwrap().logins.last().unwrap().1, "second");
        gateway.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_somebody_else_renews_is_read_anew_before_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let now_s = Clock::new(ClockSource::Trusted).now().wall_ms / 1000;
    let token = |name: &str, exp: i64| {
        let body = serde_json::json!({"exp": exp, "name": name}).to_string();
        format!("e30.{}.c2ln", Base64UrlUnpadded::encode_string(body.as_bytes()))
    };
    std::fs::write(&file, format!("{}\n", token("first", now_s + 10))).unwrap();
    let cloud = FakeCloud::start(0, Temper::default()).await;
    let password_file = Some(file.clone());
    let gateway = Gateway::start(UplinkConfig { password_file, ..config(cloud.port, Protocol::V5, None) });
    until("logged in", || cloud.seen.lock().unwrap().logins.len() == 1).await;
    std::fs::write(&file, format!("{}\n", token("second", now_s + 100_000))).unwrap();
    until("logged in again", || cloud.seen.lock().unwrap().logins.len() == 2).await;
    let logins = cloud.seen.lock().unwrap().logins.clone();
    assert_eq!((claim(&logins[0].1, "name"), claim(&logins[1].1, "name")), ("first".into(), "second".into()));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_a_signature_of_azure_ends_the_gateway_comes_back_with_the_next_one_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("device.key");
    std::fs::write(&key, "c2VjcmV0IG9mIHRoZSBkZXZpY2U=\n").unwrap();
    let cloud = FakeCloud::start(0, Temper::default()).await;
    let sas = Some(SasConfig { key, derived_for: None, lifetime: Duration::from_secs(3) });
    let gateway = Gateway::start(UplinkConfig {
        profile: &AZURE_IOT_HUB,
        sas,
        ..config(cloud.port, Protocol::V311, Some(Qos::AtLeastOnce))
    });
    let mut sent = 0;
    while cloud.seen.lock().unwrap().logins.len() < 3 {
        gateway.publish(sent..sent + 5, Qos::AtLeastOnce).await;
        sent += 5;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(sent < 20_000, "it never came back");
    }
    until("all settled", || gateway.delivered() >= u64::try_from(sent).unwrap()).await;
    gateway.stop().await;
    let seen = cloud.seen.lock().unwrap();
    let bodies: std::collections::BTreeSet<&[u8]> = seen
        .got
        .iter()
        .filter(|publish| publish.topic.as_ref().unwrap().as_str().contains("&topic=f%2Fplant%2F"))
        .map(|publish| &publish.payload[..])
        .collect();
    assert_eq!(bodies.len(), sent);
    assert!(seen.got.iter().all(|publish| {
        !publish.retain && publish.topic.as_ref().unwrap().as_str().starts_with("devices/g7/messages/events/")
    }));
    assert_eq!(
        seen.wills[0],
        "devices/g7/messages/events/%24.ct=application%2Fjson&%24.ce=utf-8&topic=own%2Fg7%2Fstatus"
    );
    for pair in seen.logins.windows(2) {
        assert_eq!(pair[0].0, "127.0.0.1/g7/?api-version=2021-04-12");
        assert!(pair[0].1.starts_with("SharedAccessSignature sr=127.0.0.1%2Fdevices%2Fg7&sig="), "{}", pair[0].1);
        assert_ne!(pair[0].1, pair[1].1);
    }
    assert_eq!(seen.farewells, seen.connects, "each connection ended in order");
}
