//! The Container Device Interface: devices that files of their vendors describe, on the host's own kernel.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use bulkhead_proto::cri;
use bulkhead_tests::environment::{Environment, Handler};
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::images::busybox;
use bulkhead_tests::images::catalogue::Catalogue;
use bulkhead_tests::pod::{Outcome, Pod, Spec};
use bulkhead_tests::skip;
use bulkhead_tests::suite::{Skipped, SuiteFixture};
use serde_json::{Value, json};

/// The fixture of all suites, with directories of its own for the vendors' files.
struct Cdi {
    fixture: Fixture,
    /// In the configuration's order.
    directories: [PathBuf; 2],
}

impl SuiteFixture for Cdi {
    fn start(environment: &Environment) -> Result<Self> {
        if environment.handler != Handler::Native {
            return Err(
                Skipped::because("a VM has no device of the host: BULKHEAD_TEST_HANDLER=native runs this").into()
            );
        }
        let busybox = busybox::find()?;
        let fixture = Fixture::start_with(environment, |registry, settings| {
            let directories = ["cdi/etc", "cdi/run"].map(|name| settings.directory.join(name));
            settings.more = format!("[cdi]\nspec_dirs = {directories:?}\n");
            Catalogue::new(&busybox)?.push(&registry.target())
        })?;
        let directories = ["cdi/etc", "cdi/run"].map(|name| fixture.path(name));
        // The second directory is not there before a file is.
        fs::create_dir_all(&directories[0])?;
        Ok(Self { fixture, directories })
    }

    fn after_case(&mut self, failed: bool) -> Result<()> {
        for directory in &self.directories {
            if directory.exists() {
                fs::remove_dir_all(directory)?;
            }
        }
        self.fixture.after_case(failed)
    }

    fn finish(self) -> Result<()> {
        self.fixture.finish()
    }
}

bulkhead_tests::suite!(
    Cdi;
    a_device_brings_all_that_its_file_says,
    a_node_without_an_owner_is_the_users,
    annotations_ask_for_devices_too,
    files_are_read_for_each_container,
    a_later_directory_wins_and_equals_conflict,
    a_broken_file_costs_only_its_own_devices,
    what_a_device_cannot_be_given_is_refused_by_name,
    what_was_given_survives_the_daemon,
    the_reference_implementation_agrees,
    a_file_that_the_reference_implementation_writes_is_read,
);

impl Cdi {
    /// Writes a file of the directory `at`.
    fn write(&self, at: usize, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.directories[at].join(name);
        fs::create_dir_all(&self.directories[at])?;
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// A container of busybox that asks for devices of the kind `vendor.example/thing`.
    fn asking(&self, script: &str, devices: &[&str]) -> Result<Spec> {
        let name = |device: &&str| cri::CdiDevice { name: format!("vendor.example/thing={device}") };
        Ok(self.fixture.shell(script)?.with(|config| config.cdi_devices = devices.iter().map(name).collect()))
    }

    fn refused(&self, pod: &Pod, devices: &[&str]) -> Result<String> {
        let error = pod.create(&self.asking("true", devices)?).err().context("it was created")?;
        ensure!(error.code == tonic::Code::InvalidArgument, "{error}");
        Ok(error.message)
    }
}

fn says(message: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(message.contains(word), "{word:?} is not in {message:?}");
    }
    Ok(())
}

/// One device whose edits set a variable.
fn variable(name: &str, value: &str) -> String {
    json!({
        "cdiVersion": "0.6.0",
        "kind": "vendor.example/thing",
        "devices": [{"name": name, "containerEdits": {"env": [format!("THING={value}")]}}],
    })
    .to_string()
}

/// The options of the container's mount at `path`, by its mountinfo.
fn mount_options<'a>(mountinfo: &'a str, path: &str) -> Result<Vec<&'a str>> {
    let fields = mountinfo.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found = fields.into_iter().find(|fields| fields.get(4) == Some(&path));
    Ok(found.with_context(|| format!("nothing is mounted at {path}: {mountinfo}"))?[5].split(',').collect())
}

fn device_file(volume: &Path) -> String {
    format!(
        "---
cdiVersion: \"0.7.0\"
kind: vendor.example/thing
containerEdits:
  env: [DRIVER=of the file, PATH=/bin]
devices:
- name: \"0\"
  annotations: {{vendor.example/note: a test}}
  containerEdits:
    env: [THING=0]
    deviceNodes:
    - {{path: /dev/vendor/thing0, hostPath: /dev/loop-control, permissions: r, fileMode: 0640, uid: 1234, gid: 5678}}
    - {{path: /dev/vendor/pipe, type: p}}
    mounts:
    - {{hostPath: {volume}, containerPath: /vendor/lib, options: [ro, nosuid, nodev, noexec, rbind, rprivate]}}
    - {{hostPath: {volume}/file, containerPath: /vendor/file, options: [bind]}}
    additionalGids: [0, 4321]
- name: \"1\"
  containerEdits:
    env: [THING=1]
    deviceNodes: [{{path: /dev/vendor/thing1, type: c, major: 1, minor: 5}}]
",
        volume = volume.display()
    )
}

