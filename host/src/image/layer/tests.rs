//! Hostile and damaged layers, and the tree's file.

use std::io::Write;

use proptest::prelude::*;
use tar::{EntryType, Header};

use super::*;

use super::archive::{Entry, device, dir, file, hardlink, layer, member, record, symlink};

fn take_with(bytes: &[u8], compression: Compression, limits: &LayerLimits) -> Result<Layer, LayerError> {
    let mut blob = BlobWriter::new(tempfile::tempfile().unwrap());
    ingest(bytes, compression, &mut blob, limits)
}

fn take(bytes: &[u8]) -> Result<Layer, LayerError> {
    take_with(bytes, Compression::None, &LayerLimits::default())
}

fn why(bytes: &[u8]) -> String {
    take(bytes).expect_err("it must be refused").to_string()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn every_compression_gives_the_same_layer() {
    let tar = layer(&[dir("d"), file("d/f", "content")]);
    let plain = take(&tar).unwrap();
    assert_eq!(plain.diff_id, Digest::of(&tar));
    assert_eq!((plain.uncompressed_len, plain.blob_len), (tar.len() as u64, BLOCK));
    let (start, end) = tar.split_at(700);
    let two_members = [gzip(start), gzip(end)].concat();
    let two_frames = [zstd::encode_all(start, 1).unwrap(), zstd::encode_all(end, 1).unwrap()].concat();
    for (bytes, compression) in [
        (gzip(&tar), Compression::Gzip),
        (two_members, Compression::Gzip),
        (zstd::encode_all(&tar[..], 1).unwrap(), Compression::Zstd),
        (two_frames, Compression::Zstd),
    ] {
        let packed = take_with(&bytes, compression, &LayerLimits::default()).unwrap();
        assert_eq!((packed.tree, packed.diff_id), (plain.tree.clone(), plain.diff_id));
    }
}

#[test]
fn trailing_bytes_count_for_the_digest() {
    let mut tar = layer(&[file("f", "x")]);
    tar.extend_from_slice(&[7; 100_000]);
    let taken = take(&tar).unwrap();
    assert_eq!((taken.diff_id, taken.uncompressed_len), (Digest::of(&tar), tar.len() as u64));
    assert_eq!(taken.tree.inodes().len(), 2);
}

#[test]
fn damaged_compression_is_named() {
    let tar = layer(&[file("f", "x".repeat(100_000))]);
    let limits = LayerLimits::default();
    let why = |bytes: &[u8], compression| take_with(bytes, compression, &limits).unwrap_err().to_string();
    assert!(why(&tar, Compression::Gzip).contains("as Gzip after 0 bytes of its tar stream: invalid gzip header"));
    assert!(why(&tar, Compression::Zstd).contains("as Zstd after 0 bytes"));
    let packed = gzip(&tar);
    assert!(why(&packed[..packed.len() - 9], Compression::Gzip).contains("as Gzip after"));
    let packed = zstd::encode_all(&tar[..], 1).unwrap();
    assert!(why(&packed[..packed.len() - 1], Compression::Zstd).contains("as Zstd after"));
    assert!(why(&[gzip(&tar), b"something else".to_vec()].concat(), Compression::Gzip).contains("invalid gzip header"));
}

#[test]
fn a_failing_source_is_not_taken_for_a_damaged_layer() {
    struct Failing;
    impl std::io::Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("connection reset"))
        }
    }
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let mut blob = BlobWriter::new(tempfile::tempfile().unwrap());
        let error = ingest(Failing, compression, &mut blob, &LayerLimits::default()).unwrap_err();
        assert!(matches!(&error, LayerError::Input { offset: 0, .. }), "{error}");
        assert!(error.to_string().contains("connection reset"));
    }
}

#[test]
fn a_cut_stream_is_named() {
    let tar = layer(&[file("some/file", "x".repeat(5000))]);
    assert!(why(&tar[..100]).contains("ends at byte 100, inside an entry's header"));
    assert!(why(&tar[..600]).contains("inside an extended header"));
    assert!(why(&tar[..3000]).contains("inside a file's contents of \"some/file\""));
    assert!(why(&tar[..1024 + 512 + 5000 + 1]).contains("inside the padding of \"some/file\""));
    assert!(why(&tar[..1024]).contains("describes nothing"));
    assert_eq!(take(&tar[..tar.len() - 1024]).unwrap().tree.inodes().len(), 3);
    assert_eq!(take(&tar[..tar.len() - 512]).unwrap().tree.inodes().len(), 3);
}

