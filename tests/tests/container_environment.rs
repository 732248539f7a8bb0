//! What a container finds: user, groups, environment, directories, limits, namespaces; and how it ends.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bulkhead_proto::cri;
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::pod::{Outcome, Pod, Spec};

/// One pod for all cases: what differs is in the containers.
struct Suite {
    f: Fixture,
    pod: Pod,
}

bulkhead_tests::suite!(
    Suite;
    the_image_says_what_runs,
    the_pod_can_say_otherwise,
    users_of_the_image_are_honoured,
    users_of_the_pod_win,
    groups_are_merged_or_strict,
    capabilities_are_the_usual_ones_unless_changed,
    no_new_privileges_is_set,
    kernel_files_are_masked,
    a_read_only_root_cannot_be_written,
    a_root_is_writable_and_its_own,
    a_terminal_is_one,
    hostname_hosts_and_resolver_are_the_pods,
    limits_are_seen_in_the_cgroup,
    huge_pages_are_limited,
    an_update_changes_the_oom_score,
    memory_beyond_the_limit_is_an_oom_kill,
    processes_see_only_their_container,
    stop_asks_before_it_kills,
    an_impossible_command_is_told,
    exec_runs_as_the_container_does,
);

impl bulkhead_tests::suite::SuiteFixture for Suite {
    fn start(environment: &bulkhead_tests::environment::Environment) -> Result<Self> {
        let mut f = Fixture::start(environment)?;
        let mut config = f.pod_config("environment");
        config.dns_config = Some(cri::DnsConfig {
            servers: vec!["10.96.0.10".into()],
            searches: vec!["default.svc.cluster.local".into(), "svc.cluster.local".into()],
            options: vec!["ndots:5".into()],
        });
        let pod = Pod::run(f.cri(), config, "")?;
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

impl Suite {
    fn once(&self, spec: &Spec) -> Result<Outcome> {
        self.pod.once(spec)
    }

    /// The output of a script in busybox that must succeed.
    fn script(&self, script: &str, change: impl FnOnce(Spec) -> Spec) -> Result<String> {
        let outcome = self.once(&change(self.f.shell(script)?))?;
        ensure!(outcome.code == 0, "{script}: {outcome:?}");
        Ok(outcome.stdout.trim_end().to_owned())
    }
}

/// Compares, and shows both.
fn same(what: &str, seen: &str, wanted: &str) -> Result<()> {
    ensure!(seen == wanted, "{what}: {seen:?} instead of {wanted:?}");
    Ok(())
}

fn the_image_says_what_runs(s: &mut Suite) -> Result<()> {
    let outcome = s.once(&Spec::new(&s.f.image("entrypoint")?, &[]))?;
    same("output", &outcome.stdout, "entry default words in /srv/made/on/start with hello\n")
}

fn the_pod_can_say_otherwise(s: &mut Suite) -> Result<()> {
    let image = s.f.image("entrypoint")?;
    let arguments = Spec::new(&image, &[]).env("GREETING", "a new word").with(|c| {
        c.args = vec!["other".into()];
        c.working_dir = "/tmp".into();
    });
    same("args", &s.once(&arguments)?.stdout, "entry other in /tmp with a new word\n")?;
    let command = s.once(&Spec::shell(&image, "echo $GREETING $LEFT $0"))?;
    same("command", &command.stdout, "hello alone sh\n")?;
    let empty = s.script("env | grep -c ^EMPTY=$", |spec| spec.env("EMPTY", ""))?;
    same("a variable without value", &empty, "1")
}

fn users_of_the_image_are_honoured(s: &mut Suite) -> Result<()> {
    for (image, wanted) in
        [("user-name", "1000:1000 1000 2000 2001"), ("user-number", "1234:5678 5678"), ("busybox", "0:0 0")]
    {
        let spec = Spec::shell(&s.f.image(image)?, "echo $(id -u):$(id -g) $(id -G)");
        same(image, s.once(&spec)?.stdout.trim_end(), wanted)?;
    }
    let home = s.once(&Spec::shell(&s.f.image("user-name")?, "echo $HOME"))?;
    same("HOME", home.stdout.trim_end(), "/home/app")?;
    let unknown = s.pod.start(&Spec::new(&s.f.image("user-unknown")?, &[])).err().context("an unknown user runs")?;
    ensure!(unknown.message.contains("nobody-knows") && unknown.message.contains("passwd"), "{unknown}");
    Ok(())
}

fn users_of_the_pod_win(s: &mut Suite) -> Result<()> {
    let numbers = |c: &mut cri::LinuxContainerSecurityContext| {
        c.run_as_user = Some(cri::Int64Value { value: 4321 });
        c.run_as_group = Some(cri::Int64Value { value: 8765 });
    };
    same("numbers", &s.script("echo $(id -u):$(id -g)", |spec| spec.security(numbers))?, "4321:8765")?;
    let name = |c: &mut cri::LinuxContainerSecurityContext| c.run_as_username = "app".into();
    same("a name", &s.script("echo $(id -u):$(id -g)", |spec| spec.security(name))?, "1000:1000")
}

fn groups_are_merged_or_strict(s: &mut Suite) -> Result<()> {
    for (policy, wanted) in [
        (cri::SupplementalGroupsPolicy::Merge, "1000 2000 2001 3000"),
        (cri::SupplementalGroupsPolicy::Strict, "1000 3000"),
    ] {
        let change = |c: &mut cri::LinuxContainerSecurityContext| {
            c.run_as_user = Some(cri::Int64Value { value: 1000 });
            c.supplemental_groups = vec![3000];
            c.supplemental_groups_policy = policy as i32;
        };
        let groups = s.script("id -G | tr ' ' '\\n' | sort -n | tr '\\n' ' '", |spec| spec.security(change))?;
        same(policy.as_str_name(), groups.trim_end(), wanted)?;
    }
    Ok(())
}

/// Effective capabilities of a process of root's.
fn capabilities(s: &Suite, change: impl FnOnce(&mut cri::LinuxContainerSecurityContext)) -> Result<u64> {
    let text = s.script("grep ^CapEff /proc/self/status | cut -f2", |spec| spec.security(change))?;
    Ok(u64::from_str_radix(&text, 16)?)
}

fn capabilities_are_the_usual_ones_unless_changed(s: &mut Suite) -> Result<()> {
    // chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service net_raw sys_chroot mknod audit_write setfcap
    const USUAL: u64 = 0xa804_25fb;
    const NET_ADMIN: u64 = 1 << 12;
    const CHOWN: u64 = 1;
    let seen = capabilities(s, |_| ())?;
    ensure!(seen == USUAL, "default: {seen:x}");
    let list = |add: &[&str], drop: &[&str]| cri::Capability {
        add_capabilities: add.iter().map(|c| (*c).to_owned()).collect(),
        drop_capabilities: drop.iter().map(|c| (*c).to_owned()).collect(),
        ..Default::default()
    };
    let seen = capabilities(s, |c| c.capabilities = Some(list(&["NET_ADMIN"], &["CHOWN"])))?;
    ensure!(seen == (USUAL | NET_ADMIN) & !CHOWN, "add and drop: {seen:x}");
    let seen = capabilities(s, |c| c.capabilities = Some(list(&[], &["ALL"])))?;
    ensure!(seen == 0, "drop all: {seen:x}");
    let seen = capabilities(s, |c| c.run_as_user = Some(cri::Int64Value { value: 1000 }))?;
    ensure!(seen == 0, "another user than root: {seen:x}");
    Ok(())
}

fn no_new_privileges_is_set(s: &mut Suite) -> Result<()> {
    for (wanted, text) in [(true, "1"), (false, "0")] {
        let seen = s.script("grep ^NoNewPrivs /proc/self/status | cut -f2", |spec| {
            spec.security(|c| c.no_new_privs = wanted)
        })?;
        same("NoNewPrivs", &seen, text)?;
    }
    Ok(())
}

fn kernel_files_are_masked(s: &mut Suite) -> Result<()> {
    let masked = |c: &mut cri::LinuxContainerSecurityContext| {
        c.masked_paths = vec!["/proc/kcore".into(), "/proc/keys".into(), "/sys/firmware".into(), "/proc/none".into()];
        c.readonly_paths = vec!["/proc/sys".into()];
    };
    let script = "wc -c < /proc/keys; ls /sys/firmware 2>/dev/null | wc -l; \
                  echo 1 > /proc/sys/kernel/panic 2>/dev/null && echo written || echo refused; \
                  touch /sys/x 2>/dev/null && echo written || echo refused";
    same("masked", &s.script(script, |spec| spec.security(masked))?, "0\n0\nrefused\nrefused")
}

fn a_read_only_root_cannot_be_written(s: &mut Suite) -> Result<()> {
    let spec = s.f.shell("touch /file; echo $?; touch /dev/shm/file; echo $?")?.security(|c| c.readonly_rootfs = true);
    let outcome = s.once(&spec)?;
    same("codes", &outcome.stdout, "1\n0\n")?;
    ensure!(outcome.stderr.contains("Read-only file system"), "{outcome:?}");
    Ok(())
}

fn a_root_is_writable_and_its_own(s: &mut Suite) -> Result<()> {
    let write = "echo mine > /etc/passwd.new && mv /etc/passwd.new /etc/passwd && rm /bin/wget && cat /etc/passwd";
    same("first", &s.script(write, |spec| spec)?, "mine")?;
    same(
        "second",
        &s.script("head -n1 /etc/passwd; ls /bin/wget", |spec| spec)?,
        "root:x:0:0:root:/root:/bin/sh\n/bin/wget",
    )
}

fn a_terminal_is_one(s: &mut Suite) -> Result<()> {
    let script = "test -t 0 && test -t 1 && tty; ls -l /dev/console | cut -c1";
    let with = s.script(script, |spec| spec.with(|c| c.tty = true))?;
    ensure!(with.starts_with("/dev/"), "with a terminal: {with:?}");
    let without = s.script("test -t 0 || echo none; cat", |spec| spec)?;
    same("without a terminal, and an empty stdin", &without, "none")
}

fn hostname_hosts_and_resolver_are_the_pods(s: &mut Suite) -> Result<()> {
    same("hostname", &s.script("hostname", |spec| spec)?, "environment")?;
    let resolver = s.script("cat /etc/resolv.conf", |spec| spec)?;
    same(
        "resolv.conf",
        &resolver,
        "search default.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5",
    )?;
    let hosts = s.script("cat /etc/hosts", |spec| spec)?;
    ensure!(hosts.contains(&format!("{}\tenvironment", s.pod.address()?)), "hosts: {hosts}");
    Ok(())
}

fn limits_are_seen_in_the_cgroup(s: &mut Suite) -> Result<()> {
    s.f.environment.needs_controllers(&["memory", "cpu", "cpuset", "pids"])?;
    let limits = |r: &mut cri::LinuxContainerResources| {
        r.memory_limit_in_bytes = 64 << 20;
        r.cpu_quota = 50_000;
        r.cpu_period = 100_000;
        r.cpu_shares = 512;
        r.cpuset_cpus = "0".into();
        r.unified = [("pids.max".to_owned(), "77".to_owned())].into();
    };
    let script = "cd /sys/fs/cgroup; cat memory.max cpu.max cpu.weight cpuset.cpus pids.max";
    let seen = s.script(script, |spec| spec.resources(limits))?;
    let lines: Vec<&str> = seen.lines().collect();
    ensure!(lines.len() == 5, "{seen}");
    same("memory.max", lines[0], "67108864")?;
    same("cpu.max", lines[1], "50000 100000")?;
    let weight: u32 = lines[2].parse()?;
    ensure!((15..=60).contains(&weight), "cpu.weight for 512 shares is {weight}");
    same("cpuset.cpus", lines[3], "0")?;
    same("pids.max", lines[4], "77")?;
    let files = s.script("grep 'Max open files' /proc/self/limits", |spec| spec)?;
    ensure!(files.split_whitespace().nth(3).is_some_and(|n| n.parse::<u64>().is_ok_and(|n| n >= 1024)), "{files}");
    let score = s.script("cat /proc/self/oom_score_adj", |spec| spec.resources(|r| r.oom_score_adj = 500))?;
    same("oom_score_adj", &score, "500")
}

fn huge_pages_are_limited(s: &mut Suite) -> Result<()> {
    s.f.environment.needs_machine("huge pages have a controller in every guest, not on every host")?;
    let limit = |page_size: &str, limit| cri::HugepageLimit { page_size: page_size.to_owned(), limit };
    // A kubelet sends one for each size of the host, which the guest's kernel may not have.
    let limits = vec![limit("2MB", 4 << 20), limit("64KB", 0)];
    let seen = s.script("cat /sys/fs/cgroup/hugetlb.2MB.max", |spec| spec.resources(|r| r.hugepage_limits = limits))?;
    same("hugetlb.2MB.max", &seen, "4194304")?;
    let absent = s.f.shell("true")?.resources(|r| r.hugepage_limits = vec![limit("64KB", 65_536)]);
    let error = s.pod.create(&absent).err().context("pages that the kernel does not have are given")?;
    ensure!(error.message.contains("hugetlb.64KB.max"), "{error}");
    Ok(())
}

fn an_update_changes_the_oom_score(s: &mut Suite) -> Result<()> {
    let script = "sleep 1000 & echo up; wait";
    let container = s.pod.start(&s.f.shell(script)?.named("scored").resources(|r| r.oom_score_adj = 300))?;
    container.says("up")?;
    let changes = cri::LinuxContainerResources { oom_score_adj: 600, ..Default::default() };
    s.f.cri().update_container_resources(cri::UpdateContainerResourcesRequest {
        container_id: container.id.clone(),
        linux: Some(changes),
        ..Default::default()
    })?;
    let seen = container.exec(&["sh", "-c", "cat /proc/[0-9]*/oom_score_adj | sort -u"])?.stdout;
    same("of what runs, and of what is executed from now on", seen.trim(), "600")
}

fn memory_beyond_the_limit_is_an_oom_kill(s: &mut Suite) -> Result<()> {
    s.f.environment.needs_controllers(&["memory"])?;
    let spec = s.f.shell("exec tail /dev/zero")?.resources(|r| r.memory_limit_in_bytes = 24 << 20);
    let outcome = s.once(&spec)?;
    ensure!(outcome.code == 137 && outcome.status.reason == "OOMKilled", "{outcome:?}");
    same("the pod lives", &s.script("echo yes", |spec| spec)?, "yes")
}

fn processes_see_only_their_container(s: &mut Suite) -> Result<()> {
    let pids = s.script("echo $$; ls -d /proc/[0-9]* | wc -l", |spec| spec)?;
    let mut lines = pids.lines();
    same("own pid", lines.next().unwrap_or_default(), "1")?;
    let seen: u32 = lines.next().unwrap_or_default().parse()?;
    ensure!(seen <= 4, "{seen} processes are visible");
    let links = s.script("ls /sys/class/net | tr '\\n' ' '", |spec| spec)?;
    same("links", links.trim_end(), "eth0 lo")
}

fn stop_asks_before_it_kills(s: &mut Suite) -> Result<()> {
    let polite = s.pod.start(&s.f.shell("trap 'echo asked; exit 0' TERM; echo up; while :; do sleep 0.1; done")?)?;
    polite.says("up")?;
    polite.stop(20)?;
    let outcome = polite.finish()?;
    ensure!(outcome.code == 0 && outcome.stdout == "up\nasked\n", "{outcome:?}");
    let plain = s.pod.start(&Spec::new(&s.f.image("busybox")?, &["sleep", "1000"]).named("plain"))?;
    let started = Instant::now();
    plain.stop(2)?;
    let code = plain.ended(Duration::from_secs(5))?.exit_code;
    // A first process without a handler never sees SIGTERM.
    ensure!(code == 137 && started.elapsed() >= Duration::from_secs(2), "{code} after {:?}", started.elapsed());
    let stubborn = s.pod.start(&s.f.shell("trap '' TERM; echo up; while :; do sleep 0.1; done")?.named("stubborn"))?;
    stubborn.says("up")?;
    let started = Instant::now();
    stubborn.stop(1)?;
    ensure!(started.elapsed() < Duration::from_secs(10), "stop took {:?}", started.elapsed());
    let status = stubborn.ended(Duration::from_secs(5))?;
    ensure!(status.exit_code == 137, "{status:?}");
    let child = s.pod.start(&s.f.shell("sh -c 'kill -TERM $$'; echo $?")?.named("child"))?;
    same("a child that SIGTERM ended", &child.finish()?.stdout, "143\n")
}

fn an_impossible_command_is_told(s: &mut Suite) -> Result<()> {
    let image = s.f.image("busybox")?;
    for (name, command, why) in
        [("absent", "/bin/not-there", "no such file"), ("text", "/etc/passwd", "permission denied")]
    {
        let error =
            s.pod.start(&Spec::new(&image, &[command]).named(name)).err().with_context(|| format!("{command} runs"))?;
        ensure!(error.message.contains(command) && error.message.to_lowercase().contains(why), "{error}");
    }
    Ok(())
}

fn exec_runs_as_the_container_does(s: &mut Suite) -> Result<()> {
    let spec =
        Spec::shell(&s.f.image("user-name")?, "sleep 1000").env("WORD", "kept").with(|c| c.working_dir = "/tmp".into());
    let container = s.pod.start(&spec)?;
    let seen = container.exec(&["sh", "-c", "echo $(id -u) $WORD $(pwd); echo problem >&2; exit 9"])?;
    same("stdout", &seen.stdout, "1000 kept /tmp\n")?;
    same("stderr", &seen.stderr, "problem\n")?;
    ensure!(seen.code == 9, "{seen:?}");
    let missing = container.exec(&["/not/there"]).err().context("exec of nothing succeeded")?;
    ensure!(missing.message.contains("/not/there"), "{missing}");
    let big = container.exec(&["sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x"])?;
    ensure!(big.stdout.len() == 3_000_000, "{} of 3000000 bytes arrived", big.stdout.len());
    let request = cri::ExecSyncRequest {
        container_id: container.id.clone(),
        cmd: ["sleep", "1000"].map(str::to_owned).to_vec(),
        timeout: 1,
    };
    let error = s.f.cri().exec_sync(request).err().context("an exec outlives its timeout")?;
    ensure!(error.code == tonic::Code::DeadlineExceeded, "{error}");
    Ok(())
}
