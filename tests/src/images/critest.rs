//! The images of cri-tools' conformance suite, as far as its specs look into them: the originals cannot be had everywhere.
//!
//! Names are those of the specs; the daemon's mirror rules send `registry.k8s.io`, `k8s.gcr.io` and `gcr.io` to folders of
//! these names in the local registry.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::image::{Built, Compression, Image};
use super::layer::{Layer, LayerBytes};
use super::push::Target;
use crate::command;

/// Registries that the specs name.
pub const REGISTRIES: [&str; 3] = ["registry.k8s.io", "k8s.gcr.io", "gcr.io"];
/// Of `test-image-digest`: critest is compiled with it, see scripts/tools.sh.
pub const DIGEST: &str = "sha256:649e8825879e81fcc06834abcd949eb40f07f63e4a34714c0360f83b594bfa49";

const E2E: &str = "registry.k8s.io/e2e-test-images";
const CRI_TOOLS: &str = "gcr.io/k8s-staging-cri-tools";
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\n\
    nobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUP: &str = "root:x:0:\nwww-data:x:33:\nusers:x:100:\nnogroup:x:65534:\n";

/// Applets that Debian's busybox lacks and the specs call.
const SCRIPTS: [(&str, &str); 2] =
    [("bin/pgrep", "#!/bin/sh\nexec pidof \"$1\"\n"), ("bin/ipcs", "#!/bin/sh\nexec cat /proc/sysvipc/shm\n")];
/// Named after what it stands for, because the specs look for a process of that name and for its command line.
const NGINX: &str = "#!/bin/sh\n\
    httpd -f -p \"${PORT:-80}\" -h /www &\n\
    trap 'kill $!; exit 0' TERM QUIT INT\n\
    echo $$ > /var/run/nginx.pid\n\
    wait\n";
const HTTPD: &str = "#!/bin/sh\necho 'httpd serves /www'\nexec httpd -f -p 80 -h /www\n";

/// What the images are made of.
#[derive(Debug)]
pub struct Catalogue {
    base: LayerBytes,
    nonewprivs: Vec<u8>,
}

impl Catalogue {
    /// With the dynamic busybox and the program of `nonewprivs` in `tools`.
    ///
    /// # Errors
    /// When one of them, or a library of busybox, cannot be read.
    pub fn new(tools: &Path) -> Result<Self> {
        let nonewprivs = tools.join("nonewprivs");
        let program = fs::read(&nonewprivs).with_context(|| format!("cannot read {}", nonewprivs.display()))?;
        Ok(Self { base: base(&tools.join("busybox"))?, nonewprivs: program })
    }

    /// Pushes every image.
    ///
    /// # Errors
    /// When the registry refuses.
    pub fn push(&self, target: &Target) -> Result<()> {
        let command = |words: &[&str]| json!({ "Cmd": words, "Env": [PATH] });
        let busybox = |config: Value| self.image(config, None);
        target.push(&format!("{E2E}/busybox"), "1.29-2", &busybox(command(&["sh"]))?)?;
        for (name, tag, port) in [("nginx", "1.14-2", 80), ("hostnet-nginx-amd64", "latest", 12003)] {
            let folder = if port == 80 { E2E } else { CRI_TOOLS };
            target.push(&format!("{folder}/{name}"), tag, &self.nginx(port)?)?;
        }
        target.push(&format!("{E2E}/httpd"), "2.4.39-4", &self.httpd()?)?;
        target.push(&format!("{E2E}/nonewprivs"), "1.3", &self.nonewprivs()?)?;
        for (name, user) in [
            ("test-image-user-uid", "1002"),
            ("test-image-user-username", "www-data"),
            ("test-image-user-uid-group", "1003:users"),
            ("test-image-user-username-group", "www-data:100"),
        ] {
            let config = json!({ "Cmd": ["sh"], "Env": [PATH], "User": user });
            target.push(&format!("{CRI_TOOLS}/{name}"), "latest", &busybox(config)?)?;
        }
        target.push(&format!("{CRI_TOOLS}/test-image-predefined-group"), "latest", &self.predefined_group()?)?;
        for (name, tags) in [
            ("test-image-latest", &["latest"][..]),
            ("test-image-tag", &["test", "all"]),
            ("test-image-1", &["latest"]),
            ("test-image-2", &["latest"]),
            ("test-image-3", &["latest"]),
            ("test-image-tags", &["1", "2", "3"]),
        ] {
            let image = self.labelled(name)?;
            tags.iter().try_for_each(|tag| target.push(&format!("{CRI_TOOLS}/{name}"), tag, &image).map(drop))?;
        }
        let digest = target.push(&format!("{CRI_TOOLS}/test-image-digest"), "latest", &digested()?)?;
        ensure!(digest == DIGEST, "test-image-digest has become {digest}; change DIGEST, which critest is built with");
        let pause = self.labelled("pause")?;
        for registry in ["registry.k8s.io", "k8s.gcr.io"] {
            target.push(&format!("{registry}/pause"), "3.9", &pause)?;
        }
        Ok(())
    }

