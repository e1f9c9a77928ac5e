//! Too much of everything: sockets, slow ones, lengths that lie, topics, subscriptions, retained messages. Each has its
//! bound, and who has nothing to do with it does not notice.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::time::Instant;

use crate::bystander::Bystander;
use crate::common::gateway::{Gateway, folder};
use crate::common::raw::{Heard, RawClient, Version, packet};
use crate::common::{PATIENCE, turn, wait_until};
use crate::{gateway, is_long, resident_kib};

/// As many descriptors as the system lets us have, for us and for the gateway that we start.
fn raise_limits() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

#[test]
fn sockets_that_say_nothing_or_little_or_lie_are_closed_and_cost_little() {
    let _turn = turn();
    raise_limits();
    let folder = folder();
    let mut gateway = gateway(folder.path());
    let bystander = Bystander::started(gateway.port);
    let before = resident_kib(gateway.id());
    let count = if is_long() { 5_000 } else { 500 };
    let mut sockets = Vec::new();
    for number in 0..count {
        let mut socket = wait_until(PATIENCE, "the kernel takes a connection", || {
            TcpStream::connect(("127.0.0.1", gateway.port)).map_err(|error| error.to_string())
        });
        let said: &[u8] = match number % 4 {
            0 => b"",
            1 => b"\x10\x0D\0\x04MQ",
            2 => b"\x10\xFF\xFF\xFF\x7F",
            _ => b"\x10",
        };
        // Beyond its places the gateway closes at once.
        drop(socket.write_all(said));
        sockets.push(socket);
    }
    let most = resident_kib(gateway.id());
    // Those that are slow say a byte now and then, for as long as somebody listens: the time for CONNECT is not begun
    // anew by it.
    let started = Instant::now();
    let mut slow: Vec<TcpStream> =
        sockets.iter().skip(3).step_by(4).filter_map(|socket| socket.try_clone().ok()).collect();
    while started.elapsed() < PATIENCE {
        slow.retain_mut(|socket| socket.write_all(b"\x0D").is_ok());
        if slow.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(250));
    }
    assert!(slow.is_empty(), "{} slow sockets are still there after {:?}", slow.len(), started.elapsed());
    for mut socket in sockets {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        // Closed or reset, with a word before or without.
        match socket.read_to_end(&mut Vec::new()) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("a silent socket stays open"),
            _ => {}
        }
    }
    let mut late = RawClient::connected(gateway.port, Version::V5, "late");
    late.subscribe("x", 0);
    bystander.was_well(&format!("{count} sockets without a CONNECT"));
    println!("resident before {before} KiB, with {count} sockets {most} KiB, after {} KiB", resident_kib(gateway.id()));
    assert!(most < before + 30 * 1024, "{before} KiB before, {most} KiB with {count} sockets");
    assert_eq!(gateway.has_ended(), None);
}

