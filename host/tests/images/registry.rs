//! A real registry: the distribution's `docker-registry` as a child process.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use tempfile::TempDir;

use super::fixture::{Blob, Built};

/// bcrypt of the password "abc".
const HTPASSWD: &str = "someone:$2a$06$If6bvum7DFjUnE9p2uDeDu0YHzrHM6tf.iqN8.yx.jNN1ILEf7h0i\n";

/// A running registry; killed, reaped and deleted on drop.
pub struct Registry {
    child: Child,
    host: String,
    authorization: Option<String>,
    directory: TempDir,
}

impl Registry {
    /// Starts one; `None`, having said why, where there is no such program.
    pub fn start(with_password: bool) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a directory");
        if !with_password {
            return Self::run(directory, "", None);
        }
        let file = directory.path().join("htpasswd");
        std::fs::write(&file, HTPASSWD).expect("htpasswd");
        let auth = format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", file.display());
        let header = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode("someone:abc"));
        Self::run(directory, &auth, Some(header))
    }

    /// The same contents on another port, with TLS.
    pub fn with_tls(mut self, certificate: &Path, key: &Path) -> Option<Self> {
        self.stop();
        let directory = std::mem::replace(&mut self.directory, tempfile::tempdir().expect("a directory"));
        let tls = format!("  tls: {{certificate: {}, key: {}}}\n", certificate.display(), key.display());
        Self::run(directory, &tls, None)
    }

    fn run(directory: TempDir, more: &str, authorization: Option<String>) -> Option<Self> {
        let (file, data) = (directory.path().join("config.yml"), directory.path().join("data"));
        let config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\nhttp:\n  addr: '127.0.0.1:0'\n{more}",
            data.display()
        );
        std::fs::write(&file, config).expect("configuration");
        let mut command = Command::new("docker-registry");
        let command = command.arg("serve").arg(file).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                super::skipped(&format!("docker-registry does not start: {error}"));
                return None;
            }
        };
        let host = listening(&mut child);
        Some(Self { child, host, authorization, directory })
    }

    fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// `127.0.0.1:port`
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Uploads an image under a tag.
    pub fn push(&self, repository: &str, tag: &str, image: &Built) {
        image.layers.iter().chain([&image.config]).for_each(|blob| self.push_blob(repository, blob));
        self.push_manifest(repository, tag, &image.manifest);
    }

    pub fn push_manifest(&self, repository: &str, tag: &str, manifest: &Blob) {
        let path = format!("/v2/{repository}/manifests/{tag}");
        let (status, _) = self.send("PUT", &path, &manifest.media_type, &manifest.bytes);
        assert_eq!(status, 201, "PUT {path}");
    }

    fn push_blob(&self, repository: &str, blob: &Blob) {
        let (status, location) = self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), "text/plain", b"");
        assert_eq!(status, 202, "upload to {repository}");
        let location = location.expect("an upload location");
        let path = location.split_once(&self.host).map_or(location.as_str(), |(_, path)| path);
        let separator = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{separator}digest={}", blob.digest());
        assert_eq!(self.send("PUT", &path, "application/octet-stream", &blob.bytes).0, 201, "PUT {path}");
    }

    /// One request; status and `Location`.
    fn send(&self, method: &str, path: &str, media_type: &str, body: &[u8]) -> (u16, Option<String>) {
        let mut stream = TcpStream::connect(&self.host).expect("the registry");
        let authorization = self.authorization.as_ref().map(|a| format!("Authorization: {a}\r\n")).unwrap_or_default();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{authorization}Content-Type: {media_type}\r\nContent-Length: {}\r\n\r\n",
            self.host,
            body.len()
        );
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).expect("request");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("answer");
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("status");
        let location = answer.lines().find_map(|l| l.strip_prefix("Location: ")).map(str::to_owned);
        (status, location)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Waits for the line that says which port it got, then keeps its log flowing.
fn listening(child: &mut Child) -> String {
    let mut log = BufReader::new(child.stderr.take().expect("its log"));
    let mut seen = String::new();
    loop {
        let mut line = String::new();
        assert!(log.read_line(&mut line).expect("its log") > 0, "docker-registry ended at once:\n{seen}");
        if let Some((_, rest)) = line.split_once("listening on ") {
            let host = rest.split(['"', ' ', '\n', ',']).next().unwrap_or_default().to_owned();
            std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
            return host;
        }
        seen.push_str(&line);
    }
}
