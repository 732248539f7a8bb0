//! Merging against a simple model, and what is written.

use std::collections::BTreeMap;
use std::io::Read;

use proptest::prelude::*;

use super::*;
use crate::image::layer::{BlobWriter, Compression, Kind, LayerLimits, Tree, ingest};

use crate::image::layer::archive::{Entry, dir, file, hardlink, layer, symlink};

fn tree(entries: &[Entry]) -> Result<Tree, String> {
    let mut blob = BlobWriter::new(tempfile::tempfile().unwrap());
    let layer = ingest(&layer(entries)[..], Compression::None, &mut blob, &LayerLimits::default());
    layer.map(|layer| layer.tree).map_err(|e| e.to_string())
}

/// Paths of a tree: a directory's mode, or a file's.
type Paths = BTreeMap<String, (bool, u16)>;

fn paths(tree: &Tree) -> Paths {
    let mut found = Paths::new();
    let mut todo = vec![(String::new(), Tree::ROOT)];
    while let Some((path, id)) = todo.pop() {
        let inode = tree.get(id).unwrap();
        if let Some(directory) = inode.directory() {
            for (name, child) in &directory.entries {
                todo.push((format!("{path}/{}", String::from_utf8_lossy(name)), *child));
            }
        }
        found.insert(path, (inode.directory().is_some(), inode.mode));
    }
    found
}

#[derive(Debug, Clone)]
enum Step {
    File(String),
    Directory(String),
    Whiteout(String),
    Opaque(String),
}

fn step() -> impl Strategy<Value = Step> {
    let path = proptest::collection::vec(proptest::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|p| p.join("/"));
    (0..6, path).prop_map(|(kind, path)| match kind {
        0 | 1 => Step::File(path),
        2 | 3 => Step::Directory(path),
        4 => Step::Whiteout(path),
        _ => Step::Opaque(path),
    })
}

fn entries(steps: &[Step], modes: u32) -> Vec<Entry> {
    let marker = |path: &str, prefix: &str, keep: bool| {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        if keep { format!("{path}/{prefix}") } else { format!("{parent}/{prefix}{name}") }
    };
    let entry = |(i, step): (usize, &Step)| {
        let mode = modes + i as u32;
        match step {
            Step::File(path) => Entry { mode, ..file(path, "") },
            Step::Directory(path) => Entry { mode, ..dir(path) },
            Step::Whiteout(path) => file(marker(path, ".wh.", false), ""),
            Step::Opaque(path) => file(marker(path, ".wh..wh..opq", true), ""),
        }
    };
    steps.iter().enumerate().map(entry).collect()
}

fn below(path: &str, root: &str) -> bool {
    path.strip_prefix(root).is_some_and(|rest| rest.starts_with('/'))
}

/// The model: a map of paths. A mode of none is a directory that a layer only implies.
#[derive(Default)]
struct Model {
    state: BTreeMap<String, (bool, u16)>,
}

