//! Security contexts, seen from inside; users, groups and the usual capabilities are in `container_environment.rs`, profiles
//! of system calls in `seccomp.rs`.

use std::fs;

use anyhow::{Context, Result, ensure};
use bulkhead_proto::cri;
use bulkhead_proto::cri::security_profile::ProfileType;
use bulkhead_tests::environment::Environment;
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::pod::{Pod, Spec};
use bulkhead_tests::suite::SuiteFixture;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// One pod for all cases but those about pods.
struct Suite {
    f: Fixture,
    pod: Pod,
}

bulkhead_tests::suite!(
    Suite;
    a_privileged_container_may_do_all,
    ambient_capabilities_reach_other_users,
    the_first_process_of_a_shared_pid_namespace_has_nothing,
    the_status_tells_user_and_groups,
    sysctls_of_the_pod_are_set,
    read_only_volumes_may_be_so_all_the_way_down,
    an_image_is_mounted_in_part,
    labels_that_no_kernel_knows_are_refused,
    descriptors_of_an_exec_lead_nowhere,
);

impl SuiteFixture for Suite {
    fn start(environment: &Environment) -> Result<Self> {
        let mut f = Fixture::start(environment)?;
        let pod = f.pod("security")?;
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

fn a_privileged_container_may_do_all(s: &mut Suite) -> Result<()> {
    let script = "grep ^CapEff /proc/self/status | cut -f2; grep -c ' /sys sysfs rw' /proc/mounts; \
                  mount -t tmpfs none /tmp && echo mounted; ls /dev | wc -l; wc -c < /proc/version";
    let spec = s.f.shell(script)?.security(|c| {
        c.privileged = true;
        c.masked_paths = vec!["/proc/version".into()];
    });
    let seen = s.pod.once(&spec)?.stdout;
    let lines: Vec<&str> = seen.lines().collect();
    ensure!(lines.len() == 5, "{seen}");
    let capabilities = u64::from_str_radix(lines[0], 16)?;
    ensure!(capabilities & (1 << 21 | 1 << 16 | 1 << 38) == 1 << 21 | 1 << 16 | 1 << 38, "capabilities: {}", lines[0]);
    ensure!(lines[1] == "1" && lines[2] == "mounted" && lines[4] != "0", "{seen}");
    let usual: u32 = s.pod.once(&s.f.shell("ls /dev | wc -l")?)?.stdout.trim().parse()?;
    ensure!(lines[3].parse::<u32>()? > usual, "{} devices, {usual} without privileges", lines[3]);
    Ok(())
}

fn ambient_capabilities_reach_other_users(s: &mut Suite) -> Result<()> {
    let script = "grep -E '^Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | cut -f2 | tr '\\n' ' '";
    let spec = s.f.shell(script)?.security(|c| {
        c.run_as_user = Some(cri::Int64Value { value: 1000 });
        c.capabilities = Some(cri::Capability {
            drop_capabilities: vec!["ALL".into()],
            add_ambient_capabilities: vec!["NET_RAW".into()],
            ..Default::default()
        });
    });
    let seen = s.pod.once(&spec)?.stdout;
    ensure!(seen == "0000000000002000 ".repeat(5), "{seen}");
    Ok(())
}

fn the_first_process_of_a_shared_pid_namespace_has_nothing(s: &mut Suite) -> Result<()> {
    let script = "ls -A /proc/1/root/ && ls -A /proc/1/cwd/ && echo listed; touch /proc/1/root/x 2>/dev/null || echo refused; \
                  readlink /proc/1/fd/* | grep -vE '^(pipe|socket|anon_inode):'; \
                  grep -E '^(Cap...|NoNewPrivs):' /proc/1/status | cut -f2 | sort -u | tr '\\n' ' '";
    let spec = s.f.shell(script)?.security(|c| {
        c.namespace_options = Some(cri::NamespaceOption { pid: cri::NamespaceMode::Pod as i32, ..Default::default() });
        let add_capabilities = vec!["SYS_PTRACE".into()];
        c.capabilities = Some(cri::Capability { add_capabilities, ..Default::default() });
    });
    let seen = s.pod.once(&spec)?;
    ensure!(seen.stdout == "listed\nrefused\n0000000000000000 1 ", "{seen:?}");
    Ok(())
}

fn the_status_tells_user_and_groups(s: &mut Suite) -> Result<()> {
    for (strict, groups) in [(false, &[1000, 2000, 2001, 3000][..]), (true, &[1000, 3000])] {
        let policy = if strict { cri::SupplementalGroupsPolicy::Strict } else { cri::SupplementalGroupsPolicy::Merge };
        let spec = Spec::shell(&s.f.image("user-name")?, "id -G").security(|c| {
            c.supplemental_groups = vec![3000];
            c.supplemental_groups_policy = policy as i32;
        });
        let user = s.pod.once(&spec)?.status.user.and_then(|user| user.linux).context("no user in the status")?;
        ensure!((user.uid, user.gid) == (1000, 1000) && user.supplemental_groups == groups, "{user:?}");
    }
    Ok(())
}

fn sysctls_of_the_pod_are_set(s: &mut Suite) -> Result<()> {
    let wanted =
        [("net.ipv4.ip_unprivileged_port_start", "77"), ("kernel.shm_rmid_forced", "1"), ("kernel.msgmax", "9000")];
    let mut config = s.f.pod_config("sysctls");
    let sysctls = wanted.map(|(name, value)| (name.to_owned(), value.to_owned()));
    config.linux.get_or_insert_default().sysctls = sysctls.into();
    let pod = Pod::run(s.f.cri(), config, "")?;
    let names = wanted.map(|(name, _)| format!("/proc/sys/{}", name.replace('.', "/"))).join(" ");
    let seen = pod.once(&s.f.shell(&format!("cat {names} | tr '\\n' ' '"))?)?.stdout;
    ensure!(seen == "77 1 9000 ", "{seen}");
    pod.remove()?;
    let mut config = s.f.pod_config("unknown-sysctl");
    config.linux.get_or_insert_default().sysctls = [("net.ipv4.no_such_thing".to_owned(), "1".to_owned())].into();
    let error = Pod::run(s.f.cri(), config, "").err().context("an unknown sysctl was set")?;
    ensure!(error.message.contains("no_such_thing"), "{error}");
    Ok(())
}

fn read_only_volumes_may_be_so_all_the_way_down(s: &mut Suite) -> Result<()> {
    let host = s.f.path("volumes/nested");
    let below = host.join("below");
    fs::create_dir_all(&below)?;
    mount("tmpfs", &below, "tmpfs", MountFlags::empty(), None)?;
    let result = (|| {
        for (recursive, wanted) in [(false, "1\n0\n"), (true, "1\n1\n")] {
            let spec = s.f.shell("touch /data/file; echo $?; touch /data/below/file; echo $?")?;
            let spec = spec.mount(&host, "/data", true).with(|c| c.mounts[0].recursive_read_only = recursive);
            let seen = s.pod.once(&spec)?;
            ensure!(seen.stdout == wanted, "recursive {recursive}: {seen:?}");
        }
        Ok(())
    })();
    unmount(&below, UnmountFlags::DETACH)?;
    result
}

fn an_image_is_mounted_in_part(s: &mut Suite) -> Result<()> {
    let image = s.f.image("entrypoint")?;
    let volume = |sub_path: &str| cri::Mount {
        container_path: "/image".into(),
        image: Some(cri::ImageSpec { image: image.clone(), ..Default::default() }),
        image_sub_path: sub_path.to_owned(),
        readonly: true,
        ..Default::default()
    };
    for (sub_path, file) in [("", "/image/bin/entry"), ("bin", "/image/entry"), ("bin/entry", "/image")] {
        let script = format!("head -c 9 {file}; touch /image/file 2>/dev/null || echo refused");
        let seen = s.pod.once(&s.f.shell(&script)?.with(|c| c.mounts.push(volume(sub_path))))?;
        ensure!(seen.stdout == "#!/bin/shrefused\n", "{sub_path:?}: {seen:?}");
    }
    for sub_path in ["no/such", "../../proc/self"] {
        let spec = s.f.shell("true")?.with(|c| c.mounts.push(volume(sub_path)));
        let error = s.pod.create(&spec).err().with_context(|| format!("{sub_path:?} was mounted"))?;
        ensure!(error.message.contains(sub_path), "{error}");
    }
    Ok(())
}

fn labels_that_no_kernel_knows_are_refused(s: &mut Suite) -> Result<()> {
    let profile = cri::SecurityProfile { profile_type: ProfileType::Localhost as i32, localhost_ref: "mine".into() };
    let default = cri::SecurityProfile { profile_type: ProfileType::RuntimeDefault as i32, ..Default::default() };
    let label = cri::SeLinuxOption { r#type: "container_t".into(), ..Default::default() };
    for (spec, why) in [
        (s.f.shell("true")?.security(|c| c.apparmor = Some(profile)), "AppArmor"),
        (s.f.shell("true")?.security(|c| c.apparmor = Some(default)), "AppArmor"),
        (s.f.shell("true")?.security(|c| c.selinux_options = Some(label)), "SELinux"),
    ] {
        let error = s.pod.create(&spec).err().with_context(|| format!("{why} label was taken"))?;
        ensure!(error.message.contains(why), "{error}");
    }
    Ok(())
}

/// What an exec's helper holds of the host until it becomes the command (the kind of CVE-2024-21626).
fn descriptors_of_an_exec_lead_nowhere(s: &mut Suite) -> Result<()> {
    let spec = |s: &Suite, name: &str, script: &str| -> Result<Spec> {
        let spec = s.f.shell(script)?.with(|c| c.metadata.get_or_insert_default().name = name.into());
        Ok(spec.security(|c| c.namespace_options.get_or_insert_default().set_pid(cri::NamespaceMode::Pod)))
    };
    let hand = s.pod.start(&spec(s, "hand", "exec sleep 1000")?)?;
    let victim = s.pod.start(&spec(s, "victim", "exec sleep 7531")?.with(|c| c.working_dir = "/app".into()))?;
    ensure!(victim.exec(&["pwd"])?.stdout.trim() == "/app", "its working directory is another");
    // The container itself could do the same.
    let relink = |name: &str, to: &str| -> Result<()> {
        let find = "p=$(grep -l 753[1] /proc/[0-9]*/cmdline) && cd ${p%cmdline}root";
        let script = format!("{find} && rm -rf {name} && ln -s {to} {name}");
        let done = hand.exec(&["sh", "-c", &script])?;
        ensure!(done.code == 0, "{done:?}");
        Ok(())
    };
    for number in 3..20 {
        relink("app", &format!("/proc/self/fd/{number}"))?;
        let entered = victim.exec(&["pwd"]);
        ensure!(entered.is_err(), "descriptor {number} is a working directory: {entered:?}");
    }
    relink("app", "/tmp")?;
    ensure!(victim.exec(&["pwd"])?.stdout.trim() == "/tmp", "a link that stays inside is not followed");
    for number in 3..20 {
        relink("program", &format!("/proc/self/fd/{number}/../../../../../../bin/true"))?;
        let run = victim.exec(&["/program"]);
        ensure!(run.is_err(), "a program is reached by descriptor {number}: {run:?}");
    }
    Ok(())
}
