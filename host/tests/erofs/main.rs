//! The tree that Linux shows from our EROFS is the one that umoci and GNU tar unpack from the same layers.

#![allow(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

mod archive;
mod image;
mod reference;
mod snapshot;

use std::io::Write;

use archive::{Entry, device, dir, file, hardlink, layer, symlink};
use image::{Mounted, Place, build};
use snapshot::{assert_same, snapshot};
use tar::EntryType;

/// Whether a test can run; if not, it says why, past the test harness's capture.
fn runnable() -> bool {
    let Some(why) = reference::missing() else { return true };
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    let _ = writeln!(std::io::stderr(), "test {name} ... skipped: {why}");
    false
}

/// Bytes without a pattern.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2) + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

/// One layer through us, umoci and GNU tar.
fn compare_one(layer: Vec<u8>, made: &[&str]) {
    let place = Place::new();
    let built = build(&place, std::slice::from_ref(&layer));
    let mounted = Mounted::by_loop(&place, &built.flat);
    let mut ours = snapshot(mounted.path());
    assert_same(&mut ours, &mut snapshot(&reference::gnu_tar(&place, &layer)), made, "GNU tar");
    assert_same(&mut ours, &mut snapshot(&reference::umoci(&place, &[layer])), made, "umoci");
    reference::fsck(&place, &built);
    drop(mounted);
    place.close();
}

/// Layers through us and umoci.
fn compare_layers(layers: &[Vec<u8>], made: &[&str]) {
    let place = Place::new();
    let built = build(&place, layers);
    let mounted = Mounted::by_loop(&place, &built.flat);
    let mut ours = snapshot(mounted.path());
    assert_same(&mut ours, &mut snapshot(&reference::umoci(&place, layers)), made, "umoci");
    reference::fsck(&place, &built);
    drop(mounted);
    place.close();
}

fn attributes() -> Vec<Entry> {
    let mut entries = vec![dir("./"), dir("modes")];
    for mode in [0o000, 0o644, 0o755, 0o4755, 0o2755, 0o1777, 0o6711, 0o400] {
        entries.push(Entry { mode, ..file(format!("modes/f{mode:o}"), "x") });
        entries.push(Entry { mode, ..dir(format!("modes/d{mode:o}")) });
    }
    for id in [1, 65_535, 65_536, 100_000, 2_097_152, 4_294_967_294] {
        entries.push(Entry { uid: id, gid: id - 1, ..file(format!("owner-{id}"), "x") });
        entries.push(Entry { uid: id, gid: id - 1, ..symlink(format!("owner-{id}-link"), "x") });
    }
    for mtime in [(0, 0), (0, 1), (-1, 0), (-1, 500_000_000), (-86_401, 999_999_999), (4_294_967_296, 7), (1, 0)] {
        entries.push(Entry { mtime, ..file(format!("time-{}-{}", mtime.0, mtime.1), "x") });
        entries.push(Entry { mtime, ..dir(format!("time-{}-{}-dir", mtime.0, mtime.1)) });
        entries.push(Entry { mtime, ..symlink(format!("time-{}-{}-link", mtime.0, mtime.1), "x") });
    }
    entries
}

/// Version 2 capabilities with a line feed byte among them, which a reader that goes by lines loses.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 10, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// user::rw-, user:1000:r--, group::r--, mask::r--, other::r--
const ACL: [u8; 44] = [
    2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 232, 3, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255, 16, 0, 4, 0,
    255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255,
];