    fn image(&self, config: Value, layer: Option<LayerBytes>) -> Result<Built> {
        Image::new([self.base.clone()].into_iter().chain(layer).collect(), config).build()
    }

    fn nginx(&self, port: u16) -> Result<Built> {
        let layer = Layer::new().file("usr/sbin/nginx", 0o755, NGINX.as_bytes())?.finish()?;
        let config = json!({
            "Entrypoint": ["/usr/sbin/nginx"],
            "Cmd": ["master process"],
            "Env": [PATH, format!("PORT={port}")],
            "ExposedPorts": { format!("{port}/tcp"): {} },
        });
        self.image(config, Some(layer))
    }

    fn httpd(&self) -> Result<Built> {
        let layer = Layer::new().file("usr/sbin/serve", 0o755, HTTPD.as_bytes())?.finish()?;
        let config = json!({ "Cmd": ["/usr/sbin/serve"], "Env": [PATH], "ExposedPorts": { "80/tcp": {} } });
        self.image(config, Some(layer))
    }

    /// A program with the set-user-ID bit that prints its effective user.
    fn nonewprivs(&self) -> Result<Built> {
        let layer = Layer::new().file("usr/bin/nonewprivs", 0o4755, &self.nonewprivs)?.finish()?;
        self.image(json!({ "Cmd": ["/usr/bin/nonewprivs"], "Env": [PATH], "User": "1000" }), Some(layer))
    }

    /// An image that differs from the others by its content, and rests when it is run.
    fn labelled(&self, name: &str) -> Result<Built> {
        let layer = Layer::new().file("name", 0o644, name.as_bytes())?.finish()?;
        self.image(json!({ "Cmd": ["sleep", "1000"], "Env": [PATH] }), Some(layer))
    }

    fn predefined_group(&self) -> Result<Built> {
        let passwd = format!("{PASSWD}default-user:x:1000:1000::/home/default-user:/bin/sh\n");
        let group = format!("{GROUP}default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n");
        let layer = Layer::new()
            .file("etc/passwd", 0o644, passwd.as_bytes())?
            .file("etc/group", 0o644, group.as_bytes())?
            .finish()?;
        self.image(json!({ "Cmd": ["sh"], "Env": [PATH], "User": "1000" }), Some(layer))
    }
}

/// Of one small file and without compression: its digest depends on nothing but this code.
fn digested() -> Result<Built> {
    let layer = Layer::new().file("name", 0o644, b"test-image-digest")?.finish()?;
    Image { compression: Compression::None, ..Image::new(vec![layer], json!({ "Cmd": ["/name"] })) }.build()
}

/// busybox with its libraries. The applets are hard links, so that a masked one leaves the others alone.
fn base(busybox: &Path) -> Result<LayerBytes> {
    let program = fs::read(busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    let listed = command::run(busybox, &["--list"], Duration::from_secs(10))?.success()?;
    let mut layer = Layer::new();
    for (path, mode) in [
        ("bin/", 0o755),
        ("etc/", 0o755),
        ("lib/", 0o755),
        ("lib64/", 0o755),
        ("proc/", 0o555),
        ("root/", 0o700),
        ("sys/", 0o555),
        ("tmp/", 0o1777),
        ("usr/", 0o755),
        ("usr/bin/", 0o755),
        ("usr/sbin/", 0o755),
        ("var/", 0o755),
        ("var/run/", 0o755),
        ("www/", 0o755),
    ] {
        layer = layer.directory(path, mode)?;
    }
    layer = layer
        .file("bin/busybox", 0o755, &program)?
        .file("etc/passwd", 0o644, PASSWD.as_bytes())?
        .file("etc/group", 0o644, GROUP.as_bytes())?
        .file("www/index.html", 0o644, b"served from a pod\n")?;
    for name in listed.stdout.lines().filter(|name| *name != "busybox") {
        layer = layer.hard_link(&format!("bin/{name}"), "bin/busybox")?;
    }
    for (path, script) in SCRIPTS {
        layer = layer.file(path, 0o755, script.as_bytes())?;
    }
    for library in libraries(busybox)? {
        let content = fs::read(&library).with_context(|| format!("cannot read {}", library.display()))?;
        let name = library.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let directory = if name.starts_with("ld-linux") { "lib64" } else { "lib" };
        layer = layer.file(&format!("{directory}/{name}"), 0o755, &content)?;
    }
    layer.finish()
}

/// Paths of what a program is linked with, by ldd.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = command::run("ldd", &[program], Duration::from_secs(10))?.success()?.stdout;
    Ok(listed.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::unwrap_used)]
    fn the_digest_is_what_critest_is_built_with() {
        assert_eq!(digested().unwrap().manifest.digest, DIGEST);
    }
}
