//! Pods with users of their own, on the host's kernel: what they are, and what their root cannot do.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use bulkhead_proto::cri;
use bulkhead_tests::environment::{Environment, Handler};
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::pod::{Container, Pod, Spec};
use bulkhead_tests::suite::{Skipped, SuiteFixture};

/// First host id of the suite's pods, and how many each has.
const FIRST: u32 = 1_310_720;
const LENGTH: u32 = 65_536;

const POD: i32 = cri::NamespaceMode::Pod as i32;
const NODE: i32 = cri::NamespaceMode::Node as i32;

/// One pod for all cases but those about pods.
struct Suite {
    f: Fixture,
    pod: Pod,
}

bulkhead_tests::suite!(
    Suite;
    ids_of_the_container_are_others_of_the_host,
    an_executed_command_is_in_the_same_namespace,
    files_of_a_volume_have_the_containers_owners,
    a_volume_without_mappings_is_the_hosts,
    what_is_read_only_stays_so,
    a_nested_root_cannot_take_volumes_off,
    root_cannot_act_on_the_host,
    the_pods_own_namespaces_are_its_roots,
    a_shared_pid_namespace_shows_nothing_of_the_agent,
    devices_belong_to_the_containers_users,
    privileged_is_so_in_the_pod_only,
    two_pods_have_nothing_in_common,
    what_is_the_hosts_is_refused,
    ids_that_the_pod_lacks_are_told,
    a_pod_outlives_its_daemon,
);

impl SuiteFixture for Suite {
    fn start(environment: &Environment) -> Result<Self> {
        if environment.handler != Handler::Native {
            return Err(Skipped::because("BULKHEAD_TEST_HANDLER=native runs this suite").into());
        }
        let mut f = Fixture::start(environment)?;
        let handlers = f.cri().status(cri::StatusRequest::default())?.runtime_handlers;
        let native = handlers.into_iter().find(|handler| handler.name == "native").context("no handler native")?;
        if !native.features.is_some_and(|features| features.user_namespaces) {
            f.finish()?;
            return Err(
                Skipped::because("this kernel can give no pod a user namespace (bulkhead check tells why)").into()
            );
        }
        let pod = Pod::run(f.cri(), config(&f, "users", FIRST), "")?;
        f.keep(&pod);
        Ok(Self { f, pod })
    }

    fn after_case(&mut self, failed: bool) -> Result<()> {
        let containers = self.f.cri().containers()?;
        let result = self.f.after_case(failed);
        for container in containers {
            self.f.cri().remove_container(cri::RemoveContainerRequest { container_id: container.id })?;
        }
        result
    }

    fn finish(self) -> Result<()> {
        self.f.finish()
    }
}

fn mapping(host_id: u32) -> Vec<cri::IdMapping> {
    vec![cri::IdMapping { container_id: 0, host_id, length: LENGTH }]
}

fn users(host_id: u32) -> cri::UserNamespace {
    cri::UserNamespace { mode: POD, uids: mapping(host_id), gids: mapping(host_id) }
}

fn with_options(f: &Fixture, name: &str, options: cri::NamespaceOption) -> cri::PodSandboxConfig {
    let mut config = f.pod_config(name);
    let context = cri::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
    config.linux.get_or_insert_default().security_context = Some(context);
    config
}

fn config(f: &Fixture, name: &str, host_id: u32) -> cri::PodSandboxConfig {
    with_options(f, name, cri::NamespaceOption { userns_options: Some(users(host_id)), ..Default::default() })
}

/// Its first process on the host.
fn host_process(container: &Container) -> Result<PathBuf> {
    let marker = format!("/{}\n", container.id);
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        if fs::read_to_string(path.join("cgroup")).is_ok_and(|text| text.contains(&marker)) {
            return Ok(path);
        }
    }
    anyhow::bail!("no process of container {} on the host", container.id)
}

fn capabilities(names: &[&str]) -> Option<cri::Capability> {
    let add_capabilities = names.iter().map(|name| (*name).to_owned()).collect();
    Some(cri::Capability { add_capabilities, ..Default::default() })
}