#[test]
fn what_is_no_tar_is_named() {
    assert!(why(&[b'x'; 2000]).contains("checksum is wrong"));
    let mut after = vec![0; 512];
    after.extend_from_slice(&[1; 512]);
    assert!(why(&after).contains("follows the stream's end mark"));
    let mut weird = file("odd", "");
    weird.kind = EntryType::new(b'Z');
    assert!(why(&layer(&[weird])).contains("\"odd\" (header at byte 0 of the tar stream): its type flag 'Z'"));
}

#[test]
fn hostile_names_are_refused_with_the_reason() {
    let one = |entry: Entry| why(&layer(&[entry]));
    assert!(one(file("../escape", "")).contains("out of the root"));
    assert!(one(file("a/../../escape", "")).contains("out of the root"));
    assert!(one(file("n".repeat(256), "")).contains("name is 256 bytes long, 255 are allowed"));
    assert!(one(file("d/".repeat(2048) + "f", "")).contains("path is 4097 bytes long"));
    let long = format!("{}/\0/x", "d".repeat(150));
    assert!(one(file(long, "")).contains("holds a NUL byte"));
    assert!(one(file("/", "")).contains("replace the root directory"));
    assert!(one(file(".wh.", "")).contains("whiteout of no name"));
    assert!(one(file("a/.wh..", "")).contains("whiteout of no name"));
    assert!(one(file("a/.wh...", "")).contains("whiteout of no name"));
    assert!(one(file(".wh.a/b", "")).contains("reserved"));
    assert!(one(symlink("l", "")).contains("without a target"));
    assert!(one(symlink("l", "t".repeat(4096))).contains("link target is 4096 bytes long"));
    assert!(one(hardlink("h", "../../x")).contains("out of the root"));
    assert!(one(hardlink("h", ".")).contains("a directory"));
    assert!(why(&layer(&[dir("d"), hardlink("h", "d")])).contains("hard link to \"d\", a directory"));
    assert!(why(&layer(&[file("f", ""), file("f/below", "")])).contains("leads through \"f\", which is no directory"));
    assert!(why(&layer(&[symlink("a", "b"), symlink("b", "a"), file("a/f", "")])).contains("40 symbolic links"));
}

#[test]
fn odd_names_that_others_take_are_taken() {
    let tar = layer(&[
        file("/absolute", ""),
        file("./a//b/./c", ""),
        file("x/../y", ""),
        symlink("out", "../../.."),
        file("out/from-the-root", ""),
        file(".wh..wh.plnk/1.2", "x"),
        file(".wh..wh.aufs", ""),
    ]);
    let tree = take(&tar).unwrap().tree;
    let root = tree.inodes()[0].directory().unwrap();
    let names: Vec<_> = root.entries.keys().map(|name| String::from_utf8_lossy(name)).collect();
    assert_eq!(names, ["a", "absolute", "from-the-root", "out", "y"]);
}

#[test]
fn attributes_that_are_the_hosts_business_are_left_out() {
    let names = ["security.selinux", "trusted.overlay.redirect", "user.overlay.opaque", "system.nfs4_acl", "user.kept"];
    let xattrs = names.map(|name| (name, b"x".to_vec())).to_vec();
    let tree = take(&layer(&[Entry { xattrs, ..file("f", "") }])).unwrap().tree;
    let kept: Vec<_> = tree.inodes()[1].xattrs.iter().map(|x| String::from_utf8_lossy(&x.name)).collect();
    assert_eq!(kept, ["user.kept"]);
    let big = Entry { xattrs: vec![("user.big", vec![1; 65_536])], ..file("f", "") };
    assert!(why(&layer(&[big])).contains("attribute is 65536 bytes long, 65535 are allowed"));
}