#[test]
fn floods_of_topics_subscriptions_and_retained_messages_end_at_their_bounds() {
    let _turn = turn();
    raise_limits();
    let folder = folder();
    let mut gateway = gateway(folder.path());
    let bystander = Bystander::started(gateway.port);
    let mut reader = RawClient::connected(gateway.port, Version::V5, "reader-of-all");
    reader.subscribe("#", 0);
    let before = resident_kib(gateway.id());
    let scale = if is_long() { 20 } else { 1 };

    // Topics, each of them another, with somebody who gets them all.
    let topics = 5_000 * scale;
    let mut flooder = RawClient::connected(gateway.port, Version::V311, "topics");
    let mut heard = 0;
    for number in 0..topics {
        flooder.publish(format!("flood/{number}/{number}").as_bytes(), 0, 0, b"x");
        if number % 100 == 99 {
            // Not faster than it is read: what is measured is what topics cost, not what waits.
            heard += hear_all(&mut reader, &format!("flood/{number}/{number}"));
        }
    }
    println!("{topics} topics, {heard} messages heard: {}", growth(&gateway, before));

    // Subscriptions: at their bound each further one is refused, one by one or many in a packet.
    let mut subscribers = Vec::new();
    for client in 0..10 {
        let mut subscriber = RawClient::connected(gateway.port, Version::V5, &format!("subscriber-{client}"));
        let mut reasons = Vec::new();
        for part in 0..4 {
            let mut body = vec![0, 1, 0];
            for number in 0..100 {
                let filter = format!("bomb/{client}/{part}/{number}/+/+/+/+/+/+/+/+/#");
                body.extend(u16::try_from(filter.len()).unwrap().to_be_bytes());
                body.extend(filter.as_bytes());
                body.push(1);
            }
            subscriber.send(&packet(0x82, &body));
            let Heard::Packet(0x90, suback) = subscriber.hear(PATIENCE) else { panic!("no SUBACK") };
            reasons.extend_from_slice(&suback[3..]);
        }
        let granted = reasons.iter().filter(|reason| **reason == 1).count();
        assert_eq!(granted, 256, "the bound of one session");
        assert!(reasons[granted..].iter().all(|reason| *reason == 0x97), "refused with the reason");
        subscribers.push(subscriber);
    }
    println!("10 sessions of 256 filters: {}", growth(&gateway, before));
    // The deepest filter that a packet can bear, and its topic.
    let mut deep = RawClient::connected(gateway.port, Version::V5, "deep");
    let filter = "+/".repeat(32_767) + "#";
    let mut body = vec![0, 1, 0];
    body.extend(u16::try_from(filter.len()).unwrap().to_be_bytes());
    body.extend(filter.as_bytes());
    body.push(0);
    deep.send(&packet(0x82, &body));
    assert!(matches!(deep.hear(PATIENCE), Heard::Packet(0x90, _)), "granted or refused, with a word");
    flooder.publish("/".repeat(65_535).as_bytes(), 0, 0, b"x");
    println!("the deepest filter and a topic as deep: {}", growth(&gateway, before));
    drop(subscribers);
    drop(deep);

    // Retained messages: they lie in the store, and take a quarter of it at most.
    let kept = 1_000 * scale;
    let mut keeper = RawClient::connected(gateway.port, Version::V311, "keeper");
    for number in 1..=kept {
        let mut message = keeper.publish_bytes(
            format!("kept/{number}").as_bytes(),
            1,
            u16::try_from(number % 60_000 + 1).unwrap(),
            &[b'x'; 200],
        );
        message[0] |= 1;
        keeper.send(&message);
        if number % 50 == 0 {
            for _ in 0..50 {
                assert!(matches!(keeper.hear(PATIENCE), Heard::Packet(0x40, _)), "message {number}");
            }
        }
    }
    // Whoever asks for all of them gets as many as one subscription may bring.
    let mut asking = RawClient::connected(gateway.port, Version::V311, "asking");
    asking.subscribe("kept/#", 0);
    let mut brought = 0;
    asking.send(b"\xC0\0");
    loop {
        match asking.hear(PATIENCE) {
            Heard::Packet(0x31, _) => brought += 1,
            Heard::Packet(0xD0, _) => asking.send(b"\xC0\0"),
            other => panic!("{other:?} after {brought}"),
        }
        if brought == kept.min(1_000) {
            break;
        }
    }
    println!("{kept} retained messages, {brought} brought: {}", growth(&gateway, before));
    bystander.was_well("floods");
    let after = resident_kib(gateway.id());
    assert!(after < before + 48 * 1024, "{before} KiB before, {after} KiB after");
    assert_eq!(gateway.has_ended(), None);
    let log = gateway.log();
    assert!(!log.iter().any(|line| line.contains("panicked")), "{log:#?}");
}

