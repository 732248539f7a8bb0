//! A small HTTP/1.1 client: one request per connection, enough for a registry on this machine and for pods.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

const LIMIT: Duration = Duration::from_secs(30);

/// An answer, read to its end.
#[derive(Debug)]
pub struct Response {
    /// 200, 404, ...
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// Decoded.
    pub body: Vec<u8>,
}

impl Response {
    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// What is asked.
#[derive(Debug, Default)]
pub struct Request<'a> {
    /// "GET"
    pub method: &'a str,
    /// With query.
    pub path: &'a str,
    /// Beside Host, Connection and Content-Length.
    pub headers: &'a [(&'a str, String)],
    /// Sent with its length.
    pub body: &'a [u8],
}

/// Sends a request to `address` ("127.0.0.1:80") and reads the answer.
///
/// # Errors
/// When the server cannot be reached or does not speak HTTP; a bad status is none.
pub fn send(address: &str, request: &Request<'_>) -> Result<Response> {
    let what = || format!("{} http://{address}{}", request.method, request.path);
    let target: SocketAddr = address.to_socket_addrs().with_context(what)?.next().with_context(what)?;
    let mut stream = TcpStream::connect_timeout(&target, LIMIT).with_context(what)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let mut head = format!(
        "{} {} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n",
        request.method,
        request.path,
        request.body.len()
    );
    for (name, value) in request.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).with_context(what)?;
    stream.write_all(request.body).with_context(what)?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).with_context(what)?;
    parse(&bytes, request.method == "HEAD").with_context(what)
}

/// `GET http://address/path`.
///
/// # Errors
/// As [`send`].
pub fn get(address: &str, path: &str) -> Result<Response> {
    send(address, &Request { method: "GET", path, ..Request::default() })
}

fn parse(bytes: &[u8], head_only: bool) -> Result<Response> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").context("the answer has no end of headers")?;
    let head = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("the answer has no status")?.parse()?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut response = Response { status, headers, body: bytes[end + 4..].to_vec() };
    if head_only {
        response.body.clear();
    } else if response.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        response.body = unchunk(&response.body)?;
    } else if let Some(length) = response.header("content-length").map(str::parse::<usize>).transpose()? {
        ensure!(response.body.len() == length, "the body has {} bytes instead of {length}", response.body.len());
    }
    Ok(response)
}

fn unchunk(mut bytes: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = bytes.windows(2).position(|window| window == b"\r\n").context("a chunk has no length")?;
        let length = usize::from_str_radix(std::str::from_utf8(&bytes[..end])?.trim(), 16)?;
        if length == 0 {
            return Ok(body);
        }
        let from = end + 2;
        let Some(chunk) = bytes.get(from..from + length) else { bail!("a chunk ends early") };
        body.extend_from_slice(chunk);
        bytes = bytes.get(from + length + 2..).context("a chunk has no end")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_joined() -> Result<()> {
        let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        let response = parse(answer, false)?;
        assert_eq!((response.status, response.text().as_str()), (200, "abcde"));
        Ok(())
    }

    #[test]
    fn a_short_body_is_an_error() {
        assert!(parse(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", false).is_err());
    }
}
