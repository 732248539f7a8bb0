//! The real `bulkhead-vmm` with a Linux guest under QEMU's software emulation. Needs root, QEMU, `rustc` and a guest kernel
//! (`BULKHEAD_TEST_KERNEL`, or the newest one that guest-image built); says what is missing and skips otherwise.

#![allow(clippy::unwrap_used, reason = "tests")]

mod harness;

use std::fs::File;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::Duration;

use bulkhead_proto::launch::ExitRecord;
use bulkhead_proto::vmm::{self as api, ExitReason};
use protobuf::Enum;
use rustix::process::{Pid, Signal, kill_process};
use ttrpc::context::Context;

use self::harness::{Guest, Pod, detached, guest, processes_of_session, within};

fn context() -> Context {
    ttrpc::context::with_duration(Duration::from_secs(60))
}

async fn booted(guest: &Guest) -> Pod {
    let pod = Pod::start(guest, |_| {}).await;
    match pod.client().wait_ready(context(), &api::WaitReadyRequest::new()).await {
        Ok(ready) => println!("booted in {} ms", ready.boot_us / 1000),
        Err(error) => panic!("{error}\n{}\n{}", pod.text("vmm.log"), pod.text("console.log")),
    }
    pod
}

fn message(error: ttrpc::Error) -> String {
    match error {
        ttrpc::Error::RpcStatus(status) => status.message,
        other => panic!("{other}"),
    }
}

/// As the daemon asks: a connection that came too late to be answered finds the record in the exit file.
async fn exit_of(pod: &Pod) -> (ExitReason, String) {
    match pod.client().wait_exit(context(), &api::WaitExitRequest::new()).await {
        Ok(answer) => (answer.exit.reason.unwrap(), answer.exit.message.clone()),
        Err(ttrpc::Error::RpcStatus(status)) => panic!("{}", status.message),
        Err(_) => {
            let record: ExitRecord = serde_json::from_str(&pod.text("exit.json")).unwrap();
            (ExitReason::from_i32(record.reason).unwrap(), record.message)
        }
    }
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::KILL).unwrap();
}

#[tokio::test]
async fn a_machine_boots_tells_about_itself_and_shuts_down() {
    let Some(guest) = guest() else { return };
    let pod = booted(guest).await;
    let info = pod.client().info(context(), &api::InfoRequest::new()).await.unwrap();
    assert_eq!((info.state.unwrap(), info.pid), (api::VmState::VM_STATE_READY, pod.child.id()));
    for socket in ["vmm.sock", "fd.sock", "vsock.sock"] {
        assert_eq!(std::fs::metadata(pod.path(socket)).unwrap().permissions().mode() & 0o077, 0, "{socket}");
    }
    let used = pod.client().statistics(context(), &api::StatisticsRequest::new()).await.unwrap();
    println!("memory: {} KiB, QEMU {} KiB", used.vmm_memory_bytes / 1024, used.monitor_memory_bytes / 1024);
    assert!(used.vmm_memory_bytes > 100 << 10 && used.monitor_memory_bytes > 1 << 20);
    assert!(used.monitor_memory_bytes < 128 << 20);
    // The release build's limit; a debug build is larger.
    assert!(used.vmm_memory_bytes < if cfg!(debug_assertions) { 40 << 20 } else { 10 << 20 });
    assert!(used.vsock_tx_bytes + used.vsock_rx_bytes < 1 << 20);
    // A hang-up means nothing to a pod.
    kill_process(Pid::from_raw(i32::try_from(info.pid).unwrap()).unwrap(), Signal::HUP).unwrap();
    let waiting = pod.client().clone();
    let exit = tokio::spawn(async move { waiting.wait_exit(context(), &api::WaitExitRequest::new()).await });
    pod.client().shutdown(context(), &api::ShutdownRequest::new()).await.unwrap();
    let exit = exit.await.unwrap().unwrap().exit;
    let record = pod.ended();
    assert_eq!(record.reason, ExitReason::EXIT_REASON_SHUTDOWN as i32);
    assert_eq!((exit.message.clone(), exit.at_ns), (record.message, record.at_ns));
}

