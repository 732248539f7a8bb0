#![allow(clippy::unwrap_used)]

use super::*;

const BRIDGE: &str = r#"{"cniVersion": "1.0.0", "name": "pods",
  "plugins": [{"type": "bridge", "capabilities": {"ips": true, "mac": false}, "isGateway": true}]}"#;

fn directory(files: &[(&str, &str)]) -> (tempfile::TempDir, Directory) {
    let temporary = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = temporary.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let directory = Directory::new(temporary.path());
    (temporary, directory)
}

fn problem(text: &str) -> String {
    let (temporary, directory) = directory(&[("10-a.conflist", text)]);
    let loaded = directory.current();
    assert!(loaded.network.is_none());
    loaded.problems[0].to_string().replace(temporary.path().to_str().unwrap(), "/d")
}

#[test]
fn the_first_valid_file_in_lexical_order_is_the_network() {
    let single = r#"{"cniVersion": "1.0.0", "name": "single", "type": "ptp"}"#;
    let (_keep, directory) = directory(&[
        ("30-single.conf", single),
        ("20-pods.conflist", BRIDGE),
        ("10-broken.json", "{\n\n]"),
        ("01-readme.txt", ""),
    ]);
    let loaded = directory.current();
    let network = loaded.network.unwrap();
    assert_eq!(network.name, "pods");
    assert_eq!(network.plugins[0].capabilities, BTreeSet::from(["ips".to_owned()]));
    assert!(!network.plugins[0].configuration.contains_key("capabilities"));
    assert_eq!(loaded.problems.len(), 1);
}

#[test]
fn a_changed_directory_is_read_again() {
    let (keep, directory) = directory(&[]);
    assert_eq!(directory.current(), Loaded::default());
    fs::write(keep.path().join("10.conflist"), BRIDGE).unwrap();
    assert_eq!(directory.current().network.unwrap().name, "pods");
    fs::write(keep.path().join("10.conflist"), BRIDGE.replace("pods", "other")).unwrap();
    assert_eq!(directory.current().network.unwrap().name, "other");
    fs::remove_file(keep.path().join("10.conflist")).unwrap();
    assert_eq!(directory.current(), Loaded::default());
}

#[test]
fn errors_name_file_and_line() {
    assert_eq!(problem("{\n\n]"), "CNI configuration /d/10-a.conflist, line 3: key must be a string");
    assert_eq!(
        problem("{\"cniVersion\": \"9.9.9\",\n \"name\": \"a\", \"type\": \"ptp\"}"),
        "CNI configuration /d/10-a.conflist, line 1: cniVersion {\"9.9.9\"} is not supported; use one of 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"
    );
    assert_eq!(
        problem("{\"cniVersion\": \"1.0.0\",\n \"name\": \"-\", \"type\": \"ptp\"}"),
        "CNI configuration /d/10-a.conflist, line 2: network name \"-\" must start with a letter or digit and go on with those, '_', '.' or '-'"
    );
    assert!(
        problem("{\"cniVersion\": \"1.0.0\", \"name\": \"a\",\n\"plugins\": [{\"type\": \"../sh\"}]}")
            .contains("line 2: plugin \"type\" \"../sh\"")
    );
    assert!(
        problem("{\"cniVersion\": \"1.0.0\", \"name\": \"a\",\n\"plugins\": []}")
            .contains("line 2: network a has 0 plugins")
    );
    assert!(
        problem("{\"cniVersion\": \"1.0.0\", \"name\": \"a\",\n\"disableCheck\": 7, \"type\": \"x\"}")
            .contains("7 where true or false belongs")
    );
}

#[test]
fn the_newest_common_version_comes_first() {
    let text = BRIDGE.replace("\"name\"", "\"cniVersions\": [\"0.4.0\", \"1.1.0\", \"7.0.0\"], \"name\"");
    let (_keep, directory) = directory(&[("10.conflist", &text)]);
    assert_eq!(directory.current().network.unwrap().versions, ["1.1.0", "1.0.0", "0.4.0"]);
}

#[test]
fn plugins_are_loaded_from_the_networks_folder() {
    let plugin = r#"{"type": "tuning"}"#;
    let (keep, directory) = directory(&[("10.conflist", BRIDGE), ("pods/10-tuning.conf", plugin)]);
    let kinds = |directory: &Directory| {
        directory.current().network.unwrap().plugins.iter().map(|p| p.kind.clone()).collect::<Vec<_>>()
    };
    assert_eq!(kinds(&directory), ["bridge", "tuning"]);
    let inlined = BRIDGE.replace("\"name\"", "\"loadOnlyInlinedPlugins\": \"true\", \"name\"");
    fs::write(keep.path().join("10.conflist"), inlined).unwrap();
    assert_eq!(kinds(&directory), ["bridge"]);
}

proptest::proptest! {
    #[test]
    fn no_text_panics(text in ".{0,200}") {
        let (_keep, directory) = directory(&[("10.conflist", &text)]);
        let _ = directory.current();
    }
}