fn mapped(spec: Spec) -> Spec {
    spec.with(|config| {
        for mount in &mut config.mounts {
            (mount.uid_mappings, mount.gid_mappings) = (mapping(FIRST), mapping(FIRST));
        }
    })
}

fn ids_of_the_container_are_others_of_the_host(s: &mut Suite) -> Result<()> {
    let script = "tr -s ' ' < /proc/self/uid_map; tr -s ' ' < /proc/self/gid_map; id -u; stat -c %u:%g / /bin/sh /dev /etc/hosts; \
                  touch /new && stat -c %u /new; echo up; exec sleep 1000";
    let container = s.pod.start(&s.f.shell(script)?.named("users"))?;
    container.says("up")?;
    let map = format!(" 0 {FIRST} {LENGTH}\n");
    let expected = format!("{map}{map}0\n{}0\nup\n", "0:0\n".repeat(4));
    let lines = container.lines()?;
    let seen = bulkhead_tests::logs::text_of(&lines, "stdout");
    ensure!(seen == expected, "{seen}");
    let status = fs::read_to_string(host_process(&container)?.join("status"))?;
    for field in ["Uid", "Gid"] {
        let wanted = format!("{field}:\t{FIRST}\t{FIRST}\t{FIRST}\t{FIRST}\n");
        ensure!(status.contains(&wanted), "{wanted} is not in {status}");
    }
    // On the disk the layer is nobody's who could log in: a set-user-id file in there would not be the host's root's.
    let layer = s.f.daemon.settings.root.join("layers").join(&s.pod.id).join(&container.id).join("upper");
    let owner = fs::metadata(layer.join("new"))?.uid();
    ensure!(owner == FIRST, "the layer's file belongs to {owner}");
    Ok(())
}

fn an_executed_command_is_in_the_same_namespace(s: &mut Suite) -> Result<()> {
    let container = s.pod.start(&s.f.shell("readlink /proc/self/ns/user; exec sleep 1000")?.named("executed"))?;
    container.says("user:[")?;
    let seen =
        container.exec(&["sh", "-c", "readlink /proc/self/ns/user; id -u; touch /by-exec; stat -c %u /by-exec"])?;
    let first = bulkhead_tests::logs::text_of(&container.lines()?, "stdout");
    ensure!(seen.stdout == format!("{first}0\n0\n"), "{seen:?} beside {first}");
    let own = fs::read_link("/proc/self/ns/user")?.display().to_string();
    ensure!(!seen.stdout.contains(&own), "it is the host's: {own}");
    Ok(())
}

fn files_of_a_volume_have_the_containers_owners(s: &mut Suite) -> Result<()> {
    let host = s.f.path("volumes/mapped");
    fs::create_dir_all(&host)?;
    fs::write(host.join("given"), "x")?;
    chown(host.join("given"), Some(1000), Some(1000))?;
    let script = "stat -c %u:%g /data/given; touch /data/root && chown 5:6 /data/root && stat -c %u:%g /data/root";
    let outcome = s.pod.once(&mapped(s.f.shell(script)?.mount(&host, "/data", false)))?;
    ensure!(outcome.stdout == "1000:1000\n5:6\n", "{outcome:?}");
    let made = fs::metadata(host.join("root"))?;
    ensure!((made.uid(), made.gid()) == (5, 6), "on the host: {}:{}", made.uid(), made.gid());
    Ok(())
}

fn a_volume_without_mappings_is_the_hosts(s: &mut Suite) -> Result<()> {
    let host = s.f.path("volumes/plain");
    fs::create_dir_all(&host)?;
    fs::set_permissions(&host, fs::Permissions::from_mode(0o777))?;
    fs::write(host.join("given"), "x")?;
    fs::set_permissions(host.join("given"), fs::Permissions::from_mode(0o600))?;
    let script = "stat -c %u:%g /data/given; cat /data/given || echo hidden; chown 0 /data/given || echo refused; touch /data/made";
    let outcome = s.pod.once(&s.f.shell(script)?.mount(&host, "/data", false))?;
    ensure!(outcome.stdout == "65534:65534\nhidden\nrefused\n", "{outcome:?}");
    let owner = fs::metadata(host.join("made"))?.uid();
    ensure!(owner == FIRST, "the file belongs to {owner}");
    Ok(())
}