/// Prints what the devices of [`device_file`] bring.
const LOOK: &str = "echo \"$DRIVER, $THING, $PATH\"; stat -c '%n %F %a %u:%g %t:%T' /dev/vendor/*; id -G; \
                    : < /dev/vendor/thing0 && echo readable; (: > /dev/vendor/thing0) 2>&1; cat /vendor/lib/file /vendor/file; \
                    echo end; cat /proc/self/mountinfo";

fn look(c: &Cdi, name: &str, devices: &[&str]) -> Result<Outcome> {
    let volume = c.fixture.path("volume");
    fs::create_dir_all(&volume)?;
    fs::write(volume.join("file"), "of the vendor\n")?;
    c.write(0, "vendor.yaml", &device_file(&volume))?;
    c.fixture.pod(name)?.once(&c.asking(LOOK, devices)?.env("THING", "of the pod"))
}

fn a_device_brings_all_that_its_file_says(c: &mut Cdi) -> Result<()> {
    let outcome = look(c, "all", &["0"])?;
    let (seen, mountinfo) = outcome.stdout.split_once("end\n").context("it ended early")?;
    let lines: Vec<&str> = seen.lines().collect();
    ensure!(lines[0] == "of the file, 0, /bin", "{outcome:?}");
    ensure!(lines[1].starts_with("/dev/vendor/pipe fifo 666 0:0"), "{outcome:?}");
    ensure!(lines[2] == "/dev/vendor/thing0 character special file 640 1234:5678 a:ed", "{outcome:?}");
    ensure!(lines[3].split(' ').any(|group| group == "4321"), "{outcome:?}");
    ensure!(lines[4] == "readable" && lines[5].contains("Operation not permitted"), "{outcome:?}");
    ensure!(lines[6..] == ["of the vendor", "of the vendor"], "{outcome:?}");
    let options = mount_options(mountinfo, "/vendor/lib")?;
    ensure!(["ro", "nosuid", "nodev", "noexec"].iter().all(|option| options.contains(option)), "{options:?}");
    let options = mount_options(mountinfo, "/vendor/file")?;
    ensure!(options.contains(&"rw") && !options.contains(&"noexec"), "{options:?}");
    // The later device of one file wins, and both are there.
    let outcome = look(c, "both", &["0", "1"])?;
    ensure!(outcome.stdout.starts_with("of the file, 1, /bin\n"), "{outcome:?}");
    says(&outcome.stdout, &["/dev/vendor/thing0", "/dev/vendor/thing1 character special file 666 0:0 1:5"])
}

fn a_node_without_an_owner_is_the_users(c: &mut Cdi) -> Result<()> {
    let node = json!({"path": "/dev/thing", "hostPath": "/dev/zero", "fileMode": 0o600});
    let device = json!({"name": "own", "containerEdits": {"deviceNodes": [node]}});
    let file = json!({"cdiVersion": "0.5.0", "kind": "vendor.example/thing", "devices": [device]});
    c.write(0, "own.json", &file.to_string())?;
    let spec = c.asking("stat -c %u:%g:%a /dev/thing; head -c 1 /dev/thing | wc -c", &["own"])?;
    let spec = spec.security(|context| {
        context.run_as_user = Some(cri::Int64Value { value: 1000 });
        context.run_as_group = Some(cri::Int64Value { value: 2000 });
    });
    let outcome = c.fixture.pod("own")?.once(&spec)?;
    ensure!(outcome.stdout == "1000:2000:600\n1\n", "{outcome:?}");
    Ok(())
}

fn annotations_ask_for_devices_too(c: &mut Cdi) -> Result<()> {
    c.write(0, "a.json", &variable("a", "a"))?;
    let other = json!({"name": "b", "containerEdits": {"env": ["OTHER=b"]}});
    let file = json!({"cdiVersion": "0.6.0", "kind": "other.example/thing", "devices": [other]});
    c.write(0, "b.json", &file.to_string())?;
    let pod = c.fixture.pod("annotated")?;
    let asking = |value: &str| -> Result<Spec> {
        let annotations = [("cdi.k8s.io/plugin_0".to_owned(), value.to_owned())];
        Ok(c.fixture.shell("echo $THING $OTHER")?.with(|config| config.annotations = annotations.into()))
    };
    let outcome = pod.once(&asking("other.example/thing=b,vendor.example/thing=a")?)?;
    ensure!(outcome.stdout == "a b\n", "{outcome:?}");
    let error = pod.create(&asking("thing")?).err().context("it was created")?;
    says(&error.message, &["annotation cdi.k8s.io/plugin_0", "\"thing\"", "VENDOR/CLASS=DEVICE"])
}