#[tokio::test]
async fn ends_are_told_apart() {
    let Some(guest) = guest() else { return };
    let pod = booted(guest).await;
    let info = pod.client().info(context(), &api::InfoRequest::new()).await.unwrap();
    kill(info.monitor_pid);
    let (reason, text) = exit_of(&pod).await;
    assert_eq!((reason, text.as_str()), (ExitReason::EXIT_REASON_KILLED, "QEMU was killed by signal 9 (SIGKILL)"));
    pod.ended();

    let pod = booted(guest).await;
    pod.guest("off");
    assert_eq!(exit_of(&pod).await.0, ExitReason::EXIT_REASON_POWER_OFF);
    pod.ended();

    let pod = booted(guest).await;
    pod.guest("reset");
    let (reason, text) = exit_of(&pod).await;
    assert!(reason == ExitReason::EXIT_REASON_AGENT && text.starts_with("the guest ended without a word"), "{text}");
    pod.ended();

    let pod = booted(guest).await;
    pod.guest("die");
    let (reason, text) = exit_of(&pod).await;
    assert_eq!(reason, ExitReason::EXIT_REASON_AGENT);
    assert!(text.contains("Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000700"), "{text}");
    assert!(pod.text("vmm.log").contains("ERROR") && pod.text("console.log").contains("Kernel panic"));
    pod.ended();

    let pod = booted(guest).await;
    kill_process(Pid::from_raw(i32::try_from(pod.child.id()).unwrap()).unwrap(), Signal::TERM).unwrap();
    assert_eq!(exit_of(&pod).await.0, ExitReason::EXIT_REASON_SHUTDOWN);
    pod.ended();
}

#[tokio::test]
async fn a_machine_that_does_not_boot_says_why() {
    let Some(guest) = guest() else { return };
    let pod = Pod::start(guest, |launch| launch.kernel = launch.initramfs.clone()).await;
    let error = pod.client().wait_ready(context(), &api::WaitReadyRequest::new()).await.unwrap_err();
    let text = message(error);
    println!("bad kernel: {text}");
    assert!(text.starts_with("QEMU ended with exit code 1: "), "{text}");
    assert_eq!(pod.ended().reason, ExitReason::EXIT_REASON_MONITOR_ERROR as i32);

    let pod = Pod::start(guest, |launch| launch.kernel_arguments = "test.mute".into()).await;
    let text = message(pod.client().wait_ready(context(), &api::WaitReadyRequest::new()).await.unwrap_err());
    assert!(text.starts_with("the guest powered off before its agent listened"), "{text}");
    assert_eq!(pod.ended().reason, ExitReason::EXIT_REASON_AGENT as i32);

    for (change, words) in [
        (
            (|launch| launch.kernel = "/nonexistent".into()) as fn(&mut bulkhead_proto::launch::Launch),
            "cannot read the guest's kernel /nonexistent",
        ),
        (|launch| launch.file_server = Some("/nonexistent".into()), "cannot start the file server /nonexistent"),
        (|launch| launch.scratch_drive = Some(4), "the scratch drive is descriptor 4"),
        (|launch| launch.protocol_version = 77, "version 77"),
        (
            |launch| {
                launch.monitor =
                    bulkhead_proto::launch::Monitor::Qemu { binary: "/nonexistent".into(), accelerator: "tcg".into() }
            },
            "cannot start QEMU /nonexistent",
        ),
    ] {
        let mut pod = Pod::start(guest, change).await;
        assert!(pod.answer.starts_with("error: ") && pod.answer.contains(words), "{}", pod.answer);
        assert!(!pod.child.wait().unwrap().success());
        within(Duration::from_secs(10), "children end", || processes_of_session(pod.child.id()).is_empty());
        assert!(!pod.path("vmm.sock").exists() && !pod.path("vsock.sock").exists() && !pod.path("fd.sock").exists());
    }
}

/// The texts of a log's records, their times checked.
fn records(log: &str) -> Vec<&str> {
    log.lines()
        .map(|line| {
            let (time, rest) = line.split_once(' ').unwrap();
            assert!(time.len() == 30 && time.ends_with('Z') && time.starts_with("20"), "{line}");
            rest
        })
        .collect()
}

async fn attach(pod: &Pod, container: &str, file: &str) -> Result<(), ttrpc::Error> {
    let log = File::options().create(true).append(true).open(pod.path(file)).unwrap();
    let token = format!("log:{container}:{file}");
    let _held = pod.send(&token, log);
    let request =
        api::AttachLogRequest { container_id: container.into(), descriptor_token: token, ..Default::default() };
    pod.client().attach_log(context(), &request).await.map(drop)
}

