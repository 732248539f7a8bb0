//! A registry that misbehaves: stands before a real one and spoils its answers.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::http::{self, Request, Response};

/// What goes wrong, with every request for a layer or configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Answered by this status.
    Status(u16),
    /// The connection ends in the middle of the body.
    CutOff,
    /// The connection stays, but nothing more comes after the middle of the body.
    Stall,
}

/// Serves until the process ends.
#[derive(Debug)]
pub struct FaultyRegistry {
    /// "127.0.0.1:PORT"
    pub address: String,
    /// Requests that were spoilt.
    spoilt: Arc<AtomicUsize>,
}

impl FaultyRegistry {
    /// In front of `upstream`.
    ///
    /// # Errors
    /// When no port is free.
    pub fn start(upstream: &str, fault: Fault) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let spoilt = Arc::new(AtomicUsize::new(0));
        let (upstream, count) = (upstream.to_owned(), spoilt.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (upstream, count) = (upstream.clone(), count.clone());
                // A client that goes away is its own affair.
                thread::spawn(move || serve(stream, &upstream, fault, &count).ok());
            }
        });
        Ok(Self { address, spoilt })
    }

    /// How many requests met the fault.
    #[must_use]
    pub fn spoilt(&self) -> usize {
        self.spoilt.load(Ordering::Relaxed)
    }
}

fn serve(mut stream: TcpStream, upstream: &str, fault: Fault, count: &AtomicUsize) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut parts = first.split_whitespace();
    let (method, path) = (parts.next().context("no method")?, parts.next().context("no path")?);
    let mut headers = Vec::new();
    for line in reader.lines() {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else { break };
        if ["accept", "authorization", "range"].contains(&name.to_ascii_lowercase().as_str()) {
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }
    let headers: Vec<(&str, String)> = headers.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    let response = http::send(upstream, &Request { method, path, headers: &headers, body: &[] })?;
    if !path.contains("/blobs/") {
        return answer(&mut stream, &response, response.body.len()).map(drop);
    }
    count.fetch_add(1, Ordering::Relaxed);
    match fault {
        Fault::Status(status) => {
            let body = format!("{{\"errors\":[{{\"code\":\"BROKEN\",\"message\":\"status {status} on purpose\"}}]}}");
            let response = Response { status, headers: vec![("retry-after".into(), "0".into())], body: body.into() };
            answer(&mut stream, &response, response.body.len())
        }
        Fault::CutOff => answer(&mut stream, &response, response.body.len() / 2),
        Fault::Stall => {
            answer(&mut stream, &response, response.body.len() / 2)?;
            thread::sleep(Duration::from_secs(60));
            Ok(())
        }
    }
}

/// Announces the whole body and sends the first `length` bytes of it.
fn answer(stream: &mut TcpStream, response: &Response, length: usize) -> Result<()> {
    let mut head = format!("HTTP/1.1 {} Answer\r\nConnection: close\r\n", response.status);
    let announced = response.header("content-length").map_or_else(|| response.body.len().to_string(), str::to_owned);
    head.push_str(&format!("Content-Length: {announced}\r\n"));
    for (name, value) in &response.headers {
        if !["connection", "content-length", "transfer-encoding"].contains(&name.as_str()) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    Ok(stream.write_all(&response.body[..length])?)
}
