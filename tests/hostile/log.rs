//! What clients call themselves and their topics stands in our log, and must not write it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::common::gateway::folder;
use crate::common::raw::packet;
use crate::common::{PATIENCE, turn, wait_until};
use crate::gateway;

fn text(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

#[test]
fn no_client_writes_lines_or_fields_of_our_log() {
    let _turn = turn();
    let folder = folder();
    let mut gateway = gateway(folder.path());
    let forged = "1970-01-01T00:00:00Z ERROR The store is lost";
    let name =
        format!("a\n{forged}\r\n{forged}\u{1b}[2J\u{7}\u{85}{forged}\u{2028}{forged}\" reason=none \u{202e}dnetsil");
    let mut body = text(b"MQTT");
    body.extend(b"\x05\x02\0\0\0");
    body.extend(text(name.as_bytes()));
    let mut stream = TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // A packet that there is not: the client is named with its fault.
    stream.write_all(&[packet(0x10, &body), b"\0\0".to_vec()].concat()).unwrap();
    drop(stream.read_to_end(&mut Vec::new()));
    let line = wait_until(PATIENCE, "the fault of this client is logged", || {
        let found = gateway.log().into_iter().find(|line| line.contains("A client broke the protocol"));
        found.ok_or_else(|| "it is not".to_owned())
    });
    assert!(line.contains(r"a\n1970-01-01T00:00:00Z ERROR"), "{line}");
    assert!(line.contains(r#"lost\" reason=none"#), "{line}");
    // Text that is no UTF-8 never gets so far: it is refused with the address of its sender.
    for bytes in [&b"\x10\x0E\0\x04MQTT\x04\x02\0\0\0\x02\xFF\n"[..], b"\x10\x0E\0\x04MQTT\x04\x02\0\0\0\x02a\0"] {
        let mut stream = TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(bytes).unwrap();
        drop(stream.read_to_end(&mut Vec::new()));
    }
    let log = gateway.log();
    for line in &log {
        assert!(!line.starts_with("1970"), "{line:?}");
        let is_ours = |character: char| !character.is_control() && !matches!(character, '\u{2028}' | '\u{202e}');
        assert!(line.chars().all(is_ours), "{line:?}");
    }
    assert_eq!(gateway.has_ended(), None);
}
