//! The real agent on this host: containers, their streams and their limits.

mod support;

use std::fs;

use bulkhead_proto::agent::*;
use support::{Refused, context, process};

#[tokio::test]
async fn a_container_is_created_started_and_waited_for() {
    let agent = agent_or_skip!();
    let info = agent.client.info(context(), &InfoRequest::new()).await.unwrap();
    assert!(!info.kernel_release.is_empty() && info.memory_total_bytes > 0 && info.cpus_online > 0);
    let output = agent.run(&agent.spec("one", "echo out; echo err >&2; echo $$; exit 3")).await;
    assert_eq!((output.stdout.as_str(), output.stderr.as_str(), output.code), ("out\n1\n", "err\n", 3));
    agent.finish().await;
}

#[tokio::test]
async fn nothing_is_read_before_a_primary_connection_and_nothing_is_lost() {
    let agent = agent_or_skip!();
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done";
    agent.create(&agent.spec("c", script)).await.unwrap();
    agent.start_container("c").await.unwrap();
    let output = agent.stdio("c", "", true, false).await.into_end().await;
    assert_eq!(output.stdout.lines().count(), 20000);
    assert_eq!(output.stdout.lines().last(), Some("line 19999"));
    agent.remove("c").await;
    agent.finish().await;
}

#[tokio::test]
async fn output_waits_for_the_next_primary_and_copies_follow() {
    let agent = agent_or_skip!();
    let mut spec = agent.spec("d", "echo one; read x; echo two; read x; echo three");
    spec.process.as_mut().unwrap().stdin = true;
    agent.create(&spec).await.unwrap();
    agent.start_container("d").await.unwrap();
    let mut first = agent.stdio("d", "", true, true).await;
    first.until("one\n").await;
    let copy = agent.stdio("d", "", false, false).await;
    drop(first);
    let mut second = agent.stdio("d", "", true, true).await;
    second.send("\n").await;
    second.until("two\n").await;
    second.send("\n").await;
    second.close_input().await;
    assert_eq!(second.into_end().await.stdout, "three\n");
    let copied = copy.into_end().await;
    assert!(copied.stdout.ends_with("three\n"), "{copied:?}");
    agent.remove("d").await;
    agent.finish().await;
}

#[tokio::test]
async fn a_background_child_does_not_hold_back_the_exit() {
    let agent = agent_or_skip!();
    agent.create(&agent.spec("c", "sleep 100")).await.unwrap();
    agent.start_container("c").await.unwrap();
    agent.exec("c", "e", process(&["/bin/sh", "-c", "sleep 50 & echo done"])).await.unwrap();
    let output = agent.stdio("c", "e", true, false).await.into_end().await;
    assert_eq!((output.stdout.as_str(), output.code), ("done\n", 0));
    agent.remove("c").await;
    agent.finish().await;
}

#[tokio::test]
async fn commands_run_in_a_running_container() {
    let agent = agent_or_skip!();
    agent.create(&agent.spec("c", "touch /made; sleep 100")).await.unwrap();
    let early = agent.exec("c", "early", process(&["/bin/true"])).await.map(drop).refused();
    assert!(early.contains("not running"), "{early}");
    agent.start_container("c").await.unwrap();
    let mut command = process(&["/bin/sh", "-c", "cat; until ls /made 2>/dev/null; do sleep 0.01; done"]);
    command.stdin = true;
    agent.exec("c", "e", command.clone()).await.unwrap();
    let again = agent.exec("c", "e", command).await.map(drop).refused();
    assert!(again.contains("already"), "{again}");
    let mut stdio = agent.stdio("c", "e", true, true).await;
    stdio.send("typed\n").await;
    stdio.close_input().await;
    let output = stdio.into_end().await;
    assert!(output.stdout.starts_with("typed\n/made\n"), "{output:?}");
    assert_eq!(agent.wait("c", "e").await.code, 0);
    let missing = agent.exec("c", "m", process(&["no-such"])).await.map(drop).refused();
    assert!(missing.contains("exec \"no-such\": executable file not found in $PATH"), "{missing}");
    let mut remove = RemoveProcessRequest::new();
    (remove.container_id, remove.exec_id) = ("c".into(), "e".into());
    agent.client.remove_process(context(), &remove).await.unwrap();
    agent.client.remove_process(context(), &remove).await.unwrap();
    agent.remove("c").await;
    agent.remove("c").await;
    agent.finish().await;
}