#[test]
fn clients_whose_filters_all_match_one_topic_neither_stop_the_router_nor_fill_the_memory() {
    let _turn = turn();
    raise_limits();
    let folder = folder();
    let mut gateway = gateway(folder.path());
    let bystander = Bystander::started(gateway.port);
    let before = resident_kib(gateway.id());
    // Half of them with sessions that are kept, so that the store is asked for as many copies.
    let clients: u32 = if is_long() { 16 } else { 4 };
    let mut subscribers = Vec::new();
    for client in 0..clients {
        let name = format!("overlap-{client}");
        let mut subscriber = match client % 2 {
            0 => RawClient::connected(gateway.port, Version::V5, &name),
            _ => RawClient::resuming(gateway.port, Version::V5, &name, 60).0,
        };
        for part in 0..4 {
            let mut body = vec![0, 1, 0];
            for number in 0..64 {
                let bits = client * 256 + part * 64 + number;
                let levels: Vec<&str> = (0..12).map(|place| if bits >> place & 1 == 1 { "+" } else { "a" }).collect();
                let filter = levels.join("/");
                body.extend(u16::try_from(filter.len()).unwrap().to_be_bytes());
                body.extend(filter.as_bytes());
                body.push(1);
            }
            subscriber.send(&packet(0x82, &body));
            let Heard::Packet(0x90, _) = subscriber.hear(PATIENCE) else { panic!("no SUBACK") };
        }
        subscribers.push(subscriber);
    }
    let topic = ["a"; 12].join("/");
    let mut flooder = RawClient::connected(gateway.port, Version::V311, "overlap-flooder");
    let messages = if is_long() { 1_000 } else { 100 };
    for number in 1..=messages {
        flooder.publish(topic.as_bytes(), 1, number, &[b'x'; 100]);
        assert_eq!(flooder.hear(PATIENCE), Heard::Packet(0x40, number.to_be_bytes().to_vec()));
    }
    // Whoever reads gets as many copies of each as there are for one session, and no more.
    let reader = &mut subscribers[0];
    let mut copies = 0;
    while copies < 16 {
        let Heard::Packet(first, body) = reader.hear(PATIENCE) else { panic!("{copies} copies only") };
        assert_eq!((first & 0xF6, &body[2..2 + topic.len()]), (0x32, topic.as_bytes()));
        reader.send(&packet(0x40, &body[2 + topic.len()..4 + topic.len()]));
        copies += 1;
    }
    println!("{clients} times 256 overlapping filters, {messages} messages: {}", growth(&gateway, before));
    bystander.was_well("overlapping filters");
    let after = resident_kib(gateway.id());
    // What 256 filters cost, and the logs of the sixteen of them that are busy.
    let bound = 1024 * (32 + 8 * u64::from(clients));
    assert!(after < before + bound, "{before} KiB before, {after} KiB after");
    assert_eq!(gateway.has_ended(), None);
}

