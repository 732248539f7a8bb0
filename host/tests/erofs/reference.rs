//! Their side: umoci, GNU tar, and fsck.erofs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use super::image::{Built, Place};

/// Why the tests of this file cannot run here, if they cannot.
pub fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("mounting and owners need root".into());
    }
    let tools = ["umoci", "tar", "fsck.erofs", "mount", "losetup"];
    let missing: Vec<_> = tools.into_iter().filter(|tool| !in_path(tool)).collect();
    if !missing.is_empty() {
        return Some(format!("not in PATH: {}", missing.join(", ")));
    }
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    (!filesystems.contains("erofs")).then(|| "this kernel has no EROFS".into())
}

fn in_path(tool: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|directory| directory.join(tool).exists())
}

pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

/// What GNU tar makes of one layer.
pub fn gnu_tar(place: &Place, layer: &[u8]) -> PathBuf {
    let (archive, root) = (place.path("gnu.tar"), place.path("gnu"));
    fs::write(&archive, layer).unwrap();
    fs::create_dir(&root).unwrap();
    let options = ["--xattrs", "--xattrs-include=*", "--numeric-owner", "--same-owner", "--delay-directory-restore"];
    run(Command::new("tar").args(options).arg("-xpf").arg(&archive).arg("-C").arg(&root));
    root
}

/// What umoci makes of the layers, by way of an image layout.
pub fn umoci(place: &Place, layers: &[Vec<u8>]) -> PathBuf {
    let layout = place.path("layout");
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let layers: Vec<_> = layers.iter().map(|layer| blob(&layout, layer)).collect();
    let diff_ids: Vec<_> = layers.iter().map(|(digest, _)| digest.clone()).collect();
    let config = serde_json::json!({"architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let descriptor = |kind: &str, (digest, len): &(String, usize)| serde_json::json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": len});
    let config = blob(&layout, config.to_string().as_bytes());
    let manifest = serde_json::json!({"schemaVersion": 2, "config": descriptor("config.v1+json", &config),
        "layers": layers.iter().map(|layer| descriptor("layer.v1.tar", layer)).collect::<Vec<_>>()});
    let mut manifest = descriptor("manifest.v1+json", &blob(&layout, manifest.to_string().as_bytes()));
    manifest["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": "t"});
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let bundle = place.path("bundle");
    let image = format!("{}:t", layout.to_str().unwrap());
    run(Command::new("umoci").args(["unpack", "--image", &image]).arg(&bundle));
    bundle.join("rootfs")
}

fn blob(layout: &Path, bytes: &[u8]) -> (String, usize) {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(layout.join("blobs/sha256").join(&hex), bytes).unwrap();
    (format!("sha256:{hex}"), bytes.len())
}

/// fsck.erofs over the whole image, contents read too.
pub fn fsck(place: &Place, built: &Built) {
    let mut command = Command::new("fsck.erofs");
    for i in 0..built.blob_lens.len() {
        command.arg(format!("--device={}", place.path(&format!("blob-{i}")).to_str().unwrap()));
    }
    let text = run(command.args(["-d3", "--extract"]).arg(place.path("metadata")));
    assert!(text.contains("No errors found"), "fsck.erofs: {text}");
}