#[tokio::test]
async fn signals_reach_one_process_or_all() {
    let agent = agent_or_skip!();
    agent
        .create(&agent.spec("c", "trap 'echo caught; exit 9' TERM; echo ready; while :; do sleep 0.1; done"))
        .await
        .unwrap();
    agent.start_container("c").await.unwrap();
    let mut stdio = agent.stdio("c", "", true, false).await;
    stdio.until("ready\n").await;
    assert!(agent.signal("c", "", 0, false).await.is_err());
    agent.signal("c", "", libc::SIGTERM, false).await.unwrap();
    assert_eq!(stdio.into_end().await.code, 9);
    agent.remove("c").await;
    agent.create(&agent.spec("d", "sleep 100")).await.unwrap();
    agent.start_container("d").await.unwrap();
    agent.signal("d", "", libc::SIGKILL, true).await.unwrap();
    assert_eq!(agent.wait("d", "").await.code, 137);
    agent.signal("d", "", libc::SIGTERM, false).await.unwrap();
    agent.remove("d").await;
    agent.finish().await;
}

#[tokio::test]
async fn a_terminal_is_the_containers_own() {
    let agent = agent_or_skip!();
    let mut spec = agent.spec("c", "tty; stty size; read line; echo got $line; stty size");
    let wanted = spec.process.as_mut().unwrap();
    (wanted.terminal, wanted.stdin, wanted.rows, wanted.columns) = (true, true, 30, 90);
    agent.create(&spec).await.unwrap();
    agent.start_container("c").await.unwrap();
    let mut stdio = agent.stdio("c", "", true, true).await;
    assert_eq!(stdio.until("30 90\r\n").await, "/dev/pts/0\r\n30 90\r\n");
    let mut resize = ResizeTerminalRequest::new();
    (resize.container_id, resize.rows, resize.columns) = ("c".into(), 40, 100);
    agent.client.resize_terminal(context(), &resize).await.unwrap();
    stdio.send("hi\n").await;
    let output = stdio.into_end().await;
    assert!(output.stdout.contains("got hi\r\n40 100\r\n"), "{output:?}");
    agent.remove("c").await;
    agent.finish().await;
}

#[tokio::test]
async fn users_are_those_of_the_image() {
    let agent = agent_or_skip!();
    let mut spec = agent.spec("c", "id -u; id -g; id -G; echo $HOME; echo ok > /dev/stdout");
    let mut user = User::new();
    user.image_user = "web".into();
    user.supplemental_groups = vec![77];
    spec.process.as_mut().unwrap().user = Some(user.clone()).into();
    assert_eq!(agent.run(&spec).await.stdout, "33\n34\n29 34 77\n/var/www\nok\n".replace("29 34 77", "34 29 77"));
    user.strict_supplemental_groups = true;
    spec.process.as_mut().unwrap().user = Some(user.clone()).into();
    assert!(agent.run(&spec).await.stdout.contains("\n34 77\n"));
    user.image_user = "nobody9".into();
    spec.process.as_mut().unwrap().user = Some(user).into();
    let error = agent.create(&spec).await.map(drop).refused();
    assert!(error.contains("unable to find user nobody9: no matching entries in passwd file"), "{error}");
    agent.finish().await;
}