#[test]
fn hostile_numbers_are_refused() {
    let with = |key: &str, value: &[u8]| {
        let (mut bytes, mut records) = (Vec::new(), Vec::new());
        record(&mut records, key, value);
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        member(&mut bytes, header, b"x", &records);
        member(&mut bytes, Header::new_ustar(), b"victim", b"");
        why(&bytes)
    };
    assert!(with("uid", b"4294967296").contains("its uid is no number that fits"));
    assert!(with("uid", b"-1").contains("its uid"));
    assert!(with("mtime", b"99999999999999999999").contains("its mtime"));
    assert!(with("size", b"18446744073709551615").contains("is above the"));
    assert!(with("size", b"1000000000000").contains("inside a file's contents of \"victim\""));
    assert!(with("GNU.sparse.map", b"10,5,0,5").contains("overlap or are out of order"));
    assert!(with("GNU.sparse.map", b"10").contains("an offset has no length"));
    assert!(with("GNU.sparse.map", b"18446744073709551615,5").contains("beyond 2^64"));
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::XHeader);
    let mut bytes = Vec::new();
    member(&mut bytes, header.clone(), b"x", b"7 a=b\n");
    assert!(why(&bytes).contains("a record's length is wrong"));
    header.set_size(1 << 30);
    header.set_cksum();
    assert!(why(header.as_bytes()).contains("1073741824 bytes long, 1048576 are allowed"));
}

#[test]
fn limits_hold_before_memory_or_disk_is_taken() {
    let limits = LayerLimits::default();
    let small = |limits: LayerLimits, tar: &[u8]| take_with(tar, Compression::None, &limits).unwrap_err().to_string();
    let tar = layer(&[file("a", "x"), file("b", "x"), file("c", "x")]);
    assert!(small(LayerLimits { entries: 2, ..limits }, &tar).contains("more than the 2 "));
    assert!(small(LayerLimits { entries: 3, ..limits }, &tar).contains("more than the 3 inodes"));
    assert!(small(LayerLimits { uncompressed_bytes: 1000, ..limits }, &tar).contains("longer than the 1000 bytes"));
    assert!(small(LayerLimits { blob_bytes: 8192, ..limits }, &tar).contains("\"c\""));
    assert!(small(LayerLimits { metadata_bytes: 2, ..limits }, &tar).contains("more than the 2 bytes allowed"));
    let deep = layer(&[file("d/".repeat(2000) + "f", "")]);
    assert!(small(LayerLimits { entries: 1000, ..limits }, &deep).contains("more than the 1000 inodes"));
}

#[test]
fn a_decompression_bomb_ends_at_the_limit() {
    // 256 MiB in a few kilobytes.
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Regular);
    header.as_old_mut().name[..4].copy_from_slice(b"bomb");
    header.set_size(256 << 20);
    header.set_cksum();
    let mut bomb = zstd::Encoder::new(Vec::new(), 1).unwrap();
    bomb.write_all(header.as_bytes()).unwrap();
    (0..256).for_each(|_| bomb.write_all(&[0x55; 1 << 20]).unwrap());
    let bomb = bomb.finish().unwrap();
    assert!(bomb.len() < 1 << 20);
    let limits = LayerLimits { uncompressed_bytes: 10 << 20, ..LayerLimits::default() };
    let error = take_with(&bomb, Compression::Zstd, &limits).unwrap_err();
    assert!(matches!(error, LayerError::TooLarge { limit: 10_485_760 }), "{error}");
    let limits = LayerLimits { blob_bytes: 10 << 20, ..LayerLimits::default() };
    let error = take_with(&bomb, Compression::Zstd, &limits).unwrap_err().to_string();
    assert!(error.contains("\"bomb\"") && error.contains("longer than the 10485760 bytes"), "{error}");
}

#[test]
fn long_ways_through_links_are_counted() {
    let mut entries = vec![dir("d".to_owned() + &"/d".repeat(1000))];
    let mut target = "d/".repeat(1000) + &"../".repeat(999);
    for i in 0..30 {
        entries.push(symlink(format!("s{i}"), &target[..4000.min(target.len())]));
        target = format!("s{i}/../{}", "d/../".repeat(700));
    }
    (0..2000).for_each(|i| entries.push(file(format!("s29/{i}"), "")));
    let limits = LayerLimits { entries: 4000, ..LayerLimits::default() };
    let started = std::time::Instant::now();
    let error = take_with(&layer(&entries), Compression::None, &limits).unwrap_err().to_string();
    assert!(error.contains("directories allowed, counted each time"), "{error}");
    assert!(started.elapsed().as_secs() < 30);
}