/// A socket that is read to its end while it is wanted, and what came is thrown away.
struct Drain {
    is_wanted: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Drain {
    fn of(client: &RawClient) -> Drain {
        let mut socket = client.socket();
        let is_wanted = Arc::new(AtomicBool::new(true));
        let wanted = is_wanted.clone();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 256 * 1024];
            while wanted.load(Ordering::Relaxed) {
                match socket.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(_) => {}
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                    Err(_) => return,
                }
            }
        });
        Drain { is_wanted, thread }
    }

    fn stopped(self) {
        self.is_wanted.store(false, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

/// Sends each of some long messages to each topic and waits for its acknowledgement; gives back the most that was resident.
fn flood(gateway: &Gateway, flooder: &mut RawClient, clients: u32, messages: u32) -> u64 {
    let body = vec![b'x'; 60_000];
    let mut most = 0;
    for client in 0..clients {
        for number in 0..256 {
            let topic = format!("flood/{client}/{number}");
            for message in 1..=messages {
                flooder.publish(topic.as_bytes(), 1, u16::try_from(message).unwrap(), &body);
            }
            for _ in 0..messages {
                let Heard::Packet(0x40, _) = flooder.hear(PATIENCE) else { panic!("no PUBACK for {topic}") };
            }
            if number % 16 == 0 {
                most = most.max(resident_kib(gateway.id()));
            }
        }
    }
    most.max(resident_kib(gateway.id()))
}

#[test]
fn what_passes_live_takes_no_more_than_its_bound_whether_it_is_read_or_not() {
    let _turn = turn();
    raise_limits();
    let folder = folder();
    let mut gateway = gateway(folder.path());
    let bystander = Bystander::started(gateway.port);
    let before = resident_kib(gateway.id());
    let clients: u32 = if is_long() { 15 } else { 3 };
    let enter = |round: &str| -> Vec<RawClient> {
        let subscriber = |client: u32| {
            let mut subscriber = RawClient::connected(gateway.port, Version::V5, &format!("{round}-{client}"));
            for part in 0..4 {
                let mut body = vec![0, 1, 0];
                for number in 0..64 {
                    let filter = format!("flood/{client}/{}", part * 64 + number);
                    body.extend(u16::try_from(filter.len()).unwrap().to_be_bytes());
                    body.extend(filter.as_bytes());
                    body.push(u8::from(round == "mute"));
                }
                subscriber.send(&packet(0x82, &body));
                let Heard::Packet(0x90, _) = subscriber.hear(PATIENCE) else { panic!("no SUBACK") };
            }
            subscriber
        };
        (0..clients).map(subscriber).collect()
    };
    // Of what is kept for a session nothing is lost, however slow it is.
    let (mut kept, _) = RawClient::resuming(gateway.port, Version::V5, "kept", 3600);
    kept.subscribe("flood/0/7", 1);
    let mut flooder = RawClient::connected(gateway.port, Version::V311, "live-flooder");
    let through = format!("{} filters, {} MB through them", clients * 256, clients * 256 * 8 * 60 / 1000);

    // Whoever reads all of it leaves nothing behind.
    let readers = enter("reading");
    let drains: Vec<Drain> = readers.iter().map(Drain::of).collect();
    let read = flood(&gateway, &mut flooder, clients, 8);
    println!("{through}, read: {read} KiB at most, {before} before, {}", growth(&gateway, before));
    drains.into_iter().for_each(Drain::stopped);
    // Whoever stops reading is thrown out for it.
    let unread = flood(&gateway, &mut flooder, clients, 8);
    println!("{through}, not read: {unread} KiB at most, {}", growth(&gateway, before));
    drop(readers);
    // Whoever reads and acknowledges nothing holds no more than his share.
    let mutes = enter("mute");
    let drains: Vec<Drain> = mutes.iter().map(Drain::of).collect();
    let mute = flood(&gateway, &mut flooder, clients, 8);
    println!("{through}, not acknowledged: {mute} KiB at most, {}", growth(&gateway, before));
    drains.into_iter().for_each(Drain::stopped);
    bystander.was_well("a flood of long messages");
    drop(kept);
    let (mut kept, is_present) = RawClient::resuming(gateway.port, Version::V5, "kept", 3600);
    assert!(is_present);
    for number in 0..3 * 8 {
        let Heard::Packet(first, body) = kept.hear(PATIENCE) else { panic!("{number} of 24 messages") };
        assert_eq!((first & 0xF6, body.len()), (0x32, 2 + 9 + 2 + 1 + 60_000));
        kept.send(&packet(0x40, &body[11..13]));
    }
    // `live_bytes` twice: for what lies with the router, and for what is in the hands of sessions; and what lies between.
    let bound = before + 2 * 32 * 1024 + 16 * 1024;
    let most = read.max(unread).max(mute);
    assert!(most < bound, "{before} KiB before, {most} KiB with the flood, {bound} is the bound");
    assert_eq!(gateway.has_ended(), None);
}

/// Reads until the message on `last`; says how many it were.
fn hear_all(reader: &mut RawClient, last: &str) -> u64 {
    let mut count = 0;
    loop {
        let Heard::Packet(_, body) = reader.hear(PATIENCE) else { panic!("nothing comes before {last}") };
        count += 1;
        let end = 2 + usize::from(u16::from_be_bytes([body[0], body[1]]));
        if &body[2..end] == last.as_bytes() {
            return count;
        }
    }
}

fn growth(gateway: &Gateway, before: u64) -> String {
    let now = resident_kib(gateway.id());
    format!("{now} KiB resident, {} more than before", i64::try_from(now).unwrap() - i64::try_from(before).unwrap())
}
