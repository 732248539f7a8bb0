//! The host's static busybox as the content of images.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::layer::{Layer, LayerBytes};
use crate::command;
use crate::suite::Skipped;

const PASSWD: &[u8] =
    b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:an app:/home/app:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n";
const GROUP: &[u8] = b"root:x:0:\napp:x:1000:\nextra:x:2000:app\nmore:x:2001:app,nobody\nnogroup:x:65534:\n";

/// `BUSYBOX`, else where Debian's busybox-static puts it.
///
/// # Errors
/// [`Skipped`] when there is none, or one that needs libraries.
pub fn find() -> Result<PathBuf, Skipped> {
    let path = env::var_os("BUSYBOX").map_or_else(|| PathBuf::from("/bin/busybox"), PathBuf::from);
    match fs::read(&path) {
        Ok(program) if is_static(&program) => Ok(path),
        Ok(_) => Err(Skipped(format!("{} is not linked statically (package busybox-static has one)", path.display()))),
        Err(error) => Err(Skipped(format!("cannot read {}: {error} (package busybox-static)", path.display()))),
    }
}

/// A program without an interpreter in its program headers.
fn is_static(program: &[u8]) -> bool {
    const PT_INTERP: [u8; 4] = [3, 0, 0, 0];
    let word = |at: usize| program.get(at..at + 2).map(|b| usize::from(b[0]) | usize::from(b[1]) << 8);
    let Some(offset) = program.get(32..40).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes) else {
        return false;
    };
    let (Ok(offset), Some(size), Some(count)) = (usize::try_from(offset), word(54), word(56)) else { return false };
    program.starts_with(b"\x7fELF")
        && (0..count).all(|header| program.get(offset + header * size..).is_some_and(|b| !b.starts_with(&PT_INTERP)))
}

/// A root file system: busybox, a link for each of its commands, users and the usual directories.
///
/// # Errors
/// When busybox cannot be read or run.
pub fn layer(busybox: &Path) -> Result<LayerBytes> {
    let program = fs::read(busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    let listed = command::run(busybox, &["--list"], Duration::from_secs(10))?.success()?;
    let mut layer = Layer::new();
    for (path, mode) in [
        ("bin/", 0o755),
        ("dev/", 0o755),
        ("etc/", 0o755),
        ("home/", 0o755),
        ("proc/", 0o555),
        ("root/", 0o700),
        ("sys/", 0o555),
        ("tmp/", 0o1777),
        ("usr/", 0o755),
        ("var/", 0o755),
    ] {
        layer = layer.directory(path, mode)?;
    }
    layer = layer
        .file("bin/busybox", 0o755, &program)?
        .file("etc/passwd", 0o644, PASSWD)?
        .file("etc/group", 0o644, GROUP)?
        .owned_directory("home/app/", 0o755, (1000, 1000))?;
    for name in listed.stdout.lines().filter(|name| *name != "busybox") {
        layer = layer.link(&format!("bin/{name}"), "busybox")?;
    }
    layer.finish()
}
