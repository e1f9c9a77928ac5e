//! Is the service manager told when the gateway is ready, and when it stops?
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop at the first surprise")]

use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Ends the gateway however the test ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself, which is what the test wants.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[test]
fn ready_comes_when_clients_are_served_and_stopping_before_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let notified = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    notified.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = dir.path().join("tidegate.toml");
    let state = dir.path().join("state");
    let text = format!(
        "[gateway]\nid = \"g7\"\nstate_dir = {state:?}\n[broker.listener.local]\nbind = \"127.0.0.1:{port}\"\n"
    );
    std::fs::write(&config, text).unwrap();
    let mut gateway = Running(
        Command::new(env!("CARGO_BIN_EXE_tidegate"))
            .args(["run", "--config"])
            .arg(&config)
            .env("NOTIFY_SOCKET", dir.path().join("notify"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let next = || {
        let mut buffer = [0; 1024];
        let length = notified.recv(&mut buffer).expect("nothing was told within a minute");
        String::from_utf8_lossy(buffer.get(..length).unwrap()).into_owned()
    };
    assert!(next().contains("READY=1"));
    std::net::TcpStream::connect(("127.0.0.1", port)).expect("READY came before the listener was bound");
    let id = gateway.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    while !next().contains("STOPPING=1") {}
    assert_eq!(gateway.0.wait().unwrap().code(), Some(0));
}