#[tokio::test]
async fn capabilities_and_limits_are_applied() {
    let agent = agent_or_skip!();
    let mut spec = agent.spec("c", "grep -E '^(Cap|NoNewPrivs)' /proc/self/status | tr -d '\\t'; ulimit -n; stat -c %a /proc/self/fd/0 >/dev/null; touch /f; stat -c %a /f");
    let wanted = spec.process.as_mut().unwrap();
    let mut capabilities = Capabilities::new();
    let names = || vec!["CAP_CHOWN".to_owned(), "CAP_NET_RAW".to_owned()];
    (capabilities.bounding, capabilities.effective, capabilities.permitted) = (names(), names(), names());
    wanted.capabilities = Some(capabilities).into();
    wanted.no_new_privileges = true;
    let mut limit = Rlimit::new();
    (limit.name, limit.soft, limit.hard) = ("RLIMIT_NOFILE".into(), 100, 200);
    wanted.rlimits.push(limit);
    let output = agent.run(&spec).await.stdout;
    for line in [
        "CapInh:0000000000000000",
        "CapPrm:0000000000002001",
        "CapEff:0000000000002001",
        "CapBnd:0000000000002001",
        "CapAmb:0000000000000000",
        "NoNewPrivs:1",
        "100",
        "644",
    ] {
        assert!(output.lines().any(|l| l == line), "{line} is missing from {output}");
    }
    let wanted = spec.process.as_mut().unwrap();
    wanted.rlimits[0].name = "RLIMIT_FUN".into();
    agent.create(&spec).await.unwrap();
    let error = agent.start_container("c").await.map(drop).refused();
    assert!(error.contains("unknown rlimit \"RLIMIT_FUN\""), "{error}");
    agent.remove("c").await;
    agent.finish().await;
}

#[tokio::test]
async fn paths_are_masked_and_read_only() {
    let agent = agent_or_skip!();
    let mut spec = agent.spec("c", "cat /proc/kcore | head -c 1 | wc -c; ls /proc/acpi /masked | wc -l; \
        echo 1 > /proc/sys/kernel/ctrl-alt-del || echo refused; touch /file || echo readonly; touch /dev/shm/x && echo shm; \
        touch /sys/x; mount | grep -c ' /sys .*ro,'; cat /etc/../masked-file; ls -ld /data/dir | wc -l");
    fs::create_dir(agent.path("rootfs/masked")).unwrap();
    fs::write(agent.path("rootfs/masked/secret"), "x").unwrap();
    fs::write(agent.path("rootfs/masked-file"), "x").unwrap();
    spec.rootfs.as_mut().unwrap().readonly = true;
    spec.process.as_mut().unwrap().working_directory = "/data/dir".into();
    spec.masked_paths = ["/proc/kcore", "/masked", "/masked-file", "/absent"].map(String::from).into();
    spec.readonly_paths = ["/proc/sys", "/absent"].map(String::from).into();
    let output = agent.run(&spec).await;
    let lines: Vec<&str> = output.stdout.lines().map(str::trim).collect();
    assert_eq!(lines[0], "0", "{output:?}");
    assert_eq!(lines[2..], ["refused", "readonly", "shm", "1", "1"], "{output:?}");
    assert!(!output.stdout.contains("secret"), "{output:?}");
    agent.finish().await;
}

#[tokio::test]
async fn commands_that_cannot_run_say_why() {
    let agent = agent_or_skip!();
    fs::write(agent.path("rootfs/bin/plain"), "text").unwrap();
    for (command, reason) in [
        ("nothing", "exec \"nothing\": executable file not found in $PATH"),
        ("/nothing", "exec \"/nothing\": no such file or directory"),
        ("plain", "exec \"plain\": permission denied"),
        ("/etc", "exec \"/etc\": permission denied"),
    ] {
        let mut spec = agent.spec("c", "");
        spec.process = Some(process(&[command])).into();
        agent.create(&spec).await.unwrap();
        let error = agent.start_container("c").await.map(drop).refused();
        assert!(error.contains(reason), "{error}");
        assert_ne!(agent.wait("c", "").await.code, 0);
        agent.remove("c").await;
    }
    agent.finish().await;
}

