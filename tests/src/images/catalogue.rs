//! The images that suites, demo and benchmark use.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::image::{Blob, Built, Compression, Flavour, Image, Index};
use super::layer::{Layer, LayerBytes};
use super::{Target, busybox};

/// What the image `httpd` serves.
pub const PAGE: &str = "hello from a pod of its own\n";
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Images that share one busybox layer.
#[derive(Debug)]
pub struct Catalogue {
    base: LayerBytes,
}

/// The name of an image in the catalogue and how it is made.
type Recipe = (&'static str, fn(&Catalogue) -> Result<Image>);

/// Pushed by [`Catalogue::push`], all with the tag `1`.
const RECIPES: [Recipe; 8] = [
    ("busybox", |c| Ok(c.image(json!({ "Cmd": ["sh"] })))),
    ("httpd", Catalogue::httpd),
    ("user-name", |c| Ok(c.image(json!({ "Cmd": ["id"], "User": "app" })))),
    ("user-number", |c| Ok(c.image(json!({ "Cmd": ["id"], "User": "1234:5678" })))),
    ("user-unknown", |c| Ok(c.image(json!({ "Cmd": ["id"], "User": "nobody-knows" })))),
    ("entrypoint", Catalogue::entrypoint),
    ("zstd", |c| Ok(Image { compression: Compression::Zstd, ..c.image(json!({ "Cmd": ["sh"] })) })),
    ("docker", |c| Ok(Image { flavour: Flavour::Docker, ..c.image(json!({ "Cmd": ["sh"] })) })),
];

impl Catalogue {
    /// Over the busybox at `path`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn new(path: &Path) -> Result<Self> {
        Ok(Self { base: busybox::layer(path)? })
    }

    /// busybox with this `config`, and a PATH.
    #[must_use]
    pub fn image(&self, mut config: Value) -> Image {
        if config.get("Env").is_none() {
            config["Env"] = json!([PATH]);
        }
        Image::new(vec![self.base.clone()], config)
    }

    fn httpd(&self) -> Result<Image> {
        let page = Layer::new().directory("www/", 0o755)?.file("www/index.html", 0o644, PAGE.as_bytes())?.finish()?;
        let command = ["httpd", "-f", "-v", "-p", "80", "-h", "/www"];
        let mut image = self.image(json!({ "Cmd": command, "ExposedPorts": { "80/tcp": {} } }));
        image.layers.push(page);
        Ok(image)
    }

    fn entrypoint(&self) -> Result<Image> {
        let script = b"#!/bin/sh\necho \"entry $* in $(pwd) with $GREETING\"\n";
        let layer = Layer::new().directory("work/", 0o755)?.file("bin/entry", 0o755, script)?.finish()?;
        let mut image = self.image(json!({
            "Entrypoint": ["/bin/entry"],
            "Cmd": ["default", "words"],
            "WorkingDir": "/srv/made/on/start",
            "Env": [PATH, "GREETING=hello", "LEFT=alone"],
            "Labels": { "org.opencontainers.image.title": "entrypoint" },
        }));
        image.layers.push(layer);
        Ok(image)
    }

    /// Pushes every image, and `multi:1` (an index with arm64 and amd64), `arm64-only:1`, `not-gzip:1`, `wrong-diff:1`.
    ///
    /// # Errors
    /// When the registry refuses.
    pub fn push(&self, target: &Target) -> Result<()> {
        for (name, recipe) in RECIPES {
            let image = recipe(self).and_then(|image| image.build());
            target.push(name, "1", &image.with_context(|| format!("cannot build image {name}"))?)?;
        }
        let native = self.image(json!({ "Cmd": ["sh"] })).build()?;
        let foreign = Image { architecture: "arm64".into(), ..self.image(json!({ "Cmd": ["sh"] })) }.build()?;
        target.push_index("multi", "1", &Index { images: vec![foreign.clone(), native] })?;
        target.push_index("arm64-only", "1", &Index { images: vec![foreign] })?;
        target.push("not-gzip", "1", &self.not_gzip())?;
        target.push("wrong-diff", "1", &self.wrong_diff_id()?)?;
        Ok(())
    }

    /// Pushes what `make demo` shows.
    ///
    /// # Errors
    /// When the registry refuses.
    pub fn push_demo(&self, target: &Target) -> Result<()> {
        target.push("busybox", "1", &self.image(json!({ "Cmd": ["sh"] })).build()?)?;
        target.push("httpd", "1", &self.httpd()?.build()?)?;
        Ok(())
    }

    /// Says gzip and is something else.
    fn not_gzip(&self) -> Built {
        let image = self.image(json!({ "Cmd": ["sh"] }));
        let layer = Blob::new(image.layer_type(), b"this is no gzip stream, whatever the manifest says".repeat(100));
        image.with_blobs(&configuration(&[&layer.digest]), vec![layer])
    }

    /// The layer is whole, but not the one that the configuration promises.
    fn wrong_diff_id(&self) -> Result<Built> {
        let image = self.image(json!({ "Cmd": ["sh"] }));
        let mut built = image.build()?;
        let layers = built.blobs.split_off(1);
        let other = super::image::digest(b"another layer");
        Ok(image.with_blobs(&configuration(&[&other]), layers))
    }
}

fn configuration(diff_ids: &[&str]) -> Value {
    json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Cmd": ["sh"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
}

/// `layers` layers of `bytes` bytes each: files of 4 to 64 KiB that compress to about half, as programs do.
///
/// # Errors
/// When a compressor fails.
pub fn bulk(layers: usize, bytes: usize) -> Result<Built> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let contents = (0..layers).map(|number| bulk_layer(&mut random, number, bytes));
    Image::new(contents.collect::<Result<_>>()?, json!({ "Cmd": ["/bin/none"] })).build()
}

fn bulk_layer(random: &mut Random, number: usize, bytes: usize) -> Result<LayerBytes> {
    let mut layer = Layer::new().directory(&format!("layer{number}/"), 0o755)?;
    let mut left = bytes;
    let mut file = 0;
    while left > 0 {
        if file % 64 == 0 {
            layer = layer.directory(&format!("layer{number}/{:03}/", file / 64), 0o755)?;
        }
        let size = (4096 + random.below(60 * 1024)).min(left);
        let content = random.half_compressible(size);
        layer = layer.file(&format!("layer{number}/{:03}/{file:05}", file / 64), 0o644, &content)?;
        left -= size;
        file += 1;
    }
    layer.finish()
}

/// xorshift64*: the same image on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap_or(0)
    }

    fn half_compressible(&mut self, size: usize) -> Vec<u8> {
        let mut content = Vec::with_capacity(size + 16);
        while content.len() < size {
            content.extend_from_slice(&self.next().to_le_bytes());
            content.extend_from_slice(b"repeated");
        }
        content.truncate(size);
        content
    }
}