async fn wait_log(pod: &Pod, container: &str) -> Result<api::WaitLogResponse, ttrpc::Error> {
    let request = api::WaitLogRequest { container_id: container.into(), ..Default::default() };
    pod.client().wait_log(context(), &request).await
}

#[tokio::test]
async fn output_becomes_cri_logs() {
    let Some(guest) = guest() else { return };
    let pod = booted(guest).await;
    attach(&pod, "lines", "test-lines").await.unwrap();
    assert!(message(attach(&pod, "lines", "test-other").await.unwrap_err()).contains("has a log attached already"));
    let end = wait_log(&pod, "lines").await.unwrap();
    assert_eq!((end.exit.code, end.lost_bytes), (3, 0));
    let expected = ["stdout F one", "stdout F two", "stderr F oops", "stdout P no newline"];
    assert_eq!(records(&pod.text("test-lines")), expected);

    attach(&pod, "two-parts", "test-old").await.unwrap();
    within(Duration::from_secs(10), "the first part", || pod.text("test-old").ends_with("before\n"));
    let _held = pod.send("new", File::create(pod.path("test-new")).unwrap());
    let reopen = api::ReopenLogRequest {
        container_id: "two-parts".into(),
        descriptor_token: "new".into(),
        ..Default::default()
    };
    pod.client().reopen_log(context(), &reopen).await.unwrap();
    assert_eq!(pod.guest("go"), "gone");
    wait_log(&pod, "two-parts").await.unwrap();
    assert_eq!(records(&pod.text("test-old")), ["stdout F before"]);
    assert_eq!(records(&pod.text("test-new")), ["stdout F after"]);

    attach(&pod, "nobody", "test-nobody").await.unwrap();
    assert!(message(wait_log(&pod, "nobody").await.unwrap_err()).contains("no such container"));
    let forget = api::DetachLogRequest { container_id: "nobody".into(), ..Default::default() };
    pod.client().detach_log(context(), &forget).await.unwrap();
    assert!(message(wait_log(&pod, "nobody").await.unwrap_err()).contains("no log attached"));

    let started = std::time::Instant::now();
    attach(&pod, "flood", "test-flood").await.unwrap();
    assert_eq!(wait_log(&pod, "flood").await.unwrap().lost_bytes, 0);
    let len = pod.path("test-flood").metadata().unwrap().len();
    println!("a flood of {} MiB in {:?}", len >> 20, started.elapsed());
    assert_eq!(pod.text("test-flood").lines().count(), 200_000);

    // A full disk: nothing blocks, what is lost is counted.
    let request =
        api::AttachLogRequest { container_id: "endless".into(), descriptor_token: "full".into(), ..Default::default() };
    let _held = pod.send("full", File::options().append(true).open("/dev/full").unwrap());
    pod.client().attach_log(context(), &request).await.unwrap();
    let waiting = wait_log(&pod, "endless");
    let shutdown = async {
        within(Duration::from_secs(10), "the complaint", || pod.text("vmm.log").contains("cannot write the log"));
        pod.client().shutdown(context(), &api::ShutdownRequest::new()).await.unwrap();
    };
    let (end, ()) = tokio::join!(waiting, shutdown);
    let end = end.unwrap();
    assert!(end.exit.is_none());
    let bytes =
        "2026-11-24T01:02:03.123456789Z stdout F so far\n2026-11-24T01:02:03.123456789Z stdout P and no\n".len();
    assert_eq!(end.lost_bytes, bytes as u64);
    let record = pod.ended();
    let mut ids: Vec<_> = record.containers.iter().map(|container| (container.id.as_str(), container.code)).collect();
    ids.sort_unstable();
    assert_eq!(ids, [("flood", 3), ("lines", 3), ("two-parts", 3)]);
}

async fn add_volume(pod: &Pod, name: &str, path: &str, read_only: bool) -> Result<(), ttrpc::Error> {
    let path = pod.path(path);
    let _held = pod.send(name, detached(&path, read_only));
    let request = api::AddVolumeRequest {
        name: name.into(),
        descriptor_token: name.into(),
        directory: path.is_dir(),
        ..Default::default()
    };
    pod.client().add_volume(context(), &request).await.map(drop)
}

