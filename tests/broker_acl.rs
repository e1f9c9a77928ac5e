//! Does everybody get in who may, and nobody else; and does each do what he may, and nothing else? Packet by packet.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod broker_support;

use broker_support::*;
use bytes::Bytes;
use tidegate::broker::{BrokerLimits, hash_password};
use tidegate::message::Qos;
use tidegate::mqtt::{Connack, Connect, Encoder, Packet, ReasonCode, Version};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

/// Quick to compare: Mosquitto's own kind. The password is "password".
const HASH: &str =
    "$6$sciLdDvkbNzZGyxc$vSCyJWMhfPP5g3OHN9d83RrkQ4MSd8CmlJPWIIgY+nhdDo3X3pHz3KfPuGup4CPqX71AS0Sp131rcl8LF6Ag2w==";

fn user(name: &str, lists: &str) -> String {
    format!("[broker.user.{name}]\npassword_hash = \"{HASH}\"\n{lists}\n")
}

async fn gateway(text: &str) -> Gateway {
    Gateway::start_with(Options { access: access(text), ..Options::default() }).await
}

fn login(version: Version, client_id: &str, user: &str, password: &str) -> Connect {
    Connect {
        username: Some(user.to_owned()),
        password: Some(Bytes::from(password.to_owned())),
        ..connect(version, client_id)
    }
}

fn kept(connect: Connect) -> Connect {
    let session_expiry_s = (connect.version == Version::V5).then_some(3600);
    Connect { clean_start: false, session_expiry_s, ..connect }
}

async fn enter(gateway: &Gateway, connect: Connect) -> Client {
    let (client, connack) = Client::with(gateway, connect).await;
    assert_eq!(connack.reason, ReasonCode::SUCCESS);
    client
}

