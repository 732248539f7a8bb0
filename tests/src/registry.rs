//! A real registry (Debian's docker-registry) on a port of 127.0.0.1 that the system chooses.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::certificates::Signed;
use crate::images::Target;
use crate::wait;

/// The user of a registry that asks.
pub const USER: &str = "captain";
/// That user's password.
pub const PASSWORD: &str = "open sesame";
/// `USER:crypt(PASSWORD)` with the lowest cost of bcrypt, the only scheme the registry takes.
const HTPASSWD: &str = "captain:$2y$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n";

/// A running registry; ends when dropped.
#[derive(Debug)]
pub struct Registry {
    /// "127.0.0.1:PORT"
    pub address: String,
    storage: PathBuf,
    credentials: Option<(String, String)>,
    child: Child,
}

impl Registry {
    /// Starts one that keeps everything below `directory`, open to all.
    ///
    /// # Errors
    /// When it does not start; its own words are in the message.
    pub fn start(directory: &Path) -> Result<Self> {
        Self::launch(directory, &directory.join("storage"), "", "")
    }

    /// Starts one that wants [`USER`] and [`PASSWORD`].
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with_password(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let file = directory.join("htpasswd");
        fs::write(&file, HTPASSWD)?;
        let auth = format!("auth: {{htpasswd: {{realm: bulkhead, path: {}}}}}\n", file.display());
        let mut registry = Self::launch(directory, &directory.join("storage"), "", &auth)?;
        registry.credentials = Some((USER.to_owned(), PASSWORD.to_owned()));
        Ok(registry)
    }

    /// Starts a second one on the storage of this one, with TLS; with `guarded`, only those are served that have a
    /// certificate of the same authority.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn with_tls(&self, directory: &Path, signed: &Signed, guarded: bool) -> Result<Self> {
        let mut tls = format!(", tls: {{certificate: {}, key: {}", signed.certificate.display(), signed.key.display());
        if guarded {
            tls.push_str(&format!(", clientcas: [{}]", signed.authority.display()));
        }
        Self::launch(directory, &self.storage, &(tls + "}"), "")
    }

    /// Starts a second one on the storage of this one, with lines of its own in the configuration.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn with_lines(&self, directory: &Path, lines: &str) -> Result<Self> {
        Self::launch(directory, &self.storage, "", lines)
    }

    fn launch(directory: &Path, storage: &Path, http: &str, more: &str) -> Result<Self> {
        let storage = storage.to_owned();
        fs::create_dir_all(directory)?;
        fs::create_dir_all(&storage)?;
        let text = format!(
            "version: 0.1\nlog: {{level: info, formatter: text}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: '127.0.0.1:0'{http}}}\n{more}",
            storage.display()
        );
        let config = directory.join("config.yml");
        fs::write(&config, text)?;
        let log = directory.join("registry.log");
        let output = fs::File::create(&log)?;
        // Its storage is thrown away, so it need not outlive this process, whatever ends that.
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "docker-registry", "serve"])
            .arg(&config)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("cannot start docker-registry")?;
        let address = wait::until("docker-registry to listen", Duration::from_secs(20), || {
            let said = fs::read_to_string(&log)?;
            if let Some(status) = child.try_wait()? {
                bail!("docker-registry ended with {status}:\n{said}");
            }
            Ok(listening(&said))
        })?;
        Ok(Self { address, storage, credentials: None, child })
    }

    /// Where to push.
    #[must_use]
    pub fn target(&self) -> Target {
        Target { address: self.address.clone(), credentials: self.credentials.clone() }
    }

    /// The full name of an image in it.
    #[must_use]
    pub fn image(&self, name: &str) -> String {
        let tag = if name.contains([':', '@']) { "" } else { ":1" };
        format!("{}/{name}{tag}", self.address)
    }

    /// The registry's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Turns around one byte of a blob, which it goes on serving under the old digest.
    ///
    /// # Errors
    /// When it has no such blob.
    pub fn corrupt(&self, digest: &str) -> Result<()> {
        let hex = digest.strip_prefix("sha256:").context("no sha256 digest")?;
        let path = self.storage.join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data");
        let mut bytes = fs::read(&path).with_context(|| format!("no blob at {}", path.display()))?;
        let middle = bytes.len() / 2;
        let byte = bytes.get_mut(middle).context("the blob is empty")?;
        *byte = !*byte;
        Ok(fs::write(&path, bytes)?)
    }
}

/// The address in the line that says so.
fn listening(log: &str) -> Option<String> {
    let rest = &log[log.find("listening on 127.0.0.1:")? + "listening on ".len()..];
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':')?;
    Some(rest[..end].to_owned())
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It has ended already when this fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