fn files_are_read_for_each_container(c: &mut Cdi) -> Result<()> {
    let pod = c.fixture.pod("anew")?;
    let directories = c.directories.clone().map(|directory| directory.display().to_string());
    says(&c.refused(&pod, &["x"])?, &["\"vendor.example/thing=x\"", &directories[0], &directories[1]])?;
    let path = c.write(1, "x.json", &variable("x", "first"))?;
    let spec = c.asking("echo $THING", &["x"])?;
    ensure!(pod.once(&spec)?.stdout == "first\n", "a new file is not seen");
    c.write(1, "x.json", &variable("x", "second"))?;
    ensure!(pod.once(&spec)?.stdout == "second\n", "a changed file is not seen");
    fs::remove_file(path)?;
    says(&c.refused(&pod, &["x"])?, &["no file", "thing=x"])?;
    ensure!(c.fixture.cri().containers()?.is_empty(), "a container is left");
    Ok(())
}

fn a_later_directory_wins_and_equals_conflict(c: &mut Cdi) -> Result<()> {
    c.write(0, "a.json", &variable("x", "first"))?;
    c.write(1, "b.json", &variable("x", "second"))?;
    let pod = c.fixture.pod("order")?;
    ensure!(pod.once(&c.asking("echo $THING", &["x"])?)?.stdout == "second\n", "the earlier directory won");
    c.write(1, "c.json", &variable("x", "third"))?;
    says(&c.refused(&pod, &["x"])?, &["thing=x", "cdi/run/b.json", "cdi/run/c.json", "remove one"])
}

fn a_broken_file_costs_only_its_own_devices(c: &mut Cdi) -> Result<()> {
    c.write(0, "good.json", &variable("good", "works"))?;
    c.write(0, "broken.json", "{")?;
    c.write(0, "unknown.yaml", "cdiVersion: 9.9.9\nkind: vendor.example/thing\ndevices: []\n")?;
    let fifo = c.directories[0].join("pipe.json");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0)?;
    c.write(0, "notes.txt", "no file of a vendor")?;
    let pod = c.fixture.pod("broken")?;
    ensure!(pod.once(&c.asking("echo $THING", &["good"])?)?.stdout == "works\n", "a good file is not used");
    let message = c.refused(&pod, &["lost"])?;
    says(
        &message,
        &["thing=lost", "broken.json: ", "unknown.yaml: cdiVersion \"9.9.9\"", "pipe.json: it is no regular"],
    )?;
    ensure!(!message.contains("notes.txt") && !message.contains("good.json"), "{message}");
    Ok(())
}

fn what_a_device_cannot_be_given_is_refused_by_name(c: &mut Cdi) -> Result<()> {
    let pod = c.fixture.pod("refused")?;
    for (edits, words) in [
        (json!({"intelRdt": {"closID": "x"}}), "intelRdt"),
        (json!({"netDevices": [{"hostInterfaceName": "eth7", "name": "eth0"}]}), "netDevices"),
        (json!({"deviceNodes": [{"path": "/dev/no-such-device"}]}), "deviceNodes /dev/no-such-device"),
        (json!({"mounts": [{"hostPath": "/no/such", "containerPath": "/x"}]}), "/no/such on the host"),
        (json!({"mounts": [{"hostPath": "/tmp", "containerPath": "/x", "options": ["size=1"]}]}), "\"size=1\""),
    ] {
        let device = json!({"name": "x", "containerEdits": edits});
        let file = json!({"cdiVersion": "1.1.0", "kind": "vendor.example/thing", "devices": [device]});
        c.write(0, "x.json", &file.to_string())?;
        says(&c.refused(&pod, &["x"])?, &["thing=x", "x.json", words])?;
    }
    says(&c.refused(&pod, &["x y"])?, &["CDI_devices", "x y", "VENDOR/CLASS=DEVICE"])?;
    ensure!(c.fixture.cri().containers()?.is_empty(), "a container is left");
    c.fixture.remove_pods(&std::collections::BTreeSet::new())?;
    c.fixture.assert_nothing_left()
}

