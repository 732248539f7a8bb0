//! A token server for a real registry: gives tokens for pulling, by password or by OAuth2's refresh grant.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use crate::command;

/// The refresh token that it takes.
pub const REFRESH_TOKEN: &str = "refresh-me-if-you-can";
const SERVICE: &str = "harbour";

/// Serves until the process ends.
#[derive(Debug)]
pub struct TokenServer {
    address: String,
    directory: PathBuf,
}

impl TokenServer {
    /// Makes a key below `directory` and listens.
    ///
    /// # Errors
    /// When openssl fails or no port is free.
    pub fn start(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let (certificate, key) = (directory.join("token.pem"), directory.join("token.key"));
        let (out, keyout) = (certificate.to_string_lossy(), key.to_string_lossy());
        let request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tokens"];
        command::run(
            "openssl",
            &[&request[..], &["-keyout", &keyout, "-out", &out]].concat(),
            Duration::from_secs(60),
        )?
        .success()?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let shared = Arc::new(directory.to_owned());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let directory = shared.clone();
                // A client that goes away is its own affair.
                thread::spawn(move || serve(stream, &directory).ok());
            }
        });
        Ok(Self { address, directory: directory.to_owned() })
    }

    /// Lines for a registry's configuration that make it send its clients here.
    #[must_use]
    pub fn lines(&self) -> String {
        format!(
            "auth: {{token: {{realm: 'http://{}/token', service: {SERVICE}, issuer: {SERVICE}, rootcertbundle: {}}}}}\n",
            self.address,
            self.directory.join("token.pem").display()
        )
    }
}

fn serve(mut stream: TcpStream, directory: &Path) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first)?;
    for line in reader.by_ref().lines() {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let (status, answer) = match token(&first, &String::from_utf8_lossy(&body), directory) {
        Ok(token) => (200, json!({ "access_token": token })),
        Err(error) => (401, json!({ "errors": [{ "code": "UNAUTHORIZED", "message": format!("{error:#}") }] })),
    };
    let text = answer.to_string();
    let head = format!("HTTP/1.1 {status} Answer\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", text.len());
    Ok(stream.write_all(format!("{head}{text}").as_bytes())?)
}

/// A JSON web token that lets its holder pull, for who shows the refresh token.
fn token(first: &str, body: &str, directory: &Path) -> Result<String> {
    let form: HashMap<&str, String> =
        body.split('&').filter_map(|p| p.split_once('=')).map(|(k, v)| (k, decoded(v))).collect();
    let field = |name: &str| form.get(name).map(String::as_str).with_context(|| format!("the form has no {name}"));
    ensure!(first.starts_with("POST /token"), "only the refresh grant is served here");
    ensure!(field("grant_type")? == "refresh_token" && field("service")? == SERVICE, "another grant");
    ensure!(!field("client_id")?.is_empty(), "no client");
    ensure!(field("refresh_token")? == REFRESH_TOKEN, "the refresh token is not known");
    let scope: Vec<&str> = field("scope")?.split(':').collect();
    let [_, repository, _] = scope.as_slice() else { anyhow::bail!("a scope of another kind") };
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let pem = fs::read_to_string(directory.join("token.pem"))?;
    let der: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let header = json!({ "typ": "JWT", "alg": "RS256", "x5c": [der] });
    let claims = json!({
        "iss": SERVICE, "aud": SERVICE, "sub": "tests", "jti": "1", "iat": now, "nbf": now - 60, "exp": now + 600,
        "access": [{ "type": "repository", "name": repository, "actions": ["pull"] }],
    });
    let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&header), part(&claims));
    let work = tempfile::tempdir()?;
    let (input, output) = (work.path().join("signed"), work.path().join("signature"));
    fs::write(&input, &signed)?;
    let key = directory.join("token.key");
    let sign = ["dgst".as_ref(), "-sha256".as_ref(), "-sign".as_ref(), key.as_os_str()];
    let files = ["-out".as_ref(), output.as_os_str(), input.as_os_str()];
    command::run("openssl", &[&sign[..], &files[..]].concat(), Duration::from_secs(60))?.success()?;
    let signature = URL_SAFE_NO_PAD.encode(fs::read(&output)?);
    Ok(format!("{signed}.{signature}"))
}

/// Undoes percent-encoding.
fn decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.bytes());
    while let Some(byte) = rest.next() {
        let digits = |rest: &mut std::str::Bytes<'_>| Some([rest.next()?, rest.next()?]);
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let hex = digits(&mut rest).unwrap_or_default();
                bytes.push(u8::from_str_radix(&String::from_utf8_lossy(&hex), 16).unwrap_or(b'?'));
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
