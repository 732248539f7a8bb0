//! A registry of our own in a thread: honest by default, as hostile as a test asks, and it counts.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use super::fixture::Content;

/// What a client asked for.
#[derive(Debug, Clone)]
pub struct Request {
    pub path: String,
    pub headers: HashMap<String, String>,
    /// How often this path was asked for before.
    pub before: usize,
}

/// What it gets.
pub enum Reply {
    /// As it should be.
    Honest,
    /// These bytes with this status and these headers.
    Whole(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// The honest answer, cut off after so many bytes of the body.
    Cut(usize),
    /// The honest answer, silent after so many bytes of the body.
    Silent(usize),
    /// The honest answer once [`Server::release`] is called.
    Held,
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

struct Shared {
    content: Content,
    handler: Box<Handler>,
    asked: Mutex<Vec<Request>>,
    /// Set by release and at the end.
    released: Mutex<bool>,
    release: Condvar,
    stop: AtomicBool,
}

/// The server; its threads end with it.
pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `content`, unless `handler` has another idea.
    pub fn start(content: Content, handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let shared = Arc::new(Shared {
            content,
            handler: Box::new(handler),
            asked: Mutex::default(),
            released: Mutex::default(),
            release: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let serving = shared.clone();
        let thread = std::thread::spawn(move || {
            let mut clients = Vec::new();
            for stream in listener.incoming() {
                if serving.stop.load(Ordering::SeqCst) {
                    break;
                }
                let (Ok(stream), shared) = (stream, serving.clone()) else { continue };
                clients.push(std::thread::spawn(move || drop(serve(&shared, &stream))));
            }
            clients.into_iter().for_each(|client| client.join().expect("a client's thread"));
        });
        Self { address, shared, thread: Some(thread) }
    }

    /// Honest.
    pub fn honest(content: Content) -> Self {
        Self::start(content, |_| Reply::Honest)
    }

    /// `127.0.0.1:port`
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Requests whose path contains `part`.
    pub fn asked(&self, part: &str) -> Vec<Request> {
        self.shared.asked.lock().unwrap().iter().filter(|r| r.path.contains(part)).cloned().collect()
    }

    /// Lets held requests go on.
    pub fn release(&self) {
        *self.shared.released.lock().unwrap() = true;
        self.shared.release.notify_all();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.release();
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server's thread");
        }
    }
}

impl Shared {
    fn wait(&self) {
        let released = self.released.lock().unwrap();
        drop(self.release.wait_while(released, |released| !*released).unwrap());
    }
}

fn serve(shared: &Shared, stream: &TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.take(64 << 10));
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line)?;
    let line = String::from_utf8_lossy(&line).into_owned();
    // A TLS greeting ends here too.
    let Some(path) = line.strip_prefix("GET ").and_then(|rest| rest.split(' ').next()) else { return Ok(()) };
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.to_owned()),
            None => break,
        };
    }
    let request = {
        let mut asked = shared.asked.lock().unwrap();
        let before = asked.iter().filter(|r| r.path == path).count();
        let request = Request { path: path.to_owned(), headers, before };
        asked.push(request.clone());
        request
    };
    answer(shared, stream, &request)
}

fn answer(shared: &Shared, mut stream: &TcpStream, request: &Request) -> std::io::Result<()> {
    let reply = (shared.handler)(request);
    if let Reply::Whole(status, headers, body) = &reply {
        head(stream, *status, body.len(), headers)?;
        return stream.write_all(body);
    }
    let Some(blob) = shared.content.0.get(&request.path) else {
        let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
        head(stream, 404, body.len(), &[])?;
        return stream.write_all(body);
    };
    let from = request.headers.get("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let body = &blob.bytes[from.unwrap_or(0)..];
    if matches!(reply, Reply::Held) {
        shared.wait();
    }
    let headers = [("Content-Type", blob.media_type.clone()), ("Docker-Content-Digest", blob.digest().to_string())];
    head(stream, if from.is_some() { 206 } else { 200 }, body.len(), &headers)?;
    match reply {
        Reply::Cut(len) => stream.write_all(&body[..len.min(body.len())]),
        Reply::Silent(len) => {
            stream.write_all(&body[..len.min(body.len())])?;
            shared.wait();
            Ok(())
        }
        _ => stream.write_all(body),
    }
}

fn head(mut stream: &TcpStream, status: u16, len: usize, headers: &[(&str, String)]) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {status} Status\r\nConnection: close\r\nContent-Length: {len}\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all((head + "\r\n").as_bytes())
}
