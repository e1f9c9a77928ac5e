//! An HTTP proxy for CONNECT, with or without a password; says what it was asked for.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use base64ct::{Base64, Encoding as _};

/// Listens for the life of the test process.
pub struct Proxy {
    /// Where.
    pub port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// Wants this user and password, where there is one; whatever is asked for, it goes to 127.0.0.1:`target`, because a
    /// proxy looks names up that its clients have never heard of. Without a target it refuses with 403.
    pub fn started(login: Option<(&str, &str)>, target: Option<u16>) -> Proxy {
        let wanted = login.map(|(user, password)| {
            format!("Proxy-Authorization: Basic {}", Base64::encode_string(format!("{user}:{password}").as_bytes()))
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let shared = asked.clone();
        thread::spawn(move || {
            for near in listener.incoming().filter_map(Result::ok) {
                let (wanted, shared) = (wanted.clone(), shared.clone());
                thread::spawn(move || serve(near, wanted.as_deref(), target, &shared));
            }
        });
        Proxy { port, asked }
    }

    /// The request lines that it let through.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve(mut near: TcpStream, wanted: Option<&str>, target: Option<u16>, asked: &Mutex<Vec<String>>) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && head.len() < 8192 && near.read_exact(&mut byte).is_ok() {
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut refuse = |status: &str| {
        near.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes()).ok();
    };
    if wanted.is_some_and(|wanted| !head.lines().any(|line| line == wanted)) {
        return refuse("407 Proxy Authentication Required");
    }
    let Some(target) = target else { return refuse("403 Forbidden") };
    let Ok(far) = TcpStream::connect(("127.0.0.1", target)) else { return refuse("502 Bad Gateway") };
    asked.lock().unwrap().push(head.lines().next().unwrap_or_default().to_owned());
    near.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").ok();
    let (near_back, far_back) = (near.try_clone().unwrap(), far.try_clone().unwrap());
    let back = thread::spawn(move || pass(far_back, near_back));
    pass(near, far);
    back.join().ok();
}

fn pass(mut from: TcpStream, mut to: TcpStream) {
    std::io::copy(&mut from, &mut to).ok();
    to.shutdown(std::net::Shutdown::Both).ok();
}