fn what_is_read_only_stays_so(s: &mut Suite) -> Result<()> {
    let host = s.f.path("volumes/read-only");
    fs::create_dir_all(&host)?;
    fs::write(host.join("file"), "as it was")?;
    let script = "mount -o remount,bind,rw /data || echo locked; umount /data || echo fixed; echo x > /data/file || echo refused; \
                  mount -t tmpfs none /tmp && echo may-mount";
    let spec = s.f.shell(script)?.mount(&host, "/data", true);
    let spec = mapped(spec).security(|c| c.capabilities = capabilities(&["SYS_ADMIN"]));
    let outcome = s.pod.once(&spec)?;
    ensure!(outcome.stdout == "locked\nfixed\nrefused\nmay-mount\n", "{outcome:?}");
    ensure!(fs::read_to_string(host.join("file"))? == "as it was");
    Ok(())
}

fn a_nested_root_cannot_take_volumes_off(s: &mut Suite) -> Result<()> {
    let host = s.f.path("volumes/nested-root");
    fs::create_dir_all(&host)?;
    let script = "unshare -Urm sh -c 'umount /data || echo fixed; umount /proc || echo fixed; \
                  mount -o remount,bind,rw /data || echo locked'";
    let outcome = s.pod.once(&mapped(s.f.shell(script)?.mount(&host, "/data", true)))?;
    ensure!(outcome.stdout == "fixed\nfixed\nlocked\n", "{outcome:?}");
    Ok(())
}

fn root_cannot_act_on_the_host(s: &mut Suite) -> Result<()> {
    // Harmless even where they succeed.
    let tries = [
        "mknod /tmp/disk b 8 0",
        "cat /proc/sys/kernel/panic > /tmp/same && cat /tmp/same > /proc/sys/kernel/panic",
        "mount -o remount,rw /proc/sys && cat /tmp/same > /proc/sys/kernel/panic",
        "echo h > /proc/sysrq-trigger",
        "[ -z \"$(date -s @$(date +%s) 2>&1 > /dev/null)\" ]",
        "echo -1000 > /proc/self/oom_score_adj",
        "echo max > /sys/fs/cgroup/memory.max",
        "mkdir /sys/fs/cgroup/mine",
        "insmod /bin/sh",
        "mount -t debugfs none /tmp",
        "mount -t devtmpfs none /tmp",
        "head -c 1 /proc/kmsg",
    ];
    let script = tries.map(|one| format!("( {one} ) > /dev/null 2>&1 && echo '{one}';")).concat();
    // Every capability, and no profile that would refuse the calls first.
    let spec = s.f.shell(&format!("{script} echo tried"))?.security(|c| c.capabilities = capabilities(&["ALL"]));
    let outcome = s.pod.once(&spec)?;
    ensure!(outcome.stdout == "tried\n", "it could: {outcome:?}");
    Ok(())
}

fn the_pods_own_namespaces_are_its_roots(s: &mut Suite) -> Result<()> {
    let script = "ip link add probe type dummy 2>/dev/null || ip link set lo mtu 1400 && ip addr add 192.0.2.1/32 dev lo && \
                  echo network; hostname other && echo name; grep -c ' /sys sysfs ro' /proc/mounts; ls /sys/class/net | grep -c eth0";
    let spec = s.f.shell(script)?.security(|c| c.capabilities = capabilities(&["NET_ADMIN", "SYS_ADMIN"]));
    let outcome = s.pod.once(&spec)?;
    ensure!(outcome.stdout == "network\nname\n1\n1\n", "{outcome:?}");
    ensure!(!s.pod.address()?.is_empty(), "CNI gave no address");
    let mut config = config(&s.f, "users-sysctls", FIRST + LENGTH);
    let wanted = [("net.ipv4.ip_unprivileged_port_start", "77"), ("kernel.msgmax", "9000")];
    let sysctls = wanted.map(|(name, value)| (name.to_owned(), value.to_owned()));
    config.linux.get_or_insert_default().sysctls = sysctls.into();
    let pod = Pod::run(s.f.cri(), config, "")?;
    let names = wanted.map(|(name, _)| format!("/proc/sys/{}", name.replace('.', "/"))).join(" ");
    let seen = pod.once(&s.f.shell(&format!("cat {names} | tr '\\n' ' '"))?)?.stdout;
    ensure!(seen == "77 9000 ", "{seen}");
    Ok(())
}