fn xattrs() -> Vec<Entry> {
    let with = |entry: Entry, xattrs: &[(&'static str, &[u8])]| Entry {
        xattrs: xattrs.iter().map(|(name, value)| (*name, value.to_vec())).collect(),
        ..entry
    };
    vec![
        dir("./"),
        with(Entry { mode: 0o755, ..file("ping", noise(1, 5000)) }, &[("security.capability", &CAPABILITY)]),
        with(
            file("many", "x"),
            &[("user.a", b"1"), ("user.b", &[b'v'; 1500]), ("user.c", b"\n=\0\xff"), ("trusted.t", b"t")],
        ),
        with(dir("dir"), &[("user.on.a.directory", b"yes"), ("trusted.d", b"d")]),
        with(file("acl", "x"), &[("system.posix_acl_access", &ACL)]),
        with(symlink("link", "acl"), &[("trusted.on.a.link", b"yes")]),
        file("none", ""),
    ]
}

fn names() -> Vec<Entry> {
    let long = "n".repeat(255);
    let mut entries = vec![
        dir("./"),
        file(&long, "x"),
        file(b"not-utf8-\xff\xfe", "x"),
        file(b"\x01control\x7f", "x"),
        file("-before-dot", ""),
        file("!before-dot", ""),
        file("...", ""),
        symlink("dangling", "/no/such/thing"),
        symlink("up", "../../../etc/passwd"),
        symlink("long-target", "t/".repeat(1900)),
        symlink("block-target", "b".repeat(4095)),
        symlink(b"not-utf8-link", b"\xff\xfe"),
        dir("many"),
    ];
    for i in 0..10_000 {
        entries.push(file(format!("many/{i}-{}", "y".repeat(i % 50)), if i % 10 == 0 { "content" } else { "" }));
    }
    for depth in 1..=60 {
        entries.push(dir(vec!["deep"; depth].join("/")));
    }
    entries.push(file(format!("{}/end", vec!["deep"; 60].join("/")), "reached"));
    entries
}

fn kinds() -> Vec<Entry> {
    vec![
        dir("./"),
        dir("a"),
        dir("a/b"),
        file("a/one", noise(3, 4096)),
        hardlink("a/b/two", "a/one"),
        hardlink("three", "./a/b/two"),
        symlink("a/link", "one"),
        hardlink("a/link-too", "a/link"),
        device("null", EntryType::Char, (1, 3)),
        device("big", EntryType::Char, (4095, 1_048_575)),
        device("disk", EntryType::Block, (259, 300)),
        Entry { kind: EntryType::Fifo, ..file("pipe", "") },
        hardlink("pipe-too", "pipe"),
        file("empty", ""),
        file("replaced", "first"),
        Entry { mode: 0o600, ..file("replaced", "second") },
        dir("replaced-dir"),
        file("replaced-dir/gone", "x"),
        file("dir-by-file", "x"),
    ]
}

#[test]
fn modes_owners_and_times() {
    if runnable() {
        compare_one(layer(&attributes()), &[]);
    }
}

#[test]
fn extended_attributes() {
    if runnable() {
        compare_one(layer(&xattrs()), &[]);
    }
}

#[test]
fn names_of_all_sorts() {
    if runnable() {
        compare_one(layer(&names()), &[]);
    }
}

#[test]
fn kinds_of_files() {
    if runnable() {
        compare_one(layer(&kinds()), &[]);
    }
}

#[test]
fn contents_of_all_sizes() {
    if !runnable() {
        return;
    }
    let mut entries = vec![dir("./")];
    for size in [1, 511, 512, 513, 4095, 4096, 4097, 65_535, 65_536, 65_537, 1 << 20, 5_000_001] {
        entries.push(file(format!("noise-{size}"), noise(size as u64, size)));
        entries.push(file(format!("zeros-{size}"), vec![0; size]));
        let mut spotted = vec![0; size];
        *spotted.last_mut().unwrap() = 1;
        entries.push(file(format!("end-{size}"), &spotted));
        spotted.extend(vec![0; 300_000]);
        spotted.extend(noise(5, 10_000));
        entries.push(file(format!("spots-{size}"), spotted));
    }
    compare_one(layer(&entries), &[]);
}

#[test]
fn layers_over_each_other() {
    if !runnable() {
        return;
    }
    let lower = layer(&[
        dir("./"),
        dir("etc"),
        file("etc/keep", "lower"),
        file("etc/changed", "lower"),
        file("etc/gone", "lower"),
        dir("gone-dir"),
        file("gone-dir/x", "lower"),
        dir("opaque"),
        file("opaque/hidden", "lower"),
        dir("opaque/hidden-dir"),
        file("opaque/hidden-dir/x", "x"),
        dir("file-over-dir"),
        file("file-over-dir/x", "x"),
        file("dir-over-file", "x"),
        symlink("dir-over-link", "etc"),
        Entry { mode: 0o700, uid: 7, ..dir("only-implied-above") },
        file("only-implied-above/x", "x"),
        file("linked", "linked"),
        dir("usr"),
        dir("usr/lib"),
        symlink("lib", "usr/lib"),
        file("usr/lib/a", "a"),
        Entry { mode: 0o711, xattrs: vec![("user.old", b"1".to_vec())], ..dir("attributes") },
        file("attributes/x", "x"),
        file("again", "lower"),
    ]);
    let middle = layer(&[
        file("etc/changed", "middle"),
        file("etc/.wh.gone", ""),
        file(".wh.gone-dir", ""),
        dir("opaque"),
        file("opaque/new", "middle"),
        file("opaque/.wh..wh..opq", ""),
        file("file-over-dir", "middle"),
        dir("dir-over-file"),
        file("dir-over-file/x", "middle"),
        dir("dir-over-link"),
        file("dir-over-link/x", "middle"),
        file("only-implied-above/y", "middle"),
        hardlink("link-to-lower", "linked"),
        file("lib/b", "through the link"),
        Entry { mode: 0o750, gid: 9, xattrs: vec![("user.new", b"2".to_vec())], ..dir("attributes") },
        file(".wh.again", ""),
        file("made/on/the/way", "middle"),
    ]);
    let upper = layer(&[
        file("again", "upper"),
        dir("gone-dir"),
        file("gone-dir/y", "upper"),
        file("opaque/.wh.new", ""),
        file(".wh.linked", ""),
        file(".wh.never-there", ""),
        file("made/on/another", "upper"),
    ]);
    // umoci restores the times of directories that it changes, but not the root's.
    compare_layers(&[lower, middle, upper], &["", "made", "made/on", "made/on/the"]);
}

#[test]
fn orders_of_entries_within_a_layer() {
    if !runnable() {
        return;
    }
    let lower = layer(&[
        dir("./"),
        dir("kept"),
        file("kept/below", "lower"),
        file("hidden", "lower"),
        dir("opaque"),
        file("opaque/below", "lower"),
        file("opaque/renewed", "lower"),
        dir("emptied"),
        file("emptied/below", "lower"),
        symlink("way", "kept"),
    ]);
    let upper = layer(&[
        // Whiteouts behind what they must not hide.
        file("hidden", "upper"),
        file(".wh.hidden", ""),
        dir("opaque"),
        file("opaque/renewed", "upper"),
        file("opaque/.wh..wh..opq", ""),
        file("kept/new", "upper"),
        file("kept/.wh.below", ""),
        // A directory that becomes a file that becomes a directory.
        dir("turn"),
        file("turn/x", ""),
        file("turn", "file"),
        file("emptied", "file"),
        dir("emptied"),
        file("emptied/upper", ""),
        // Names that mean the same.
        file("/absolute", "x"),
        file("./dotted/./name", "x"),
        file("way/../cleaned", "x"),
        // Through links of this layer, to places that do not exist yet.
        symlink("ahead", "future/place"),
        file("ahead/x", "x"),
        symlink("rooted", "/../../kept"),
        file("rooted/y", "y"),
    ]);
    compare_layers(&[lower, upper], &["", "dotted", "future", "future/place"]);
}

/// Cuts times to whole seconds.
fn whole_seconds(mut snapshot: snapshot::Snapshot) -> snapshot::Snapshot {
    snapshot.values_mut().for_each(|seen| seen.mtime.1 = 0);
    snapshot
}

#[test]
fn archives_that_gnu_tar_made() {
    if !runnable() {
        return;
    }
    let place = Place::new();
    let mut entries = attributes();
    // GNU tar writes a pipe with two names as two pipes.
    let left_out = |path: &[u8]| path == b"./" || path == b"pipe-too" || path.starts_with(b"many/");
    for more in [xattrs(), names(), kinds()] {
        entries.extend(more.into_iter().filter(|entry| !left_out(&entry.path)));
    }
    let source = reference::gnu_tar(&place, &layer(&entries));
    let theirs = snapshot(&source);
    place.remove("gnu.tar");
    let posix = archived(&place, &["--format=posix", "--xattrs", "--xattrs-include=*"], "gnu");
    let built = build(&place, &[posix]);
    let mounted = Mounted::by_loop(&place, &built.flat);
    assert_same(&mut snapshot(mounted.path()), &mut snapshot(&source), &[], "tar --format=posix");
    drop(mounted);

    place.remove("blob-0");
    let built = build(&place, &[archived(&place, &["--format=gnu"], "gnu")]);
    let mounted = Mounted::by_loop(&place, &built.flat);
    let mut theirs = whole_seconds(theirs);
    theirs.values_mut().for_each(|seen| seen.xattrs.clear());
    assert_same(&mut whole_seconds(snapshot(mounted.path())), &mut theirs, &[], "tar --format=gnu");
    drop(mounted);
    place.close();
}

/// Runs `tar` in `directory` and returns the archive.
fn archived(place: &Place, options: &[&str], directory: &str) -> Vec<u8> {
    let out = place.path("made.tar");
    let mut command = std::process::Command::new("tar");
    reference::run(command.args(options).arg("-cf").arg(&out).arg("-C").arg(place.path(directory)).arg("."));
    std::fs::read(out).unwrap()
}

/// A file of `len` bytes with noise here and there.
fn sparse_file(path: &std::path::Path, len: u64, spots: &[(u64, usize)]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(path).unwrap();
    file.set_len(len).unwrap();
    for (offset, size) in spots {
        file.write_all_at(&noise(*offset, *size), *offset).unwrap();
    }
}

#[test]
fn sparse_files_of_every_format() {
    if !runnable() {
        return;
    }
    const GIB: u64 = 1 << 30;
    for format in [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=1.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=0.0"],
    ] {
        let place = Place::new();
        std::fs::create_dir(place.path("source")).unwrap();
        let source = |name: &str| place.path("source").join(name);
        sparse_file(&source("huge"), 5 * GIB + 123, &[(0, 10), (4 * GIB + 5, 70_000), (5 * GIB + 100, 23)]);
        sparse_file(&source("hole"), 3 * GIB, &[]);
        sparse_file(&source("tail"), 1_000_000, &[(999_990, 10)]);
        let spots: Vec<(u64, usize)> = (0..100).map(|i| (i * 400_000 + i * 7, 5000)).collect();
        sparse_file(&source("many"), 60_000_000, &spots);
        sparse_file(&source("dense"), 100_000, &[(0, 100_000)]);
        let options: Vec<&str> = format.iter().copied().chain(["-S"]).collect();
        let layer = archived(&place, &options, "source");
        assert!(layer.len() < 4 << 20, "tar wrote the holes");

        let built = build(&place, std::slice::from_ref(&layer));
        assert!(built.blob_lens[0] < 64 << 20, "{format:?}: the blob has {} bytes", built.blob_lens[0]);
        let mounted = Mounted::by_loop(&place, &built.flat);
        let mut ours = snapshot(mounted.path());
        // GNU's own format has whole seconds only.
        let timeless = ["", "huge", "hole", "tail", "many", "dense"];
        assert_same(&mut ours, &mut snapshot(&place.path("source")), &timeless, &format!("tar {format:?}"));
        drop(mounted);
        place.close();
    }
}

#[test]
fn the_kernel_reads_a_file_without_a_loop_device() {
    if !runnable() {
        return;
    }
    let place = Place::new();
    let built = build(&place, &[layer(&kinds()), layer(&[file("more", noise(9, 100_000))])]);
    match Mounted::by_file(&place, &built.flat) {
        Ok(mounted) => {
            assert!(std::fs::read(mounted.path().join("more")).unwrap() == noise(9, 100_000));
            assert_eq!(std::fs::read(mounted.path().join("three")).unwrap(), noise(3, 4096));
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "test file-backed mount ... skipped: this kernel says {error}");
            std::fs::remove_dir(place.path("mounted-file")).unwrap();
        }
    }
    place.close();
}

#[test]
fn an_image_of_many_layers_or_none() {
    if !runnable() {
        return;
    }
    let place = Place::new();
    let layers: Vec<Vec<u8>> = (0..100).map(|i| layer(&[file(format!("f{i}"), noise(i, 5000))])).collect();
    let built = build(&place, &layers);
    let mounted = Mounted::by_loop(&place, &built.flat);
    for i in 0..100 {
        assert!(std::fs::read(mounted.path().join(format!("f{i}"))).unwrap() == noise(i, 5000));
    }
    drop(mounted);
    place.close();

    let place = Place::new();
    let built = build(&place, &[]);
    assert_eq!((built.metadata.inodes, built.metadata.len), (1, 8192));
    let mounted = Mounted::by_loop(&place, &built.flat);
    assert_eq!(std::fs::read_dir(mounted.path()).unwrap().count(), 0);
    drop(mounted);
    place.close();
}