#[tokio::test]
async fn pid_namespaces_are_shared_as_asked() {
    let agent = agent_or_skip!();
    let mut spec = agent.spec("a", "exec sleep 1234");
    spec.pid_mode = PidMode::PID_MODE_POD.into();
    agent.create(&spec).await.unwrap();
    agent.start_container("a").await.unwrap();
    let mut spec = agent.spec("b", "ps; test $$ -ne 1");
    spec.pid_mode = PidMode::PID_MODE_POD.into();
    let output = agent.run(&spec).await;
    assert!(output.stdout.contains("sleep 1234") && output.code == 0, "{output:?}");
    let mut spec = agent.spec("t", "ps");
    spec.pid_mode = PidMode::PID_MODE_TARGET.into();
    spec.pid_target = "a".into();
    assert!(agent.run(&spec).await.stdout.contains("sleep 1234"));
    assert!(!agent.run(&agent.spec("own", "ps")).await.stdout.contains("sleep 1234"));
    agent.remove("a").await;
    agent.finish().await;
}

#[tokio::test]
async fn volumes_are_directories_files_and_memory() {
    let agent = agent_or_skip!();
    fs::create_dir_all(agent.path("volumes/data/sub")).unwrap();
    fs::write(agent.path("volumes/data/sub/file"), "content").unwrap();
    std::os::unix::fs::symlink("/etc", agent.path("volumes/out")).unwrap();
    let mount = |destination: &str, volume: &str, readonly| {
        let mut mount = Mount::new();
        mount.destination = destination.into();
        mount.set_volume(volume.into());
        mount.readonly = readonly;
        mount
    };
    let memory = |destination: &str| {
        let mut mount = Mount::new();
        mount.destination = destination.into();
        let mut tmpfs = TmpfsSource::new();
        (tmpfs.name, tmpfs.size_bytes) = ("cache".into(), 1 << 20);
        mount.set_tmpfs(tmpfs);
        mount
    };
    let mut spec = agent.spec(
        "c",
        "cat /in/sub/file /one; echo; touch /in/x || echo ro; echo new > /rw/made; \
        echo mem > /m/f; cat /m2/f; stat -c %a /m; ls -d /tmp/other/er; ls /escape/deep",
    );
    spec.mounts = vec![
        mount("/tmp/other/er", "/data", false),
        mount("/in", "/data", true),
        mount("/rw", "data", false),
        mount("/one", "/data/sub/file", true),
        mount("/var/run/secrets", "/data", true),
        mount("/escape/deep", "/data", true),
        memory("/m"),
        memory("/m2"),
    ];
    let output = agent.run(&spec).await;
    assert_eq!(output.stdout, "contentcontent\nro\nmem\n777\n/tmp/other/er\nmade\nsub\n", "{output:?}");
    assert_eq!(fs::read_to_string(agent.path("volumes/data/made")).unwrap(), "new\n");
    assert!(!std::path::Path::new("/tmp/deep").exists(), "a symlink of the image led a mount outside");
    spec.mounts = vec![mount("/v", "/absent", false)];
    let error = agent.create(&spec).await.map(drop).refused();
    assert!(error.contains("/absent") && error.contains("No such file"), "{error}");
    spec.mounts = vec![mount("/v", "/out/passwd", false)];
    assert!(agent.create(&spec).await.is_err(), "a symlink led out of the share");
    agent.finish().await;
}

#[tokio::test]
async fn the_pod_gives_names_and_settings() {
    let agent = agent_or_skip!();
    let mut request = ConfigureSandboxRequest::new();
    request.hostname = "mypod".into();
    request.resolv_conf = "nameserver 10.0.0.10\n".into();
    request.etc_hosts = "127.0.0.1 localhost\n".into();
    request.shm_size_bytes = 1 << 20;
    request.sysctls.insert("kernel.shmmni".into(), "123".into());
    agent.client.configure_sandbox(context(), &request).await.unwrap();
    assert!(agent.client.configure_sandbox(context(), &request).await.is_err());
    let script = "hostname; cat /etc/resolv.conf /etc/hosts /etc/hostname /proc/sys/kernel/shmmni; \
        mount | grep -c '/dev/shm.*size=1024k'";
    let output = agent.run(&agent.spec("c", script)).await;
    assert_eq!(output.stdout, "mypod\nnameserver 10.0.0.10\n127.0.0.1 localhost\nmypod\n123\n1\n");
    agent.finish().await;
}