async fn refused(gateway: &Gateway, connect: Connect) -> ReasonCode {
    let (mut client, Connack { reason, .. }) = Client::with(gateway, connect).await;
    if reason.is_failure() {
        client.closed().await;
    }
    reason
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_not_let_in_is_told_why_in_his_version() {
    let gateway = gateway(&user("plc7", "publish = [\"plant/plc7\"]")).await;
    for version in VERSIONS {
        let (none, wrong) = (ReasonCode::NOT_AUTHORIZED, ReasonCode::BAD_USER_NAME_OR_PASSWORD);
        let nameless = Connect { password: Some(Bytes::from("password")), username: None, ..connect(version, "a") };
        let passwordless = Connect { username: Some("plc7".to_owned()), ..connect(version, "a") };
        let willing = |topic| Connect { will: Some(will(topic, "x")), ..login(version, "a", "plc7", "password") };
        assert_eq!(refused(&gateway, connect(version, "a")).await, none);
        if version == Version::V5 {
            assert_eq!(refused(&gateway, nameless).await, none);
        }
        assert_eq!(refused(&gateway, passwordless).await, wrong);
        assert_eq!(refused(&gateway, login(version, "a", "plc7", "Password")).await, wrong);
        assert_eq!(refused(&gateway, login(version, "a", "plc8", "password")).await, wrong);
        assert_eq!(refused(&gateway, login(version, "a", "", "password")).await, none);
        assert_eq!(refused(&gateway, willing("plant/plc8")).await, none);
        assert_eq!(refused(&gateway, willing("plant/plc7")).await, ReasonCode::SUCCESS);
        assert_eq!(refused(&gateway, login(version, "b", "plc7", "password")).await, ReasonCode::SUCCESS);
    }
    assert!(gateway.session_counter("refused_logins") >= 12);
    gateway.ended().await;
}

/// All that is said on a connection that sends `connect` and, in the same write, what only a client may that was let in.
async fn last_words(gateway: &Gateway, connect: Connect) -> Vec<u8> {
    let version = connect.version;
    let mut client = Client::raw(gateway, version).await;
    let properties: &[u8] = if version == Version::V5 { b"\0" } else { b"" };
    let mut behind = b"\x82".to_vec();
    behind.push(u8::try_from(6 + properties.len()).unwrap());
    behind.extend([b"\0\x01", properties, b"\0\x01#\0", b"\x30"].concat());
    behind.push(u8::try_from(4 + properties.len()).unwrap());
    behind.extend([b"\0\x01t", properties, b"x", b"\xC0\0"].concat());
    let mut output = bytes::BytesMut::new();
    Encoder::new(version).encode(&Packet::Connect(Box::new(connect)), &mut output).unwrap();
    output.extend_from_slice(&behind);
    client.write(&output).await;
    let mut said = Vec::new();
    // Closed or reset: what was said counts.
    let _end = timeout(PATIENCE, client.stream.read_to_end(&mut said)).await.expect("the connection stays open");
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_login_is_told_so_in_one_connack_and_nothing_of_it_is_done() {
    let all = "publish = [\"#\"]\nsubscribe = [\"#\"]";
    let gateway = gateway(&(user("plc", all) + &user("hmi", all))).await;
    let mut hmi = enter(&gateway, login(Version::V5, "hmi", "hmi", "password")).await;
    hmi.subscribe("#", Qos::AtLeastOnce).await;
    for version in VERSIONS {
        let id = format!("plc{version:?}");
        let right = login(version, &id, "plc", "password");
        let mut there = enter(&gateway, kept(right.clone())).await;
        there.subscribe("plant", Qos::AtLeastOnce).await;
        let (wrong, none): (&[u8], &[u8]) = match version {
            Version::V5 => (b"\x20\x03\0\x86\0", b"\x20\x03\0\x87\0"),
            Version::V311 => (b"\x20\x02\0\x04", b"\x20\x02\0\x05"),
        };
        // Under the id of a client that is there, with a clean start and a will: neither is for whoever cannot log in.
        let willing = |connect: Connect| Connect { will: Some(will("plant/will", "x")), ..connect };
        let thief = willing(login(version, &id, "plc", "Password"));
        let away = async |gateway: &Gateway| {
            assert_eq!(last_words(gateway, thief.clone()).await, wrong, "{version:?}");
            assert_eq!(last_words(gateway, willing(connect(version, &id))).await, none, "{version:?}");
        };
        away(&gateway).await;
        there.hears_nothing().await;
        there.disconnect().await;
        away(&gateway).await;
        if version == Version::V5 {
            let method = Connect { auth_method: Some("SCRAM-SHA-1".to_owned()), ..right.clone() };
            assert_eq!(last_words(&gateway, method).await, b"\x20\x03\0\x8C\0", "whatever else it brings");
        }
        assert!(!hmi.publish("plant", Qos::AtLeastOnce, "waits").await.is_failure());
        assert_eq!(text(&hmi.take().await), "waits", "nothing of what stood behind, and no will");
        let (mut there, connack) = Client::with(&gateway, kept(right)).await;
        assert!(connack.session_present, "no clean start by whoever cannot log in");
        assert_eq!(text(&there.take().await), "waits");
        there.disconnect().await;
    }
    hmi.hears_nothing().await;
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_for_want_of_rights_leaves_the_connection_and_the_packet_id() {
    let limits = BrokerLimits { inbound: 4, inbound_tolerated: 4, ..BrokerLimits::default() };
    let access = |lists: &str| access(&user("plc", lists));
    let options =
        Options { access: access("publish = [\"mine\"]\nsubscribe = [\"mine\"]"), limits, ..Options::default() };
    let gateway = Gateway::start_with(options).await;
    let mut plc = enter(&gateway, login(Version::V5, "plc", "plc", "password")).await;
    for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
        for _ in 0..3 {
            assert_eq!(plc.publish_packet(publish("other", qos, 7, "no")).await, ReasonCode::NOT_AUTHORIZED);
            let reason = plc.publish_packet(publish("mine", qos, 7, "yes")).await;
            assert!(!reason.is_failure(), "the same id, at once: {reason:?}");
        }
    }
    // Nor does it count against Receive Maximum.
    for _ in 0..20 {
        assert_eq!(plc.publish_packet(publish("other", Qos::ExactlyOnce, 8, "no")).await, ReasonCode::NOT_AUTHORIZED);
    }
    assert_eq!(plc.subscribe("other", Qos::ExactlyOnce).await, ReasonCode::NOT_AUTHORIZED);
    assert_eq!(plc.unsubscribe("other").await, [ReasonCode::NO_SUBSCRIPTION_EXISTED], "nothing was made");
    assert_eq!(plc.subscribe("mine", Qos::AtLeastOnce).await, ReasonCode(1));
    // A subscription that is made again with rights that were taken away meanwhile.
    gateway.access.change(&access("publish = [\"mine\"]"));
    assert_eq!(plc.subscribe("mine", Qos::AtLeastOnce).await, ReasonCode::NOT_AUTHORIZED);
    plc.publish("mine", Qos::AtLeastOnce, "unheard").await;
    plc.hears_nothing().await;
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_may_not_be_published_is_never_acknowledged_as_taken() {
    let lists = "publish = [\"plant/{client_id}/#\"]\nsubscribe = [\"#\"]";
    let gateway = gateway(&(user("plc", lists) + &user("hmi", "subscribe = [\"#\"]"))).await;
    let mut hmi = enter(&gateway, login(Version::V5, "hmi", "hmi", "password")).await;
    hmi.subscribe("#", Qos::ExactlyOnce).await;

    let mut plc = enter(&gateway, login(Version::V5, "c5", "plc", "password")).await;
    for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
        assert_eq!(plc.publish("plant/c6/level", qos, "no").await, ReasonCode::NOT_AUTHORIZED);
        assert!(!plc.publish("plant/c5/level", qos, "yes").await.is_failure(), "and it goes on");
        assert_eq!(text(&hmi.take().await), "yes");
    }
    plc.publish("plant/c6/level", Qos::AtMostOnce, "no").await;
    plc.publish("plant/c5/level", Qos::AtMostOnce, "last").await;
    assert_eq!(text(&hmi.take().await), "last", "at QoS 0 it is dropped, and the connection stays");
    assert_eq!(gateway.session_counter("denied"), 3);

    // Version 3.1.1 has no word for it: the connection is closed rather than the message acknowledged.
    for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
        let mut old = enter(&gateway, login(Version::V311, "c4", "plc", "password")).await;
        old.publish("plant/c6/level", Qos::AtMostOnce, "no").await;
        assert!(!old.publish("plant/c4/level", qos, "yes").await.is_failure());
        assert_eq!(text(&hmi.take().await), "yes");
        old.send(Packet::Publish(publish("plant/c6/level", qos, 99, "no"))).await;
        old.closed().await;
    }
    hmi.hears_nothing().await;
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_is_refused_where_nothing_of_it_may_be_heard_and_wider_ones_bring_what_may() {
    let lists = "subscribe = [\"plant/press/#\"]\ndeny = [\"plant/press/secret\"]";
    let gateway = gateway(&(user("hmi", lists) + &user("plc", "publish = [\"#\"]"))).await;
    let mut plc = enter(&gateway, login(Version::V5, "plc", "plc", "password")).await;
    assert!(!plc.publish_packet(retain(publish("plant/lathe", Qos::AtLeastOnce, 1, "kept"))).await.is_failure());
    for version in VERSIONS {
        let mut hmi = enter(&gateway, login(version, &format!("hmi{version:?}"), "hmi", "password")).await;
        let no = if version == Version::V5 { ReasonCode::NOT_AUTHORIZED } else { ReasonCode::UNSPECIFIED_ERROR };
        let subscriptions = ["plant/lathe", "plant/press/secret", "$SYS/#", "$share/g/#", "plant/press/#"];
        let subscriptions = subscriptions.map(|filter| subscription(filter, Qos::AtLeastOnce)).to_vec();
        assert_eq!(hmi.subscribe_all(subscriptions, None).await, [no, no, no, no, ReasonCode(1)]);
        assert_eq!(hmi.subscribe("#", Qos::ExactlyOnce).await, ReasonCode(2), "of all that is asked for, a part");
        for (topic, payload) in [("plant/lathe", "no"), ("plant/press/secret", "no"), ("plant/press/level", "yes")] {
            for qos in [Qos::AtMostOnce, Qos::ExactlyOnce] {
                plc.publish(topic, qos, payload).await;
            }
        }
        for _ in 0..4 {
            assert_eq!(text(&hmi.take().await), "yes", "live and retained messages");
        }
        hmi.hears_nothing().await;
    }
    gateway.ended().await;
}

fn retain(mut publish: tidegate::mqtt::Publish) -> tidegate::mqtt::Publish {
    publish.retain = true;
    publish
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_rights_are_in_force_for_who_is_connected_and_for_what_waits() {
    let may = |publish: &str, subscribe: &str| {
        user("plc", &format!("publish = [{publish}]")) + &user("hmi", &format!("subscribe = [{subscribe}]"))
    };
    let gateway = gateway(&may("\"a\", \"b\"", "\"a\", \"b\"")).await;
    for version in VERSIONS {
        gateway.access.change(&access(&may("\"a\", \"b\"", "\"a\", \"b\"")));
        let mut plc = enter(&gateway, login(Version::V5, "plc", "plc", "password")).await;
        let away = kept(login(version, &format!("away{version:?}"), "hmi", "password"));
        let mut hmi = enter(&gateway, away.clone()).await;
        hmi.subscribe("#", Qos::ExactlyOnce).await;
        drop(hmi);
        until("it is still there", || gateway.session_counter("connected") == 1).await;
        let mut here = enter(&gateway, login(version, "here", "hmi", "password")).await;
        here.subscribe("#", Qos::AtLeastOnce).await;
        for (topic, qos) in [("a", Qos::AtLeastOnce), ("b", Qos::ExactlyOnce), ("a", Qos::ExactlyOnce)] {
            assert!(!plc.publish(topic, qos, topic).await.is_failure());
            assert_eq!(text(&here.take().await), topic);
        }

        gateway.access.change(&access(&may("\"a\"", "\"b\"")));
        assert_eq!(plc.publish("b", Qos::AtLeastOnce, "late").await, ReasonCode::NOT_AUTHORIZED);
        assert!(!plc.publish("a", Qos::AtLeastOnce, "a").await.is_failure());
        here.hears_nothing().await;
        let mut hmi = enter(&gateway, away).await;
        assert_eq!(text(&hmi.take().await), "b", "of what waited only what may be heard now");
        hmi.hears_nothing().await;
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_no_user_any_more_or_has_another_password_is_disconnected_and_the_others_stay() {
    let gateway = gateway(&(user("gone", "") + &user("stays", "publish = [\"a\"]") + &user("renewed", ""))).await;
    for version in VERSIONS {
        gateway
            .access
            .change(&access(&(user("gone", "") + &user("stays", "publish = [\"a\"]") + &user("renewed", ""))));
        let mut gone = enter(&gateway, login(version, "gone", "gone", "password")).await;
        let mut stays = enter(&gateway, login(version, "stays", "stays", "password")).await;
        let mut renewed = enter(&gateway, login(version, "renewed", "renewed", "password")).await;
        let other = hash_password(b"other").unwrap();
        let other = format!("[broker.user.renewed]\npassword_hash = \"{other}\"\n");
        gateway.access.change(&access(&(user("stays", "publish = [\"a\"]") + &other)));
        let told = (version == Version::V5).then_some(ReasonCode::NOT_AUTHORIZED);
        assert_eq!(gone.closed().await, told);
        assert_eq!(renewed.closed().await, told);
        assert!(!stays.publish("a", Qos::AtLeastOnce, "x").await.is_failure());
        let wrong = ReasonCode::BAD_USER_NAME_OR_PASSWORD;
        assert_eq!(refused(&gateway, login(version, "gone", "gone", "password")).await, wrong);
        assert_eq!(refused(&gateway, login(version, "renewed", "renewed", "password")).await, wrong, "not remembered");
        assert_eq!(refused(&gateway, login(version, "renewed", "renewed", "other")).await, ReasonCode::SUCCESS);
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_user_ends_the_time_without_names_unless_others_are_provided_for() {
    let gateway = Gateway::start().await;
    let mut nobody = enter(&gateway, connect(Version::V5, "nobody")).await;
    assert!(!nobody.publish("a", Qos::AtLeastOnce, "x").await.is_failure());
    gateway.access.change(&access(&(user("plc", "") + "[broker.anonymous]\npublish = [\"a\"]\n")));
    assert_eq!(nobody.publish("b", Qos::AtLeastOnce, "x").await, ReasonCode::NOT_AUTHORIZED);
    assert!(!nobody.publish("a", Qos::AtLeastOnce, "x").await.is_failure(), "it stays, with what others may do");
    gateway.access.change(&access(&user("plc", "")));
    assert_eq!(nobody.closed().await, Some(ReasonCode::NOT_AUTHORIZED));
    assert_eq!(refused(&gateway, connect(Version::V5, "nobody")).await, ReasonCode::NOT_AUTHORIZED);
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_id_is_its_users_and_passes_on_when_he_is_no_more() {
    let lists = "publish = [\"#\"]\nsubscribe = [\"#\"]";
    let both = user("anna", lists) + &user("ben", lists);
    let gateway = gateway(&both).await;
    for version in VERSIONS {
        gateway.access.change(&access(&both));
        let id = format!("hmi{version:?}");
        let mine = |name: &str| kept(login(version, &id, name, "password"));
        let mut anna = enter(&gateway, mine("anna")).await;
        anna.subscribe("plant", Qos::AtLeastOnce).await;
        for connect in [mine("ben"), login(version, &id, "ben", "password")] {
            assert_eq!(refused(&gateway, connect).await, ReasonCode::NOT_AUTHORIZED);
        }
        anna.hears_nothing().await;
        drop(anna);
        until("she is still there", || gateway.session_counter("connected") == 0).await;
        for connect in [mine("ben"), login(version, &id, "ben", "password")] {
            assert_eq!(refused(&gateway, connect).await, ReasonCode::NOT_AUTHORIZED, "nor while she is away");
        }
        let mut plc = enter(&gateway, login(version, "plc", "ben", "password")).await;
        assert!(!plc.publish("plant", Qos::AtLeastOnce, "for whoever it is").await.is_failure());
        drop(plc);
        // The same person under another name: what was acknowledged is not lost with the name.
        gateway.access.change(&access(&user("ben", lists)));
        let (mut ben, connack) = Client::with(&gateway, mine("ben")).await;
        assert!(connack.session_present);
        assert_eq!(text(&ben.take().await), "for whoever it is");
        drop(ben);
        gateway.access.change(&access(&both));
        until("he is still there", || gateway.session_counter("connected") == 0).await;
        assert_eq!(refused(&gateway, mine("anna")).await, ReasonCode::NOT_AUTHORIZED, "now it is his");
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_session_of_a_client_without_a_name_passes_to_the_user_whom_it_gets() {
    let gateway = Gateway::start().await;
    let mut before = enter(&gateway, kept(connect(Version::V5, "node-red"))).await;
    before.subscribe("plant", Qos::AtLeastOnce).await;
    drop(before);
    until("it is still there", || gateway.session_counter("connected") == 0).await;
    let mut plc = enter(&gateway, connect(Version::V5, "plc")).await;
    plc.publish("plant", Qos::AtLeastOnce, "waits").await;
    gateway.access.change(&access(&(user("flows", "subscribe = [\"#\"]") + "[broker.anonymous]\npublish = [\"#\"]\n")));
    let mut after = enter(&gateway, kept(login(Version::V5, "node-red", "flows", "password"))).await;
    assert_eq!(text(&after.take().await), "waits");
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guessing_is_slowed_for_one_name_and_nobody_else() {
    let gateway = gateway(&(user("plc7", "") + &user("plc8", ""))).await;
    let mut clients = 0;
    let too_often = loop {
        match refused(&gateway, login(Version::V5, "thief", "plc7", &format!("guess{clients}"))).await {
            ReasonCode::BAD_USER_NAME_OR_PASSWORD => clients += 1,
            other => break other,
        }
        assert!(clients < 50, "guessing goes on and on");
    };
    assert_eq!(too_often, ReasonCode::CONNECTION_RATE_EXCEEDED);
    assert!(clients >= 9, "a few slips are free, not {clients}");
    let right = login(Version::V5, "thief", "plc7", "password");
    assert_eq!(
        refused(&gateway, right).await,
        ReasonCode::CONNECTION_RATE_EXCEEDED,
        "also of a right guess nothing is told"
    );
    let old = login(Version::V311, "thief", "plc7", "password");
    assert_eq!(refused(&gateway, old).await, ReasonCode::SERVER_UNAVAILABLE);
    assert_eq!(refused(&gateway, login(Version::V5, "c", "plc8", "password")).await, ReasonCode::SUCCESS);
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_message_and_no_known_client_waits_while_a_password_is_compared() {
    // One comparison takes a second or more.
    let slow = "$argon2id$v=19$m=131072,t=6,p=1$c29tZXNhbHQ$jacJHQ+PoBstB/ZoVNk8re3s1yzVABZujceGiwVNJnk";
    let slow = format!("[broker.user.slow]\npassword_hash = \"{slow}\"\n");
    let gateway = gateway(&(user("plc", "publish = [\"#\"]") + &slow)).await;
    let mut plc = enter(&gateway, login(Version::V5, "plc", "plc", "password")).await;
    let mut waiting = Vec::new();
    for number in 0..3 {
        let mut client = Client::raw(&gateway, Version::V5).await;
        let connect = login(Version::V5, &format!("slow{number}"), "slow", &format!("guess{number}"));
        client.send(Packet::Connect(Box::new(connect))).await;
        waiting.push(client);
    }
    for _ in 0..50 {
        assert!(!plc.publish("plant", Qos::AtLeastOnce, "x").await.is_failure());
    }
    let known = enter(&gateway, login(Version::V5, "known", "plc", "password")).await;
    assert_eq!(
        gateway.session_counter("refused_logins"),
        0,
        "three passwords were compared before one message was done"
    );
    drop(known);
    for mut client in waiting {
        match client.next().await {
            Packet::Connack(connack) => assert_eq!(connack.reason, ReasonCode::BAD_USER_NAME_OR_PASSWORD),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(gateway.session_counter("refused_logins"), 3);
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_will_is_published_when_its_client_may_do_so_at_that_time() {
    let may = |topics: &str| user("plc", &format!("publish = [{topics}]")) + &user("hmi", "subscribe = [\"#\"]");
    let gateway = gateway(&may("\"wills/a\", \"wills/b\"")).await;
    let mut hmi = enter(&gateway, login(Version::V5, "hmi", "hmi", "password")).await;
    hmi.subscribe("wills/+", Qos::AtLeastOnce).await;
    let dying = |topic: &str| Connect {
        will: Some(will(&format!("wills/{topic}"), topic)),
        ..login(Version::V5, topic, "plc", "password")
    };
    let (a, mut b) = (enter(&gateway, dying("a")).await, enter(&gateway, dying("b")).await);
    gateway.access.change(&access(&may("\"wills/b\"")));
    assert_eq!(b.publish("wills/a", Qos::AtLeastOnce, "x").await, ReasonCode::NOT_AUTHORIZED);
    drop(a);
    until("a is still there", || gateway.session_counter("connected") == 2).await;
    drop(b);
    assert_eq!(text(&hmi.take().await), "b", "that of a is not published");
    gateway.ended().await;
}