/// Exec'd helpers pass through the namespace while a container looks at all that appears in it.
fn a_shared_pid_namespace_shows_nothing_of_the_agent(s: &mut Suite) -> Result<()> {
    let shared = |spec: Spec| {
        let options = cri::NamespaceOption { pid: POD, userns_options: Some(users(FIRST)), ..Default::default() };
        spec.security(|c| {
            c.namespace_options = Some(options);
            c.capabilities = capabilities(&["SYS_PTRACE", "SYS_ADMIN", "DAC_READ_SEARCH"]);
        })
    };
    let script = "echo up; while [ ! -e /stop ]; do for p in /proc/[0-9]*; do l=$(ls -l $p/fd $p/exe $p/root/ 2>/dev/null); \
                  case \"$l\" in *bulkhead*) echo \"LEAK $p $l\";; esac; done; done; echo done";
    let watcher = s.pod.start(&shared(s.f.shell(script)?.named("watcher")))?;
    watcher.says("up")?;
    let target = s.pod.start(&shared(s.f.shell("echo up; exec sleep 1000")?.named("target")))?;
    target.says("up")?;
    for _ in 0..10 {
        ensure!(target.exec(&["true"])?.code == 0);
    }
    ensure!(watcher.exec(&["touch", "/stop"])?.code == 0);
    let outcome = watcher.finish()?;
    ensure!(outcome.stdout == "up\ndone\n", "{outcome:?}");
    Ok(())
}

fn devices_belong_to_the_containers_users(s: &mut Suite) -> Result<()> {
    let device =
        cri::Device { host_path: "/dev/full".into(), container_path: "/dev/mine".into(), permissions: "rw".into() };
    let script = "stat -c %u:%g /dev/null /dev/mine; head -c 1 /dev/mine | wc -c; echo x > /dev/null && echo written; ls -l /dev/pts/ptmx \
                  > /dev/null && echo terminals";
    let outcome = s.pod.once(&s.f.shell(script)?.with(|config| config.devices.push(device)))?;
    ensure!(outcome.stdout == "0:0\n0:0\n1\nwritten\nterminals\n", "{outcome:?}");
    let terminal = s.pod.once(&s.f.shell("tty; stat -c %u /dev/console")?.with(|config| config.tty = true))?;
    ensure!(terminal.stdout.replace('\r', "") == "/dev/pts/0\n0\n", "{terminal:?}");
    Ok(())
}

fn privileged_is_so_in_the_pod_only(s: &mut Suite) -> Result<()> {
    let script = "mount -t tmpfs none /tmp && echo mounted; cd /sys/fs/cgroup; mkdir mine && echo $$ > mine/cgroup.procs && \
                  echo delegated; cat cgroup.max.depth > /tmp/same; cat /tmp/same > cgroup.max.depth || echo bounded; \
                  echo $$ > cgroup.procs; rmdir mine; cat /proc/sys/kernel/panic > /tmp/same; \
                  cat /tmp/same > /proc/sys/kernel/panic || echo refused; mknod /x b 8 0 || echo no-device; \
                  for d in /dev/vda /dev/sda /dev/nvme0n1 /dev/loop0; do [ -b $d ] && head -c 1 $d > /tmp/one && echo open; done; exit 0";
    let outcome = s.pod.once(&s.f.shell(script)?.security(|c| c.privileged = true))?;
    ensure!(outcome.stdout == "mounted\ndelegated\nbounded\nrefused\nno-device\n", "{outcome:?}");
    Ok(())
}