fn what_was_given_survives_the_daemon(c: &mut Cdi) -> Result<()> {
    let path = c.write(0, "a.json", &variable("a", "kept"))?;
    let pod = c.fixture.pod("restart")?;
    let container = pod.start(&c.asking("echo up; exec sleep 1000", &["a"])?)?;
    container.says("up")?;
    c.fixture.daemon.kill()?;
    fs::remove_file(path)?;
    c.fixture.daemon.start_again()?;
    let seen = container.exec(&["sh", "-c", "echo $THING"])?;
    ensure!(seen.stdout == "kept\n", "{seen:?}");
    says(&c.refused(&c.fixture.pod("after")?, &["a"])?, &["no file"])?;
    c.write(0, "a.json", &variable("a", "again"))?;
    let later = pod.once(&c.asking("echo $THING", &["a"])?.named("later"))?;
    ensure!(later.stdout == "again\n", "{later:?}");
    Ok(())
}

/// Runs the program around the reference implementation (tests/cdi/main.go).
fn reference(arguments: &[&str], input: &str) -> Result<String> {
    let Some(program) = std::env::var_os("BULKHEAD_CDI_REFERENCE") else {
        skip!("there is no reference implementation (scripts/cdi-reference.sh builds it where Go is found)")
    };
    let mut child = Command::new(&program).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().context("no standard input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{program:?} {arguments:?}: {}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// What the reference implementation makes of the files and the devices of `vendor.example/thing`.
fn injected(c: &Cdi, devices: &[&str]) -> Result<Value> {
    let directories = c.directories.clone().map(|directory| directory.display().to_string()).join(",");
    let names: Vec<String> = devices.iter().map(|device| format!("vendor.example/thing={device}")).collect();
    let arguments: Vec<&str> = ["inject", &directories].into_iter().chain(names.iter().map(String::as_str)).collect();
    Ok(serde_json::from_str(&reference(&arguments, "")?)?)
}

fn the_reference_implementation_agrees(c: &mut Cdi) -> Result<()> {
    let outcome = look(c, "agrees", &["0", "1"])?;
    let report = injected(c, &["0", "1"])?;
    ensure!(report["broken"] == json!({}) && report["refused"] == "", "{report}");
    let spec = &report["spec"];
    let env: Vec<&str> =
        spec["process"]["env"].as_array().context("no env")?.iter().filter_map(Value::as_str).collect();
    ensure!(env == ["DRIVER=of the file", "PATH=/bin", "THING=1"], "{env:?}");
    ensure!(spec["process"]["user"]["additionalGids"] == json!([4321]), "{spec}");
    for device in spec["linux"]["devices"].as_array().context("no devices")? {
        let number = |field: &str| device[field].as_u64().unwrap_or(0);
        let path = device["path"].as_str().context("no path")?;
        let line = outcome.stdout.lines().find(|line| line.starts_with(path)).context("no node")?;
        let expected = format!(
            "{:o} {}:{} {:x}:{:x}",
            device["fileMode"].as_u64().unwrap_or(0o666),
            number("uid"),
            number("gid"),
            number("major"),
            number("minor")
        );
        ensure!(line.ends_with(&expected), "{line:?} is not {expected:?} of {device}");
    }
    for mount in spec["mounts"].as_array().context("no mounts")? {
        let seen = mount_options(&outcome.stdout, mount["destination"].as_str().context("no destination")?)?;
        for option in mount["options"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            ensure!(option.ends_with("bind") || option == "rprivate" || seen.contains(&option), "{option}: {seen:?}");
        }
    }
    // What is wrong in a file, and what is in conflict, is so for both.
    c.write(0, "broken.yaml", "{")?;
    c.write(0, "twice.json", &variable("1", "again"))?;
    c.write(1, "member.json", &variable("2", "x").replace("\"env\"", "\"environment\""))?;
    let report = injected(c, &["1"])?;
    ensure!(report["refused"].as_str().is_some_and(|why| why.contains("thing=1")), "{report}");
    ensure!(report["devices"] == json!(["vendor.example/thing=0"]), "{report}");
    let pod = c.fixture.pod("differs")?;
    says(&c.refused(&pod, &["1"])?, &["thing=1", "twice.json", "vendor.yaml"])?;
    let broken = report["broken"].as_object().context("no report of files")?;
    let message = c.refused(&pod, &["2"])?;
    for name in ["broken.yaml", "member.json"] {
        ensure!(broken.keys().any(|path| path.ends_with(name)), "{report}");
        says(&message, &[name])?;
    }
    Ok(())
}

fn a_file_that_the_reference_implementation_writes_is_read(c: &mut Cdi) -> Result<()> {
    let directory = c.directories[1].display().to_string();
    let pod = c.fixture.pod("written")?;
    for (name, value) in [("plugin.yaml", "of yaml"), ("plugin.json", "of json")] {
        reference(&["write", &directory, name], &variable("w", value))?;
        ensure!(pod.once(&c.asking("echo $THING", &["w"])?)?.stdout == format!("{value}\n"), "{name} is not used");
        fs::remove_file(c.directories[1].join(name))?;
    }
    Ok(())
}