impl Model {
    /// Applies a layer the slow way; none if something is below a file.
    fn apply(&mut self, steps: &[Step], modes: u32) -> Option<()> {
        let mut own: BTreeMap<String, (bool, Option<u16>)> = BTreeMap::new();
        let (mut gone, mut opaque) = (Vec::new(), Vec::new());
        for (i, step) in steps.iter().enumerate() {
            let (Step::File(path) | Step::Directory(path) | Step::Whiteout(path) | Step::Opaque(path)) = step;
            let path = format!("/{path}");
            let whole = matches!(step, Step::Opaque(_)).then(|| path.clone());
            let ancestors = path.match_indices('/').skip(1).map(|(at, _)| path[..at].to_owned());
            for ancestor in ancestors.chain(whole) {
                if !own.entry(ancestor).or_insert((true, None)).0 {
                    return None;
                }
            }
            let mode = Some((modes + i as u32) as u16);
            match step {
                Step::File(_) => {
                    own.retain(|other, _| !below(other, &path));
                    // What a replaced directory hid below stays hidden by the file itself.
                    gone.retain(|other: &String| !below(other, &path));
                    opaque.retain(|other: &String| *other != path && !below(other, &path));
                    own.insert(path, (false, mode));
                }
                Step::Directory(_) => {
                    if own.get(&path).is_some_and(|(directory, _)| !directory) {
                        gone.push(path.clone());
                    }
                    own.insert(path, (true, mode));
                }
                Step::Whiteout(_) => gone.push(path),
                Step::Opaque(_) => opaque.push(path),
            }
        }
        for path in &gone {
            self.state.retain(|other, _| other != path && !below(other, path));
        }
        for path in &opaque {
            self.state.retain(|other, _| !below(other, path));
        }
        for (path, (directory, mode)) in own {
            match (self.state.get(&path).copied(), directory, mode) {
                (Some((false, _)), true, None) => return None,
                (Some((true, _)), true, None) => {}
                (_, false, _) => {
                    self.state.retain(|other, _| !below(other, &path));
                    self.state.insert(path, (false, mode.unwrap_or_default()));
                }
                (_, true, mode) => {
                    self.state.insert(path, (true, mode.unwrap_or(0o755)));
                }
            }
        }
        Some(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn merging_does_as_the_model(layers in proptest::collection::vec(proptest::collection::vec(step(), 0..8), 1..4)) {
        let mut model = Model::default();
        model.state.insert(String::new(), (true, 0o755));
        let modelled = layers.iter().enumerate().try_for_each(|(i, steps)| model.apply(steps, 100 * i as u32));
        let trees: Result<Vec<Tree>, String> =
            layers.iter().enumerate().map(|(i, steps)| tree(&entries(steps, 100 * i as u32))).collect();
        let merged = trees.and_then(|trees| merge(&trees.iter().collect::<Vec<_>>()).map_err(|e| e.to_string()));
        match (modelled, merged) {
            (Some(()), Ok(merged)) => prop_assert_eq!(paths(&merged), model.state),
            (None, Err(_)) => {}
            (Some(()), Err(error)) => prop_assert!(false, "refused: {error}"),
            (None, Ok(_)) => prop_assert!(false, "not refused"),
        }
    }
}

fn merged(layers: &[&[Entry]]) -> Result<Tree, String> {
    let trees: Vec<Tree> = layers.iter().map(|entries| tree(entries).unwrap()).collect();
    merge(&trees.iter().collect::<Vec<_>>()).map_err(|e| e.to_string())
}

#[test]
fn hard_links_reach_into_layers_below() {
    let lower = [file("dir/old", "x"), symlink("way", "dir")];
    let upper = [hardlink("new", "way/old"), file("dir/.wh.old", "")];
    let merged = merged(&[&lower, &upper]).unwrap();
    assert_eq!(paths(&merged).keys().collect::<Vec<_>>(), ["", "/dir", "/new", "/way"]);
    let file = merged.inodes().iter().find_map(|inode| match &inode.kind {
        Kind::File(file) => Some(file),
        _ => None,
    });
    assert_eq!(file.map(|file| (file.size, file.blob)), Some((1, 0)));
}

#[test]
fn links_to_nothing_are_refused_with_both_names() {
    let why = |layers: &[&[Entry]]| merged(layers).unwrap_err();
    assert!(why(&[&[hardlink("h", "no/where")]]).contains("layer 0 has a hard link to \"no/where\""));
    assert!(why(&[&[hardlink("h", "later"), file("later", "")]]).contains("hard link to \"later\""));
    assert!(why(&[&[dir("d")], &[hardlink("h", "d")]]).contains("layer 1 has a hard link to \"d\", a directory"));
    assert!(
        why(&[&[file("f", "")], &[file("f/x", "")]]).contains("layer 1 cannot be placed: its path leads through \"f\"")
    );
}

#[test]
fn an_implied_directory_follows_a_link_below() {
    let lower = [dir("usr/lib"), symlink("lib", "usr/lib"), symlink("loop", "loop")];
    let merged_tree = merged(&[&lower, &[file("lib/sub/x", "")]]).unwrap();
    assert!(paths(&merged_tree).contains_key("/usr/lib/sub/x"));
    let replaced = merged(&[&lower, &[dir("lib"), file("lib/x", "")]]).unwrap();
    assert!(paths(&replaced).contains_key("/lib/x"));
    assert!(merged(&[&lower, &[file("loop/x", "")]]).unwrap_err().contains("symbolic links"));
}

fn written(tree: &Tree, blobs: &[BlobRef]) -> Result<Vec<u8>, WriteError> {
    let mut out = tempfile::tempfile().unwrap();
    let image = write(tree, blobs, &mut out)?;
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut out).unwrap();
    out.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, image.len);
    Ok(bytes)
}

#[test]
fn the_same_tree_gives_the_same_bytes() {
    let tree = merged(&[&[dir("d"), file("d/f", "content"), symlink("l", "d")]]).unwrap();
    let blob = BlobRef { digest: Digest::of(b"blob"), len: 4096 };
    let once = written(&tree, &[blob]).unwrap();
    assert_eq!(once, written(&tree, &[blob]).unwrap());
    assert_eq!(&once[1152..1216], blob.digest.hex().as_bytes());
    let other = BlobRef { digest: Digest::of(b"other"), len: 4096 };
    assert_ne!(once[1024 + 48..1024 + 64], written(&tree, &[other]).unwrap()[1024 + 48..1024 + 64]);
}

#[test]
fn contents_outside_their_blob_are_refused() {
    let tree = merged(&[&[file("f", "content")]]).unwrap();
    let blob = |len| BlobRef { digest: Digest::of(b""), len };
    assert!(matches!(written(&tree, &[]), Err(WriteError::OutsideBlob { inode: 1, blob: 0 })));
    assert!(matches!(written(&tree, &[blob(0)]), Err(WriteError::OutsideBlob { .. })));
    assert!(matches!(written(&tree, &[blob(17 << 40)]), Err(WriteError::TooLarge { .. })));
    assert!(written(&tree, &[blob(1)]).is_ok());
}

#[test]
fn parts_lie_behind_each_other_in_whole_blocks() {
    assert_eq!(flat_layout(8192, &[0, 1, 4096, 4097]), [8192, 0, 4096, 4096, 8192]);
}