fn two_pods_have_nothing_in_common(s: &mut Suite) -> Result<()> {
    let other = FIRST + LENGTH;
    let pod = Pod::run(s.f.cri(), config(&s.f, "others", other), "")?;
    let host = s.f.path("volumes/between");
    fs::create_dir_all(&host)?;
    fs::set_permissions(&host, fs::Permissions::from_mode(0o777))?;
    let first = s.pod.once(&s.f.shell("umask 077; echo mine > /data/file")?.mount(&host, "/data", false))?;
    ensure!(first.code == 0 && fs::metadata(host.join("file"))?.uid() == FIRST, "{first:?}");
    let script = "cat /data/file || echo hidden; chmod 777 /data/file || echo refused; tr -s ' ' < /proc/self/uid_map";
    let second = pod.once(&s.f.shell(script)?.mount(&host, "/data", false))?;
    ensure!(second.stdout == format!("hidden\nrefused\n 0 {other} {LENGTH}\n"), "{second:?}");
    Ok(())
}

fn what_is_the_hosts_is_refused(s: &mut Suite) -> Result<()> {
    let own = || cri::NamespaceOption { userns_options: Some(users(FIRST)), ..Default::default() };
    for (field, options) in [
        ("namespace_options.network", cri::NamespaceOption { network: NODE, ..own() }),
        ("namespace_options.pid", cri::NamespaceOption { pid: NODE, ..own() }),
        ("namespace_options.ipc", cri::NamespaceOption { ipc: NODE, ..own() }),
    ] {
        let error = Pod::run(s.f.cri(), with_options(&s.f, "host", options), "").err().context("it runs")?;
        ensure!(error.message.contains(field) && error.message.contains("user namespace"), "{error}");
    }
    let qemu = Pod::run(s.f.cri(), config(&s.f, "vm", FIRST), "qemu").err().context("it runs")?;
    ensure!(qemu.message.contains("userns_options") && qemu.message.contains("\"native\" can"), "{qemu}");
    let other = cri::NamespaceOption { userns_options: Some(users(FIRST + 1)), ..Default::default() };
    let bidirectional = cri::Mount {
        host_path: "/tmp".into(),
        container_path: "/x".into(),
        propagation: cri::MountPropagation::PropagationBidirectional as i32,
        ..Default::default()
    };
    let plain = s.f.shell("true")?;
    let mapped_otherwise = plain.clone().mount(s.f.directory.path(), "/x", false).with(|config| {
        config.mounts[0].uid_mappings = mapping(1);
        config.mounts[0].gid_mappings = mapping(1);
    });
    for (words, spec) in [
        ("differs from its pod's", plain.clone().security(|c| c.namespace_options = Some(other))),
        ("BIDIRECTIONAL", plain.clone().with(|config| config.mounts.push(bidirectional))),
        ("uidMappings", mapped_otherwise),
        ("/proc", plain.mount(s.f.directory.path(), "/proc/x", false)),
    ] {
        let error = s.pod.create(&spec).err().context("it was created")?;
        ensure!(error.message.contains(words), "{words}: {error}");
    }
    Ok(())
}

fn ids_that_the_pod_lacks_are_told(s: &mut Suite) -> Result<()> {
    let spec = |uid| {
        Ok::<_, anyhow::Error>(s.f.shell("id -u")?.security(|c| c.run_as_user = Some(cri::Int64Value { value: uid })))
    };
    ensure!(s.pod.once(&spec(65_535)?)?.stdout == "65535\n");
    let error = s.pod.create(&spec(65_536)?).err().context("it was created")?;
    ensure!(error.message.contains("user id 65536") && error.message.contains("0 to 65535"), "{error}");
    Ok(())
}

fn a_pod_outlives_its_daemon(s: &mut Suite) -> Result<()> {
    let container = s.pod.start(&s.f.shell("echo up; exec sleep 1000")?.named("outliving"))?;
    container.says("up")?;
    s.f.daemon.kill()?;
    s.f.daemon.start_again()?;
    let seen = container.exec(&["sh", "-c", "id -u; tr -s ' ' < /proc/self/uid_map"])?;
    ensure!(seen.stdout == format!("0\n 0 {FIRST} {LENGTH}\n"), "{seen:?}");
    let further = s.pod.once(&s.f.shell("tr -s ' ' < /proc/self/uid_map")?)?;
    ensure!(further.stdout == format!(" 0 {FIRST} {LENGTH}\n"), "{further:?}");
    Ok(())
}
