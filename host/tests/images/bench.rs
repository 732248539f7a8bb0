//! How long a pull takes beside the usual tools. By hand:
//! `cargo test --release --test images -- --ignored --nocapture measure`

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::fixture::{Recipe, noise, tar};
use super::registry::Registry;
use super::{Place, pull, skipped};

const LAYERS: u64 = 5;
const LAYER_BYTES: usize = 40 << 20;
const RUNS: usize = 5;

/// A layer of files from 2 KiB to 256 KiB: text, code-like bytes, and some that do not compress.
fn layer(seed: u64) -> Vec<u8> {
    let random = noise(seed, 4 << 20);
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    let (mut total, mut at) = (0, 0);
    let mut next = || {
        at = (at + 1) % (random.len() - 300_000);
        (at, u32::from_le_bytes([random[at], random[at + 1], random[at + 2], 0]) as usize)
    };
    while total < LAYER_BYTES {
        let (at, draw) = next();
        let len = 2048 + draw % (1 << (12 + draw % 7)).min(250_000);
        let contents = match draw % 10 {
            0..6 => random[at..].iter().flat_map(|b| WORDS[usize::from(b % 64)].bytes()).take(len).collect(),
            6..9 => {
                random[at..at + len].iter().enumerate().map(|(i, b)| if i % 4 < 2 { b & 0x0f } else { *b }).collect()
            }
            _ => random[at..at + len].to_vec(),
        };
        total += len;
        files.push((format!("usr/share/{}/{}", draw % 97, files.len()), contents));
    }
    tar(&files.iter().map(|(name, contents)| (name.as_str(), contents.as_slice())).collect::<Vec<_>>())
}

const WORDS: [&str; 64] = [
    "the ", "of ", "and ", "to ", "in ", "a ", "is ", "that ", "for ", "it ", "as ", "was ", "with ", "be ", "by ",
    "on ", "not ", "he ", "his ", "but ", "at ", "are ", "this ", "have ", "from ", "or ", "had ", "an ", "they ",
    "which ", "one ", "you ", "were ", "her ", "all ", "she ", "there ", "would ", "their ", "we ", "him ", "been ",
    "has ", "when ", "who ", "will ", "more ", "no ", "if ", "out ", "so ", "said ", "what ", "up ", "its ", "about ",
    "into ", "than ", "them ", "can ", "only ", "other ", "new ", "some\n",
];

/// Wall time of commands run one after the other; none if one is not installed.
fn timed(commands: &mut [&mut Command]) -> Option<Duration> {
    let begun = Instant::now();
    for command in commands {
        match command.stdout(Stdio::null()).stderr(Stdio::inherit()).status() {
            Ok(status) => assert!(status.success(), "{command:?}"),
            Err(error) => {
                skipped(&format!("{command:?}: {error}"));
                return None;
            }
        }
    }
    Some(begun.elapsed())
}

fn peers(host: &str, at: &Path) -> Option<Duration> {
    let (layout, bundle) = (at.join("oci"), at.join("bundle"));
    let to = format!("oci:{}:x", layout.display());
    let mut copy = Command::new("skopeo");
    copy.args(["copy", "-q", "--src-tls-verify=false", &format!("docker://{host}/big:1"), &to]);
    let mut unpack = Command::new("umoci");
    unpack.args(["unpack", "--image", &format!("{}:x", layout.display())]).arg(&bundle);
    timed(&mut [&mut copy, &mut unpack])
}

/// User and system time of this process so far.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<_> = stat[stat.rfind(')').unwrap()..].split(' ').collect();
    let ticks: u64 = fields[12].parse::<u64>().unwrap() + fields[13].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 1000 / 100)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn measure_against_skopeo_and_umoci() {
    let Some(registry) = Registry::start(false) else { return };
    let built = Recipe::new((1..=LAYERS).map(layer).collect()).build();
    registry.push("big", "1", &built);
    let compressed: usize = built.layers.iter().map(|l| l.bytes.len()).sum();
    println!("{LAYERS} layers of {} MiB, {} MiB compressed", LAYER_BYTES >> 20, compressed >> 20);
    for run in 1..=RUNS {
        let place = Place::new(registry.host());
        rustix::fs::sync();
        let images = place.open().await;
        let (begun, before) = (Instant::now(), cpu());
        pull(&images, &format!("{}/big:1", registry.host())).await.unwrap();
        let (ours, used) = (begun.elapsed(), cpu().saturating_sub(before));
        drop(images);
        place.close();

        let scratch = tempfile::tempdir().unwrap();
        rustix::fs::sync();
        let theirs = peers(registry.host(), scratch.path());
        scratch.close().unwrap();
        println!("run {run}: pull {ours:.2?} (CPU {used:.2?}), skopeo copy + umoci unpack {theirs:.2?}");
    }
}
