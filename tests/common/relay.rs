//! A TCP relay: another address for a server, and a line that can be cut.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Passes connections on to a loopback port for the life of the test process.
pub struct Relay {
    /// Where it listens.
    pub port: u16,
    is_cut: Arc<AtomicBool>,
    is_mute: Arc<AtomicBool>,
}

impl Relay {
    /// Listens on `address` and passes on to 127.0.0.1:`target`.
    pub fn started(address: &str, target: u16) -> Relay {
        Relay::at((address, 0), target)
    }

    /// The same on a port of one's choice.
    pub fn at(address: (&str, u16), target: u16) -> Relay {
        let listener = TcpListener::bind(address).unwrap();
        let port = listener.local_addr().unwrap().port();
        let is_cut = Arc::new(AtomicBool::new(false));
        let is_mute = Arc::new(AtomicBool::new(false));
        let (cut, mute) = (is_cut.clone(), is_mute.clone());
        // It ends with the test process: nothing of it outlives that.
        thread::spawn(move || {
            for near in listener.incoming().filter_map(Result::ok) {
                let Ok(far) = TcpStream::connect(("127.0.0.1", target)) else { continue };
                let (near_back, far_back) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                let (there, back, mute) = (cut.clone(), cut.clone(), mute.clone());
                thread::spawn(move || pass(near, far, &there, &mute));
                thread::spawn(move || pass(far_back, near_back, &back, &AtomicBool::new(false)));
            }
        });
        Relay { port, is_cut, is_mute }
    }

    /// From now on nothing arrives, and nobody is told: bytes stay on the way, new connections are not answered.
    pub fn cut(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
    }

    /// From now on what is said to the server is lost, while what it says arrives.
    pub fn mute(&self) {
        self.is_mute.store(true, Ordering::SeqCst);
    }

    /// The line is back.
    pub fn restore(&self) {
        self.is_mute.store(false, Ordering::SeqCst);
        self.is_cut.store(false, Ordering::SeqCst);
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, is_cut: &AtomicBool, is_mute: &AtomicBool) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(count) = from.read(&mut buffer) {
        while is_cut.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(20));
        }
        if count > 0 && is_mute.load(Ordering::SeqCst) {
            continue;
        }
        if count == 0 || to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    to.shutdown(Shutdown::Both).ok();
    from.shutdown(Shutdown::Both).ok();
}