#[tokio::test]
async fn volumes_are_live_and_guarded_by_the_host() {
    let Some(guest) = guest() else { return };
    let pod = booted(guest).await;
    assert_eq!(pod.guest("list /volumes"), "");
    let at = |name: &str| pod.path(&format!("test-volumes/{name}"));
    for directory in ["host", "config/v1", "config/v2"] {
        std::fs::create_dir_all(at(directory)).unwrap();
    }
    std::fs::write(at("host/greeting"), "hello").unwrap();
    std::fs::write(at("file"), "one file").unwrap();
    std::fs::write(at("config/v1/key"), "old").unwrap();
    std::fs::write(at("config/v2/key"), "new").unwrap();
    symlink("v1", at("config/..data")).unwrap();
    symlink("..data/key", at("config/key")).unwrap();

    add_volume(&pod, "host", "test-volumes/host", false).await.unwrap();
    add_volume(&pod, "file", "test-volumes/file", true).await.unwrap();
    add_volume(&pod, "config", "test-volumes/config", true).await.unwrap();
    assert!(
        message(add_volume(&pod, "host", "test-volumes/host", false).await.unwrap_err())
            .contains("a volume is called host already")
    );
    assert!(message(add_volume(&pod, "..", "test-volumes/host", false).await.unwrap_err()).contains("volume name"));

    within(Duration::from_secs(3), "the volumes appear", || pod.guest("list /volumes") == "config,file,host");
    assert_eq!(pod.guest("read /volumes/host/greeting"), "hello");
    assert_eq!(pod.guest("read /volumes/file"), "one file");
    assert_eq!(pod.guest("write /volumes/host/back"), "written");
    assert_eq!(std::fs::read_to_string(at("host/back")).unwrap(), "from the guest");
    assert_eq!(pod.guest("own /volumes/host/back"), "owned");
    assert_eq!(at("host/back").metadata().unwrap().uid(), 1234);
    // EROFS, from the host's kernel.
    for path in ["/volumes/config/v1/key", "/volumes/config/new", "/volumes/file", "/volumes/new"] {
        assert_eq!(pod.guest(&format!("write {path}")), "errno 30", "{path}");
    }
    let ids = ["host", "config"].map(|name| pod.guest(&format!("stat /volumes/{name}")));
    assert_ne!(ids[0].split(':').next(), ids[1].split(':').next(), "each volume is a device of its own: {ids:?}");

    assert_eq!(pod.guest("read /volumes/config/key"), "old");
    symlink("v2", at("config/..data_tmp")).unwrap();
    std::fs::rename(at("config/..data_tmp"), at("config/..data")).unwrap();
    let swapped = std::time::Instant::now();
    within(Duration::from_secs(3), "the symlink's swap", || pod.guest("read /volumes/config/key") == "new");
    println!("the swap of a symlink is seen after {:?}", swapped.elapsed());

    let request = api::RemoveVolumeRequest { name: "file".into(), ..Default::default() };
    for _ in 0..2 {
        pod.client().remove_volume(context(), &request).await.unwrap();
    }
    within(Duration::from_secs(3), "a volume goes", || pod.guest("list /volumes") == "config,host");
    std::fs::write(at("file2"), "another").unwrap();
    add_volume(&pod, "file", "test-volumes/file2", true).await.unwrap();
    within(Duration::from_secs(3), "a name is used again", || pod.guest("read /volumes/file") == "another");
    pod.client().shutdown(context(), &api::ShutdownRequest::new()).await.unwrap();
    pod.ended();
}

#[tokio::test]
async fn a_dead_process_leaves_no_children() {
    let Some(guest) = guest() else { return };
    let pod = booted(guest).await;
    let session = pod.child.id();
    // QEMU, and the file server's two.
    assert_eq!(processes_of_session(session).len(), 4);
    kill(session);
    within(Duration::from_secs(10), "children end", || processes_of_session(session).is_empty());
}

#[tokio::test]
async fn a_dead_file_server_ends_the_machine() {
    let Some(guest) = guest() else { return };
    let pod = booted(guest).await;
    let servers = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let is_ours = stat.contains(&format!(" {} ", pod.child.id())) && stat.contains("(bulkhead-fs");
        is_ours.then(|| entry.file_name().to_str().and_then(|pid| pid.parse::<u32>().ok()))?
    });
    let first = servers.min().unwrap();
    kill(first);
    let (reason, text) = exit_of(&pod).await;
    assert_eq!(reason, ExitReason::EXIT_REASON_MONITOR_ERROR);
    assert_eq!(text, "the machine was ended because its file server was killed by signal 9 (SIGKILL)");
    pod.ended();
}