#[test]
fn symbolic_links_cannot_make_the_tree_endlessly_deep() {
    let mut entries = vec![symlink("s0", "d/".repeat(1500))];
    for i in 1..5 {
        entries.push(symlink(format!("s{i}"), format!("s{}/{}", i - 1, "d/".repeat(1500))));
    }
    entries.push(file("s4/f", ""));
    assert!(why(&layer(&entries)).contains("more than 4096 directories deep"));
}

#[test]
fn times_before_1970_and_fractions_are_read() {
    let time = |text: &str| pax::time(text.as_bytes()).map(|t| (t.seconds, t.nanoseconds));
    assert_eq!(time("1.5"), Some((1, 500_000_000)));
    assert_eq!(time("-1.5"), Some((-2, 500_000_000)));
    assert_eq!(time("-0.000000001"), Some((-1, 999_999_999)));
    assert_eq!(time("12.1234567899"), Some((12, 123_456_789)));
    assert_eq!((time("1."), time(""), time("--1"), time("1.x")), (Some((1, 0)), None, None, None));
}

fn some_tree() -> Tree {
    let xattrs = vec![("user.a", b"1".to_vec())];
    let tar = layer(&[
        dir("d"),
        Entry { mtime: (-5, 7), xattrs, ..file("d/f", "x".repeat(10_000)) },
        hardlink("h", "d/f"),
        hardlink("below", "not/here"),
        symlink("l", "t"),
        device("c", EntryType::Char, (4095, 1_048_575)),
        file("d/.wh.gone", ""),
        file("e/.wh..wh..opq", ""),
    ]);
    take(&tar).unwrap().tree
}

#[test]
fn a_tree_survives_its_file_and_damage_is_noticed() {
    let tree = some_tree();
    let bytes = tree.to_bytes();
    assert_eq!(Tree::from_bytes(&bytes).unwrap(), tree);
    assert_eq!(Tree::from_bytes(b"").unwrap_err(), TreeError::Magic);
    assert!(matches!(Tree::from_bytes(&bytes[..bytes.len() - 1]), Err(TreeError::Length { .. })));
    for i in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[i] ^= 0x10;
        assert!(Tree::from_bytes(&damaged).is_err(), "byte {i}");
    }
}

/// With a right header, so that what is tried is the reader behind it.
fn sealed(payload: &[u8]) -> Vec<u8> {
    let mut bytes = b"BHTREE\x01\x00".to_vec();
    bytes.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Whatever loads must be fit for use.
fn load(payload: &[u8]) {
    if let Ok(tree) = Tree::from_bytes(&sealed(payload)) {
        assert_eq!(Tree::from_bytes(&tree.to_bytes()).as_ref(), Ok(&tree));
        if let Ok(merged) = crate::image::erofs::merge(&[&tree]) {
            let blob = crate::image::erofs::BlobRef { digest: Digest::of(b""), len: 1 << 20 };
            let _ = crate::image::erofs::write(&merged, &[blob], &mut tempfile::tempfile().unwrap());
        }
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let _ = take(&bytes);
        load(&bytes);
    }

    #[test]
    fn a_damaged_layer_never_panics(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut tar = layer(&[dir("a"), file("a/f", "data"), hardlink("h", "a/f"), symlink("s", "a"), file("s/.wh.x", "")]);
        for (at, value) in &changes {
            let at = at.index(tar.len());
            tar[at] = *value;
        }
        // Checksums are made right again, so that more than they is tried.
        for start in (0..tar.len()).step_by(512) {
            let mut header = Header::from_byte_slice(&tar[start..start + 512]).clone();
            if header.as_ustar().is_some() {
                header.set_cksum();
                tar[start..start + 512].copy_from_slice(header.as_bytes());
            }
        }
        let _ = take(&tar);
    }

    #[test]
    fn a_damaged_tree_never_panics(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut payload = some_tree().to_bytes().split_off(20);
        for (at, value) in &changes {
            let at = at.index(payload.len());
            payload[at] = *value;
        }
        load(&payload);
    }
}