#[tokio::test]
async fn limits_without_a_controller_are_told() {
    let agent = agent_or_skip!();
    let info = agent.client.info(context(), &InfoRequest::new()).await.unwrap();
    let mut spec = agent.spec("c", "sleep 100");
    let mut resources = Resources::new();
    resources.memory_limit_bytes = 64 << 20;
    spec.resources = Some(resources.clone()).into();
    let created = agent.create(&spec).await.unwrap();
    let told = created.warnings.iter().any(|warning| warning.contains("memory.max"));
    let has_memory = info.cgroup_controllers.iter().any(|controller| controller == "memory");
    assert_eq!(told, !has_memory, "{:?}", created.warnings);
    let mut update = UpdateContainerRequest::new();
    update.container_id = "c".into();
    update.resources = Some(resources).into();
    assert_eq!(agent.client.update_container(context(), &update).await.is_ok(), has_memory);
    let stats = agent.client.stats(context(), &StatsRequest::new()).await.unwrap();
    assert_eq!(stats.containers.len(), 1);
    assert!(stats.containers[0].rootfs_used_inodes.is_some_and(|inodes| inodes > 0));
    assert!(stats.containers[0].processes.is_some_and(|count| count > 0));
    agent.remove("c").await;
    agent.finish().await;
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused_and_leave_nothing() {
    let agent = agent_or_skip!();
    let error = agent.create(&agent.spec("../x", "")).await.map(drop).refused();
    assert!(error.contains("is no id"), "{error}");
    let mut spec = agent.spec("c", "");
    spec.rootfs.as_mut().unwrap().set_directory("/does/not/exist".into());
    let error = agent.create(&spec).await.map(drop).refused();
    assert!(error.contains("/does/not/exist"), "{error}");
    let mut image = ImageExtent::new();
    (image.image_id, image.sectors) = ("sha256:x".into(), 8);
    spec.rootfs.as_mut().unwrap().set_image(image);
    let error = agent.create(&spec).await.map(drop).refused();
    assert!(error.contains("image drive"), "{error}");
    let mut spec = agent.spec("c", "");
    spec.process.as_mut().unwrap().args.clear();
    assert!(agent.create(&spec).await.map(drop).refused().contains("no command"));
    assert!(agent.start_container("c").await.map(drop).refused().contains("no container"));
    agent.create(&agent.spec("c", "sleep 100")).await.unwrap();
    let error = agent.create(&agent.spec("c", "")).await.map(drop).refused();
    assert!(error.contains("exists already"), "{error}");
    agent.finish().await;
}

#[tokio::test]
async fn containers_and_commands_that_are_gone_hold_no_descriptors() {
    let agent = agent_or_skip!();
    agent.create(&agent.spec("c", "sleep 100")).await.unwrap();
    agent.start_container("c").await.unwrap();
    let mut counts = Vec::new();
    for round in 0..3 {
        for number in 0..10 {
            let id = format!("e{number}");
            agent.exec("c", &id, process(&["/bin/echo", "x"])).await.unwrap();
            assert_eq!(agent.stdio("c", &id, true, false).await.into_end().await.stdout, "x\n");
            let mut remove = RemoveProcessRequest::new();
            (remove.container_id, remove.exec_id) = ("c".into(), id);
            agent.client.remove_process(context(), &remove).await.unwrap();
            agent.exec("c", "missing", process(&["no-such"])).await.map(drop).refused();
        }
        assert_eq!(agent.run(&agent.spec(&format!("c{round}"), "echo y")).await.stdout, "y\n");
        agent.settle().await;
        counts.push(agent.descriptors());
    }
    assert_eq!(counts[1], counts[2], "{counts:?}");
    agent.remove("c").await;
    agent.finish().await;
}

#[tokio::test]
async fn hostile_images_are_contained() {
    let agent = agent_or_skip!();
    let root = agent.path("rootfs");
    let outside = agent.path("outside");
    fs::create_dir(&outside).unwrap();
    fs::remove_dir(root.join("proc")).unwrap();
    for (link, target) in [("proc", "/../../../../../../tmp"), ("dev", outside.to_str().unwrap()), ("sys", "../../..")]
    {
        std::os::unix::fs::symlink(target, root.join(link)).unwrap();
    }
    let mut spec = agent.spec("c", "echo $$; ls /sys/fs/cgroup/cgroup.procs; test -c /dev/null && echo null");
    spec.masked_paths = vec!["/proc/kcore".into()];
    let output = agent.create(&spec).await;
    // Refused or contained, but never outside.
    if output.is_ok() {
        agent.remove("c").await;
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert!(!std::path::Path::new("/tmp/cmdline").exists(), "proc was mounted on the host's /tmp");
    for link in ["proc", "dev", "sys"] {
        fs::remove_file(root.join(link)).unwrap();
    }
    fs::create_dir(root.join("proc")).unwrap();
    fs::remove_file(root.join("etc/passwd")).unwrap();
    let name = std::ffi::CString::new(root.join("etc/passwd").to_str().unwrap()).unwrap();
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &name, fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    let error = agent.create(&agent.spec("f", "true")).await.map(drop).refused();
    assert!(error.contains("/etc/passwd") && error.contains("no regular file"), "{error}");
    fs::remove_file(root.join("etc/passwd")).unwrap();
    std::os::unix::fs::symlink("/proc/self/fd/4", root.join("etc/passwd")).unwrap();
    agent.create(&agent.spec("m", "true")).await.map(drop).refused();
    agent.finish().await;
}

#[tokio::test]
async fn a_terminal_can_be_had_for_a_further_command() {
    let agent = agent_or_skip!();
    agent.create(&agent.spec("c", "sleep 100")).await.unwrap();
    agent.start_container("c").await.unwrap();
    let mut command = process(&["/bin/sh", "-c", "tty; echo $TERM; sleep 100 & wait"]);
    (command.terminal, command.stdin) = (true, true);
    agent.exec("c", "t", command).await.unwrap();
    let mut stdio = agent.stdio("c", "t", true, true).await;
    stdio.until("/dev/pts/0\r\nxterm\r\n").await;
    agent.signal("c", "t", libc::SIGKILL, true).await.unwrap();
    assert_eq!(stdio.into_end().await.code, 137);
    agent.remove("c").await;
    agent.finish().await;
}

#[tokio::test]
async fn privileged_containers_see_devices_and_nothing_is_masked() {
    let agent = agent_or_skip!();
    let mut spec =
        agent.spec("c", "ls /dev | wc -l; ls /masked; mount | grep -c ' /sys .*rw,'; cat /dev/loop-control; true");
    fs::create_dir(agent.path("rootfs/masked")).unwrap();
    fs::write(agent.path("rootfs/masked/seen"), "x").unwrap();
    spec.masked_paths = vec!["/masked".into()];
    let output = agent.run(&spec).await.stdout;
    assert!(!output.contains("seen"), "{output}");
    let few: usize = output.lines().next().unwrap().parse().unwrap();
    spec.privileged = true;
    let output = agent.run(&spec).await.stdout;
    let mut lines = output.lines();
    let many: usize = lines.next().unwrap().parse().unwrap();
    assert!(many > few, "{many} devices");
    assert_eq!(lines.collect::<Vec<_>>(), ["seen", "1"]);
    spec.pid_mode = PidMode::PID_MODE_NODE.into();
    spec.process = Some(process(&["/bin/sh", "-c", "test $$ -ne 1 && echo node"])).into();
    assert_eq!(agent.run(&spec).await.stdout, "node\n");
    agent.finish().await;
}
